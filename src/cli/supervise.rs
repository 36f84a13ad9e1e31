//! `latchfs mount --supervise`: the process that starts the daemon again when it dies.
//!
//! It serves nothing and opens nothing in the mount. It waits: for the end of the daemon (a pidfd), for
//! signals, and for the watchdog. A daemon that ends as it should takes it along. When one dies, its
//! dead mount stays in place, so that nothing gets past it, until the next daemon has put BACKING right
//! and takes its place (`fuse::replace`).
//!
//! Which mount is its own it knows from the table of mounts. One that was taken away by hand is not
//! wanted any more, and never comes back.

mod backoff;
mod inspect;
mod signals;
mod watchdog;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::daemon::{Started, cannot_start, poll_in};
use super::exit::{Exit, Failure};
use super::mount::describe;
use super::mounts::{Mount, MountTable};
use super::plan::{Plan, Supervision};
use crate::backing::{Dir, proc_path};
use crate::fuse::replace::take_away;
use backoff::Backoff;
pub(super) use inspect::run as run_probe;
use signals::Signals;
use watchdog::Watchdog;

/// The default of `--watchdog`.
pub(super) const DEFAULT_WATCHDOG: Duration = Duration::from_secs(30);
/// The default of `--restart-pause`.
pub(super) const DEFAULT_RESTART_PAUSE: Duration = Duration::from_secs(30);

/// A daemon that waits for a disk may do so for this many times as long: another one would wait for the
/// same disk, and what is in flight would be lost for nothing.
const PATIENCE: u32 = 10;

/// What a killed daemon gets to be gone. Beyond that, a thread of it is in the kernel's hands, and its
/// connection is ended from outside.
const GONE: Duration = Duration::from_secs(5);

/// Mounts, calls `ready` once the mount answers, and looks after it until its end.
pub(super) fn run(plan: &Plan, supervision: Supervision, ready: impl Fn()) -> Result<(), Failure> {
    let _ = rustix::thread::set_name(c"latchfs-superv");
    let backing = Dir::open_root(&plan.config.backing).map_err(|errno| {
        let path = plan.config.backing.display();
        Failure::new(Exit::Backing, format!("{path}: {errno}"))
    })?;
    let mut supervisor = Supervisor {
        plan: Plan {
            supervise: None,
            ..plan.clone()
        },
        watchdog: supervision.watchdog,
        backing,
        signals: Signals::listen().map_err(cannot_start)?,
        mount: None,
        stopping: false,
        was_ready: false,
        died: None,
    };
    supervisor.run(Backoff::new(supervision.restart_pause), ready)
}

struct Supervisor {
    /// What the daemons do.
    plan: Plan,
    watchdog: Option<Duration>,
    /// The directory beneath, also while a dead mount covers it.
    backing: Dir,
    signals: Signals,
    /// The mount as it was when it last answered, or is to be replaced.
    mount: Option<Mount>,
    /// Its end was asked for.
    stopping: bool,
    was_ready: bool,
    /// When the last daemon died.
    died: Option<Instant>,
}

/// The life of one daemon.
struct Life {
    /// `None`: not even its process could be made.
    status: Option<ExitStatus>,
    /// Why there was no mount.
    failure: Option<Failure>,
    served: Option<Duration>,
    /// The dead mount before it was taken away by itself.
    uncovered: bool,
}

impl Supervisor {
    fn run(&mut self, mut backoff: Backoff, ready: impl Fn()) -> Result<(), Failure> {
        loop {
            let life = self.live(&ready).map_err(cannot_start)?;
            self.died = Some(Instant::now());
            // Killed by the signal before it could listen to it.
            let told = [Signal::TERM, Signal::INT].map(|signal| Some(signal.as_raw()));
            let signal = life.status.and_then(|status| status.signal());
            self.stopping |= told.contains(&signal) && signal.is_some();
            let left = self.left(&life)?;
            if self.stopping {
                return self.end(Some(&life), left.as_ref());
            }
            let what = describe(&self.plan.config);
            if let Some(failure) = life.failure {
                if !self.was_ready {
                    return Err(failure);
                }
                if matches!(failure.exit, Exit::Usage | Exit::Configuration) {
                    let message = format!(
                        "{}; the supervisor ends, {what} stays without a daemon: put that right, unmount \
                         (latchfs umount), and mount again",
                        failure.message
                    );
                    return Err(Failure::new(failure.exit, message));
                }
                log::error!("{what}: {}", failure.message);
            }
            let clean = life.status.is_some_and(|status| status.success());
            let taken = left.is_none() && !life.uncovered;
            if taken && (clean || self.mount.is_some()) {
                if !clean {
                    log::warn!("{what} was unmounted, and stays so");
                }
                return Ok(());
            }
            if clean {
                log::error!("the connection of {what} was aborted");
            }
            self.mount = left;
            let pause = backoff.died(life.served.unwrap_or_default());
            if !self.pause(pause)? {
                return self.end(None, self.mount.as_ref());
            }
        }
    }

