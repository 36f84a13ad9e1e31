//! System calls of a daemon that fail.

use super::{Mount, kill, wait_until};
use std::fs;
use std::process::{Child, Stdio};

/// Has system calls of a mount's daemon fail, by strace(1), for as long as it lives.
pub struct Failing(Child);

impl Failing {
    /// `fault` is what strace injects: `fsync:error=EIO`.
    pub fn new(mount: &Mount, fault: &str) -> Self {
        let daemon = mount.daemon();
        let calls = fault.split(':').next().unwrap_or(fault);
        let mut strace = std::process::Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e"]);
        strace.arg(format!("trace={calls}"));
        strace.args(["-e", &format!("inject={fault}"), "-p", &daemon.to_string()]);
        let strace = strace.stdin(Stdio::null()).spawn().expect("strace");
        let failing = Self(strace);
        wait_until("strace to be attached", || {
            let threads = fs::read_dir(format!("/proc/{daemon}/task")).expect("the daemon");
            threads.flatten().all(|thread| {
                let status = fs::read_to_string(thread.path().join("status"));
                status.is_ok_and(|status| !status.contains("TracerPid:\t0"))
            })
        });
        failing
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // Asked politely, it would stop each thread before it leaves, also one that waits for another.
        kill(self.0.id(), "KILL");
        let _ = self.0.wait();
    }
}
