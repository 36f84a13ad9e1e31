//! Shadow files: where a transaction's bytes live until they are published under a name.

use super::dir::ACL_ACCESS;
use super::{Credentials, Dir, Errno, Stat, dir, proc_path};
use crate::sync::Arc;
use crate::sync::Mutex;
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RawMode, RenameFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

/// The extended attribute that holds a program's capabilities (capabilities(7)).
const CAPABILITIES: &str = "security.capability";

/// A shadow file. It has no name where the file system has `O_TMPFILE` (so that a crash leaves
/// nothing behind), else a temporary one (in `.latchfs/tmp`, where recovery removes it).
#[derive(Debug)]
pub struct Shadow {
    /// Dropped before the file is closed, since a lock on the file may be what makes a temporary
    /// name its own.
    pub(super) place: Mutex<Place>,
    file: Arc<File>,
}

/// Where shadows have a name while they need one: on the file system of what they are to replace.
pub trait Temporaries {
    /// The directory.
    fn temporary_dir(&self) -> &Dir;
    /// The name of the next shadow.
    fn temporary_name(&self) -> OsString;
}

/// Where a shadow can be found by name.
#[derive(Debug)]
pub(super) enum Place {
    /// Nowhere: linkat(2) can give it a name.
    Nowhere,
    /// Under a temporary name.
    Temporary(NamedTemp),
    /// It has been published, or lost, and is not ours to link or rename any more.
    Elsewhere,
}

#[derive(Debug)]
pub(super) struct NamedTemp {
    tmp: Dir,
    name: OsString,
    /// It is not called so any more.
    gone: bool,
}

impl NamedTemp {
    pub(super) fn new(tmp: &Dir, name: &OsStr) -> Self {
        let (tmp, name) = (tmp.clone(), name.to_owned());
        let gone = false;
        Self { tmp, name, gone }
    }
}

impl Drop for NamedTemp {
    fn drop(&mut self) {
        if !self.gone {
            // Recovery sees to the rest.
            let _ = self.tmp.unlink(&self.name);
        }
    }
}

impl Place {
    /// The temporary name, if there is one, is another file's now, or nobody's.
    pub(super) fn leave(&mut self) {
        if let Self::Temporary(temp) = self {
            temp.gone = true;
        }
        *self = Self::Elsewhere;
    }
}

impl Shadow {
    /// Makes an empty shadow for a file of `dir`, with the default ACL and group that a file
    /// created there by open(2) would get.
    ///
    /// # Errors
    /// `ENOSPC`, `EDQUOT`, `EROFS`, ... as creating a file there would give.
    pub fn create(dir: &Dir, temps: &impl Temporaries, mode: u32) -> Result<Self, Errno> {
        // EISDIR is what kernels before O_TMPFILE say, see open(2).
        Self::create_unless(dir, temps, mode, &[Errno::OPNOTSUPP, Errno::ISDIR])
    }

    /// Makes an empty shadow for a version of a file that is in `dir`, which the user, unlike the
    /// file, perhaps may not write.
    ///
    /// # Errors
    /// `ENOSPC`, `EDQUOT`, `EROFS`.
    pub fn create_for(dir: &Dir, temps: &impl Temporaries, mode: u32) -> Result<Self, Errno> {
        let closed = [Errno::OPNOTSUPP, Errno::ISDIR, Errno::ACCESS, Errno::PERM];
        Self::create_unless(dir, temps, mode, &closed)
    }

