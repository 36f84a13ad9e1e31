//! The store: a daemon that is killed leaves nothing that the next mount does not put right by
//! itself, before it serves the first request (S2).

#[path = "../common/mod.rs"]
mod common;

mod crashes;
mod failures;
mod recover;
mod recovery;
