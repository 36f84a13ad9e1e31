//! W1 and W4: writers of one file take turns, and no owner waits for itself.

mod common;

use common::{LATCHFS, Mount, Running, User, as_each_user, options, text, wait_until_parked};
use std::time::{Duration, Instant};

/// A writer in the middle of its update of `f`: it has written "half", and writes " whole" and
/// closes when it is told to.
fn half_way(mount: &Mount) -> Running {
    let writer = mount.spawn_python(
        r#"
f = os.open("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(f, b"half")
say("half")
hear()
os.write(f, b" whole")
os.close(f)
say("closed")
hear()
"#,
    );
    writer.expect("half");
    writer
}

/// Opens of `f` for writing, by what they do, as Python.
const OPENS: [(&str, &str); 6] = [
    ("O_WRONLY", "os.close(os.open('f', os.O_WRONLY))"),
    ("O_RDWR", "os.close(os.open('f', os.O_RDWR))"),
    (
        "O_TRUNC",
        "os.close(os.open('f', os.O_WRONLY | os.O_TRUNC))",
    ),
    (
        "O_TRUNC alone",
        "os.close(os.open('f', os.O_RDONLY | os.O_TRUNC))",
    ),
    (
        "creat",
        "os.close(os.open('f', os.O_WRONLY | os.O_CREAT | os.O_TRUNC))",
    ),
    ("fopen", "open('f', 'r+').close()"),
];

#[test]
fn every_open_for_writing_by_a_second_owner_waits_its_turn() {
    as_each_user(|mount| {
        for (how, open) in OPENS {
            mount.bash("echo old > f");
            let mut first = half_way(mount);
            let second = mount.spawn_python(&format!("{open}\nsay('done')\nhear()\n"));
            wait_until_parked(second.pid(), 1);
            assert!(second.is_silent(), "{how}");
            assert_eq!(mount.read_behind("f"), "old\n", "{how}");
            first.tell("go on");
            first.expect("closed");
            second.expect("done");
            let truncated = how.contains("TRUNC") || how == "creat";
            let expected = if truncated { "" } else { "half whole" };
            assert_eq!(mount.read_behind("f"), expected, "{how}");
        }
    });
}

#[test]
fn a_second_owner_updates_what_the_first_has_committed() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut first = half_way(mount);
        let mut second = mount.spawn_python(
            r#"
f = os.open("f", os.O_RDWR)
say(os.read(f, 100).decode())
os.pwrite(f, b"WHOLE", 5)
os.close(f)
"#,
        );
        wait_until_parked(second.pid(), 1);
        first.tell("go on");
        second.expect("half whole");
        second.succeed();
        assert_eq!(mount.read_behind("f"), "half WHOLE");
    });
}

#[test]
fn ten_waiting_writers_are_served_in_the_order_they_came() {
    as_each_user(|mount| {
        let mut first = half_way(mount);
        let waiting: Vec<Running> = (0..10)
            .map(|number| {
                // Reads to the end, and writes there.
                let script =
                    format!("exec 3<>f; while read -r _ <&3; do :; done; echo {number} >&3");
                let writer = mount.spawn("bash", &script);
                wait_until_parked(writer.pid(), 1);
                writer
            })
            .collect();
        first.tell("go on");
        for mut writer in waiting {
            writer.succeed();
        }
        assert_eq!(
            mount.read_behind("f"),
            "half whole0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"
        );
    });
}

#[test]
fn a_waiting_writer_is_woken_at_once() {
    // Without fsync, so that nothing but the hand-over is measured. A polling interval p would
    // show as a lower quartile of p / 4 or more; a busy machine delays some, but not most.
    let mount = options().arg("--durability=none").mount();
    let took = mount.python(
        r#"
open("f", "w").close()
took = []
def second():
    for _ in range(41):
        turn.wait()
        f = os.open("f", os.O_WRONLY)
        took.append(time.monotonic() - closed[0])
        os.close(f)
        turn.wait()
turn = threading.Barrier(2)
closed = [0]
thread = threading.Thread(target=second)
thread.start()
for _ in range(41):
    f = os.open("f", os.O_WRONLY)
    os.write(f, b"x")
    turn.wait()
    while True:
        with open(f"/proc/self/task/{thread.native_id}/wchan") as at:
            if "request_wait" in at.read():
                break
    time.sleep(0.01)
    closed[0] = time.monotonic()
    os.close(f)
    turn.wait()
thread.join()
print(sorted(took)[10])
"#,
    );
    let quartile: f64 = took.trim().parse().expect("a number");
    assert!(quartile < 0.01, "the lower quartile is {quartile} s");
}