    /// With a temporary name, if the directory says one of `closed`.
    fn create_unless(
        dir: &Dir,
        temps: &impl Temporaries,
        mode: u32,
        closed: &[Errno],
    ) -> Result<Self, Errno> {
        let mode = Mode::from_raw_mode(mode as RawMode & 0o7777);
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC | OFlags::LARGEFILE;
        match rustix::fs::openat(dir, ".", flags, mode) {
            Ok(fd) => Ok(Self {
                file: Arc::new(File::from(fd)),
                place: Mutex::new(Place::Nowhere),
            }),
            Err(errno) if closed.contains(&errno) => {
                let (tmp, name) = (temps.temporary_dir(), temps.temporary_name());
                let flags = OFlags::RDWR
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::CLOEXEC
                    | OFlags::LARGEFILE;
                let fd = rustix::fs::openat(tmp, &name, flags, mode)?;
                let stat = dir.stat()?;
                if stat.st_mode & 0o2000 != 0 {
                    rustix::fs::fchown(&fd, None, Some(Gid::from_raw(stat.st_gid)))?;
                }
                Ok(Self {
                    file: Arc::new(File::from(fd)),
                    place: Mutex::new(Place::Temporary(NamedTemp::new(tmp, &name))),
                })
            }
            Err(e) => Err(e),
        }
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Gives the content the name `name` in `dir`, which must be free.
    ///
    /// # Errors
    /// `EEXIST` if it is not; `ENOENT` if the content has been published already.
    pub fn link(&self, dir: &Dir, name: &OsStr) -> Result<(), Errno> {
        self.link_from(&mut self.place.lock(), dir, name)
    }

    fn link_from(&self, place: &mut Place, dir: &Dir, name: &OsStr) -> Result<(), Errno> {
        match place {
            // Not linkat: the temporary name must not make the published file look hard-linked.
            Place::Temporary(temp) => {
                temp.tmp
                    .rename(&temp.name, dir, name, RenameFlags::NOREPLACE)?;
                place.leave();
                Ok(())
            }
            Place::Nowhere => rustix::fs::linkat(
                rustix::fs::CWD,
                proc_path(self.file.as_raw_fd()),
                dir,
                dir::check_component(name)?,
                AtFlags::SYMLINK_FOLLOW,
            ),
            Place::Elsewhere => Err(Errno::NOENT),
        }
    }

    /// Gives it the temporary name `name` in `tmp`.
    pub(super) fn name_in(&self, tmp: &Dir, name: &OsStr) -> Result<(), Errno> {
        let mut place = self.place.lock();
        self.link_from(&mut place, tmp, name)?;
        *place = Place::Temporary(NamedTemp::new(tmp, name));
        Ok(())
    }

    /// Makes the content the file `name` of `dir`, in one step for everyone who looks.
    ///
    /// # Errors
    /// `EEXIST` if its temporary name is taken; `ENOENT` if the content has been published already.
    pub fn replace(&self, dir: &Dir, name: &OsStr, temps: &impl Temporaries) -> Result<(), Errno> {
        if matches!(*self.place.lock(), Place::Nowhere) {
            // linkat cannot replace, so the last step is a rename from a name of our own. If that
            // fails, the name stays for another try: an unlinked file can't be linked again.
            self.name_in(temps.temporary_dir(), &temps.temporary_name())?;
        }
        let mut place = self.place.lock();
        let Place::Temporary(temp) = &*place else {
            return Err(Errno::NOENT);
        };
        temp.tmp
            .rename(&temp.name, dir, name, RenameFlags::empty())?;
        place.leave();
        Ok(())
    }

    /// Has it a temporary name?
    pub fn is_named(&self) -> bool {
        matches!(*self.place.lock(), Place::Temporary(_))
    }

    /// Its temporary name is another file's by now: it is left alone from here on.
    pub fn disown_name(&self) {
        self.place.lock().leave();
    }
}

/// Makes a directory durable; one that may be changed but not read, by way of a file on the same
/// file system.
///
/// # Errors
/// `EIO`: what was done in it may be lost by a power cut.
pub fn sync_dir(dir: &Dir, file: impl AsFd) -> Result<(), Errno> {
    match dir.sync() {
        Err(Errno::ACCESS) => rustix::fs::syncfs(file),
        other => other,
    }
}

/// Does `work`, which makes a new version of a file in `dir`: as after a write into the file, the
/// directory's time of modification stays what it was. The caller keeps others from changing the
/// directory meanwhile.
///
/// # Errors
/// Those of `work`.
pub fn with_time_of<T>(dir: &Dir, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let before = dir.stat()?;
    let done = work()?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: before.st_mtime,
            tv_nsec: before.st_mtime_nsec as _,
        },
    };
    // Only the directory's owner may; to anyone else it looks like a rename, which it is.
    let _ = dir::set_times(dir, &times);
    Ok(done)
}

/// Makes `to`, an empty file, a copy of the first `length` bytes of `from`: by reflink where the
/// file system can, else in the kernel, keeping holes.
///
/// # Errors
/// `ENOSPC`, `EDQUOT`, `EIO`: `to` is then to be thrown away.
pub fn clone_content(from: &File, to: &File, length: u64) -> Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    let whole = rustix::fs::fstat(from)?.st_size as u64;
    if whole < length || rustix::fs::ioctl_ficlone(to, from).is_err() {
        copy_data(from, to, length)?;
    } else if rustix::fs::fstat(to)?.st_size as u64 == length {
        return Ok(());
    }
    // What was cloned may be longer, or have grown meanwhile.
    rustix::fs::ftruncate(to, length)
}

