//! The API of the origin: safe reads, writes and locks of files for programs that can be changed, or
//! that run without a mount.
//!
//! The origin is a Python module, `file_locking.py`, with functions of these names. What they promise
//! here, on any local directory, and in a latchfs mount just as well:
//!
//! - A file is replaced in one step: readers see the old content or the new one, also after a kill or a
//!   power cut, and what was written when a function returned is durable. The commit is that of
//!   the mount: `O_TMPFILE`, fsync, rename, fsync of the directory.
//! - Mode, owner, ACL and extended attributes survive, as far as the process may set them. Of a file
//!   with several hard links, the other names keep the old content, which is logged.
//! - A symbolic link is written through, as open(2) does.
//! - Locks are flock(2) on the file itself, so they exclude everyone who uses `fcntl.flock` on the
//!   same file, in any language. They end with the process. A function waits at most for its
//!   timeout, 10 s by default, for a lock; [`FileLocker`] is for other times.
//! - Who waits for a lock while the file is replaced locks the new file. A Python program that holds a
//!   lock must see to that itself: after `flock`, `os.fstat(f.fileno())` and `os.stat(path)` must be
//!   of the same inode, else open the file again.
//! - A thread that has locked a file and locks it again gets [`FileLockError::Nested`] at once, not
//!   a timeout (two shared locks are fine). Two threads are two owners.
//! - A child that is forked without exec shares its parent's lock: it is free when the parent gives it
//!   back, but if the parent dies, not before the child ends. Locks do not survive exec(2).
//!
//! A program that is killed in the moment between the last two steps of a replacement leaves
//! `.NAME.latchfs-tmp` beside the file; the next that replaces the same file removes it.
//!
//! In a latchfs mount, reading does not wait for a program that is writing the file without a lock: it
//! gets the last version. A file that has none yet is waited for.

mod commit;
mod error;
mod holder;
mod json;
mod lock;
pub mod phases;
mod target;
mod wait;

pub use error::FileLockError;
pub use holder::Holder;
pub use lock::{LockMode, LockedFile};
pub use phases::{Phase, is_analysis_complete};

use crate::backing::{Errno, shadow};
use lock::{Kind, Lock};
use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use target::Target;
use wait::Wait;

/// How long a call waits for a lock if nothing is said: as the origin.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The functions of this module with a timeout of one's own.
///
/// ```
/// use std::time::Duration;
///
/// let locker = latchfs::FileLocker::new().timeout(Duration::from_millis(200));
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("settings.json");
/// locker.safe_write_json(&path, &serde_json::json!({"theme": "dark"}))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct FileLocker {
    timeout: Duration,
}

impl Default for FileLocker {
    fn default() -> Self {
        Self::new()
    }
}