#[test]
fn a_wait_ends_with_etimedout_after_the_lock_timeout() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().arg("--lock-timeout=300ms").user(user).mount();
        mount.bash("echo old > f");
        let mut first = half_way(&mount);
        for (how, open) in OPENS {
            let told = mount.python(&format!(
                r#"
before = time.monotonic()
try:
    {open}
except OSError as e:
    print(errno.errorcode[e.errno], time.monotonic() - before)
"#
            ));
            let (error, waited) = told.trim().split_once(' ').expect("an error");
            assert_eq!(error, "ETIMEDOUT", "{how}");
            let waited: f64 = waited.parse().expect("a number");
            // It may not give up early; how late it may be on a busy machine is a guess.
            assert!((0.3..5.0).contains(&waited), "{how}: {waited}");
        }
        first.tell("go on");
        first.expect("closed");
        assert_eq!(mount.read_behind("f"), "half whole");
        assert!(mount.log().contains("/f: open by pid "), "{}", mount.log());
        // Who timed out stands in nobody's way.
        assert_eq!(mount.bash("echo next > f; cat f"), "next\n");
        mount.unmount();
    }
}

#[test]
fn the_lock_timeout_is_ten_seconds_if_nothing_is_said() {
    let help = std::process::Command::new(LATCHFS)
        .args(["mount", "--help"])
        .output()
        .expect("latchfs");
    let help = text(&help.stdout);
    let (_, option) = help.split_once("--lock-timeout").expect("the option");
    let (option, _) = option.split_once("--readers").expect("the next option");
    assert!(option.contains("[default: 10s]"), "{option}");
}

#[test]
fn an_open_with_o_nonblock_fails_with_eagain_at_once() {
    as_each_user(|mount| {
        let mut first = half_way(mount);
        let told = mount.python(
            r#"
before = time.monotonic()
for flags in os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC:
    try:
        os.open("f", flags | os.O_NONBLOCK)
    except BlockingIOError as e:
        assert e.errno == errno.EAGAIN
    else:
        sys.exit("it was opened")
print("quick" if time.monotonic() - before < 5 else "slow")
"#,
        );
        assert_eq!(told, "quick\n");
        first.tell("go on");
        first.expect("closed");
        mount.python("os.close(os.open('f', os.O_WRONLY | os.O_NONBLOCK))");
        assert_eq!(mount.read_behind("f"), "half whole");
    });
}

#[test]
fn truncate_of_a_path_is_a_version_of_its_own() {
    as_each_user(|mount| {
        mount.bash("echo -n hello > f");
        let before = mount.commits("f");
        for (size, expected) in [(3, "hel"), (5, "hel\0\0"), (0, "")] {
            // os.truncate() of a path is truncate(2).
            mount.python(&format!("os.truncate('f', {size})"));
            assert_eq!(mount.read_behind("f"), expected);
            assert_eq!(mount.read("f"), expected);
        }
        assert_eq!(mount.commits("f"), before + 3);
    });
}

#[test]
fn truncate_of_a_path_that_another_owner_is_writing_fails_at_once_with_ebusy() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut first = half_way(mount);
        let told = mount.python(
            r#"
for size in 0, 2:
    try:
        os.truncate("f", size)
    except OSError as e:
        print(errno.errorcode[e.errno])
"#,
        );
        assert_eq!(told, "EBUSY\nEBUSY\n");
        first.tell("go on");
        first.expect("closed");
        assert_eq!(mount.read_behind("f"), "half whole");
        mount.python("os.truncate('f', 4)");
        assert_eq!(mount.read_behind("f"), "half");
    });
}

#[test]
fn o_trunc_is_an_update_even_if_nothing_is_written() {
    as_each_user(|mount| {
        for flags in ["os.O_WRONLY", "os.O_RDWR", "os.O_RDONLY"] {
            mount.bash("echo old > f");
            let mut writer = mount.spawn_python(&format!(
                "f = os.open('f', {flags} | os.O_TRUNC)\nsay('open')\nhear()\nos.close(f)\n\
                 say('closed')\nhear()\n"
            ));
            writer.expect("open");
            assert_eq!(mount.read_behind("f"), "old\n", "{flags}");
            writer.tell("close");
            writer.expect("closed");
            assert_eq!(mount.read_behind("f"), "", "{flags}");
        }
    });
}

#[test]
fn an_open_for_writing_that_writes_nothing_makes_no_version() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let before = mount.bash("stat -c '%i %y %z' ../backing/f");
        mount.bash("exec 3>>f; exec 3>&-; exec 3<>f; exec 3>&-");
        assert_eq!(mount.bash("stat -c '%i %y %z' ../backing/f"), before);
    });
}

#[test]
fn no_update_is_lost_by_eight_processes_that_count() {
    as_each_user(|mount| {
        mount.bash("echo -n 0 > counter");
        mount.python(
            r#"
for _ in range(8):
    if os.fork() == 0:
        for _ in range(50):
            f = os.open("counter", os.O_RDWR)
            count = int(os.read(f, 100))
            os.pwrite(f, b"%d" % (count + 1), 0)
            os.close(f)
        os._exit(0)
for _ in range(8):
    assert os.wait()[1] == 0
"#,
        );
        assert_eq!(mount.read_behind("counter"), "400");
    });
}

