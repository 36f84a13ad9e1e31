//! How a mount begins.

use crate::common::{User, as_each_user, kill, mount, options, text, wait_until};
use crate::scene::{Scene, source_of};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

#[test]
fn the_command_returns_once_the_mount_answers() {
    for user in BOTH {
        let scene = Scene::new(user);
        scene.make_file(&scene.backing.join("f"), "behind");
        // The very next thing after it, with no time between.
        let script = "\"$0\" mount --log-file log backing point && cat point/f && ls -A point";
        let output = crate::common::finish(
            scene
                .command("sh")
                .args(["-c", script, crate::common::LATCHFS])
                .stdin(Stdio::null()),
        );
        assert_eq!(text(&output.stderr), "");
        assert_eq!(text(&output.stdout), "behindf\n");
        let source = source_of(&scene.point).expect("a mount");
        assert_eq!(source, scene.backing.as_os_str());
        scene.unmount();
    }
}

#[test]
fn the_daemon_leaves_the_directory_and_the_terminal_it_was_started_in() {
    for user in BOTH {
        let scene = Scene::new(user);
        scene.mount(&["--log-file=log"]);
        let daemon = scene.daemon();
        let proc = std::path::PathBuf::from(format!("/proc/{daemon}"));
        assert_eq!(
            fs::read_link(proc.join("cwd")).expect("cwd"),
            Path::new("/")
        );
        for fd in ["fd/0", "fd/1", "fd/2"] {
            // The first process is told that the mount is ready just before.
            wait_until(&format!("{fd} to be /dev/null"), || {
                fs::read_link(proc.join(fd)).is_ok_and(|to| to == Path::new("/dev/null"))
            });
        }
        let stat = fs::read_to_string(proc.join("stat")).expect("stat");
        let fields: Vec<&str> = stat
            .rsplit(") ")
            .next()
            .expect("fields")
            .split(' ')
            .collect();
        // Session, and controlling terminal: its own, and none.
        assert_eq!((fields[3], fields[4]), (daemon.to_string().as_str(), "0"));
        scene.unmount();
    }
}

#[test]
fn in_the_foreground_it_stays_until_ctrl_c() {
    for user in BOTH {
        for signal in ["INT", "TERM"] {
            let scene = Scene::new(user);
            let mut command = scene.command(crate::common::LATCHFS);
            command.args(["mount", "-f", "backing", "point"]);
            let mut child = command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("latchfs");
            let mut stderr = child.stderr.take().expect("its stderr");
            // It says so on stderr once it is mounted.
            let mut said = Vec::new();
            while !text(&said).contains("serving") {
                let mut buffer = [0; 4096];
                let length = stderr.read(&mut buffer).expect("its messages");
                assert!(length > 0, "it ended: {}", text(&said));
                said.extend_from_slice(&buffer[..length]);
            }
            wait_until("it is mounted", || source_of(&scene.point).is_some());
            let script = "echo x > point/f && cat point/f";
            let output = crate::common::finish(scene.command("sh").args(["-c", script]));
            assert_eq!(text(&output.stdout), "x\n");
            assert!(child.try_wait().expect("wait").is_none());
            assert_eq!(scene.daemon(), child.id());
            kill(child.id(), signal);
            let mut status = None;
            wait_until("it ends", || {
                status = child.try_wait().expect("wait");
                status.is_some()
            });
            assert!(status.expect("a status").success(), "{status:?}");
            scene.check_gone(child.id());
        }
    }
}

#[test]
fn a_killed_daemon_is_followed_by_a_second_one() {
    as_each_user(|mount| {
        mount.bash("echo one > f");
        let mut writer = mount.spawn_python(
            "f = open('f', 'w'); f.write('half'); f.flush(); say('open'); hear()\n\
             try: f.close()\nexcept OSError as e: say(errno.errorcode[e.errno])",
        );
        writer.expect("open");
        mount.crash();
        mount.start();
        assert_eq!(mount.read("f"), "one\n");
        writer.tell("close");
        // Never a success: what it wrote is lost (W6).
        assert!(["ENOTCONN", "ECONNABORTED"].contains(&writer.hear().as_str()));
        mount.bash("echo two > f");
        assert_eq!(mount.read_behind("f"), "two\n");
    });
}

