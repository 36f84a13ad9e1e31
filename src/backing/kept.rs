//! Versions that were written but could not become the file, kept aside in `.latchfs/kept`.
//!
//! ```text
//! ID.data    the bytes, with the mode, owner and extended attributes of the file
//! ID.json    a [`Record`]: whose they are, and why they are here
//! ```
//!
//! The record is written to `.latchfs/tmp` first; then the bytes get their name, then the record its
//! own. To remove a version, its bytes go first. So a crash leaves one of three things: a record in
//! `tmp` (nothing was kept), bytes whose record is still in `tmp` ([`tidy`] brings it), or a
//! record without bytes (which goes).
//!
//! What is here is not made durable unless that is asked for: a version that was rolled back may be
//! large, and whoever writes next waits for this.

mod record;

pub(crate) use record::within_mount;
pub use record::{Kind, Record};

use super::dir::Listed;
use super::recover::{self, Action, Site};
use super::shadow::{self, Shadow};
use super::store::{KEPT, TMP, open_own, since_epoch, write_file};
use super::{Dir, Errno, Stat};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use log::warn;
use rustix::fs::{FileType, RenameFlags};
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::Read;
use std::time::Duration;

const DATA: &str = ".data";
const RECORD: &str = ".json";
/// No record of ours is longer.
const LONGEST_RECORD: u64 = 64 * 1024;
/// What a record takes on disk, about.
const RECORD_ROOM: u64 = 4096;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a version is kept.
    pub max_age: Duration,
    /// How many bytes of the disk all kept versions may take together. The oldest go for a new one;
    /// one that is larger by itself is not kept.
    pub max_size: u64,
}

/// The default of [`Limits::max_age`].
pub const KEPT_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The default of [`Limits::max_size`].
pub const KEPT_MAX_SIZE: u64 = 1 << 30;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_age: KEPT_MAX_AGE,
            max_size: KEPT_MAX_SIZE,
        }
    }
}

impl Limits {
    /// Everything is kept.
    pub const NONE: Self = Self {
        max_age: Duration::MAX,
        max_size: u64::MAX,
    };
}

/// A kept version.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is asked for by.
    pub id: String,
    /// What is known of it; of a damaged one, little.
    pub record: Record,
    /// When it was kept, by the clock of the file system: seconds and nanoseconds since the epoch.
    pub since: (i64, i64),
    /// What stat says of its bytes.
    pub stat: Stat,
    /// What is wrong with it.
    pub flaw: Option<Flaw>,
}

/// What is wrong with a kept version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// It has no record.
    NoRecord,
    /// Its record can't be read.
    DamagedRecord,
    /// It has not as many bytes as when it was kept.
    OtherSize,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoRecord => "its record is missing",
            Self::DamagedRecord => "its record is damaged",
            Self::OtherSize => "it has not as many bytes as when it was kept",
        })
    }
}

/// The directory of kept versions, for whoever looks into it: no lock is needed.
#[derive(Clone, Debug)]
pub struct Kept(Dir);

/// One version, as pruning sees it.
struct Item {
    id: String,
    /// Seconds and nanoseconds since the epoch when it was kept.
    since: (i64, i64),
    bytes: u64,
    uid: u32,
}

