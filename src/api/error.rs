//! Why a file could not be locked, read or written.

use super::holder::Holder;
use super::phases::Phase;
use crate::backing::Errno;
use crate::show::printable;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a file could not be locked, read or written. A failed write has left the file as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileLockError {
    /// Somebody else has had the file locked, or open for writing on a latchfs mount, all the time.
    #[error(
        "{} could not be locked within {}{}",
        printable(.path),
        humantime::format_duration(*.timeout),
        .holder.as_ref().map(|h| format!(": it is locked by {h}")).unwrap_or_default()
    )]
    Timeout {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        timeout: Duration,
        /// Who has it, as far as that could be told.
        holder: Option<Holder>,
    },
    /// This thread holds a lock on the file already, and would wait for itself.
    #[error(
        "{} is locked by this thread already: use that lock, or give it back first",
        printable(.path)
    )]
    Nested {
        /// The file.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("{} could not be {doing}: {source}", printable(.path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: `locked`, `read`, `written`.
        doing: &'static str,
        /// What the file system says.
        source: io::Error,
    },
    /// The value has no form in JSON, or the document is JSON, but not of the type asked for.
    #[error("{}: {source}", printable(.path))]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// There is no such phase.
    #[error("there is no phase {name:?}; the phases are {}", Phase::ALL.map(Phase::name).join(", "))]
    UnknownPhase {
        /// What was asked for.
        name: String,
    },
    /// There is no such mode.
    #[error("there is no mode {mode:?} of a lock; the modes are r, r+, w, a")]
    UnknownMode {
        /// What was asked for.
        mode: String,
    },
}

impl FileLockError {
    /// What `path` can't be done, and why.
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::Io {
            path,
            doing,
            source: errno.into(),
        }
    }

    /// What the file system says, where it is that which went wrong.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            Self::Timeout { .. } => Some(io::ErrorKind::TimedOut),
            _ => None,
        }
    }
}
