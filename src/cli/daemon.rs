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

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::args::MountArgs;
use super::exit::{Exit, Failure, one_line};
use super::plan::Plan;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Starts every line that the daemon means for the first process. Any other is stray output.
const MARK: &str = "latchfs-daemon:";

/// By this variable fuser is told what to mount with.
const FUSERMOUNT: &str = "FUSERMOUNT_PATH";

/// What a daemon says when the directory beneath a dead mount can be seen from here on.
const UNCOVERED: &str = "uncovered";

/// As much of a daemon's last words as goes into one line.
const LAST_WORDS: usize = 600;

/// Starts the daemon, or the process that supervises it, and returns once the mount answers.
pub(super) fn start(plan: &Plan) -> Result<(), Failure> {
    let mut started = Started::new(plan, Path::new("/")).map_err(cannot_start)?;
    listen(&mut started).map_err(cannot_start)?
}

/// What to say where not even the process could be made.
pub(super) fn cannot_start(error: io::Error) -> Failure {
    let message = format!("cannot start the daemon process: {error}");
    Failure::new(Exit::Internal, message)
}

/// Waits for the daemon's word or its end, whichever comes first.
fn listen(started: &mut Started) -> io::Result<Result<(), Failure>> {
    loop {
        // Not only the pipe: a process that the daemon has started may hold it open for longer.
        let [spoke, ended] = poll_in([started.output(), Some(started.pidfd())], None)?;
        if spoke {
            if let Some(verdict) = started.hear()? {
                return Ok(verdict);
            }
        } else if ended {
            let status = started.wait()?;
            return Ok(Err(started.obituary(status)));
        }
    }
}

/// Waits until one of them can be read, at most so long; and says which can. What is `None` can't.
pub(super) fn poll_in<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .flatten()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    // What is too long for the kernel is as good as for ever.
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut polled, limit.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok([false; N]),
        Err(errno) => return Err(errno.into()),
    }
    let mut polled = polled.iter();
    Ok(fds.map(|fd| {
        let polled = fd.and_then(|_| polled.next());
        polled.is_some_and(|fd| !fd.revents().is_empty())
    }))
}

/// A daemon process that was started here.
pub(super) struct Started {
    child: Child,
    /// Stands for this very process, also after its number was given to another one.
    pidfd: OwnedFd,
    /// `None` once it has said whether there is a mount, or hung up.
    output: Option<File>,
    heard: Heard,
}

impl Started {
    /// Starts one in this directory.
    pub(super) fn new(plan: &Plan, directory: &Path) -> io::Result<Self> {
        let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let stderr = match plan.foreground {
            true => Stdio::inherit(),
            false => input.try_clone()?.into(),
        };
        // Not by its name: the program may have been replaced since it was started.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("latchfs")
            .args(plan.daemon_args())
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(input)
            .stderr(stderr);
        if plan.config.replaces.is_some() && std::env::var_os(FUSERMOUNT).is_none() {
            // Else fuser tries which one there is, while the directory beneath can be seen.
            command.env(FUSERMOUNT, "fusermount3");
        }
        let child = command.spawn()?;
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        // The command, and with it our own writing end of the pipe, ends here.
        Ok(Self {
            child,
            pidfd,
            output: Some(output.into()),
            heard: Heard::default(),
        })
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// To be read when it has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// To be read when it has said something, as long as it may.
    pub(super) fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(File::as_fd)
    }

    /// Listens once: how the mount went, if it has said so.
    pub(super) fn hear(&mut self) -> io::Result<Option<Result<(), Failure>>> {
        let Some(output) = &mut self.output else {
            return Ok(None);
        };
        let mut buffer = [0; 4096];
        let length = output.read(&mut buffer)?;
        self.heard.bytes.extend_from_slice(&buffer[..length]);
        let verdict = self.heard.verdict();
        if verdict.is_some() || length == 0 {
            self.output = None;
        }
        Ok(verdict)
    }

    /// Has it begun to take away the dead mount that it is to replace?
    pub(super) fn has_uncovered(&self) -> bool {
        self.heard.has_uncovered()
    }

    /// Sends it a signal; nothing happens if it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(errno) = rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            log::debug!("process {}: {errno}", self.pid());
        }
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// What to say of it if it ended without a word for us.
    pub(super) fn obituary(&self, status: ExitStatus) -> Failure {
        self.heard.obituary(status)
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

    fn has_uncovered(&self) -> bool {
        let text = String::from_utf8_lossy(&self.bytes);
        let mut words = text.lines().filter_map(|line| line.strip_prefix(MARK));
        words.any(|word| word == UNCOVERED)
    }

    /// What to say of a daemon that died without a word for us.
    fn obituary(&self, status: ExitStatus) -> Failure {
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
    /// stderr is the user's, not the pipe.
    in_foreground: bool,
    /// It is not the user who waits, but a process that supervises.
    again: bool,
}

impl Reporter {
    /// Makes this process a daemon: a session of its own, so that it ends with no terminal.
    pub(super) fn start(args: &MountArgs) -> Self {
        // It fails for the leader of a process group, which has what it needs already or was
        // started by hand.
        let _ = rustix::process::setsid();
        Self {
            done: AtomicBool::new(false),
            in_foreground: args.foreground,
            again: args.replaces.is_some(),
        }
    }

    /// The mount answers: lets the first process return.
    pub(super) fn ready(&self) {
        if !self.tell("ready") && !self.again {
            // Its user pressed Ctrl-C, and does not expect a mount now.
            log::warn!("the command that started this daemon is gone; stopping");
            let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
        }
    }

    /// The dead mount that is to be replaced is going.
    pub(super) fn uncovered(&self) {
        let line = format!("{MARK}{UNCOVERED}\n");
        let _ = write_all(rustix::stdio::stdout(), line.as_bytes());
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
            if !self.in_foreground {
                let _ = rustix::stdio::dup2_stderr(&null);
            }
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
            "latchfs-daemon:uncovered\n",
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
