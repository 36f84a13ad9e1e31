//! latchfs's own directory in BACKING, `.latchfs` (mode 0700), which the mount never shows.
//!
//! ```text
//! .latchfs/lock    held (flock) by the daemon that serves BACKING; its pid is inside
//! .latchfs/tmp/    names that exist for the moment of a commit
//! .latchfs/redo/   versions on their way into an inode that must stay (see `redo`)
//! .latchfs/kept/   versions that were written but could not become the file, see [`Store::keep`]
//! ```

use super::shadow::{Shadow, errno};
use super::{Dir, Errno};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The name of the directory, hidden at the root of the mount.
pub const DIRECTORY: &str = ".latchfs";
const LOCK: &str = "lock";
/// The most bytes of kept versions: beyond it the oldest are removed, but for the newest one.
const KEPT_MAX_BYTES: u64 = 1 << 30;

/// The open `.latchfs` of a BACKING that this process serves.
#[derive(Debug)]
pub struct Store {
    tmp: Dir,
    redo: Dir,
    kept: Dir,
    /// Holds the lock for as long as the store lives.
    _lock: File,
    /// Tells the names of this daemon's life from those of an earlier one.
    epoch: u128,
    next: AtomicU64,
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

/// What is known of a kept version: the JSON beside its bytes in `.latchfs/kept`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptRecord {
    /// The path within the mount that the version was written to.
    pub path: String,
    /// Seconds since the epoch when it was kept.
    pub time: u64,
    /// The process that opened the file to write.
    pub pid: u32,
    /// That process's name.
    pub program: String,
    /// Why the version is not the file.
    pub reason: String,
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
        Ok(Self {
            tmp: sub("tmp")?,
            redo: sub("redo")?,
            kept: sub("kept")?,
            _lock: lock,
            epoch: since_epoch().as_nanos(),
            next: AtomicU64::new(0),
        })
    }

    /// Where names live for the moment of a commit.
    pub fn tmp(&self) -> &Dir {
        &self.tmp
    }

    /// Where redo records live.
    pub fn redo(&self) -> &Dir {
        &self.redo
    }

    /// Where kept versions live.
    pub fn kept(&self) -> &Dir {
        &self.kept
    }

    /// A name never used before in this store.
    pub fn unique_name(&self) -> OsString {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        OsString::from(format!("{:x}.{n:x}", self.epoch))
    }

    /// Keeps the bytes of a version aside, with what is known of it, so that nothing a program
    /// wrote is silently thrown away. Returns the name under which it is kept.
    ///
    /// # Errors
    /// As for making a file in BACKING.
    pub fn keep(&self, shadow: &Shadow, record: &KeptRecord) -> Result<String, Errno> {
        let id = self.unique_name().to_string_lossy().into_owned();
        shadow.link(&self.kept, OsStr::new(&format!("{id}.data")))?;
        let json = serde_json::to_vec_pretty(record).map_err(|_| Errno::INVAL)?;
        write_file(&self.kept, OsStr::new(&format!("{id}.json")), &json)?;
        self.prune_kept(&id);
        Ok(id)
    }

    /// Removes the oldest kept versions beyond the bound, each with its record; never the newest.
    fn prune_kept(&self, newest: &str) {
        let mut kept: HashMap<String, (u64, u64)> = HashMap::new();
        for entry in self.kept.list().unwrap_or_default() {
            let name = entry.name.to_string_lossy().into_owned();
            let id = name.rsplit_once('.').map_or(&*name, |(id, _)| id);
            let Ok(stat) = self.kept.stat_at(&entry.name) else {
                continue;
            };
            let (since, bytes) = kept.entry(id.to_owned()).or_default();
            *since = (*since).max(stat.st_ctime as u64);
            *bytes += stat.st_blocks as u64 * 512;
        }
        let mut total: u64 = kept.values().map(|(_, bytes)| bytes).sum();
        kept.remove(newest);
        let mut oldest: Vec<_> = kept.into_iter().collect();
        oldest.sort_unstable_by_key(|(_, (since, _))| *since);
        for (id, (_, bytes)) in oldest {
            if total <= KEPT_MAX_BYTES {
                break;
            }
            total -= bytes;
            for suffix in ["data", "json"] {
                let _ = self.kept.unlink(OsStr::new(&format!("{id}.{suffix}")));
            }
        }
    }
}

/// Seconds and nanoseconds since the epoch; zero if the clock is before it.
pub(crate) fn since_epoch() -> std::time::Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Writes a small file whole, durably, under a name that must be free.
pub(crate) fn write_file(dir: &Dir, name: &OsStr, content: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    let mut file = File::from(fd);
    file.write_all(content).map_err(errno)?;
    rustix::fs::fsync(&file)
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
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(OpenError::Foreign(stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(OpenError::Writable(stat.st_mode & 0o7777));
    }
    if stat.st_mode & 0o055 != 0 {
        super::dir::chmod(dir, 0o700).map_err(io)?;
    }
    Ok(())
}

fn lock(base: &Dir) -> Result<File, OpenError> {
    let failed = |e| OpenError::Io("can't open .latchfs/lock", e);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(base, LOCK, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
    let mut file = File::from(fd);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(OpenError::Served(pid_inside(&mut file).unwrap_or(0)));
        }
        Err(e) => return Err(failed(e)),
    }
    rustix::fs::ftruncate(&file, 0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(|e| failed(errno(e)))?;
    Ok(file)
}

fn pid_inside(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The process that serves BACKING now, if one does (it holds the lock of the store).
pub fn serving_pid(backing: &Path) -> Option<u32> {
    let root = Dir::open_root(backing).ok()?;
    let base = root.open_dir(OsStr::new(DIRECTORY)).ok()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&base, LOCK, flags, Mode::empty()).ok()?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => pid_inside(&mut file),
        _ => None,
    }
}
