//! How a version becomes the file, or does not.
//!
//! A commit makes the shadow's bytes durable, gives the shadow the file's name in one step, and
//! makes the directory durable; [`Durability`] says how much of that is waited for. Where a file has
//! to keep its inode, see [`super::in_place`].

use super::conflict::{Candidate, Conflict};
use super::io::length;
use super::names::Loose;
use super::transaction::{Continuation, Phase, Postponed, Transaction};
use super::tree::{Key, Name};
use super::validation::Refusal;
use super::version::Version;
use super::{Engine, State, lookup};
use crate::backing::kept::Kind;
use crate::backing::shadow::{self, Shadow};
use crate::backing::{Dir, Errno, Seen, Stat, identity};
use crate::config::Durability;
use crate::rules::Treatment;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};
use log::{debug, error, warn};
use std::ffi::OsStr;
use std::path::PathBuf;

/// How a version got its place.
pub(super) struct Published {
    /// The directories whose entries changed, to be made durable.
    pub(super) dirs: Vec<Dir>,
    pub(super) version: Arc<Version>,
    /// Attributes that others changed were taken over after the version had been made durable.
    pub(super) late: bool,
    /// What a next commit is to find.
    pub(super) seen: Seen,
    /// Why its inode could not be rewritten whole: that is to be done again.
    pub(super) unfinished: Option<Errno>,
}

/// Why a commit failed.
struct Failed {
    errno: Errno,
    /// The version is the file all the same, only perhaps not for good.
    published: Option<Arc<Version>>,
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        let published = None;
        Self { errno, published }
    }
}

/// What the name to be replaced turned out to be.
enum Place {
    /// It is free, as expected.
    Free,
    /// It is the file, with this one name; or another, whose place it is to take.
    Replaceable(Stat),
    /// It is the file, whose inode has to stay: it has further names, or its writer may not replace
    /// this one.
    Fixed(Stat),
}

impl Engine {
    /// Ends a transaction whose last close has happened: commits it or rolls it back.
    pub(super) fn settle(self: &Arc<Self>, transaction: &Arc<Transaction>) {
        let (failed, died, detached, dirty) = {
            let mut inner = transaction.inner.lock();
            if inner.syncing {
                let transaction = transaction.clone();
                let end = move |engine: &Arc<Engine>| engine.settle(&transaction);
                return inner.after_sync.push(Postponed(Box::new(end)));
            }
            let detached = inner.detached.is_some();
            (inner.failed, inner.died, detached, inner.dirty)
        };
        if let Some(errno) = failed {
            self.failed(transaction, errno, "a write failed");
            return self.end(transaction, Err(errno), None);
        }
        if detached {
            return self.end_detached(transaction);
        }
        if !dirty {
            return self.end(transaction, Ok(()), None);
        }
        if let Some((pid, signal)) = died {
            let reason = format!("its writer, pid {pid}, died of signal {signal}");
            self.rolled_back(transaction, &reason, true);
            return self.end(transaction, Err(Errno::IO), None);
        }
        let shadow = match self.materialize(transaction) {
            Ok(shadow) => shadow,
            Err(errno) => {
                self.failed(transaction, errno, "the commit failed");
                return self.end(transaction, Err(errno), None);
            }
        };
        if let Err(Refusal { errno, reason }) = self.validate(transaction, &shadow) {
            self.count(&self.counters.refused);
            self.keep_aside(transaction, Kind::Refused, &reason);
            return self.end(transaction, Err(errno), None);
        }
        let mark = transaction.inner.lock().mark;
        match self.commit(transaction, &shadow, mark) {
            Ok(version) => self.end(transaction, Ok(()), Some(version)),
            Err(Failed {
                errno,
                published: Some(version),
            }) => self.end(transaction, Err(errno), Some(version)),
            Err(Failed {
                errno: Errno::STALE,
                ..
            }) => {
                if transaction.inner.lock().detached.is_some() {
                    return self.end_detached(transaction);
                }
                self.failed(transaction, Errno::STALE, "");
                self.end(transaction, Err(Errno::STALE), None);
            }
            Err(Failed { errno, .. }) => {
                self.failed(transaction, errno, "the commit failed");
                self.end(transaction, Err(errno), None);
            }
        }
    }

    /// Ends a transaction that has lost its name: nothing is published, and its close succeeds, as
    /// that of an unlinked inode does.
    fn end_detached(self: &Arc<Self>, transaction: &Arc<Transaction>) {
        let (detached, written) = {
            let inner = transaction.inner.lock();
            (inner.detached.clone(), inner.unpublished().is_some())
        };
        if let Some(detached) = detached.filter(|d| written && !d.by_writer) {
            self.count(&self.counters.detached);
            self.keep_aside(transaction, detached.kind, detached.reason);
        }
        self.end(transaction, Ok(()), None);
    }

