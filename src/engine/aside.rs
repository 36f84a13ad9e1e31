//! What becomes of a version that does not become the file: it is kept aside, and makes way again
//! for whoever finds the disk full.

use super::transaction::Transaction;
use super::tree::Key;
use super::{Engine, lookup};
use crate::backing::kept::{self, Kind, Lacking, NotKept, room};
use crate::backing::store::since_epoch;
use crate::backing::{Credentials, Errno};
use crate::config::Durability;
use log::{error, info, warn};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;

impl Engine {
    /// Tells of a transaction that an error keeps from becoming the file, and keeps it aside.
    pub(super) fn failed(&self, transaction: &Transaction, errno: Errno, what: &str) {
        if errno == Errno::STALE {
            self.count(&self.counters.conflicts);
            let conflict = transaction.inner.lock().conflict;
            let reason = match conflict {
                Some(conflict) => conflict.to_string(),
                None => String::from("it was changed behind the mount"),
            };
            return self.keep_aside(transaction, Kind::Conflict, &reason);
        }
        // What did not fit must not go on filling the disk.
        let keep = !kept::is_lack_of_room(errno);
        self.rolled_back(transaction, &format!("{what} ({errno})"), keep);
    }

    /// Tells of a transaction that is rolled back, and keeps it aside if that is asked for.
    pub(super) fn rolled_back(&self, transaction: &Transaction, reason: &str, keep: bool) {
        self.count(&self.counters.rollbacks);
        let kept = match keep {
            true => self.keep(transaction, Kind::RolledBack, reason),
            false => String::new(),
        };
        warn!(
            "{}: update by pid {} ({}) rolled back, the file stays as it was: {reason}{kept}",
            lookup::shown(&self.path_written(transaction)),
            transaction.writer.process,
            transaction.writer.program
        );
    }

    /// Keeps a version that can't become the file where it can be found again.
    pub(super) fn keep_aside(&self, transaction: &Transaction, kind: Kind, reason: &str) {
        let kept = self.keep(transaction, kind, reason);
        warn!(
            "{}: update by pid {} ({}) not published: {reason}{kept}",
            lookup::shown(&self.path_written(transaction)),
            transaction.writer.process,
            transaction.writer.program
        );
    }

    /// Keeps what a transaction has written, if there is a byte of it, and unless its writer itself
    /// has thrown it away. Returns what the log says of that.
    fn keep(&self, transaction: &Transaction, kind: Kind, reason: &str) -> String {
        let shadow = {
            let inner = transaction.inner.lock();
            let thrown_away = inner.detached.as_ref().is_some_and(|d| d.by_writer);
            inner.unpublished().filter(|_| !thrown_away)
        };
        let shadow = shadow.filter(|shadow| super::io::length(shadow.file()) != Ok(0));
        let (Some(shadow), Ok(store)) = (shadow, self.store()) else {
            return String::new();
        };
        let record = kept::Record {
            time: since_epoch().as_secs(),
            pid: transaction.writer.process,
            uid: Some(transaction.writer.credentials.uid),
            program: transaction.writer.program.clone(),
            kind,
            reason: reason.to_owned(),
            ..kept::Record::default()
        };
        let record = record.at(&self.path_written(transaction));
        // Its close tells that it was not published, and where it is: so there it must stay.
        let told = matches!(kind, Kind::Refused | Kind::Conflict);
        let treatment = self.treatment_of_transaction(transaction);
        let durable = told && treatment.durability != Durability::None;
        match store.keeper().keep(&shadow, &record, durable) {
            Ok(id) => format!(
                "; what it wrote is kept, to get it back: {}",
                store.command_to_restore(&id)
            ),
            Err(why @ NotKept::TooLarge(..)) => {
                format!("; what it wrote is not kept: {why}")
            }
            Err(why) => format!("; what it wrote could not be kept either: {why}"),
        }
    }

    /// Removes kept versions that are too old, or too many.
    pub fn prune_kept(&self) {
        let removed = self.store().map_or(0, |store| store.keeper().prune(None));
        if removed > 0 {
            info!("{removed} kept versions were removed, being too old or too many");
        }
    }

