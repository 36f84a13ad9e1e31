//! W2 and W3: a wait that would never end fails, and any wait can be interrupted.

mod common;

use common::{Mount, Running, alive, as_each_user, is_blocked, wait_until, wait_until_parked};
use std::time::{Duration, Instant};

/// How long after a signal a wait may still last: the contract says 100 ms, a busy machine gets more,
/// and far less than the lock timeout, which is 30 s here.
const SOON: Duration = Duration::from_secs(10);

/// A program that opens and closes what it is told: `NAME` opens a file for writing, `<NAME` for
/// reading, and anything that is open already is closed.
fn opener(mount: &Mount) -> Running {
    mount.spawn_python(
        r#"
errno.errorcode[errno.EDEADLK] = "EDEADLK"
files = {}
while line := hear():
    try:
        if line in files:
            os.close(files.pop(line))
            say("closed", line)
        else:
            how = os.O_RDONLY if line[0] == "<" else os.O_RDWR
            files[line] = os.open(line.lstrip("<"), how)
            say("opened", line)
    except OSError as e:
        say(errno.errorcode[e.errno])
"#,
    )
}

/// The same, holding a file.
fn holder(mount: &Mount, name: &str) -> Running {
    let mut opener = opener(mount);
    opener.tell(name);
    opener.expect(&format!("opened {name}"));
    opener
}

/// Tells an opener to open what it has to wait for.
fn waits_for(opener: &mut Running, name: &str) {
    opener.tell(name);
    wait_until_parked(opener.pid(), 1);
}

fn files(mount: &Mount) {
    mount.bash("for name in a b c d; do echo $name > $name; done");
}

#[test]
fn of_two_that_wait_for_each_other_the_second_fails_with_edeadlk() {
    as_each_user(|mount| {
        files(mount);
        let (mut first, mut second) = (holder(mount, "a"), holder(mount, "b"));
        waits_for(&mut first, "b");
        second.tell("a");
        second.expect("EDEADLK");
        // It still has what it had, and the other one still waits.
        assert!(first.is_silent() && is_blocked(first.pid()));
        second.tell("b");
        second.expect("closed b");
        first.expect("opened b");
    });
}

#[test]
fn of_three_that_wait_in_a_circle_one_fails_with_edeadlk_and_the_others_go_on() {
    as_each_user(|mount| {
        files(mount);
        let mut first = holder(mount, "a");
        let mut second = holder(mount, "b");
        let mut third = holder(mount, "c");
        waits_for(&mut first, "b");
        waits_for(&mut second, "c");
        let before = Instant::now();
        third.tell("a");
        third.expect("EDEADLK");
        // At once: not after the lock timeout.
        assert!(before.elapsed() < SOON);
        assert!(first.is_silent() && second.is_silent());
        third.tell("c");
        third.expect("closed c");
        second.expect("opened c");
        assert!(first.is_silent());
        second.tell("b");
        second.expect("closed b");
        first.expect("opened b");
    });
}

#[test]
fn an_open_for_reading_that_closes_a_cycle_fails_with_edeadlk() {
    as_each_user(|mount| {
        files(mount);
        let (mut first, mut second) = (holder(mount, "a"), holder(mount, "b"));
        waits_for(&mut first, "<b");
        second.tell("<a");
        second.expect("EDEADLK");
        second.tell("b");
        second.expect("closed b");
        first.expect("opened <b");
    });
}

#[test]
fn a_cycle_through_a_queue_fails_with_edeadlk() {
    // The third waits for b behind the first, so it waits for the first, too.
    as_each_user(|mount| {
        files(mount);
        let mut first = holder(mount, "a");
        let mut second = holder(mount, "b");
        let mut third = holder(mount, "c");
        waits_for(&mut first, "b");
        waits_for(&mut third, "b");
        second.tell("c");
        second.expect("EDEADLK");
        second.tell("b");
        second.expect("closed b");
        first.expect("opened b");
        assert!(third.is_silent());
        first.tell("b");
        first.expect("closed b");
        third.expect("opened b");
    });
}

