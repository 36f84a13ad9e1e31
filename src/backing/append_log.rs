//! The log of the records that are being appended to a file, for recovery.
//!
//! While a file is appended to, a log in `.latchfs/append` tells where its records end. An entry is
//! written before the bytes of its record and holds their checksum, so that recovery can tell a
//! record that is whole from one that is not, whichever of the two reached the disk. What was made
//! durable (by fsync(2) or close(2)) is so together with its entries, the entries first.
//!
//! A log is made before the first byte is appended, and its name tells which inode it is for and how
//! long that was. So even a log whose content never reached the disk tells what not to believe:
//! file systems that log their metadata (ext4, XFS, btrfs) make the name durable no later than the
//! growth of the file.
//!
//! A log that was removed may be back after a power cut, since nothing waits for its removal, and knows less
//! than those that came later, and nothing of a later rewrite of the inode ([`redo`]). So while a removal may
//! not have reached the disk ([`Removals`]), whatever is made durable next of the same file waits for that:
//! on btrfs, what happens to two files in one directory has no order.
//!
//! [`trim`] is what recovery does: the file loses what comes after its last whole record, and no
//! more than was appended since the log began. That is kept aside: perhaps it was no torn record, but
//! somebody has edited the file meanwhile.

use super::kept;
use super::redo::{self, Birth, Place, Wanted};
use super::store::{Store, open_own, since_epoch};
use super::{Dir, Errno, Stat, shadow, shadow::errno};
use crate::sync::{Arc, OnceLock};
use removals::Removals;
use rustix::fs::{Mode, OFlags, fdatasync, fsync};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 8] = b"latchap1";
/// Magic, length of the description, its checksum.
const PREFIX: usize = 16;
const ENTRY: usize = 16;
/// A file that was modified so many seconds after its log was written was not by the record that the
/// log tells of, since that is written at once.
const LATER: i64 = 10;
/// No path makes a description longer than this.
const LONGEST_HEADER: usize = 1 << 20;

/// Which file a log is for, as it says inside.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// The way from BACKING to the file, as bytes of each component.
    path: Vec<Vec<u8>>,
    /// Which run of the machine's kernel.
    boot: String,
    /// When it was begun, for people.
    time: u64,
}

/// Where a record ends, and the checksum of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The length of the file with this record.
    pub end: u64,
    /// CRC-32 of its bytes.
    pub crc: u32,
}

impl Entry {
    fn encode(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.end.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.crc.to_le_bytes());
        let check = crc32fast::hash(&bytes[..12]) ^ u32::from_le_bytes(*b"rec.");
        bytes[12..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let end = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let crc = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
        let entry = Self { end, crc };
        (entry.encode() == bytes).then_some(entry)
    }
}

/// The open log of a file that is being appended to. It stays when it is dropped: see
/// [`AppendLog::remove`].
#[derive(Debug)]
pub struct AppendLog {
    dir: Dir,
    name: OsString,
    file: Arc<File>,
    /// Where the next entry goes.
    at: u64,
    ino: u64,
    removals: Arc<Removals>,
}

/// What of a log is to be made durable.
#[derive(Debug)]
pub struct Content {
    file: Arc<File>,
    dir: Dir,
    ino: u64,
    removals: Arc<Removals>,
}

impl Content {
    /// Makes the log durable, and its name if that is asked for, or if a log that was removed may come
    /// back in its place.
    ///
    /// # Errors
    /// `EIO`.
    pub fn sync(&self, name_too: bool) -> Result<(), Errno> {
        fdatasync(&*self.file)?;
        match name_too || self.removals.concern(self.ino) {
            true => self.removals.settle(|| self.dir.sync()),
            false => Ok(()),
        }
    }

    /// Is it of this log?
    pub fn is_of(&self, log: &AppendLog) -> bool {
        Arc::ptr_eq(&self.file, &log.file)
    }
}

