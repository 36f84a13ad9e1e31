//! `latchfs umount`: asks the daemon to finish and go, and waits until it has.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::args::UmountArgs;
use super::exit::{Exit, Failure, one_line, shell_word};
use super::logging::{self, Destination};
use super::mounts::{Mount, MountTable};
use super::plan::daemon_unmount_timeout;
use super::resolve::{Place, resolve};
use super::served::{daemon_of, mount_args, supervisor_of};
use crate::config::DEFAULT_UNMOUNT_TIMEOUT;

/// What a daemon gets beyond its own unmount timeout before it counts as stuck.
const GRACE: Duration = Duration::from_secs(5);

/// Does what the command line asks for.
pub(super) fn run(args: &UmountArgs, verbose: u8) -> Result<(), Failure> {
    logging::start(Destination::Stderr, verbose);
    let mount = find(&args.mountpoint, &read_table()?)?;
    check_owner(&mount)?;
    match Daemon::of(&mount)? {
        Some(daemon) => {
            let timeout = args
                .timeout
                .unwrap_or_else(|| daemon.unmount_timeout() + GRACE);
            daemon.stop(&mount, timeout)?;
        }
        None => log::debug!("no daemon serves {}", mount.source.display()),
    }
    // With the daemon gone, what is left is a mount that answers every request with an error.
    if read_table()?.contains(&mount) {
        detach(&mount)
    } else {
        Ok(())
    }
}

fn read_table() -> Result<MountTable, Failure> {
    MountTable::read().map_err(|error| {
        let message = format!("cannot read /proc/self/mountinfo: {error}; is /proc mounted?");
        Failure::new(Exit::Internal, message)
    })
}

fn find(given: &Path, mounts: &MountTable) -> Result<Mount, Failure> {
    let fail = |message: String| Err(Failure::new(Exit::NotMounted, message));
    let path = given.display();
    match resolve(given, mounts) {
        Ok(Place::Root(mount)) => Ok(mount),
        Ok(Place::Inside(mount, _)) => {
            let word = shell_word(&mount.point);
            fail(format!(
                "{path} is inside a latchfs mount; run: latchfs umount {word}"
            ))
        }
        Ok(Place::Outside(_)) => fail(format!(
            "{path} is not a latchfs mount; to see those there are: findmnt -t fuse.latchfs"
        )),
        Err(error) => fail(format!(
            "{path} is not a latchfs mount: {error}; check the path"
        )),
    }
}

/// Says at once what the kernel and fusermount3 would only hint at.
fn check_owner(mount: &Mount) -> Result<(), Failure> {
    let user = rustix::process::geteuid();
    match mount.owner {
        Some(owner) if !user.is_root() && owner != user.as_raw() => Err(Failure::new(
            Exit::StillMounted,
            format!(
                "{} was mounted by user {owner}; run latchfs umount as that user or as root",
                mount.point.display()
            ),
        )),
        _ => Ok(()),
    }
}

/// The live process that serves a mount.
struct Daemon {
    pid: Pid,
    /// Whom to ask, and to wait for: the daemon, or the process that would start it again. Stands for
    /// that very process, also after its number was given to another one.
    pidfd: OwnedFd,
}

impl Daemon {
    /// The daemon of this mount, if it lives.
    fn of(mount: &Mount) -> Result<Option<Self>, Failure> {
        let find = |mounts: &MountTable| {
            let pid = daemon_of(mount, mounts)?;
            Pid::from_raw(i32::try_from(pid).ok()?)
        };
        let Some(pid) = find(&read_table()?) else {
            return Ok(None);
        };
        let supervisor = supervisor_of(pid.as_raw_nonzero().get().unsigned_abs());
        let supervisor = supervisor.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let asked = supervisor.unwrap_or(pid);
        let pidfd = match rustix::process::pidfd_open(asked, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => {
                let message = format!("cannot watch the daemon, process {pid}: {error}");
                return Err(Failure::new(Exit::Internal, message));
            }
        };
        // Only a process that still serves BACKING after it was opened is surely the one meant.
        let still = find(&read_table()?) == Some(pid);
        Ok(still.then_some(Self { pid, pidfd }))
    }

    fn unmount_timeout(&self) -> Duration {
        let args = mount_args(self.pid.as_raw_nonzero().get().unsigned_abs());
        args.map_or(DEFAULT_UNMOUNT_TIMEOUT, |args| {
            daemon_unmount_timeout(&args)
        })
    }

