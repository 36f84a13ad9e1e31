//! What the next mount puts right before it serves, after a daemon that was killed (S2).

use super::append_log::{self, Trimmed};
use super::exchange::{Leftover, Ticket};
use super::redo::{self, Replayed};
use super::store::{Store, since_epoch};
use super::{Dir, Errno, kept};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// One thing that recovery did, in words for the log.
pub type Action = String;

/// Finishes or removes what a daemon that was killed left in `.latchfs`, and says each thing it
/// did. Does nothing, and says nothing, after a clean end.
///
/// A transaction that was in flight needs nothing: its shadow had no name, and is gone.
///
/// # Errors
/// `EIO`, `ENOSPC`, ...: BACKING should not be served then.
pub fn recover(root: &Dir, store: &Store) -> Result<Vec<Action>, Errno> {
    // First: of a file that is to be rewritten, whatever was appended to it goes.
    let trimmed = append_log::trim(root, store)?;
    let mut actions: Vec<Action> = trimmed.iter().map(say_trimmed).collect();
    let replayed = redo::replay(root, store)?;
    actions.extend(replayed.into_iter().map(|(what, path)| match what {
        Replayed::Finished => format!("finished the interrupted update of {path}"),
        Replayed::Kept => {
            format!("kept an interrupted update of {path} aside: the file is no longer there")
        }
        Replayed::Removed => format!("removed the unused redo/{path}"),
    }));
    store.keeper().tidy();
    for entry in store.tmp().list()? {
        actions.push(clear(root, store, &entry.name)?);
    }
    Ok(actions)
}

/// Removes the leftover of a commit. A file that somebody put in the place of another, directly in
/// BACKING, in the very moment in which a version took that place, is not ours to remove.
///
/// It is not put back either: perhaps it is the old version after all, which the power cut left
/// otherwise than it was, and the version in its place has been acknowledged.
fn clear(root: &Dir, store: &Store, name: &OsStr) -> Result<Action, Errno> {
    let stat = store.tmp().stat_at(name)?;
    let leftover = Ticket::parse(name).map_or(Leftover::Ours, |ticket| ticket.judge(&stat));
    let Leftover::Strange(version) = leftover else {
        store.tmp().unlink(name)?;
        return Ok(format!(
            "removed the leftover of a commit, tmp/{}",
            name.to_string_lossy()
        ));
    };
    let path = redo::path_of(root, version);
    let shown = match &path {
        Some(path) => path.join(OsStr::new("/")).to_string_lossy().into_owned(),
        None => String::from("a file"),
    };
    let record = kept::Record {
        time: since_epoch().as_secs(),
        kind: kept::Kind::Conflict,
        reason: String::from("an update that was interrupted had just replaced it"),
        ..kept::Record::default()
    };
    let way: Vec<&[u8]> = path.iter().flatten().map(|c| c.as_bytes()).collect();
    let record = record.at(&kept::within_mount(&way));
    let id = store.keeper().take_in(store.tmp(), name, &record)?;
    Ok(format!(
        "kept what somebody put in the place of {shown} aside, as {id}: an update that was interrupted \
         had just replaced it"
    ))
}

fn say_trimmed(trimmed: &Trimmed) -> Action {
    let Trimmed { path, length, lost } = trimmed;
    match lost {
        0 => format!(
            "left {path} as it is: it was changed by something else while it was appended to"
        ),
        _ => format!(
            "removed an incomplete record from the end of {path}: {lost} bytes after {length}"
        ),
    }
}
