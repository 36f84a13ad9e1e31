//! latchfs's own directory in BACKING, `.latchfs` (mode 0700), which the mount never shows.
//!
//! ```text
//! .latchfs/lock    held (flock) by the daemon that serves BACKING; inside are its pid and, once it
//!                  is mounted, the device number of the mount (as in /proc/self/mountinfo)
//! .latchfs/tmp/    names that exist for the moment of a commit
//! .latchfs/redo/   versions on their way into an inode that must stay (see `redo`)
//! .latchfs/append/ logs of the records that are being appended to files (see `append_log`)
//! .latchfs/kept/   versions that were written but could not become the file, see `kept`
//! ```

use super::append_log::removals::Removals;
use super::kept::Keeper;
use super::order::Order;
use super::shadow::{Temporaries, errno};
use super::unfinished::Unfinished;
use super::{Dir, Errno, Stat};
use crate::show::shell_word;
use crate::sync::Arc;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The name of the directory, hidden at the root of the mount.
pub const DIRECTORY: &str = ".latchfs";
const LOCK: &str = "lock";
/// Its directories.
pub(super) const TMP: &str = "tmp";
pub(super) const REDO: &str = "redo";
pub(super) const APPEND: &str = "append";
pub(super) const KEPT: &str = "kept";

/// The open `.latchfs` of a BACKING that this process serves.
#[derive(Debug)]
pub struct Store {
    tmp: Dir,
    redo: Dir,
    append: Dir,
    append_removals: Arc<Removals>,
    keeper: Keeper,
    unfinished: Unfinished,
    order: Order,
    /// Holds the lock for as long as the store lives.
    lock: File,
    /// Tells the names of this daemon's life from those of an earlier one.
    epoch: u128,
    next: AtomicU64,
    /// Names in `tmp` that are to be removed, or could not be.
    left: Mutex<Vec<OsString>>,
    /// BACKING, as people know it.
    shown: PathBuf,
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon serves this BACKING.
    #[error("it is already served by another latchfs (pid {0}); unmount that one first")]
    Served(u32),
    /// Its `.latchfs` belongs to somebody else, who could tell this daemon what to overwrite.
    #[error(
        "its .latchfs belongs to user {0}; mount as that user, or give it to this one: chown -R USER .latchfs"
    )]
    Foreign(u32),
    /// Others may write in its `.latchfs`, and may have put there what this daemon would believe.
    #[error(
        "others may write in its .latchfs (mode {0:o}); see what is in there, then chmod -R go-w .latchfs"
    )]
    Writable(u32),
    /// A system call failed.
    #[error("{0}: {1}")]
    Io(&'static str, Errno),
}

impl Store {
    /// Opens the store of BACKING, making it if there is none, and takes the lock.
    ///
    /// # Errors
    /// [`OpenError::Served`] if another process holds the lock, [`OpenError::Foreign`] if it is
    /// another user's, [`OpenError::Writable`] if others can write in it.
    pub fn open(root: &Dir) -> Result<Self, OpenError> {
        let io = |what| move |e| OpenError::Io(what, e);
        let base = ensure_dir(root, DIRECTORY).map_err(io("can't make .latchfs"))?;
        check_own(&base)?;
        let lock = lock(&base)?;
        let sub = |name| {
            let dir = ensure_dir(&base, name).map_err(io("can't make a directory in .latchfs"))?;
            check_own(&dir).map(|()| dir)
        };
        let tmp = sub(TMP)?;
        Ok(Self {
            keeper: Keeper::new(sub(KEPT)?, tmp.clone()),
            tmp,
            redo: sub(REDO)?,
            append: sub(APPEND)?,
            unfinished: Unfinished::default(),
            order: Order::default(),
            append_removals: Arc::default(),
            lock,
            epoch: since_epoch().as_nanos(),
            next: AtomicU64::new(0),
            left: Mutex::new(Vec::new()),
            shown: PathBuf::from("BACKING"),
        })
    }

