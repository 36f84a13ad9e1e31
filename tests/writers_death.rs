//! W9: a writer that dies of a signal leaves the file as it was; one that exits commits.

mod common;

use common::{Mount, as_each_user, wait_until, wait_until_parked};

/// Ways to die of a signal, as Python, for a process that calls `die()`.
const DEATHS: [(&str, &str); 8] = [
    ("SIGKILL", "def die(): os.kill(os.getpid(), signal.SIGKILL)"),
    ("SIGTERM", "def die(): os.kill(os.getpid(), signal.SIGTERM)"),
    ("SIGABRT", "def die(): os.abort()"),
    ("SIGSEGV", "import ctypes\ndef die(): ctypes.string_at(0)"),
    (
        "SIGINT",
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n\
         def die(): os.kill(os.getpid(), signal.SIGINT)",
    ),
    (
        "SIGXCPU",
        "import resource\n\
         def die():\n    resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\n    while True: pass",
    ),
    (
        "SIGPIPE",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n\
         def die():\n    r, w = os.pipe()\n    os.close(r)\n    os.write(w, b'x')",
    ),
    (
        "SIGSYS",
        "def die(): signal.pthread_kill(threading.get_ident(), signal.SIGSYS)",
    ),
];

/// Python that lets other threads run beside.
const THREADS: &str =
    "for _ in range(6): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n";

/// Runs Python that has `f` open on "f", holding "old", with "half" written; it must not succeed.
/// `f` must be as before afterwards.
fn rolls_back(mount: &Mount, script: &str) {
    mount.bash("echo old > f");
    let output = mount.try_python(&format!(
        "f = os.open('f', os.O_WRONLY | os.O_TRUNC)\nos.write(f, b'half')\n{script}"
    ));
    assert!(!output.status.success(), "{script}");
    assert_eq!(mount.read("f"), "old\n", "{script}");
    assert_eq!(mount.read_behind("f"), "old\n", "{script}");
}

/// The same, but the file must hold `expected` as soon as it has ended.
fn commits(mount: &Mount, script: &str, expected: &str) {
    mount.bash("echo old > f");
    mount.try_python(&format!(
        "f = os.open('f', os.O_WRONLY | os.O_TRUNC)\nos.write(f, b'half')\n{script}"
    ));
    assert_eq!(mount.read_behind("f"), expected, "{script}");
}

#[test]
fn a_writer_that_dies_of_a_signal_leaves_the_old_version() {
    as_each_user(|mount| {
        for (signal, death) in DEATHS {
            rolls_back(mount, &format!("{death}\ndie()"));
            let log = mount.log();
            let reason = "/f: update by pid ";
            let line = log.lines().rfind(|line| line.contains(reason));
            let line = line.unwrap_or_else(|| panic!("{signal}: {log}"));
            assert!(
                line.contains("WARN") && line.contains("died of signal"),
                "{line}"
            );
        }
    });
}

#[test]
fn a_writer_with_threads_that_dies_of_a_signal_leaves_the_old_version() {
    as_each_user(|mount| {
        for (_, death) in DEATHS {
            rolls_back(mount, &format!("{THREADS}{death}\ndie()"));
        }
        // The thread that writes is another than the one that dies.
        rolls_back(
            mount,
            "thread = threading.Thread(target=lambda: os.write(f, b' way'))\nthread.start()\n\
             thread.join()\nos.abort()",
        );
        // And one whose first thread has ended before.
        rolls_back(
            mount,
            "import ctypes\n\
             threading.Thread(target=lambda: (time.sleep(0.1), os.kill(os.getpid(), 9))).start()\n\
             ctypes.CDLL(None).syscall(60, 0)",
        );
    });
}

