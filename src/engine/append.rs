//! Files that are appended to: each write(2) of an `O_APPEND` handle is one record.
//!
//! A record goes into the inode of the current version, in place, at once: it needs no lease. Records
//! come one after the other, by a [`turn`](super::turn) each, and so a transaction that begins finds whole ones. It
//! does not see those that come while it is in flight ([`Inner::mark`](super::transaction::Inner::mark)); its commit adds them to its version
//! before that takes the place of the old one, and for that moment has the turn. The handle belongs to the
//! file, not to one version: after a commit its next record goes into the version that is current then.
//!
//! Readers never wait, and see whole records only: what is being written is kept from them
//! ([`Growth::visible`]). That takes every read to be a request, so a file that is appended to has a
//! node id of its own for that, which the kernel neither caches nor reads by itself. Who has opened
//! the file before anybody appended to it, when it was not empty, reads on through the old node id,
//! and sees it grow, too; where the kernel reads the inode by itself, perhaps a record while it is
//! being copied.
//!
//! How a record gets into the file is in [`records`](super::records). Where records end is logged for recovery (`backing/append_log.rs`).

use super::attributes::Change;
use super::direct::clear_privileges;
use super::io::{Handle, Placement, length};
use super::lookup::{Attributes, Entry};
use super::make::{Made, NewMode};
use super::open::{OpenFlags, Opened, OpenedOn, Wish};
use super::records::Growth;
use super::serve::look;
use super::transaction::{Phase, Writer};
use super::tree::{Key, NodeId};
use super::version::Version;
use super::{Caller, Done, Engine, State};
use crate::backing::kept::is_lack_of_room;
use crate::backing::shadow::errno;
use crate::backing::{Dir, Errno, identity};
use crate::config::Durability;
use crate::leases::Acquire;
use crate::rules::{Policy, Treatment, Validation};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex};
use log::{error, warn};
use rustix::fs::{FallocateFlags, OFlags};
use std::ffi::OsStr;
use std::fs::File;

/// An open handle with `O_APPEND`.
#[derive(Debug)]
pub struct Appender {
    /// The file.
    pub inode: Key,
    /// Who opened it: at whose expense it is written.
    pub who: Writer,
    /// May it be read?
    pub readable: bool,
    /// How much its close waits for the disk.
    pub durability: Durability,
    /// The version that its last record went to.
    pub(super) version: Mutex<Arc<Version>>,
    /// It has appended something since it was last made durable.
    pub(super) dirty: AtomicBool,
}

impl Appender {
    /// The version that it has open.
    pub(super) fn version(&self) -> Arc<Version> {
        self.version.lock().clone()
    }
}

impl Engine {
    /// Does an open mean to append records? `unnamed`: it came by a magic link.
    pub(super) fn appends(
        &self,
        state: &State,
        key: Key,
        treatment: Option<&Treatment>,
        flags: OpenFlags,
        unnamed: bool,
    ) -> bool {
        if unnamed && flags.write && state.appenders.contains_key(&key) {
            // /dev/stdout of a process whose standard output is a log: it has no place in the file
            // of its own to write at.
            return true;
        }
        // With O_TRUNC there is a version to be committed first.
        flags.only_appends() && appends_by_rule(treatment, false)
    }

    /// A version of a file whose content is `file`; `fresh`: it has just been committed.
    pub(super) fn new_version(
        &self,
        key: Key,
        file: Arc<File>,
        may_change: bool,
        fresh: bool,
    ) -> Arc<Version> {
        let known = {
            let state = self.state.lock();
            let appended = state.tree.inode(key).is_some_and(|inode| inode.appended);
            appended && !fresh || state.appenders.contains_key(&key)
        };
        let treatment = || self.treatment_of(&self.state.lock(), key);
        let by_rule = || treatment().and_then(|t| t.policy) == Some(Policy::Append);
        // Whoever opens an empty file to read it waits for something to be appended.
        let grows = known || length(&file) == Ok(0) || by_rule();
        match grows {
            true => Version::growing(file, Growth::new(None, None)),
            false => Version::new(file, may_change),
        }
    }

