//! Programs that use the API: this test binary, started again.

use crate::common::Running;
use latchfs::{FileLocker, LockMode};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const WORK: &str = "LATCHFS_TEST_API_WORK";

/// Starts a program that does `work` (a function below) with words of its own.
pub fn start(work: &str, words: &[&Path]) -> Running {
    Running::new(&mut command(work, words))
}

/// The same, to be started otherwise.
pub fn command(work: &str, words: &[&Path]) -> Command {
    use std::os::unix::process::CommandExt;
    let mut all = vec![PathBuf::from(work)];
    all.extend(words.iter().map(|word| word.to_path_buf()));
    let all: Vec<&str> = all.iter().filter_map(|word| word.to_str()).collect();
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args([
            "--exact",
            "helper::a_program_that_other_tests_start",
            "--nocapture",
        ])
        .env(WORK, all.join("\n"))
        .process_group(0);
    command
}

/// The next word of it.
pub fn hear(program: &Running) -> String {
    loop {
        if let Some(said) = program.hear().strip_prefix("> ") {
            return said.to_owned();
        }
    }
}

fn say(word: impl std::fmt::Display) {
    let mut out = std::io::stdout();
    writeln!(out, "\n> {word}")
        .and_then(|()| out.flush())
        .expect("a listener");
}

fn wait_for_a_line() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
}

/// A document of a few MiB, all of it of this number.
pub fn large(number: u64) -> Value {
    json!({"number": number, "all": vec![number; 100_000], "end": number})
}

pub fn is_whole(document: &Value) -> bool {
    let number = document["number"].as_u64();
    let all = document["all"].as_array().expect("a list");
    all.len() == 100_000 && document["end"].as_u64() == number && all[99_999].as_u64() == number
}

#[test]
fn a_program_that_other_tests_start() {
    let Ok(work) = std::env::var(WORK) else {
        return;
    };
    let words: Vec<&str> = work.split('\n').collect();
    let path = Path::new(words[1]);
    let patient = FileLocker::new().timeout(Duration::from_secs(60));
    match words[0] {
        "hold" => {
            let lock = latchfs::lock_file(path, words[2].parse().expect("a mode")).expect("locked");
            say("locked");
            wait_for_a_line();
            lock.unlock().expect("unlocked");
            say("unlocked");
            wait_for_a_line();
        }
        "fork" => {
            let lock = latchfs::lock_file(path, LockMode::Update).expect("locked");
            // SAFETY: the child calls nothing but pause(2), and is killed with its group.
            let child = unsafe { libc::fork() };
            if child == 0 {
                loop {
                    // SAFETY: as above.
                    unsafe { libc::pause() };
                }
            }
            say("locked");
            wait_for_a_line();
            lock.unlock().expect("unlocked");
            say("unlocked");
            wait_for_a_line();
            // SAFETY: it is this process's own child.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        "overwrite" => {
            for number in 1.. {
                latchfs::safe_write_json(path, &large(number)).expect("written");
                say(number);
            }
        }
        "count" => {
            for _ in 0..100 {
                let mut lock = patient.lock_file(path, LockMode::Update).expect("locked");
                let value: Value = lock.read_json(Value::Null).expect("read");
                let number = value["number"].as_u64().expect("a number");
                lock.write_json(&json!({"number": number + 1}))
                    .expect("written");
            }
        }
        "count_beside" => {
            for _ in 0..100 {
                let lock = patient
                    .lock_file(words[2], LockMode::Write)
                    .expect("locked");
                count_once(path, &patient);
                drop(lock);
            }
        }
        "count_without" => (0..100).for_each(|_| count_once(path, &patient)),
        "append" => match latchfs::safe_append_file(path, vec![b'x'; 5000]) {
            Ok(()) => say("appended"),
            Err(error) => say(error),
        },
        other => panic!("what is {other}?"),
    }
}

fn count_once(path: &Path, patient: &FileLocker) {
    let value: Value = patient.safe_read_json(path, Value::Null).expect("read");
    let number = value["number"].as_u64().expect("a number");
    let next = json!({"number": number + 1});
    patient.safe_write_json(path, &next).expect("written");
}
