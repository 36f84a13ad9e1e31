//! Locks on files, by flock(2): they exclude every program that uses that on the same file.

use super::commit::commit;
use super::error::FileLockError;
use super::holder;
use super::json;
use super::target::Target;
use super::wait::Wait;
use crate::backing::{Errno, Identity, identity};
use crate::sync::Arc;
use log::warn;
use rustix::fs::{FlockOperation, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// What a file is locked for: the modes of Python's `open()`, which the origin's `lock_file` took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// `r`: to read it, together with others who do. The file must be there.
    Read,
    /// `r+`: to change it, alone. The file must be there.
    Update,
    /// `w`: to write it anew, alone. It is made if it is not there, and emptied once it is locked
    /// (Python empties it before).
    Write,
    /// `a`: to append to it, alone. It is made if it is not there.
    Append,
}

impl LockMode {
    fn kind(self) -> Kind {
        match self {
            Self::Read => Kind::Shared,
            _ => Kind::Exclusive,
        }
    }

    fn access(self) -> OFlags {
        match self {
            Self::Read => OFlags::RDONLY,
            Self::Update => OFlags::RDWR,
            Self::Write => OFlags::RDWR | OFlags::CREATE,
            Self::Append => OFlags::RDWR | OFlags::CREATE | OFlags::APPEND,
        }
    }
}

impl FromStr for LockMode {
    type Err = FileLockError;

    /// Reads a mode of Python's `open()`; `b` and `t` make no difference here.
    fn from_str(mode: &str) -> Result<Self, FileLockError> {
        match mode.replace(['b', 't'], "").as_str() {
            "r" => Ok(Self::Read),
            "r+" => Ok(Self::Update),
            "w" | "w+" => Ok(Self::Write),
            "a" | "a+" => Ok(Self::Append),
            _ => Err(FileLockError::UnknownMode {
                mode: mode.to_owned(),
            }),
        }
    }
}

/// A file, locked and open until this is dropped. Made by [`lock_file`](super::lock_file).
///
/// [`Read`], [`Write`] and [`Seek`] act on the file as it is opened. What is written so is written in
/// place, as the origin did; on a latchfs mount it appears whole when the lock is given back. To have
/// that everywhere, use [`write_json`](Self::write_json) or [`replace`](Self::replace).
///
/// The lock belongs to the thread that took it: it can't be sent to another.
#[derive(Debug)]
pub struct LockedFile {
    lock: Lock,
    /// What is read from where that is not the descriptor that has the lock.
    reader: Option<File>,
    path: PathBuf,
    mode: LockMode,
    timeout: Duration,
}

impl LockedFile {
    pub(super) fn new(
        path: &Path,
        mode: LockMode,
        timeout: Duration,
    ) -> Result<Self, FileLockError> {
        let mut wait = Wait::new(timeout);
        let (lock, reader) = match mode {
            LockMode::Read => {
                let (lock, reader) = Lock::to_read(path, &mut wait)?;
                (lock, Some(reader))
            }
            _ => (
                Lock::acquire(path, mode.kind(), mode.access(), &mut wait)?,
                None,
            ),
        };
        let file = reader.as_ref().unwrap_or(&lock.file);
        wait_as_usual(file)
            .and_then(|()| match mode {
                LockMode::Write => rustix::fs::ftruncate(file, 0),
                _ => Ok(()),
            })
            .map_err(FileLockError::io(path, "locked"))?;
        Ok(Self {
            lock,
            reader,
            path: path.to_owned(),
            mode,
            timeout,
        })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        self.reader.as_ref().unwrap_or(&self.lock.file)
    }

    /// The path it was locked by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole document, as [`safe_read_json`](super::safe_read_json) does.
    ///
    /// # Errors
    /// [`FileLockError::Io`], [`FileLockError::Json`].
    pub fn read_json<T: DeserializeOwned>(&self, default: T) -> Result<T, FileLockError> {
        let content = read_whole(self.file()).map_err(FileLockError::io(&self.path, "read"))?;
        Ok(json::parse(&self.path, &content)?.unwrap_or(default))
    }

    /// Replaces the whole document in one step, durably, as
    /// [`safe_write_json`](super::safe_write_json) does. The lock stays.
    ///
    /// # Errors
    /// As [`replace`](Self::replace); [`FileLockError::Json`] if `data` has no form in JSON.
    pub fn write_json<T: Serialize + ?Sized>(&mut self, data: &T) -> Result<(), FileLockError> {
        self.replace(&json::print(&self.path, data)?)
    }