    /// Commits what has been written so far, and goes on (fsync). One at a time, and the end waits
    /// for it, or an older version could be published over a newer one.
    pub(super) fn commit_so_far(
        self: &Arc<Self>,
        transaction: &Arc<Transaction>,
        done: super::Done<()>,
    ) {
        {
            let mut inner = transaction.inner.lock();
            if inner.syncing {
                let again = transaction.clone();
                let next = move |engine: &Arc<Engine>| engine.commit_so_far(&again, done);
                return inner.after_sync.push(Postponed(Box::new(next)));
            }
            let nothing = inner.phase != Phase::Open || inner.detached.is_some() || !inner.dirty;
            let early = inner.failed.map_or(Ok(()), Err);
            if nothing || early.is_err() {
                drop(inner);
                return done(early);
            }
            inner.syncing = true;
        }
        let result = self.sync_transaction(transaction);
        let waiting = {
            let mut inner = transaction.inner.lock();
            inner.syncing = false;
            std::mem::take(&mut inner.after_sync)
        };
        done(result);
        for Postponed(work) in waiting {
            self.spawn(work);
        }
    }

    fn sync_transaction(self: &Arc<Self>, transaction: &Arc<Transaction>) -> Result<(), Errno> {
        let shadow = self.materialize(transaction)?;
        let mark = {
            // From here on the shadow is a version: the next write makes a new one, which begins with
            // what is there of it now.
            let _writing = transaction.writing.write();
            let length = length(shadow.file())?;
            let mut inner = transaction.inner.lock();
            inner.published = true;
            inner.dirty = false;
            inner.mark.replace(length)
        };
        if let Err(Refusal { errno, reason }) = self.validate(transaction, &shadow) {
            warn!(
                "{}: not committed at an fsync by pid {} ({}): {reason}; the close decides",
                self.path_of(transaction.inode),
                transaction.writer.process,
                transaction.writer.program
            );
            // Not spoilt: what it lacks may still be written.
            transaction.inner.lock().take_back(mark);
            return Err(errno);
        }
        let result = self.commit(transaction, &shadow, mark);
        let path = match result {
            Err(_) => self.path_written(transaction),
            Ok(_) => PathBuf::new(),
        };
        let mut inner = transaction.inner.lock();
        match result {
            Ok(version) => {
                inner.base = Some(version);
                Ok(())
            }
            Err(Failed { errno, published }) => {
                match published {
                    Some(version) => inner.base = Some(version),
                    // Its end may keep it aside.
                    None => inner.take_back(mark),
                }
                if inner.detached.is_some() {
                    return Ok(());
                }
                if let Some(conflict) = inner.conflict.filter(|_| errno == Errno::STALE) {
                    warn!(
                        "{}: fsync by pid {} ({}) refused: {conflict}",
                        lookup::shown(&path),
                        transaction.writer.process,
                        transaction.writer.program
                    );
                }
                // The kernel reports a failed write-back once: the shadow can't be trusted, nor
                // tried again.
                inner.failed.get_or_insert(errno);
                Err(errno)
            }
        }
    }

    /// How the file of a transaction is treated: by where it is now, and by what applied when it
    /// was opened.
    pub(super) fn treatment_of_transaction(&self, transaction: &Transaction) -> Treatment {
        let path: PathBuf = self.way_of(transaction).into_iter().flatten().collect();
        transaction.settings.treatment(&path)
    }

