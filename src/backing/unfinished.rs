//! Rewrites in place that this process has begun and could not end.
//!
//! A redo record that is still there, or that a power cut may bring back, would have recovery put its
//! version into the inode once more. So nothing else gets into that inode before [`settle`] has
//! finished the rewrite, and made the removal of the record durable.

use super::redo::{forget, overwrite};
use super::shadow::Own;
use super::store::Store;
use super::{Errno, Identity};
use crate::sync::Arc;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;

/// What is owed to inodes; at most one rewrite to each, as the next one begins by settling it.
#[derive(Debug, Default)]
pub struct Unfinished {
    by_inode: Mutex<HashMap<Identity, Arc<Owed>>>,
    /// How many there are: nearly always none, which is asked at every open.
    count: AtomicUsize,
    /// One at a time settles.
    settling: Mutex<()>,
}

/// A record that has to go.
#[derive(Debug)]
pub(super) struct Owed {
    pub(super) id: OsString,
    /// What is to be done before: the inode may be half rewritten.
    pub(super) rest: Option<Rest>,
}

/// The rest of a rewrite.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) from: Arc<File>,
    pub(super) target: File,
    pub(super) own: Own,
}

impl Unfinished {
    /// Is nothing owed to any inode?
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Is anything owed to an inode?
    pub fn has(&self, inode: Identity) -> bool {
        self.get(inode).is_some()
    }

    /// Is an inode perhaps half rewritten?
    pub fn is_torn(&self, inode: Identity) -> bool {
        self.get(inode).is_some_and(|owed| owed.rest.is_some())
    }

    fn get(&self, inode: Identity) -> Option<Arc<Owed>> {
        match self.is_empty() {
            true => None,
            false => self.by_inode.lock().get(&inode).cloned(),
        }
    }

    pub(super) fn owe(&self, inode: Identity, owed: Owed) {
        let mut by_inode = self.by_inode.lock();
        by_inode.insert(inode, Arc::new(owed));
        self.count.store(by_inode.len(), Ordering::Release);
    }

    fn paid(&self, inode: Identity) {
        let mut by_inode = self.by_inode.lock();
        by_inode.remove(&inode);
        self.count.store(by_inode.len(), Ordering::Release);
    }
}

/// Does what is owed to an inode, if anything is: it is whole then, and no record is for it. Blocks.
///
/// # Errors
/// `EIO` and its like: it stays owed.
pub fn settle(store: &Store, inode: Identity) -> Result<(), Errno> {
    let unfinished = store.unfinished();
    if !unfinished.has(inode) {
        return Ok(());
    }
    let _one = unfinished.settling.lock();
    let Some(owed) = unfinished.get(inode) else {
        return Ok(());
    };
    if let Some(rest) = &owed.rest {
        overwrite(&rest.from, &rest.target, &rest.own)?;
        let (id, rest) = (owed.id.clone(), None);
        unfinished.owe(inode, Owed { id, rest });
    }
    forget(store, &owed.id)?;
    unfinished.paid(inode);
    Ok(())
}

/// The same for all inodes, as far as it can be done.
///
/// # Errors
/// The first one.
pub fn settle_all(store: &Store) -> Result<(), Errno> {
    let inodes: Vec<Identity> = store.unfinished().by_inode.lock().keys().copied().collect();
    let settled = inodes.into_iter().map(|inode| settle(store, inode));
    settled.fold(Ok(()), Result::and)
}