    /// The path that a transaction was for; empty if it has none any more.
    pub(super) fn path_written(&self, transaction: &Transaction) -> PathBuf {
        let detached = transaction.inner.lock().detached.clone();
        match detached {
            Some(detached) => detached.path,
            None => lookup::within_mount(self.way_of(transaction)),
        }
    }

    /// The way from the root to a transaction's file, or to where it was until another one took its
    /// name behind the mount.
    pub(super) fn way_of(&self, transaction: &Transaction) -> Option<Vec<OsString>> {
        let displaced = transaction.inner.lock().displaced.clone();
        match displaced {
            Some(displaced) => Some(displaced.path),
            None => self.state.lock().tree.path(transaction.inode),
        }
    }

    /// Keeps a file aside that somebody else put in BACKING, and that has no place there any more.
    pub(super) fn keep_stray(&self, transaction: &Transaction, stray: &OsStr) {
        let path = self.path_written(transaction);
        let record = kept::Record {
            time: since_epoch().as_secs(),
            kind: Kind::Conflict,
            reason: String::from("it was replaced behind the mount while a commit was refused"),
            ..kept::Record::default()
        };
        let record = record.at(&path);
        let kept = self.store().and_then(|store| {
            let id = store.keeper().take_in(store.tmp(), stray, &record)?;
            Ok(store.command_to_restore(&id))
        });
        let path = lookup::shown(&path);
        match kept {
            Ok(command) => warn!(
                "{path}: replaced more than once behind the mount while an update was refused; one of \
                 the files is kept, to get it back: {command}"
            ),
            Err(errno) => error!(
                "{path}: replaced more than once behind the mount while an update was refused; one of \
                 the files is .latchfs/tmp/{} ({errno})",
                stray.to_string_lossy()
            ),
        }
    }

    /// Does `work` on a file at the expense of `who`, which takes so many bytes; where there is no
    /// room, kept versions make way. Blocks.
    pub(super) fn with_room<T>(
        &self,
        (file, who): (&File, &Credentials),
        bytes: u64,
        mut work: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        loop {
            let errno = match work() {
                Err(errno) if kept::is_lack_of_room(errno) => errno,
                other => return other,
            };
            let stat = rustix::fs::fstat(file)?;
            let lacking = Lacking {
                errno,
                device: stat.st_dev,
                uid: who.uid,
                // What failed half-way has the other half.
                bytes: bytes.saturating_sub(room(&stat)),
            };
            if !self.store()?.keeper().give_way(lacking) {
                return Err(errno);
            }
        }
    }

    /// The same for a transaction to which so many bytes could not be written; true if it is to be
    /// tried again.
    pub(super) fn make_room_for(
        &self,
        transaction: &Transaction,
        errno: Errno,
        bytes: u64,
    ) -> bool {
        let (Ok(store), Some(device)) = (self.store(), self.device_of(transaction.inode)) else {
            return false;
        };
        let (shadow, content) = {
            let inner = transaction.inner.lock();
            (inner.writable(), inner.content())
        };
        let room_of = |file: &File| rustix::fs::fstat(file).map_or(0, |stat| room(&stat));
        let bytes = match shadow {
            // What failed half-way has the other half.
            Some(shadow) => bytes.saturating_sub(room_of(shadow.file())),
            // It is to be a copy.
            None => bytes.saturating_add(content.map_or(0, |content| room_of(&content.file))),
        };
        store.keeper().give_way(Lacking {
            errno,
            device,
            uid: transaction.writer.credentials.uid,
            bytes,
        })
    }

    /// The device of BACKING that a file is on, or will be.
    fn device_of(&self, key: Key) -> Option<u64> {
        let state = self.state.lock();
        let inode = state.tree.inode(key)?;
        let parent = || {
            let parent = inode.names.first()?.parent;
            state.tree.inode(parent)?.identity
        };
        inode.identity.or_else(parent).map(|identity| identity.dev)
    }
}
