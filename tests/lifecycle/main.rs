//! The life of a mount: how it begins, what refuses to begin, and that nothing stays of it.

#[path = "../common/mod.rs"]
mod common;

mod in_place;
mod logging;
mod mounting;
mod paths;
mod refusals;
mod scene;
mod unmounting;
mod unmounting_in_use;
