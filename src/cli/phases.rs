//! `latchfs phases`: how far the origin's analysis is in a directory, which may be in a mount.

use super::exit::{Exit, Failure, shell_word};
use super::output::print;
use super::values::any_duration;
use crate::api::phases::{State, Status, look};
use crate::api::{FileLockError, Holder};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long nothing is heard before the directory is looked at again all the same: a lock that is
/// given back makes no event.
const RECHECK: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct PhasesArgs {
    /// The directory with the files of the analysis [default: .]
    dir: Option<PathBuf>,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Return when the analysis is complete, or after this time: 10s, 1m 30s; a number is seconds
    /// [default: no limit]
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1)]
    wait: Option<Option<OsString>>,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
struct Plan {
    dir: PathBuf,
    /// `None`: it is not waited. `Some(None)`: without a limit.
    wait: Option<Option<Duration>>,
}

impl PhasesArgs {
    /// `--wait DIR` means the directory; clap takes it for the time.
    fn plan(&self) -> Result<Plan, Failure> {
        let duration = |text: &OsString| {
            let text = text.to_string_lossy();
            any_duration(&text).map_err(|e| Failure::usage(format!("--wait {text}: {e}")))
        };
        let (dir, wait) = match (&self.dir, &self.wait) {
            (Some(dir), Some(Some(time))) => (dir.clone(), Some(Some(duration(time)?))),
            (Some(dir), wait) => (dir.clone(), wait.as_ref().map(|_| None)),
            (None, Some(Some(dir))) if duration(dir).is_err() => (dir.into(), Some(None)),
            (None, Some(Some(time))) => (PathBuf::from("."), Some(Some(duration(time)?))),
            (None, wait) => (PathBuf::from("."), wait.as_ref().map(|_| None)),
        };
        Ok(Plan { dir, wait })
    }
}

/// Prints how far each phase is; fails if the analysis is not complete (in time).
pub(super) fn run(args: &PhasesArgs) -> Result<(), Failure> {
    let Plan { dir, wait } = args.plan()?;
    let phases = match wait {
        None => look(&dir).map_err(unusable)?,
        Some(limit) => wait_for(&dir, limit)?,
    };
    let text = match args.json {
        true => format!("{:#}\n", document(&dir, &phases)),
        false => table(&phases),
    };
    let _ = print(&text);
    let open = phases.iter().filter(|status| status.state != State::Valid);
    let open: Vec<&str> = open.map(|status| status.phase.name()).collect();
    match open.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(
            Exit::Incomplete,
            format!(
                "{}: the analysis is not complete{}: {}",
                shell_word(&dir),
                if wait.is_some() { " in time" } else { "" },
                open.join(", ")
            ),
        )),
    }
}

fn unusable(error: FileLockError) -> Failure {
    Failure::new(Exit::Backing, error.to_string())
}

fn is_complete(phases: &[Status]) -> bool {
    phases.iter().all(|status| status.state == State::Valid)
}

/// Looks whenever something happens in the directory, until the analysis is complete or the time is
/// over.
fn wait_for(dir: &Path, limit: Option<Duration>) -> Result<[Status; 5], Failure> {
    let began = Instant::now();
    let failed =
        |what| move |e| Failure::new(Exit::Internal, format!("{}: {what}: {e}", shell_word(dir)));
    let mut watch: Option<OwnedFd> = None;
    loop {
        let phases = look(dir).map_err(unusable)?;
        let left = limit.map_or(RECHECK, |limit| limit.saturating_sub(began.elapsed()));
        if is_complete(&phases) || left.is_zero() {
            return Ok(phases);
        }
        let Some(watch) = &watch else {
            // And look again: something may have happened before.
            watch = Some(watch_dir(dir).map_err(failed("can't be watched"))?);
            continue;
        };
        hear(watch, left.min(RECHECK)).map_err(failed("can't be watched"))?;
    }
}

fn watch_dir(dir: &Path) -> rustix::io::Result<OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    // What its own looks do, opens and closes of readers, must not wake it.
    let events = inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::ATTRIB
        | inotify::WatchFlags::ONLYDIR;
    inotify::add_watch(&watch, dir, events)?;
    Ok(watch)
}

/// Waits for an event, and takes all there are.
fn hear(watch: &OwnedFd, limit: Duration) -> rustix::io::Result<()> {
    let limit = Timespec::try_from(limit).unwrap_or(Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    });
    match rustix::event::poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    let mut events = [0; 4096];
    while rustix::io::read(watch, &mut events).is_ok_and(|read| read > 0) {}
    Ok(())
}

