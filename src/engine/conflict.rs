//! Changes made in BACKING behind the mount's back, as commits find them (S4).
//!
//! A transaction notes what its file is like when it begins ([`Seen`]), and a commit compares that
//! with what has the name by then: once before it begins, and once more with what its rename took
//! out of the way ([`exchange`](crate::backing::exchange)). By rule it is refused, or wins.
//!
//! What the mount itself does to the file meanwhile is no conflict: fsync(2) notes what it has
//! published, and utimensat(2) what it has set ([`Engine::noting_times`]). Changes of mode, owner
//! and attributes are none either: the version takes them over (W11).

use super::Engine;
use super::names::Loose;
use super::transaction::Transaction;
use super::tree::{Key, Name};
use crate::backing::exchange::{self, Exchanged, replace_if};
use crate::backing::shadow::Shadow;
use crate::backing::{Dir, Errno, Seen, Stamp, Stat};
use crate::config::{Durability, OnConflict};
use crate::rules::Treatment;
use log::warn;
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a commit found in the place of what its transaction began with.
#[derive(Clone, Copy, Debug)]
pub struct Conflict {
    /// What the transaction began with; `None`: a free name.
    before: Option<Seen>,
    now: Now,
}

#[derive(Clone, Copy, Debug)]
enum Now {
    Nothing,
    /// Not even the directory.
    NoDirectory,
    Other(Seen, FileType),
}

impl Conflict {
    /// What was found, if it is not what was expected.
    pub(super) fn between(before: Option<Seen>, found: Option<&Stat>) -> Option<Self> {
        let now = found.map(Seen::of);
        (now != before).then(|| Self {
            before,
            now: match found {
                Some(stat) => Now::Other(Seen::of(stat), FileType::from_raw_mode(stat.st_mode)),
                None => Now::Nothing,
            },
        })
    }

    /// The directory is not where it was.
    pub(super) fn without_directory(before: Option<Seen>) -> Self {
        let now = Now::NoDirectory;
        Self { before, now }
    }

    /// Can a version take the place of what is there?
    pub(super) fn can_be_won(&self) -> bool {
        !matches!(
            self.now,
            Now::NoDirectory | Now::Other(_, FileType::Directory)
        )
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let was = |seen: &Seen| Content(seen.stamp);
        match (&self.before, &self.now) {
            (_, Now::NoDirectory) => {
                write!(f, "its directory was removed or moved behind the mount")
            }
            (Some(before), Now::Nothing) => {
                write!(f, "it was removed behind the mount; it had {}", was(before))
            }
            (None, Now::Nothing) => write!(f, "it was removed behind the mount"),
            (_, Now::Other(_, FileType::Directory)) => {
                write!(f, "a directory took its name behind the mount")
            }
            (None, Now::Other(now, _)) => {
                write!(f, "it was created behind the mount, with {}", was(now))
            }
            (Some(before), Now::Other(now, kind)) => {
                // Another kind of file may have got the inode number.
                let same = before.identity == now.identity && *kind == FileType::RegularFile;
                let how = match same {
                    true => "edited",
                    false => "replaced",
                };
                let (before, now) = (was(before), was(now));
                write!(
                    f,
                    "it was {how} behind the mount; it had {before}, now {now}"
                )
            }
        }
    }
}

/// A stamp for people.
struct Content(Stamp);

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp { size, modified } = self.0;
        write!(f, "{size} bytes of ")?;
        let since = u64::try_from(modified.0).map(|s| Duration::new(s, modified.1));
        let time = since.ok().and_then(|since| UNIX_EPOCH.checked_add(since));
        // What lies beyond the year 9999 can't be written so.
        match time
            .filter(|time| *time < SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800))
        {
            Some(time) => write!(f, "{}", humantime::format_rfc3339_nanos(time)),
            None => write!(f, "second {}", modified.0),
        }
    }
}

/// A version that is to become the file.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub transaction: &'a Transaction,
    pub shadow: &'a Shadow,
    /// How its file is treated.
    pub treatment: &'a Treatment,
}

impl Candidate<'_> {
    /// May it take the place of what somebody else put there behind the mount?
    pub fn may_win(&self) -> bool {
        self.treatment.on_conflict == OnConflict::Win
    }
}

impl Engine {
    /// Notes what the file of a transaction that begins is like; the caller has the turn at it, so that
    /// this is whole records.
    ///
    /// # Errors
    /// `ESTALE` or `ENOENT` if it is not there.
    pub(super) fn note_base(&self, transaction: &Transaction) -> Result<(), Errno> {
        self.at_place(transaction.inode, |dir, name, who| {
            let stat = dir.stat_as(name, who)?;
            let seen = Seen::of(&stat);
            // While the names are locked: see noting_times().
            let mut inner = transaction.inner.lock();
            inner.replaced = Some(stat);
            inner.expected = Some(seen);
            inner.mark = Some(seen.stamp.size);
            Ok(())
        })
    }

