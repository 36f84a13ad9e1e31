//! Files that are appended to: each write(2) of an `O_APPEND` handle is one record.
//!
//! A record goes into the inode of the current version, in place. For as long as that takes, its
//! thread holds the file's lease ([`turn`](super::turn)): records come one after the other, none comes while a
//! transaction is in flight (whose commit would lose it), and a transaction that begins finds whole
//! records. The handle itself holds nothing. It belongs to the file, not to one version: after a
//! commit its next record goes into the version that is current then.
//!
//! Readers never wait, and see whole records only: what is being written is kept from them
//! ([`Growth::visible`]). That takes every read to be a request, so a file that is appended to has a
//! node id of its own for that, which the kernel neither caches nor reads by itself. Who has opened
//! the file before anybody appended to it, when it was not empty, reads on through the old node id,
//! and sees it grow, too; where the kernel reads the inode by itself, perhaps a record while it is
//! being copied.
//!
//! Where records end is logged for recovery (`backing/append_log.rs`).

use super::attributes::Change;
use super::direct::clear_privileges;
use super::io::{Handle, Placement, length};
use super::lookup::{Attributes, Entry, claim};
use super::make::NewMode;
use super::open::{OpenFlags, Opened, OpenedOn, Wish};
use super::transaction::{Phase, Writer};
use super::tree::{Key, NodeId};
use super::turn::Turn;
use super::version::Version;
use super::{Caller, Done, Engine, State};
use crate::backing::append_log::{self, AppendLog};
use crate::backing::shadow::errno;
use crate::backing::{Dir, Errno, dir, identity, shadow};
use crate::config::Durability;

