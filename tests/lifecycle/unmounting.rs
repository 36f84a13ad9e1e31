//! Whatever ends a mount leaves nothing behind.

use crate::common::{Mount, User, alive, finish, kill, options, text, wait_until};

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// Ends the mount in one of the ways there are.
#[track_caller]
fn end_by(mount: &Mount, how: &str) {
    let daemon = mount.daemon();
    let mut command = match how {
        "TERM" | "INT" => return kill(daemon, how),
        "latchfs" => {
            let mut command = mount.command(crate::common::LATCHFS);
            command.arg("umount");
            command
        }
        "umount" => mount.command("umount"),
        "fusermount3" => {
            let mut command = mount.command("fusermount3");
            command.arg("-u");
            command
        }
        other => panic!("no such way: {other}"),
    };
    let output = finish(command.arg(mount.point()));
    assert!(output.status.success(), "{how}: {}", text(&output.stderr));
    assert!(!mount.is_mounted());
}

#[test]
fn every_way_to_unmount_leaves_nothing_behind() {
    for user in BOTH {
        for how in ["latchfs", "umount", "fusermount3", "TERM", "INT"] {
            if (user, how) == (User::Ordinary, "umount") {
                // umount(8) is for root, and for what fstab lists.
                continue;
            }
            let mount = options().user(user).mount();
            mount.bash("echo x > f; ln f g; echo y > g; mkdir d; echo z > d/f; cat f; ls -R");
            let daemon = mount.daemon();
            end_by(&mount, how);
            mount.check_gone(daemon);
            assert_eq!(mount.store("kept"), [""; 0], "{how}");
            assert_eq!(mount.read_behind("f"), "y\n", "{how}");
            // And it can be mounted again at once.
            mount.start();
            assert_eq!(mount.read("d/f"), "z\n", "{how}");
            mount.unmount();
        }
    }
}

#[test]
fn a_save_followed_by_an_unmount_at_once_is_saved() {
    for user in BOTH {
        for how in ["latchfs", "fusermount3", "TERM"] {
            let mount = options().user(user).mount();
            let daemon = mount.daemon();
            mount.bash("for n in $(seq 200); do echo $n > f$n; done");
            end_by(&mount, how);
            mount.check_gone(daemon);
            for n in [1, 100, 199, 200] {
                assert_eq!(mount.read_behind(&format!("f{n}")), format!("{n}\n"));
            }
        }
    }
}

#[test]
fn nothing_stays_of_programs_that_died_in_the_mount() {
    for user in BOTH {
        let mount = options().user(user).mount();
        for _ in 0..3 {
            let mut program = mount.spawn_python(
                "files = [open('f%d' % n, 'w') for n in range(100)]\n\
                 for f in files: f.write('x'); f.flush()\n\
                 say('open'); hear()",
            );
            program.expect("open");
            program.signal("KILL");
            program.wait();
        }
        // check_gone looks for a lease left behind in the log, too.
        mount.unmount();
        assert!(!mount.behind("f5").exists());
    }
}

#[test]
fn a_daemon_that_does_not_answer_is_told_of_and_unmounts_when_it_can() {
    let mount = options().mount();
    let daemon = mount.daemon();
    kill(daemon, "STOP");
    let mut command = mount.command(crate::common::LATCHFS);
    command
        .args(["umount", "--timeout=300ms"])
        .arg(mount.point());
    let output = finish(&mut command);
    kill(daemon, "CONT");
    assert_eq!(output.status.code(), Some(8));
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("latchfs: ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert!(stderr.contains(&daemon.to_string()), "{stderr}");
    wait_until("it ends as it was told", || !alive(daemon));
    mount.check_gone(daemon);
}

#[test]
fn no_signal_is_handled_by_the_thread_that_has_no_descriptors() {
    let mount = options().mount();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", mount.daemon())).expect("its threads");
    let walkers: Vec<String> = tasks
        .map(|task| task.expect("a thread").path())
        .filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|c| c == "walker\n"))
        .map(|task| std::fs::read_to_string(task.join("status")).expect("its status"))
        .collect();
    let [status] = &walkers[..] else {
        panic!("not one walker: {walkers:?}");
    };
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let blocked = u64::from_str_radix(blocked.expect("a mask").trim(), 16).expect("hexadecimal");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        assert_ne!(
            blocked & 1 << (signal - 1),
            0,
            "signal {signal}: {blocked:x}"
        );
    }
    mount.unmount();
}

#[test]
fn a_hangup_does_not_end_the_mount() {
    let mount = options().mount();
    kill(mount.daemon(), "HUP");
    wait_until("it has noticed", || mount.log().contains("was read again"));
    mount.bash("echo x > f");
    assert_eq!(mount.read("f"), "x\n");
    mount.unmount();
}
