//! Locks, and whom they exclude.

use crate::common::{kill, wait_until};
use crate::{helper, in_both};
use latchfs::{FileLockError, FileLocker, LockMode};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

fn short() -> FileLocker {
    FileLocker::new().timeout(Duration::from_millis(50))
}

fn is_free(path: &Path) -> bool {
    short().lock_file(path, LockMode::Update).is_ok()
}

#[test]
fn a_lock_ends_with_its_program_however_that_ends() {
    in_both(|dir| {
        let path = dir.join("data.txt");
        fs::write(&path, "{}").expect("written");
        for mode in ["r", "r+", "w", "a"] {
            let mut program = helper::start("hold", &[&path, Path::new(mode)]);
            assert_eq!(helper::hear(&program), "locked");
            assert!(!is_free(&path), "{mode}");
            kill(program.pid(), "KILL");
            program.wait();
            wait_until("the lock is free", || is_free(&path));
            let mut program = helper::start("hold", &[&path, Path::new(mode)]);
            assert_eq!(helper::hear(&program), "locked");
            program.tell("");
            assert_eq!(helper::hear(&program), "unlocked");
            assert!(is_free(&path), "{mode}");
            program.succeed();
        }
    });
}

#[test]
fn a_forked_child_does_not_keep_a_lock_that_its_parent_gives_back() {
    in_both(|dir| {
        let path = dir.join("data");
        fs::write(&path, "").expect("written");
        let mut program = helper::start("fork", &[&path]);
        assert_eq!(helper::hear(&program), "locked");
        assert!(!is_free(&path));
        program.tell("");
        assert_eq!(helper::hear(&program), "unlocked");
        let reads = short().lock_file(&path, LockMode::Read);
        assert!(reads.is_ok(), "{reads:?}");
        drop(reads);
        program.succeed();
    });
}

#[test]
fn a_thread_that_would_wait_for_itself_is_told_so_at_once() {
    in_both(|dir| {
        let path = dir.join("data.json");
        let link = dir.join("link.json");
        latchfs::safe_write_json(&path, &json!({})).expect("written");
        std::os::unix::fs::symlink("data.json", &link).expect("a link");
        let nested = |result: Result<(), FileLockError>| {
            assert!(
                matches!(result, Err(FileLockError::Nested { .. })),
                "{result:?}"
            );
        };
        let mut lock = latchfs::lock_file(&path, LockMode::Update).expect("locked");
        for name in [&path, &link] {
            nested(latchfs::lock_file(name, LockMode::Read).map(drop));
            nested(latchfs::safe_write_json(name, &json!({})));
            nested(latchfs::safe_append_file(name, ""));
            nested(latchfs::safe_read_json(name, Value::Null).map(drop));
        }
        // Also of the file that takes its place.
        lock.write_json(&json!([])).expect("written");
        nested(latchfs::lock_file(&path, LockMode::Read).map(drop));
        drop(lock);
        // Two that read do not exclude each other; one that writes would.
        let reads = latchfs::lock_file(&path, LockMode::Read).expect("locked");
        let value: Value = latchfs::safe_read_json(&path, Value::Null).expect("read");
        assert_eq!(value, json!([]));
        nested(latchfs::safe_write_json(&path, &json!({})));
        drop(reads);
        latchfs::safe_write_json(&path, &json!({})).expect("written");
    });
}

#[test]
fn another_thread_waits_and_gets_the_lock_on_what_is_the_file_then() {
    in_both(|dir| {
        let path = dir.join("data.json");
        latchfs::safe_write_json(&path, &json!({"by": 1})).expect("written");
        std::thread::scope(|scope| {
            let mut lock = latchfs::lock_file(&path, LockMode::Update).expect("locked");
            let refused = scope.spawn(|| short().safe_read_json(&path, Value::Null).map(drop));
            let refused = refused.join().expect("the thread");
            assert!(
                matches!(refused, Err(FileLockError::Timeout { .. })),
                "{refused:?}"
            );
            let waits = scope.spawn(|| {
                let mut lock = latchfs::lock_file(&path, LockMode::Update).expect("locked");
                let value: Value = lock.read_json(Value::Null).expect("read");
                lock.write_json(&json!([value])).expect("written");
            });
            lock.write_json(&json!({"by": 2})).expect("written");
            drop(lock);
            waits.join().expect("the thread");
        });
        let value: Value = latchfs::safe_read_json(&path, Value::Null).expect("read");
        assert_eq!(value, json!([{"by": 2}]));
    });
}

#[test]
fn each_mode_opens_the_file_as_python_does() {
    in_both(|dir| {
        let path = dir.join("notes.txt");
        for mode in [LockMode::Read, LockMode::Update] {
            let missing = latchfs::lock_file(&path, mode).expect_err("nothing is there");
            assert_eq!(
                missing.kind(),
                Some(std::io::ErrorKind::NotFound),
                "{missing}"
            );
        }
        assert!(!path.exists());
        let write = |mode, text: &str| {
            let mut file = latchfs::lock_file(&path, mode).expect("locked");
            file.write_all(text.as_bytes()).expect("written");
            file.unlock().expect("unlocked");
        };
        let content = || fs::read_to_string(&path).expect("the file");
        write(LockMode::Append, "one two\n");
        assert_eq!(content(), "one two\n");
        write(LockMode::Update, "ONE");
        assert_eq!(content(), "ONE two\n");
        write(LockMode::Append, "three\n");
        assert_eq!(content(), "ONE two\nthree\n");
        write(LockMode::Write, "four\n");
        assert_eq!(content(), "four\n");
        let mut file = latchfs::lock_file(&path, LockMode::Read).expect("locked");
        let mut text = String::new();
        file.rewind().expect("rewound");
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "four\n");
        assert!(file.write_all(b"x").is_err());
        assert!(file.replace(b"x").is_err());
        drop(file);
        assert_eq!(content(), "four\n");
    });
}