#[test]
fn a_writer_killed_from_outside_leaves_the_old_version() {
    as_each_user(|mount| {
        for signal in ["KILL", "TERM", "SEGV"] {
            mount.bash("echo old > f");
            let mut writer =
                mount.spawn("bash", "exec 3>f; echo half >&3; echo written; read -r _");
            writer.expect("written");
            writer.signal(signal);
            assert!(!writer.wait().success());
            assert_eq!(mount.read_behind("f"), "old\n");
            assert_eq!(mount.read("f"), "old\n");
        }
    });
}

#[test]
fn a_large_copy_killed_anywhere_leaves_the_old_version() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        for turn in 0..20 {
            let mut writer = mount.spawn("bash", "echo started; exec head -c 1G /dev/zero > f");
            writer.expect("started");
            // Wherever that is: the copy takes longer than all of these.
            std::thread::sleep(std::time::Duration::from_millis(turn * 4));
            writer.signal("KILL");
            assert!(!writer.wait().success());
            assert_eq!(mount.read("f"), "old\n");
            assert_eq!(mount.read_behind("f"), "old\n");
        }
    });
}

#[test]
fn a_writer_killed_before_it_wrote_leaves_the_old_version() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        mount.try_python("os.open('f', os.O_WRONLY | os.O_TRUNC)\nos.kill(os.getpid(), 9)");
        assert_eq!(mount.read("f"), "old\n");
        mount.try_python("os.open('f', os.O_RDONLY | os.O_TRUNC)\nos.kill(os.getpid(), 9)");
        assert_eq!(mount.read("f"), "old\n");
        mount.try_python("os.ftruncate(os.open('f', os.O_WRONLY), 1)\nos.kill(os.getpid(), 9)");
        assert_eq!(mount.read("f"), "old\n");
        mount.try_python(
            "os.posix_fallocate(os.open('f', os.O_WRONLY), 0, 99)\nos.kill(os.getpid(), 9)",
        );
        assert_eq!(mount.read("f"), "old\n");
        assert_eq!(mount.read_behind("f"), "old\n");
    });
}

#[test]
fn a_killed_update_in_place_leaves_the_old_version() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        mount.try_python("os.write(os.open('f', os.O_RDWR), b'NEW')\nos.kill(os.getpid(), 9)");
        assert_eq!(mount.read("f"), "old\n");
        assert_eq!(mount.read_behind("f"), "old\n");
    });
}

#[test]
fn a_writer_that_dies_after_close_changes_nothing_any_more() {
    as_each_user(|mount| commits(mount, "os.close(f)\nos.kill(os.getpid(), 9)", "half"));
}

#[test]
fn whoever_waited_for_a_killed_writer_gets_the_old_version() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let writer = mount.spawn("bash", "exec 3>f; echo half >&3; echo written; read -r _");
        writer.expect("written");
        let reader = mount.spawn_python("say(open('f').read())\nhear()");
        let mut next = mount.spawn(
            "bash",
            "exec 3<>f; read -r line <&3; echo \"$line\"; echo next >&3",
        );
        wait_until_parked(reader.pid(), 1);
        wait_until_parked(next.pid(), 1);
        writer.signal("KILL");
        reader.expect("old");
        next.expect("old");
        next.succeed();
        assert_eq!(mount.read("f"), "old\nnext\n");
    });
}

#[test]
fn a_normal_exit_commits_whatever_the_status() {
    as_each_user(|mount| {
        for exit in [
            "sys.exit(0)",
            "sys.exit(1)",
            "os._exit(0)",
            "os._exit(255)",
            "1 / 0",
            "hear()",
        ] {
            commits(mount, exit, "half");
        }
        for shell in ["bash", "dash"] {
            for script in [
                "exec 3>f; echo half >&3; exit 7",
                "{ echo half; exit 7; } > f",
                "{ echo half; false; } > f",
                "{ sh -c 'echo half; exit 3'; } > f",
            ] {
                mount.bash("echo old > f");
                mount.try_run(shell, script);
                assert_eq!(mount.read_behind("f"), "half\n", "{shell}: {script}");
            }
        }
    });
}