/// Appends a range of one file to another.
///
/// # Errors
/// `ENOSPC`, `EDQUOT`, `EIO`: some of it may be there.
pub fn append_range(from: &File, range: Range<u64>, to: &File) -> Result<(), Errno> {
    use std::os::unix::fs::FileExt;
    let end = rustix::fs::fstat(to)?.st_size as u64;
    let mut buffer = vec![0; (range.end - range.start).min(1 << 20) as usize];
    let mut done = 0;
    while range.start + done < range.end {
        let most = (range.end - range.start - done).min(buffer.len() as u64) as usize;
        let read = from.read_at(&mut buffer[..most], range.start + done);
        let read = read.map_err(errno)?;
        if read == 0 {
            return Err(Errno::IO);
        }
        to.write_all_at(&buffer[..read], end + done)
            .map_err(errno)?;
        done += read as u64;
    }
    Ok(())
}

/// Copies the data of the first `length` bytes, skipping holes.
fn copy_data(from: &File, to: &File, length: u64) -> Result<(), Errno> {
    for Range { start, end } in data_ranges(from, length)? {
        copy_range(from, to, start, end)?;
    }
    Ok(())
}

/// Where the first `length` bytes of a file have data; the rest are holes.
pub(crate) fn data_ranges(file: &File, length: u64) -> Result<Vec<Range<u64>>, Errno> {
    use rustix::fs::SeekFrom;
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // No holes told: all of it is data.
            Err(Errno::INVAL) => at,
            Err(e) => return Err(e),
        };
        if start >= length {
            break;
        }
        let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(length),
            Err(Errno::INVAL) => length,
            Err(e) => return Err(e),
        };
        ranges.push(start..end);
        at = end.max(start + 1);
    }
    Ok(ranges)
}

