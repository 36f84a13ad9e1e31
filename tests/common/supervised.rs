//! Mounts whose daemon is started again when it dies.

use super::{Mount, Options, User, alive, finish, kill, options, wait_until};
use std::fs;
use std::time::{Duration, Instant};

/// A supervised mount of this user, without pauses to speak of: tests kill often. Its log has debug
/// messages, as that of every mount here.
pub fn supervised(user: User) -> Options {
    supervised_with_pause(user, "20ms")
}

/// One with pauses of this length at most.
pub fn supervised_with_pause(user: User, pause: &str) -> Options {
    let options = options().user(user).arg("--supervise");
    options.arg(format!("--restart-pause={pause}"))
}

/// Is every mount of the tests one in place?
pub fn is_everything_in_place() -> bool {
    std::env::var_os("LATCHFS_TEST_IN_PLACE").is_some()
}

/// The process that looks after a daemon.
pub fn supervisor_of(daemon: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{daemon}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    let parent = line.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    (name == "latchfs-superv\n").then_some(parent)
}

impl Mount {
    /// The process that looks after the daemon.
    pub fn supervisor(&self) -> u32 {
        supervisor_of(self.daemon()).expect("a supervisor")
    }

    /// How often a daemon has taken the place of another.
    pub fn restarts(&self) -> usize {
        self.log().matches("answers again").count()
    }

    /// Waits until one more has.
    pub fn wait_for_restart(&self, before: usize) {
        wait_until("another daemon serves", || self.restarts() > before);
    }

    /// Can its user list it?
    pub fn answers(&self) -> bool {
        let mut ls = self.command("ls");
        finish(ls.arg(self.point())).status.success()
    }

    /// Kills the daemon as a crash would, and waits until the next one has taken over. Returns how long
    /// it took until the mount could be looked at again.
    pub fn kill_daemon(&self) -> Duration {
        let before = self.restarts();
        let daemon = self.daemon();
        let began = Instant::now();
        kill(daemon, "KILL");
        wait_until("it is dead", || !alive(daemon));
        wait_until("the mount answers", || self.answers());
        let took = began.elapsed();
        self.wait_for_restart(before);
        took
    }
}
