//! Random sequences of system calls by several programs, through the engine without a kernel and on a
//! real mount, against a plain model in memory of what is promised.
//!
//! `LATCHFS_TIMES=N` tries N times as many sequences.

#[path = "../common/mod.rs"]
mod common;
mod compare;
mod engine;
mod mounted;
mod op;
mod reference;
mod regressions;
#[path = "../common/scripted.rs"]
mod scripted;