#[test]
fn exit_of_a_process_of_many_threads_commits() {
    as_each_user(|mount| {
        // Its other threads are killed by the kernel, but it is not.
        commits(mount, &format!("{THREADS}os._exit(0)"), "half");
        commits(mount, &format!("{THREADS}os._exit(9)"), "half");
        // By another thread than the first.
        commits(
            mount,
            &format!(
                "{THREADS}threading.Thread(target=os._exit, args=(1,)).start()\ntime.sleep(600)"
            ),
            "half",
        );
        // Of threads that are inside system calls of the mount.
        commits(
            mount,
            "def read():\n    while True: os.stat('f')\n\
             for _ in range(6): threading.Thread(target=read, daemon=True).start()\nos._exit(0)",
            "half",
        );
    });
}

#[test]
fn a_writer_that_handles_its_signal_and_exits_commits() {
    as_each_user(|mount| {
        for signal in ["TERM", "INT"] {
            commits(
                mount,
                &format!(
                    "signal.signal(signal.SIG{signal}, lambda *_: sys.exit(1))\n\
                     os.kill(os.getpid(), signal.SIG{signal})"
                ),
                "half",
            );
        }
        // Ctrl-C raises KeyboardInterrupt, which leaves the with block; in the end Python kills
        // itself by SIGINT, but it has closed the file before.
        mount.bash("echo old > f");
        mount.try_python(
            "with open('f', 'w') as f:\n    f.write('half')\n    os.kill(os.getpid(), 2)\n    hear()",
        );
        assert_eq!(mount.read_behind("f"), "half");
    });
}

#[test]
fn a_child_that_wrote_last_and_was_killed_takes_the_version_with_it() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            for script in [
                "{ echo begin; sh -c 'echo half; kill -9 $$'; } > f",
                "{ /bin/echo begin; sh -c 'echo half; kill -9 $$'; } > f; echo after",
                "exec 3>f; echo begin >&3; sh -c 'echo half >&3; kill -SEGV $$'; exec 3>&-",
                "(echo begin; sh -c 'echo half; kill -9 $$'; true) > f",
                "{ echo begin; sh -c 'echo half; kill -9 $$'; /bin/true; } > f",
            ] {
                mount.bash("echo old > f");
                mount.try_run(shell, script);
                assert_eq!(mount.read("f"), "old\n", "{shell}: {script}");
                assert_eq!(mount.read_behind("f"), "old\n", "{shell}: {script}");
            }
        }
    });
}

#[test]
fn another_that_writes_after_a_killed_one_commits() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            for (script, expected) in [
                (
                    "{ sh -c 'echo half; kill -9 $$'; echo end; } > f",
                    "half\nend\n",
                ),
                (
                    "{ sh -c 'echo half; kill -9 $$'; /bin/echo end; } > f",
                    "half\nend\n",
                ),
                (
                    "exec 3>f; sh -c 'echo half >&3; kill -9 $$'; /bin/echo end >&3; exec 3>&-",
                    "half\nend\n",
                ),
            ] {
                mount.bash("echo old > f");
                mount.try_run(shell, script);
                assert_eq!(mount.read_behind("f"), expected, "{shell}: {script}");
            }
        }
    });
}

#[test]
fn a_child_that_only_inherited_decides_nothing_by_dying() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            for script in [
                "{ echo all; sh -c 'kill -9 $$'; } > f",
                "{ echo all; sh -c 'kill -SEGV $$'; /bin/true; } > f",
                "exec 3>f; echo all >&3; sh -c 'kill -9 $$'; exec 3>&-",
                "{ /bin/echo all; sh -c 'kill -9 $$'; } > f",
                "{ sh -c 'kill -9 $$'; /bin/echo all; } > f",
            ] {
                mount.bash("echo old > f");
                mount.try_run(shell, script);
                assert_eq!(mount.read_behind("f"), "all\n", "{shell}: {script}");
            }
        }
        // Also if it is the last that holds it.
        let script = "