impl FileLocker {
    /// With a timeout of 10 s.
    pub fn new() -> Self {
        Self {
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// With this timeout. Zero: one attempt, without waiting.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout }
    }

    /// As [`lock_file`].
    ///
    /// # Errors
    /// As [`lock_file`].
    pub fn lock_file(
        &self,
        path: impl AsRef<Path>,
        mode: LockMode,
    ) -> Result<LockedFile, FileLockError> {
        LockedFile::new(path.as_ref(), mode, self.timeout)
    }

    /// As [`safe_read_json`].
    ///
    /// # Errors
    /// As [`safe_read_json`].
    pub fn safe_read_json<T: DeserializeOwned>(
        &self,
        path: impl AsRef<Path>,
        default: T,
    ) -> Result<T, FileLockError> {
        Ok(self.read(path.as_ref())?.unwrap_or(default))
    }

    /// As [`safe_write_json`].
    ///
    /// # Errors
    /// As [`safe_write_json`].
    pub fn safe_write_json<T: Serialize + ?Sized>(
        &self,
        path: impl AsRef<Path>,
        data: &T,
    ) -> Result<(), FileLockError> {
        let path = path.as_ref();
        self.write(path, &json::print(path, data)?)
    }

    /// As [`safe_append_file`].
    ///
    /// # Errors
    /// As [`safe_append_file`].
    pub fn safe_append_file(
        &self,
        path: impl AsRef<Path>,
        text: impl AsRef<[u8]>,
    ) -> Result<(), FileLockError> {
        let path = path.as_ref();
        let mut wait = Wait::new(self.timeout);
        let access = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
        let lock = Lock::acquire(path, Kind::Exclusive, access, &mut wait)?;
        append(&lock, text.as_ref()).map_err(FileLockError::io(path, "written"))
    }

    /// As [`load_analysis_phase_safe`].
    ///
    /// # Errors
    /// As [`load_analysis_phase_safe`].
    pub fn load_analysis_phase_safe<T: DeserializeOwned>(
        &self,
        dir: impl AsRef<Path>,
        phase: impl AsRef<str>,
    ) -> Result<Option<T>, FileLockError> {
        self.read(&file_of(dir.as_ref(), phase.as_ref())?)
    }

    /// As [`save_analysis_phase_safe`].
    ///
    /// # Errors
    /// As [`save_analysis_phase_safe`].
    pub fn save_analysis_phase_safe<T: Serialize + ?Sized>(
        &self,
        dir: impl AsRef<Path>,
        phase: impl AsRef<str>,
        data: &T,
    ) -> Result<(), FileLockError> {
        self.safe_write_json(file_of(dir.as_ref(), phase.as_ref())?, data)
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, FileLockError> {
        let mut wait = Wait::new(self.timeout);
        let content = match Lock::to_read(path, &mut wait) {
            Ok((_lock, file)) => lock::read_whole(&file),
            Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        json::parse(path, &content.map_err(FileLockError::io(path, "read"))?)
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), FileLockError> {
        let mut wait = Wait::new(self.timeout);
        loop {
            match Lock::acquire(path, Kind::Exclusive, OFlags::RDONLY, &mut wait) {
                Ok(mut lock) => return lock.replace(path, content, &mut wait),
                Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
            let target = Target::of(path).map_err(FileLockError::io(path, "written"))?;
            match commit::commit(&target, None, content, &mut wait) {
                // Somebody else made it meanwhile: it can be locked now.
                Err(Errno::EXIST) if wait.pause() => {}
                Err(errno) => return Err(lock::not_written(path, errno, &wait)),
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// Appends, whole or not at all, durably.
fn append(lock: &Lock, text: &[u8]) -> Result<(), Errno> {
    let mut file: &File = &lock.file;
    let before = rustix::fs::fstat(file)?.st_size as u64;
    if let Err(error) = file.write_all(text) {
        // A full disk may have taken a part.
        rustix::fs::ftruncate(file, before)?;
        return Err(shadow::errno(error));
    }
    rustix::fs::fsync(file)?;
    match before {
        0 => shadow::sync_dir(&lock.target.dir, file),
        _ => Ok(()),
    }
}

fn file_of(dir: &Path, phase: &str) -> Result<PathBuf, FileLockError> {
    Ok(dir.join(phase.parse::<Phase>()?.file_name()))
}

/// Locks a file and opens it; the lock is given back when the guard is dropped, or the process ends.
///
/// With [`LockMode::Read`] others may read it at the same time; every other mode is for one alone.
/// The mode can be read from one of Python's: `"r+".parse()?`.
///
/// # Errors
/// [`FileLockError::Timeout`] after 10 s; [`FileLockError::Nested`] if this thread has it locked;
/// [`FileLockError::Io`]: `NotFound` for [`LockMode::Read`] and [`LockMode::Update`] of a file that is
/// not there, and what else open(2) says.
pub fn lock_file(path: impl AsRef<Path>, mode: LockMode) -> Result<LockedFile, FileLockError> {
    FileLocker::new().lock_file(path, mode)
}

/// Reads a JSON document under a shared lock. `default` is returned if the file is not there, or
/// empty, or not JSON; the last is logged as a warning that names line and column.
///
/// # Errors
/// [`FileLockError::Timeout`], [`FileLockError::Nested`], [`FileLockError::Io`];
/// [`FileLockError::Json`] if it is JSON, but no `T`.
pub fn safe_read_json<T: DeserializeOwned>(
    path: impl AsRef<Path>,
    default: T,
) -> Result<T, FileLockError> {
    FileLocker::new().safe_read_json(path, default)
}

/// Replaces a JSON document, or makes it, under an exclusive lock: in one step, durably. Indented by
/// two spaces, keys in the order they have, with a newline at the end. A float that JSON does not
/// have (NaN, infinities) becomes `null`.
///
/// To change what is there, lock it meanwhile: [`LockedFile::read_json`], [`LockedFile::write_json`].
///
/// # Errors
/// [`FileLockError::Timeout`], [`FileLockError::Nested`]; [`FileLockError::Json`] if `data` has no
/// form in JSON; [`FileLockError::Io`]. The file is as it was then (but where the error is that of
/// making the directory durable after the replacement: `EIO`).
pub fn safe_write_json<T: Serialize + ?Sized>(
    path: impl AsRef<Path>,
    data: &T,
) -> Result<(), FileLockError> {
    FileLocker::new().safe_write_json(path, data)
}

/// Appends to a file, making it if it is not there, under an exclusive lock, and returns when that is
/// durable. What an error has left of the text is taken back. The file is appended to in place: a kill
/// or a power cut in the middle can leave a part of the text (in a latchfs mount the policy `append` applies).
///
/// # Errors
/// [`FileLockError::Timeout`], [`FileLockError::Nested`], [`FileLockError::Io`].
pub fn safe_append_file(
    path: impl AsRef<Path>,
    text: impl AsRef<[u8]>,
) -> Result<(), FileLockError> {
    FileLocker::new().safe_append_file(path, text)
}

/// Reads what a phase of the analysis has left in `dir`; `None` if it has not yet, or if that is no
/// JSON (see [`safe_read_json`]).
///
/// # Errors
/// [`FileLockError::UnknownPhase`]; as [`safe_read_json`].
pub fn load_analysis_phase_safe<T: DeserializeOwned>(
    dir: impl AsRef<Path>,
    phase: impl AsRef<str>,
) -> Result<Option<T>, FileLockError> {
    FileLocker::new().load_analysis_phase_safe(dir, phase)
}

/// Writes what a phase of the analysis has found to its file in `dir`, which must be there; see
/// [`safe_write_json`].
///
/// # Errors
/// [`FileLockError::UnknownPhase`]; as [`safe_write_json`].
pub fn save_analysis_phase_safe<T: Serialize + ?Sized>(
    dir: impl AsRef<Path>,
    phase: impl AsRef<str>,
    data: &T,
) -> Result<(), FileLockError> {
    FileLocker::new().save_analysis_phase_safe(dir, phase, data)
}