impl AppendLog {
    /// Begins the log of a file of `length` bytes, before anything is appended to it. `path` is the
    /// way to it from BACKING.
    ///
    /// # Errors
    /// As for making a file in BACKING.
    pub fn begin(
        store: &Store,
        target: &File,
        path: &[OsString],
        length: u64,
    ) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(target)?;
        let claim = Claim {
            ino: stat.st_ino,
            born: redo::birth(target),
            base: length,
        };
        let header = Header {
            path: path.iter().map(|c| c.as_bytes().to_vec()).collect(),
            boot: boot_id().to_owned(),
            time: since_epoch().as_secs(),
        };
        let json = serde_json::to_vec(&header).map_err(|_| Errno::INVAL)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
        bytes.extend_from_slice(&json);
        let name = claim.name(&store.unique_name());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let dir = store.append().clone();
        let log = Self {
            file: Arc::new(File::from(rustix::fs::openat(&dir, &name, flags, mode)?)),
            dir,
            name,
            at: bytes.len() as u64,
            ino: stat.st_ino,
            removals: store.append_removals().clone(),
        };
        match log.file.write_all_at(&bytes, 0) {
            Ok(()) => Ok(log),
            Err(e) => {
                log.remove();
                Err(errno(e))
            }
        }
    }

    /// Says what the next record will be, before its bytes are written. Until [`AppendLog::stays`]
    /// the next one takes its place.
    ///
    /// # Errors
    /// `ENOSPC`, `EIO`.
    pub fn announce(&self, entry: Entry) -> Result<(), Errno> {
        let written = self.file.write_all_at(&entry.encode(), self.at);
        written.map_err(errno)
    }

    /// The record that was announced is in the file.
    pub fn stays(&mut self) {
        self.at += ENTRY as u64;
    }

    /// How long it is, in bytes.
    pub fn length(&self) -> u64 {
        self.at
    }

    /// What is to be made durable.
    pub fn content(&self) -> Content {
        Content {
            file: self.file.clone(),
            dir: self.dir.clone(),
            ino: self.ino,
            removals: self.removals.clone(),
        }
    }

    /// A log that begins later: the file is durable up to `length`, which was its length when this
    /// log was `from` bytes long. Takes the place of this one.
    ///
    /// # Errors
    /// As for [`AppendLog::begin`]; this one stays then.
    pub fn shorten(
        &mut self,
        store: &Store,
        target: &File,
        path: &[OsString],
        (length, from): (u64, u64),
    ) -> Result<(), Errno> {
        let mut next = Self::begin(store, target, path, length)?;
        let mut rest = vec![0; usize::try_from(self.at.saturating_sub(from)).unwrap_or(0)];
        let copied = self
            .file
            .read_exact_at(&mut rest, from)
            .and_then(|()| next.file.write_all_at(&rest, next.at));
        if let Err(e) = copied {
            next.remove();
            return Err(errno(e));
        }
        next.at += rest.len() as u64;
        std::mem::replace(self, next).remove();
        Ok(())
    }

    /// Removes it: the file is durable, or nobody is to look after it any more.
    pub fn remove(self) {
        let _ = self.dir.unlink(&self.name);
        self.removals.add(self.ino);
    }
}

/// An inode, and when it was made.
type Inode = (u64, Option<Birth>);

/// What the name of a log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    ino: u64,
    born: Option<Birth>,
    base: u64,
}

impl Claim {
    fn name(&self, unique: &OsStr) -> OsString {
        let (seconds, nanoseconds) = self.born.unwrap_or_default();
        let known = if self.born.is_some() { "b" } else { "u" };
        let (ino, base) = (self.ino, self.base);
        let mut name = OsString::from(format!("{ino}_{known}{seconds}_{nanoseconds}_{base}_"));
        name.push(unique);
        name
    }

    fn parse(name: &OsStr) -> Option<Self> {
        let mut fields = name.to_str()?.split('_');
        let ino = fields.next()?.parse().ok()?;
        let seconds = fields.next()?;
        let (known, seconds) = seconds.split_at_checked(1)?;
        let born = (seconds.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self {
            ino,
            born: (known == "b").then_some(born),
            base: fields.next()?.parse().ok()?,
        })
    }
}

/// What a log says of its file.
#[derive(Debug, Default)]
struct Told {
    path: Vec<OsString>,
    /// The machine has not been restarted since: what was written is there, whether it is on the
    /// disk or not.
    same_boot: bool,
    /// When it was written last, in seconds since the epoch.
    written: i64,
    entries: Vec<Entry>,
}

/// Reads a log; what is not whole of it says nothing.
fn read(dir: &Dir, name: &OsStr) -> Result<Told, Errno> {
    let mut bytes = Vec::new();
    let mut file = open_own(dir, name)?;
    file.read_to_end(&mut bytes).map_err(errno)?;
    let told = parse(&bytes).unwrap_or_default();
    let written = rustix::fs::fstat(&file)?.st_mtime;
    Ok(Told { written, ..told })
}

fn parse(bytes: &[u8]) -> Option<Told> {
    let number = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    if bytes.get(..8)? != MAGIC {
        return None;
    }
    let length = number(8)? as usize;
    if length > LONGEST_HEADER {
        return None;
    }
    let json = bytes.get(PREFIX..PREFIX + length)?;
    if crc32fast::hash(json) != number(12)? {
        return None;
    }
    let header: Header = serde_json::from_slice(json).ok()?;
    let entries = bytes.get(PREFIX + length..)?.chunks_exact(ENTRY);
    Some(Told {
        path: header.path.into_iter().map(OsString::from_vec).collect(),
        same_boot: header.boot == boot_id(),
        written: 0,
        entries: entries.map_while(Entry::decode).collect(),
    })
}

