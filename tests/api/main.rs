//! The origin's API: on a plain directory and in a mount, alone and together with Python programs
//! that use `fcntl.flock` as the origin did.

#[path = "../common/mod.rs"]
mod common;
mod helper;
mod locks;
mod phases;
mod python;
mod writes;

use common::{Mount, mount};
use std::path::Path;

/// Runs a check in a plain directory, then in a mount.
fn in_both(check: impl Fn(&Path)) {
    let plain = tempfile::tempdir().expect("a directory");
    check(plain.path());
    let mount: Mount = mount();
    check(mount.point());
    drop(mount);
}

#[path = "../../examples/analysis.rs"]
mod analysis;
#[path = "../../examples/lock_file.rs"]
mod lock_file;
#[path = "../../examples/safe_append.rs"]
mod safe_append;
#[path = "../../examples/safe_json.rs"]
mod safe_json;

#[test]
fn the_examples_run_in_a_plain_directory_and_in_a_mount() {
    in_both(|dir| {
        safe_json::run(dir).expect("safe_json");
        safe_append::run(dir).expect("safe_append");
        lock_file::run(dir).expect("lock_file");
        analysis::run(dir).expect("analysis");
    });
}
