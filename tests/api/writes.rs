//! What a write leaves, also when it fails or is killed.

use crate::common::{Running, User, finish, kill, options, test_user, text, wait_until};
use crate::{helper, in_both};
use latchfs::{FileLockError, FileLocker, LockMode};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

fn read(path: &Path) -> Value {
    latchfs::safe_read_json(path, json!("default")).expect("read")
}

/// Where a replacement has its name for a moment.
fn leftover(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    path.with_file_name(format!(".{name}.latchfs-tmp"))
}

#[test]
fn documents_are_read_tolerantly_and_written_exactly() {
    in_both(|dir| {
        let path = dir.join("data.txt");
        assert_eq!(read(&path), json!("default"));
        for content in ["", "\n", "{\"half\": "] {
            fs::write(&path, content).expect("written");
            assert_eq!(read(&path), json!("default"), "{content:?}");
        }
        let value = json!({"z": [1, 2.5], "a": "\u{e9}\n", "none": null});
        latchfs::safe_write_json(&path, &value).expect("written");
        let expected = "{\n  \"z\": [\n    1,\n    2.5\n  ],\n  \"a\": \"\u{e9}\\n\",\n  \
                        \"none\": null\n}\n";
        assert_eq!(fs::read_to_string(&path).expect("the file"), expected);
        assert_eq!(read(&path), value);
        let other = latchfs::safe_read_json(&path, 1_u8);
        assert!(
            matches!(other, Err(FileLockError::Json { .. })),
            "{other:?}"
        );
        let is_dir = latchfs::safe_write_json(dir, &value);
        assert!(
            matches!(is_dir, Err(FileLockError::Io { .. })),
            "{is_dir:?}"
        );
        let nowhere = latchfs::safe_write_json(dir.join("no/where"), &value).expect_err("no way");
        assert_eq!(
            nowhere.kind(),
            Some(std::io::ErrorKind::NotFound),
            "{nowhere}"
        );
    });
}

#[test]
fn attributes_survive_and_symbolic_links_are_written_through() {
    in_both(|dir| {
        let path = dir.join("data.json");
        latchfs::safe_write_json(&path, &json!(1)).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        std::os::unix::fs::chown(&path, Some(1234), Some(4321)).expect("chown");
        let attribute = "user.latchfs-test";
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, attribute, b"kept", flags).expect("setxattr");
        let link = dir.join("link.json");
        symlink("data.json", &link).expect("a link");
        latchfs::safe_write_json(&link, &json!(2)).expect("written");
        assert!(link.symlink_metadata().expect("the link").is_symlink());
        let stat = fs::symlink_metadata(&path).expect("the file");
        assert_eq!(
            (stat.mode() & 0o7777, stat.uid(), stat.gid()),
            (0o640, 1234, 4321)
        );
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(&path, attribute, &mut value).expect("getxattr");
        assert_eq!(&value[..length], b"kept");
        assert_eq!(read(&path), json!(2));
        // One whose target is not there yet.
        let early = dir.join("early.json");
        symlink("late.json", &early).expect("a link");
        latchfs::safe_write_json(&early, &json!(3)).expect("written");
        assert_eq!(read(&dir.join("late.json")), json!(3));
        let circle = dir.join("circle.json");
        symlink("circle.json", &circle).expect("a link");
        assert!(latchfs::safe_write_json(&circle, &json!(4)).is_err());
        // A new file is as open(2) makes it.
        fs::File::create(dir.join("by_open")).expect("made");
        let mode = |name: &str| fs::metadata(dir.join(name)).expect("there").mode();
        assert_eq!(mode("late.json"), mode("by_open"));
    });
}

#[test]
fn a_killed_writer_leaves_the_old_document_or_the_new_one() {
    in_both(|dir| {
        let path = dir.join("data.json");
        latchfs::safe_write_json(&path, &helper::large(0)).expect("written");
        for round in 0..8 {
            let mut program = helper::start("overwrite", &[&path]);
            assert_eq!(helper::hear(&program), "1");
            // Somewhere in the second or a later one.
            std::thread::sleep(Duration::from_millis(5 * round));
            kill(program.pid(), "KILL");
            program.wait();
            let value = read(&path);
            assert!(helper::is_whole(&value));
        }
        latchfs::safe_write_json(&path, &helper::large(1)).expect("written");
        assert!(!leftover(&path).exists());
    });
}

#[test]
fn a_program_killed_while_it_writes_in_place_leaves_a_torn_document() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("data.json");
    fs::write(&path, "{}").expect("written");
    let mut program = crate::python::python(
        "file = open(path, 'w')\nfile.write('{\"half\": ')\nfile.flush()\nsay('half')\nsys.stdin.readline()\n",
        &[&path],
    );
    program.expect("half");
    kill(program.pid(), "KILL");
    program.wait();
    assert_eq!(read(&path), json!("default"));
}

