//! Rows of the table in docs/reliability.md, as the tools tell them.

use std::fs::OpenOptions;
use std::io::Write;

/// What came of one kind of fault.
pub struct Row<'a> {
    /// What went wrong: "power cut, ext4, durability full".
    pub fault: &'a str,
    /// How it was made to: "replay of the recorded writes up to each barrier, and a part of those after it".
    pub injected: &'a str,
    /// How many cases were looked at.
    pub cases: u64,
    /// In how many of them something was lost, torn or left behind.
    pub violations: u64,
    /// The command that does it again.
    pub command: &'a str,
}

impl Row<'_> {
    /// Prints the row, and adds it to the file that the variable `LATCHFS_RELIABILITY` names
    /// (`scripts/reliability` makes the table of it).
    ///
    /// # Panics
    /// If that file can't be written.
    pub fn report(&self) {
        let Self {
            fault,
            injected,
            cases,
            violations,
            command,
        } = self;
        let line = format!("{fault}\t{injected}\t{cases}\t{violations}\t{command}\n");
        print!("reliability\t{line}");
        if let Some(path) = std::env::var_os("LATCHFS_RELIABILITY") {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
            written.expect("the file of the rows");
        }
    }
}
