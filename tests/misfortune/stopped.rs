//! Writers that hang, and waiters that are killed in the queue.

use crate::common::reliability::Row;
use crate::common::{Mount, Running, Stopped, User, as_each_user, options, wait_until_parked};

const OPENER: &str = "
def attempt(flags):
    try:
        fd = os.open('f', flags)
    except OSError as e: return say(errno.errorcode[e.errno])
    say(os.read(fd, 100).decode().strip() or 'nothing')
    if flags == os.O_RDWR:
        os.lseek(fd, 0, os.SEEK_END)
        os.write(fd, sys.argv[-1].encode()[-1:] if len(sys.argv) > 1 else b'+')
    os.close(fd)
";

/// A program that has written half of `f`, and waits for a line to write the rest.
fn half_way(mount: &Mount) -> Running {
    mount.bash("echo old > f");
    let writer = mount.spawn_python(
        "f = open('f', 'w'); f.write('first half, '); f.flush(); say('half')\n\
         hear(); f.write('second half'); f.close(); say('closed'); hear()",
    );
    writer.expect("half");
    writer
}

fn opener(mount: &Mount, flags: &str) -> Running {
    let opener = mount.spawn_python(&format!("{OPENER}\nattempt({flags})\nhear()"));
    wait_until_parked(opener.pid(), 1);
    opener
}

#[test]
fn who_waits_for_a_stopped_writer_times_out_and_the_writer_still_commits() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).arg("--lock-timeout=2s").mount();
        let mut writer = half_way(&mount);
        let base = mount.descriptors();
        let stopped = Stopped::new(writer.pid());
        let flags = ["os.O_RDONLY", "os.O_RDWR", "os.O_WRONLY | os.O_TRUNC"];
        let waiters: Vec<Running> = flags
            .iter()
            .chain(&flags)
            .map(|flags| mount.spawn_python(&format!("{OPENER}\nattempt({flags})")))
            .collect();
        for waiter in &waiters {
            waiter.expect("ETIMEDOUT");
        }
        // The log names who is in the way.
        let pid = writer.pid();
        let told = mount.log().matches("timed out after 2s").count();
        let named = mount
            .log()
            .matches(&format!("pid {pid} (python3) is writing it"))
            .count();
        assert_eq!((told, named), (6, 6), "{}", mount.log());
        assert_eq!(mount.read_behind("f"), "old\n");
        mount.wait_until_descriptors_are_back(base);
        drop(stopped);
        writer.tell("go on");
        writer.expect("closed");
        assert_eq!(mount.read("f"), "first half, second half");
        assert_eq!(mount.read_behind("f"), "first half, second half");
        mount.bash("echo new > f");
        mount.unmount();
    }
    Row {
        fault: "hung writer",
        injected: "SIGSTOP half-way; readers and writers wait until the lock timeout; SIGCONT",
        cases: 12,
        violations: 0,
        command: "scripts/test who_waits_for_a_stopped_writer",
    }
    .report();
}

#[test]
fn a_stopped_writer_that_is_killed_leaves_the_old_version_and_the_waiters_go_on() {
    as_each_user(|mount| {
        let mut writer = half_way(mount);
        let stopped = Stopped::new(writer.pid());
        let readers = [opener(mount, "os.O_RDONLY"), opener(mount, "os.O_RDONLY")];
        let writers = [opener(mount, "os.O_RDWR"), opener(mount, "os.O_RDWR")];
        writer.signal("KILL");
        writer.wait();
        std::mem::forget(stopped);
        for waiter in readers.iter().chain(&writers) {
            waiter.expect("old");
        }
        assert_eq!(mount.read("f"), "old\n++");
        assert_eq!(mount.store("tmp"), [""; 0]);
    });
}

/// Waiters in the order of their numbers, each of which adds its number to the file.
fn queue(mount: &Mount, count: usize) -> Vec<Running> {
    let script = |n: usize| {
        format!(
            "fd = os.open('f', os.O_RDWR)\n\
             os.lseek(fd, 0, os.SEEK_END); os.write(fd, b'{n} '); os.close(fd); say('done')"
        )
    };
    (0..count)
        .map(|n| {
            let waiter = mount.spawn_python(&script(n));
            wait_until_parked(waiter.pid(), 1);
            waiter
        })
        .collect()
}

#[test]
fn waiters_killed_in_the_queue_lose_their_turn_and_the_others_keep_the_order() {
    as_each_user(|mount| {
        mount.bash(": > f");
        let mut holder = mount.spawn_python("f = open('f', 'r+'); say('holds'); hear()");
        holder.expect("holds");
        let base = mount.descriptors();
        let mut waiters = queue(mount, 8);
        let killed = [0, 3, 4, 7];
        for n in killed {
            waiters[n].signal("KILL");
            assert!(!waiters[n].wait().success());
        }
        holder.tell("close");
        holder.succeed();
        for n in (0..8).filter(|n| !killed.contains(n)) {
            waiters[n].expect("done");
        }
        assert_eq!(mount.read("f"), "1 2 5 6 ");
        drop(waiters);
        mount.wait_until_descriptors_are_back(base);
    });
    Row {
        fault: "waiter killed in the queue",
        injected: "SIGKILL for the first, the last and two in the middle of eight who wait",
        cases: 8,
        violations: 0,
        command: "scripts/test waiters_killed_in_the_queue",
    }
    .report();
}

/// A stop is acted on when the open returns: it has its turn by then, and dies with that.
#[test]
fn a_waiter_stopped_in_the_queue_and_killed_after_its_turn_has_come_gives_it_back() {
    as_each_user(|mount| {
        mount.bash(": > f");
        let mut holder = mount.spawn_python("f = open('f', 'r+'); say('holds'); hear()");
        holder.expect("holds");
        let mut waiters = queue(mount, 2);
        waiters[0].signal("STOP");
        holder.tell("close");
        holder.succeed();
        let stopped = Stopped::new(waiters[0].pid());
        assert!(waiters[1].is_silent());
        waiters[0].signal("KILL");
        waiters[0].wait();
        std::mem::forget(stopped);
        waiters[1].expect("done");
        assert_eq!(mount.read("f"), "1 ");
    });
}
