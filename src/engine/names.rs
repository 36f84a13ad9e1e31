//! rename, unlink, link, mkdir and the rest: they act at once, whatever is being written (N1).
//!
//! The kernel holds the directory's lock while it waits for their answer, so they wait for no
//! lease; only for a commit whose last close has already happened, which takes as long as the
//! disk and no longer.

use super::lookup::{Entry, claim};
use super::name_locks::Held;
use super::transaction::{Detached, Phase, Transaction};
use super::tree::{Key, Last, NodeId};
use super::{Caller, Done, Engine, State};
use crate::backing::kept::Kind;
use crate::backing::{Dir, Errno, Stat, identity};
use crate::leases::Wake;
use crate::sync::Arc;
use log::{debug, info};
use rustix::fs::{FileType, RenameFlags};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

/// What rename(2) is to do.
#[derive(Clone, Debug)]
pub struct Rename {
    /// The directory it is in.
    pub parent: NodeId,
    /// Its name there.
    pub name: OsString,
    /// The directory it goes to.
    pub new_parent: NodeId,
    /// Its name there.
    pub new_name: OsString,
    /// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT`.
    pub flags: u32,
}

/// What has to be told once the state lock is given back.
#[derive(Default)]
pub(super) struct Loose {
    completions: Vec<super::waiting::Completion>,
    detached: Vec<Arc<Transaction>>,
}

