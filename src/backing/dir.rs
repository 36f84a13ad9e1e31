//! Name operations in one directory of BACKING.
//!
//! A name is one component: what could lead to another directory (`..`, a slash) is refused here
//! with `EINVAL`, whoever asks. The kernel never sends such a name.

use super::{Errno, Identity, Stat, identity, proc_path};
use crate::sync::Arc;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, RenameFlags, StatxAttributes, StatxFlags,
    Timestamps, Uid, XattrFlags,
};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The extended attribute that is a file's ACL (acl(5)).
pub const ACL_ACCESS: &str = "system.posix_acl_access";
/// The one that is the ACL of what is made in a directory.
pub const ACL_DEFAULT: &str = "system.posix_acl_default";

/// A directory of BACKING, held open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dir(Arc<OwnedFd>);

/// One entry of a directory listing.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The name.
    pub name: OsString,
    /// The inode number as the directory tells it.
    pub ino: u64,
    /// The type as the directory tells it, which may be `Unknown`.
    pub kind: FileType,
}

/// Is it one component of a path, that leads to nothing but an entry of a directory?
///
/// # Errors
/// `EINVAL`.
pub fn check_component(name: &OsStr) -> Result<&OsStr, Errno> {
    let bytes = name.as_bytes();
    match bytes {
        b"" | b"." | b".." => Err(Errno::INVAL),
        _ if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Dir {
    /// Opens the root of BACKING by its path: the only path ever used.
    ///
    /// # Errors
    /// What openat(2) says: `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn open_root(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(Arc::new(rustix::fs::open(
            path,
            flags,
            Mode::empty(),
        )?)))
    }

    /// Opens a directory in this one.
    ///
    /// # Errors
    /// `ENOTDIR` if the name is something else, a symbolic link included.
    pub fn open_dir(&self, name: &OsStr) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(Arc::new(rustix::fs::openat(
            self,
            check_component(name)?,
            flags,
            Mode::empty(),
        )?)))
    }

    /// Stats the directory itself.
    pub fn stat(&self) -> Result<Stat, Errno> {
        rustix::fs::statat(self, "", AtFlags::EMPTY_PATH)
    }

    /// Stats a name in it, without following it.
    pub fn stat_at(&self, name: &OsStr) -> Result<Stat, Errno> {
        rustix::fs::statat(self, check_component(name)?, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The same of the file that is expected to have the name.
    ///
    /// # Errors
    /// `ESTALE` if another has it; those of [`Dir::stat_at`].
    pub fn stat_as(&self, name: &OsStr, expected: Identity) -> Result<Stat, Errno> {
        let stat = self.stat_at(name)?;
        match identity(&stat) == expected {
            true => Ok(stat),
            false => Err(Errno::STALE),
        }
    }

    /// A descriptor that only names the file: for calls that act on an inode, not on content.
    ///
    /// # Errors
    /// `ESTALE` if the name is no longer that file.
    pub fn pin(&self, name: &OsStr, expected: Identity) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self, check_component(name)?, flags, Mode::empty())?;
        if identity(&rustix::fs::fstat(&fd)?) != expected {
            return Err(Errno::STALE);
        }
        Ok(fd)
    }

    /// Opens a regular file in it. Nothing else is ever opened, whatever takes the name meanwhile:
    /// to open a FIFO or a device is to act on it.
    ///
    /// # Errors
    /// `ESTALE` if the name is not, or no longer, the expected file; `EINVAL` if that is no regular
    /// file.
    pub fn open_file(
        &self,
        name: &OsStr,
        flags: OFlags,
        expected: Identity,
    ) -> Result<File, Errno> {
        open_pinned(self.pin(name, expected)?, flags)
    }

    /// Makes a regular file in it.
    ///
    /// # Errors
    /// `EEXIST` if the name is not free, also if it is a symbolic link.
    pub fn create_file(&self, name: &OsStr, access: OFlags, mode: u32) -> Result<File, Errno> {
        let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::LARGEFILE;
        let mode = Mode::from_raw_mode(mode as RawMode & 0o7777);
        Ok(File::from(rustix::fs::openat(
            self,
            check_component(name)?,
            flags,
            mode,
        )?))
    }

    /// Could a version take the place of a file in it, as far as chattr(1) is concerned?
    ///
    /// # Errors
    /// `EPERM` if it is immutable or only to be appended to.
    pub fn check_changeable(&self, name: &OsStr) -> Result<(), Errno> {
        let fixed = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statx(self, name, flags, StatxFlags::empty()) {
            Ok(stat) if stat.stx_attributes.intersects(fixed) => Err(Errno::PERM),
            _ => Ok(()),
        }
    }

    /// May this thread's user, `uid`, replace `file` in it? (unlink(2) on who may)
    ///
    /// # Errors
    /// `EIO` and its like if that can't be told.
    pub fn may_replace(&self, file: &Stat, uid: u32) -> Result<bool, Errno> {
        let own = self.stat()?;
        if own.st_mode & 0o1000 != 0 && uid != file.st_uid && uid != own.st_uid {
            return Ok(false);
        }
        // Not faccessat(2), which asks about the real user.
        // SAFETY: the path is a constant that ends in a NUL byte; the call writes nothing.
        let result = unsafe {
            libc::syscall(
                libc::SYS_faccessat2,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::W_OK | libc::X_OK,
                libc::AT_EACCESS | libc::AT_EMPTY_PATH,
            )
        };
        if result == 0 {
            return Ok(true);
        }
        match super::shadow::errno(std::io::Error::last_os_error()) {
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Ok(false),
            errno => Err(errno),
        }
    }

    /// Everything in it but `.` and `..`.
    pub fn list(&self) -> Result<Vec<Listed>, Errno> {
        let fd = self.readable()?;
        let mut buffer = Vec::with_capacity(64 * 1024);
        let mut entries = Vec::new();
        let mut raw = rustix::fs::RawDir::new(fd, spare(&mut buffer));
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                entries.push(Listed {
                    name: OsString::from_vec(name.to_vec()),
                    ino: entry.ino(),
                    kind: entry.file_type(),
                });
            }
        }
        Ok(entries)
    }

    /// Makes its entries durable.
    pub fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fsync(self.readable()?)
    }

    fn readable(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(self, ".", flags, Mode::empty()) {
            // To go to "." takes the right to search; to list, only that to read.
            Err(Errno::ACCESS) => {
                rustix::fs::open(proc_path(self.0.as_raw_fd()), flags, Mode::empty())
            }
            other => other,
        }
    }

    /// mkdir(2).
    pub fn make_dir(&self, name: &OsStr, mode: u32) -> Result<(), Errno> {
        rustix::fs::mkdirat(
            self,
            check_component(name)?,
            Mode::from_raw_mode(mode as RawMode),
        )
    }

    /// mknod(2); `mode` with the type bits.
    pub fn make_node(&self, name: &OsStr, mode: u32, rdev: u64) -> Result<(), Errno> {
        let mode = mode as RawMode;
        rustix::fs::mknodat(
            self,
            check_component(name)?,
            FileType::from_raw_mode(mode),
            Mode::from_raw_mode(mode),
            rdev,
        )
    }

    /// symlink(2).
    pub fn make_symlink(&self, name: &OsStr, target: &Path) -> Result<(), Errno> {
        rustix::fs::symlinkat(target, self, check_component(name)?)
    }

    /// readlink(2).
    pub fn read_link(&self, name: &OsStr) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(self, check_component(name)?, Vec::new())?.into_bytes())
    }

    /// unlink(2).
    pub fn unlink(&self, name: &OsStr) -> Result<(), Errno> {
        rustix::fs::unlinkat(self, check_component(name)?, AtFlags::empty())
    }

    /// rmdir(2).
    pub fn remove_dir(&self, name: &OsStr) -> Result<(), Errno> {
        rustix::fs::unlinkat(self, check_component(name)?, AtFlags::REMOVEDIR)
    }

    /// link(2): gives the file a second name in `to`.
    pub fn link(&self, name: &OsStr, to: &Dir, new_name: &OsStr) -> Result<(), Errno> {
        let (name, new_name) = (check_component(name)?, check_component(new_name)?);
        rustix::fs::linkat(self, name, to, new_name, AtFlags::empty())
    }

    /// renameat2(2).
    pub fn rename(
        &self,
        name: &OsStr,
        to: &Dir,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let (name, new_name) = (check_component(name)?, check_component(new_name)?);
        if flags.is_empty() {
            rustix::fs::renameat(self, name, to, new_name)
        } else {
            rustix::fs::renameat_with(self, name, to, new_name, flags)
        }
    }
}