#[test]
fn no_update_is_lost_by_threads_of_one_process() {
    as_each_user(|mount| {
        mount.bash("echo -n 0 > counter");
        mount.python(
            r#"
def count():
    for _ in range(25):
        with open("counter", "r+") as f:
            count = int(f.read())
            f.seek(0)
            f.write(str(count + 1))
threads = [threading.Thread(target=count) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"#,
        );
        assert_eq!(mount.read_behind("counter"), "200");
    });
}

#[test]
fn two_threads_of_one_process_are_two_owners() {
    as_each_user(|mount| {
        let mut process = mount.spawn_python(
            r#"
f = open("f", "w")
f.write("first")
f.flush()
def second():
    say("second starts")
    with open("f", "r+") as g:
        say(g.read())
thread = threading.Thread(target=second)
thread.start()
hear()
f.close()
thread.join()
"#,
        );
        process.expect("second starts");
        wait_until_parked(process.pid(), 1);
        assert!(process.is_silent());
        process.tell("close");
        process.expect("first");
        process.succeed();
    });
}

#[test]
fn lines_appended_by_redirection_are_all_there() {
    as_each_user(|mount| {
        mount.bash(
            "for p in 1 2 3 4; do
                (for i in {1..50}; do echo \"line $p $i\" >> f || exit 1; done) & all+=($!)
            done
            for p in \"${all[@]}\"; do wait \"$p\" || exit 1; done",
        );
        let content = mount.read_behind("f");
        for process in 1..=4 {
            let start = format!("line {process} ");
            let lines = content.lines().filter_map(|l| l.strip_prefix(&start));
            let numbers: Vec<u32> = lines.map(|n| n.parse().expect("a number")).collect();
            assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
        }
        assert_eq!(content.lines().count(), 200);
    });
}

#[test]
fn of_fifty_processes_that_create_a_name_exclusively_one_wins() {
    as_each_user(|mount| {
        mount.python(
            r#"
for turn in range(5):
    start, go = os.pipe()
    for number in range(50):
        if os.fork() == 0:
            os.close(go)
            os.read(start, 1)
            try:
                f = os.open(f"only{turn}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                os._exit(0)
            os.write(f, str(number).encode())
            os.close(f)
            os._exit(1)
    os.close(go)
    os.close(start)
    ends = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(50)]
    assert sorted(ends) == [0] * 49 + [1], ends
    assert 0 <= int(open(f"../backing/only{turn}").read()) < 50
"#,
        );
    });
}

#[test]
fn what_the_owner_reads_stays_if_it_closes_the_file_without_a_write() {
    as_each_user(|mount| {
        mount.bash("echo -n old > f");
        mount.python(
            r#"
w = os.open("f", os.O_RDWR)
r = os.open("f", os.O_RDONLY)
os.close(w)
assert os.fstat(r).st_size == 3
assert os.pread(r, 100, 0) == b"old", os.pread(r, 100, 0)
open("f", "w").write("another")
assert os.pread(r, 100, 0) == b"old", os.pread(r, 100, 0)
"#,
        );
    });
}

#[test]
fn the_owner_joins_its_own_transaction_and_reads_its_own_writes() {
    as_each_user(|mount| {
        mount.bash("echo -n old > f");
        mount.python(
            r#"
def behind():
    return open("../backing/f").read()
before = time.monotonic()
f = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(f, b"new")
r = os.open("f", os.O_RDONLY)
assert os.read(r, 100) == b"new"
assert os.stat("f").st_size == 3
assert os.fstat(r).st_size == 3
w = os.open("f", os.O_RDWR)
os.pwrite(w, b"NEWER", 0)
assert os.pread(r, 100, 0) == b"NEWER"
assert open("f").read() == "NEWER"
assert os.stat("f").st_size == 5
os.close(f)
assert behind() == "old", behind()
os.pwrite(w, b"EST", 3)
os.close(w)
assert behind() == "NEWEST", behind()
assert os.pread(r, 100, 0) == b"NEWEST"
os.close(r)
# It waited for nobody.
assert time.monotonic() - before < 10
"#,
        );
        assert_eq!(mount.read("f"), "NEWEST");
    });
}

#[test]
fn a_shell_reads_back_what_it_is_writing() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            let read = mount.run(
                shell,
                "exec 3>f; echo one >&3; read -r line <f; echo \"$line\"; exec 3>&-",
            );
            assert_eq!(read, "one\n", "{shell}");
        }
    });
}

#[test]
fn truncate_of_a_path_by_its_owner_is_part_of_its_update() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        mount.python(
            r#"
f = os.open("f", os.O_RDWR | os.O_TRUNC)
os.write(f, b"hello")
os.truncate("f", 2)
assert os.fstat(f).st_size == 2
assert open("../backing/f").read() == "old\n"
os.pwrite(f, b"!", 2)
os.close(f)
"#,
        );
        assert_eq!(mount.read_behind("f"), "he!");
    });
}

#[test]
fn a_program_that_sorts_a_file_into_itself_waits_for_nobody() {
    as_each_user(|mount| {
        let start = Instant::now();
        let sorted = mount.bash("printf 'b\\na\\n' > f; sort -o f f; sed -i s/a/A/ f; cat f");
        assert_eq!(sorted, "A\nb\n");
        // The lock timeout is 30 s here.
        assert!(start.elapsed() < Duration::from_secs(15));
    });
}
