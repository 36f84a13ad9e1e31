//! latchfs: a FUSE file system that gives unmodified programs atomic, locked file updates.
//!
//! The layers, each knowing only those below it:
//!
//! - [`cli`]: the command line.
//! - [`api`]: safe reads, writes and locks for programs that can be changed; what is at the root of the
//!   crate. No part of the mount.
//! - [`fuse`]: one thin method per FUSE request.
//! - [`engine`]: versions, node ids, transactions, commits; the rules of docs/semantics.md.
//! - [`rules`]: which files get what.
//! - [`leases`]: who may write and who waits: pure. [`owner`]: what `/proc` tells of a thread.
//!   [`backing`]: every system call on the directory that is mirrored.
//! - `show`: how names are shown. `sync`: locks and the pool of threads. `memory`: what is given back to the system.

pub mod api;
pub mod backing;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fuse;
pub mod in_flight;
pub mod leases;
pub mod locks;
mod memory;
pub mod owner;
pub mod rules;
mod show;
pub mod sync;
pub mod validate;

pub use api::{
    FileLockError, FileLocker, LockMode, LockedFile, Phase, is_analysis_complete,
    load_analysis_phase_safe, lock_file, safe_append_file, safe_read_json, safe_write_json,
    save_analysis_phase_safe,
};
