//! The supervisor itself.

use crate::common::syscalls::{Decision, Supervised};
use crate::common::{User, options, text};
use std::os::unix::process::ExitStatusExt;

/// Does `f` get a version by a daemon of which the first call with this label, once it serves, is
/// decided so?
fn overwrite(user: User, label: &'static str, decision: Decision) -> (Supervised, String) {
    let mount = options().user(user).mount();
    mount.bash("echo old > f");
    mount.unmount();
    let mut done = false;
    let mut daemon = Supervised::start(mount, move |call| {
        if done || !call.serving || call.label() != label {
            return Decision::Continue;
        }
        done = true;
        decision
    });
    assert!(daemon.is_served());
    let output = daemon.try_python("with open('f', 'w') as f: f.write('new\\n')");
    (daemon, text(&output.stderr))
}

const COMMIT: &str = "renameat2 backing:.latchfs/tmp/* backing:f";

#[test]
fn a_call_that_goes_on_is_done() {
    for user in [User::Root, User::Ordinary] {
        let (daemon, stderr) = overwrite(user, COMMIT, Decision::Continue);
        assert_eq!(stderr, "");
        assert_eq!(daemon.read_behind("f"), "new\n");
        daemon.unmount();
    }
}

#[test]
fn a_call_fails_with_the_errno_that_was_decided() {
    for user in [User::Root, User::Ordinary] {
        let fail = Decision::Fail(libc::EDQUOT);
        let (daemon, stderr) = overwrite(user, "fsync backing:(no name)", fail);
        assert!(stderr.contains("Disk quota exceeded"), "{stderr}");
        assert_eq!(daemon.read_behind("f"), "old\n");
        daemon.unmount();
    }
}

#[test]
fn a_call_at_which_the_daemon_is_killed_is_not_done() {
    for user in [User::Root, User::Ordinary] {
        let (daemon, stderr) = overwrite(user, COMMIT, Decision::Kill);
        assert!(!stderr.is_empty(), "no error from close()");
        let (mount, status) = daemon.wait();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(mount.read_behind("f"), "old\n");
        assert_eq!(mount.store("tmp").len(), 1, "the call before it was done");
        mount.start();
        assert_eq!(mount.store("tmp"), [""; 0]);
    }
}