/// How long ago it was modified; nothing, if that is in the future.
fn age(status: &Status) -> Option<Duration> {
    let modified = status.modified?;
    Some(
        SystemTime::now()
            .duration_since(modified)
            .unwrap_or_default(),
    )
}

fn name(state: &State) -> &'static str {
    match state {
        State::Missing => "missing",
        State::InFlight(_) => "in flight",
        State::Valid => "valid",
        State::Invalid { .. } => "invalid",
        State::Unreadable(_) => "unreadable",
    }
}

fn remark(state: &State) -> String {
    match state {
        State::InFlight(Some(holder)) => match holder.since {
            Some(since) => format!("by {holder} for {}", rounded(since)),
            None => format!("by {holder}"),
        },
        State::Invalid { line, column, what } => format!("line {line}, column {column}: {what}"),
        State::Unreadable(why) => why.clone(),
        State::Missing | State::InFlight(None) | State::Valid => String::new(),
    }
}

fn rounded(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

fn table(phases: &[Status]) -> String {
    let mut text = format!(
        "{:<22}{:<12}{:>12}  {:<16}\n",
        "PHASE", "STATE", "BYTES", "AGE"
    );
    for status in phases {
        let size = status.size.map(|size| size.to_string()).unwrap_or_default();
        let age = age(status).map(rounded).unwrap_or_default();
        let line = format!(
            "{:<22}{:<12}{size:>12}  {age:<16}  {}",
            status.phase.name(),
            name(&status.state),
            remark(&status.state)
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The document of `--json`; docs/api.md describes it.
fn document(dir: &Path, phases: &[Status]) -> Value {
    let phases: Vec<Value> = phases.iter().map(of_phase).collect();
    let complete = phases.iter().all(|phase| phase["state"] == "valid");
    json!({
        "directory": dir.to_string_lossy(),
        "complete": complete,
        "phases": phases,
    })
}

fn of_phase(status: &Status) -> Value {
    let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (error, in_flight) = match &status.state {
        State::Invalid { line, column, what } => (
            json!({"line": line, "column": column, "message": what}),
            Value::Null,
        ),
        State::Unreadable(why) => (
            json!({"line": null, "column": null, "message": why}),
            Value::Null,
        ),
        State::InFlight(Some(holder)) => (Value::Null, of_holder(holder)),
        State::Missing | State::InFlight(None) | State::Valid => (Value::Null, Value::Null),
    };
    json!({
        "phase": status.phase.name(),
        "file": status.phase.file_name(),
        "state": name(&status.state).replace(' ', "_"),
        "size": status.size,
        "modified": status.modified.map(|at| since_epoch(at).as_secs_f64()),
        "age": age(status).map(|age| age.as_secs_f64()),
        "in_flight": in_flight,
        "error": error,
    })
}

fn of_holder(holder: &Holder) -> Value {
    json!({
        "pid": holder.pid,
        "program": holder.program,
        "seconds": holder.since.map(|since| since.as_secs_f64()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser as _;

    fn plan(words: &[&str]) -> Result<Plan, String> {
        let words = ["latchfs", "phases"].iter().chain(words);
        match Cli::try_parse_from(words)
            .map_err(|e| e.to_string())?
            .command
        {
            Command::Phases(args) => args.plan().map_err(|failure| failure.message),
            _ => Err(String::from("another command")),
        }
    }

    #[test]
    fn the_time_to_wait_may_be_left_out_wherever_the_directory_stands() {
        let is = |words: &[&str], wait| {
            let dir = PathBuf::from("d");
            assert_eq!(plan(words), Ok(Plan { dir, wait }), "{words:?}");
        };
        let minute = Some(Some(Duration::from_secs(60)));
        is(&["d"], None);
        is(&["d", "--wait"], Some(None));
        is(&["--wait", "d"], Some(None));
        is(&["d", "--wait", "60"], minute);
        is(&["--wait=1m", "d"], minute);
        is(&["--wait", "--json", "d"], Some(None));
        assert!(plan(&["d", "--wait", "soon"]).is_err_and(|said| said.contains("--wait soon")));
        let here = |words: &[&str], wait| {
            let dir = PathBuf::from(".");
            assert_eq!(plan(words), Ok(Plan { dir, wait }), "{words:?}");
        };
        here(&["--json"], None);
        here(&["--wait"], Some(None));
        here(&["--wait", "60"], minute);
    }
}
