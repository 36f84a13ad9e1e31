//! Finds out that a mount does not answer any more.
//!
//! From time to time another process asks the mount for [`crate::in_flight::ALIVE`], which the daemon
//! answers from its memory: no disk, no lease and no other program can hold that up, only a daemon of
//! which no thread takes requests. That process may hang, be it for good. So it is never waited for,
//! and says when it has got as far as the request: what holds it up before that is not the mount.
//!
//! Time counts as far as this process has run, too: on a machine that was suspended, or is so busy
//! that nobody gets to run, nothing follows from a missing answer.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::mounts::Mount;

/// So often the mount is asked within the time that it may be silent.
const PROBES: u32 = 3;
/// The longest step in which time is counted.
const STEP: Duration = Duration::from_secs(1);
/// So many probes may hang before the mount is reached, as on a dead network drive above it.
const MOST_STRAYS: usize = 3;

/// What becomes of a mount that is asked.
pub(super) struct Watchdog {
    limit: Duration,
    state: State,
    /// Probes that have been given up, or are about to end.
    strays: Vec<Child>,
}

enum State {
    /// The next probe is due when so much time has gone by.
    Resting(Duration),
    /// It has been without an answer for so long.
    Asking(Probe, Duration),
}

impl Watchdog {
    /// One for a mount that answers now, and may be silent for `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            state: State::Resting(limit / PROBES),
            strays: Vec::new(),
        }
    }

    /// To be read when the probe has something to say.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Resting(_) => None,
            State::Asking(probe, _) => Some(probe.said.as_fd()),
        }
    }

    /// When to come back at the latest.
    pub(super) fn due(&self) -> Duration {
        match &self.state {
            State::Resting(left) => *left,
            State::Asking(..) => self.step(),
        }
    }

    fn step(&self) -> Duration {
        (self.limit / 20).min(STEP)
    }

    /// So much time has gone by, and the probe may have said something. If the mount has been silent
    /// for too long: for how long by now.
    pub(super) fn look(
        &mut self,
        elapsed: Duration,
        heard: bool,
        mount: &Mount,
    ) -> Option<Duration> {
        self.strays
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let step = self.step();
        match &mut self.state {
            State::Resting(left) => {
                *left = left.saturating_sub(elapsed);
                if left.is_zero() && self.strays.len() < MOST_STRAYS {
                    match Probe::start(mount) {
                        Ok(probe) => self.state = State::Asking(probe, Duration::ZERO),
                        Err(error) => {
                            log::warn!("the mount can't be asked whether it answers: {error}");
                            self.rest();
                        }
                    }
                } else if left.is_zero() {
                    self.rest();
                }
                None
            }
            State::Asking(probe, waited) => {
                if heard && !probe.hear() {
                    log::debug!("{} answers", mount.point.display());
                    // It has closed its end, so it is as good as gone.
                    let _ = probe.child.wait();
                    self.rest();
                    return None;
                }
                *waited += elapsed.min(2 * step);
                let (silent, reached) = (*waited, probe.reached);
                if silent < self.limit {
                    return None;
                }
                if !reached {
                    log::debug!("no way to {}", mount.point.display());
                    self.rest();
                    return None;
                }
                Some(silent)
            }
        }
    }

    fn rest(&mut self) {
        let state = State::Resting(self.limit / PROBES);
        if let State::Asking(mut probe, _) = std::mem::replace(&mut self.state, state) {
            let _ = probe.child.kill();
            self.strays.push(probe.child);
        }
    }
}

/// A process that asks the mount.
struct Probe {
    child: Child,
    said: File,
    /// It waits for the mount's answer, and nothing else.
    reached: bool,
}

impl Probe {
    fn start(mount: &Mount) -> io::Result<Self> {
        let (mut command, said) = helper()?;
        command
            .arg("probe")
            .arg(mount.id.to_string())
            .arg(&mount.point);
        let child = command.spawn()?;
        Ok(Self {
            child,
            said: said.into(),
            reached: false,
        })
    }

    /// Listens once; false if it is done.
    fn hear(&mut self) -> bool {
        let goes_on = self.said.read(&mut [0; 16]).is_ok_and(|length| length > 0);
        self.reached |= goes_on;
        goes_on
    }
}

/// This program again, for a task that may hang, and what it says.
pub(super) fn helper() -> io::Result<(Command, OwnedFd)> {
    let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["watchdog"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(input)
        .stderr(Stdio::null());
    Ok((command, output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const LIMIT: Duration = Duration::from_secs(30);

    fn mount() -> Mount {
        let table = super::super::super::mounts::MountTable::parse(
            b"1 0 0:1 / /nowhere rw - fuse.latchfs /b rw\n",
        );
        table.mounted_at(Path::new("/nowhere")).unwrap().clone()
    }

    /// One that asks, by a process that never says anything but that it waits.
    fn asking(reached: bool) -> Watchdog {
        let (output, input) = rustix::pipe::pipe().unwrap();
        let mut command = Command::new("sleep");
        let child = command.arg("60").stdout(input).spawn().unwrap();
        let probe = Probe {
            child,
            said: output.into(),
            reached,
        };
        Watchdog {
            limit: LIMIT,
            state: State::Asking(probe, Duration::ZERO),
            strays: Vec::new(),
        }
    }

    fn looks_until_silent(dog: &mut Watchdog, elapsed: Duration, most: u32) -> Option<u32> {
        (1..=most).find(|_| dog.look(elapsed, false, &mount()).is_some())
    }

    #[test]
    fn no_answer_for_the_whole_time_is_an_alarm() {
        let mut dog = asking(true);
        assert_eq!(looks_until_silent(&mut dog, STEP, 100), Some(30));
        // And stays one, if nothing is done.
        assert_eq!(dog.look(STEP, false, &mount()), Some(LIMIT + STEP));
    }

    #[test]
    fn time_in_which_nobody_ran_does_not_count() {
        let mut dog = asking(true);
        // As after a suspend of a day.
        let day = Duration::from_secs(86_400);
        assert_eq!(dog.look(day, false, &mount()), None);
        assert_eq!(looks_until_silent(&mut dog, STEP, 100), Some(28));
    }

    #[test]
    fn a_probe_that_does_not_get_to_the_mount_says_nothing_about_it() {
        let mut dog = asking(false);
        assert_eq!(looks_until_silent(&mut dog, STEP, 31), None);
    }

    #[test]
    fn an_answer_ends_the_wait() {
        let mut dog = asking(true);
        assert_eq!(looks_until_silent(&mut dog, STEP, 29), None);
        let State::Asking(probe, _) = &mut dog.state else {
            panic!("it does not ask")
        };
        probe.child.kill().unwrap();
        probe.child.wait().unwrap();
        assert_eq!(dog.look(STEP, true, &mount()), None);
        assert_eq!(dog.due(), LIMIT / PROBES);
    }
}