/// Copies a range of one file to the same place of another.
///
/// # Errors
/// `ENOSPC`, `EDQUOT`, `EIO`.
pub(crate) fn copy_range(from: &File, to: &File, start: u64, end: u64) -> Result<(), Errno> {
    use std::os::unix::fs::FileExt;
    let mut at = start;
    while at < end {
        let (mut off_in, mut off_out) = (at, at);
        let want = usize::try_from((end - at).min(64 << 20)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), want) {
            Ok(0) => return Ok(()),
            Ok(n) => at += n as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                let mut buffer = vec![0; want.min(1 << 20)];
                let n = from.read_at(&mut buffer, at).map_err(errno)?;
                if n == 0 {
                    return Ok(());
                }
                to.write_all_at(&buffer[..n], at).map_err(errno)?;
                at += n as u64;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes a durable copy of a file, with its attributes and times, under a name that must be free.
///
/// # Errors
/// `EEXIST`; `ENOSPC`, `EDQUOT`, `EIO`: nothing is left of it then.
pub(super) fn copy_to(from: &File, dir: &Dir, name: &OsStr) -> Result<(), Errno> {
    let copy = dir.create_file(name, OFlags::WRONLY, 0o600)?;
    let stat = rustix::fs::fstat(from)?;
    clone_content(from, &copy, stat.st_size as u64)
        .and_then(|()| copy_attributes(from, &stat, &copy))
        .and_then(|()| rustix::fs::futimens(&copy, &times(&stat)))
        .and_then(|()| rustix::fs::fsync(&copy))
        .inspect_err(|_| {
            let _ = dir.unlink(name);
        })
}

/// The times of access and modification in `stat`, to be set.
pub(super) fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime as _,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime as _,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// The errno of an I/O error of the standard library; `EIO` if it has none.
pub fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Gives `to` the owner, the mode and the extended attributes of `from` (W11 of the contract).
///
/// The owner comes first, since chown clears the set-user-id bits. What the daemon may not set
/// (an ordinary user can't give a file away, or write `security.*`) is left as it is, as `cp -a`
/// does.
///
/// # Errors
/// `EIO`, `ENOSPC`: attributes that could be set but for the disk.
pub fn copy_attributes(from: impl AsFd + Copy, stat: &Stat, to: &File) -> Result<(), Errno> {
    copy_attributes_but(from, stat, to, &Own::default())
}

/// What a version has of its own, whatever the file has: set by its writer through its handle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// The mode.
    pub mode: bool,
    /// The owner.
    pub owner: bool,
    /// Extended attributes, by name; also such as were removed.
    pub xattrs: HashSet<OsString>,
}

impl Own {
    fn has(&self, name: &OsStr) -> bool {
        // An ACL is the group's permissions too (acl(5)).
        self.xattrs.contains(name) || (self.mode && name.as_bytes() == ACL_ACCESS.as_bytes())
    }
}

/// The same but for what `to` has of its own.
///
/// # Errors
/// As [`copy_attributes`].
pub fn copy_attributes_but(
    from: impl AsFd + Copy,
    stat: &Stat,
    to: &File,
    own: &Own,
) -> Result<(), Errno> {
    if !own.owner {
        copy_owner(stat, to)?;
    }
    copy_xattrs(from, to, own)?;
    match own.mode {
        true => Ok(()),
        false => copy_mode(stat, to),
    }
}

/// Gives `to` what `from`, whose attributes are `stat`, has of its own.
///
/// # Errors
/// As [`copy_attributes`].
pub fn copy_own(from: &File, stat: &Stat, to: &File, own: &Own) -> Result<(), Errno> {
    if own.owner {
        copy_owner(stat, to)?;
    }
    for name in &own.xattrs {
        let done = match dir::xattr(from, name) {
            Ok(value) => dir::set_xattr(to, name, &value, 0),
            Err(Errno::NODATA) => dir::remove_xattr(to, name),
            Err(errno) => Err(errno),
        };
        match done {
            Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    match own.mode {
        true => copy_mode(stat, to),
        false => Ok(()),
    }
}

fn copy_mode(stat: &Stat, to: &File) -> Result<(), Errno> {
    if rustix::fs::fstat(to)?.st_mode == stat.st_mode {
        return Ok(());
    }
    match rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)) {
        Err(Errno::PERM) => Ok(()),
        other => other,
    }
}

/// Gives `to` the owner in `stat`, as far as allowed.
pub fn copy_owner(stat: &Stat, to: &File) -> Result<(), Errno> {
    let now = rustix::fs::fstat(to)?;
    if (now.st_uid, now.st_gid) == (stat.st_uid, stat.st_gid) {
        return Ok(());
    }
    let uid = Uid::from_raw(stat.st_uid);
    let gid = Gid::from_raw(stat.st_gid);
    match rustix::fs::fchown(to, Some(uid), Some(gid)) {
        // The group alone may be one of our own.
        Err(Errno::PERM) => match rustix::fs::fchown(to, None, Some(gid)) {
            Err(Errno::PERM) | Ok(()) => Ok(()),
            Err(e) => Err(e),
        },
        other => other,
    }
}

fn copy_xattrs(from: impl AsFd + Copy, to: &File, not: &Own) -> Result<(), Errno> {
    let names = match dir::xattr_names(from) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(e) => return Err(e),
    };
    // What the directory's default ACL gave the shadow, the file may not have had.
    if let Ok(own) = dir::xattr_names(to) {
        for name in dir::split_names(&own) {
            if !not.has(name) && !dir::split_names(&names).any(|n| n == name) {
                let _ = dir::remove_xattr(to, name);
            }
        }
    }
    for name in dir::split_names(&names) {
        // Capabilities are those of the content they were given to: any write takes them away.
        if name == CAPABILITIES || not.has(name) {
            continue;
        }
        let value = match dir::xattr(from, name) {
            Ok(value) => value,
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => continue,
            Err(e) => return Err(e),
        };
        match dir::set_xattr(to, name, &value, 0) {
            Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The mode that a write by someone without privileges leaves: without set-user-id, and without
/// set-group-id where it means that (with group execute permission; see inode(7)) or where they are
/// not in the file's group.
pub fn mode_after_write(mode: u32, in_group: bool) -> u32 {
    let without_suid = mode & !0o4000;
    if mode & 0o010 != 0 || !in_group {
        without_suid & !0o2000
    } else {
        without_suid
    }
}

/// Clears set-user-id, set-group-id and capabilities, as a write(2) by `who`, without privileges,
/// does on a local file system.
pub fn drop_privileges(file: &File, who: &Credentials) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(file)?;
    let mode = stat.st_mode;
    let after = mode_after_write(mode, who.is_in(stat.st_gid));
    if after != mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode(after & 0o7777))?;
    }
    match dir::remove_xattr(file, OsStr::new(CAPABILITIES)) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        Err(e) => Err(e),
    }
}