/// What a log says about the end of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At a record boundary; or the log says nothing about it.
    Whole,
    /// After this many bytes; what follows is no whole record.
    At(u64),
    /// Something else than latchfs has changed the file, after this many bytes.
    Foreign(u64),
}

/// Finds the end of the last whole record of a file of `length` bytes, to which `entries` were
/// appended from `base` on. `crc` tells the checksum of a range of it.
///
/// # Errors
/// Those of `crc`.
pub fn find_end(
    base: u64,
    entries: &[Entry],
    length: u64,
    same_boot: bool,
    mut crc: impl FnMut(u64, u64) -> Result<u32, Errno>,
) -> Result<End, Errno> {
    if length <= base {
        return Ok(End::Whole);
    }
    let mut at = base;
    let mut rest = entries.iter();
    let mut torn = None;
    for entry in rest.by_ref() {
        if entry.end <= at || entry.end > length || crc(at, entry.end)? != entry.crc {
            torn = Some(entry);
            break;
        }
        at = entry.end;
    }
    if at == length {
        return Ok(End::Whole);
    }
    // Nothing was lost on its way to the disk: then only the last record can be incomplete, and
    // what goes beyond it was not written here.
    let last = rest.next().is_none();
    let explained = torn.is_some_and(|entry| last && length <= entry.end && entry.end > at);
    Ok(match explained || !same_boot {
        true => End::At(at),
        false => End::Foreign(at),
    })
}

/// What [`trim`] did about a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// The way to it from BACKING.
    pub path: OsString,
    /// Its length now, in bytes.
    pub length: u64,
    /// How many bytes it lost.
    pub lost: u64,
    /// Why it was left as it is, if it was.
    pub left: Option<String>,
}

