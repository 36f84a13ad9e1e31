//! Unmounting while programs have files of the mount open.

use crate::common::{LATCHFS, User, finish, kill, options, take_away, text, wait_until};
use std::fs;
use std::thread;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// Writes half, and the rest when told.
const WRITER: &str = "
f = open('f', 'w'); f.write('new' * 100000); f.flush(); say('open'); hear()
try:
    f.write(' and the rest'); f.close(); say('closed')
except OSError as e:
    say('failed')
";

fn whole() -> String {
    "new".repeat(100_000) + " and the rest"
}

#[test]
fn a_writer_that_finishes_in_time_is_committed() {
    for user in BOTH {
        for how in ["command", "TERM", "INT"] {
            let mount = options().user(user).arg("--unmount-timeout=50s").mount();
            mount.bash("echo old > f");
            let mut writer = mount.spawn_python(WRITER);
            writer.expect("open");
            let daemon = mount.daemon();
            thread::scope(|scope| {
                scope.spawn(|| match how {
                    "command" => mount.unmount(),
                    signal => kill(daemon, signal),
                });
                wait_until("it is out of the tree", || !mount.is_mounted());
                assert_eq!(mount.read_behind("f"), "old\n");
                writer.tell("finish");
                writer.expect("closed");
                // The commit is before the close returns, not before the daemon ends.
                assert!(mount.read_behind("f") == whole(), "{how}");
            });
            mount.check_gone(daemon);
            assert_eq!(mount.store("kept"), [""; 0]);
        }
    }
}

#[test]
fn a_writer_that_does_not_finish_in_time_is_rolled_back_and_kept_aside() {
    for user in BOTH {
        let mount = options().user(user).arg("--unmount-timeout=1s").mount();
        mount.bash("echo old > f; mkdir d");
        let mut writer = mount.spawn_python(WRITER);
        writer.expect("open");
        let mut creator = mount.spawn_python(&WRITER.replace("'f'", "'d/new file'"));
        creator.expect("open");
        mount.unmount();
        assert_eq!(mount.read_behind("f"), "old\n");
        assert!(!mount.behind("d/new file").exists());
        // Nothing a program wrote is thrown away.
        let kept = mount.store("kept");
        let mut paths = Vec::new();
        for record in kept.iter().filter(|name| name.ends_with(".json")) {
            let record = mount.behind(".latchfs/kept").join(record);
            let data = fs::read_to_string(record.with_extension("data")).expect("its bytes");
            assert!(data == "new".repeat(100_000));
            let record = fs::read_to_string(record).expect("its record");
            let pid = if record.contains("/d/new file") {
                creator.pid()
            } else {
                writer.pid()
            };
            for word in [pid.to_string().as_str(), "python3", "unmounted"] {
                assert!(record.contains(word), "{word}: {record}");
            }
            paths.push(record.contains("/d/new file"));
        }
        paths.sort();
        assert_eq!(paths, [false, true], "{kept:?}");
        let log = mount.log();
        for (pid, path) in [(writer.pid(), "/f: "), (creator.pid(), "/d/new file: ")] {
            let warnings = log.lines().filter(|line| {
                line.contains("WARN")
                    && line.contains(path)
                    && line.contains(&format!("pid {pid} "))
            });
            assert_eq!(warnings.count(), 1, "{log}");
        }
        // Their close must not claim a success.
        for program in [&mut writer, &mut creator] {
            program.tell("finish");
            program.expect("failed");
        }
        // The next mount finds it in order.
        mount.start();
        assert_eq!(mount.read("f"), "old\n");
        assert_eq!(mount.bash("ls d"), "");
    }
}

#[test]
fn a_reader_reads_on_to_the_end() {
    for user in BOTH {
        let mount = options().user(user).arg("--unmount-timeout=50s").mount();
        mount.python("open('f', 'w').write('content ' * 1000000)");
        let mut reader = mount.spawn_python(
            "f = open('f'); start = f.read(7); say('open'); hear()\n\
             say(start + f.read() == 'content ' * 1000000); f.close()",
        );
        reader.expect("open");
        let daemon = mount.daemon();
        thread::scope(|scope| {
            scope.spawn(|| mount.unmount());
            wait_until("it is out of the tree", || !mount.is_mounted());
            reader.tell("read on");
            reader.expect("True");
        });
        mount.check_gone(daemon);
    }
}