    /// Makes `content` the content of the file in one step, durably; readers without a lock see the
    /// old or the new one. The lock stays, and [`file`](Self::file) is the new content, at its end.
    ///
    /// # Errors
    /// [`FileLockError::Io`]: the file is as it was. It is so with [`LockMode::Read`], too.
    pub fn replace(&mut self, content: &[u8]) -> Result<(), FileLockError> {
        if self.mode == LockMode::Read {
            return Err(FileLockError::io(&self.path, "written")(Errno::BADF));
        }
        let mut wait = Wait::new(self.timeout);
        self.lock.replace(&self.path, content, &mut wait)
    }

    /// Gives the lock back, and says whether what was written through [`file`](Self::file) is durable
    /// (and on a latchfs mount: published). Dropping it does the same, and logs an error.
    ///
    /// # Errors
    /// [`FileLockError::Io`].
    pub fn unlock(self) -> Result<(), FileLockError> {
        self.finish()
    }

    fn finish(&self) -> Result<(), FileLockError> {
        if self.mode == LockMode::Read {
            return Ok(());
        }
        // Before the lock is free: on a mount this is the commit.
        rustix::fs::fsync(&*self.lock.file).map_err(FileLockError::io(&self.path, "written"))
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            warn!("{error}");
        }
    }
}

impl Read for LockedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file().read(buffer)
    }
}

impl Write for LockedFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file().write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for LockedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file().seek(to)
    }
}

/// Alone, or together with others of the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Shared,
    Exclusive,
}

/// An open file that is locked, and is what its path names.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) file: Arc<File>,
    pub(super) target: Target,
    kind: Kind,
    _held: Held,
}

/// What an attempt came to.
enum Attempt {
    Locked(Lock),
    /// Somebody has it; here is the file, if it could be opened.
    Busy(Option<File>),
}

impl Lock {
    /// Locks a file, opened by `access`.
    ///
    /// On a latchfs mount to open a file for writing is to take its lease. Each attempt opens the file
    /// anew, so that nobody who waits for the lock holds the lease, or a version that is the file no
    /// more.
    ///
    /// # Errors
    /// [`FileLockError::Timeout`], [`FileLockError::Nested`], [`FileLockError::Io`].
    pub(super) fn acquire(
        path: &Path,
        kind: Kind,
        access: OFlags,
        wait: &mut Wait,
    ) -> Result<Self, FileLockError> {
        loop {
            match Self::attempt(path, kind, access)? {
                Attempt::Locked(lock) => return Ok(lock),
                Attempt::Busy(_) if wait.pause() => {}
                Attempt::Busy(file) => {
                    let locker = file.and_then(|file| holder::locker(&file));
                    return Err(FileLockError::Timeout {
                        path: path.to_owned(),
                        timeout: wait.timeout(),
                        holder: locker.or_else(|| holder::writer(path)),
                    });
                }
            }
        }
    }

    fn attempt(path: &Path, kind: Kind, access: OFlags) -> Result<Attempt, FileLockError> {
        let failed = || FileLockError::io(path, "locked");
        let target = Target::of(path).map_err(failed())?;
        let opened = match target.open(access) {
            // A file that may be written but not read.
            Err(Errno::ACCESS) if kind == Kind::Exclusive && access == OFlags::RDONLY => {
                target.open(OFlags::WRONLY)
            }
            other => other,
        };
        let file = match opened {
            Err(Errno::AGAIN | Errno::INTR | Errno::STALE | Errno::LOOP) => {
                return Ok(Attempt::Busy(None));
            }
            other => other.map_err(failed())?,
        };
        let who = identity(&rustix::fs::fstat(&file).map_err(failed())?);
        if Held::would_wait_for_itself(who, kind) {
            return Err(FileLockError::Nested {
                path: path.to_owned(),
            });
        }
        let operation = match kind {
            Kind::Shared => FlockOperation::NonBlockingLockShared,
            Kind::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(Attempt::Busy(Some(file))),
            Err(errno) => return Err(failed()(errno)),
        }
        if !target.is(&file).map_err(failed())? {
            // Replaced by the one who had the lock.
            return Ok(Attempt::Busy(None));
        }
        Ok(Attempt::Locked(Self {
            file: Arc::new(file),
            target,
            kind,
            _held: Held::new(who, kind),
        }))
    }

