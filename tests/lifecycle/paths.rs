//! Paths as odd as Linux allows, for BACKING, MOUNTPOINT and the log file.

use crate::common::{User, finish, text};
use crate::scene::{Scene, source_of};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

/// Mounts a BACKING and a MOUNTPOINT of this name, works in it, and unmounts it.
#[track_caller]
fn works(user: User, name: &[u8]) {
    let backing = [b"B", name].concat();
    let point = [b"M", name].concat();
    let scene = Scene::named(user, OsStr::from_bytes(&backing), OsStr::from_bytes(&point));
    let log = scene.dir.join(OsStr::from_bytes(&[b"L", name].concat()));
    let mut args = vec![
        OsStr::new("mount"),
        OsStr::new("--log-file"),
        log.as_os_str(),
    ];
    args.extend([scene.backing.as_os_str(), scene.point.as_os_str()]);
    let output = scene.latchfs(args);
    assert_eq!(text(&output.stderr), "", "{name:?}");
    assert_eq!(
        scene.mounts(),
        std::slice::from_ref(&scene.point),
        "{name:?}"
    );
    assert_eq!(
        source_of(&scene.point).as_deref(),
        Some(scene.backing.as_os_str())
    );
    let script = "cd \"$1\" && echo x > f && cat f && rm f && echo y > g";
    let mut shell = scene.command("sh");
    shell.args(["-c", script, "sh"]).arg(&scene.point);
    let output = finish(shell.stdin(Stdio::null()));
    assert_eq!(text(&output.stdout), "x\n", "{}", text(&output.stderr));
    assert_eq!(
        fs::read_to_string(scene.backing.join("g")).expect("g"),
        "y\n"
    );
    let again = [
        OsStr::new("mount"),
        scene.backing.as_os_str(),
        scene.point.as_os_str(),
    ];
    scene.refuses(&again, 4, "already");
    scene.unmount();
    assert!(
        fs::read_to_string(&log)
            .expect("the log")
            .contains("unmounted")
    );
}

#[test]
fn spaces_commas_backslashes_and_unicode_in_paths_work() {
    for user in [User::Root, User::Ordinary] {
        for name in [
            " with space",
            " trailing ",
            ",comma,ro,",
            "\\backslash\\040\\",
            "\\,both,\\\\",
            "größe 文件 🦀",
            "'quotes\"",
            "#hash",
            "tab\there",
            "=equals=",
            "$(touch x)`touch y`;*?",
            "-rf",
            "%s%n",
        ] {
            works(user, name.as_bytes());
        }
    }
}

#[test]
fn a_newline_in_a_path_works() {
    for user in [User::Root, User::Ordinary] {
        works(user, b"new\nline");
    }
}

#[test]
fn a_backing_whose_path_is_not_utf_8_is_refused() {
    for user in [User::Root, User::Ordinary] {
        let name = OsStr::from_bytes(b"\xff\xfe");
        let scene = Scene::named(user, name, OsStr::new("point"));
        let output = scene.latchfs([OsStr::new("mount"), name, OsStr::new("point")]);
        assert_eq!(output.status.code(), Some(3));
        let said = text(&output.stderr);
        assert!(
            said.contains("UTF-8") && said.lines().count() == 1,
            "{said}"
        );
        assert!(scene.mounts().is_empty());
    }
}

#[test]
fn a_path_that_starts_with_a_dash_works_after_two_dashes() {
    let scene = Scene::named(User::Root, OsStr::new("-o"), OsStr::new("--help"));
    let output = scene.latchfs(["mount", "--log-file=log", "--", "-o", "--help"]);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(scene.mounts(), std::slice::from_ref(&scene.point));
    let daemon = scene.daemon();
    let output = scene.latchfs(["umount", "--", "--help"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    scene.check_gone(daemon);
}

#[test]
fn relative_paths_and_links_lead_to_the_same_mount() {
    for user in [User::Root, User::Ordinary] {
        let scene = Scene::new(user);
        std::os::unix::fs::symlink("backing", scene.dir.join("to backing")).expect("symlink");
        std::os::unix::fs::symlink("point", scene.dir.join("to point")).expect("symlink");
        let output = scene.latchfs([
            "mount",
            "--log-file=log",
            "to backing",
            "./point/../to point/.",
        ]);
        assert_eq!(text(&output.stderr), "");
        assert_eq!(scene.mounts(), std::slice::from_ref(&scene.point));
        let daemon = scene.daemon();
        let output = scene.latchfs(["umount", "to point"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        scene.check_gone(daemon);
    }
}
