//! Every synchronisation type of the crate comes from here, so that a model checker can take
//! their place: with the feature `shuttle` it does (tests/threads). With the feature `lock-times` each lock
//! notes how long it is held (scripts/bench --locks).

#[cfg(feature = "shuttle")]
mod shuttled;
#[cfg(feature = "lock-times")]
pub mod timed;

pub use std::sync::{Arc, OnceLock, Weak};

#[cfg(feature = "shuttle")]
pub use shuttled::*;

#[cfg(not(feature = "shuttle"))]
pub use dashmap::DashMap;
#[cfg(feature = "lock-times")]
pub use timed::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(not(any(feature = "shuttle", feature = "lock-times")))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(feature = "shuttle"))]
pub use std::sync::{atomic, mpsc};
#[cfg(not(feature = "shuttle"))]
pub use std::thread_local;

/// Runs `work` on the elastic pool of threads for work that blocks, and returns at once.
///
/// The pool grows with what is queued and its idle threads end by themselves, so a task may wait
/// for a disk without holding up another. `fuse` event threads hand everything that can wait
/// (a commit, a copy, reading `/proc` at close) to it.
#[cfg(not(feature = "shuttle"))]
pub fn spawn_blocking(work: impl FnOnce() + Send + 'static) {
    blocking::unblock(work).detach();
}
