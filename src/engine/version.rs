//! A committed version that somebody has open.

use super::records::Growth;
use crate::backing::Errno;
use crate::rules::Policy;
use crate::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::any::Any;
use std::fs::File;

/// What the layer above keeps for a version that the kernel reads by itself (for FUSE: the
/// registered backing file). It lives as long as an open handle of the version.
pub type KernelFile = Arc<dyn Any + Send + Sync>;

/// How the kernel reads a version. A node id can only have one way at a time, so the first open
/// decides for all that come while it lasts.
#[derive(Debug, Default)]
pub enum Reading {
    /// Nobody has decided yet.
    #[default]
    Undecided,
    /// The kernel reads the file of BACKING by itself.
    Passthrough(Weak<dyn Any + Send + Sync>),
    /// The kernel asks, and caches.
    Cached,
}

/// A committed version, held open by its handles; or a file that is used directly. Immutable, but
/// that records may be appended to it ([`super::append`]).
#[derive(Debug)]
pub struct Version {
    /// Behind a lock only for the commit that rewrites an inode in place: it gives the readers of
    /// the old version a copy of it first.
    file: RwLock<Arc<File>>,
    /// How the kernel reads it.
    pub reading: Mutex<Reading>,
    /// Is it a version, one that is appended to, or the file itself?
    pub policy: Policy,
    /// How it grows, if records are appended to it.
    growth: OnceLock<Arc<Growth>>,
}

impl Version {
    /// A version whose content is `file`. With `may_change`, the kernel must not read the file by
    /// itself, since the next commit will rewrite it in place.
    pub fn new(file: Arc<File>, may_change: bool) -> Arc<Self> {
        let reading = if may_change {
            Reading::Cached
        } else {
            Reading::Undecided
        };
        Arc::new(Self {
            file: RwLock::new(file),
            reading: Mutex::new(reading),
            policy: Policy::Atomic,
            growth: OnceLock::new(),
        })
    }

    /// A version that records are appended to: every read is a request, so that it sees whole ones
    /// only.
    pub fn growing(file: Arc<File>, growth: Arc<Growth>) -> Arc<Self> {
        Arc::new(Self {
            file: RwLock::new(file),
            reading: Mutex::new(Reading::Cached),
            policy: Policy::Append,
            growth: OnceLock::from(growth),
        })
    }

    /// Records are appended to its file through another node id.
    pub fn grows(&self, growth: &Arc<Growth>) {
        let _ = self.growth.set(growth.clone());
    }

    /// How it grows.
    pub fn growth(&self) -> Option<&Arc<Growth>> {
        self.growth.get()
    }

    /// Its length, in bytes, without what is just being appended.
    ///
    /// # Errors
    /// `EIO`.
    pub fn length(&self) -> Result<u64, Errno> {
        let file = self.file();
        match self.growth.get() {
            Some(growth) => growth.visible(&file),
            None => super::io::length(&file),
        }
    }

    /// A file of BACKING that is used directly: every read and write is a request.
    pub fn direct(file: Arc<File>) -> Arc<Self> {
        Arc::new(Self {
            file: RwLock::new(file),
            reading: Mutex::new(Reading::Cached),
            policy: Policy::Direct,
            growth: OnceLock::new(),
        })
    }

    /// Its content.
    pub fn file(&self) -> Arc<File> {
        self.file.read().clone()
    }

    /// Puts a copy of the content in the place of the file that is about to change. False if the
    /// kernel reads the file by itself, so that its readers can't be moved.
    pub fn move_to(&self, copy: Arc<File>) -> bool {
        // Until the copy is there: or the kernel would be given the file that is about to change.
        let reading = self.reading.lock();
        if matches!(&*reading, Reading::Passthrough(token) if token.strong_count() > 0) {
            return false;
        }
        *self.file.write() = copy;
        true
    }

    /// What `look` finds in its content, and not in what a rewrite in place is just making of the file that it
    /// was.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn seen<T>(&self, mut look: impl FnMut(&File) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut file = self.file();
        loop {
            let found = look(&file);
            let now = self.file();
            if Arc::ptr_eq(&file, &now) {
                return found;
            }
            file = now;
        }
    }
}