    /// Would [`Store::open`] refuse the store, were it not for its lock? Changes nothing; where there
    /// is no store, it would not.
    ///
    /// # Errors
    /// As of [`Store::open`].
    pub fn check(root: &Dir) -> Result<(), OpenError> {
        let io = |e| OpenError::Io("can't look at .latchfs", e);
        match root.open_dir(OsStr::new(DIRECTORY)) {
            Ok(base) => judge(&base.stat().map_err(io)?),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io(errno)),
        }
    }

    /// Tells other commands which mount this process serves: its device number.
    ///
    /// # Errors
    /// `ENOSPC`, `EIO`.
    pub fn announce(&self, device: u64) -> Result<(), Errno> {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        writeln!(&self.lock, "{major}:{minor}").map_err(errno)
    }

    /// Where names live for the moment of a commit.
    pub fn tmp(&self) -> &Dir {
        &self.tmp
    }

    /// Where redo records live.
    pub fn redo(&self) -> &Dir {
        &self.redo
    }

    /// Where the logs of files that are being appended to live.
    pub fn append(&self) -> &Dir {
        &self.append
    }

    /// How content gets to the disk before its name.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// What is owed to files whose inodes were to be rewritten.
    pub fn unfinished(&self) -> &Unfinished {
        &self.unfinished
    }

    /// Which of them may come back after a power cut.
    pub(super) fn append_removals(&self) -> &Arc<Removals> {
        &self.append_removals
    }

    /// Makes sure that none of them does.
    ///
    /// # Errors
    /// `EIO`.
    pub fn settle_logs(&self) -> Result<(), Errno> {
        match self.append_removals.is_empty() {
            true => Ok(()),
            false => self.append_removals.settle(|| self.append.sync()),
        }
    }

    /// Keeps versions that can't become the file.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Says by which path people know BACKING.
    pub fn show_as(&mut self, path: &Path) {
        self.shown = path.to_owned();
    }

    /// The command by which a kept version becomes the file after all.
    pub fn command_to_restore(&self, id: &str) -> String {
        format!("latchfs kept restore {} {id}", shell_word(&self.shown))
    }

    /// Has a name of `tmp` removed by the next [`Store::discard_what_is_left`]: to free a large file takes long.
    pub fn discard_later(&self, name: OsString) {
        self.left.lock().push(name);
    }

    /// Removes what was to be removed later. Where that fails, it is tried again the next time, at the end of
    /// the mount, and by the next mount.
    pub fn discard_what_is_left(&self) {
        let mut left = std::mem::take(&mut *self.left.lock());
        left.retain(|name| !matches!(self.tmp.unlink(name), Ok(()) | Err(Errno::NOENT)));
        if !left.is_empty() {
            self.left.lock().append(&mut left);
        }
    }

    /// A name never used before in this store.
    pub fn unique_name(&self) -> OsString {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        OsString::from(format!("{:x}.{n:x}", self.epoch))
    }
}

/// What tells which of two names made by [`Store::unique_name`] is the older one.
pub(super) fn age_of(name: &OsStr) -> (u128, u64) {
    let fields = name.to_str().and_then(|name| name.split_once('.'));
    let age = fields.and_then(|(epoch, n)| {
        let epoch = u128::from_str_radix(epoch, 16).ok()?;
        Some((epoch, u64::from_str_radix(n, 16).ok()?))
    });
    age.unwrap_or_default()
}

impl Temporaries for Store {
    fn temporary_dir(&self) -> &Dir {
        &self.tmp
    }

    fn temporary_name(&self) -> OsString {
        self.unique_name()
    }
}