    /// Opens a file to append to it. Whoever read it until now by another node id goes on there,
    /// and sees it grow.
    ///
    /// # Errors
    /// What BACKING says.
    pub(super) fn open_append(
        &self,
        wish: &Wish,
        pin: Option<Arc<Version>>,
    ) -> Result<Opened, Errno> {
        if pin.is_none() && !wish.unnamed && !wish.spent {
            self.at_place(wish.inode, look)?;
        }
        let here = || self.state.lock().tree.alive(wish.node).1;
        let version = self.version_to_append(wish.inode, pin.or_else(here))?;
        if is_in_the_way(&self.state.lock(), wish.node) {
            // A reader has come since this was decided.
            return Err(match (wish.unnamed, wish.spent) {
                (true, _) => Errno::BUSY,
                (false, true) => Errno::INTR,
                (false, false) => self.send_to_append(wish),
            });
        }
        let writer = wish.writer.clone();
        let who = writer.unwrap_or_else(|| self.writer(wish.caller));
        Ok(self.append_handle(wish.inode, wish.flags, who, version))
    }

    /// Sends an opener to a node id for a file that is appended to, which those who read the file
    /// by its present one stay away from.
    pub(super) fn send_to_append(&self, wish: &Wish) -> Errno {
        match self.version_to_append(wish.inode, None) {
            Ok(version) => {
                let mut state = self.state.lock();
                let Some(current) = state.tree.inode(wish.inode).map(|inode| inode.current) else {
                    return Errno::STALE;
                };
                let (caller, key, from) = (wish.caller, wish.inode, wish.node);
                state.redirect(caller, key, from, current, Some(version), None);
                Errno::STALE
            }
            Err(errno) => errno,
        }
    }

    fn append_handle(
        &self,
        key: Key,
        flags: OpenFlags,
        who: Writer,
        version: Arc<Version>,
    ) -> Opened {
        let durability = {
            let mut state = self.state.lock();
            *state.appenders.entry(key).or_default() += 1;
            if let Some(inode) = state.tree.inode_mut(key) {
                inode.appended = true;
            }
            match self.treatment_of(&state, key) {
                Some(treatment) => treatment.durability,
                None => self.settings().defaults.durability,
            }
        };
        let appender = Appender {
            inode: key,
            who,
            readable: flags.read_write,
            durability,
            version: Mutex::new(version),
            dirty: AtomicBool::new(false),
        };
        Opened {
            handle: self.add_handle(Handle::Append(Arc::new(appender))),
            on: OpenedOn::Backing,
        }
    }

    /// The current version of a file, as one that grows; `pinned`, one that the caller has open, if
    /// the file has no name any more by which it could be opened.
    pub(super) fn version_to_append(
        &self,
        key: Key,
        pinned: Option<Arc<Version>>,
    ) -> Result<Arc<Version>, Errno> {
        loop {
            if let Some(version) = self.try_version_to_append(key, pinned.clone())? {
                return Ok(version);
            }
        }
    }

    /// The same; `None` if a commit or a reader was faster, and has it open as one that does not
    /// grow.
    fn try_version_to_append(
        &self,
        key: Key,
        pinned: Option<Arc<Version>>,
    ) -> Result<Option<Arc<Version>>, Errno> {
        let (old, of, watched) = {
            let mut state = self.state.lock();
            let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
            let (current, of) = (inode.current, inode.identity);
            match state.tree.alive(current).1 {
                Some(open) if open.policy == Policy::Append => return Ok(Some(open)),
                // It was renamed to be used directly: who has it open goes on as before.
                Some(open) if open.policy == Policy::Direct => {
                    return pinned.map(Some).ok_or(Errno::BUSY);
                }
                Some(open) => {
                    state.tree.renew(key);
                    (Some(open), of, Some(current))
                }
                None => (None, of, None),
            }
        };
        if self.is_torn(key) {
            return Err(Errno::IO);
        }
        self.check_descriptors()?;
        let opened = self.at_place(key, |dir, name, identity| {
            let append = OFlags::RDWR | OFlags::APPEND;
            let file = match dir.open_file(name, append, identity) {
                // It may be written, but not read.
                Err(Errno::ACCESS) => {
                    dir.open_file(name, OFlags::WRONLY | OFlags::APPEND, identity)
                }
                other => other,
            };
            // While its name can't change: after a commit it would be another file.
            let file = Arc::new(file?);
            let growth = Growth::new(Some(file.clone()), None);
            Ok((self.add_growing(key, growth, file)?, identity))
        });
        let (version, identity) = match (opened, pinned) {
            (Ok((Some(version), identity)), _) => (version, identity),
            (Ok((None, _)), _) => return Ok(None),
            (Err(Errno::STALE | Errno::NOENT), Some(pinned)) if pinned.growth().is_some() => {
                return Ok(Some(pinned));
            }
            (Err(errno), _) => return Err(errno),
        };
        if let (Some(old), Some(growth)) = (old, version.growth())
            && of == Some(identity)
        {
            old.grows(growth);
        }
        if let (Some(before), Some(kernel)) = (watched, self.kernel.get()) {
            // What it believes of the size.
            kernel.drop_attributes(before);
            self.tell_watchers(key, watched);
        }
        Ok(Some(version))
    }

