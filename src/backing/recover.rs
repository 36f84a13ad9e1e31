//! What the next mount puts right before it serves, after a daemon that was killed (S2); and what
//! `latchfs recover` does by hand.
//!
//! Each part of the store that a crash can leave something in has a function here or in its own
//! module that takes a [`Site`], appends an [`Action`] to a list for each thing that there is to do,
//! and does it if the site has a store. So a look finds what the work would find.

use super::append_log::{self, Trimmed};
use super::exchange::{Leftover, Ticket};
use super::store::{APPEND, DIRECTORY, Store, TMP, since_epoch};
use super::{Dir, Errno, kept, redo};
use crate::show::printable;
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What kind of thing recovery did. The names are for programs, and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A file that was appended to has lost a record at its end that was not whole.
    TailRemoved,
    /// A file that was appended to may end with such a record, and was left as it is.
    TailLeft,
    /// A rewrite of a file in place that was interrupted is done: the file is the new version.
    UpdateFinished,
    /// The file of such a rewrite is no longer there: the version is kept aside.
    UpdateKept,
    /// What somebody put in the place of a file directly in BACKING, while a version took that place,
    /// is kept aside.
    StrangerKept,
    /// A kept version has its record now.
    RecordRestored,
    /// A file of latchfs's own that nothing needs is gone.
    LeftoverRemoved,
}

/// One thing that recovery did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Action {
    /// What kind of thing.
    pub kind: Kind,
    /// The file it was done to, relative to BACKING; where that is not UTF-8, as near as possible.
    pub path: String,
    /// The path byte by byte, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
    /// What else there is to say, for people.
    pub detail: String,
}

impl Action {
    /// An action on a file that is named relative to BACKING.
    pub(super) fn new(kind: Kind, path: &Path, detail: impl Into<String>) -> Self {
        Self {
            kind,
            path: path.to_string_lossy().into_owned(),
            path_bytes: path
                .to_str()
                .is_none()
                .then(|| path.as_os_str().as_bytes().to_vec()),
            detail: detail.into(),
        }
    }

    /// An action on a file in a directory of the store.
    pub(super) fn in_store(kind: Kind, dir: &str, name: &OsStr, detail: &str) -> Self {
        let path = Path::new(DIRECTORY).join(dir).join(name);
        Self::new(kind, &path, detail)
    }

    /// The words for it once it is done.
    pub fn done(&self) -> impl fmt::Display {
        self.words(|done, _| done.to_owned())
    }

    /// The words for it while it is not.
    pub fn to_do(&self) -> impl fmt::Display {
        self.words(|_, to_do| format!("would {to_do}"))
    }

    fn words(&self, verb: impl Fn(&str, &str) -> String) -> String {
        let detail = &self.detail;
        let path = match &self.path_bytes {
            Some(bytes) => printable(OsString::from_vec(bytes.clone())),
            None => printable(&self.path),
        };
        let (remove, keep) = (verb("removed", "remove"), verb("kept", "keep"));
        match self.kind {
            Kind::TailRemoved => {
                format!("{remove} an incomplete record from the end of {path}: {detail}")
            }
            Kind::TailLeft => format!("{} {path} as it is: {detail}", verb("left", "leave")),
            Kind::UpdateFinished => {
                let finish = verb("finished", "finish");
                format!("{finish} the interrupted update of {path}")
            }
            Kind::UpdateKept => format!("{keep} an interrupted update of {path} aside: {detail}"),
            Kind::StrangerKept => {
                format!("{keep} what somebody put in the place of {path} aside: {detail}")
            }
            Kind::RecordRestored => format!("{} {path}: {detail}", verb("restored", "restore")),
            Kind::LeftoverRemoved => format!("{remove} {path}: {detail}"),
        }
    }
}

/// Where recovery is at work.
pub(super) struct Site<'a> {
    /// The root of BACKING.
    pub(super) root: &'a Dir,
    /// By which things are changed; without it, nothing may be.
    pub(super) store: Option<&'a Store>,
    own: Dir,
}

impl Site<'_> {
    /// A directory of the store, if it is there.
    pub(super) fn dir(&self, name: &str) -> Result<Option<Dir>, Errno> {
        present(self.own.open_dir(OsStr::new(name)))
    }
}