    /// Locks a file to read it, and opens it to read once it is locked: on a latchfs mount the
    /// descriptor that has the lock may have an older version.
    pub(super) fn to_read(path: &Path, wait: &mut Wait) -> Result<(Self, File), FileLockError> {
        loop {
            let lock = Self::acquire(path, Kind::Shared, OFlags::RDONLY, wait)?;
            match lock.target.open(OFlags::RDONLY) {
                Ok(file) if lock.target.is(&lock.file).is_ok_and(|is| is) => {
                    return Ok((lock, file));
                }
                Ok(_) | Err(Errno::NOENT | Errno::AGAIN | Errno::INTR | Errno::STALE) => {}
                Err(errno) => return Err(FileLockError::io(path, "read")(errno)),
            }
            drop(lock);
            if !wait.pause() {
                return Err(FileLockError::Timeout {
                    path: path.to_owned(),
                    timeout: wait.timeout(),
                    holder: holder::writer(path),
                });
            }
        }
    }

    /// Replaces the file in one step; the new one is locked instead.
    pub(super) fn replace(
        &mut self,
        path: &Path,
        content: &[u8],
        wait: &mut Wait,
    ) -> Result<(), FileLockError> {
        let new = commit(&self.target, Some(&self.file), content, wait)
            .map_err(|errno| not_written(path, errno, wait))?;
        let who = rustix::fs::fstat(&*new).map_err(FileLockError::io(path, "locked"))?;
        let held = Held::new(identity(&who), self.kind);
        let old = std::mem::replace(&mut self.file, new);
        self._held = held;
        unlock(&old);
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// Explicitly: a child that was forked meanwhile has a copy of the descriptor, and a close would leave
/// the lock with that.
fn unlock(file: &File) {
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
}

/// What became of a commit that failed.
pub(super) fn not_written(path: &Path, errno: Errno, wait: &Wait) -> FileLockError {
    match errno {
        Errno::AGAIN => FileLockError::Timeout {
            path: path.to_owned(),
            timeout: wait.timeout(),
            holder: None,
        },
        errno => FileLockError::io(path, "written")(errno),
    }
}

/// The whole content of an open file, wherever it is.
pub(super) fn read_whole(mut file: &File) -> Result<Vec<u8>, Errno> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut content))
        .map_err(crate::backing::shadow::errno)?;
    Ok(content)
}

/// It was opened so that the open did not wait; whoever gets it expects nothing of the kind.
fn wait_as_usual(file: &File) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags - OFlags::NONBLOCK)
}

thread_local! {
    /// What this thread has locked, and a number for each.
    static HELD: RefCell<Vec<(u64, Identity, Kind)>> = const { RefCell::new(Vec::new()) };
}

/// A note that this thread has a file locked.
#[derive(Debug)]
struct Held {
    number: u64,
    /// It can't be sent to another thread, whose note it would not be.
    _of_this_thread: PhantomData<*const ()>,
}

impl Held {
    fn new(who: Identity, kind: Kind) -> Self {
        let number = HELD.with_borrow_mut(|held| {
            let number = held
                .iter()
                .map(|(number, ..)| number + 1)
                .max()
                .unwrap_or(0);
            held.push((number, who, kind));
            number
        });
        Self {
            number,
            _of_this_thread: PhantomData,
        }
    }

    /// Has this thread a lock on the file that excludes one of this kind?
    fn would_wait_for_itself(who: Identity, kind: Kind) -> bool {
        HELD.with_borrow(|held| {
            held.iter().any(|(_, file, as_kind)| {
                *file == who && (kind == Kind::Exclusive || *as_kind == Kind::Exclusive)
            })
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The thread may be at its end.
        let _ = HELD.try_with(|held| {
            held.borrow_mut()
                .retain(|(number, ..)| *number != self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_python() {
        let mode = |text: &str| text.parse::<LockMode>();
        for (text, expected) in [
            ("r", LockMode::Read),
            ("rb", LockMode::Read),
            ("r+", LockMode::Update),
            ("rb+", LockMode::Update),
            ("w", LockMode::Write),
            ("wt", LockMode::Write),
            ("a", LockMode::Append),
            ("a+", LockMode::Append),
        ] {
            assert_eq!(mode(text).expect(text), expected);
        }
        for text in ["", "x", "rw", "+"] {
            let said = mode(text).expect_err(text).to_string();
            assert!(said.contains("the modes are r, r+, w, a"), "{said}");
        }
    }
}