use crate::rules::{Policy, Treatment, Validation};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use log::{error, info, warn};
use rustix::fs::{FallocateFlags, FileType, OFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

/// An event thread appends at most this many bytes to a file by itself within [`WINDOW`]; beyond
/// it the pool does: the kernel makes who fills the page cache wait for the disk.
const INLINE: u64 = 8 << 20;
const WINDOW: Duration = Duration::from_secs(5);
/// A log longer than this is begun anew, once the file is durable.
const LONG_LOG: u64 = 256 * 1024;

/// An open handle with `O_APPEND`.
#[derive(Debug)]
pub struct Appender {
    /// The file.
    pub inode: Key,
    /// Who opened it: at whose expense it is written.
    pub who: Writer,
    /// May it be read?
    pub readable: bool,
    /// The longest that a record waits.
    pub lock_timeout: Duration,
    /// How much its close waits for the disk.
    pub durability: Durability,
    /// The version that its last record went to.
    version: Mutex<Arc<Version>>,
    /// It has appended something since it was last made durable.
    dirty: AtomicBool,
}

impl Appender {
    /// The version that it has open.
    pub(super) fn version(&self) -> Arc<Version> {
        self.version.lock().clone()
    }
}

/// How a version grows.
#[derive(Debug)]
pub struct Growth {
    /// Odd while a record is under way.
    turns: AtomicU64,
    /// The length of the file before that record.
    before: AtomicU64,
    records: Mutex<Records>,
    /// One at a time makes it durable.
    syncing: Mutex<()>,
}

/// What appending needs.
#[derive(Debug)]
struct Records {
    /// The file, open to be appended to.
    file: Option<Arc<File>>,
    /// Its length after the last record.
    end: Option<u64>,
    log: Option<AppendLog>,
    /// The log has been made durable, its name included.
    log_is_known: bool,
    /// The directory that has its name only since it was created for this.
    created_in: Option<Dir>,
    /// Something was appended that has not been made durable.
    dirty: bool,
    /// The log is about to be begun anew.
    shortening: bool,
    /// A change behind the mount has been logged.
    warned: bool,
    since: Instant,
    /// Bytes appended since then.
    recently: u64,
}

impl Growth {
    fn new(file: Option<Arc<File>>, created_in: Option<Dir>) -> Arc<Self> {
        Arc::new(Self {
            turns: AtomicU64::new(0),
            before: AtomicU64::new(0),
            syncing: Mutex::new(()),
            records: Mutex::new(Records {
                file,
                end: None,
                log: None,
                log_is_known: false,
                created_in,
                dirty: false,
                shortening: false,
                warned: false,
                since: Instant::now(),
                recently: 0,
            }),
        })
    }

    /// The length of its file, without the record that is under way.
    pub(super) fn visible(&self, file: &File) -> Result<u64, Errno> {
        loop {
            let turn = self.turns.load(Ordering::SeqCst);
            if turn % 2 == 1 {
                let before = self.before.load(Ordering::SeqCst);
                // Or it might be that of the next record.
                if self.turns.load(Ordering::SeqCst) == turn {
                    return Ok(before);
                }
                continue;
            }
            let length = length(file)?;
            if self.turns.load(Ordering::SeqCst) == turn {
                return Ok(length);
            }
        }
    }

    /// Does `work`, which makes the file longer than `before`, unseen until it is over.
    fn unseen<T>(&self, before: u64, work: impl FnOnce() -> T) -> T {
        self.before.store(before, Ordering::SeqCst);
        self.turns.fetch_add(1, Ordering::SeqCst);
        let result = work();
        self.turns.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// May an event thread append so much?
    fn is_quick(&self, bytes: usize) -> bool {
        let Some(mut records) = self.records.try_lock() else {
            return false;
        };
        if records.since.elapsed() > WINDOW {
            (records.since, records.recently) = (Instant::now(), 0);
        }
        records.recently += bytes as u64;
        records.recently < INLINE
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
        flags.append && appends_by_rule(treatment, flags.truncate)
    }

    /// A version of a file whose content is `file`; `fresh`: it has just been committed.
    pub(super) fn new_version(
        &self,
        key: Key,
        file: Arc<File>,
        may_change: bool,
        fresh: bool,
    ) -> Arc<Version> {
        let grows = {
            let state = self.state.lock();
            let appended = state.tree.inode(key).is_some_and(|inode| inode.appended);
            appended && !fresh
                // Whoever opens an empty file to read it waits for something to be appended.
                || length(&file) == Ok(0)
                || state.appenders.contains_key(&key)
                || self.treatment_of(&state, key).and_then(|t| t.policy) == Some(Policy::Append)
        };
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
        let here = || self.state.lock().tree.alive(wish.node).1;
        let version = self.version_to_append(wish.inode, pin.or_else(here))?;
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
        let (lock_timeout, durability) = {
            let mut state = self.state.lock();
            *state.appenders.entry(key).or_default() += 1;
            if let Some(inode) = state.tree.inode_mut(key) {
                inode.appended = true;
            }
            match self.treatment_of(&state, key) {
                Some(treatment) => (treatment.lock_timeout, treatment.durability),
                None => {
                    let defaults = self.settings().defaults;
                    (defaults.lock_timeout, defaults.durability)
                }
            }
        };
        let appender = Appender {
            inode: key,
            who,
            readable: flags.read_write,
            lock_timeout,
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
        let (old, watched) = {
            let mut state = self.state.lock();
            let current = state.tree.inode(key).ok_or(Errno::STALE)?.current;
            match state.tree.alive(current).1 {
                Some(open) if open.policy == Policy::Append => return Ok(open),
                // It was renamed to be used directly: who has it open goes on as before.
                Some(open) if open.policy == Policy::Direct => {
                    return pinned.ok_or(Errno::BUSY);
                }
                Some(open) => {
                    state.tree.renew(key);
                    (Some(open), Some(current))
                }
                None => (None, None),
            }
        };
        let opened = self.at_place(key, |dir, name, identity| {
            let append = OFlags::RDWR | OFlags::APPEND;
            let file = match dir.open_file(name, append, identity) {
                // It may be written, but not read.
                Err(Errno::ACCESS) => {
                    dir.open_file(name, OFlags::WRONLY | OFlags::APPEND, identity)
                }
                other => other,
            };
            Ok(Arc::new(file?))
        });
        let file = match (opened, pinned) {
            (Ok(file), _) => file,
            (Err(Errno::STALE | Errno::NOENT), Some(pinned)) if pinned.growth().is_some() => {
                return Ok(pinned);
            }
            (Err(errno), _) => return Err(errno),
        };
        let version = self.add_growing(key, Growth::new(Some(file.clone()), None), file)?;
        if let (Some(old), Some(growth)) = (old, version.growth()) {
            old.grows(growth);
        }
        if let (Some(before), Some(kernel)) = (watched, self.kernel.get()) {
            // What it believes of the size.
            kernel.drop_attributes(before);
            self.tell_watchers(key, watched);
        }
        Ok(version)
    }

    fn add_growing(
        &self,
        key: Key,
        growth: Arc<Growth>,
        file: Arc<File>,
    ) -> Result<Arc<Version>, Errno> {
        let version = Version::growing(file, growth);
        let mut state = self.state.lock();
        let current = state.tree.inode(key).ok_or(Errno::STALE)?.current;
        match state.tree.alive(current).1 {
            // Somebody was faster; all must share one.
            Some(open) if open.policy == Policy::Append => Ok(open),
            Some(_) => Err(Errno::STALE),
            None => {
                state.tree.opened(current, &version);
                Ok(version)
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
        &self,
        (caller, writer): (Caller, &Writer),
        (parent, dir): (Key, &Dir),
        name: &OsStr,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(Entry, Opened), Errno> {
        let access = OFlags::RDWR | OFlags::APPEND;
        let file = self.making(caller, mode.umask, || {
            dir.create_file(name, access, mode.bits)
        })?;
        let file = Arc::new(file);
        let stat = rustix::fs::fstat(&file)?;
        let (claim, key) = {
            let mut state = self.state.lock();
            let (identity, kind) = (identity(&stat), FileType::RegularFile);
            let key = state.tree.found(identity, kind, parent, name);
            (claim(&mut state, caller, key)?, key)
        };
        let growth = Growth::new(Some(file.clone()), Some(dir.clone()));
        let version = self.add_growing(key, growth, file);
        let version = version.inspect_err(|_| self.forget(claim.node, 1))?;
        let opened = self.append_handle(key, flags, writer.clone(), version);
        match self.entry(claim, None) {
            Ok(entry) => Ok((entry, opened)),
            Err(errno) => {
                self.handles.remove(&opened.handle);
                Err(errno)
            }
        }
    }

    /// write(2) of an append handle: one record.
    ///
    /// # Errors
    /// Through `done`: `ETIMEDOUT`, `EINTR` if it waited for a transaction in vain; `ENOSPC`,
    /// `EDQUOT`, `EIO`: then nothing of the record is in the file.
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
        let quick = appender.version().growth().map(|g| g.is_quick(data.len()));
        if quick == Some(true) && self.turn_at_once(caller, appender.inode) {
            let result = self.record(&appender, placement, data);
            self.end_turn(appender.inode);
            return done(result);
        }
        let data = data.to_vec();
        self.append_later(caller, appender, placement, data, done);
    }

    /// The same, by a thread of the pool, after whoever is first.
    fn append_later(
        self: &Arc<Self>,
        caller: Caller,
        appender: Arc<Appender>,
        placement: Placement,
        data: Vec<u8>,
        done: Done<u32>,
    ) {
        let (key, limit) = (appender.inode, appender.lock_timeout);
        self.take_turn(caller, key, limit, move |engine, turn| match turn {
            Ok(Turn::Taken) => {
                let result = engine.record(&appender, placement, &data);
                engine.end_turn(key);
                done(result);
            }
            Ok(Turn::Own(transaction)) => {
                done(engine.append_to_own(caller, &transaction, &data));
            }
            Ok(Turn::Again) => engine.append_later(caller, appender, placement, data, done),
            Err(errno) => done(Err(errno)),
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

    /// Appends a record; its turn has come.
    fn record(
        self: &Arc<Self>,
        appender: &Appender,
        placement: Placement,
        data: &[u8],
    ) -> Result<u32, Errno> {
        let version = self.version_to_append(appender.inode, Some(appender.version()))?;
        let growth = version.growth().ok_or(Errno::IO)?;
        let last = {
            let mut last = appender.version.lock();
            let same = Arc::ptr_eq(&last, &version);
            (!same).then(|| std::mem::replace(&mut *last, version.clone()))
        };
        if let Some(growth) = last.as_ref().and_then(|last| last.growth()) {
            // A commit has replaced it.
            let log = growth.records.lock().log.take();
            log.into_iter().for_each(AppendLog::remove);
        }
        let mut records = growth.records.lock();
        let (file, start) = self.ready(appender.inode, &version, &mut records)?;
        let credentials = &appender.who.credentials;
        let mode = |file: &File| Ok::<_, Errno>(rustix::fs::fstat(file)?.st_mode);
        let privileged = placement.drop_privileges && mode(&file)? & 0o6000 != 0;
        if placement.drop_privileges {
            shadow::drop_privileges(&file, credentials)?;
        }
        let end = start.checked_add(data.len() as u64).ok_or(Errno::FBIG)?;
        if let Some(log) = &records.log {
            let crc = crc32fast::hash(data);
            log.announce(append_log::Entry { end, crc })?;
        }
        records.dirty = true;
        appender.dirty.store(true, Ordering::Relaxed);
        let written = growth.unseen(start, || {
            let write = || (&*file).write_all(data).map_err(errno);
            self.approved(credentials, write).inspect_err(|errno| {
                // Nothing of a record that is not whole stays.
                if let Err(again) = rustix::fs::ftruncate(&file, start) {
                    error!(
                        "{}: a record could not be appended whole ({errno}), nor what there is of \
                         it be removed ({again})",
                        self.path_of(appender.inode)
                    );
                }
            })
        });
        written?;
        records.end = Some(end);
        if let Some(log) = &mut records.log {
            log.stays();
        }
        let long = records
            .log
            .as_ref()
            .is_some_and(|log| log.length() > LONG_LOG);
        let shorten = long && !std::mem::replace(&mut records.shortening, true);
        drop(records);
        let key = appender.inode;
        if privileged {
            self.drop_cached_attributes(key);
        }
        if shorten {
            let durability = appender.durability;
            self.spawn(move |engine| engine.shorten(key, &version, durability));
        }
        Ok(data.len() as u32)
    }

    /// Begins the log of a version anew; but for a mount that promises nothing for power cuts, that
    /// takes what was appended to be durable.
    fn shorten(&self, key: Key, version: &Version, durability: Durability) {
        let Some(growth) = version.growth() else {
            return;
        };
        if durability == Durability::None {
            let mut records = growth.records.lock();
            if let (Some(end), Some(log)) = (records.end, &records.log) {
                let from = log.length();
                self.shorten_to(key, &mut records, (end, from));
            }
        } else if let Err(errno) = self.sync_growth(growth, key, durability) {
            error!(
                "{}: what was appended could not be made durable: {errno}",
                self.path_of(key)
            );
        }
        growth.records.lock().shortening = false;
    }

    fn shorten_to(&self, key: Key, records: &mut Records, since: (u64, u64)) {
        let path = self.state.lock().tree.path(key).unwrap_or_default();
        let (Ok(store), Some(file), Some(log)) = (self.store(), &records.file, &mut records.log)
        else {
            return;
        };
        match log.shorten(store, file, &path, since) {
            Ok(()) => records.log_is_known = false,
            Err(errno) => info!("{}: its log stays long: {errno}", self.path_of(key)),
        }
    }

    /// The file to append to, and how long it is; with a log, if it is to have one.
    fn ready(
        &self,
        key: Key,
        version: &Version,
        records: &mut Records,
    ) -> Result<(Arc<File>, u64), Errno> {
        let file = match &records.file {
            Some(file) => file.clone(),
            None => {
                let append = OFlags::WRONLY | OFlags::APPEND;
                let file = Arc::new(dir::open_again(&*version.file(), append)?);
                records.file = Some(file.clone());
                file
            }
        };
        let stat = rustix::fs::fstat(&file)?;
        let length = stat.st_size as u64;
        if records.end.is_some_and(|end| end != length) {
            if !std::mem::replace(&mut records.warned, true) {
                info!(
                    "{}: its length was changed behind the mount while it was appended to",
                    self.path_of(key)
                );
            }
            if let Some(log) = records.log.take() {
                log.remove();
            }
        }
        if records.log.is_none() && stat.st_nlink > 0 {
            let path = self.state.lock().tree.path(key).unwrap_or_default();
            records.log = Some(AppendLog::begin(self.store()?, &file, &path, length)?);
            records.log_is_known = false;
        }
        records.end = Some(length);
        Ok((file, length))
    }

    /// Makes what was appended to a version durable, and the log before it.
    fn sync_growth(&self, growth: &Growth, key: Key, durability: Durability) -> Result<(), Errno> {
        let _one = growth.syncing.lock();
        let (file, log, name_too, created_in, end) = {
            let mut records = growth.records.lock();
            let Some(file) = records.file.clone() else {
                return Ok(());
            };
            if !records.dirty && records.created_in.is_none() {
                return Ok(());
            }
            records.dirty = false;
            let log = records.log.as_ref().map(|log| (log.file(), log.length()));
            let created_in = records.created_in.take();
            (file, log, !records.log_is_known, created_in, records.end)
        };
        let synced = match &log {
            Some((log, _)) => append_log::sync(log, name_too),
            None => Ok(()),
        };
        let synced = synced.and_then(|()| rustix::fs::fsync(&file));
        let synced = synced.and_then(|()| match &created_in {
            Some(dir) if durability == Durability::Full => dir.sync(),
            _ => Ok(()),
        });
        let mut records = growth.records.lock();
        if let Err(errno) = synced {
            records.dirty = true;
            records.created_in = created_in;
            return Err(errno);
        }
        // If it is still the same: a change behind the mount begins a new one.
        let still = |(log, from): &((Arc<File>, Dir), u64)| {
            let now = records.log.as_ref()?;
            Arc::ptr_eq(&log.0, &now.file().0).then_some((*from, now.length() > LONG_LOG))
        };
        if let Some((from, long)) = log.as_ref().and_then(still) {
            records.log_is_known = true;
            if let (true, Some(end)) = (long, end) {
                self.shorten_to(key, &mut records, (end, from));
            }
        }
        Ok(())
    }

    /// fsync(2) of an append handle.
    pub(super) fn sync_appended(&self, appender: &Appender) -> Result<(), Errno> {
        appender.dirty.store(false, Ordering::Relaxed);
        let version = appender.version();
        let Some(growth) = version.growth() else {
            return Ok(());
        };
        self.sync_growth(growth, appender.inode, appender.durability)
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
                false => engine.sync_appended(&appender),
            });
        });
    }

    /// An append handle is gone.
    pub(super) fn drop_appender(self: &Arc<Self>, appender: Arc<Appender>) {
        let key = appender.inode;
        let last = {
            let mut state = self.state.lock();
            match state.appenders.get_mut(&key) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => {
                    state.appenders.remove(&key);
                    true
                }
            }
        };
        if last {
            let durability = appender.durability;
            self.spawn(move |engine| engine.retire(key, &appender.version(), durability));
        }
    }

    /// Nobody appends to a version any more: it needs no log once it is durable.
    fn retire(&self, key: Key, version: &Version, durability: Durability) {
        let Some(growth) = version.growth() else {
            return;
        };
        if durability != Durability::None
            && let Err(errno) = self.sync_growth(growth, key, durability)
        {
            // The log stays, for the next mount.
            return error!(
                "{}: what was appended could not be made durable: {errno}",
                self.path_of(key)
            );
        }
        let mut records = growth.records.lock();
        // Somebody may have come since; that one's end is the next occasion.
        let dirty = records.dirty && durability != Durability::None;
        if !dirty && let Some(log) = records.log.take() {
            log.remove();
        }
    }

    /// A commit is about to take the place of what a log speaks of, perhaps in the same inode.
    ///
    /// # Errors
    /// `EIO`.
    pub(super) fn retire_for_good(&self, key: Key) -> Result<(), Errno> {
        let open = {
            let state = self.state.lock();
            let current = state.tree.inode(key).map(|inode| inode.current);
            current.and_then(|current| state.tree.alive(current).1)
        };
        let Some(version) = open.filter(|open| open.growth().is_some()) else {
            return Ok(());
        };
        self.retire(key, &version, Durability::Full);
        self.store()?.append().sync()
    }

    /// The mount ends while files are open to be appended to.
    pub(super) fn retire_all(&self) {
        let open = self.handles.iter().filter_map(|handle| match &*handle {
            Handle::Append(appender) => Some(appender.clone()),
            _ => None,
        });
        let open: Vec<Arc<Appender>> = open.collect();
        for appender in open {
            self.retire(appender.inode, &appender.version(), appender.durability);
        }
    }

    /// ftruncate(2) of an append handle: a version of its own (R2).
    pub(super) fn truncate_appended(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        (appender, change, size): (Arc<Appender>, Change, u64),
        done: Done<Attributes>,
    ) {
        let writer = self.writer(caller);
        let (key, limit) = (appender.inode, appender.lock_timeout);
        self.take_turn(caller, key, limit, move |engine, turn| match turn {
            Ok(Turn::Taken) if engine.is_nameless(key) => {
                let truncated = engine.truncate_in_place(&appender, size);
                engine.end_turn(key);
                done(truncated.and_then(|()| engine.attributes(node)));
            }
            Ok(Turn::Taken) => {
                let state = &mut *engine.state.lock();
                let transaction = engine.begin(state, key, writer, Phase::Open);
                engine.spawn(move |engine| {
                    engine.take_base(&transaction);
                    let truncation = (transaction, true);
                    engine.truncate_by(caller, node, (change, size), truncation, done);
                });
            }
            Ok(Turn::Own(own)) => {
                engine.truncate_by(caller, node, (change, size), (own, false), done);
            }
            Ok(Turn::Again) => done(Err(Errno::BUSY)),
            Err(errno) => done(Err(errno)),
        });
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

    /// fallocate(2) of an append handle; its turn has come.
    pub(super) fn allocate_appended(
        &self,
        appender: &Appender,
        (mode, offset, size): (FallocateFlags, u64, u64),
    ) -> Result<(), Errno> {
        let version = self.version_to_append(appender.inode, Some(appender.version()))?;
        let growth = version.growth().ok_or(Errno::IO)?;
        let mut records = growth.records.lock();
        let (file, _) = self.ready(appender.inode, &version, &mut records)?;
        // What it does to the content is no record.
        if let Some(log) = records.log.take() {
            log.remove();
        }
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
