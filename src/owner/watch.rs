//! Finding out how a process ended when it may be long gone: pidfds.

use super::Exit;
#[cfg(doc)]
use super::Processes;
use super::files::{self, fields, number};
use super::status::{self, State};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A hold on a process that tells how it ended, also when it is reaped and its number is in use
/// again.
///
/// It costs one file descriptor.
pub struct ProcessWatch(Source);

enum Source {
    Pidfd { pidfd: OwnedFd, process: u32 },
    Scripted(Box<dyn Fn() -> Option<Exit> + Send + Sync>),
}

impl ProcessWatch {
    /// None if there is no such process, or no descriptor left.
    pub(super) fn new(process: u32) -> Option<Self> {
        let pidfd = open(process)?;
        Some(Self(Source::Pidfd { pidfd, process }))
    }

    /// A watch that gives the answers of `exit`, for a [`Processes`] made up for a test.
    pub fn scripted(exit: impl Fn() -> Option<Exit> + Send + Sync + 'static) -> Self {
        Self(Source::Scripted(Box::new(exit)))
    }

    /// How the process ended. None if it has not: one of its threads at least is alive.
    ///
    /// Before the process is reaped this is what [`Processes::exit`] says, afterwards what the
    /// kernel keeps with the pidfd (since Linux 6.15; [`Exit::Unknown`] before).
    pub fn exit(&self) -> Option<Exit> {
        let (pidfd, process) = match &self.0 {
            Source::Pidfd { pidfd, process } => (pidfd.as_fd(), *process),
            Source::Scripted(exit) => return exit(),
        };
        if let Some(exit) = kept_exit(pidfd) {
            return Some(exit);
        }
        let state = status::state_patiently(process);
        // `/proc` was asked by number. The answer is about the process in hand only if that was
        // not reaped before.
        if is_reaped(pidfd) {
            return Some(kept_exit(pidfd).unwrap_or(Exit::Unknown));
        }
        match state {
            State::Alive => None,
            State::Ending(exit) => Some(exit),
            State::Gone => Some(Exit::Unknown),
        }
    }
}

impl fmt::Debug for ProcessWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Pidfd { process, .. } => write!(f, "ProcessWatch({process})"),
            Source::Scripted(_) => f.write_str("ProcessWatch(scripted)"),
        }
    }
}

/// What the kernel keeps of a process that is reaped. None if it is not reaped, or the kernel
/// keeps nothing.
fn kept_exit(pidfd: BorrowedFd<'_>) -> Option<Exit> {
    match info(pidfd, PIDFD_INFO_EXIT) {
        Ok(info) if info.mask & PIDFD_INFO_EXIT != 0 => {
            Some(Exit::from_wait_status(info.exit_code))
        }
        _ => None,
    }
}

/// Whether the process of a pidfd is reaped. Its fdinfo says so on every kernel that has pidfds:
/// `Pid:` is -1 then.
fn is_reaped(pidfd: BorrowedFd<'_>) -> bool {
    let Ok(text) = files::slurp(format_args!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())) else {
        return false;
    };
    fields(&text).any(|(key, value)| key == b"Pid" && number::<u32>(value, 10).is_none())
}

fn open(process: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(process).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// The first published form of `struct pidfd_info` in `include/uapi/linux/pidfd.h` (Linux 6.13;
/// `exit_code` since 6.15, a spare field before). Later ones are longer; the kernel goes by the
/// length in the ioctl's number.
#[repr(C)]
#[derive(Default, Debug)]
struct PidfdInfo {
    /// In: what is wanted. Out: what is there.
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    /// In the form of `wait(2)`.
    exit_code: i32,
}

/// `PIDFD_INFO_SIZE_VER0`.
const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// Ask for `exit_code`. It is there once the process is reaped.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: Opcode = opcode::read_write::<PidfdInfo>(0xff, 11);

/// Asks the kernel about the process of a pidfd. Fails with ENOTTY on a kernel that knows no such
/// question, and with ESRCH for a process that is reaped and of which nothing was kept.
fn info(pidfd: BorrowedFd<'_>, mask: u64) -> Result<PidfdInfo, Errno> {
    let mut info = PidfdInfo {
        mask,
        ..PidfdInfo::default()
    };
    // SAFETY: PIDFD_GET_INFO reads and writes one `struct pidfd_info` of the length that is part
    // of its number, and `PidfdInfo` has that layout. Any bits are valid in its integers.
    unsafe { ioctl(pidfd, Updater::<PIDFD_GET_INFO, _>::new(&mut info))? };
    Ok(info)
}