    /// Makes `file` the version that is open; `None` if there is one that does not grow.
    fn add_growing(
        &self,
        key: Key,
        growth: Arc<Growth>,
        file: Arc<File>,
    ) -> Result<Option<Arc<Version>>, Errno> {
        let opened = identity(&rustix::fs::fstat(&file)?);
        let version = Version::growing(file, growth);
        let mut state = self.state.lock();
        let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
        let current = inode.current;
        match state.tree.alive(current).1 {
            // A version has taken its place, or is being copied over it.
            _ if inode.rewriting || inode.identity != Some(opened) => Err(Errno::STALE),
            // Somebody was faster; all must share one.
            Some(open) if open.policy == Policy::Append => Ok(Some(open)),
            Some(_) => Ok(None),
            None => {
                state.tree.opened(current, &version);
                Ok(Some(version))
            }
        }
    }

    /// open(2) with `O_CREAT` of a free name, to append to what is made; the caller of this holds
    /// the directory's lock on names. The file is there at once, so that all who append to it and
    /// read it share it from the start.
    ///
    /// # Errors
    /// `EEXIST` if it is not free; what BACKING says.
    pub(super) fn create_append(
        self: &Arc<Self>,
        (caller, writer): (Caller, &Writer),
        (parent, dir): (Key, &Dir),
        name: &OsStr,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(Entry, Opened), Errno> {
        let access = OFlags::RDWR | OFlags::APPEND;
        let Made {
            file, claim, key, ..
        } = self.make_file(caller, (parent, dir), name, mode, access)?;
        let growth = Growth::new(Some(file.clone()), Some(dir.clone()));
        let version = self.add_growing(key, growth, file);
        let version = version.and_then(|version| version.ok_or(Errno::STALE));
        let version = version.inspect_err(|_| self.forget(claim.node, 1))?;
        let opened = self.append_handle(key, flags, writer.clone(), version);
        match self.entry(claim, None) {
            Ok(entry) => Ok((entry, opened)),
            Err(errno) => {
                self.release(opened.handle);
                Err(errno)
            }
        }
    }

    /// write(2) of an append handle: one record.
    ///
    /// # Errors
    /// Through `done`: `ENOSPC`, `EDQUOT`, `EIO`: then nothing of the record is in the file.
    pub(super) fn append(
        self: &Arc<Self>,
        caller: Caller,
        appender: Arc<Appender>,
        placement: Placement,
        data: &[u8],
        done: Done<u32>,
    ) {
        if placement.mapped {
            warn!(
                "{}: pid {} ({}) wrote by a mapping of a descriptor with O_APPEND, which is refused",
                self.path_of(appender.inode),
                appender.who.process,
                appender.who.program
            );
            return done(Err(Errno::IO));
        }
        let own = {
            let state = self.state.lock();
            let inode = state.tree.inode(appender.inode);
            let transaction = inode.and_then(|inode| inode.transaction.clone());
            transaction.filter(|t| t.writer.tid == caller.tid && t.is_in_flight())
        };
        if let Some(own) = own {
            let data = data.to_vec();
            return self.spawn(
                move |engine| match engine.append_to_own(caller, &own, &data) {
                    // Its last close came first: then it is a record after that version.
                    Err(Errno::IO) if !own.is_in_flight() => {
                        engine.append_later(appender, placement, data, done);
                    }
                    result => done(result),
                },
            );
        }
        let quick = appender.version().growth().map(|g| g.is_quick(data.len()));
        let quick = quick == Some(true) && !self.is_unsettled(appender.inode);
        if quick && let Some(turn) = self.turn_at_once(appender.inode) {
            let result = self.record(&appender, placement, data);
            drop(turn);
            match result {
                // Kept versions may make way, which blocks.
                Err(errno) if is_lack_of_room(errno) => {}
                result => return done(result),
            }
        }
        self.append_later(appender, placement, data.to_vec(), done);
    }

    /// The same, by a thread of the pool, after whoever is first.
    fn append_later(
        self: &Arc<Self>,
        appender: Arc<Appender>,
        placement: Placement,
        data: Vec<u8>,
        done: Done<u32>,
    ) {
        self.take_turn(appender.inode, move |engine, turn| {
            let file = appender.version().file();
            let (to, bytes) = ((&*file, &appender.who.credentials), data.len() as u64);
            let record = || engine.record(&appender, placement, &data);
            let settled = engine.settle_inode(appender.inode);
            let result = settled.and_then(|()| engine.with_room(to, bytes, record));
            drop(turn);
            done(result);
        });
    }

    /// A thread appends to a file that it is writing itself: the record belongs to its version.
    fn append_to_own(
        &self,
        caller: Caller,
        transaction: &Arc<super::transaction::Transaction>,
        data: &[u8],
    ) -> Result<u32, Errno> {
        use std::os::unix::fs::FileExt;
        self.modify(transaction, Some(data.len() as u64), |shadow| {
            let end = length(shadow.file())?;
            shadow.file().write_all_at(data, end).map_err(errno)
        })?;
        let process = transaction.writer.process;
        transaction.inner.lock().wrote(caller.tid, process);
        Ok(data.len() as u32)
    }

    /// fsync(2) of an append handle, or with `goes_on` false, its close.
    pub(super) fn sync_appended(&self, appender: &Appender, goes_on: bool) -> Result<(), Errno> {
        appender.dirty.store(false, Ordering::Relaxed);
        let version = appender.version();
        let Some(growth) = version.growth() else {
            return Ok(());
        };
        self.sync_growth(growth, appender.inode, appender.durability, goes_on)
            .inspect_err(|errno| {
                appender.dirty.store(true, Ordering::Relaxed);
                error!(
                    "{}: what pid {} ({}) appended could not be made durable: {errno}",
                    self.path_of(appender.inode),
                    appender.who.process,
                    appender.who.program
                );
            })
    }

    /// close(2) of one copy of an append handle. With durability `full`, what was appended is
    /// durable when a process has closed its last descriptor of the file (W7).
    pub(super) fn close_appender(
        self: &Arc<Self>,
        caller: Caller,
        appender: Arc<Appender>,
        done: Done<()>,
    ) {
        let full = appender.durability == Durability::Full;
        if !full || !appender.dirty.load(Ordering::Relaxed) {
            return done(Ok(()));
        }
        self.spawn(move |engine| {
            // `status` first: see `close_one`.
            let thread = engine.processes.thread(caller.tid);
            let reported = engine
                .state
                .lock()
                .tree
                .inode(appender.inode)
                .map(|i| i.reported);
            let holds = match (thread, reported) {
                (Some(thread), Some(reported)) if !thread.exiting => engine
                    .processes
                    .holds_open_for_writing(thread.process, reported),
                _ => false,
            };
            done(match holds {
                true => Ok(()),
                false => engine.sync_appended(&appender, false),
            });
        });
    }

    /// An append handle is gone.
    pub(super) fn drop_appender(self: &Arc<Self>, appender: Arc<Appender>) {
        let key = appender.inode;
        let version = appender.version();
        let (last, current) = {
            let mut state = self.state.lock();
            let current = state.tree.inode(key).map(|inode| inode.current);
            let current = current.and_then(|current| state.tree.alive(current).1);
            let last = match state.appenders.get_mut(&key) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => {
                    state.appenders.remove(&key);
                    true
                }
            };
            (last, current)
        };
        if last {
            let durability = appender.durability;
            self.spawn(move |engine| engine.retire(key, &version, durability));
        } else if current.is_none_or(|current| !Arc::ptr_eq(&current, &version)) {
            version.forget_log();
        }
    }