    /// Makes the shadow the file, with the records that were appended to that beyond `mark`.
    ///
    /// # Errors
    /// `ESTALE` if the name is no longer the file; what the disk says.
    fn commit(
        self: &Arc<Self>,
        transaction: &Arc<Transaction>,
        shadow: &Shadow,
        mark: Option<u64>,
    ) -> Result<Arc<Version>, Failed> {
        self.take_over_attributes_early(transaction, shadow)?;
        let treatment = self.treatment_of_transaction(transaction);
        if treatment.durability != Durability::None {
            self.store()?.order().before_rename(shadow.file())?;
        }
        let (before, appears) = {
            let state = self.state.lock();
            let inode = state.tree.inode(transaction.inode);
            let appears = inode.is_some_and(|inode| inode.is_provisional());
            (inode.map(|inode| inode.current), appears)
        };
        transaction.inner.lock().conflict = None;
        let candidate = Candidate {
            transaction,
            shadow,
            treatment: &treatment,
        };
        let mut loose = Loose::default();
        // From here on no record gets into the old version.
        let turn = self.wait_for_turn(transaction.inode);
        let published = self.publish_with_records(&candidate, mark, &mut loose);
        drop(turn);
        // Of the file that was replaced, before its directory is made durable.
        self.store()?.discard_what_is_left();
        self.tell(loose);
        let published = published?;
        self.forget_broken(transaction.inode);
        let won = transaction.inner.lock().conflict.take();
        if let Some(conflict) = won {
            self.count(&self.counters.conflicts);
            warn!(
                "{}: {conflict}; the update by pid {} ({}) took its place, as on_conflict = \"win\" says",
                self.path_of(transaction.inode),
                transaction.writer.process,
                transaction.writer.program
            );
        }
        if appears {
            // Its directories are changed by this, not by the CREATE that the kernel knows of.
            let names = self.state.lock().names_of(transaction.inode);
            let parents = names.iter().map(|name| name.parent);
            parents.for_each(|parent| self.drop_cached_attributes(parent));
        }
        let durable = match treatment.durability {
            Durability::Full => {
                let file = published.version.file();
                let again = match published.late {
                    true => rustix::fs::fsync(&*file),
                    false => Ok(()),
                };
                let mut dirs = published.dirs.iter();
                again.and_then(|()| dirs.try_for_each(|dir| shadow::sync_dir(dir, &*file)))
            }
            _ => Ok(()),
        };
        self.tell_watchers(transaction.inode, before);
        if let Some(errno) = published.unfinished {
            error!(
                "{}: the update by pid {} ({}) is durable, but could not be copied into the file, which \
                 has to keep its inode ({errno}): the next open tries that again, and so does the next \
                 mount",
                self.path_of(transaction.inode),
                transaction.writer.process,
                transaction.writer.program
            );
            let published = Some(published.version);
            return Err(Failed { errno, published });
        }
        if let Err(errno) = durable {
            error!(
                "{}: updated by pid {} ({}), but the directory could not be made durable ({errno}): \
                 a power cut may bring the old version back",
                self.path_of(transaction.inode),
                transaction.writer.process,
                transaction.writer.program
            );
            let published = Some(published.version);
            return Err(Failed { errno, published });
        }
        self.count(&self.counters.commits);
        debug!(
            "{}: committed for pid {} ({})",
            self.path_of(transaction.inode),
            transaction.writer.process,
            transaction.writer.program
        );
        Ok(published.version)
    }