#[test]
fn a_chain_of_waits_that_is_no_cycle_goes_on() {
    as_each_user(|mount| {
        files(mount);
        let mut chain = ["a", "b", "c", "d"].map(|name| holder(mount, name));
        for (index, next) in ["a", "b", "c"].into_iter().enumerate() {
            waits_for(&mut chain[index + 1], next);
        }
        chain[0].tell("a");
        chain[0].expect("closed a");
        for (index, (got, own)) in [("a", "b"), ("b", "c"), ("c", "d")].into_iter().enumerate() {
            let program = &mut chain[index + 1];
            program.expect(&format!("opened {got}"));
            program.tell(own);
            program.expect(&format!("closed {own}"));
        }
    });
}

#[test]
fn two_threads_that_wait_for_each_other_are_a_cycle() {
    as_each_user(|mount| {
        files(mount);
        let ends = mount.python(
            r#"
errno.errorcode[errno.EDEADLK] = "EDEADLK"
ends = []
def run(mine, other):
    f = os.open(mine, os.O_RDWR)
    both.wait()
    try:
        os.close(os.open(other, os.O_RDWR))
        ends.append("opened")
    except OSError as e:
        ends.append(errno.errorcode[e.errno])
    os.close(f)
both = threading.Barrier(2)
threads = [threading.Thread(target=run, args=names) for names in (("a", "b"), ("b", "a"))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(ends)
"#,
        );
        assert_eq!(ends, "['EDEADLK', 'opened']\n");
    });
}

/// Starts a program that will wait for `f`, held by the other one that is returned.
fn waiter(mount: &Mount, script: &str) -> (Running, Running) {
    mount.bash("echo old > f");
    let holder = holder(mount, "f");
    let waiter = mount.spawn_python(script);
    wait_until_parked(waiter.pid(), 1);
    (holder, waiter)
}

/// Closes `f`, and checks that the next one gets it at once.
fn comes_free(mount: &Mount, mut holder: Running) {
    holder.tell("f");
    holder.expect("closed f");
    mount.python("os.close(os.open('f', os.O_WRONLY | os.O_NONBLOCK))");
}

#[test]
fn ctrl_c_ends_a_waiting_open() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let holder = holder(mount, "f");
        // A terminal of its own, and in it a shell that waits for its redirection.
        let mut terminal = mount.spawn_python(
            r#"
import pty
pid, master = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "--norc", "-c", "echo new > f"])
say(pid)
hear()
before = time.monotonic()
os.write(master, b"\x03")
end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
say(end, time.monotonic() - before)
"#,
        );
        let shell: u32 = terminal.hear().parse().expect("a pid");
        wait_until_parked(shell, 1);
        terminal.tell("ctrl-c");
        let told = terminal.hear();
        let (end, took) = told.split_once(' ').expect("two words");
        assert!(["-2", "130"].contains(&end), "{told}");
        assert!(took.parse::<f64>().expect("seconds") < SOON.as_secs_f64());
        comes_free(mount, holder);
        assert_eq!(mount.read_behind("f"), "old\n");
    });
}

#[test]
fn a_deadly_signal_ends_a_waiting_open() {
    as_each_user(|mount| {
        for signal in ["KILL", "TERM", "INT", "HUP", "ALRM"] {
            let open = "signal.signal(signal.SIGINT, signal.SIG_DFL)\nos.open('f', os.O_WRONLY)\n";
            let (holder, mut waiter) = waiter(mount, open);
            let before = Instant::now();
            waiter.signal(signal);
            let status = waiter.wait();
            assert!(before.elapsed() < SOON, "{signal}: {:?}", before.elapsed());
            assert!(!status.success(), "{signal}");
            comes_free(mount, holder);
        }
    });
}

#[test]
fn a_deadly_signal_ends_a_process_one_of_whose_threads_waits() {
    as_each_user(|mount| {
        for signal in ["KILL", "TERM"] {
            let (holder, mut waiter) = waiter(
                mount,
                "threading.Thread(target=os.open, args=('f', os.O_WRONLY)).start()\nhear()\n",
            );
            let before = Instant::now();
            waiter.signal(signal);
            waiter.wait();
            assert!(before.elapsed() < SOON, "{signal}: {:?}", before.elapsed());
            comes_free(mount, holder);
        }
    });
}

