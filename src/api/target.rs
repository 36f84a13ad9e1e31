//! Which directory entry a path means.

use crate::backing::{Dir, Errno, dir, identity};
use rustix::fs::{FileType, Mode, OFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: u32 = 40;

/// A name in a directory held open, where a path led when it was followed.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) dir: Dir,
    pub(super) name: OsString,
}

impl Target {
    /// Follows a path, also through symbolic links whose target is not there yet.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EACCES`: the directory can't be reached; `EISDIR`: the path ends in
    /// no name; `ELOOP`.
    pub(super) fn of(path: &Path) -> Result<Self, Errno> {
        if path.as_os_str().is_empty() {
            return Err(Errno::NOENT);
        }
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let name = dir::check_component(path.file_name().ok_or(Errno::ISDIR)?)?.to_owned();
            let parent = match path.parent() {
                Some(parent) if parent != OsStr::new("") => parent,
                _ => Path::new("."),
            };
            let dir = Dir::open_root(parent)?;
            match dir.read_link(&name) {
                Ok(link) => path = parent.join(OsString::from_vec(link)),
                // No symbolic link, or nothing yet.
                Err(Errno::INVAL | Errno::NOENT) => return Ok(Self { dir, name }),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::LOOP)
    }

    /// Opens what is there, and never waits: on a latchfs mount for no writer, and not for the other
    /// end of a pipe.
    ///
    /// # Errors
    /// `EAGAIN` where that would have to wait; `ELOOP` if a symbolic link has taken the name;
    /// `EINVAL` if it is no regular file; `ENOENT`, `EACCES`.
    pub(super) fn open(&self, access: OFlags) -> Result<File, Errno> {
        let flags = access
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC
            | OFlags::LARGEFILE;
        let mode = Mode::from_raw_mode(0o666);
        let file = File::from(rustix::fs::openat(&self.dir, &self.name, flags, mode)?);
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(file),
            FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// Is this file what is there?
    pub(super) fn is(&self, file: &File) -> Result<bool, Errno> {
        match self.dir.stat_at(&self.name) {
            Ok(stat) => Ok(identity(&stat) == identity(&rustix::fs::fstat(file)?)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}
