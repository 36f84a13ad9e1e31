//! Files that are appended to: each write(2) of an `O_APPEND` handle is one record.

#[path = "../common/mod.rs"]
mod common;

mod handles;
mod records;
mod recovery;
mod rotation;
mod updates;
