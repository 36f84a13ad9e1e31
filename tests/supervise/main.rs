//! `latchfs mount --supervise`: users should not have to know that a daemon died.

#[path = "../common/mod.rs"]
mod common;

mod ends;
mod failing;
mod killed;
mod watchdog;
mod window;
