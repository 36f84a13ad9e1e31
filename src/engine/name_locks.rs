//! Locks on the names in directories.

use super::tree::Key;
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(debug_assertions)]
use std::cell::Cell;
use std::collections::BTreeSet;

/// Into how many groups directories fall.
const GROUPS: usize = 64;

/// One lock for every group of directories: held shared, a name of theirs is being resolved; held
/// exclusively, names of theirs are being changed, in BACKING and in the table.
///
/// A thread holds one [`Held`] at a time: a second could wait for a third thread that waits for the
/// first. Debug builds check that.
#[derive(Debug)]
pub(super) struct NameLocks(Vec<RwLock<()>>);

/// Holds locks of [`NameLocks`].
#[derive(Debug)]
#[must_use]
pub(super) struct Held<'a> {
    _shared: Option<RwLockReadGuard<'a, ()>>,
    _exclusive: Vec<RwLockWriteGuard<'a, ()>>,
}

#[cfg(debug_assertions)]
crate::sync::thread_local! {
    static HOLDS: Cell<bool> = const { Cell::new(false) };
}

/// Panics, in a debug build, if this thread holds names: before what takes them, or answers.
pub(super) fn assert_none_held() {
    #[cfg(debug_assertions)]
    assert!(
        !HOLDS.with(Cell::get),
        "names are locked by this very thread"
    );
}

fn note(_holds: bool) {
    #[cfg(debug_assertions)]
    HOLDS.with(|holds| holds.set(_holds));
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        note(false);
    }
}

impl NameLocks {
    pub(super) fn new() -> Self {
        Self((0..GROUPS).map(|_| RwLock::new(())).collect())
    }

    /// Holds off changes of names in a directory.
    pub(super) fn shared(&self, parent: Key) -> Held<'_> {
        assert_none_held();
        let held = Held {
            _shared: Some(self.0[group(parent)].read()),
            _exclusive: Vec::new(),
        };
        note(true);
        held
    }

    /// Holds off everyone else from the names in some directories.
    pub(super) fn exclusive(&self, parents: impl IntoIterator<Item = Key>) -> Held<'_> {
        assert_none_held();
        // In the order of their index, so that two who want the same ones can't block each other.
        let groups: BTreeSet<usize> = parents.into_iter().map(group).collect();
        let held = Held {
            _shared: None,
            _exclusive: groups.into_iter().map(|i| self.0[i].write()).collect(),
        };
        note(true);
        held
    }
}

fn group(parent: Key) -> usize {
    parent.0 as usize % GROUPS
}
