//! `tail -F`, which polls on a FUSE mount: what it notices, and what it does not.

mod common;

use common::{Mount, Running, as_each_user, finish};
use std::path::Path;

fn tail(mount: &Mount, at: &Path) -> Running {
    let script = format!(
        "cd '{}' && exec tail -n +1 -s 0.05 --max-unchanged-stats=1 -F f 2>&1",
        at.display()
    );
    mount.spawn("bash", &script)
}

fn sh(mount: &Mount, at: &Path, script: &str) {
    let mut command = mount.command("bash");
    command.args(["-c", script]).current_dir(at);
    let output = finish(&mut command);
    assert!(output.status.success(), "{output:?}");
}

/// What it says of a file that has become another.
fn replaced(tail: &Running) {
    let line = tail.hear();
    let said = [
        "has been replaced",
        "has become inaccessible",
        "has appeared",
    ];
    assert!(said.iter().any(|words| line.contains(words)), "{line}");
    if line.contains("inaccessible") {
        let line = tail.hear();
        assert!(line.contains("has appeared"), "{line}");
    }
}

/// Runs a test in the bare directory and in the mount, while tail follows `f` there.
fn while_followed(test: impl Fn(&Mount, &Path, &Running)) {
    as_each_user(|mount| {
        let bare = mount.point().with_file_name("bare");
        sh(mount, Path::new("/"), &format!("mkdir {}", bare.display()));
        for at in [bare.as_path(), mount.point()] {
            sh(mount, at, "echo first > f");
            let tail = tail(mount, at);
            tail.expect("first");
            test(mount, at, &tail);
        }
    });
}

#[test]
fn tail_follows_a_log_through_rotations_and_renames_over_it() {
    while_followed(|mount, at, tail| {
        for n in 0..5 {
            // A whole file each time, as logrotate and careful programs leave it.
            sh(mount, at, &format!("echo over {n} > t; mv t f"));
            replaced(tail);
            tail.expect(&format!("over {n}"));
            let rotate = format!("echo rotated {n} > t; mv f f.1; mv t f");
            sh(mount, at, &rotate);
            replaced(tail);
            tail.expect(&format!("rotated {n}"));
        }
    });
}

// The limit that docs/semantics.md tells of: the file's number is the same, and the handle keeps
// its version. (What is appended it shows.)
#[test]
fn tail_sees_nothing_of_an_overwrite_until_the_file_is_another() {
    while_followed(|mount, at, tail| {
        sh(mount, at, "echo appended >> f");
        tail.expect("appended");
        // In time for tail to look while it is being written.
        sh(mount, at, "{ echo two; sleep 0.5; } > f");
        if at != mount.point() {
            let line = tail.hear();
            assert!(line.contains("truncated"), "{line}");
            tail.expect("two");
        }
        sh(mount, at, "echo over > t; mv t f");
        replaced(tail);
        tail.expect("over");
    });
}
