//! `latchfs recover`: by hand what a mount does by itself before it serves.

use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use super::args::RecoverArgs;
use super::exit::{Exit, Failure, shell_word};
use super::served::{self, Served};
use crate::backing::Errno;
use crate::backing::recover::{Action, look, recover};
use crate::backing::store::{DIRECTORY, OpenError, Store};
use crate::show::printable;

/// What `--json` prints. docs/semantics.md tells of it: the names are a promise.
#[derive(Serialize)]
struct Report<'a> {
    backing: String,
    dry_run: bool,
    actions: &'a [Action],
}

/// Puts right what a daemon that was killed left in BACKING, and says each thing it did.
pub(super) fn run(args: &RecoverArgs) -> Result<(), Failure> {
    let found = find(&args.backing)?;
    let mut actions = Vec::new();
    let result = match args.dry_run {
        true => only_look(&found, &mut actions),
        false => work(&found, &mut actions),
    };
    let failed = match result {
        Err(Refusal::Store(error)) => return Err(refused(&args.backing, &error)),
        Err(Refusal::Work(errno)) => Some(errno),
        Ok(()) => None,
    };
    // What was done is said also if something else could not be.
    say(args, &found, &actions).map_err(|error| {
        let message = format!("cannot write to standard output: {error}");
        Failure::new(Exit::Internal, message)
    })?;
    failed.map_or(Ok(()), |errno| {
        let message = format!("{} can't be put right: {errno}", shell_word(&args.backing));
        Err(Failure::new(Exit::Backing, message))
    })
}

/// Why nothing, or not all, was done.
enum Refusal {
    Store(OpenError),
    Work(Errno),
}

fn only_look(found: &Served, actions: &mut Vec<Action>) -> Result<(), Refusal> {
    Store::check(&found.root).map_err(Refusal::Store)?;
    *actions = look(&found.root).map_err(Refusal::Work)?;
    Ok(())
}

fn work(found: &Served, actions: &mut Vec<Action>) -> Result<(), Refusal> {
    match found.root.open_dir(DIRECTORY.as_ref()) {
        // Nothing is made where latchfs never was.
        Err(Errno::NOENT) => return Ok(()),
        other => drop(other.map_err(Refusal::Work)?),
    }
    let store = Store::open(&found.root).map_err(Refusal::Store)?;
    recover(&found.root, &store, actions).map_err(Refusal::Work)
}

/// The BACKING that is meant, which nobody may be serving.
fn find(given: &Path) -> Result<Served, Failure> {
    let shown = shell_word(given);
    let found = served::find(given)?;
    if found.rest.as_os_str().is_empty() {
        if let Some(daemon) = &found.daemon {
            let message = format!(
                "{shown} is served by latchfs (pid {}), which does this by itself; unmount it \
                 first",
                daemon.pid
            );
            return Err(Failure::new(Exit::Busy, message));
        }
        return Ok(found);
    }
    let message = if let Err(error) = given.symlink_metadata() {
        format!("{shown} can't be used: {error}")
    } else if found.root.open_dir(DIRECTORY.as_ref()).is_ok() {
        let backing = shell_word(&found.backing);
        format!("{shown} is not what was mounted, but inside it; run: latchfs recover {backing}")
    } else {
        format!("{shown} is not a directory; give the directory that was mounted")
    };
    Err(Failure::new(Exit::Backing, message))
}

fn refused(given: &Path, error: &OpenError) -> Failure {
    Failure::new(Exit::from(error), format!("{}: {error}", shell_word(given)))
}

fn say(args: &RecoverArgs, found: &Served, actions: &[Action]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.json {
        let report = Report {
            backing: found.backing.to_string_lossy().into_owned(),
            dry_run: args.dry_run,
            actions,
        };
        serde_json::to_writer_pretty(&mut out, &report)?;
        return writeln!(out);
    }
    let shown = printable(&args.backing);
    if actions.is_empty() {
        return writeln!(out, "{shown}: nothing to put right");
    }
    for action in actions {
        match args.dry_run {
            true => writeln!(out, "{shown}: {}", action.to_do())?,
            false => writeln!(out, "{shown}: {}", action.done())?,
        }
    }
    Ok(())
}
