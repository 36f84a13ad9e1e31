//! `latchfs check`: finds the documents that are not what they must be.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{IsTerminal as _, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use walkdir::{DirEntry, WalkDir};

use super::args::CheckArgs;
use super::configured::Configured;
use super::exit::{Exit, Failure, complain};
use super::output::{print_json, say};
use super::served::{self, Served};
use crate::backing::proc_path;
use crate::backing::store::DIRECTORY;
use crate::rules::Validation;
use crate::show::printable;
use crate::validate::{self, CheckError, Invalid};

/// How often a file is read again that changes while it is read.
const ATTEMPTS: u32 = 5;

/// A document to be checked.
struct Document {
    /// As the user knows it.
    shown: PathBuf,
    /// Where it can be read, past any mount: that one's readers could have to wait.
    path: PathBuf,
    validation: Validation,
    size: u64,
}

/// A document that is not what it must be.
#[derive(Debug, Serialize)]
struct Finding {
    #[serde(serialize_with = "lossy")]
    path: PathBuf,
    /// The path exactly, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<Vec<u8>>,
    #[serde(flatten)]
    place: Option<Spot>,
    problem: String,
}

#[derive(Debug, Serialize)]
struct Spot {
    line: usize,
    column: usize,
}

fn lossy<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// What came of it all.
#[derive(Debug, Default, Serialize)]
struct Report {
    checked: usize,
    invalid: Vec<Finding>,
}

/// Checks every document below the paths by the rules of its mount.
pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let mut report = Report::default();
    for path in &args.paths {
        let served = served::find(path)?;
        let configured = Configured::of(&served, args.by.config.as_deref())?;
        let documents = find(path, &served, &configured)?;
        let progress = progress(&documents);
        for document in documents {
            progress.set_message(printable(&document.shown));
            if let Some(finding) = check(&document) {
                if !args.by.json {
                    progress.suspend(|| tell(&finding));
                }
                report.invalid.push(finding);
            }
            report.checked += 1;
            progress.inc(document.size);
        }
        progress.finish_and_clear();
    }
    if args.by.json {
        print_json(&report)?;
    }
    let Report { checked, invalid } = report;
    if !invalid.is_empty() {
        let message = format!("{} of {} not valid", invalid.len(), documents(checked));
        return Err(Failure::new(Exit::Internal, message));
    }
    if !args.by.json {
        match checked {
            0 => say("there is nothing of which a rule says what it must be"),
            _ => say(format!("{}, all valid", documents(checked))),
        }
    }
    Ok(())
}

fn documents(count: usize) -> String {
    match count {
        1 => String::from("1 document"),
        _ => format!("{count} documents"),
    }
}

fn tell(finding: &Finding) {
    let path = printable(&finding.path);
    match &finding.place {
        Some(Spot { line, column }) => say(format!("{path}:{line}:{column}: {}", finding.problem)),
        None => say(format!("{path}: {}", finding.problem)),
    }
}

fn progress(documents: &[Document]) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bytes = documents.iter().map(|document| document.size).sum();
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {wide_msg}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The documents below a path.
fn find(path: &Path, served: &Served, configured: &Configured) -> Result<Vec<Document>, Failure> {
    let root = PathBuf::from(proc_path(served.root.as_fd().as_raw_fd()));
    // With something after the descriptor, or it would be taken for a link.
    let start = root.join(".").join(&served.rest);
    let unusable = |error: &dyn std::fmt::Display| {
        let message = format!("{} cannot be used: {error}", printable(path));
        Failure::new(Exit::Backing, message)
    };
    if let Err(error) = std::fs::symlink_metadata(&start) {
        return Err(unusable(&error));
    }
    let own = |entry: &DirEntry| entry.file_name() == OsStr::new(DIRECTORY);
    let mut documents = Vec::new();
    for entry in WalkDir::new(&start)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| !own(entry))
    {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let below = error.path().and_then(|at| at.strip_prefix(&start).ok());
                let shown = shown(path, below.unwrap_or(Path::new("")));
                complain(&format!(
                    "{} was left out: {}",
                    printable(&shown),
                    reason(&error)
                ));
                continue;
            }
        };
        if !entry.file_type().is_file() {
            continue;
        }
        let below = entry.path().strip_prefix(&start).unwrap_or(entry.path());
        let within = shown(&served.rest, below);
        let settings = configured.file.rules.settings(&within);
        let validation = settings.validate.unwrap_or(Validation::None);
        if validation != Validation::None {
            documents.push(Document {
                shown: shown(path, below),
                size: entry.metadata().map_or(0, |metadata| metadata.len()),
                path: entry.into_path(),
                validation,
            });
        }
    }
    Ok(documents)
}

/// Not by join alone, which would add a slash for nothing.
fn shown(given: &Path, below: &Path) -> PathBuf {
    match below.as_os_str().is_empty() {
        true => given.to_owned(),
        false => given.join(below),
    }
}

fn reason(error: &walkdir::Error) -> String {
    let io = error.io_error();
    io.map_or_else(|| error.to_string(), ToString::to_string)
}

/// What is wrong with a document, if something is.
fn check(document: &Document) -> Option<Finding> {
    let mut attempt = 1;
    let error = loop {
        match check_once(document) {
            Ok(()) => return None,
            // A version that took its place meanwhile, or one on its way into it.
            Err((_, true)) if attempt < ATTEMPTS => attempt += 1,
            Err((error, _)) => break error,
        }
    };
    let (place, problem) = match error {
        CheckError::Invalid(Invalid::At { line, column, what }) => {
            (Some(Spot { line, column }), what)
        }
        CheckError::Invalid(Invalid::Refused(said)) => (None, said),
        CheckError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        CheckError::Io(error) => (None, format!("it could not be checked: {error}")),
    };
    let bytes = document.shown.as_os_str().as_bytes();
    Some(Finding {
        path: document.shown.clone(),
        path_bytes: std::str::from_utf8(bytes).is_err().then(|| bytes.to_vec()),
        place,
        problem,
    })
}

/// The verdict, and whether the file was changed meanwhile.
fn check_once(document: &Document) -> Result<(), (CheckError, bool)> {
    let opened = open(&document.path).and_then(|file| Ok((file.metadata()?, file)));
    let (before, file) = opened.map_err(|error| (error.into(), false))?;
    let reopen = || Ok(open(&document.path)?.into());
    validate::check(&document.validation, (&file).take(u64::MAX), reopen).map_err(|error| {
        let after = std::fs::symlink_metadata(&document.path);
        let changed = after.is_ok_and(|after| which(&after) != which(&before));
        (error, changed)
    })
}

fn which(metadata: &Metadata) -> (u64, u64, i64, i64) {
    (
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

fn open(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}
