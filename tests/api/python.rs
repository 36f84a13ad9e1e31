//! Together with Python programs that use `fcntl.flock` on the same files.

use crate::common::{Running, mount, options};
use crate::{helper, in_both};
use latchfs::{FileLockError, FileLocker, LockMode};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// As the origin: an exclusive lock is tried again and again, until the time is over.
const ORIGIN: &str = r#"
import fcntl, json, os, sys, time
def say(word):
    print(word, flush=True)
def lock(path, mode, timeout):
    file = open(path, mode)
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= end:
                file.close()
                raise TimeoutError(path)
            time.sleep(0.002)
def lock_what_is_there(path, timeout):
    while True:
        file = lock(path, 'r+', timeout)
        try:
            if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()
def replace(path, value):
    temp = f'{path}.{os.getpid()}.tmp'
    with open(temp, 'w') as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temp, path)
path = sys.argv[1]
"#;

pub fn python(script: &str, words: &[&Path]) -> Running {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("python3");
    command
        .arg("-c")
        .arg(format!("{ORIGIN}{script}"))
        .args(words);
    Running::new(command.process_group(0))
}

/// Tries to lock, not for long.
const TRY: &str = r#"
for line in sys.stdin:
    try:
        lock(path, 'r', 0.1).close()
        say('locked')
    except TimeoutError:
        say('timeout')
"#;

/// Holds the lock until it hears a line.
pub const HOLD: &str = r#"
file = lock(path, 'r', 60)
say('locked')
sys.stdin.readline()
file.close()
say('unlocked')
sys.stdin.readline()
"#;

#[test]
fn python_programs_are_excluded_by_every_lock_and_only_as_long() {
    let check = |dir: &Path| {
        let path = dir.join("data.json");
        latchfs::safe_write_json(&path, &json!({})).expect("written");
        let mut other = python(TRY, &[&path]);
        for mode in [LockMode::Read, LockMode::Update, LockMode::Append] {
            let lock = latchfs::lock_file(&path, mode).expect("locked");
            other.tell("");
            other.expect("timeout");
            lock.unlock().expect("unlocked");
            other.tell("");
            other.expect("locked");
        }
        // Also of the file that takes its place.
        let mut lock = latchfs::lock_file(&path, LockMode::Update).expect("locked");
        lock.write_json(&json!({"new": true})).expect("written");
        other.tell("");
        other.expect("timeout");
        lock.unlock().expect("unlocked");
        other.tell("");
        other.expect("locked");
        other.succeed();
    };
    check(tempfile::tempdir().expect("a directory").path());
    // Here an open for reading waits as long as this for a lock that is taken to write.
    check(options().arg("--lock-timeout=300ms").mount().point());
}

#[test]
fn a_lock_of_a_python_program_excludes_every_call() {
    in_both(|dir| {
        let path = dir.join("data.json");
        latchfs::safe_write_json(&path, &json!({"old": 1})).expect("written");
        let mut other = python(HOLD, &[&path]);
        other.expect("locked");
        let short = FileLocker::new().timeout(Duration::from_millis(50));
        let none = Value::Null;
        let results = [
            short.lock_file(&path, LockMode::Read).map(drop),
            short.lock_file(&path, LockMode::Update).map(drop),
            short.safe_read_json(&path, none).map(drop),
            short.safe_write_json(&path, &json!({})),
            short.safe_append_file(&path, "x"),
        ];
        for result in results {
            assert!(
                matches!(result, Err(FileLockError::Timeout { .. })),
                "{result:?}"
            );
        }
        other.tell("");
        other.expect("unlocked");
        let value: Value = latchfs::safe_read_json(&path, Value::Null).expect("read");
        assert_eq!(value, json!({"old": 1}));
        other.succeed();
    });
}

#[test]
fn the_error_names_who_has_the_file_locked() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("data.json");
    fs::write(&path, "{}").expect("written");
    let mut other = python(HOLD, &[&path]);
    other.expect("locked");
    let short = FileLocker::new().timeout(Duration::from_millis(20));
    let said = short
        .safe_write_json(&path, &json!({}))
        .expect_err("locked")
        .to_string();
    let who = format!("it is locked by python3 (pid {})", other.pid());
    assert!(
        said.contains(&who) && said.contains("within 20ms"),
        "{said}"
    );
    other.tell("");
    other.expect("unlocked");
    other.succeed();
}

fn number(path: &Path) -> u64 {
    let value: Value = latchfs::safe_read_json(path, Value::Null).expect("read");
    value["number"].as_u64().expect("a number")
}

/// Two programs of each language count to a hundred each.
fn count(ours: &str, theirs: &str, path: &Path, words: &[&Path]) -> u64 {
    latchfs::safe_write_json(path, &json!({"number": 0})).expect("written");
    let words: Vec<&Path> = std::iter::once(path).chain(words.iter().copied()).collect();
    let mut programs: Vec<Running> = (0..2)
        .flat_map(|_| [helper::start(ours, &words), python(theirs, &words)])
        .collect();
    programs.iter_mut().for_each(Running::succeed);
    number(path)
}

#[test]
fn no_update_is_lost_by_two_languages_that_lock_the_file_they_change() {
    let in_place = r#"
for _ in range(100):
    file = lock_what_is_there(path, 60)
    value = json.load(file)
    value['number'] += 1
    file.seek(0)
    file.truncate()
    json.dump(value, file)
    file.close()
"#;
    let by_rename = r#"
for _ in range(100):
    file = lock_what_is_there(path, 60)
    value = json.load(file)
    value['number'] += 1
    replace(path, value)
    file.close()
"#;
    in_both(|dir| {
        for (name, theirs) in [("in_place", in_place), ("by_rename", by_rename)] {
            assert_eq!(count("count", theirs, &dir.join(name), &[]), 400, "{name}");
        }
    });
}

#[test]
fn no_update_is_lost_by_two_languages_that_lock_another_file() {
    let theirs = r#"
for _ in range(100):
    file = lock(sys.argv[2], 'w', 60)
    value = json.load(open(path))
    value['number'] += 1
    replace(path, value)
    file.close()
"#;
    in_both(|dir| {
        let lock = dir.join("number.lock");
        assert_eq!(
            count("count_beside", theirs, &dir.join("number"), &[&lock]),
            400
        );
    });
}

#[test]
fn the_same_programs_lose_updates_without_locks() {
    let theirs = r#"
for _ in range(100):
    value = json.load(open(path))
    value['number'] += 1
    replace(path, value)
"#;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("number");
    assert!((0..5).any(|_| count("count_without", theirs, &path, &[]) < 400));
}

#[test]
fn a_program_that_writes_without_a_lock_in_a_mount_is_not_waited_for_nor_seen_half_way() {
    let mount = mount();
    let path = mount.path("data.json");
    latchfs::safe_write_json(&path, &json!({"old": 1})).expect("written");
    let mut writer = python(
        "file = open(path, 'w')\nfile.write('{\"new\": ')\nfile.flush()\nsay('half')\n\
         sys.stdin.readline()\nfile.write('1}')\nfile.close()\nsay('done')\nsys.stdin.readline()\n",
        &[&path],
    );
    writer.expect("half");
    let read = || -> Value { latchfs::safe_read_json(&path, Value::Null).expect("read") };
    assert_eq!(read(), json!({"old": 1}));
    writer.tell("");
    writer.expect("done");
    assert_eq!(read(), json!({"new": 1}));
    writer.succeed();
}
