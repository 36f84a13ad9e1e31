//! The mirror: whatever is done in the mount gives what it gives in a bare directory, the same
//! results, the same errors, and the same files in BACKING.

#[path = "../common/mod.rs"]
mod common;

mod attributes;
mod behind;
mod content;
mod hidden;
mod holes;
mod listing;
mod names;
mod options;
mod pair;
mod permissions;
mod special;
mod xattrs;
