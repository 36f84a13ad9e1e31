//! The five phases of the origin's analysis, each a file that it leaves.

use super::error::FileLockError;
use super::holder::{self, Holder};
use super::target::Target;
use crate::backing::{Dir, Errno, Stat};
use crate::rules::Validation;
use crate::validate::{self, CheckError, Invalid};
use rustix::fs::{FlockOperation, OFlags};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a file that changes while it is looked at is looked at again.
const LOOKS: u32 = 3;

/// A phase of the analysis. They follow each other in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Phase {
    StockUniverse,
    TechnicalAnalysis,
    FundamentalAnalysis,
    SentimentAnalysis,
    FinalRankings,
}

impl Phase {
    /// All five.
    pub const ALL: [Self; 5] = [
        Self::StockUniverse,
        Self::TechnicalAnalysis,
        Self::FundamentalAnalysis,
        Self::SentimentAnalysis,
        Self::FinalRankings,
    ];

    /// Its name, as the functions take it.
    pub fn name(self) -> &'static str {
        match self {
            Self::StockUniverse => "stock_universe",
            Self::TechnicalAnalysis => "technical_analysis",
            Self::FundamentalAnalysis => "fundamental_analysis",
            Self::SentimentAnalysis => "sentiment_analysis",
            Self::FinalRankings => "final_rankings",
        }
    }

    /// The name of its file.
    pub fn file_name(self) -> String {
        format!("{}.json", self.name())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl AsRef<str> for Phase {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

impl FromStr for Phase {
    type Err = FileLockError;

    fn from_str(name: &str) -> Result<Self, FileLockError> {
        let found = Self::ALL.into_iter().find(|phase| phase.name() == name);
        found.ok_or_else(|| FileLockError::UnknownPhase {
            name: name.to_owned(),
        })
    }
}

/// How far a phase is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It has no file.
    Missing,
    /// Somebody has the file locked alone, or is writing it in a latchfs mount.
    InFlight(Option<Holder>),
    /// Its file is a JSON document.
    Valid,
    /// Its file is none.
    Invalid {
        /// The line of the error, from 1.
        line: usize,
        /// The column, in bytes.
        column: usize,
        /// What is wrong there.
        what: String,
    },
    /// Its file can't be read, for this reason.
    Unreadable(String),
}

/// What is known of a phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Which one.
    pub phase: Phase,
    /// How far it is.
    pub state: State,
    /// The size of its file in bytes: of the last version of one in flight.
    pub size: Option<u64>,
    /// When its file was last modified.
    pub modified: Option<SystemTime>,
}

/// Looks at all five phases in `dir`, and waits for nobody.
///
/// # Errors
/// [`FileLockError::Io`] if `dir` can't be opened.
pub fn look(dir: impl AsRef<Path>) -> Result<[Status; 5], FileLockError> {
    let dir = dir.as_ref();
    // A mount whose daemon is dead can be opened still, and nothing more.
    let there = Dir::open_root(dir).and_then(|dir| dir.stat());
    there.map_err(FileLockError::io(dir, "read"))?;
    Ok(Phase::ALL.map(|phase| look_at(dir, phase)))
}

/// Are all five phases there, whole, valid JSON, and nobody is writing one? Waits for nobody.
///
/// # Errors
/// [`FileLockError::Io`] if `dir` can't be opened.
pub fn is_analysis_complete(dir: impl AsRef<Path>) -> Result<bool, FileLockError> {
    let phases = look(dir)?;
    Ok(phases.iter().all(|status| status.state == State::Valid))
}

fn look_at(dir: &Path, phase: Phase) -> Status {
    let path = dir.join(phase.file_name());
    let mut looks = 0;
    loop {
        looks += 1;
        let (state, stat) = match state(&path) {
            Ok(Seen::State(state, stat)) => (state, stat),
            // Somebody was faster: it is in flight, if it stays so.
            Ok(Seen::Changing) if looks < LOOKS => continue,
            Ok(Seen::Changing) => (State::InFlight(None), None),
            Err(Errno::NOENT) => (State::Missing, None),
            Err(errno) => (State::Unreadable(io::Error::from(errno).to_string()), None),
        };
        let stat = stat.or_else(|| rustix::fs::stat(&path).ok());
        return Status {
            phase,
            state,
            size: stat.map(|stat| stat.st_size as u64),
            modified: stat.and_then(|stat| modified(&stat)),
        };
    }
}

enum Seen {
    State(State, Option<Stat>),
    /// It is another, or somebody is writing it, since it was opened.
    Changing,
}

fn state(path: &Path) -> Result<Seen, Errno> {
    if let Some(writer) = holder::writer(path) {
        return Ok(Seen::State(State::InFlight(Some(writer)), None));
    }
    let target = Target::of(path)?;
    let file = match target.open(OFlags::RDONLY) {
        Err(Errno::AGAIN | Errno::INTR | Errno::STALE) => return Ok(Seen::Changing),
        other => other?,
    };
    if let Some(in_flight) = locked(&file)? {
        return Ok(Seen::State(in_flight, None));
    }
    let stat = rustix::fs::fstat(&file)?;
    match validate::check(&Validation::Json, &file, || {
        file.try_clone().map(Into::into)
    }) {
        Ok(()) => Ok(Seen::State(State::Valid, Some(stat))),
        Err(CheckError::Io(error)) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        Err(CheckError::Invalid(invalid)) => {
            // Was it written meanwhile, in place?
            if let Some(in_flight) = locked(&file)? {
                return Ok(Seen::State(in_flight, None));
            }
            let written = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
            if written(&rustix::fs::fstat(&file)?) != written(&stat) || !target.is(&file)? {
                return Ok(Seen::Changing);
            }
            let state = match invalid {
                Invalid::At { line, column, what } => State::Invalid { line, column, what },
                Invalid::Refused(what) => State::Unreadable(what),
            };
            Ok(Seen::State(state, Some(stat)))
        }
    }
}

/// Has somebody the file locked alone? Asked by a shared lock, given back at once: what the kernel
/// tells of locks, it does not tell on every file system.
fn locked(file: &File) -> Result<Option<State>, Errno> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            rustix::fs::flock(file, FlockOperation::Unlock)?;
            Ok(None)
        }
        Err(Errno::WOULDBLOCK) => Ok(Some(State::InFlight(holder::locker(file)))),
        Err(errno) => Err(errno),
    }
}

fn modified(stat: &Stat) -> Option<SystemTime> {
    let seconds = u64::try_from(stat.st_mtime).ok()?;
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).ok()?;
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_known_by_its_name_only() {
        for phase in Phase::ALL {
            assert_eq!(phase.name().parse::<Phase>().expect("a phase"), phase);
            assert_eq!(phase.file_name(), format!("{phase}.json"));
        }
        let said = "final".parse::<Phase>().expect_err("no phase").to_string();
        for phase in Phase::ALL {
            assert!(said.contains(phase.name()), "{said}");
        }
    }
}
