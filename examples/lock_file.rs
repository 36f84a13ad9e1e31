//! Changing a document while nobody else does: `lock_file`, `FileLocker`, `FileLockError`.
//!
//! `cargo run --example lock_file`

use latchfs::{FileLockError, FileLocker, LockMode};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::time::Duration;

/// What the example does, in a directory of its own.
pub fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let path = dir.join("portfolio.json");
    latchfs::safe_write_json(&path, &json!({"cash": 1000, "shares": 0}))?;

    // Read, change and replace under one lock: no update of another's is lost.
    let mut portfolio = latchfs::lock_file(&path, LockMode::Update)?;
    let mut value: Value = portfolio.read_json(json!({}))?;
    value["cash"] = json!(900);
    value["shares"] = json!(2);
    portfolio.write_json(&value)?;

    // Another thread waits for its turn, here not for long.
    let other = std::thread::scope(|scope| {
        let impatient = || {
            let locker = FileLocker::new().timeout(Duration::from_millis(50));
            locker.lock_file(&path, LockMode::Read).map(drop)
        };
        scope.spawn(impatient).join().expect("the other thread")
    });
    match other {
        Err(error @ FileLockError::Timeout { .. }) => println!("another thread: {error}"),
        other => panic!("it should have waited in vain: {other:?}"),
    }

    // This thread would wait for itself, and is told so at once.
    let again = latchfs::lock_file(&path, LockMode::Read);
    assert!(matches!(again, Err(FileLockError::Nested { .. })));

    portfolio.unlock()?;
    let value: Value = latchfs::safe_read_json(&path, json!({}))?;
    println!("now: {value}");
    assert_eq!(value, json!({"cash": 900, "shares": 2}));
    Ok(())
}

#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}