/// Seconds and nanoseconds since the epoch; zero if the clock is before it.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Writes a small file whole under a name that must be free; where that fails, nothing is left.
pub(crate) fn write_file(
    dir: &Dir,
    name: &OsStr,
    content: &[u8],
    durable: bool,
) -> Result<(), Errno> {
    let mut file = dir.create_file(name, OFlags::WRONLY, 0o600)?;
    let written = file.write_all(content).map_err(errno);
    let synced = written.and_then(|()| match durable {
        true => rustix::fs::fsync(&file),
        false => Ok(()),
    });
    synced.inspect_err(|_| {
        let _ = dir.unlink(name);
    })
}

/// Reads a small file of our own.
pub(crate) fn read_file(dir: &Dir, name: &OsStr) -> Result<Vec<u8>, Errno> {
    let mut file = open_own(dir, name)?;
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(errno)?;
    Ok(content)
}

/// Opens a regular file of our own to read it.
///
/// # Errors
/// `EINVAL` if it is something else.
pub(crate) fn open_own(dir: &Dir, name: &OsStr) -> Result<File, Errno> {
    let expected = super::identity(&dir.stat_at(name)?);
    dir.open_file(name, OFlags::RDONLY, expected)
}

fn ensure_dir(parent: &Dir, name: &str) -> Result<Dir, Errno> {
    match parent.make_dir(OsStr::new(name), 0o700) {
        Ok(()) | Err(Errno::EXIST) => parent.open_dir(OsStr::new(name)),
        Err(e) => Err(e),
    }
}

/// Is a directory of the store ours alone? What others may read is closed to them.
fn check_own(dir: &Dir) -> Result<(), OpenError> {
    let io = |e| OpenError::Io("can't look at .latchfs", e);
    let stat = dir.stat().map_err(io)?;
    judge(&stat)?;
    if stat.st_mode & 0o055 != 0 {
        super::dir::chmod(dir, 0o700).map_err(io)?;
    }
    Ok(())
}

fn judge(stat: &Stat) -> Result<(), OpenError> {
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(OpenError::Foreign(stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(OpenError::Writable(stat.st_mode & 0o7777));
    }
    Ok(())
}

/// How often, and how far apart, a lock is tried: a command that asks whether it is held has it for
/// a moment.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

fn lock(base: &Dir) -> Result<File, OpenError> {
    let failed = |e| OpenError::Io("can't open .latchfs/lock", e);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(base, LOCK, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
    let mut file = File::from(fd);
    let mut tries = LOCK_TRIES;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if tries > 0 => {
                tries -= 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(Errno::WOULDBLOCK) => {
                let pid = read_lock(&mut file).map_or(0, |serving| serving.pid);
                return Err(OpenError::Served(pid));
            }
            Err(e) => return Err(failed(e)),
        }
    }
    rustix::fs::ftruncate(&file, 0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(|e| failed(errno(e)))?;
    Ok(file)
}

/// Who serves a BACKING now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The daemon's process.
    pub pid: u32,
    /// The device number of its mount as `/proc/self/mountinfo` writes it (`0:52`); `None` before
    /// it is mounted.
    pub device: Option<String>,
    /// Whose `.latchfs` it is that says so.
    pub owner: u32,
}

/// More is in no lock, in bytes.
const LONGEST_LOCK: u64 = 256;

fn read_lock(lock: &mut File) -> Option<Serving> {
    let mut text = String::new();
    lock.take(LONGEST_LOCK).read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    Some(Serving {
        pid: lines.next()?.trim().parse().ok()?,
        device: lines.next().map(|line| line.trim().to_owned()),
        owner: lock.metadata().ok()?.uid(),
    })
}

/// The process that serves the BACKING of which this is the root, if one does (it holds the lock
/// of the store). A read-only mount has no lock, and is not seen here; nor is another user's. Root sees
/// what every user says there: whether it is true is for the caller to find out.
pub fn serving(root: &Dir) -> Option<Serving> {
    let base = root.open_dir(OsStr::new(DIRECTORY)).ok()?;
    // It may be anybody's `.latchfs`, and what is in it anything.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&base, LOCK, flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => read_lock(&mut file),
        _ => None,
    }
}
