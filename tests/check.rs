//! `latchfs check` finds what is not valid, on a mount and beside it.

mod common;

use common::{Mount, as_each_user, text};
use std::path::Path;
use std::process::Command;

/// Runs `latchfs check` in a directory, and returns how it ended and what it said.
fn check(mut command: Command, dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = common::finish(command.arg("check").args(args).current_dir(dir));
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), out, err)
}

fn on(mount: &Mount, args: &[&str]) -> (Option<i32>, String, String) {
    check(mount.command(common::LATCHFS), mount.point(), args)
}

/// What a killed or careless program leaves where nothing protects a file.
fn spoil(mount: &Mount) {
    let behind = mount.backing().display();
    mount.bash(&format!(
        "cd {behind}; mkdir -p deep/er; printf '{{\"a\": 1,\\n \"b\": }}' > deep/er/half.json
         : > empty.json; echo nonsense > free.txt; echo '[1]' > good.json; ln -s deep/er/half.json link.json"
    ));
}

#[test]
fn every_invalid_document_is_found_with_its_place() {
    as_each_user(|mount| {
        spoil(mount);
        for from in [mount.point(), mount.backing()] {
            let (code, out, err) = check(mount.command(common::LATCHFS), from, &[]);
            let lines: Vec<&str> = out.lines().collect();
            assert_eq!(
                lines,
                [
                    "./deep/er/half.json:2:7: expected value",
                    "./empty.json:1:0: EOF while parsing a value"
                ]
            );
            assert_eq!(err, "latchfs: 2 of 3 documents not valid\n");
            assert_eq!(code, Some(1));
        }
        let (code, out, _) = on(mount, &["good.json", "free.txt"]);
        assert_eq!((code, &*out), (Some(0), "1 document, all valid\n"));
        let (code, out, _) = on(mount, &["deep/er/half.json"]);
        assert_eq!(
            (code, &*out),
            (Some(1), "deep/er/half.json:2:7: expected value\n")
        );
        let (code, out, _) = on(mount, &["--json", "."]);
        assert_eq!(code, Some(1));
        let told: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(told["checked"], 3);
        assert_eq!(told["invalid"][0]["path"], "./deep/er/half.json");
        assert_eq!(told["invalid"][0]["line"], 2);
        let (code, _, err) = on(mount, &["nowhere"]);
        assert!(
            err.contains("nowhere cannot be used: No such file"),
            "{err}"
        );
        assert_eq!(code, Some(3));
    });
}

#[test]
fn a_file_that_is_being_written_is_read_in_its_last_version_at_once() {
    as_each_user(|mount| {
        mount.bash("echo '[1]' > a.json");
        let writer = mount.spawn_python(
            "f = open('a.json', 'w')\nf.write('[2')\nf.flush()\nsay('open')\nhear()\n",
        );
        writer.expect("open");
        let (code, out, _) = on(mount, &["."]);
        assert_eq!((code, &*out), (Some(0), "1 document, all valid\n"));
    });
}

#[test]
fn a_directory_that_never_was_mounted_is_checked_by_the_built_in_rules() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("a.json"), "{").expect("write");
    let (code, out, _) = check(Command::new(common::LATCHFS), dir.path(), &["."]);
    assert_eq!(
        (code, &*out),
        (Some(1), "./a.json:1:1: EOF while parsing an object\n")
    );
    let named = dir.path().join("rules.toml");
    std::fs::write(&named, "[[rule]]\nmatch = '*'\nvalidate = 'none'\n").expect("write");
    let named = format!("--config={}", named.display());
    let (code, out, _) = check(Command::new(common::LATCHFS), dir.path(), &[&named]);
    assert_eq!(
        (code, &*out),
        (
            Some(0),
            "there is nothing of which a rule says what it must be\n"
        )
    );
    assert!(!dir.path().join(".latchfs").exists());
}

#[test]
fn an_odd_name_is_shown_so_that_it_stays_on_its_line() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    for name in [&b"a\nb\x1b[2J.json"[..], b"\xff.json"] {
        let path = dir.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::write(path, "{").expect("write");
    }
    let (code, out, _) = check(Command::new(common::LATCHFS), dir.path(), &["."]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(code, Some(1));
    assert_eq!(lines.len(), 2, "{out:?}");
    assert!(
        lines[0].starts_with(r"./a\nb\u{1b}[2J.json:1:1: "),
        "{out:?}"
    );
    assert!(lines[1].starts_with(r"./\xff.json:1:1: "), "{out:?}");
    let (_, out, _) = check(Command::new(common::LATCHFS), dir.path(), &["--json", "."]);
    let told: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(told["invalid"][1]["path_bytes"][2], 0xff);
}

#[test]
fn on_a_terminal_there_is_a_progress_bar() {
    let mount = common::mount();
    spoil(&mount);
    let out = mount.bash(&format!(
        "script -qec 'stty cols 80; {} check .' /dev/null || true",
        common::LATCHFS
    ));
    assert!(out.contains("half.json:2:7"), "{out:?}");
    assert!(out.contains(" B/"), "{out:?}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mount = common::mount();
    spoil(&mount);
    let out = mount.bash(&format!(
        "{} check . 2>&1 >/dev/null | true; {} rules $(seq 500) | head -1",
        common::LATCHFS,
        common::LATCHFS
    ));
    assert_eq!(out, "/1\n");
}