/// Ends every file that a killed daemon was appending to at its last whole record, and removes the
/// logs; what files lose is kept aside. Without a store, only tells.
///
/// # Errors
/// `EIO`, `ENOSPC`: the logs stay for the next time.
pub(super) fn trim(
    root: &Dir,
    logs: &Dir,
    store: Option<&Store>,
    done: &mut Vec<Trimmed>,
) -> Result<(), Errno> {
    let mut by_file: HashMap<Inode, Vec<(Claim, Told)>> = HashMap::new();
    let names: Vec<OsString> = logs.list()?.into_iter().map(|e| e.name).collect();
    for name in &names {
        if let Some(claim) = Claim::parse(name) {
            let of_file = by_file.entry((claim.ino, claim.born)).or_default();
            of_file.push((claim, read(logs, name)?));
        }
    }
    let mut places = HashMap::new();
    let mut elsewhere = HashSet::new();
    for (inode, told) in &by_file {
        let wanted = wanted(inode);
        let mut paths = told.iter().map(|(_, told)| &told.path);
        match paths.find_map(|path| redo::find_target(root, path, &wanted)) {
            Some(place) => drop(places.insert(*inode, place)),
            None => drop(elsewhere.insert(inode.0)),
        }
    }
    // One walk for all of them: of files that were removed there may be many.
    let paths = redo::paths_of(root, &elsewhere);
    for (inode, told) in &by_file {
        let search = || {
            let mut paths = paths.iter();
            paths.find_map(|path| redo::find_target(root, path, &wanted(inode)))
        };
        // Where it was removed, there is nothing to trim.
        if let Some(place) = places.remove(inode).or_else(search) {
            done.extend(trim_one(&place, inode.0, told, store)?);
        }
    }
    let Some(store) = store.filter(|_| !names.is_empty()) else {
        return Ok(());
    };
    for name in &names {
        match logs.unlink(name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    store.append_removals().settle(|| logs.sync())
}

fn wanted(&(ino, born): &Inode) -> Wanted {
    Wanted { ino, born }
}

/// Of one file there may be several logs: one that was removed may be back after a power cut, and
/// knows less than those that came later.
fn trim_one(
    place: &Place,
    ino: u64,
    told: &[(Claim, Told)],
    store: Option<&Store>,
) -> Result<Option<Trimmed>, Errno> {
    let path = told.iter().map(|(_, told)| told.path.join(OsStr::new("/")));
    let path = match path.max_by_key(|path| path.len()) {
        Some(path) if !path.is_empty() => path,
        _ => OsString::from(format!("(inode {ino})")),
    };
    let opened = match store {
        Some(_) => place.open_for_rewrite(),
        None => match place.check_rewrite() {
            Ok(()) => Ok(place.open_to_read()?),
            Err(why) => Err(why),
        },
    };
    let file = match opened {
        Ok(file) => file,
        Err(why) => {
            let (length, lost, left) = (place.length()?, 0, Some(why));
            return Ok(Some(Trimmed {
                path,
                length,
                lost,
                left,
            }));
        }
    };
    let stat = rustix::fs::fstat(&file)?;
    let length = stat.st_size as u64;
    let mut ends = Vec::new();
    for (claim, told) in told {
        let crc = |from, to| crc_of(&file, from, to);
        let (base, same_boot) = (claim.base, told.same_boot);
        let edited = same_boot && stat.st_mtime > told.written.saturating_add(LATER);
        ends.push(
            match find_end(base, &told.entries, length, same_boot, crc)? {
                End::At(at) if edited => End::Foreign(at),
                end => end,
            },
        );
    }
    // The log that knows of the longest whole part is the latest.
    let latest = ends.iter().max_by_key(|end| match end {
        End::Whole => u64::MAX,
        End::At(at) | End::Foreign(at) => *at,
    });
    let mut trimmed = match latest {
        Some(End::At(at)) => Some(Trimmed {
            path,
            length: *at,
            lost: length - at,
            left: None,
        }),
        Some(End::Foreign(_)) => Some(Trimmed {
            path,
            length,
            lost: 0,
            left: Some(String::from(
                "it was changed by something else while it was appended to",
            )),
        }),
        Some(End::Whole) | None => None,
    };
    if let Some(store) = store {
        if let Some(trimmed) = &mut trimmed
            && trimmed.left.is_none()
        {
            match keep_tail(store, &file, &stat, trimmed) {
                Ok(()) => rustix::fs::ftruncate(&file, trimmed.length)?,
                Err(errno) => {
                    (trimmed.length, trimmed.lost) = (length, 0);
                    let why = "what is no whole record at its end can't be kept aside";
                    trimmed.left = Some(format!("{why}: {errno}"));
                }
            }
        }
        // Before the log goes.
        fsync(&file)?;
    }
    Ok(trimmed)
}

/// Keeps aside what a file is about to lose.
fn keep_tail(store: &Store, file: &File, stat: &Stat, trimmed: &Trimmed) -> Result<(), Errno> {
    // Not the name of the file, whose place it must not take.
    let mut path = OsString::from("/");
    path.push(&trimmed.path);
    path.push(".tail");
    let record = kept::Record {
        time: since_epoch().as_secs(),
        kind: kept::Kind::Recovered,
        reason: format!(
            "after a crash, it was at the end of the file, from byte {}, and no whole record",
            trimmed.length
        ),
        size: Some(trimmed.lost),
        ..kept::Record::default()
    };
    let record = record.at(Path::new(&path));
    let end = trimmed.length + trimmed.lost;
    // A recovery that was killed before the file lost it may have kept it.
    let same = |tail: &File| {
        let (mut at, mut same) = (0, true);
        copy(file, trimmed.length, end, |part| {
            let mut kept = vec![0; part.len()];
            same &= tail.read_exact_at(&mut kept, at).is_ok() && kept == part;
            at += part.len() as u64;
            Ok(())
        })?;
        Ok(same)
    };
    if store.keeper().has(&record, same)? {
        return Ok(());
    }
    let name = store.unique_name();
    let tail = store.tmp().create_file(&name, OFlags::WRONLY, 0o600)?;
    let copied = copy(file, trimmed.length, end, |part| (&tail).write_all(part))
        .and_then(|()| shadow::copy_attributes(file, stat, &tail))
        .and_then(|()| fsync(&tail));
    let kept = copied.and_then(|()| store.keeper().take_in(store.tmp(), &name, &record));
    kept.map(drop).inspect_err(|_| {
        let _ = store.tmp().unlink(&name);
    })
}

fn crc_of(file: &File, from: u64, to: u64) -> Result<u32, Errno> {
    let mut hasher = crc32fast::Hasher::new();
    copy(file, from, to, |part| {
        hasher.update(part);
        Ok(())
    })?;
    Ok(hasher.finalize())
}

/// Gives the bytes of a range of a file to `take`, one part after the other.
fn copy(
    file: &File,
    from: u64,
    to: u64,
    mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<(), Errno> {
    let mut buffer = vec![0; 128 * 1024];
    let mut at = from;
    while at < to {
        let most = usize::try_from(to - at).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let read = file.read_at(&mut buffer[..most], at).map_err(errno)?;
        if read == 0 {
            break;
        }
        take(&buffer[..read]).map_err(errno)?;
        at += read as u64;
    }
    Ok(())
}

/// Which run of the machine's kernel this is.
fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}

pub(super) mod removals;
#[cfg(test)]
mod tests;
