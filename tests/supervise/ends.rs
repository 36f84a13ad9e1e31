//! What ends a supervised mount, for good.

use crate::common::supervised::{supervised, supervisor_of};
use crate::common::{
    LATCHFS, Mount, Running, Stopped, User, alive, finish, kill, successful, text, wait_until,
};
use std::fs;
use std::process::Stdio;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// The mount, the daemon and the one who supervised it are gone, and nobody thought that it died.
#[track_caller]
fn check_over(mount: &Mount, daemon: u32, supervisor: u32) {
    wait_until("the supervisor has ended", || !alive(supervisor));
    mount.check_gone(daemon);
    let log = mount.log();
    // fuser has an error of its own for an answer that comes after plain umount(8), also without all this.
    for words in ["died", "answers again", "ERROR latchfs"] {
        assert!(!log.contains(words), "{words}: {log}");
    }
}

#[test]
fn every_way_to_unmount_ends_daemon_and_supervisor() {
    for user in BOTH {
        for how in [
            "latchfs",
            "umount",
            "umount -l",
            "fusermount3",
            "TERM to the daemon",
            "TERM to the supervisor",
            "INT to the supervisor",
        ] {
            if user == User::Ordinary && how.starts_with("umount") {
                continue;
            }
            let mount = supervised(user).mount();
            let (daemon, supervisor) = (mount.daemon(), mount.supervisor());
            let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).expect("its name");
            assert_eq!(
                (&*name(daemon), &*name(supervisor)),
                ("latchfs\n", "latchfs-superv\n")
            );
            mount.bash("echo x > f");
            let point = mount.point().display();
            let run = |script: String| {
                let mut command = mount.command("sh");
                let output = finish(command.args(["-c", &script]).stdin(Stdio::null()));
                successful(&script, &output);
            };
            match how {
                "latchfs" => {
                    run(format!("{LATCHFS} umount {point}"));
                    assert!(!alive(supervisor), "it waits for both");
                }
                "fusermount3" => run(format!("fusermount3 -u {point}")),
                "TERM to the daemon" => kill(daemon, "TERM"),
                "TERM to the supervisor" => kill(supervisor, "TERM"),
                "INT to the supervisor" => kill(supervisor, "INT"),
                how => run(format!("{how} {point}")),
            }
            check_over(&mount, daemon, supervisor);
            assert_eq!(mount.read_behind("f"), "x\n");
        }
    }
}

#[test]
fn a_stop_lets_a_writer_finish_as_without_supervision() {
    let mount = supervised(User::Root).mount();
    let (daemon, supervisor) = (mount.daemon(), mount.supervisor());
    let mut writer =
        mount.spawn_python("f = open('f', 'w'); f.write('a'); say('open'); hear(); f.close()");
    writer.expect("open");
    kill(supervisor, "TERM");
    wait_until("it is unmounted", || !mount.is_mounted());
    assert!(alive(daemon) && alive(supervisor));
    writer.tell("go on");
    writer.succeed();
    check_over(&mount, daemon, supervisor);
    assert_eq!(mount.read_behind("f"), "a");
}

#[test]
fn a_mount_in_use_that_is_taken_away_is_not_repaired() {
    let mount = supervised(User::Root).mount();
    let (daemon, supervisor) = (mount.daemon(), mount.supervisor());
    let mut reader = mount.spawn_python("say('here'); hear()");
    reader.expect("here");
    let output = finish(mount.command("umount").arg("-l").arg(mount.point()));
    successful("umount -l", &output);
    // It lives on for who is still in it. Killed then, nobody wants another.
    kill(daemon, "KILL");
    wait_until("the supervisor has ended", || !alive(supervisor));
    assert!(!mount.is_mounted());
    assert!(
        mount.log().contains("was unmounted, and stays so"),
        "{}",
        mount.log()
    );
    reader.tell("go on");
    reader.succeed();
}

#[test]
fn a_hangup_of_the_supervisor_is_a_reload() {
    let mount = supervised(User::Root).mount();
    kill(mount.supervisor(), "HUP");
    wait_until("the daemon reads it", || {
        mount.log().contains("the configuration was read again")
    });
    mount.kill_daemon();
    mount.unmount();
}

#[test]
fn a_killed_supervisor_leaves_the_daemon_serving() {
    for user in BOTH {
        let mount = supervised(user).mount();
        let (daemon, supervisor) = (mount.daemon(), mount.supervisor());
        kill(supervisor, "KILL");
        wait_until("it is dead", || !alive(supervisor));
        assert_eq!(mount.bash("echo x > f; cat f"), "x\n");
        assert_eq!(supervisor_of(daemon), None);
        mount.unmount();
    }
}

#[test]
fn a_first_start_that_fails_is_told_as_without_supervision() {
    let mount = supervised(User::Root).mount();
    let start = |args: &[&str]| {
        let mut command = mount.command(LATCHFS);
        command.args(["mount", "--supervise"]).args(args);
        finish(command.stdin(Stdio::null()))
    };
    let free = mount.point().with_file_name("free");
    fs::create_dir(&free).expect("mkdir");
    let (backing, free) = (
        mount.backing().to_str().expect("UTF-8"),
        free.to_str().expect("UTF-8"),
    );
    for args in [&[backing, free][..], &["-f", backing, free]] {
        let output = start(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("already served"), "{said}");
    }
    let output = start(&["--config=/nowhere.toml", free, "/mnt"]);
    assert_eq!(output.status.code(), Some(9), "{}", text(&output.stderr));
    assert_eq!(mount.bash("echo x > f; cat f"), "x\n");
    mount.unmount();
}

#[test]
fn a_supervisor_that_is_asked_to_end_ends_a_daemon_that_hangs() {
    let mount = supervised(User::Root).arg("--watchdog=2s").mount();
    let (daemon, supervisor) = (mount.daemon(), mount.supervisor());
    let stopped = Stopped::new(daemon);
    kill(supervisor, "TERM");
    wait_until("the supervisor has ended", || !alive(supervisor));
    assert!(!mount.is_mounted() && !alive(daemon));
    drop(stopped);
}

/// systemd, and service managers like it, see the end and the code of what they started.
#[test]
fn in_the_foreground_the_supervisor_ends_with_the_mount() {
    let mount = supervised(User::Root).mount();
    mount.unmount();
    let mut command = mount.command(LATCHFS);
    command
        .args(["mount", "-f", "--supervise"])
        .arg("--log-file");
    command.arg(mount.point().with_file_name("log"));
    command.arg(mount.backing()).arg(mount.point());
    let mut running = Running::new(&mut command);
    wait_until("it is mounted", || {
        mount.log().matches("supervising").count() == 2
    });
    let daemon = mount.daemon();
    mount.unmount();
    running.succeed();
    check_over(&mount, daemon, running.pid());
}