#[test]
fn what_a_killed_program_left_is_removed_by_the_next_writer_and_what_another_uses_is_not() {
    in_both(|dir| {
        let path = dir.join("data.json");
        latchfs::safe_write_json(&path, &json!(1)).expect("written");
        let left = leftover(&path);
        fs::write(&left, "torn").expect("written");
        latchfs::safe_write_json(&path, &json!(2)).expect("written");
        assert!(!left.exists());
        fs::write(&left, "of another").expect("written");
        let mut other = crate::python::python(crate::python::HOLD, &[&left]);
        other.expect("locked");
        let short = FileLocker::new().timeout(Duration::from_millis(50));
        let result = short.safe_write_json(&path, &json!(3));
        assert!(
            matches!(result, Err(FileLockError::Timeout { .. })),
            "{result:?}"
        );
        assert_eq!(fs::read_to_string(&left).expect("there"), "of another");
        assert_eq!(read(&path), json!(2));
        other.tell("");
        other.expect("unlocked");
        latchfs::safe_write_json(&path, &json!(3)).expect("written");
        assert!(!left.exists());
        other.succeed();
    });
}

#[test]
fn of_many_that_make_a_file_at_once_each_makes_it_whole() {
    in_both(|dir| {
        for round in 0..20 {
            let path = dir.join(format!("{round}.json"));
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let path = &path;
                    scope.spawn(move || {
                        latchfs::safe_write_json(path, &json!([thread])).expect("written");
                    });
                }
            });
            assert!(read(&path).is_array());
            assert!(!leftover(&path).exists());
        }
    });
}

#[test]
fn readers_without_locks_see_whole_documents_only() {
    in_both(|dir| {
        let path = dir.join("data.json");
        latchfs::safe_write_json(&path, &helper::large(0)).expect("written");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in 1..20 {
                    latchfs::safe_write_json(&path, &helper::large(number)).expect("written");
                }
            });
            while !writer.is_finished() {
                let content = fs::read(&path).expect("read");
                let value: Value = serde_json::from_slice(&content).expect("a document");
                assert!(helper::is_whole(&value));
            }
        });
    });
}

#[test]
fn an_append_that_does_not_fit_is_taken_back() {
    in_both(|dir| {
        let path = dir.join("log.txt");
        latchfs::safe_append_file(&path, "first\n").expect("appended");
        latchfs::safe_append_file(&path, "second\n").expect("appended");
        let content = || fs::read_to_string(&path).expect("the file");
        assert_eq!(content(), "first\nsecond\n");
        // A part of it fits below the limit in size.
        let mut command = helper::command("append", &[&path]);
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let mut limited = Command::new("bash");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 2; exec \"$@\"", "bash"])
            .args(words)
            .envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        let said = text(&finish(limited.stdin(Stdio::null())).stdout);
        assert!(
            said.contains("could not be written: File too large"),
            "{said}"
        );
        assert_eq!(content(), "first\nsecond\n");
        let said = text(&finish(command.stdin(Stdio::null())).stdout);
        assert!(said.contains("> appended"), "{said}");
        assert_eq!(content().len(), 5013);
    });
}

#[test]
fn in_a_mount_what_is_written_through_the_lock_appears_whole_when_it_is_given_back() {
    let mount = crate::mount();
    let path = mount.path("notes.txt");
    fs::write(&path, "old").expect("written");
    let mut file = latchfs::lock_file(&path, LockMode::Write).expect("locked");
    std::io::Write::write_all(&mut file, b"new").expect("written");
    assert_eq!(mount.read_behind("notes.txt"), "old");
    file.unlock().expect("unlocked");
    assert_eq!(mount.read_behind("notes.txt"), "new");
    wait_until("nothing is in flight", || mount.read("notes.txt") == "new");
}

#[test]
fn an_ordinary_users_program_replaces_appends_and_is_killed_in_a_mount_of_its_own() {
    use std::os::unix::process::CommandExt;
    let mount = options().user(User::Ordinary).mount();
    let (uid, gid) = test_user();
    let (path, log) = (mount.path("data.json"), mount.path("log.txt"));
    for _ in 0..3 {
        let mut command = helper::command("overwrite", &[&path]);
        let mut program = Running::new(command.uid(uid).gid(gid));
        while helper::hear(&program) != "2" {}
        kill(program.pid(), "KILL");
        program.wait();
        let value: Value = serde_json::from_str(&mount.read("data.json")).expect("a document");
        assert!(helper::is_whole(&value));
        let stat = fs::metadata(mount.behind("data.json")).expect("the file");
        assert_eq!((stat.uid(), stat.gid()), (uid, gid));
    }
    let mut command = helper::command("append", &[&log]);
    let said = text(&finish(command.uid(uid).gid(gid).stdin(Stdio::null())).stdout);
    assert!(said.contains("> appended"), "{said}");
    assert_eq!(mount.read("log.txt").len(), 5000);
}
