//! The scenarios of `scripts/conformance.d/clients.d` that are quick: real programs in the mount and
//! in a bare directory, with the same exit status, the same output, and the same tree afterwards:
//! types, modes, owners, links, sizes, holes, times, extended attributes, ACLs, content.

mod common;

use common::{Mount, User, finish, options, test_user, text};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tool(name: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("python3");
    command.arg("-B");
    command.arg(root.join("scripts/conformance.d").join(name));
    command.env("CONFORMANCE_FAST", "1").stdin(Stdio::null());
    command
}

fn show(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Runs scenarios on a mount of a user's, and beside it.
fn same_on(mount: &Mount, user: User, names: &[&str]) {
    let bare = mount.point().with_file_name("bare");
    std::fs::create_dir(&bare).expect("mkdir");
    // One by one: each has the whole deadline.
    for name in names {
        let mut command = tool("clients.py");
        if user == User::Ordinary {
            let (uid, gid) = test_user();
            std::os::unix::fs::chown(&bare, Some(uid), Some(gid)).expect("chown");
            command.uid(uid).gid(gid);
            // Not the python3 that root may have in its home.
            command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        }
        let output = finish(command.arg(&bare).arg(mount.point()).arg(name));
        assert!(output.status.success(), "{user:?}: {}", show(&output));
    }
}

fn same(names: &[&str]) {
    for user in [User::Root, User::Ordinary] {
        // What programs see; power cuts are other tests' business.
        let mut options = options().user(user).arg("--durability=none");
        if user == User::Root {
            options = options.arg("-o").arg("dev,suid");
        }
        let mount = options.mount();
        same_on(&mount, user, names);
        mount.unmount();
    }
}

#[test]
fn the_comparison_of_trees_tells_every_kind_of_difference() {
    for (tool_name, says) in [
        ("manifest.py", "kinds of difference seen"),
        ("clients.py", "every difference is told"),
    ] {
        let output = finish(tool(tool_name).arg("--self-test"));
        assert!(output.status.success(), "{}", show(&output));
        assert!(text(&output.stdout).contains(says), "{}", show(&output));
    }
}

#[test]
fn tar_and_cpio_bring_everything_back() {
    same(&["tar", "cpio"]);
}

#[test]
fn after_rsync_both_ways_nothing_is_left_to_send() {
    same(&["rsync"]);
}

#[test]
fn copies_moves_and_edits_in_place_leave_the_same_tree() {
    same(&["coreutils", "editing"]);
}

#[test]
fn git_finds_a_clean_tree_after_each_command_and_two_can_commit() {
    same(&["git"]);
}

#[test]
fn sqlite_loses_no_row_of_two_processes_of_which_one_is_killed() {
    same(&["sqlite"]);
}

#[test]
fn many_processes_at_once_leave_what_they_leave_in_a_bare_directory() {
    same(&["together"]);
}

#[test]
fn logs_are_rotated() {
    same(&["logging"]);
}

#[test]
fn cargo_builds_finds_all_fresh_and_builds_again_after_a_change() {
    let mount = options().arg("--durability=none").mount();
    same_on(&mount, User::Root, &["cargo"]);
    mount.unmount();
}
