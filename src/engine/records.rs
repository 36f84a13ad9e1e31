//! Records on their way into a file, what they make longer, and how that becomes durable.

use super::append::Appender;
use super::io::{Handle, Placement, length};
use super::tree::Key;
use super::version::Version;
use super::{Engine, State};
use crate::backing::append_log::{self, AppendLog};
use crate::backing::shadow::errno;
use crate::backing::{Dir, Errno, Seen, Stat, dir, shadow};
use crate::config::Durability;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use log::{error, info};
use rustix::fs::OFlags;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

/// An event thread appends at most this many bytes to a file by itself within [`WINDOW`]; beyond
/// it the pool does: the kernel makes who fills the page cache wait for the disk.
const INLINE: u64 = 8 << 20;
const WINDOW: Duration = Duration::from_secs(5);
/// A log longer than this is begun anew, once the file is durable.
const LONG_LOG: u64 = 256 * 1024;

/// How a version grows.
#[derive(Debug)]
pub struct Growth {
    /// Odd while a record is under way.
    turns: AtomicU64,
    /// The length of the file before that record.
    before: AtomicU64,
    pub(super) records: Mutex<Records>,
    /// One at a time makes it durable.
    syncing: Mutex<()>,
}

/// What appending needs.
#[derive(Debug)]
pub(super) struct Records {
    /// The file, open to be appended to.
    file: Option<Arc<File>>,
    /// Its length after the last record.
    pub(super) end: Option<u64>,
    pub(super) log: Option<AppendLog>,
    /// The log has been made durable, its name included.
    log_is_known: bool,
    /// The directory that has its name only since it was created for this.
    created_in: Option<Dir>,
    /// Something was appended that has not been made durable.
    pub(super) dirty: bool,
    /// The log is about to be begun anew.
    shortening: bool,
    /// The disk has lost something (fsync(2) tells only once): the log stays for the next mount, and
    /// nothing that comes later is called durable, since that mount will end the file before it.
    broken: bool,
    /// A change behind the mount has been logged.
    warned: bool,
    since: Instant,
    /// Bytes appended since then.
    recently: u64,
}