    /// ftruncate(2) of an append handle: a version of its own (R2). `EBUSY` while somebody else writes
    /// the file: the kernel asks for it under the inode's lock, for which a name operation on the file
    /// would wait, too, and with it everybody in its directory.
    pub(super) fn truncate_appended(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        (appender, change, size): (Arc<Appender>, Change, u64),
        done: Done<Attributes>,
    ) {
        let key = appender.inode;
        if self.is_nameless(key) {
            return self.take_turn(key, move |engine, turn| {
                let truncated = engine.truncate_in_place(&appender, size);
                drop(turn);
                done(truncated.and_then(|()| engine.attributes(node)));
            });
        }
        let writer = self.writer(caller);
        let (granted, transaction) = {
            let state = &mut *self.state.lock();
            let acquired = self.lease_at_once(state, key, caller.tid);
            let in_flight = state.tree.inode(key).and_then(|i| i.transaction.clone());
            match (acquired, in_flight) {
                (Acquire::Granted, _) => (true, Some(self.begin(state, key, writer, Phase::Open))),
                (_, other) => (false, other),
            }
        };
        match transaction {
            Some(own) if granted => {
                self.truncate_by(caller, node, (change, size), (own, true), done);
            }
            Some(own) if own.writer.tid == caller.tid && own.is_in_flight() => {
                self.truncate_by(caller, node, (change, size), (own, false), done);
            }
            Some(other) if other.is_closing() => {
                let engine = self.clone();
                other.after_commit(move |_| {
                    engine.truncate_appended(caller, node, (appender, change, size), done);
                });
            }
            _ => done(Err(Errno::BUSY)),
        }
    }

