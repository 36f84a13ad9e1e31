//! Daemons that cannot be started for a while, or at all.

use crate::common::supervised::{supervised, supervised_with_pause};
use crate::common::{LATCHFS, Mount, User, alive, finish, kill, successful, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Kills the daemon where none can be started, since others may write in `.latchfs`.
fn kill_for_good(mount: &Mount) {
    chmod(&mount.behind(".latchfs"), 0o777);
    kill(mount.daemon(), "KILL");
    wait_until("it pauses", || mount.log().contains("dies again and again"));
}

#[test]
fn a_daemon_that_cannot_start_is_tried_again_until_it_can() {
    for user in BOTH {
        let mount = supervised(user).mount();
        let supervisor = mount.supervisor();
        mount.bash("echo x > f");
        kill_for_good(&mount);
        let tries = mount.log().matches("others may write").count();
        wait_until("it goes on", || {
            mount.log().matches("others may write").count() > tries + 3
        });
        // Meanwhile nothing gets past the mount.
        assert!(mount.is_mounted() && alive(supervisor));
        assert!(!mount.answers());
        chmod(&mount.behind(".latchfs"), 0o700);
        mount.wait_for_restart(0);
        assert_eq!(mount.bash("cat f; echo y > f; cat f"), "x\ny\n");
        mount.unmount();
    }
}

#[test]
fn a_backing_that_may_not_be_entered_for_a_while_comes_back() {
    let mount = supervised(User::Ordinary).mount();
    mount.bash("echo x > f");
    chmod(mount.backing(), 0o000);
    kill(mount.daemon(), "KILL");
    wait_until("it pauses", || mount.log().contains("dies again and again"));
    chmod(mount.backing(), 0o755);
    mount.wait_for_restart(0);
    assert_eq!(mount.bash("cat f"), "x\n");
    mount.unmount();
}

#[test]
fn pauses_grow_and_a_stop_ends_one_at_once() {
    let mount = supervised_with_pause(User::Root, "1h").mount();
    let supervisor = mount.supervisor();
    kill_for_good(&mount);
    for pause in ["in 1s", "in 2s", "in 4s"] {
        wait_until(pause, || mount.log().contains(pause));
    }
    kill(supervisor, "TERM");
    wait_until("the supervisor has ended", || !alive(supervisor));
    assert!(!mount.is_mounted(), "the dead mount is taken away");
    chmod(&mount.behind(".latchfs"), 0o700);
}

#[test]
fn a_dead_mount_that_is_taken_away_does_not_come_back() {
    for user in BOTH {
        let mount = supervised_with_pause(user, "1h").mount();
        let supervisor = mount.supervisor();
        kill_for_good(&mount);
        let output = finish(mount.command(LATCHFS).arg("umount").arg(mount.point()));
        successful("latchfs umount", &output);
        wait_until("the supervisor has ended", || !alive(supervisor));
        assert!(!mount.is_mounted());
        assert!(mount.log().contains("was unmounted, and stays so"));
        chmod(&mount.behind(".latchfs"), 0o700);
    }
}

#[test]
fn a_configuration_that_is_wrong_by_then_ends_it_and_the_dead_mount_stays() {
    let mount = supervised(User::Root).mount();
    let supervisor = mount.supervisor();
    fs::write(mount.behind(".latchfs/config.toml"), "wrong = 1\n").expect("write");
    kill(mount.daemon(), "KILL");
    wait_until("the supervisor has ended", || !alive(supervisor));
    let log = mount.log();
    assert!(
        log.contains("stays without a daemon") && log.contains("config.toml"),
        "{log}"
    );
    assert!(mount.is_mounted() && !mount.answers());
    let output = finish(mount.command(LATCHFS).arg("umount").arg(mount.point()));
    successful("latchfs umount", &output);
    fs::remove_file(mount.behind(".latchfs/config.toml")).expect("rm");
}

#[test]
fn what_is_mounted_over_a_dead_mount_is_left_alone() {
    let mount = supervised(User::Root).mount();
    mount.bash("echo x > f");
    chmod(&mount.behind(".latchfs"), 0o777);
    kill(mount.daemon(), "KILL");
    wait_until("it pauses", || mount.log().contains("dies again and again"));
    let run = |program: &str, args: &[&str]| {
        let output = finish(mount.command(program).args(args).arg(mount.point()));
        successful(program, &output);
    };
    // mount(8) looks at the directory first, which is dead. The system call does not.
    let script = "import ctypes, sys; p = sys.argv[1].encode(); \
                  sys.exit(ctypes.CDLL(None).mount(b't', p, b'tmpfs', 0, None))";
    run("python3", &["-c", script]);
    fs::write(mount.path("mine"), "mine").expect("write");
    chmod(&mount.behind(".latchfs"), 0o700);
    wait_until("it has tried", || mount.log().contains("can't mount on"));
    assert_eq!(
        fs::read_to_string(mount.path("mine")).expect("read"),
        "mine"
    );
    run("umount", &[]);
    mount.wait_for_restart(0);
    assert_eq!(mount.bash("cat f"), "x\n");
    mount.unmount();
}

#[test]
fn an_aborted_connection_is_replaced() {
    let mount = supervised(User::Root).mount();
    mount.bash("echo x > f");
    for n in 0..2 {
        crate::common::abort(mount.point());
        mount.wait_for_restart(n);
        assert_eq!(mount.bash("cat f"), "x\n");
    }
    assert!(mount.log().contains("was aborted"), "{}", mount.log());
    mount.unmount();
}