fn present<T>(found: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Finishes or removes what a daemon that was killed left in `.latchfs`, and appends each thing it
/// did to `done`. Does nothing, and says nothing, after a clean end.
///
/// A transaction that was in flight needs nothing: its shadow had no name, and is gone.
///
/// # Errors
/// `EIO`, `ENOSPC`, ...: BACKING should not be served then. `done` tells what was done before.
pub fn recover(root: &Dir, store: &Store, done: &mut Vec<Action>) -> Result<(), Errno> {
    let own = root.open_dir(OsStr::new(DIRECTORY))?;
    let store = Some(store);
    visit(&Site { root, store, own }, done)
}

/// What [`recover`] would do. Changes nothing, and needs no `.latchfs` to be there.
///
/// # Errors
/// `EACCES` if it is another user's; `EIO`.
pub fn look(root: &Dir) -> Result<Vec<Action>, Errno> {
    let mut found = Vec::new();
    if let Some(own) = present(root.open_dir(OsStr::new(DIRECTORY)))? {
        let store = None;
        visit(&Site { root, store, own }, &mut found)?;
    }
    Ok(found)
}

fn visit(site: &Site<'_>, actions: &mut Vec<Action>) -> Result<(), Errno> {
    // First: by its record, a version that was kept already is known.
    let restored = kept::tidy(site, actions)?;
    // Of a file that is to be rewritten, whatever was appended to it goes.
    trim(site, actions)?;
    redo::replay(site, actions)?;
    remove_leftovers(site, &restored, actions)
}

/// Has files that were appended to end with a whole record.
fn trim(site: &Site<'_>, actions: &mut Vec<Action>) -> Result<(), Errno> {
    let Some(logs) = site.dir(APPEND)? else {
        return Ok(());
    };
    let mut done = Vec::new();
    let result = append_log::trim(site.root, &logs, site.store, &mut done);
    actions.extend(done.into_iter().map(|trimmed| {
        let Trimmed {
            path,
            length,
            lost,
            left,
        } = trimmed;
        let path = Path::new(&path);
        match left {
            Some(why) => Action::new(Kind::TailLeft, path, why),
            None => {
                let what = format!("{lost} bytes after {length}, kept aside");
                Action::new(Kind::TailRemoved, path, what)
            }
        }
    }));
    result
}

/// Removes the names that stood for a moment of a commit. `restored` are no longer among them, or
/// would not be.
fn remove_leftovers(
    site: &Site<'_>,
    restored: &[OsString],
    actions: &mut Vec<Action>,
) -> Result<(), Errno> {
    let Some(tmp) = site.dir(TMP)? else {
        return Ok(());
    };
    for entry in tmp.list()? {
        if restored.contains(&entry.name) {
            continue;
        }
        actions.push(clear(site, &tmp, &entry.name)?);
    }
    Ok(())
}

/// Removes the leftover of a commit. A file that somebody put in the place of another, directly in
/// BACKING, in the very moment in which a version took that place, is not ours to remove.
///
/// It is not put back either: perhaps it is the old version after all, which the power cut left
/// otherwise than it was, and the version in its place has been acknowledged.
fn clear(site: &Site<'_>, tmp: &Dir, name: &OsStr) -> Result<Action, Errno> {
    let stat = tmp.stat_at(name)?;
    let leftover = Ticket::parse(name).map_or(Leftover::Ours, |ticket| ticket.judge(&stat));
    let Leftover::Strange(version) = leftover else {
        if site.store.is_some() {
            tmp.unlink(name)?;
        }
        let what = "the leftover of a commit";
        return Ok(Action::in_store(Kind::LeftoverRemoved, TMP, name, what));
    };
    const WHY: &str = "an update that was interrupted had just replaced it";
    let path = redo::path_of(site.root, version);
    if let Some(store) = site.store {
        let record = kept::Record {
            time: since_epoch().as_secs(),
            kind: kept::Kind::Conflict,
            reason: String::from(WHY),
            ..kept::Record::default()
        };
        let way: Vec<&[u8]> = path.iter().flatten().map(|c| c.as_bytes()).collect();
        let record = record.at(&kept::within_mount(&way));
        store.keeper().take_in(tmp, name, &record)?;
    }
    Ok(match path {
        Some(path) => Action::new(Kind::StrangerKept, &joined(&path), WHY),
        None => Action::in_store(Kind::StrangerKept, TMP, name, WHY),
    })
}

/// A way from BACKING, as a path.
pub(super) fn joined(components: &[OsString]) -> PathBuf {
    // Not as a path is joined, where an absolute component would take away those before it.
    PathBuf::from(components.join(OsStr::new("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_told_to_people_and_to_programs() {
        let path = Path::new("d/line\nend");
        let action = Action::new(Kind::UpdateKept, path, "the file is no longer there");
        let words = "an interrupted update of d/line\\nend aside: the file is no longer there";
        assert_eq!(action.done().to_string(), format!("kept {words}"));
        assert_eq!(action.to_do().to_string(), format!("would keep {words}"));
        let json =
            r#"{"kind":"update-kept","path":"d/line\nend","detail":"the file is no longer there"}"#;
        assert_eq!(serde_json::to_string(&action).unwrap(), json);
    }

    #[test]
    fn a_path_that_is_not_utf_8_is_told_byte_by_byte() {
        let path = Path::new(OsStr::from_bytes(b"a\xff"));
        let action = Action::new(Kind::UpdateFinished, path, "");
        let words = r"finished the interrupted update of a\xff";
        assert_eq!(action.done().to_string(), words);
        let json = serde_json::to_value(&action).unwrap();
        assert_eq!(json["path_bytes"], serde_json::json!([97, 255]));
    }

    #[test]
    fn a_look_at_a_directory_without_a_store_finds_nothing_and_makes_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Dir::open_root(dir.path()).unwrap();
        assert_eq!(look(&root), Ok(vec![]));
        assert_eq!(root.list().unwrap().len(), 0);
    }
}