    /// Asks it to finish, and waits for its end.
    fn stop(&self, mount: &Mount, timeout: Duration) -> Result<(), Failure> {
        let fail = |message: String| Err(Failure::new(Exit::StillMounted, message));
        let point = mount.point.display();
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::TERM) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => {
                return fail(format!(
                    "cannot tell the daemon of {point}, process {}, to stop: {error}; try again \
                     as root",
                    self.pid
                ));
            }
        }
        match self.wait(timeout) {
            Ok(true) => Ok(()),
            Ok(false) => fail(format!(
                "the daemon of {point}, process {}, has not finished within {}; it ends \
                 by itself when it has; kill -9 {} ends it at once, and loses what is in flight",
                self.pid,
                humantime::format_duration(timeout),
                self.pid
            )),
            Err(error) => {
                let message = format!("cannot wait for process {}: {error}", self.pid);
                Err(Failure::new(Exit::Internal, message))
            }
        }
    }

    /// Waits for its end, at most so long; true if it came.
    fn wait(&self, timeout: Duration) -> rustix::io::Result<bool> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // It fails for more seconds than fit into 63 bits, and a year is the longest timeout.
            let left = left.try_into().map_err(|_| Errno::INVAL)?;
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Takes a mount that nobody serves out of the tree, whoever still has files of it open.
fn detach(mount: &Mount) -> Result<(), Failure> {
    log::debug!("detaching {}", mount.point.display());
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    let refused = match rustix::mount::unmount(&mount.point, flags) {
        // Not a mount any more.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
        Err(Errno::PERM) => fusermount(&mount.point).err(),
        Err(error) => Some(error.to_string()),
    };
    // Whatever was said: what counts is whether it is gone, and someone else may have done it.
    if !read_table()?.contains(mount) {
        return Ok(());
    }
    let point = mount.point.display();
    let why = refused.unwrap_or_else(|| "the mount is still there".to_owned());
    let message = format!("cannot unmount {point}: {why}; try again as root");
    Err(Failure::new(Exit::StillMounted, message))
}

/// What an ordinary user has in place of umount(2).
fn fusermount(point: &Path) -> Result<(), String> {
    let output = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(point)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run fusermount3 ({error}): install the package fuse3"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(one_line(&String::from_utf8_lossy(&output.stderr)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_of_a_latchfs_mount_is_one() {
        let guard = tempfile::tempdir().unwrap();
        let dir = guard.path().canonicalize().unwrap();
        let line = format!(
            "1 0 0:1 / {}/m rw - fuse.latchfs /x rw,user_id=9\n",
            dir.display()
        );
        let mounts = MountTable::parse(line.as_bytes());
        assert_eq!(
            find(&dir.join("m"), &mounts).unwrap().source,
            Path::new("/x")
        );
        for (path, words) in [
            (dir.join("m/below"), "is inside a latchfs mount"),
            (dir.join("missing"), "is not a latchfs mount: No such file"),
            (dir.clone(), "is not a latchfs mount; to see"),
        ] {
            let failure = find(&path, &mounts).unwrap_err();
            assert_eq!(failure.exit.code(), 7);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }

    /// A daemon in the shape of a process that does nothing.
    fn sleeper() -> (std::process::Child, Daemon) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        (child, Daemon { pid, pidfd })
    }

    fn some_mount() -> Mount {
        let mounts = MountTable::parse(b"1 0 0:1 / /m rw - fuse.latchfs /x rw\n");
        mounts.mounted_at(Path::new("/m")).unwrap().clone()
    }

    #[test]
    fn a_daemon_is_told_to_stop_and_waited_for() {
        let (mut child, daemon) = sleeper();
        assert_eq!(daemon.wait(Duration::ZERO), Ok(false));
        daemon.stop(&some_mount(), Duration::from_secs(20)).unwrap();
        // It is dead, but not reaped: the process still is there, and may be told again.
        daemon.stop(&some_mount(), Duration::ZERO).unwrap();
        child.wait().unwrap();
        daemon.stop(&some_mount(), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_command_line_that_is_not_ours_tells_nothing() {
        let (mut child, daemon) = sleeper();
        assert!(mount_args(child.id()).is_none());
        assert_eq!(daemon.unmount_timeout(), DEFAULT_UNMOUNT_TIMEOUT);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