    /// Does `work`, which sets the times of a file of BACKING, and has the transaction in flight
    /// expect them. The caller has locked the file's names for itself.
    pub(super) fn noting_times(
        &self,
        key: Key,
        file: impl AsFd + Copy,
        work: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let (in_flight, version) = {
            let state = self.state.lock();
            let inode = state.tree.inode(key);
            let version = inode.and_then(|inode| state.tree.alive(inode.current).1);
            (inode.and_then(|i| i.transaction.clone()), version)
        };
        let growth = version.as_ref().and_then(|version| version.growth());
        // A record in between would be taken for a change behind the mount.
        let _no_record = growth.map(|growth| growth.records.lock());
        let before = Seen::of(&rustix::fs::fstat(file)?);
        let done = work();
        let after = Seen::of(&rustix::fs::fstat(file)?);
        if let Some(transaction) = in_flight
            && before.stamp.size == after.stamp.size
        {
            transaction.inner.lock().expect_instead(before, after);
        }
        done
    }

    /// A commit found something else than it expected: it goes on if it may win.
    ///
    /// # Errors
    /// `ESTALE` if it may not.
    pub(super) fn meet_conflict(
        &self,
        candidate: &Candidate,
        conflict: Conflict,
    ) -> Result<(), Errno> {
        candidate.transaction.inner.lock().conflict = Some(conflict);
        match candidate.may_win() && conflict.can_be_won() {
            true => Ok(()),
            false => Err(Errno::STALE),
        }
    }

    /// The directory of a transaction's file is not there.
    pub(super) fn without_directory(&self, transaction: &Transaction) -> Errno {
        let mut inner = transaction.inner.lock();
        inner.conflict = Some(Conflict::without_directory(inner.expected));
        Errno::STALE
    }

    /// Makes the shadow the file of a name, if that is still the one that was looked at, or if the
    /// commit may win.
    ///
    /// # Errors
    /// `ESTALE`; what renaming says.
    pub(super) fn take_place(
        &self,
        candidate: &Candidate,
        (dir, name): (&Dir, &OsStr),
        stat: &Stat,
    ) -> Result<(), Errno> {
        let store = self.store()?;
        let &Candidate {
            transaction,
            shadow,
            ..
        } = candidate;
        // Ext4 writes out a file that is renamed over another one, not one that is exchanged with it: after a
        // power cut there would be an empty file.
        let unsynced = candidate.treatment.durability == Durability::None;
        if unsynced || !exchange::is_safe_in(dir)? {
            return shadow.replace(dir, name, store);
        }
        let before = Some(Seen::of(stat));
        let (found, stray) =
            match replace_if(shadow, (dir, name), store, stat, candidate.may_win())? {
                Exchanged::Done => return Ok(()),
                Exchanged::Instead(found) => {
                    transaction.inner.lock().conflict = Conflict::between(before, Some(&found));
                    return Ok(());
                }
                Exchanged::Refused { found, stray } => (found, stray),
            };
        transaction.inner.lock().conflict = Conflict::between(before, found.as_ref());
        if let Some(stray) = stray {
            self.keep_stray(transaction, &stray);
        }
        Err(Errno::STALE)
    }

    /// May a file that is being created get a further name of it? Not if somebody has made a file of
    /// that name behind the mount.
    pub(super) fn may_take(
        &self,
        candidate: &Candidate,
        name: &Name,
        there: Option<&Stat>,
    ) -> bool {
        let replacing = self.state.lock().tree.replacing(name.parent, &name.name);
        let conflict = there
            .and_then(|stat| Conflict::between(replacing.map(|r| r.expected(stat)), Some(stat)));
        let Some(conflict) = conflict else {
            return true;
        };
        let wins = conflict.can_be_won() && candidate.may_win();
        warn!(
            "{}: its further name {} {}: {conflict}",
            self.path_of(candidate.transaction.inode),
            name.name.to_string_lossy(),
            match wins {
                true => "takes the place of another file",
                false => "is left to another file",
            }
        );
        wins
    }

    /// Gives a file a name back that another one took behind the mount: its commit now takes the
    /// place of that.
    pub(super) fn regain(&self, key: Key, name: &Name, loose: &mut Loose) {
        let mut state = self.state.lock();
        let reason = "an update took its place that began before it was there";
        let (parent, name) = (name.parent, &*name.name);
        if state.tree.child(parent, name) != Some(key) {
            self.lose_name(&mut state, parent, name, reason, None, loose);
            state.tree.attach(key, parent, name);
        }
    }
}
