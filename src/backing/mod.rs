//! Every system call on BACKING, relative to directory descriptors.
//!
//! A [`Dir`] is a directory of the tree held open by `O_PATH`; what lies in it is named by one
//! component and never followed if it is a symbolic link. There is no call that takes a path of
//! several components, so nothing a program does to the tree meanwhile (renaming a directory
//! away, putting a symbolic link in its place) can lead a call out of it.
//!
//! - [`dir`]: the name operations. [`credentials`]: for whom a call is made.
//! - [`shadow`]: shadow files, their copies and their publication under a name.
//! - [`store`]: latchfs's own directory, `.latchfs`, and who serves it.
//! - [`kept`]: versions that could not become the file.
//! - [`redo`]: rewriting an inode in place so that a crash in the middle is finished later.
//! - [`recover`]: what the next mount puts right before it serves.

pub mod credentials;
pub mod dir;
pub mod kept;
pub mod recover;
pub mod redo;
pub mod shadow;
pub mod store;

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

/// A `/proc/self/fd` path of an open descriptor, for the calls that have no form for `O_PATH`
/// descriptors (chmod, the xattr family, re-opening).
pub(crate) fn proc_path(fd: impl std::os::fd::AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