    /// Starts a daemon, and returns when it has ended.
    fn live(&mut self, ready: &impl Fn()) -> io::Result<Life> {
        let mut life = Life {
            status: None,
            failure: None,
            served: None,
            uncovered: false,
        };
        self.plan.config.replaces = self.mount.as_ref().map(|mount| mount.id);
        if let Some(mount) = &self.mount {
            // A directory above may have got another name.
            if self.plan.config.backing == self.plan.config.mountpoint {
                self.plan.config.backing.clone_from(&mount.point);
            }
            self.plan.config.mountpoint.clone_from(&mount.point);
        }
        let directory = proc_path(self.backing.as_fd());
        let mut daemon = match Started::new(&self.plan, Path::new(&directory)) {
            Ok(daemon) => daemon,
            Err(error) => {
                life.failure = Some(cannot_start(error));
                return Ok(life);
            }
        };
        let mut watchdog: Option<Watchdog> = None;
        let mut since: Option<Instant> = None;
        let mut last = Instant::now();
        let mut told = false;
        loop {
            let fds = [
                daemon.output(),
                Some(daemon.pidfd()),
                Some(self.signals.stop()),
                Some(self.signals.reload()),
                watchdog.as_ref().and_then(Watchdog::fd),
            ];
            let due = watchdog.as_ref().map(Watchdog::due);
            let [spoke, ended, stop, reload, probed] = poll_in(fds, due)?;
            if spoke {
                match daemon.hear()? {
                    Some(Ok(())) => {
                        since = Some(Instant::now());
                        self.now_ready(ready);
                        watchdog = self.watchdog.map(Watchdog::new);
                    }
                    Some(Err(failure)) => life.failure = Some(failure),
                    None => {}
                }
            } else if ended {
                let status = daemon.wait()?;
                life.status = Some(status);
                life.served = since.map(|since| since.elapsed());
                life.uncovered = daemon.has_uncovered();
                if since.is_none() && life.failure.is_none() {
                    life.failure = Some(daemon.obituary(status));
                }
                if life.failure.is_none() && !status.success() && !self.stopping {
                    let (what, pid) = (describe(&self.plan.config), daemon.pid());
                    log::error!("the daemon of {what}, process {pid}, died: {status}");
                }
                return Ok(life);
            }
            if stop {
                self.stopping = true;
                for _ in 0..self.signals.stops() {
                    daemon.signal(Signal::TERM);
                }
            }
            // One that has only begun reads the configuration by itself, and could not take the signal.
            if reload && self.signals.reloads() && since.is_some() {
                daemon.signal(Signal::HUP);
            }
            let elapsed = last.elapsed();
            last = Instant::now();
            if let (Some(dog), Some(mount)) = (&mut watchdog, &self.mount) {
                match dog.look(elapsed, probed, mount) {
                    None => told = false,
                    Some(silent) if self.is_to_wait(&daemon, silent, &mut told) => {}
                    Some(_) => {
                        self.put_down(&daemon, mount)?;
                        watchdog = None;
                    }
                }
            }
        }
    }

    fn now_ready(&mut self, ready: &impl Fn()) {
        let table = MountTable::read().unwrap_or_default();
        let point = &self.plan.config.mountpoint;
        let mount = table.mounted_at(point).filter(|mount| mount.is_latchfs());
        self.mount = mount.cloned();
        let what = describe(&self.plan.config);
        match self.died {
            Some(died) if self.was_ready => {
                log::warn!(
                    "{what} answers again, {:?} after its daemon died",
                    died.elapsed()
                );
            }
            _ => {
                log::info!("supervising {what}");
                ready();
            }
        }
        self.was_ready = true;
    }

    /// The daemon is silent for so long. Is it to be waited for all the same, since it waits for the
    /// disk? `told`: the log has it.
    fn is_to_wait(&self, daemon: &Started, silent: Duration, told: &mut bool) -> bool {
        let limit = self.watchdog.unwrap_or_default();
        if silent >= PATIENCE * limit || !inspect::waits_for_disk(daemon.pid()) {
            return false;
        }
        if !std::mem::replace(told, true) {
            log::error!(
                "the daemon of {}, process {}, has not answered for {limit:?}: it waits for the disk",
                describe(&self.plan.config),
                daemon.pid(),
            );
        }
        true
    }