/// Opens what a descriptor names, for reading or writing, if it is a regular file.
///
/// # Errors
/// `EINVAL` if it is not; `EACCES`.
pub fn open_pinned(pinned: impl AsFd, flags: OFlags) -> Result<File, Errno> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&pinned)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    open_again(pinned, flags)
}

/// utimensat(2) of a file held open (also by `O_PATH`).
pub fn set_times(fd: impl AsFd, times: &Timestamps) -> Result<(), Errno> {
    // By its path: AT_EMPTY_PATH came to this call only with Linux 5.8. It follows the link in
    // /proc and no other.
    let path = proc_path(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    rustix::fs::utimensat(rustix::fs::CWD, path, times, AtFlags::empty())
}

/// Opens a file that is held open once more, with other access.
pub fn open_again(fd: impl AsFd, access: OFlags) -> Result<File, Errno> {
    let path = proc_path(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    let flags = access | OFlags::CLOEXEC | OFlags::LARGEFILE;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// chmod(2) of a file held open (also by `O_PATH`).
pub fn chmod(fd: impl AsFd, mode: u32) -> Result<(), Errno> {
    let path = proc_path(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    rustix::fs::chmod(path, Mode::from_raw_mode(mode as RawMode & 0o7777))
}

/// chown(2) of a file held open (also by `O_PATH`).
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)
}

/// getxattr(2) of a file held open (also by `O_PATH`): the whole value.
///
/// # Errors
/// `ENODATA` if it has none, `ENOTSUP` if the file system has no such attributes.
pub fn xattr(fd: impl AsFd, name: &OsStr) -> Result<Vec<u8>, Errno> {
    let path = proc_path(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    grow(|buffer| rustix::fs::getxattr(&path, name, buffer))
}

/// listxattr(2) of a file held open (also by `O_PATH`): names, each ended by a NUL byte.
pub fn xattr_names(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    let path = proc_path(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    grow(|buffer| rustix::fs::listxattr(&path, buffer))
}

/// setxattr(2) of a file held open (also by `O_PATH`).
pub fn set_xattr(fd: impl AsFd, name: &OsStr, value: &[u8], flags: u32) -> Result<(), Errno> {
    let path = proc_path(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    rustix::fs::setxattr(&path, name, value, XattrFlags::from_bits_retain(flags))
}

/// removexattr(2) of a file held open (also by `O_PATH`).
pub fn remove_xattr(fd: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let path = proc_path(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
    rustix::fs::removexattr(&path, name)
}

/// Splits what [`xattr_names`] returned.
pub fn split_names(list: &[u8]) -> impl Iterator<Item = &OsStr> {
    list.split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(OsStr::from_bytes)
}

/// Calls an xattr function with a buffer that is large enough.
fn grow(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    // The kernel's own limit of a value, and of a list, is 64 KiB (xattr(7)).
    for size in [256, 4096, 65536] {
        let mut buffer = vec![0; size];
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => continue,
            Err(e) => return Err(e),
        }
    }
    Err(Errno::TOOBIG)
}

fn spare(buffer: &mut Vec<u8>) -> &mut [MaybeUninit<u8>] {
    buffer.spare_capacity_mut()
}
