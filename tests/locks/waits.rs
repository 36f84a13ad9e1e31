//! Waiting for a lock: in turn, for as long as it takes, until a signal.

use crate::common::{Mount, Running, as_each_user, wait_until_parked};
use crate::{QUICK, python, spawn};
use std::time::Instant;

/// Takes a lock on `f` and says so; gives it back when it hears something.
fn locker(mount: &Mount, take: &str) -> Running {
    spawn(
        mount,
        &format!(
            "f = os.open('f', os.O_RDONLY if 'flock' in '''{take}''' else os.O_RDWR)\n\
             say('asks')\n\
             say({take})\n\
             hear()\n\
             os.close(f)\n\
             say('closed')\n\
             hear()\n"
        ),
    )
}

fn waiting(mount: &Mount, take: &str) -> Running {
    let program = locker(mount, take);
    program.expect("asks");
    wait_until_parked(program.pid(), 1);
    program
}

#[test]
fn exclusive_flocks_are_given_in_the_order_in_which_they_were_asked_for() {
    as_each_user(|mount| {
        mount.bash("printf x > f");
        let mut holder = locker(mount, "flock(f, EXCLUSIVE)");
        holder.expect("asks");
        holder.expect("got");
        let mut queue = Vec::new();
        for _ in 0..5 {
            queue.push(waiting(mount, "flock(f, EXCLUSIVE)"));
        }
        for mut next in queue {
            assert!(next.is_silent());
            holder.tell("on");
            holder.expect("closed");
            next.expect("got");
            holder.tell("on");
            holder.succeed();
            std::mem::swap(&mut holder, &mut next);
        }
    });
}

#[test]
fn a_wait_for_a_lock_takes_longer_than_the_lock_timeout_if_it_has_to() {
    let mount = crate::options().arg("--lock-timeout=200ms").mount();
    mount.bash("printf x > f");
    let mut holder = locker(&mount, "flock(f, EXCLUSIVE)");
    holder.expect("asks");
    holder.expect("got");
    let waiter = waiting(&mount, "flock(f, EXCLUSIVE)");
    // Long enough that an open would have timed out (one does, behind a writer).
    mount.bash("exec 9>g; if sh -c ': > g' 2>/dev/null; then exit 1; fi");
    assert!(waiter.is_silent());
    holder.tell("on");
    holder.expect("closed");
    waiter.expect("got");
    for mut program in [holder, waiter] {
        program.tell("on");
        program.tell("on");
        program.succeed();
    }
    mount.unmount();
}

#[test]
fn ctrl_c_ends_a_wait_for_a_lock_and_leaves_the_queue_in_order() {
    as_each_user(|mount| {
        mount.bash("printf x > f");
        for take in ["flock(f, EXCLUSIVE)", "lockf(f, EXCLUSIVE)"] {
            let mut holder = spawn(
                mount,
                "f = os.open('f', os.O_RDONLY)\n\
                 say(flock(f, EXCLUSIVE), lockf(f, SHARED))\n\
                 hear()\n",
            );
            holder.expect("got got");
            if take.starts_with("lockf") {
                // Writers of one file take turns: one of them only.
                let mut first = waiting(mount, take);
                first.signal("INT");
                assert!(!first.wait().success());
            } else {
                let mut first = waiting(mount, take);
                let second = waiting(mount, take);
                first.signal("INT");
                let before = Instant::now();
                assert!(!first.wait().success());
                assert!(before.elapsed() < QUICK);
                assert!(second.is_silent());
                holder.tell("on");
                holder.succeed();
                second.expect("got");
                continue;
            }
            holder.tell("on");
            holder.succeed();
        }
    });
}

#[test]
fn a_killed_waiter_does_not_get_the_lock() {
    as_each_user(|mount| {
        mount.bash("printf x > f");
        let mut holder = locker(mount, "flock(f, EXCLUSIVE)");
        holder.expect("asks");
        holder.expect("got");
        let mut killed = waiting(mount, "flock(f, EXCLUSIVE)");
        killed.signal("KILL");
        killed.wait();
        holder.tell("on");
        holder.expect("closed");
        let script = "f = os.open('f', os.O_RDONLY)\nsay(flock(f, EXCLUSIVE | NB))\n";
        let said = python(mount.command("python3"), mount.point(), "f", script);
        assert_eq!(said, "got\n");
        holder.tell("on");
        holder.succeed();
    });
}

#[test]
fn a_handled_signal_ends_a_wait_for_a_lock_or_lets_it_go_on_as_its_handler_says() {
    as_each_user(|mount| {
        mount.bash("printf x > f");
        let mut holder = locker(mount, "flock(f, EXCLUSIVE)");
        holder.expect("asks");
        holder.expect("got");
        // Python tries again by itself after EINTR, unless the handler raises.
        let mut patient = spawn(
            mount,
            "signal.signal(signal.SIGUSR1, lambda *_: say('signal'))\n\
             signal.signal(signal.SIGCHLD, lambda *_: say('child'))\n\
             class InterruptedWait(Exception):\n\
             \x20   pass\n\
             def give_up(*_):\n\
             \x20   raise InterruptedWait\n\
             signal.signal(signal.SIGALRM, give_up)\n\
             f = os.open('f', os.O_RDONLY)\n\
             say('asks')\n\
             try:\n\
             \x20   say(flock(f, EXCLUSIVE))\n\
             except InterruptedWait:\n\
             \x20   say('gave up')\n",
        );
        patient.expect("asks");
        for (signal, says) in [("USR1", "signal"), ("CHLD", "child")] {
            wait_until_parked(patient.pid(), 1);
            patient.signal(signal);
            patient.expect(says);
        }
        wait_until_parked(patient.pid(), 1);
        patient.signal("ALRM");
        patient.expect("gave up");
        patient.succeed();
        holder.tell("on");
        holder.tell("on");
        holder.succeed();
    });
}