    /// A file without a name has no versions.
    fn truncate_in_place(&self, appender: &Appender, size: u64) -> Result<(), Errno> {
        let version = self.version_to_append(appender.inode, Some(appender.version()))?;
        let growth = version.growth().ok_or(Errno::IO)?;
        let mut records = growth.records.lock();
        let (file, _) = self.ready(appender.inode, &version, &mut records)?;
        records.end = None;
        rustix::fs::ftruncate(&file, size)
    }

    /// fallocate(2) of an append handle; its turn has come. `EBUSY` while somebody writes the file.
    pub(super) fn allocate_appended(
        &self,
        appender: &Appender,
        (mode, offset, size): (FallocateFlags, u64, u64),
    ) -> Result<(), Errno> {
        let state = self.state.lock();
        let inode = state.tree.inode(appender.inode);
        if inode.is_some_and(|inode| inode.transaction.is_some()) {
            return Err(Errno::BUSY);
        }
        drop(state);
        self.settle_inode(appender.inode)?;
        let version = self.version_to_append(appender.inode, Some(appender.version()))?;
        let growth = version.growth().ok_or(Errno::IO)?;
        // What it does to the content is no record.
        version.forget_log();
        self.store()?.settle_logs()?;
        let mut records = growth.records.lock();
        let (file, _) = self.ready(appender.inode, &version, &mut records)?;
        clear_privileges(&file, &appender.who.credentials)?;
        let allocate = || rustix::fs::fallocate(&file, mode, offset, size);
        let result = self.approved(&appender.who.credentials, allocate);
        records.dirty = true;
        records.end = None;
        result
    }
}

/// Does an open with `O_APPEND` of a file that is treated like this append records? Not where a
/// version is validated: a part of it can't be.
pub(super) fn appends_by_rule(treatment: Option<&Treatment>, truncate: bool) -> bool {
    match treatment {
        None => !truncate,
        Some(treatment) => match treatment.policy {
            None => !truncate && treatment.validate == Validation::None,
            Some(policy) => policy == Policy::Append,
        },
    }
}

/// Can't the kernel use a handle of `version`'s node id together with one to append by?
pub(super) fn is_in_the_way(state: &State, node: NodeId) -> bool {
    let open = state.tree.alive(node).1;
    open.is_some_and(|open| open.policy != Policy::Append)
}