impl Growth {
    pub(super) fn new(file: Option<Arc<File>>, created_in: Option<Dir>) -> Arc<Self> {
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
                broken: false,
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
    pub(super) fn is_quick(&self, bytes: usize) -> bool {
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

impl State {
    /// Has a version that the disk has lost something of stay what the file is: whoever appends next goes
    /// on with its log. A log of its own would be trusted, and go, while the other one stayed.
    fn keep_broken(&mut self, key: Key, version: &Arc<Version>) {
        let Some(current) = self.tree.inode(key).map(|inode| inode.current) else {
            return;
        };
        let is_current = matches!(self.tree.alive(current).1, Some(v) if Arc::ptr_eq(&v, version));
        if is_current && !self.broken.contains_key(&key) {
            self.tree.pin(key, current);
            self.broken.insert(key, (current, version.clone()));
        }
    }
}

impl Engine {
    /// Files that have lost their last name need no version kept so: nobody will ask for it.
    pub(super) fn forget_nameless_broken(&self) {
        let nameless: Vec<Key> = {
            let state = self.state.lock();
            let named = |key: &Key| state.tree.inode(*key).is_some_and(|i| !i.names.is_empty());
            let keys = state.broken.keys().copied();
            keys.filter(|key| !named(key)).collect()
        };
        nameless.into_iter().for_each(|key| self.forget_broken(key));
    }

    /// A commit has taken the place of a version that may have been kept so.
    pub(super) fn forget_broken(&self, key: Key) {
        let kept = {
            let mut state = self.state.lock();
            let kept = state.broken.remove(&key);
            if let Some((node, _)) = &kept {
                state.tree.unpin(key, *node);
            }
            kept
        };
        if let Some((_, version)) = kept {
            version.forget_log();
        }
    }
}

impl Version {
    /// A commit has replaced it: nobody is to look after what was appended to it.
    pub(super) fn forget_log(&self) {
        if let Some(growth) = self.growth() {
            let log = growth.records.lock().log.take();
            log.into_iter().for_each(AppendLog::remove);
        }
    }
}

impl Engine {
    /// Appends a record; its turn has come.
    pub(super) fn record(
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
        if let Some(last) = last {
            last.forget_log();
        }
        let mut records = growth.records.lock();
        let (file, stat) = self.ready(appender.inode, &version, &mut records)?;
        let start = stat.st_size as u64;
        let credentials = &appender.who.credentials;
        let privileged = placement.drop_privileges && stat.st_mode & 0o6000 != 0;
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
        self.note_record(appender.inode, &version, Seen::of(&stat), &file);
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
        } else if let Err(errno) = self.sync_growth(growth, key, durability, false) {
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

    /// The file to append to, and what it is like; with a log, if it is to have one.
    pub(super) fn ready(
        &self,
        key: Key,
        version: &Version,
        records: &mut Records,
    ) -> Result<(Arc<File>, Stat), Errno> {
        let file = match &records.file {
            Some(file) => file.clone(),
            None => {
                let append = OFlags::WRONLY | OFlags::APPEND;
                let file = Arc::new(dir::open_again(&*version.file(), append)?);
                records.file = Some(file.clone());
                file
            }
        };
        // Asked under the lock of the records, which `retire` takes afterwards.
        if self.over.load(Ordering::SeqCst) {
            return Err(Errno::IO);
        }
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
        Ok((file, stat))
    }

    /// Makes what was appended to a version durable, and the log before it; its name, too, if it `goes_on`:
    /// else it is removed next.
    pub(super) fn sync_growth(
        &self,
        growth: &Growth,
        key: Key,
        durability: Durability,
        goes_on: bool,
    ) -> Result<(), Errno> {
        let _one = growth.syncing.lock();
        let (file, log, name_too, created_in, end) = {
            let mut records = growth.records.lock();
            let Some(file) = records.file.clone() else {
                return Ok(());
            };
            if records.broken {
                return Err(Errno::IO);
            }
            if !records.dirty && records.created_in.is_none() {
                return Ok(());
            }
            records.dirty = false;
            let log = records.log.as_ref();
            let log = log.map(|log| (log.content(), log.length()));
            let created_in = records.created_in.take();
            let name_too = goes_on && !records.log_is_known;
            (file, log, name_too, created_in, records.end)
        };
        let synced = match &log {
            Some((log, _)) => log.sync(name_too),
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
            records.broken = true;
            records.created_in = created_in;
            return Err(errno);
        }
        // If it is still the same: a change behind the mount begins a new one.
        let still = |(log, from): &(append_log::Content, u64)| {
            let now = records.log.as_ref()?;
            log.is_of(now).then_some((*from, now.length() > LONG_LOG))
        };
        if let Some((from, long)) = log.as_ref().and_then(still) {
            records.log_is_known |= name_too;
            if let (true, Some(end)) = (long, end) {
                self.shorten_to(key, &mut records, (end, from));
            }
        }
        Ok(())
    }

    /// Nobody appends to a version any more: it needs no log once it is durable.
    pub(super) fn retire(&self, key: Key, version: &Arc<Version>, durability: Durability) {
        let Some(growth) = version.growth() else {
            return;
        };
        if durability != Durability::None
            && let Err(errno) = self.sync_growth(growth, key, durability, false)
        {
            self.state.lock().keep_broken(key, version);
            // The log stays, for the next mount.
            return error!(
                "{}: what was appended could not be made durable: {errno}",
                self.path_of(key)
            );
        }
        let mut records = growth.records.lock();
        // Somebody may have come since; that one's end is the next occasion.
        let dirty = records.dirty && durability != Durability::None;
        if !dirty
            && !records.broken
            && let Some(log) = records.log.take()
        {
            log.remove();
        }
    }

    /// What a log speaks of is about to be overwritten in its inode, and its successor is durable:
    /// the log goes for good.
    ///
    /// # Errors
    /// `EIO`.
    pub(super) fn end_log(&self, key: Key) -> Result<(), Errno> {
        let open = {
            let state = self.state.lock();
            let current = state.tree.inode(key).map(|inode| inode.current);
            current.and_then(|current| state.tree.alive(current).1)
        };
        if let Some(version) = open {
            version.forget_log();
        }
        self.store()?.settle_logs()
    }

    /// The mount ends while files are open to be appended to; later records fail with `EIO`.
    pub(super) fn retire_all(&self) {
        self.over.store(true, Ordering::SeqCst);
        let open = self.handles.iter().filter_map(|handle| match &*handle {
            Handle::Append(appender) => Some(appender.clone()),
            _ => None,
        });
        let open: Vec<Arc<Appender>> = open.collect();
        for appender in open {
            self.retire(appender.inode, &appender.version(), appender.durability);
        }
    }
}
