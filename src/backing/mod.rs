//! Every system call on BACKING, relative to directory descriptors.
//!
//! A [`Dir`] is a directory of the tree held open by `O_PATH`; what lies in it is named by one
//! component and never followed if it is a symbolic link. There is no call that takes a path of
//! several components, so nothing a program does to the tree meanwhile (renaming a directory
//! away, putting a symbolic link in its place) can lead a call out of it.
//!
//! - [`dir`]: the name operations. [`credentials`]: for whom a call is made.
//! - [`descriptors`]: how many are left.
//! - [`shadow`]: shadow files, their copies and their publication under a name.
//! - [`store`]: latchfs's own directory, `.latchfs`, and who serves it.
//! - [`order`]: content that is on the disk before a name leads to it.
//! - [`exchange`]: taking the place of a file only if it is still the one that was expected.
//! - [`kept`]: versions that could not become the file.
//! - [`redo`]: rewriting an inode in place so that a crash in the middle is finished later.
//!   [`unfinished`]: such as could not be ended.
//! - [`append_log`]: where the records end that are being appended to a file.
//! - [`recover`]: what the next mount puts right before it serves.

pub mod append_log;
pub mod credentials;
pub mod descriptors;
pub mod dir;
pub mod exchange;
pub mod kept;
pub mod order;
pub mod recover;
pub mod redo;
pub mod shadow;
pub mod store;
pub mod unfinished;

pub use credentials::Credentials;
pub use dir::Dir;
pub use rustix::io::Errno;

/// Which file of the machine: device and inode number of BACKING's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// What `stat` tells about a file of BACKING.
pub type Stat = rustix::fs::Stat;

/// The identity in a stat result.
pub fn identity(stat: &Stat) -> Identity {
    Identity {
        dev: stat.st_dev,
        ino: stat.st_ino,
    }
}

/// What tells one content of a file from another without reading it: its size and its time of
/// modification, as rsync(1) and git(1) have it.
///
/// Who changes a file and sets its time back to what it was, without a change of size, is not seen.
/// Neither are two changes within one tick of the kernel's clock (1 to 10 ms), where the file system
/// has no finer times for files that are looked at in between (Linux before 6.13, network file
/// systems).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// `st_size`.
    pub size: u64,
    /// `st_mtime` and its nanoseconds.
    pub modified: (i64, u32),
}

/// The stamp in a stat result.
pub fn stamp(stat: &Stat) -> Stamp {
    Stamp {
        size: stat.st_size as u64,
        modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
    }
}

/// Which file of BACKING was seen at a name, and with what content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which file.
    pub identity: Identity,
    /// What tells its content from others.
    pub stamp: Stamp,
}

impl Seen {
    /// What a stat result tells.
    pub fn of(stat: &Stat) -> Self {
        Self {
            identity: identity(stat),
            stamp: stamp(stat),
        }
    }
}

/// A `/proc/self/fd` path of an open descriptor, for the calls that have no form for `O_PATH`
/// descriptors (chmod, the xattr family, re-opening).
pub(crate) fn proc_path(fd: impl std::os::fd::AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