#[test]
fn a_handled_signal_ends_a_waiting_open_with_eintr() {
    as_each_user(|mount| {
        // ctypes, because Python's own open() goes on after a signal.
        let (holder, waiter) = waiter(
            mount,
            r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGUSR1, lambda *_: say("handled"))
f = libc.open(b"f", os.O_WRONLY)
say(f, errno.errorcode[ctypes.get_errno()])
"#,
        );
        let before = Instant::now();
        waiter.signal("USR1");
        let told = [waiter.hear(), waiter.hear()];
        assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
        assert!(told.contains(&"handled".into()), "{told:?}");
        assert!(told.contains(&"-1 EINTR".into()), "{told:?}");
        comes_free(mount, holder);
    });
}

#[test]
fn a_program_that_tries_again_after_eintr_gets_its_turn() {
    as_each_user(|mount| {
        let (mut holder, waiter) = waiter(
            mount,
            "signal.signal(signal.SIGUSR1, lambda *_: say('handled'))\n\
             f = os.open('f', os.O_WRONLY)\nsay('opened')\n",
        );
        waiter.signal("USR1");
        waiter.expect("handled");
        wait_until_parked(waiter.pid(), 1);
        assert!(waiter.is_silent());
        holder.tell("f");
        holder.expect("closed f");
        waiter.expect("opened");
    });
}

#[test]
fn a_signal_that_is_blocked_or_ignored_does_not_end_a_wait() {
    as_each_user(|mount| {
        let (mut holder, waiter) = waiter(
            mount,
            r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
f = libc.open(b"f", os.O_WRONLY)
say("opened" if f >= 0 else errno.errorcode[ctypes.get_errno()])
"#,
        );
        // CHLD, URG and WINCH are not handled, and do nothing.
        for signal in ["INT", "USR1", "TERM", "CHLD", "URG", "WINCH"] {
            waiter.signal(signal);
        }
        // By when others who came later were ended by signals that came later, twice, the daemon
        // has looked at all of them.
        for _ in 0..2 {
            let mut later = mount.spawn_python("os.open('f', os.O_WRONLY)");
            wait_until_parked(later.pid(), 1);
            later.signal("KILL");
            later.wait();
        }
        assert!(waiter.is_silent() && is_blocked(waiter.pid()));
        holder.tell("f");
        holder.expect("closed f");
        waiter.expect("opened");
    });
}

#[test]
fn a_shell_goes_on_waiting_when_a_child_of_it_ends() {
    // It handles SIGCHLD, but nobody expects a redirection to fail for that.
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            mount.bash("echo old > f");
            let mut holder = holder(mount, "f");
            let script = "cat <&0 & echo $!; trap : CHLD; echo new > f && echo written";
            let mut waiter = mount.spawn(shell, script);
            let child: u32 = waiter.hear().parse().expect("a pid");
            wait_until_parked(waiter.pid(), 1);
            common::kill(child, "KILL");
            wait_until("the child has ended", || !alive(child));
            let mut later = mount.spawn_python("os.open('f', os.O_WRONLY)");
            wait_until_parked(later.pid(), 1);
            later.signal("KILL");
            later.wait();
            holder.tell("f");
            holder.expect("closed f");
            waiter.expect("written");
            waiter.succeed();
            assert_eq!(mount.read_behind("f"), "new\n", "{shell}");
        }
    });
}

#[test]
fn a_stopped_waiter_keeps_its_turn() {
    as_each_user(|mount| {
        let (mut holder, waiter) =
            waiter(mount, "os.open('f', os.O_WRONLY)\nsay('opened')\nhear()\n");
        waiter.signal("STOP");
        waiter.signal("CONT");
        wait_until_parked(waiter.pid(), 1);
        assert!(waiter.is_silent());
        holder.tell("f");
        holder.expect("closed f");
        waiter.expect("opened");
    });
}
