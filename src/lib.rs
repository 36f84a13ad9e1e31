//! latchfs: a FUSE file system that gives unmodified programs atomic, locked file updates.
//!
//! The layers, each knowing only those below it:
//!
//! - [`cli`]: the command line.
//! - [`fuse`]: one thin method per FUSE request.
//! - [`engine`]: versions, node ids, transactions, commits; the rules of docs/semantics.md.
//! - [`rules`]: which files get what.
//! - [`leases`]: who may write and who waits: pure. [`owner`]: what `/proc` tells of a thread.
//!   [`backing`]: every system call on the directory that is mirrored.
//! - `show`: how names are shown. `sync`: locks and the pool of threads. `memory`: what is given back to the system.

pub mod backing;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fuse;
pub mod leases;
pub mod locks;
mod memory;
pub mod owner;
pub mod rules;
mod show;
pub mod sync;
pub mod validate;
