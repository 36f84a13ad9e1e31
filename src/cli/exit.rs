//! How the command ends: the exit codes, which scripts may rely on, and the one-line errors.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use crate::backing::store::OpenError;
use crate::fuse::session::ServeErrorKind;
pub(super) use crate::show::shell_word;

/// Every exit code of the command. The numbers are a promise: they never change their meaning.
///
/// | code | meaning |
/// | ---- | ------- |
/// | 0 | done |
/// | 1 | internal failure; check: there is an invalid document |
/// | 2 | the command line cannot be used |
/// | 3 | BACKING, or DIR, cannot be used |
/// | 4 | MOUNTPOINT cannot be used |
/// | 5 | BACKING is already served by another latchfs |
/// | 6 | the kernel or fusermount3 refused the mount |
/// | 7 | umount: there is no latchfs mount at MOUNTPOINT |
/// | 8 | umount: the mount, or its daemon, is still there |
/// | 9 | the configuration file cannot be used |
/// | 10 | kept: there is no such version, or it cannot be restored there |
/// | 11 | phases: the analysis is not complete |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    Done = 0,
    Internal = 1,
    Usage = 2,
    Backing = 3,
    Mountpoint = 4,
    Busy = 5,
    Refused = 6,
    NotMounted = 7,
    StillMounted = 8,
    Configuration = 9,
    Kept = 10,
    Incomplete = 11,
}

impl Exit {
    const ALL: [Self; 12] = [
        Self::Done,
        Self::Internal,
        Self::Usage,
        Self::Backing,
        Self::Mountpoint,
        Self::Busy,
        Self::Refused,
        Self::NotMounted,
        Self::StillMounted,
        Self::Configuration,
        Self::Kept,
        Self::Incomplete,
    ];

    /// The number the process exits with.
    pub(super) fn code(self) -> u8 {
        self as u8
    }

    /// The exit code with this number.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.code() == code)
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Internal => "internal failure; check: there is an invalid document",
            Self::Usage => "the command line cannot be used",
            Self::Backing => {
                "BACKING, or DIR, cannot be used: missing, not a directory, no permission"
            }
            Self::Mountpoint => {
                "MOUNTPOINT cannot be used: missing, no directory, mounted, not apart from BACKING"
            }
            Self::Busy => "BACKING is already served by another latchfs",
            Self::Refused => "the kernel or fusermount3 refused the mount",
            Self::NotMounted => "umount: there is no latchfs mount at MOUNTPOINT",
            Self::StillMounted => {
                "umount: the mount or its daemon is still there: not finished in time, or not \
                 permitted"
            }
            Self::Configuration => "the configuration file cannot be used",
            Self::Kept => {
                "kept: there is no such version, or it cannot be restored: the file is newer, or \
                 was refused"
            }
            Self::Incomplete => "phases: the analysis is not complete; with --wait: not in time",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<ServeErrorKind> for Exit {
    fn from(kind: ServeErrorKind) -> Self {
        match kind {
            ServeErrorKind::Busy => Self::Busy,
            ServeErrorKind::Mount => Self::Refused,
            ServeErrorKind::Backing => Self::Backing,
            ServeErrorKind::Configuration => Self::Configuration,
            ServeErrorKind::Internal => Self::Internal,
        }
    }
}

impl From<&OpenError> for Exit {
    fn from(error: &OpenError) -> Self {
        match error {
            OpenError::Served(_) => Self::Busy,
            OpenError::Foreign(_) | OpenError::Writable(_) | OpenError::Io(..) => Self::Backing,
        }
    }
}

/// The table of exit codes that ends every `--help`.
pub(super) fn help_table() -> String {
    let mut table = String::from("Exit codes:");
    for exit in Exit::ALL {
        // Writing to a String cannot fail.
        let _ = write!(table, "\n  {}  {}", exit.code(), exit.meaning());
    }
    table
}

/// Why the command could not do what it was asked, in one line, and the code it exits with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl AsRef<str>) -> Self {
        let message = one_line(message.as_ref());
        Self { exit, message }
    }

    pub(super) fn usage(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Usage, message)
    }
}

/// Joins the non-empty lines of a text: what other programs say may have several.
pub(super) fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}

/// Prints one `latchfs: ...` line on stderr.
pub(super) fn complain(message: &str) {
    // Not eprintln: it panics when stderr is gone, and there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "latchfs: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_in_the_help() {
        let table = help_table();
        for (number, exit) in Exit::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(exit.code()), number);
            assert_eq!(Exit::from_code(exit.code()), Some(exit));
            assert!(table.contains(&format!("\n  {number}  {}", exit.meaning())));
        }
        let beyond = u8::try_from(Exit::ALL.len()).unwrap();
        assert_eq!(Exit::from_code(beyond), None);
    }

    #[test]
    fn every_serve_error_has_its_own_exit_code() {
        assert_eq!(Exit::from(ServeErrorKind::Internal).code(), 1);
        assert_eq!(Exit::from(ServeErrorKind::Backing).code(), 3);
        assert_eq!(Exit::from(ServeErrorKind::Busy).code(), 5);
        assert_eq!(Exit::from(ServeErrorKind::Mount).code(), 6);
        assert_eq!(Exit::from(ServeErrorKind::Configuration).code(), 9);
    }

    #[test]
    fn an_error_is_one_line_whatever_it_quotes() {
        let failure = Failure::new(Exit::Refused, "fusermount3: no\n\n  try again\n");
        assert_eq!(failure.message, "fusermount3: no; try again");
    }
}
