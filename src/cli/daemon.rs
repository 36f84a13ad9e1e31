//! The way into the background.
//!
//! The first process starts the same program again as the daemon and waits until that has said
//! how it went. It does not fork itself: a copy of a process that may have threads can only be
//! used to exec, and the daemon should not have what the caller's shell left open anyway.
//!
//! Stdout and stderr of the daemon are one pipe to the first process until the mount is ready.
//! So what it says is heard, a panic's words too, and no further descriptor has to be passed on.
//! Then the daemon points both at `/dev/null`. It never has the caller's own stdout and stderr:
//! `$(latchfs mount ...)` and `ssh host latchfs mount ...` would wait for the end of the daemon.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::exit::{Exit, Failure, one_line};
use super::plan::Plan;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Starts every line that the daemon means for the first process. Any other is stray output.
const MARK: &str = "latchfs-daemon:";

/// As much of a daemon's last words as goes into one line.
const LAST_WORDS: usize = 600;

/// Starts the daemon, and returns once its mount answers.
pub(super) fn start(plan: &Plan) -> Result<(), Failure> {
    let internal = |error| {
        Failure::new(
            Exit::Internal,
            format!("cannot start the daemon process: {error}"),
        )
    };
    let (child, output) = spawn(plan).map_err(internal)?;
    listen(child, output).map_err(internal)?
}

fn spawn(plan: &Plan) -> io::Result<(Child, OwnedFd)> {
    let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Not by its name: the program may have been replaced since it was started.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("latchfs")
        .args(plan.daemon_args())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    // The command, and with it our own writing end of the pipe, ends here.
    Ok((command.spawn()?, output))
}

/// Waits for the daemon's word or its end, whichever comes first.
fn listen(mut child: Child, output: OwnedFd) -> io::Result<Result<(), Failure>> {
    let pid = Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut heard = Heard::default();
    let mut output = std::fs::File::from(output);
    let mut buffer = [0; 4096];
    loop {
        // Not only the pipe: a process that the daemon has started may hold it open for longer.
        let mut fds = [
            PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let [spoke, ended] = fds.map(|fd| !fd.revents().is_empty());
        if spoke {
            let length = output.read(&mut buffer)?;
            heard.bytes.extend_from_slice(&buffer[..length]);
            if let Some(verdict) = heard.verdict() {
                return Ok(verdict);
            }
            if length > 0 {
                continue;
            }
        } else if !ended {
            continue;
        }
        let status = child.wait()?;
        return Ok(Err(heard.obituary(status)));
    }
}

/// What the daemon has said so far.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
}

impl Heard {
    /// How the mount went, once the daemon has said so.
    fn verdict(&self) -> Option<Result<(), Failure>> {
        let text = String::from_utf8_lossy(&self.bytes);
        // The last line is not complete before its newline is there.
        let complete = &text[..=text.rfind('\n')?];
        complete.lines().find_map(|line| {
            let word = line.strip_prefix(MARK)?;
            if word == "ready" {
                return Some(Ok(()));
            }
            let (code, message) = word.split_once(' ')?;
            let exit = Exit::from_code(code.parse().ok()?)?;
            Some(Err(Failure::new(exit, message)))
        })
    }

    /// What to say of a daemon that died without a word for us.
    fn obituary(&self, status: std::process::ExitStatus) -> Failure {
        let said = one_line(&String::from_utf8_lossy(&self.bytes));
        let said: String = said.chars().take(LAST_WORDS).collect();
        let said = if said.is_empty() {
            String::new()
        } else {
            format!(", saying: {said}")
        };
        let message = format!(
            "the daemon ended before the mount was ready ({status}){said}; try again with \
             --foreground -vv"
        );
        Failure::new(Exit::Internal, message)
    }
}

/// Gives the process the name by which ps, pgrep and [`super::served`] know it, whatever file was
/// executed (`/proc/self/exe`, for a daemon).
pub(super) fn take_name() {
    let _ = rustix::thread::set_name(c"latchfs");
}

/// The daemon's side: its line to the process that waits for it.
pub(super) struct Reporter {
    /// Nobody listens any more, and stdout is no longer the pipe.
    done: AtomicBool,
}

impl Reporter {
    /// Makes this process a daemon: a session of its own, so that it ends with no terminal.
    pub(super) fn start() -> Self {
        // It fails for the leader of a process group, which has what it needs already or was
        // started by hand.
        let _ = rustix::process::setsid();
        take_name();
        Self {
            done: AtomicBool::new(false),
        }
    }

    /// The mount answers: lets the first process return.
    pub(super) fn ready(&self) {
        if !self.tell("ready") {
            // Its user pressed Ctrl-C, and does not expect a mount now.
            log::warn!("the command that started this daemon is gone; stopping");
            let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
        }
    }

    /// There will be no mount. Says nothing once the mount was ready: then only the log is left.
    pub(super) fn failed(&self, failure: &Failure) {
        self.tell(&format!("{} {}", failure.exit.code(), failure.message));
    }

    /// Says the one thing there is to say and hangs up; false if nobody heard.
    fn tell(&self, word: &str) -> bool {
        if self.done.swap(true, Ordering::Relaxed) {
            return true;
        }
        let line = format!("{MARK}{word}\n");
        let heard = write_all(rustix::stdio::stdout(), line.as_bytes()).is_ok();
        // Opening it cannot fail on a system that has a /proc; if it does, the pipe stays, whose
        // other end is gone: writing to it fails, which standard output ignores.
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
        }
        heard
    }
}

/// Past the buffer of [`std::io::stdout`], which would hold back what is not a whole line.
fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&fd, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    fn heard(text: &str) -> Heard {
        Heard {
            bytes: text.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_verdict_is_found_between_stray_lines() {
        assert_eq!(
            heard("some noise\nlatchfs-daemon:ready\n").verdict(),
            Some(Ok(()))
        );
        let failure = Failure::new(Exit::Busy, "it is busy: really");
        let text = "noise\nlatchfs-daemon:5 it is busy: really\nnoise\n";
        assert_eq!(heard(text).verdict(), Some(Err(failure)));
    }

    #[test]
    fn half_a_line_is_no_verdict() {
        for text in [
            "",
            "latchfs-daemon:ready",
            "noise\nlatchfs-daemon:5 it",
            "ready\n",
            "5 x\n",
        ] {
            assert_eq!(heard(text).verdict(), None, "{text}");
        }
    }

    #[test]
    fn a_death_is_reported_in_one_line_with_the_last_words() {
        let failure = heard("thread panicked:\n  oh no\n").obituary(ExitStatus::from_raw(101 << 8));
        assert_eq!(failure.exit, Exit::Internal);
        let words = "the daemon ended before the mount was ready (exit status: 101), saying: \
                     thread panicked:; oh no; try again";
        assert!(failure.message.starts_with(words), "{}", failure.message);
        let failure = heard("").obituary(ExitStatus::from_raw(9));
        assert!(
            failure.message.contains("(signal: 9 (SIGKILL))"),
            "{}",
            failure.message
        );
    }
}
