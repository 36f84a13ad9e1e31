//! Appending to a log together with others: `safe_append_file`.
//!
//! `cargo run --example safe_append`

use std::error::Error;
use std::path::Path;

/// What the example does, in a directory of its own.
pub fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let path = dir.join("trades.log");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|trader| {
                let path = &path;
                scope.spawn(move || {
                    for trade in 0..25 {
                        let line = format!("trader {trader}, trade {trade}\n");
                        latchfs::safe_append_file(path, line)?;
                    }
                    Ok::<(), latchfs::FileLockError>(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a trader"))
    })?;
    let lines = std::fs::read_to_string(&path)?.lines().count();
    println!("{lines} lines");
    assert_eq!(lines, 100);
    Ok(())
}

#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path())
}