#[test]
fn a_reader_that_stays_does_not_stop_an_unmount() {
    for user in BOTH {
        let mount = options().user(user).arg("--unmount-timeout=1s").mount();
        mount.bash("echo content > f");
        let mut reader = mount.spawn_python(
            "f = open('f'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); say('open'); hear(); say('alive')",
        );
        reader.expect("open");
        mount.unmount();
        reader.tell("go");
        reader.expect("alive");
        mount.start();
        assert_eq!(mount.read("f"), "content\n");
    }
}

#[test]
fn a_shell_that_stands_in_the_mount_does_not_stop_an_unmount() {
    for user in BOTH {
        // Were it waited for, the command would not end before the deadline.
        let mount = options().user(user).arg("--unmount-timeout=1h").mount();
        mount.bash("mkdir d; echo x > f");
        let mut shell = mount.spawn("bash", "cd d; echo ready; read; ls; echo done");
        shell.expect("ready");
        mount.unmount();
        shell.tell("go on");
        shell.expect("done");
        mount.start();
        assert_eq!(mount.read("f"), "x\n");
    }
}

#[test]
fn an_open_directory_does_not_stop_an_unmount() {
    for user in BOTH {
        let mount = options().user(user).arg("--unmount-timeout=1h").mount();
        mount.bash("mkdir d; echo x > d/f");
        let mut shell = mount.spawn("bash", "exec 3< d; cd /; echo ready; read; echo done");
        shell.expect("ready");
        mount.unmount();
        shell.tell("go on");
        shell.expect("done");
    }
}

#[test]
fn a_waiting_open_is_answered_by_an_unmount() {
    for user in BOTH {
        let mount = options()
            .user(user)
            .arg("--unmount-timeout=1s")
            .arg("--lock-timeout=1h")
            .mount();
        mount.bash("echo old > f");
        let writer = mount.spawn_python(WRITER);
        writer.expect("open");
        let waiting = "say('start')\n\
            try: open('f', MODE); say('opened')\nexcept OSError as e: say('failed')";
        let mut waiters =
            ["'r'", "'w'", "'r+'"].map(|mode| mount.spawn_python(&waiting.replace("MODE", mode)));
        for waiter in &waiters {
            waiter.expect("start");
            waiter.wait_until_blocked();
        }
        mount.unmount();
        for waiter in &mut waiters {
            waiter.hear();
            waiter.wait();
        }
        assert_eq!(mount.read_behind("f"), "old\n");
    }
}

#[test]
fn plain_umount_of_a_mount_in_use_says_busy_and_breaks_nothing() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo old > f");
        let mut writer = mount.spawn_python(WRITER);
        writer.expect("open");
        let daemon = mount.daemon();
        let mut command = match user {
            User::Root => mount.command("umount"),
            User::Ordinary => mount.command("fusermount3"),
        };
        if user == User::Ordinary {
            command.arg("-u");
        }
        let output = finish(command.arg(mount.point()));
        assert!(!output.status.success());
        let stderr = text(&output.stderr).to_lowercase();
        assert!(stderr.contains("busy"), "{stderr}");
        assert!(mount.is_mounted());
        mount.bash("echo other > g; ls");
        writer.tell("finish");
        writer.expect("closed");
        writer.wait();
        assert!(mount.read_behind("f") == whole());
        assert_eq!(mount.daemon(), daemon);
        mount.unmount();
    }
}

#[test]
fn the_second_request_to_stop_stops_at_once() {
    for user in BOTH {
        let mount = options().user(user).arg("--unmount-timeout=1h").mount();
        mount.bash("echo old > f");
        let writer = mount.spawn_python(WRITER);
        writer.expect("open");
        let daemon = mount.daemon();
        kill(daemon, "TERM");
        wait_until("it is out of the tree", || !mount.is_mounted());
        kill(daemon, "TERM");
        mount.check_gone(daemon);
        assert_eq!(mount.read_behind("f"), "old\n");
        assert_eq!(mount.store("kept").len(), 2);
    }
}