r, w = os.pipe()
if os.fork() == 0:
    os.close(w)
    os.read(r, 1)
    os.kill(os.getpid(), 9)
os.close(f)
os.close(w)
os.wait()
";
        commits(mount, script, "half");
    });
}

#[test]
fn a_child_that_wrote_before_its_parent_decides_nothing_by_dying() {
    as_each_user(|mount| {
        let script = "
r, w = os.pipe()
done, tell = os.pipe()
if os.fork() == 0:
    os.write(f, b' child')
    os.write(tell, b'x')
    os.close(w)
    os.read(r, 1)
    os.kill(os.getpid(), 9)
os.read(done, 1)
os.write(f, b' parent')
os.close(w)
os.wait()
os.close(f)
";
        commits(mount, script, "half child parent");
    });
}

#[test]
fn a_child_that_wrote_last_but_closed_before_it_died_takes_nothing_with_it() {
    as_each_user(|mount| {
        let script = "
if os.fork() == 0:
    os.write(f, b' child')
    os.close(f)
    os.kill(os.getpid(), 9)
os.wait()
os.close(f)
";
        commits(mount, script, "half child");
    });
}

#[test]
fn a_parent_that_wrote_last_and_was_killed_takes_the_version_with_it() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut parent = mount.spawn_python(
            r#"
f = os.open("f", os.O_WRONLY | os.O_TRUNC)
child = os.fork()
if child == 0:
    hear()
    os._exit(0)
os.write(f, b"half")
say(child)
time.sleep(600)
"#,
        );
        let child: u32 = parent.hear().parse().expect("a pid");
        parent.signal("KILL");
        wait_until("it is dead", || !common::alive(parent.pid()));
        assert_eq!(mount.read_behind("f"), "old\n");
        parent.tell("exit");
        wait_until("the child has exited", || !common::alive(child));
        assert_eq!(mount.read("f"), "old\n");
    });
}

#[test]
fn a_child_that_writes_after_its_parent_was_killed_commits() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut parent = mount.spawn_python(
            r#"
f = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(f, b"parent ")
if os.fork() == 0:
    say("ready")
    hear()
    os.write(f, b"child")
    os.close(f)
    say("closed")
    hear()
    os._exit(0)
time.sleep(600)
"#,
        );
        parent.expect("ready");
        parent.signal("KILL");
        wait_until("it is dead", || !common::alive(parent.pid()));
        assert_eq!(mount.read_behind("f"), "old\n");
        parent.tell("write");
        parent.expect("closed");
        assert_eq!(mount.read_behind("f"), "parent child");
        parent.tell("exit");
    });
}

#[test]
fn a_killed_process_group_leaves_the_old_version() {
    as_each_user(|mount| {
        for (shell, signal) in [
            ("bash", "KILL"),
            ("dash", "KILL"),
            ("bash", "INT"),
            ("dash", "TERM"),
        ] {
            mount.bash("echo old > f");
            let script =
                "{ echo begin; sh -c 'echo half; echo written >&8; exec cat' <&9; } 8>&1 9<&0 >f";
            let mut writer = mount.spawn(shell, script);
            writer.expect("written");
            // As Ctrl-C does: all of the group.
            let group = format!("-{}", writer.pid());
            let _ = std::process::Command::new("kill")
                .args(["-s", signal, "--", &group])
                .status();
            writer.wait();
            assert_eq!(mount.read("f"), "old\n", "{shell}: {signal}");
            assert_eq!(mount.read_behind("f"), "old\n", "{shell}: {signal}");
        }
    });
}

#[test]
fn a_killed_creator_leaves_no_file() {
    as_each_user(|mount| {
        for (_, death) in DEATHS {
            mount.try_python(&format!(
                "{death}\nf = os.open('new', os.O_WRONLY | os.O_CREAT)\nos.write(f, b'half')\ndie()"
            ));
            assert_eq!(
                mount.bash("ls -A . ../backing"),
                ".:\n\n../backing:\n.latchfs\n"
            );
        }
    });
}