#[test]
fn a_wait_for_a_lock_can_be_stopped_and_goes_on_afterwards() {
    as_each_user(|mount| {
        mount.bash("printf x > f");
        let mut holder = locker(mount, "flock(f, EXCLUSIVE)");
        holder.expect("asks");
        holder.expect("got");
        let mut waiter = waiting(mount, "flock(f, EXCLUSIVE)");
        {
            let _stopped = crate::common::Stopped::new(waiter.pid());
        }
        wait_until_parked(waiter.pid(), 1);
        holder.tell("on");
        holder.expect("closed");
        waiter.expect("got");
        for program in [&mut holder, &mut waiter] {
            program.tell("on");
        }
        waiter.expect("closed");
        waiter.tell("on");
        waiter.succeed();
    });
}

#[test]
fn two_that_wait_for_each_others_fcntl_locks_are_told_of_the_deadlock() {
    // Each writes a file of its own, and reads the other's: so only the locks make the circle. The
    // first lock of each is on the file it writes, where the other has it open for reading already.
    as_each_user(|mount| {
        mount.bash("printf x > f; printf x > g");
        let program = |own: &str, other: &str| {
            spawn(
                mount,
                &format!(
                    "b = os.open('{other}', os.O_RDONLY)\n\
                     say('open')\n\
                     hear()\n\
                     a = os.open('{own}', os.O_RDWR)\n\
                     say(lockf(a, EXCLUSIVE | NB))\n\
                     hear()\n\
                     say(lockf(b, SHARED))\n\
                     hear()\n"
                ),
            )
        };
        let (mut first, mut second) = (program("f", "g"), program("g", "f"));
        for one in [&mut first, &mut second] {
            one.expect("open");
        }
        for one in [&mut first, &mut second] {
            one.tell("on");
            one.expect("got");
        }
        first.tell("on");
        wait_until_parked(first.pid(), 1);
        second.tell("on");
        second.expect("EDEADLK");
        assert!(first.is_silent());
        second.tell("end");
        second.succeed();
        first.expect("got");
        first.tell("end");
        first.succeed();
    });
}

#[test]
fn there_is_no_deadlock_of_open_file_descriptions() {
    // A third thread may give one of them back: here it does.
    as_each_user(|mount| {
        mount.bash("printf x > f");
        let said = python(
            mount.command("python3"),
            mount.point(),
            "f",
            "a = os.open('f', os.O_RDWR)\n\
             b = os.open('f', os.O_RDWR)\n\
             assert ofd(a, fcntl.F_WRLCK, 0, 1) == ofd(b, fcntl.F_WRLCK, 1, 1) == 'got'\n\
             answers = []\n\
             def wait(fd, byte):\n\
             \x20   answers.append(ofd(fd, fcntl.F_WRLCK, byte, 1, True))\n\
             threads = [threading.Thread(target=wait, args=pair) for pair in [(a, 1), (b, 0)]]\n\
             for thread in threads:\n\
             \x20   thread.start()\n\
             def blocked():\n\
             \x20   tasks = os.listdir('/proc/self/task')\n\
             \x20   calls = [open(f'/proc/self/task/{t}/syscall').read().split()[:3] for t in tasks]\n\
             \x20   return sum(c[2:] == ['0x26'] for c in calls)\n\
             while blocked() < 2:\n\
             \x20   time.sleep(0.01)\n\
             time.sleep(0.2)\n\
             assert answers == []\n\
             ofd(b, fcntl.F_UNLCK)\n\
             threads[0].join()\n\
             ofd(a, fcntl.F_UNLCK)\n\
             threads[1].join()\n\
             say(*answers)\n",
        );
        assert_eq!(said, "got got\n");
    });
}

#[test]
fn a_shared_lock_is_not_kept_waiting_by_one_who_waits_for_an_exclusive_one() {
    // A script that holds one calls another that takes one: nobody may hang.
    as_each_user(|mount| {
        mount.bash("printf x > f");
        let mut holder = locker(mount, "flock(f, SHARED)");
        holder.expect("asks");
        holder.expect("got");
        let exclusive = waiting(mount, "flock(f, EXCLUSIVE)");
        assert_eq!(mount.bash("flock -s f echo inner"), "inner\n");
        assert!(exclusive.is_silent());
        holder.tell("on");
        holder.expect("closed");
        exclusive.expect("got");
    });
}

#[test]
fn an_unmount_ends_the_waits_for_locks() {
    let mount = crate::options().arg("--unmount-timeout=300ms").mount();
    mount.bash("printf x > f");
    let holder = locker(&mount, "flock(f, EXCLUSIVE)");
    holder.expect("asks");
    holder.expect("got");
    let waiter = waiting(&mount, "flock(f, EXCLUSIVE)");
    mount.unmount();
    assert!(["ENOTCONN", "ECONNABORTED", "EIO"].contains(&waiter.hear().as_str()));
}