impl Engine {
    /// readlink(2).
    pub fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        let key = self.key_of(node)?;
        match self.at_place(key, |dir, name, _| dir.read_link(name)) {
            Err(Errno::STALE) => {
                let state = self.state.lock();
                let inode = state.tree.inode(key).filter(|i| i.names.is_empty());
                let last = inode.and_then(|inode| inode.last.as_deref());
                last.and_then(|last| last.target.clone())
                    .ok_or(Errno::STALE)
            }
            other => other,
        }
    }

    /// rmdir(2).
    ///
    /// # Errors
    /// `ENOTEMPTY` also if a file is being created in it.
    pub fn remove_dir(&self, parent: NodeId, name: &OsStr) -> Result<(), Errno> {
        self.store()?;
        let parent = self.key_of(parent)?;
        self.check_name(parent, name)?;
        let _names = self.names.exclusive([parent]);
        let known = {
            let state = self.state.lock();
            let known = state.tree.child(parent, name);
            if let Some(key) = known {
                let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
                if inode.is_provisional() {
                    return Err(Errno::NOTDIR);
                }
                if !state.tree.provisional_names(key).is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
            }
            known
        };
        let dir = self.dir(parent)?;
        let last = dir.stat_at(name).ok();
        self.while_vacant(last.as_ref(), None, || dir.remove_dir(name))?;
        if let Some(key) = known {
            self.dirs.lock().pop(&key);
            let mut state = self.state.lock();
            state.tree.remember(key, last.map(Last::from));
            state.tree.removed(key);
            state.tree.detach(parent, name);
        }
        Ok(())
    }

    /// unlink(2). A transaction in flight loses its name: its close succeeds and publishes
    /// nothing.
    pub fn unlink(self: &Arc<Self>, caller: Caller, parent: NodeId, name: &OsStr, done: Done<()>) {
        let key = match self.key_of(parent).and_then(|key| {
            self.store()?;
            self.check_name(key, name)?;
            Ok(key)
        }) {
            Ok(key) => key,
            Err(errno) => return done(Err(errno)),
        };
        let commit = self.transaction_at(key, name);
        let commit = commit.filter(|commit| commit.is_closing());
        match commit {
            Some(commit) => {
                let (engine, name) = (self.clone(), name.to_owned());
                commit.after_commit(move |_| engine.unlink(caller, parent, &name, done));
            }
            None => done(self.unlink_now(caller, key, name)),
        }
    }

    /// The transaction in flight on the file of a name.
    fn transaction_at(&self, parent: Key, name: &OsStr) -> Option<Arc<Transaction>> {
        let state = self.state.lock();
        let key = state.tree.child(parent, name)?;
        state.tree.inode(key)?.transaction.clone()
    }

    /// What a file that is being created is like to others.
    fn stat_in_flight(&self, parent: Key, name: &OsStr) -> Option<Stat> {
        let transaction = self.transaction_at(parent, name)?;
        let shadow = transaction.inner.lock().shadow.clone()?;
        let mut stat = rustix::fs::fstat(shadow.file()).ok()?;
        (stat.st_size, stat.st_blocks) = (0, 0);
        Some(stat)
    }

    /// unlink of a name in BACKING, and in the table.
    fn unlink_now(
        self: &Arc<Self>,
        caller: Caller,
        parent: Key,
        name: &OsStr,
    ) -> Result<(), Errno> {
        // Of /proc, so before any lock; asked only where somebody writes.
        let process = self
            .transaction_at(parent, name)
            .and_then(|_| self.processes.thread(caller.tid))
            .map(|thread| thread.process);
        let names = self.alone_at_names([(parent, name)]);
        let provisional = self.is_provisional(parent, name);
        let replaces = self.state.lock().tree.is_replacing(parent, name);
        let mut last = self.stat_in_flight(parent, name).map(Last::from);
        let mut last_link = true;
        if !provisional || replaces {
            let dir = self.dir(parent)?;
            let stat = dir.stat_at(name)?;
            last_link = stat.st_nlink <= 1;
            let target = target_of(&dir, name, &stat);
            last = Some(Last { stat, target });
            self.while_vacant(Some(&stat).filter(|_| last_link), None, || dir.unlink(name))?;
        }
        let mut loose = Loose::default();
        {
            let mut state = self.state.lock();
            self.lose_name(
                &mut state,
                parent,
                name,
                "its name was removed",
                process,
                &mut loose,
            );
            if let Some(key) = state.tree.child(parent, name) {
                state.tree.remember(key, last);
                if last_link {
                    state.tree.removed(key);
                }
            }
            state.tree.detach(parent, name);
        }
        drop(names);
        self.tell(loose);
        Ok(())
    }

    /// Locks some names that are about to change, and with them every name that their files have. A
    /// file that has lost a name in BACKING has it in the table for a moment longer: who looks at
    /// another name of it then would take that for a change behind the mount, and of two last names
    /// that go at once each would take the other for the last.
    fn alone_at_names<const N: usize>(&self, places: [(Key, &OsStr); N]) -> Held<'_> {
        let parents = || {
            let state = self.state.lock();
            let mut parents = BTreeSet::new();
            for (parent, name) in places {
                parents.insert(parent);
                let key = state.tree.child(parent, name);
                let inode = key.and_then(|key| state.tree.inode(key));
                let names = inode.into_iter().flat_map(|inode| &inode.names);
                parents.extend(names.map(|name| name.parent));
            }
            parents
        };
        loop {
            let wanted = parents();
            let held = self.names.exclusive(wanted.iter().copied());
            if parents().is_subset(&wanted) {
                return held;
            }
        }
    }

    /// A file is about to lose a name; if that is its last, a transaction in flight is detached.
    pub(super) fn lose_name(
        &self,
        state: &mut State,
        parent: Key,
        name: &OsStr,
        reason: &'static str,
        process: Option<u32>,
        loose: &mut Loose,
    ) {
        let Some(key) = state.tree.child(parent, name) else {
            return;
        };
        let Some(inode) = state.tree.inode(key) else {
            return;
        };
        if inode.names.len() > 1 {
            return;
        }
        let Some(transaction) = inode.transaction.clone() else {
            return;
        };
        let path = super::lookup::within_mount(state.tree.path(key));
        let pending = {
            // Once its opener has looked, it will come by OPEN, and join what it was given. Then its
            // turn at the file may still be to come.
            let looked = state.has_looked(transaction.writer.tid);
            let mut inner = transaction.inner.lock();
            let pending = inner.phase == Phase::Pending && !looked && !inner.arrived;
            if pending {
                inner.phase = Phase::Ended(Ok(()));
            } else {
                inner.detached = Some(Detached {
                    path,
                    by_writer: process == Some(transaction.writer.process),
                    kind: Kind::Detached,
                    reason,
                });
            }
            pending
        };
        let woken: Vec<Wake> = state.leases.abandon(Self::file_id(key));
        loose
            .completions
            .extend(self.wake(state, woken, None, true));
        if let Some(inode) = state.tree.inode_mut(key) {
            inode.transaction = None;
        }
        if pending {
            // Its opener has not come back yet, and will find what the name means now.
            let writer = transaction.writer.clone();
            state.take_redirect(writer.tid);
            state.send_elsewhere(writer.tid, Some(writer));
            state.tree.transaction_ended(&transaction);
        } else {
            loose.detached.push(transaction);
        }
    }

    pub(super) fn tell(self: &Arc<Self>, loose: Loose) {
        self.complete(loose.completions);
        for transaction in loose.detached {
            let inner = transaction.inner.lock();
            let Some(detached) = inner.detached.clone() else {
                continue;
            };
            drop(inner);
            let Detached {
                path,
                by_writer,
                reason,
                kind: _,
            } = detached;
            let path = super::lookup::shown(&path);
            let (pid, program) = (transaction.writer.process, &transaction.writer.program);
            if by_writer {
                debug!("{path}: {reason} by its writer, pid {pid} ({program})");
            } else {
                info!("{path}: {reason} while pid {pid} ({program}) was writing it");
            }
        }
    }

    /// link(2).
    ///
    /// # Errors
    /// `EEXIST`; what BACKING says.
    pub fn link(
        &self,
        caller: Caller,
        node: NodeId,
        new_parent: NodeId,
        new_name: &OsStr,
    ) -> Result<Entry, Errno> {
        self.store()?;
        let key = self.key_of(node)?;
        let new_parent = self.key_of(new_parent)?;
        self.check_name(new_parent, new_name)?;
        let source = || {
            let state = self.state.lock();
            let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
            let name = inode.names.first().cloned().ok_or(Errno::NOENT)?;
            Ok((name, inode.is_provisional()))
        };
        let claim = {
            let (from, provisional, _names) = loop {
                let (from, _) = source()?;
                let names = self.names.exclusive([from.parent, new_parent]);
                // A commit may have been faster.
                let (still, provisional) = source()?;
                if still == from {
                    break (from, provisional, names);
                }
            };
            if self.is_provisional(new_parent, new_name) {
                return Err(Errno::EXIST);
            }
            let to = self.dir(new_parent)?;
            if provisional {
                // Its commit gives it all its names.
                match to.stat_at(new_name) {
                    Err(Errno::NOENT) => {}
                    Ok(_) => return Err(Errno::EXIST),
                    Err(errno) => return Err(errno),
                }
            } else {
                let dir = self.dir(from.parent)?;
                dir.link(&from.name, &to, new_name)?;
            }
            let mut state = self.state.lock();
            state.tree.attach(key, new_parent, new_name);
            if let Some(inode) = state.tree.inode_mut(key) {
                inode.linked = true;
            }
            claim(&mut state, caller, key)?
        };
        // The kernel may still believe, for its other name, what it was told while it had one:
        // from now on a commit through this name changes what that one shows.
        self.drop_cached_attributes(key);
        self.entry(claim, None)
    }

    /// rename(2) and renameat2(2).
    ///
    /// # Errors
    /// Through `done`, what BACKING says.
    pub fn rename(self: &Arc<Self>, caller: Caller, rename: Rename, done: Done<()>) {
        let keys = self.store().and_then(|_| {
            let parent = self.key_of(rename.parent)?;
            let new_parent = self.key_of(rename.new_parent)?;
            self.check_name(parent, &rename.name)?;
            self.check_name(new_parent, &rename.new_name)?;
            Ok((parent, new_parent))
        });
        let (parent, new_parent) = match keys {
            Ok(keys) => keys,
            Err(errno) => return done(Err(errno)),
        };
        let source = self.transaction_at(parent, &rename.name);
        let target = self.transaction_at(new_parent, &rename.new_name);
        let mut commits = source.into_iter().chain(target);
        match commits.find(|commit| commit.is_closing()) {
            Some(commit) => {
                let engine = self.clone();
                commit.after_commit(move |_| engine.rename(caller, rename, done));
            }
            None if self
                .makes_a_version((parent, &rename.name), (new_parent, &rename.new_name)) =>
            {
                // It waits for the disk.
                self.spawn(move |engine| {
                    let synced = engine.sync_file_at(parent, &rename.name);
                    let renamed = synced
                        .and_then(|()| engine.rename_now(caller, parent, new_parent, &rename));
                    done(renamed.and_then(|()| engine.sync_entries(new_parent)));
                });
            }
            None => done(self.rename_now(caller, parent, new_parent, &rename)),
        }
    }

    fn rename_now(
        self: &Arc<Self>,
        caller: Caller,
        parent: Key,
        new_parent: Key,
        rename: &Rename,
    ) -> Result<(), Errno> {
        let (name, new_name) = (rename.name.as_os_str(), rename.new_name.as_os_str());
        let flags = RenameFlags::from_bits_retain(rename.flags);
        let process = self
            .transaction_at(new_parent, new_name)
            .and_then(|_| self.processes.thread(caller.tid))
            .map(|thread| thread.process);
        let in_flight = self.stat_in_flight(new_parent, new_name);
        let names = self.alone_at_names([(parent, name), (new_parent, new_name)]);
        let from_flight = self.is_provisional(parent, name);
        let to_flight = self.is_provisional(new_parent, new_name);
        let (from, to) = (self.dir(parent)?, self.dir(new_parent)?);
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if flags.contains(RenameFlags::NOREPLACE) && to_flight {
            return Err(Errno::EXIST);
        }
        let mut over = to.stat_at(new_name).ok();
        let target = over
            .as_ref()
            .and_then(|stat| target_of(&to, new_name, stat));
        if exchange && (from_flight || to_flight) {
            // BACKING has one of them at most. What they gave up by an earlier rename goes first.
            if from_flight {
                self.drop_given_up(parent, name, &from)?;
            }
            if to_flight {
                self.drop_given_up(new_parent, new_name, &to)?;
            }
            match (from_flight, to_flight) {
                (true, false) => to.rename(new_name, &from, name, RenameFlags::NOREPLACE)?,
                (false, true) => from.rename(name, &to, new_name, RenameFlags::NOREPLACE)?,
                _ => {}
            }
        } else if from_flight {
            match &over {
                Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Errno::EXIST),
                Some(stat) if is_dir(stat) => return Err(Errno::ISDIR),
                _ => {}
            }
            // What it gave up by an earlier rename was removed in the mount then.
            self.drop_given_up(parent, name, &from)?;
            if flags.contains(RenameFlags::WHITEOUT) {
                from.make_node(name, FileType::CharacterDevice.as_raw_mode(), 0)?;
            }
        } else {
            if !exchange {
                self.check_replaceable(&from, name, new_parent, new_name)?;
            }
            let goes = over.as_ref().filter(|stat| !exchange && is_last(stat));
            let source = from.stat_at(name).ok();
            self.while_vacant(goes, None, || from.rename(name, &to, new_name, flags))?;
            let of_one = |(a, b): (&Stat, &Stat)| identity(a) == identity(b);
            if !exchange && !to_flight && source.as_ref().zip(over.as_ref()).is_some_and(of_one) {
                // Of two names of one file, rename(2) removes none.
                return Ok(());
            }
            if to_flight {
                over = None;
            }
        }
        let mut loose = Loose::default();
        {
            let mut state = self.state.lock();
            if exchange {
                exchange_names(&mut state, (parent, name), (new_parent, new_name));
            } else {
                let reason = "another file was renamed over it";
                self.lose_name(
                    &mut state, new_parent, new_name, reason, process, &mut loose,
                );
                if let Some(key) = state.tree.child(new_parent, new_name) {
                    let last = over.or(in_flight).map(|stat| Last { stat, target });
                    state.tree.remember(key, last);
                    if !from_flight && over.as_ref().is_none_or(is_last) {
                        state.tree.removed(key);
                        self.dirs.lock().pop(&key);
                    }
                    state.tree.detach(new_parent, new_name);
                }
                move_name(&mut state, (parent, name), (new_parent, new_name));
                if from_flight && let Some(over) = &over {
                    state.tree.set_replacing(new_parent, new_name, over);
                }
            }
        }
        drop(names);
        self.tell(loose);
        Ok(())
    }

    /// What BACKING can't know of the target of a rename: files that are being created.
    fn check_replaceable(
        &self,
        from: &Dir,
        name: &OsStr,
        new_parent: Key,
        new_name: &OsStr,
    ) -> Result<(), Errno> {
        let (creating, holds_one) = {
            let state = self.state.lock();
            let Some(key) = state.tree.child(new_parent, new_name) else {
                return Ok(());
            };
            let creating = state.tree.inode(key).is_some_and(|i| i.is_provisional());
            (creating, !state.tree.provisional_names(key).is_empty())
        };
        if creating && is_dir(&from.stat_at(name)?) {
            return Err(Errno::NOTDIR);
        }
        if holds_one {
            return Err(Errno::NOTEMPTY);
        }
        Ok(())
    }

    /// Does what makes a file of BACKING go, if it is told which. Its inode number may be used again
    /// at once, by a file that another thread makes. `heir`: the inode that gets another file
    /// instead.
    pub(super) fn while_vacant(
        &self,
        goes: Option<&Stat>,
        heir: Option<Key>,
        work: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let vacated = goes.map(|stat| self.state.lock().tree.vacate(identity(stat)));
        let done = work();
        if let Some(vacated) = vacated {
            let tree = &mut self.state.lock().tree;
            match (done, vacated.key) {
                (Err(_), _) => tree.reoccupy(vacated),
                (Ok(()), Some(key)) if heir != Some(key) => tree.removed(key),
                (Ok(()), _) => {}
            }
        }
        done
    }

    /// A file being created was renamed over another, and is now renamed away: the other is gone.
    fn drop_given_up(&self, parent: Key, name: &OsStr, dir: &Dir) -> Result<(), Errno> {
        let replaces = self.state.lock().tree.is_replacing(parent, name);
        let unlink = || {
            let stat = dir.stat_at(name)?;
            let last = Some(&stat).filter(|stat| is_last(stat));
            self.while_vacant(last, None, || dir.unlink(name))
        };
        match replaces.then(unlink) {
            Some(Err(errno)) if errno != Errno::NOENT => Err(errno),
            _ => Ok(()),
        }
    }
}

/// Does the file go with the name that was looked at?
fn is_last(stat: &Stat) -> bool {
    is_dir(stat) || stat.st_nlink <= 1
}

/// Where a name leads if it is a symbolic link.
fn target_of(dir: &Dir, name: &OsStr, stat: &Stat) -> Option<Vec<u8>> {
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    is_link.then(|| dir.read_link(name).ok())?
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Moves a name in the table; a name that the kernel never looked up is not there.
fn move_name(state: &mut State, from: (Key, &OsStr), to: (Key, &OsStr)) {
    let Some(key) = state.tree.child(from.0, from.1) else {
        return;
    };
    // The new name first: an inode without a name would be dropped.
    state.tree.attach(key, to.0, to.1);
    state.tree.detach(from.0, from.1);
}

fn exchange_names(state: &mut State, a: (Key, &OsStr), b: (Key, &OsStr)) {
    let (first, second) = (state.tree.child(a.0, a.1), state.tree.child(b.0, b.1));
    state.tree.detach(a.0, a.1);
    state.tree.detach(b.0, b.1);
    if let Some(key) = first {
        state.tree.attach(key, b.0, b.1);
    }
    if let Some(key) = second {
        state.tree.attach(key, a.0, a.1);
    }
}