#[test]
fn a_mount_whose_daemon_died_is_cleared_away_by_umount() {
    for user in BOTH {
        let scene = Scene::new(user);
        scene.mount(&["--log-file=log"]);
        let daemon = scene.daemon();
        kill(daemon, "KILL");
        wait_until("it is dead", || !crate::common::alive(daemon));
        scene.refuses(&["mount", "backing", "point"], 4, "latchfs umount");
        let output = scene.latchfs(["umount", "point"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        scene.check_gone(daemon);
        scene.mount(&["--log-file=log"]);
        scene.unmount();
    }
}

#[test]
fn two_mounts_live_side_by_side() {
    for user in BOTH {
        let (one, two) = (options().user(user).mount(), options().user(user).mount());
        one.bash("echo one > f");
        two.bash("echo two > f");
        let script = format!(
            "cp f {0}/copied; mv f {0}/moved; cat {0}/f; ln {0}/f linked 2> /dev/null || echo refused",
            two.point().display()
        );
        assert_eq!(one.bash(&script), "two\nrefused\n");
        assert_eq!(
            two.bash("ls; cat copied moved"),
            "copied\nf\nmoved\none\none\n"
        );
        assert_eq!(one.bash("ls"), "");
        // One goes; the other's writer in flight does not notice.
        let mut writer = two.spawn_python(
            "f = open('f', 'w'); f.write('first '); f.flush(); say('open'); hear()\n\
             f.write('second'); f.close(); say('closed')",
        );
        writer.expect("open");
        one.unmount();
        writer.tell("go on");
        writer.expect("closed");
        assert_eq!(two.read_behind("f"), "first second");
    }
}

#[test]
fn options_mean_the_same_by_either_spelling() {
    for spelling in [
        &["-o", "lock_timeout=300ms"][..],
        &["-olock-timeout=300ms"],
        &["-o", "noatime", "-o", "nodev,lock_timeout=300ms,noexec"],
        &["--lock-timeout", "300ms"],
        &["--lock-timeout=300ms", "-o", "lock_timeout=1h"],
        &["--options", "lock_timeout=0.3"],
    ] {
        // Not the harness's mount, which sets a timeout of its own.
        let scene = Scene::new(User::Root);
        scene.mount(&[spelling, &["--log-file=log"]].concat());
        let script = "exec 3> point/f; if (timeout 9 cat point/f); then :; else echo $?; fi";
        let output = crate::common::finish(scene.command("bash").args(["-c", script]));
        // cat's own failure, and not timeout's, which would be 124 (the default is 10 s).
        assert_eq!(text(&output.stdout), "1\n", "{spelling:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains("timed out"), "{spelling:?}: {stderr}");
        scene.unmount();
    }
    for spelling in ["-oreaders=snapshot", "--readers=snapshot"] {
        let mount = options().arg(spelling).mount();
        mount.bash("echo old > f");
        let mut writer = mount.spawn_python(
            "f = open('f', 'w'); f.write('new'); f.flush(); say('open'); hear(); f.close(); say('closed')",
        );
        writer.expect("open");
        assert_eq!(mount.read("f"), "old\n", "{spelling}");
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.read("f"), "new", "{spelling}");
    }
    for spelling in [
        "-ounmount_timeout=0s",
        "-ounmount-timeout=0",
        "--unmount-timeout=0s",
    ] {
        let mount = options().arg(spelling).mount();
        let writer =
            mount.spawn_python("f = open('f', 'w'); f.write('x'); f.flush(); say('open'); hear()");
        writer.expect("open");
        mount.unmount();
        assert_eq!(mount.store("kept").len(), 2, "{spelling}");
    }
}

#[test]
fn every_durability_commits() {
    for level in ["full", "rename", "none"] {
        for spelling in [
            format!("--durability={level}"),
            format!("-odurability={level}"),
        ] {
            let mount = options().arg(spelling).mount();
            mount.bash("echo one > f; ln f g; echo two > g; echo three > h");
            assert_eq!(mount.read_behind("f"), "two\n");
            assert_eq!(mount.read_behind("h"), "three\n");
        }
    }
}

#[test]
fn fifty_mounts_after_each_other_work_at_once() {
    let mount = mount();
    for round in 0..50 {
        mount.bash(&format!(
            "test ! -e f || grep -qx {} f; echo {round} > f",
            round - 1
        ));
        mount.unmount();
        assert_eq!(mount.read_behind("f"), format!("{round}\n"));
        mount.start();
    }
}

#[test]
fn an_ordinary_user_can_mount_again_at_once_too() {
    let mount = options().user(User::Ordinary).mount();
    for round in 0..20 {
        mount.bash(&format!("echo {round} > f"));
        mount.unmount();
        assert_eq!(mount.read_behind("f"), format!("{round}\n"));
        mount.start();
    }
}
