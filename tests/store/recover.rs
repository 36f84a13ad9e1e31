//! `latchfs recover`: by hand what the next mount does by itself, with each thing said.

use crate::common::{LATCHFS, Mount, finish, options, text};
use crate::recovery::{BOTH, chmod, give, put, put_redo, put_right};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Output;

fn run(mount: &Mount, args: &[&str]) -> Output {
    let mut command = mount.command(LATCHFS);
    finish(command.arg("recover").args(args).arg(mount.backing()))
}

#[track_caller]
fn recover(mount: &Mount, args: &[&str]) -> String {
    let output = run(mount, args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

#[track_caller]
fn recover_json(mount: &Mount, args: &[&str]) -> Value {
    let said = recover(mount, &[&["--json"], args].concat());
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let backing = mount.backing().canonicalize().expect("BACKING");
    assert_eq!(report["backing"], json!(backing));
    assert_eq!(report["dry_run"], json!(args.contains(&"--dry-run")));
    assert_eq!(report.as_object().expect("an object").len(), 3);
    report["actions"].clone()
}

/// One of everything that a crash can leave.
fn leave_all(mount: &Mount) {
    mount.bash("mkdir d; echo old > d/f; ln d/f g; chmod 444 g; echo gone > h");
    mount.unmount();
    put_redo(mount, "1.0", "d/f", "new\n");
    chmod(&mount.behind(".latchfs/redo/1.0.data"), 0o444);
    put_redo(mount, "2.0", "h", "of a file that is gone\n");
    fs::remove_file(mount.behind("h")).expect("rm");
    put(mount, "redo/3.0.data", "never announced");
    put(mount, "tmp/leftover", "");
    put(mount, "kept/4.data", "kept");
    put(
        mount,
        "tmp/4.json",
        r#"{"path":"/x","time":1,"pid":2,"program":"p","reason":"r"}"#,
    );
    put(mount, "kept/5.json", "{}");
}

/// What there is to say of it.
fn all() -> Value {
    json!([
        {"kind": "leftover-removed", "path": ".latchfs/kept/5.json",
         "detail": "the record of a version that is not kept any more"},
        {"kind": "leftover-removed", "path": ".latchfs/redo/3.0.data",
         "detail": "an update that was not begun"},
        {"kind": "leftover-removed", "path": ".latchfs/tmp/leftover",
         "detail": "the leftover of a commit"},
        {"kind": "record-restored", "path": ".latchfs/kept/4.json",
         "detail": "the record of a kept version"},
        {"kind": "update-finished", "path": "d/f", "detail": ""},
        {"kind": "update-kept", "path": "h", "detail": "the file is no longer there"},
    ])
}

fn sorted(actions: &Value) -> Value {
    let mut actions = actions.as_array().expect("a list").clone();
    actions.sort_by_key(Value::to_string);
    actions.sort_by_key(|action| format!("{} {}", action["kind"], action["path"]));
    Value::Array(actions)
}

/// All that a change would change in BACKING.
fn state(mount: &Mount) -> Vec<(PathBuf, u64, i64, i64, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![mount.backing().to_owned()];
    while let Some(path) = todo.pop() {
        let stat = path.symlink_metadata().expect("stat");
        let mut content = Vec::new();
        if stat.is_dir() {
            let entries = fs::read_dir(&path).expect("list");
            todo.extend(entries.map(|entry| entry.expect("entry").path()));
        } else {
            content = fs::read(&path).expect("read");
        }
        let (ctime, nsec) = (stat.ctime(), stat.ctime_nsec());
        found.push((path, stat.ino(), ctime, nsec, stat.mode(), content));
    }
    found.sort();
    found
}

#[test]
fn recover_does_the_same_by_hand_and_says_what_it_did() {
    for user in BOTH {
        let mount = options().user(user).mount();
        leave_all(&mount);
        let said = recover(&mount, &[]);
        let name = mount.backing().display();
        for words in [
            "finished the interrupted update of d/f",
            "kept an interrupted update of h aside: the file is no longer there",
            "removed .latchfs/tmp/leftover: the leftover of a commit",
            "removed .latchfs/redo/3.0.data: an update that was not begun",
            "restored .latchfs/kept/4.json: the record of a kept version",
        ] {
            assert!(said.contains(&format!("{name}: {words}\n")), "{said}");
        }
        assert_eq!(said.lines().count(), 6, "{said}");
        assert_eq!(mount.read_behind("g"), "new\n");
        assert_eq!(mount.store("redo"), [""; 0]);
        assert_eq!(mount.store("tmp"), [""; 0]);
        assert_eq!(mount.store("kept").len(), 4);
        // Once is enough, by hand and by the next mount.
        assert_eq!(
            recover(&mount, &[]),
            format!("{name}: nothing to put right\n")
        );
        assert_eq!(recover_json(&mount, &[]), json!([]));
        mount.start();
        assert_eq!(put_right(&mount), [""; 0]);
    }
}

#[test]
fn a_dry_run_says_the_same_and_changes_nothing() {
    for user in BOTH {
        let mount = options().user(user).mount();
        leave_all(&mount);
        let before = state(&mount);
        let said = recover(&mount, &["--dry-run"]);
        for words in [
            "would finish the interrupted update of d/f",
            "would keep an interrupted update of h aside",
            "would remove .latchfs/tmp/leftover",
            "would restore .latchfs/kept/4.json",
        ] {
            assert!(said.contains(words), "{said}");
        }
        let planned = recover_json(&mount, &["--dry-run"]);
        assert_eq!(sorted(&planned), all());
        assert_eq!(state(&mount), before);
        // What is done is what was said.
        assert_eq!(recover_json(&mount, &[]), planned);
        assert_ne!(state(&mount), before);
        assert_eq!(recover_json(&mount, &["--dry-run"]), json!([]));
    }
}

#[test]
fn recovering_what_latchfs_never_served_makes_nothing() {
    let mount = options().mount();
    let plain = mount.backing().with_file_name("plain");
    fs::create_dir(&plain).expect("mkdir");
    fs::write(plain.join("f"), "x").expect("write");
    for args in [
        &[][..],
        &["--dry-run"],
        &["--json"],
        &["--json", "--dry-run"],
    ] {
        let mut command = mount.command(LATCHFS);
        let output = finish(command.arg("recover").args(args).arg(&plain));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(fs::read_dir(&plain).expect("list").count(), 1);
    }
    for (path, words) in [
        (plain.join("f"), "is not a directory"),
        (plain.join("missing"), "No such file"),
        (mount.behind(".latchfs"), "run: latchfs recover"),
    ] {
        if path.ends_with(".latchfs") {
            mount.unmount();
        }
        let mut command = mount.command(LATCHFS);
        let output = finish(command.arg("recover").arg(&path));
        assert_eq!(output.status.code(), Some(3), "{path:?}");
        let said = text(&output.stderr);
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn nobody_recovers_what_a_daemon_serves_or_another_user_mounted() {
    for user in BOTH {
        let mount = options().user(user).mount();
        for args in [&[][..], &["--dry-run"], &["--json"]] {
            for path in [mount.backing(), mount.point()] {
                let mut command = mount.command(LATCHFS);
                let output = finish(command.arg("recover").args(args).arg(path));
                assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
                let pid = mount.daemon().to_string();
                assert!(text(&output.stderr).contains(&pid));
                assert_eq!(text(&output.stdout), "");
            }
        }
    }
    let mount = options().user(BOTH[1]).mount();
    mount.unmount();
    for args in [&[][..], &["--dry-run"]] {
        let mut command = std::process::Command::new(LATCHFS);
        let output = finish(command.arg("recover").args(args).arg(mount.backing()));
        assert_eq!(output.status.code(), Some(3));
        let said = text(&output.stderr);
        assert!(said.contains("belongs to user"), "{said}");
    }
}

#[test]
fn what_was_done_before_a_failure_is_said_too() {
    let mount = options().user(BOTH[1]).mount();
    mount.unmount();
    put(&mount, "redo/1.0.data", "never announced");
    put(&mount, "tmp/leftover", "");
    let stuck = mount.behind(".latchfs/tmp/stuck");
    fs::create_dir(&stuck).expect("mkdir");
    give(&mount, &stuck);
    let output = run(&mount, &["--json"]);
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let first = &report["actions"][0];
    assert_eq!(first["path"], json!(".latchfs/redo/1.0.data"));
    let said = text(&output.stderr);
    assert!(said.contains("Is a directory"), "{said}");
    fs::remove_dir(stuck).expect("rmdir");
}

#[test]
fn a_version_whose_file_may_not_be_written_any_more_is_kept_aside() {
    // The file went to somebody else meanwhile: root may write it, its user may not.
    let mount = options().user(BOTH[1]).mount();
    mount.bash("echo old > f; ln f g");
    mount.unmount();
    put_redo(&mount, "1.0", "f", "new\n");
    std::os::unix::fs::chown(mount.behind("f"), Some(0), Some(0)).expect("chown");
    let planned = recover_json(&mount, &["--dry-run"]);
    let actions = recover_json(&mount, &[]);
    assert_eq!(planned, actions);
    assert_eq!(actions[0]["kind"], json!("update-kept"));
    let detail = actions[0]["detail"].as_str().expect("words");
    assert!(
        detail.starts_with("the file can't be written: "),
        "{detail}"
    );
    assert_eq!(mount.read_behind("g"), "old\n");
    assert_eq!(mount.store("kept").len(), 2);
}
