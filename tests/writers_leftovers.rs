//! Nothing is left behind by writers and waiters that die at a bad moment: no lease, no handle,
//! no descriptor of the daemon.

mod common;

use common::{
    DEADLINE, Mount, Running, User, alive, as_each_user, options, wait_until, wait_until_parked,
};
use std::time::{Duration, Instant};

/// How many descriptors the daemon has.
fn descriptors(mount: &Mount) -> usize {
    let listing = std::fs::read_dir(format!("/proc/{}/fd", mount.daemon()));
    listing.expect("the daemon").count()
}

/// The next open gets `f` at once; "at once" is generous, for busy machines, but far below both the
/// lock timeout (30 s) and the time after which a lost lease would be given up (5 s).
fn is_free(mount: &Mount) {
    // Without the start of Python, which takes what the machine has left for it.
    let took = mount.python(
        "before = time.monotonic(); f = os.open('f', os.O_WRONLY); say(time.monotonic() - before)",
    );
    let took: f64 = took.trim().parse().expect("seconds");
    assert!(took < 4.0, "{took}");
}

#[test]
fn writers_killed_at_any_moment_leave_no_lease() {
    // Among two hundred some die between being sent to look the name up again and their coming
    // back, some while they wait, some while they write.
    as_each_user(|mount| {
        mount.bash("echo -n 00000000 > f");
        mount.python(
            r#"
import random
def work():
    while True:
        f = os.open("f", os.O_RDWR)
        old = os.read(f, 100)
        assert len(old) == 8 and len(set(old)) == 1, old
        new = (b"%d" % random.randrange(10))
        for at in range(8):
            os.pwrite(f, new, at)
        os.close(f)
def start():
    pid = os.fork()
    if pid == 0:
        try: work()
        except BaseException as e: print(repr(e), file=sys.stderr, flush=True)
        os._exit(1)
    return pid
workers = [start() for _ in range(4)]
for turn in range(200):
    time.sleep(random.random() / 200)
    victim = random.randrange(4)
    os.kill(workers[victim], signal.SIGKILL)
    end = os.waitpid(workers[victim], 0)[1]
    assert os.WIFSIGNALED(end), end
    workers[victim] = start()
for worker in workers:
    os.kill(worker, signal.SIGKILL)
    end = os.waitpid(worker, 0)[1]
    assert os.WIFSIGNALED(end), end
"#,
        );
        is_free(mount);
        let content = mount.read_behind("f");
        assert_eq!(content.len(), 8);
        assert_eq!(content, content[..1].repeat(8));
    });
}

#[test]
fn creators_killed_at_any_moment_leave_no_lease_and_no_name() {
    as_each_user(|mount| {
        mount.python(
            r#"
import random
def start():
    pid = os.fork()
    if pid == 0:
        while True:
            f = os.open("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(f, b"new")
            os.write(f, b"new")
            os.close(f)
            try: os.unlink("f")
            except FileNotFoundError: pass
    return pid
for turn in range(100):
    workers = [start() for _ in range(2)]
    time.sleep(random.random() / 200)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    for worker in workers:
        end = os.waitpid(worker, 0)[1]
        assert os.WIFSIGNALED(end), (turn, end)
"#,
        );
        mount.bash("rm -f f; echo x > f; cat f");
        is_free(mount);
    });
}

#[test]
fn a_waiter_that_dies_leaves_no_lease() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut holder = mount.spawn(
            "bash",
            "exec 3>f; echo open; read -r _; exec 3>&-; echo closed; read -r _",
        );
        holder.expect("open");
        let mut waiters: Vec<_> = (0..5)
            .map(|_| {
                let waiter = mount.spawn_python("os.open('f', os.O_WRONLY)\nhear()");
                wait_until_parked(waiter.pid(), 1);
                waiter
            })
            .collect();
        for waiter in &mut waiters {
            waiter.signal("KILL");
        }
        for waiter in &mut waiters {
            waiter.wait();
        }
        holder.tell("close");
        holder.expect("closed");
        mount.python("os.close(os.open('f', os.O_WRONLY | os.O_NONBLOCK))");
    });
}

#[test]
fn a_waiter_that_is_killed_as_its_turn_comes_leaves_no_lease() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        mount.python(
            r#"
for turn in range(60):
    f = os.open("f", os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        os.close(f)
        os.close(os.open("f", os.O_WRONLY))
        os._exit(0)
    time.sleep(0.02)
    # Both at the same moment, in one order or the other.
    if turn % 2: os.kill(pid, signal.SIGKILL)
    os.close(f)
    if not turn % 2: os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    f = os.open("f", os.O_RDWR)
    os.close(f)
"#,
        );
        is_free(mount);
        assert_eq!(mount.read("f"), "old\n");
    });
}

/// Python that opens 5,000 files and writes to them.
const MANY: &str = r#"
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 6000), hard))
files = []
for number in range(5000):
    f = os.open(f"many/{number}", os.O_WRONLY | os.O_CREAT)
    os.write(f, b"content")
    files.append(f)
say("written")
hear()
"#;

/// Waits for an end that may take longer than anything else: five thousand commits.
fn ends(process: &mut Running) -> std::process::ExitStatus {
    let end = Instant::now() + 5 * DEADLINE;
    while alive(process.pid()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    process.wait()
}

// These two take their time, so each is done by one user only.

#[test]
fn a_process_with_five_thousand_files_that_exits_commits_them_all_and_leaks_nothing() {
    let mount = options().mount();
    mount.bash("mkdir many; echo old > many/old; cat many/old");
    let before = descriptors(&mount);
    let mut process = mount.spawn_python(MANY);
    process.expect("written");
    process.tell("exit");
    assert!(ends(&mut process).success());
    let committed = std::fs::read_dir(mount.behind("many"))
        .expect("many")
        .count();
    assert_eq!(committed, 5001);
    assert_eq!(mount.read("many/4999"), "content");
    wait_until("the daemon has closed its descriptors", || {
        descriptors(&mount) <= before + 8
    });
    mount.python("os.close(os.open('many/7', os.O_WRONLY | os.O_NONBLOCK))");
}

#[test]
fn a_process_with_five_thousand_files_that_is_killed_leaves_none_and_leaks_nothing() {
    let mount = options().user(User::Ordinary).mount();
    mount.bash("mkdir many; echo old > many/7; cat many/7");
    let before = descriptors(&mount);
    let mut process = mount.spawn_python(MANY);
    process.expect("written");
    process.signal("KILL");
    assert!(!ends(&mut process).success());
    wait_until("their names are gone", || mount.bash("ls many") == "7\n");
    assert_eq!(mount.bash("ls ../backing/many"), "7\n");
    assert_eq!(mount.read("many/7"), "old\n");
    wait_until("the daemon has closed its descriptors", || {
        descriptors(&mount) <= before + 8
    });
    mount.python("os.close(os.open('many/7', os.O_WRONLY | os.O_NONBLOCK))");
}

#[test]
fn many_updates_leak_nothing() {
    as_each_user(|mount| {
        mount.bash("for i in {1..20}; do echo $i > f; cat f > /dev/null; done");
        let before = descriptors(mount);
        mount.bash("for i in {1..300}; do echo $i > f; read -r _ < f; done");
        wait_until("the daemon has closed its descriptors", || {
            descriptors(mount) <= before + 8
        });
    });
}
