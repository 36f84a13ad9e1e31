//! Every call that the daemon does on BACKING fails once, with each errno that a disk may give: the
//! program is told, the file is whole, the daemon lives, and nothing is left behind.

#[path = "../common/mod.rs"]
mod common;

mod fault;
mod recovery;
mod scenarios;
mod sweep;