    /// What others did to the file's mode, owner and attributes since the shadow got its copy,
    /// unless the writer set its own (W11). `stat` is what the file, `name` of `dir`, is like now. True
    /// if there was something.
    fn take_over_attributes(
        &self,
        transaction: &Transaction,
        shadow: &Shadow,
        (dir, name): (&Dir, &OsStr),
        stat: &Stat,
    ) -> Result<bool, Errno> {
        let (own, dropped) = {
            let inner = transaction.inner.lock();
            let changed_at = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec);
            let same = |before: Stat| changed_at(&before) == changed_at(stat);
            if inner.attributes_of.is_none_or(same) {
                return Ok(false);
            }
            (inner.explicit.clone(), inner.privileges_dropped)
        };
        let file = match dir.pin(name, identity(stat)) {
            // Another one by now, which is found out later.
            Err(Errno::STALE | Errno::NOENT) => return Ok(false),
            other => other?,
        };
        shadow::copy_attributes_but(&file, stat, shadow.file(), &own)?;
        if dropped {
            shadow::drop_privileges(shadow.file(), &transaction.writer.credentials)?;
        }
        transaction.inner.lock().attributes_of = Some(*stat);
        Ok(true)
    }

    /// The same, of the file wherever it is. publish() finds out if it is nowhere.
    fn take_over_attributes_early(
        &self,
        transaction: &Transaction,
        shadow: &Shadow,
    ) -> Result<(), Errno> {
        let taken = self.at_place(transaction.inode, |dir, name, who| {
            let stat = dir.stat_as(name, who)?;
            Ok(self.take_over_attributes(transaction, shadow, (dir, name), &stat))
        });
        taken.map_or(Ok(()), |taken| taken.map(drop))
    }

    /// Gives the shadow the file's name, in BACKING and in the table. `loose`: what others are to be
    /// told of that.
    pub(super) fn publish(
        &self,
        candidate: &Candidate,
        loose: &mut Loose,
    ) -> Result<Published, Errno> {
        let &Candidate {
            transaction,
            shadow,
            ..
        } = candidate;
        let key = transaction.inode;
        let own = rustix::fs::fstat(shadow.file())?;
        let mut late = false;
        loop {
            let wanted = self.names_to_publish(transaction)?;
            let parents = wanted.1.iter().chain([&wanted.0]).map(|name| name.parent);
            let names = self.names.exclusive(parents);
            if self.names_to_publish(transaction)? != wanted {
                continue;
            }
            let (name, more) = wanted;
            let dir = match self.dir(name.parent) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => {
                    return Err(self.without_directory(transaction));
                }
                other => other?,
            };
            let place = self.place(candidate, &dir, &name)?;
            self.regain(key, &name, loose);
            let stays = match place {
                Place::Replaceable(stat) => {
                    let goes = Some(&stat).filter(|stat| stat.st_nlink <= 1);
                    // Only a write, not a rename over another file, leaves the directory as it was.
                    let same = self.is_identity(key, &stat);
                    let file = (&dir, &*name.name);
                    if same {
                        // Nobody changes them while the names are locked.
                        late |= self.take_over_attributes(transaction, shadow, file, &stat)?;
                    }
                    let take = || self.take_place(candidate, file, &stat);
                    let replace = || match same {
                        true => shadow::with_time_of(&dir, take),
                        false => take(),
                    };
                    match self.while_vacant(goes, Some(key), replace) {
                        Ok(()) => None,
                        // It may be written, but its directory not; or it is a mount of its own.
                        Err(Errno::ACCESS | Errno::PERM | Errno::BUSY | Errno::XDEV) if same => {
                            Some(stat)
                        }
                        Err(errno) => return Err(errno),
                    }
                }
                Place::Fixed(stat) => Some(stat),
                Place::Free => match shadow.link(&dir, &name.name) {
                    Ok(()) => None,
                    // Made behind the mount since it was looked for.
                    Err(Errno::EXIST) => continue,
                    Err(Errno::NOENT) => return Err(self.without_directory(transaction)),
                    Err(errno) => return Err(errno),
                },
            };
            if let Some(stat) = stays {
                drop(names);
                match self.publish_in_place(candidate, &dir, &name, &stat) {
                    // Its names changed meanwhile.
                    Err(Errno::AGAIN) => continue,
                    other => return other,
                }
            }
            // It is the file by now, and the same as before.
            let now = rustix::fs::fstat(shadow.file()).unwrap_or(own);
            let seen = Seen::of(&now);
            let mut dirs = vec![dir.clone()];
            for other in &more {
                let to = self.dir(other.parent)?;
                let there = to.stat_at(&other.name).ok();
                if !self.may_take(candidate, other, there.as_ref()) {
                    continue;
                }
                let goes = there.filter(|stat| stat.st_nlink <= 1);
                self.while_vacant(goes.as_ref(), Some(key), || {
                    self.publish_again(&dir, &name, other).map(drop)
                })?;
                dirs.push(to);
            }
            let may_change = self.may_be_rewritten(&dir, shadow.file(), &now);
            let version = self.new_version(key, shadow.file().clone(), may_change, true);
            let mut state = self.state.lock();
            state.tree.published(key, seen.identity, &version);
            return Ok(Published {
                dirs,
                version,
                late,
                seen,
                unfinished: None,
            });
        }
    }

    /// The name that a version of the file gets, and the further ones of a file being created.
    fn names_to_publish(&self, transaction: &Transaction) -> Result<(Name, Vec<Name>), Errno> {
        let state = self.state.lock();
        let inode = state.tree.inode(transaction.inode).ok_or(Errno::STALE)?;
        let inner = transaction.inner.lock();
        let displaced = inner.displaced.as_ref();
        if let Some(displaced) = displaced.filter(|_| inner.detached.is_none()) {
            return Ok((displaced.name.clone(), Vec::new()));
        }
        let (first, more) = inode.names.split_first().ok_or(Errno::STALE)?;
        if inode.is_provisional() {
            return Ok((first.clone(), more.to_vec()));
        }
        // Of several names the one that was opened may be another file's by now.
        let opened_as = inner.opened_as.as_ref();
        let name = opened_as.filter(|name| inode.names.contains(name));
        Ok((name.unwrap_or(first).clone(), Vec::new()))
    }

    /// Is it the file itself, and not one that a rename over it gave up?
    fn is_identity(&self, key: Key, stat: &Stat) -> bool {
        let state = self.state.lock();
        state.tree.inode(key).and_then(|i| i.identity) == Some(identity(stat))
    }

    /// What is at the name now.
    ///
    /// # Errors
    /// `ESTALE` if it is not what the mount left there, unless the commit may win.
    fn place(&self, candidate: &Candidate, dir: &Dir, name: &Name) -> Result<Place, Errno> {
        let &Candidate {
            transaction,
            shadow,
            ..
        } = candidate;
        let key = transaction.inode;
        let (own, replacing) = {
            let state = self.state.lock();
            let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
            (
                inode.identity,
                state.tree.replacing(name.parent, &name.name),
            )
        };
        let found = match dir.stat_at(&name.name) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        // A file that was renamed over, and then removed behind the mount, leaves the name free.
        let before = match own {
            Some(_) => transaction.inner.lock().expected,
            None => replacing
                .zip(found.as_ref())
                .map(|(r, found)| r.expected(found)),
        };
        let conflict = Conflict::between(before, found.as_ref());
        if let Some(conflict) = conflict {
            self.meet_conflict(candidate, conflict)?;
        }
        let Some(stat) = found else {
            return Ok(Place::Free);
        };
        let is_own = own == Some(identity(&stat));
        if own.is_none() && conflict.is_none() {
            return Ok(Place::Replaceable(stat));
        }
        let stays = self.must_stay(transaction, shadow, dir, &stat)?;
        match is_own {
            true if stat.st_nlink > 1 || stays => Ok(Place::Fixed(stat)),
            // Not its inode to rewrite.
            false if stays && self.privileged => Err(Errno::STALE),
            _ => Ok(Place::Replaceable(stat)),
        }
    }

    /// A transaction is over: its lease goes to the next, and whoever waited is answered.
    pub(super) fn end(
        self: &Arc<Self>,
        transaction: &Arc<Transaction>,
        result: Result<(), Errno>,
        published: Option<Arc<Version>>,
    ) {
        let shadow = transaction.inner.lock().shadow.clone();
        let last = shadow.and_then(|shadow| rustix::fs::fstat(shadow.file()).ok());
        let completions = {
            let mut state = self.state.lock();
            let owns = state
                .tree
                .inode(transaction.inode)
                .and_then(|inode| inode.transaction.as_ref())
                .is_some_and(|current| current.node == transaction.node);
            let completions = if owns {
                self.hand_over(&mut state, transaction, published.as_ref(), last)
            } else {
                Vec::new()
            };
            let tid = transaction.writer.tid;
            let own_redirect = state.redirects.get(&tid).is_some_and(|redirect| {
                let of = redirect.transaction.as_ref();
                of.is_some_and(|t| t.node == transaction.node)
            });
            if own_redirect {
                state.take_redirect(tid);
            }
            state.tree.transaction_ended(transaction);
            completions
        };
        let at_end = {
            let mut inner = transaction.inner.lock();
            inner.phase = Phase::Ended(result);
            // Nobody reads it any more but through handles that are still open: they read its version, like
            // others who have that open, also when its inode is rewritten.
            if inner.handles == 0 {
                inner.shadow = None;
                inner.base = None;
            } else if let Some(version) = published {
                inner.shadow = None;
                inner.base = Some(version);
                inner.mark = last.map(|stat| stat.st_size as u64);
            } else if inner.writable().is_none() {
                // Published by an fsync, and the version is the base.
                inner.shadow = None;
            }
            inner.watch = None;
            std::mem::take(&mut inner.at_end)
        };
        self.complete(completions);
        for Continuation(work) in at_end {
            work(result);
        }
    }

    fn hand_over(
        &self,
        state: &mut State,
        transaction: &Transaction,
        published: Option<&Arc<Version>>,
        last: Option<Stat>,
    ) -> Vec<super::waiting::Completion> {
        let key = transaction.inode;
        let file = Self::file_id(key);
        let names = match state.tree.inode_mut(key) {
            Some(inode) => {
                inode.transaction = None;
                inode.names.to_vec()
            }
            None => Vec::new(),
        };
        let gone = state.tree.inode(key).is_none_or(|i| i.is_provisional());
        if !gone {
            let woken = state.leases.release(file);
            return self.wake(state, woken, published, false);
        }
        // A file that never came to be: its names go.
        if let Some(inode) = state.tree.inode_mut(key) {
            inode.last = last.map(|mut stat| {
                (stat.st_size, stat.st_blocks) = (0, 0);
                Box::new(stat.into())
            });
        }
        let woken = state.leases.abandon(file);
        for name in names {
            state.tree.detach(name.parent, &name.name);
        }
        self.wake(state, woken, None, true)
    }

    pub(super) fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
