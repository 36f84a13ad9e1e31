//! A daemon that is killed before it serves.

use crate::common::syscalls::{Decision, Supervised};
use crate::common::{User, options};
use std::os::unix::process::ExitStatusExt;

#[test]
fn a_daemon_killed_before_its_mount_has_answered_once_is_dead() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).unmounted();
        // The answer to the first question after the greeting.
        let mut answers = 0;
        let mut daemon = Supervised::start(mount, move |call| {
            answers += usize::from(call.is_answer());
            match answers {
                2 => Decision::Kill,
                _ => Decision::Continue,
            }
        });
        assert!(!daemon.is_served());
        let (mount, status) = daemon.wait();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        // Nobody has its lock any more.
        mount.start();
        mount.unmount();
    }
}
