//! kill -9 of the daemon at each of its system calls.

#[path = "../common/mod.rs"]
mod common;

mod tool;