#[test]
fn a_second_command_to_unmount_does_no_harm() {
    for user in BOTH {
        let mount = options().user(user).arg("--unmount-timeout=50s").mount();
        let mut writer = mount.spawn_python(WRITER);
        writer.expect("open");
        let daemon = mount.daemon();
        thread::scope(|scope| {
            scope.spawn(|| mount.unmount());
            wait_until("it is out of the tree", || !mount.is_mounted());
            // It is no mount any more.
            let output = finish(mount.command(LATCHFS).arg("umount").arg(mount.point()));
            assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
            // Nor can BACKING be mounted again before it is finished.
            assert_eq!(mount.try_start().status.code(), Some(5));
            writer.tell("finish");
            writer.expect("closed");
        });
        mount.check_gone(daemon);
        assert!(mount.read_behind("f") == whole());
    }
}

/// The kernel drops what it has not told a mount's daemon yet when the last file of the mount is
/// closed: often the release of that file.
#[test]
fn what_the_last_mapping_of_an_unmounted_mount_wrote_is_committed() {
    for user in BOTH {
        for _ in 0..15 {
            let mount = options().user(user).arg("--unmount-timeout=50s").mount();
            mount.bash("echo old > f");
            let mut writer = mount.spawn_python(
                "import mmap\nf = open('f', 'r+b'); m = mmap.mmap(f.fileno(), 4); f.close()\n\
                 say('open'); hear(); m[:3] = b'new'; m.close()",
            );
            writer.expect("open");
            let daemon = mount.daemon();
            kill(daemon, "TERM");
            wait_until("it is out of the tree", || !mount.is_mounted());
            writer.tell("finish");
            writer.succeed();
            mount.check_gone(daemon);
            assert_eq!(mount.read_behind("f"), "new\n");
        }
    }
}

#[test]
fn a_log_that_is_closed_while_the_mount_goes_leaves_nothing_in_the_store() {
    for user in BOTH {
        for _ in 0..5 {
            let mount = options().user(user).arg("--unmount-timeout=50s").mount();
            let mut writer = mount.spawn_python(
                "logs = [open(f'log {n}', 'ab', buffering=0) for n in range(20)]\n\
                 for log in logs: log.write(b'a record\\n')\n\
                 say('open'); hear()\n\
                 for log in logs: log.close()",
            );
            writer.expect("open");
            let daemon = mount.daemon();
            kill(daemon, "TERM");
            wait_until("it is out of the tree", || !mount.is_mounted());
            writer.tell("close");
            writer.succeed();
            mount.check_gone(daemon);
            assert_eq!(mount.store("append"), [""; 0]);
        }
    }
}

#[test]
fn what_is_being_written_when_the_kernel_aborts_the_mount_is_kept_aside() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo old > f; echo old > g");
        let writer = mount.spawn_python(
            "f = open('f', 'w'); f.write('half'); f.flush()\n\
             g = open('g', 'w'); g.write('half'); g.flush(); os.close(os.dup(g.fileno()))\n\
             say('open'); hear()",
        );
        writer.expect("open");
        let daemon = mount.daemon();
        take_away(mount.point());
        mount.check_gone(daemon);
        assert_eq!(mount.read_behind("f"), "old\n");
        assert_eq!(mount.read_behind("g"), "old\n");
        let kept = mount.store("kept");
        assert_eq!(
            kept.iter().filter(|name| name.ends_with(".json")).count(),
            2
        );
        drop(writer);
    }
}

#[test]
fn records_that_come_while_a_mount_ends_are_whole_or_fail_and_leave_nothing_in_the_store() {
    for user in BOTH {
        for _ in 0..5 {
            let mount = options().user(user).arg("--unmount-timeout=50ms").mount();
            let mut writer = mount.spawn_python(
                "log = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND); count = 0\n\
                 try:\n    while True:\n        os.write(log, b'a record\\n'); count += 1\n        \
                 if count == 10: say('going on')\n\
                 except OSError: say(count)",
            );
            writer.expect("going on");
            let daemon = mount.daemon();
            kill(daemon, "TERM");
            let acknowledged: usize = writer.hear().parse().expect("a number");
            writer.succeed();
            mount.check_gone(daemon);
            let records = mount.read_behind("log").len() as f64 / "a record\n".len() as f64;
            // The last one may have been written without anybody being told.
            assert!(records == acknowledged as f64 || records == acknowledged as f64 + 1.0);
            assert_eq!(mount.store("append"), [""; 0]);
        }
    }
}
