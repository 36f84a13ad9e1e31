//! Faults of others: programs that are stopped, killed or too many, a clock that jumps, a disk that fails
//! under the daemon. The file is the old version or the new one, who can go on goes on, and nothing
//! is left behind.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod clock;
mod crowd;
mod descriptors;
mod disks;
mod stopped;
