//! The same while a mount starts and puts right what a crash has left.

use crate::common::reliability::Row;
use crate::common::syscalls::{Decision, Supervised};
use crate::common::{Mount, options};
use crate::fault::Fault;

/// A BACKING whose daemon was killed while it rewrote a file in place, and a log was open.
fn interrupted() -> Mount {
    let daemon = Supervised::mount(options(), |call| {
        // The rewrite is done, but nobody knows.
        match call.serving && call.label() == "fsync backing:f" {
            true => Decision::Kill,
            false => Decision::Continue,
        }
    });
    daemon.bash("echo old > f; ln f g; echo first > log");
    let appender = daemon
        .spawn_python("f = open('log', 'ab', 0); f.write(b'second\\n'); say('appended'); hear()");
    appender.expect("appended");
    let _ = daemon.try_run("bash", "echo new > f");
    drop(appender);
    let (mount, _) = daemon.wait();
    assert!(!mount.store("redo").is_empty(), "nothing was interrupted");
    mount
}

#[test]
fn a_call_that_fails_in_recovery_is_told_and_the_next_mount_puts_it_right() {
    const ERRNOS: &[i32] = &[
        libc::EIO,
        libc::ENOSPC,
        libc::EMFILE,
        libc::ENOMEM,
        libc::EROFS,
        libc::EDQUOT,
    ];
    let (mut served, mut refused) = (0, 0);
    for before in 0.. {
        let mount = interrupted();
        let fault = Fault::default();
        fault.arm_from_the_start(before, ERRNOS[before % ERRNOS.len()]);
        let decider = fault.clone();
        let mut daemon = Supervised::start(mount, move |call| decider.decide(call));
        let mount = match daemon.is_served() {
            true => {
                let hit = fault.disarm();
                daemon.unmount();
                served += 1;
                let (mount, _) = daemon.wait();
                if hit.is_none() {
                    break;
                }
                mount
            }
            false => {
                let hit = fault.disarm().expect("no call failed, but the mount");
                refused += 1;
                let (mount, status) = daemon.wait();
                assert!(status.code().is_some(), "{}: {status}", hit.label);
                mount
            }
        };
        mount.start();
        assert_eq!(mount.read("f"), "new\n", "{before}");
        assert_eq!(mount.read_behind("g"), "new\n", "{before}");
        assert_eq!(mount.read("log"), "first\nsecond\n", "{before}");
        assert_eq!(mount.store("redo"), [""; 0]);
        assert_eq!(mount.store("tmp"), [""; 0]);
        mount.bash("echo newer > g; cat f");
        mount.unmount();
    }
    println!("{refused} mounts were refused, {served} served all the same");
    assert!(refused > 0);
    Row {
        fault: "a call on BACKING fails during recovery",
        injected: "each call of the start in turn, after a rewrite in place was killed; then mounted again",
        cases: (served + refused - 1) as u64,
        violations: 0,
        command: "scripts/test a_call_that_fails_in_recovery",
    }
    .report();
}
