//! What is done on the mount: ordinary programs, which know nothing of it, in a process of their own.

use crate::common::{DEADLINE, finish, text};
use crate::scenarios;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program at work in a directory.
pub struct Program {
    dir: PathBuf,
    open: HashMap<&'static str, File>,
}

/// What it does next. That is over, and acknowledged, when this returns without an error.
pub type Does = fn(&mut Program) -> io::Result<()>;

impl Program {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            open: HashMap::new(),
        }
    }

    /// A path in the directory.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Opens a file and keeps it open: `>` writes it anew, `>>` appends, `+` updates it in place.
    pub fn open(&mut self, how: &str, name: &'static str) -> io::Result<&mut File> {
        let mut options = OpenOptions::new();
        match how {
            ">" => options.write(true).create(true).truncate(true),
            ">>" => options.append(true).create(true),
            "+" => options.read(true).write(true),
            _ => panic!("{how}?"),
        };
        let file = options.open(self.at(name))?;
        self.open.insert(name, file);
        Ok(self.file(name))
    }

    /// A file that is open.
    pub fn file(&mut self, name: &str) -> &mut File {
        self.open.get_mut(name).expect("an open file")
    }

    /// Closes a file, and returns what close(2) says.
    pub fn close(&mut self, name: &str) -> io::Result<()> {
        let file = self.open.remove(name).expect("an open file");
        // SAFETY: the descriptor is this file's own, and nobody has it any more.
        match unsafe { libc::close(file.into_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Opens, writes and closes.
    pub fn save(&mut self, how: &str, name: &'static str, content: &str) -> io::Result<()> {
        self.open(how, name)?.write_all(content.as_bytes())?;
        self.close(name)
    }

    /// truncate(2), by name.
    pub fn truncate(&self, name: &str, length: i64) -> io::Result<()> {
        let path = CString::new(self.at(name).into_os_string().into_vec())?;
        // SAFETY: the path is a string that ends with a zero.
        match unsafe { libc::truncate(path.as_ptr(), length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Runs a shell in the directory, which must succeed.
    pub fn sh(&self, script: &str) -> io::Result<()> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).current_dir(&self.dir);
        match command.stdin(Stdio::null()).status()? {
            status if status.success() => Ok(()),
            status => Err(io::Error::other(format!("{script}: {status}"))),
        }
    }
}

/// The variable by which the process of [`run`] knows that it is one, and what it is to do.
const VARIABLE: &str = "LATCHFS_SWEEP_PROGRAM";

/// Not a test, but the process that [`run`] starts.
#[test]
fn program_of_a_scenario() {
    let Ok(wanted) = std::env::var(VARIABLE) else {
        return;
    };
    let (name, dir) = wanted.split_once('\n').expect("scenario and directory");
    let mut program = Program::new(Path::new(dir));
    for (done, step) in scenarios::find(name).steps.iter().enumerate() {
        if let Err(error) = (step.does)(&mut program) {
            println!("\nfailed: {error}");
            return;
        }
        println!("\ndone: {done}");
    }
    println!("\nall done");
}

/// Runs the program of a scenario in a directory. Returns how many steps were acknowledged to it,
/// and what it says if those are not all.
pub fn run(scenario: &str, dir: &Path) -> (usize, Result<(), String>) {
    let this = std::env::current_exe().expect("this binary");
    let mut command = Command::new("timeout");
    command
        .arg(DEADLINE.as_secs().to_string())
        .arg(this)
        .args(["--exact", "program::program_of_a_scenario", "--nocapture"])
        .arg("--test-threads=1")
        .env(VARIABLE, format!("{scenario}\n{}", dir.display()))
        .stdin(Stdio::null());
    let output = finish(&mut command);
    let said = text(&output.stdout);
    let done = said.lines().filter(|line| line.starts_with("done: "));
    let all = said.lines().any(|line| line == "all done");
    let words = || format!("{said}{}", text(&output.stderr));
    (done.count(), if all { Ok(()) } else { Err(words()) })
}