    /// Ends a daemon that does not answer.
    fn put_down(&self, daemon: &Started, mount: &Mount) -> io::Result<()> {
        let limit = self.watchdog.unwrap_or_default();
        log::error!(
            "the daemon of {}, process {}, has not answered for {limit:?}; it is killed after a look at \
             its threads",
            describe(&self.plan.config),
            daemon.pid(),
        );
        inspect::log_stacks(daemon.pid());
        daemon.signal(Signal::KILL);
        if let [false] = poll_in([Some(daemon.pidfd())], Some(GONE))? {
            // Programs get their errors now; the next daemon has to wait for the lock of this one.
            let minor = mount.device.split(':').next_back().unwrap_or_default();
            let abort = format!("/sys/fs/fuse/connections/{minor}/abort");
            let aborted = std::fs::write(&abort, "1");
            log::error!(
                "process {} is killed but not gone: a thread of it is in the kernel's hands; its \
                 connection is aborted: {aborted:?}",
                daemon.pid()
            );
        }
        Ok(())
    }

    /// The dead mount that a daemon has left, if nobody has taken it away.
    fn left(&self, life: &Life) -> Result<Option<Mount>, Failure> {
        let table = MountTable::read().map_err(cannot_start)?;
        let config = &self.plan.config;
        let known = self.mount.as_ref().filter(|mount| table.contains(mount));
        let mut left = match known {
            Some(mount) => table.by_id(mount.id),
            // It may have died right after it took the place of the one before.
            None if self.was_ready && life.served.is_none() => table
                .mounted_at(&config.mountpoint)
                .filter(|mount| mount.is_latchfs() && mount.source == config.backing),
            None => None,
        };
        // Or right before it took away the one above its own.
        while let Some(mount) = left {
            let Some(beneath) = table.by_id(mount.parent).filter(|beneath| {
                beneath.is_latchfs()
                    && (&beneath.point, &beneath.source) == (&mount.point, &mount.source)
            }) else {
                break;
            };
            if let Err(errno) = take_away(&mount.point, mount.id) {
                log::warn!(
                    "{}: can't take a dead mount away: {errno}",
                    mount.point.display()
                );
                break;
            }
            left = Some(beneath);
        }
        Ok(left.cloned())
    }

    /// Waits before the next start; false if there is to be none.
    fn pause(&mut self, pause: Duration) -> Result<bool, Failure> {
        if pause.is_zero() {
            return Ok(true);
        }
        let what = describe(&self.plan.config);
        log::error!("the daemon of {what} dies again and again; the next start is in {pause:?}");
        let end = Instant::now() + pause;
        let table = std::fs::File::open("/proc/self/mountinfo").map_err(cannot_start)?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(true);
            }
            let stop = self.signals.stop();
            let mut fds = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                // Its being changed is an exception to it.
                PollFd::from_borrowed_fd(table.as_fd(), PollFlags::PRI),
            ];
            let limit = Timespec::try_from(left).ok();
            if let Err(errno) = poll(&mut fds, limit.as_ref()) {
                if errno != rustix::io::Errno::INTR {
                    return Err(cannot_start(errno.into()));
                }
            }
            if self.signals.stops() > 0 {
                self.stopping = true;
                return Ok(false);
            }
            let mounts = MountTable::read().map_err(cannot_start)?;
            if self
                .mount
                .as_ref()
                .is_some_and(|mount| !mounts.contains(mount))
            {
                log::warn!("{what} was unmounted, and stays so");
                self.mount = None;
                return Ok(false);
            }
        }
    }

    /// The end that was asked for: leaves no dead mount, and says what the daemon said.
    fn end(&self, life: Option<&Life>, left: Option<&Mount>) -> Result<(), Failure> {
        if let Some(mount) = left {
            if let Err(errno) = take_away(&mount.point, mount.id) {
                let point = mount.point.display();
                log::error!("{point}: can't take the dead mount away: {errno}");
            }
        }
        let code = life.and_then(|life| life.status?.code());
        match code.and_then(|code| Exit::from_code(u8::try_from(code).ok()?)) {
            None | Some(Exit::Done) => Ok(()),
            Some(exit) => Err(Failure::new(
                exit,
                "the daemon ended with an error; see its log",
            )),
        }
    }
}