impl Kept {
    /// The kept versions of an open BACKING; `None` if latchfs never was there.
    ///
    /// # Errors
    /// `EACCES`: they are its daemon's user's alone.
    pub fn of(root: &Dir) -> Result<Option<Self>, Errno> {
        let open = |dir: &Dir, name: &str| dir.open_dir(OsStr::new(name));
        match open(root, super::store::DIRECTORY).and_then(|own| open(&own, super::store::KEPT)) {
            Ok(dir) => Ok(Some(Self(dir))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// All of them, the oldest first. What is damaged is told as far as it can be; files of others
    /// are passed over.
    ///
    /// # Errors
    /// As for reading a directory.
    pub fn list(&self) -> Result<Vec<Entry>, Errno> {
        let names = self.0.list()?.into_iter().map(|listed| listed.name);
        let mut entries: Vec<Entry> = names
            .filter_map(|name| self.entry(&id_of(&name, DATA)?))
            .collect();
        entries.sort_by_key(|entry| (entry.record.time, entry.since));
        Ok(entries)
    }

    fn entry(&self, id: &str) -> Option<Entry> {
        let stat = self.0.stat_at(&file_name(id, DATA)).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let (record, flaw) = match self.record(id) {
            Ok(record) if record.size.is_some_and(|size| size != stat.st_size as u64) => {
                (record, Some(Flaw::OtherSize))
            }
            Ok(record) => (record, None),
            Err(flaw) => {
                let record = Record {
                    time: u64::try_from(stat.st_ctime).unwrap_or_default(),
                    uid: Some(stat.st_uid),
                    ..Record::default()
                };
                (record, Some(flaw))
            }
        };
        let of_record = self.0.stat_at(&file_name(id, RECORD)).ok();
        Some(Entry {
            id: id.to_owned(),
            record,
            since: since(&stat, of_record.as_ref()),
            stat,
            flaw,
        })
    }

    fn record(&self, id: &str) -> Result<Record, Flaw> {
        let file = match open_own(&self.0, &file_name(id, RECORD)) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err(Flaw::NoRecord),
            Err(_) => return Err(Flaw::DamagedRecord),
        };
        let mut text = Vec::new();
        let read = file.take(LONGEST_RECORD).read_to_end(&mut text);
        let record = read.ok().and_then(|_| serde_json::from_slice(&text).ok());
        record.ok_or(Flaw::DamagedRecord)
    }

    /// Opens the bytes of a version to read them.
    ///
    /// # Errors
    /// `ENOENT` if there is none of this ID (any more); `EACCES`.
    pub fn open(&self, id: &str) -> Result<File, Errno> {
        open_own(&self.0, &file_name(id, DATA))
    }

    /// Removes a version.
    ///
    /// # Errors
    /// `ENOENT` if there is none of this ID (any more); `EACCES`.
    pub fn remove(&self, id: &str) -> Result<(), Errno> {
        let data = self.0.unlink(&file_name(id, DATA));
        if !matches!(data, Ok(()) | Err(Errno::NOENT)) {
            return data;
        }
        match self.0.unlink(&file_name(id, RECORD)) {
            Err(Errno::NOENT) => data,
            other => other,
        }
    }

    fn is_missing(&self, name: &OsStr) -> bool {
        self.0.stat_at(name).err() == Some(Errno::NOENT)
    }

    /// All versions, the oldest first.
    fn items(&self) -> Vec<Item> {
        let mut stats: HashMap<String, (Option<Stat>, Option<Stat>)> = HashMap::new();
        for listed in self.0.list().unwrap_or_default() {
            let name = &listed.name;
            let Ok(stat) = self.0.stat_at(name) else {
                continue;
            };
            if let Some(id) = id_of(name, DATA) {
                stats.entry(id).or_default().0 = Some(stat);
            } else if let Some(id) = id_of(name, RECORD) {
                stats.entry(id).or_default().1 = Some(stat);
            }
        }
        let mut items: Vec<Item> = stats
            .into_iter()
            .filter_map(|(id, (data, record))| {
                let data = data?;
                Some(Item {
                    id,
                    since: since(&data, record.as_ref()),
                    bytes: room(&data) + record.as_ref().map_or(0, room),
                    uid: data.st_uid,
                })
            })
            .collect();
        items.sort_unstable_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        items
    }
}

/// Why a version could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    /// It is larger than all together may be.
    #[error("it takes {0} bytes, more than kept_max_size ({1} bytes)")]
    TooLarge(u64, u64),
    /// A system call failed.
    #[error("{0}")]
    Io(#[from] Errno),
}

/// A write that found no room.
#[derive(Clone, Copy, Debug)]
pub struct Lacking {
    /// `ENOSPC` or `EDQUOT`; anything else is no lack of room.
    pub errno: Errno,
    /// The device of the file that was written.
    pub device: u64,
    /// Whose quota counts.
    pub uid: u32,
    /// How many bytes there was no room for.
    pub bytes: u64,
}

/// A version from before this moment (2020) was kept while the clock was not set yet: its age can't be
/// told. (It still makes way for others when all together are too large.)
const CLOCK_IS_SET: u64 = 1_577_836_800;

/// The time of day as it was at the start, and what has passed since: when the clock is set forwards, what is
/// kept is not older for that.
#[derive(Debug)]
struct Clock {
    at_start: Duration,
    started: Duration,
}

impl Clock {
    fn new() -> Self {
        Self {
            at_start: since_epoch(),
            started: since_boot(),
        }
    }

    /// The time of day, or less.
    fn now(&self) -> Duration {
        let passed = since_boot().saturating_sub(self.started);
        since_epoch().min(self.at_start + passed + LEAP)
    }
}

/// By so much the clock may go faster than the time that passes.
const LEAP: Duration = Duration::from_secs(60 * 60);

/// Also while the machine sleeps.
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

/// Keeps versions, within bounds.
#[derive(Debug)]
pub struct Keeper {
    kept: Kept,
    tmp: Dir,
    limits: Mutex<Limits>,
    clock: Clock,
    /// What they take on disk, or more, if somebody else removed some.
    used: AtomicU64,
}

impl Keeper {
    pub(super) fn new(kept: Dir, tmp: Dir) -> Self {
        Self {
            kept: Kept(kept),
            tmp,
            limits: Mutex::new(Limits::NONE),
            clock: Clock::new(),
            // Until they are counted.
            used: AtomicU64::new(u64::MAX / 2),
        }
    }

    /// What is kept.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Sets the bounds; there are none before.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock() = limits;
    }

    /// Keeps the bytes of a version aside, with what is known of it; the size is filled in.
    /// `durable`: so that a power cut can't take it. Returns its ID.
    ///
    /// # Errors
    /// [`NotKept`]: nothing is left of the attempt.
    pub fn keep(&self, shadow: &Shadow, record: &Record, durable: bool) -> Result<String, NotKept> {
        let stat = trim(shadow.file())?;
        let Limits { max_size, .. } = *self.limits.lock();
        let bytes = room(&stat) + RECORD_ROOM;
        if bytes > max_size {
            return Err(NotKept::TooLarge(bytes, max_size));
        }
        let place = |id: &OsStr| match shadow.link(&self.kept.0, id) {
            // It is on a file system that is mounted within BACKING; or it was published for a moment.
            Err(Errno::XDEV | Errno::NOENT) => shadow::copy_to(shadow.file(), &self.kept.0, id),
            other => other,
        };
        let id = self.put(&stat, record, durable, place)?;
        if durable {
            let synced = rustix::fs::fsync(shadow.file()).and_then(|()| self.kept.0.sync());
            synced.inspect_err(|_| {
                let _ = self.kept.remove(&id);
            })?;
        }
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes > max_size {
            self.prune(Some(&id));
        }
        Ok(id)
    }

    /// The same for a file of another directory of the store, which loses its name there. Returns its ID.
    ///
    /// # Errors
    /// As rename(2).
    pub fn take_in(&self, dir: &Dir, name: &OsStr, record: &Record) -> Result<String, Errno> {
        let flags = RenameFlags::empty();
        let place = |id: &OsStr| match self.kept.0.stat_at(id) {
            Ok(_) => Err(Errno::EXIST),
            Err(_) => dir.rename(name, &self.kept.0, id, flags),
        };
        let id = self.put(&dir.stat_at(name)?, record, true, place)?;
        self.kept.0.sync()?;
        Ok(id)
    }

    /// Has a version been kept already, with this record but for its time, and bytes that are the
    /// `same`? Then a power cut can't take it.
    ///
    /// # Errors
    /// As for reading a directory, and those of `same`.
    pub fn has(
        &self,
        record: &Record,
        mut same: impl FnMut(&File) -> Result<bool, Errno>,
    ) -> Result<bool, Errno> {
        for entry in self.kept.list()? {
            let record = Record {
                time: entry.record.time,
                ..record.clone()
            };
            if entry.record == record && entry.flaw.is_none() && same(&self.kept.open(&entry.id)?)?
            {
                self.kept.0.sync()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives a version a place by `place`, and then its record. Returns its ID.
    fn put(
        &self,
        stat: &Stat,
        record: &Record,
        durable: bool,
        place: impl Fn(&OsStr) -> Result<(), Errno>,
    ) -> Result<String, Errno> {
        let record = Record {
            size: Some(stat.st_size as u64),
            ..record.clone()
        };
        let json = serde_json::to_vec_pretty(&record).map_err(|_| Errno::INVAL)?;
        loop {
            let id = new_id();
            let name = file_name(&id, RECORD);
            match write_file(&self.tmp, &name, &json, durable) {
                Err(Errno::EXIST) => continue,
                other => other?,
            }
            let placed = place(&file_name(&id, DATA));
            let there = placed.is_ok();
            let flags = RenameFlags::empty();
            let named = placed.and_then(|()| self.tmp.rename(&name, &self.kept.0, &name, flags));
            match named {
                Ok(()) => return Ok(id),
                Err(errno) => {
                    let _ = self.tmp.unlink(&name);
                    if there {
                        let _ = self.kept.remove(&id);
                    }
                    if errno != Errno::EXIST {
                        return Err(errno);
                    }
                }
            }
        }
    }

    /// Removes the versions that are too old, and the oldest of those that are too many; never
    /// `newest`. Returns how many went.
    pub fn prune(&self, newest: Option<&str>) -> usize {
        let Limits { max_age, max_size } = *self.limits.lock();
        let items = self.kept.items();
        let mut used: u64 = items.iter().map(|item| item.bytes).sum();
        let eldest = self.clock.now().saturating_sub(max_age).as_secs();
        let mut removed = 0;
        for item in &items {
            let since = u64::try_from(item.since.0).unwrap_or_default();
            let too_old = (CLOCK_IS_SET..eldest).contains(&since);
            let goes = too_old || used > max_size;
            if goes && newest != Some(&item.id) && self.kept.remove(&item.id).is_ok() {
                used -= item.bytes;
                removed += 1;
            }
        }
        self.used.store(used, Ordering::Relaxed);
        removed
    }

    /// Removes the oldest versions for a write that found no room, if that can help it; true if the
    /// write is to be tried again. Blocks.
    pub fn give_way(&self, lacking: Lacking) -> bool {
        if self.used.load(Ordering::Relaxed) == 0 || !is_lack_of_room(lacking.errno) {
            return false;
        }
        if self.kept.0.stat().map(|stat| stat.st_dev) != Ok(lacking.device) {
            return false;
        }
        let mut items = self.kept.items();
        if lacking.errno == Errno::DQUOT {
            items.retain(|item| item.uid == lacking.uid);
        }
        let used: u64 = items.iter().map(|item| item.bytes).sum();
        let free = match lacking.errno {
            Errno::DQUOT => u64::MAX / 2,
            _ => rustix::fs::fstatvfs(&self.kept.0).map_or(0, |fs| fs.f_bavail * fs.f_frsize),
        };
        if free + used < lacking.bytes {
            return false;
        }
        // Not one by one: each round looks at all of them.
        let wanted = lacking.bytes.max(used / 8);
        let (mut given, mut removed) = (0, 0);
        for item in &items {
            if given >= wanted {
                break;
            }
            if self.kept.remove(&item.id).is_ok() {
                given += item.bytes;
                removed += 1;
            }
        }
        if removed > 0 {
            warn!(
                "no room is left on the disk ({}): the {removed} oldest kept versions made way",
                lacking.errno
            );
            let fetch = |used: u64| Some(used.saturating_sub(given));
            let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
            let _ = self.used.fetch_update(set, get, fetch);
        }
        removed > 0
    }
}

/// Puts right what a crash left; returns the names in `tmp` that are records of kept versions. Nothing
/// may be kept meanwhile.
///
/// # Errors
/// As for reading a directory. What can't be put right stays as it is.
pub(super) fn tidy(site: &Site<'_>, actions: &mut Vec<Action>) -> Result<Vec<OsString>, Errno> {
    let mut restored = Vec::new();
    let (Some(kept), Some(tmp)) = (site.dir(KEPT)?.map(Kept), site.dir(TMP)?) else {
        return Ok(restored);
    };
    for Listed { name, .. } in kept.0.list()? {
        if let Some(id) = id_of(&name, DATA) {
            let record = file_name(&id, RECORD);
            if !kept.is_missing(&record) || tmp.stat_at(&record).is_err() {
                continue;
            }
            let flags = RenameFlags::empty();
            if site.store.is_some() && tmp.rename(&record, &kept.0, &record, flags).is_err() {
                continue;
            }
            let what = "the record of a kept version";
            let kind = recover::Kind::RecordRestored;
            actions.push(Action::in_store(kind, KEPT, &record, what));
            restored.push(record);
        } else if let Some(id) = id_of(&name, RECORD)
            && kept.is_missing(&file_name(&id, DATA))
        {
            if site.store.is_some() && kept.0.unlink(&name).is_err() {
                continue;
            }
            let what = "the record of a version that is not kept any more";
            let kind = recover::Kind::LeftoverRemoved;
            actions.push(Action::in_store(kind, KEPT, &name, what));
        }
    }
    Ok(restored)
}

/// When a version was kept.
fn since(data: &Stat, record: Option<&Stat>) -> (i64, i64) {
    match record {
        // Programs set the times of their files, but not those of a record.
        Some(record) => (record.st_mtime, record.st_mtime_nsec as i64),
        None => (data.st_ctime, data.st_ctime_nsec as i64),
    }
}

/// Does an error say that there was no room?
pub fn is_lack_of_room(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

/// Gives back what the file system has reserved beyond the end of a file.
fn trim(file: &File) -> Result<Stat, Errno> {
    let stat = rustix::fs::fstat(file)?;
    if room(&stat) <= (stat.st_size as u64).next_multiple_of(4096) {
        return Ok(stat);
    }
    rustix::fs::ftruncate(file, stat.st_size as u64)?;
    let _ = rustix::fs::futimens(file, &shadow::times(&stat));
    rustix::fs::fstat(file)
}

/// What a file takes on disk, in bytes.
pub fn room(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or_default() * 512
}

fn file_name(id: &str, suffix: &str) -> OsString {
    OsString::from(format!("{id}{suffix}"))
}

fn id_of(name: &OsStr, suffix: &str) -> Option<String> {
    let id = name.to_str()?.strip_suffix(suffix)?;
    (!id.is_empty()).then(|| id.to_owned())
}

/// Eight digits by chance, so that a few of them tell a version from the others.
fn new_id() -> String {
    // The standard library's hasher starts from the system's random numbers.
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("{:08x}", random as u32)
}
