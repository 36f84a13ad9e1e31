//! Rewriting an inode in place, for a file that a rename would tear from its other hard links.
//!
//! The version is first made durable under a name in `.latchfs/redo`, then a record beside it
//! says which inode it is for; only then is the inode rewritten. A crash at any moment leaves
//! either no record (the inode is untouched) or a record with the whole version, which
//! [`replay`] copies again: rewriting twice gives the same content.
//!
//! So that replaying never undoes what came later, the removal of a record is durable before the
//! rewrite counts as done; until it is, the inode takes nothing else (see [`unfinished`](super::unfinished)).

use super::dir::Listed;
use super::kept::{self, Lacking};
use super::recover::{Action, Kind, Site, joined};
use super::shadow::{Own, Shadow, copy_own, copy_range, copy_to, data_ranges, errno, times};
use super::store::{DIRECTORY, REDO, Store, age_of, open_own, read_file, since_epoch, write_file};
use super::unfinished::{Owed, Rest, settle};
use super::{Dir, Errno, Identity, Stamp, Stat, dir, identity, proc_path, stamp};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;

const DATA: &str = ".data";
const RECORD: &str = ".json";

/// Seconds and nanoseconds since the epoch.
pub(super) type Birth = (i64, u32);

/// Which inode a version in `.latchfs/redo` is for.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The way from BACKING to the file, as bytes of each component.
    path: Vec<Vec<u8>>,
    dev: u64,
    ino: u64,
    /// When the inode was made, as far as the file system tells: another file may have got its
    /// number since.
    #[serde(default)]
    born: Option<Birth>,
    /// What the version has of its own; everything else the inode has already.
    #[serde(default)]
    own: Own,
    /// When it was written, for people.
    time: u64,
}

/// What became of a rewrite whose record was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// The inode is the version.
    Whole,
    /// It may be half of it: [`settle`] or the next recovery finishes the work.
    Unfinished(Errno),
}

/// A rewrite in place.
#[derive(Debug)]
pub struct Rewrite<'a> {
    /// The version.
    pub shadow: &'a Shadow,
    /// The inode, open to be read and written.
    pub target: &'a File,
    /// The way from BACKING to the file, for recovery.
    pub path: &'a [OsString],
    /// What the version has of its own.
    pub own: &'a Own,
    /// What the inode is to be like still.
    pub expected: Option<Stamp>,
}

/// Makes an inode hold the content of a version, and have its attributes, and returns when that is
/// durable.
///
/// Readers that have the inode itself open see it change: give them a copy first. `superseded` is
/// called once the version is durable, before the inode is touched: whatever else knows of the
/// old content goes, and that durably.
///
/// # Errors
/// `ESTALE` if the inode is not as expected, `ENOSPC`, `EDQUOT`, `EIO`, ...: the inode is untouched.
pub fn rewrite(
    store: &Store,
    rewrite: &Rewrite<'_>,
    superseded: impl FnOnce() -> Result<(), Errno>,
) -> Result<Rewritten, Errno> {
    let &Rewrite {
        shadow,
        target,
        path,
        own,
        expected,
    } = rewrite;
    let id = store.unique_name();
    let (data, record) = (with_suffix(&id, DATA), with_suffix(&id, RECORD));
    let who = identity(&rustix::fs::fstat(target)?);
    settle(store, who)?;
    let content = Record {
        path: path.iter().map(|c| c.as_bytes().to_vec()).collect(),
        dev: who.dev,
        ino: who.ino,
        born: birth(target),
        own: own.clone(),
        time: since_epoch().as_secs(),
    };
    let json = serde_json::to_vec(&content).map_err(|_| Errno::INVAL)?;
    rustix::fs::fsync(shadow.file())?;
    let before = rustix::fs::fstat(target)?;
    if expected.is_some_and(|expected| stamp(&before) != expected) {
        return Err(Errno::STALE);
    }
    let lacking = |errno| Lacking {
        errno,
        device: who.dev,
        uid: before.st_uid,
        bytes: 0,
    };
    let room = loop {
        match make_room(shadow.file(), target) {
            Err(errno) if store.keeper().give_way(lacking(errno)) => {}
            other => break other,
        }
    };
    // To reserve room is a change of the file, but not one of its owner's.
    let _ = rustix::fs::futimens(target, &times(&before));
    room?;
    // An ordinary user can't set the times of another's file back.
    let reserved = stamp(&rustix::fs::fstat(target)?);
    let rest = Rest {
        from: shadow.file().clone(),
        target: target.try_clone().map_err(errno)?,
        own: own.clone(),
    };
    match shadow.link(store.redo(), &data) {
        // It is on a file system that is mounted within BACKING.
        Err(Errno::XDEV) => copy_to(shadow.file(), store.redo(), &data)?,
        other => other?,
    }
    let unchanged = || {
        let last = stamp(&rustix::fs::fstat(target)?);
        match expected.is_some_and(|expected| last != reserved || last.size != expected.size) {
            true => Err(Errno::STALE),
            false => Ok(()),
        }
    };
    let announced = announce(store, &record, &json)
        .and_then(|()| unchanged())
        .and_then(|()| superseded());
    if let Err(errno) = announced {
        take_away(store, id, who);
        return Err(errno);
    }
    if let Err(errno) = overwrite(shadow.file(), target, own) {
        let rest = Some(rest);
        store.unfinished().owe(who, Owed { id, rest });
        // What failed once may succeed at the second try.
        return match settle(store, who) {
            Err(_) if store.unfinished().is_torn(who) => Ok(Rewritten::Unfinished(errno)),
            _ => Ok(Rewritten::Whole),
        };
    }
    take_away(store, id, who);
    Ok(Rewritten::Whole)
}

/// Removes a record that recovery must not find any more. Where that can't be made certain, nothing
/// else gets into the inode until it is.
fn take_away(store: &Store, id: OsString, who: Identity) {
    if forget(store, &id).is_err() {
        store.unfinished().owe(who, Owed { id, rest: None });
    }
}

/// The record appears whole and durable, after its data.
fn announce(store: &Store, record: &OsStr, json: &[u8]) -> Result<(), Errno> {
    let temp = store.unique_name();
    write_file(store.tmp(), &temp, json, true)?;
    let renamed = store
        .tmp()
        .rename(&temp, store.redo(), record, RenameFlags::empty());
    renamed.inspect_err(|_| {
        let _ = store.tmp().unlink(&temp);
    })?;
    store.redo().sync()
}

/// Reserves what the rewrite will need, so that a full disk is found before the inode is touched.
fn make_room(from: &File, target: &File) -> Result<(), Errno> {
    let old = rustix::fs::fstat(target)?.st_size as u64;
    let length = rustix::fs::fstat(from)?.st_size as u64;
    for Range { start, end } in data_ranges(from, length)? {
        match rustix::fs::fallocate(target, FallocateFlags::KEEP_SIZE, start, end - start) {
            // A file system without fallocate is taken at its word when it is written.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => {
                // Gives back what was reserved beyond the end.
                rustix::fs::ftruncate(target, old)?;
                return Err(errno);
            }
        }
    }
    Ok(())
}

/// Gives an inode the times of a version and what attributes it has of its own, as far as the daemon
/// may set them.
fn take_attributes(from: &File, stat: &Stat, target: &File, own: &Own) -> Result<(), Errno> {
    copy_own(from, stat, target, own)?;
    match rustix::fs::futimens(target, &times(stat)) {
        Ok(()) | Err(Errno::PERM | Errno::ACCESS) => Ok(()),
        other => other,
    }
}

/// Makes the content of an inode that of another file, in the room that it has.
pub(super) fn overwrite(from: &File, target: &File, own: &Own) -> Result<(), Errno> {
    // Before it is read, which may change its time of access.
    let stat = rustix::fs::fstat(from)?;
    let length = stat.st_size as u64;
    let mut done = 0;
    for Range { start, end } in data_ranges(from, length)? {
        punch(target, done, start)?;
        copy_range(from, target, start, end)?;
        done = end;
    }
    punch(target, done, length)?;
    rustix::fs::ftruncate(target, length)?;
    take_attributes(from, &stat, target, own)?;
    rustix::fs::fsync(target)
}

/// Makes a range read as zeros.
fn punch(target: &File, start: u64, end: u64) -> Result<(), Errno> {
    let end = end.min(rustix::fs::fstat(target)?.st_size as u64);
    if start >= end {
        return Ok(());
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(target, hole, start, end - start) {
        Err(Errno::OPNOTSUPP) => {
            let zeros = [0; 64 * 1024];
            let mut at = start;
            while at < end {
                let n = (end - at).min(zeros.len() as u64);
                target
                    .write_all_at(&zeros[..n as usize], at)
                    .map_err(errno)?;
                at += n;
            }
            Ok(())
        }
        other => other,
    }
}

/// Removes a record and its data, durably: after a power cut it would be carried out once more.
pub(super) fn forget(store: &Store, id: &OsStr) -> Result<(), Errno> {
    // The record first: without it the data is only a leftover.
    for suffix in [RECORD, DATA] {
        match store.redo().unlink(&with_suffix(id, suffix)) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    store.redo().sync()
}

/// Finishes what an earlier daemon left in `.latchfs/redo`.
///
/// # Errors
/// `EIO`, `ENOSPC`: what was not finished stays for the next time.
pub(super) fn replay(site: &Site<'_>, actions: &mut Vec<Action>) -> Result<(), Errno> {
    let Some(redo) = site.dir(REDO)? else {
        return Ok(());
    };
    let names: Vec<OsString> = redo.list()?.into_iter().map(|e| e.name).collect();
    let mut ids: Vec<OsString> = names.iter().filter_map(|n| strip(n, RECORD)).collect();
    ids.sort_by_key(|id| age_of(id));
    // Of several for one inode, the last is what was committed last.
    let last: HashMap<_, _> = ids
        .iter()
        .filter_map(|id| Some((inode_of(&redo, id)?, id)))
        .collect();
    for id in &ids {
        let action = match inode_of(&redo, id).and_then(|inode| last.get(&inode)) {
            Some(last) if *last != id => {
                if let Some(store) = site.store {
                    forget(store, id)?;
                }
                removed(&with_suffix(id, RECORD), "the record of an older update")
            }
            _ => replay_one(site, &redo, id)?,
        };
        actions.push(action);
    }
    let alone = |name: &&OsString| strip(name, DATA).is_some_and(|id| !ids.contains(&id));
    for name in names.iter().filter(alone) {
        if let Some(store) = site.store {
            store.redo().unlink(name)?;
        }
        actions.push(removed(name, "an update that was not begun"));
    }
    Ok(())
}

/// Which inode a record is for, if it can be read.
fn inode_of(redo: &Dir, id: &OsStr) -> Option<(u64, u64, Option<Birth>)> {
    let record = read_file(redo, &with_suffix(id, RECORD)).ok()?;
    let record: Record = serde_json::from_slice(&record).ok()?;
    Some((record.dev, record.ino, record.born))
}

fn removed(name: &OsStr, why: &str) -> Action {
    Action::in_store(Kind::LeftoverRemoved, REDO, name, why)
}

fn replay_one(site: &Site<'_>, redo: &Dir, id: &OsStr) -> Result<Action, Errno> {
    let (data, record) = (with_suffix(id, DATA), with_suffix(id, RECORD));
    let bytes = read_file(redo, &record)?;
    if matches!(redo.stat_at(&data), Err(Errno::NOENT)) {
        // The rewrite was over, and only the record's removal did not reach the disk; or it never
        // was one of ours.
        if let Some(store) = site.store {
            forget(store, id)?;
        }
        return Ok(removed(&record, "the record of an update that was over"));
    }
    let parsed: Option<Record> = serde_json::from_slice(&bytes).ok();
    let place = match &parsed {
        Some(record) => record
            .place(site.root)
            .ok_or_else(|| String::from("the file is no longer there")),
        None => Err(String::from("its record is damaged")),
    };
    let path = parsed.as_ref().map(Record::path).unwrap_or_default();
    let shown = match path.is_empty() {
        true => Path::new(DIRECTORY).join(REDO).join(&data),
        false => joined(&path),
    };
    let target = place.and_then(|place| match site.store {
        Some(_) => place.open_for_rewrite().map(Some),
        None => place.check_rewrite().map(|()| None),
    });
    let target = match target {
        Ok(target) => target,
        Err(why) => {
            if let Some(store) = site.store {
                keep(store, id, parsed.as_ref(), &why)?;
            }
            return Ok(Action::new(Kind::UpdateKept, &shown, why));
        }
    };
    if let (Some(store), Some(target)) = (site.store, target) {
        let own = parsed.map(|record| record.own).unwrap_or_default();
        overwrite(&open_own(redo, &data)?, &target, &own)?;
        forget(store, id)?;
    }
    Ok(Action::new(Kind::UpdateFinished, &shown, ""))
}

/// Keeps a version aside that can't be put into its inode.
fn keep(store: &Store, id: &OsStr, record: Option<&Record>, why: &str) -> Result<(), Errno> {
    let kept = kept::Record {
        time: record.map_or(0, |record| record.time),
        kind: kept::Kind::Recovered,
        reason: format!("after a crash, {why}"),
        ..kept::Record::default()
    };
    let components = record.map(|record| &*record.path).unwrap_or_default();
    let kept = kept.at(&kept::within_mount(components));
    let data = with_suffix(id, DATA);
    store.keeper().take_in(store.redo(), &data, &kept)?;
    forget(store, id)
}

impl Record {
    fn path(&self) -> Vec<OsString> {
        self.path.iter().cloned().map(OsString::from_vec).collect()
    }

    /// Where its inode is now, if it is there.
    fn place(&self, root: &Dir) -> Option<Place> {
        let (ino, born) = (self.ino, self.born);
        let wanted = Wanted { ino, born };
        let there = find_target(root, &self.path(), &wanted);
        there.or_else(|| search(root, &wanted))
    }
}

/// The inode that a record is for. Its device number may be another after a reboot.
pub(super) struct Wanted {
    pub(super) ino: u64,
    pub(super) born: Option<Birth>,
}

impl Wanted {
    /// Is this name that inode? Opens nothing, and changes nothing.
    fn find(&self, at: &Dir, name: &OsStr) -> Option<Place> {
        let stat = at.stat_at(name).ok()?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if stat.st_ino != self.ino || !regular {
            return None;
        }
        let who = identity(&stat);
        let pinned = at.pin(name, who).ok()?;
        let same = self.born.is_none() || birth(&pinned) == self.born;
        same.then(|| Place {
            at: at.clone(),
            name: name.to_owned(),
            who,
        })
    }
}

/// Where an inode was found.
pub(super) struct Place {
    at: Dir,
    name: OsString,
    who: Identity,
}

impl Place {
    /// # Errors
    /// `EACCES`.
    pub(super) fn open_to_read(&self) -> Result<File, Errno> {
        self.at.open_file(&self.name, OFlags::RDONLY, self.who)
    }

    /// How many bytes the file has.
    pub(super) fn length(&self) -> Result<u64, Errno> {
        Ok(self.at.stat_at(&self.name)?.st_size as u64)
    }

    /// # Errors
    /// Why not, in words.
    pub(super) fn open_for_rewrite(&self) -> Result<File, String> {
        match open_for_rewrite(&self.at, &self.name, self.who) {
            // Of the chmod that would have made it writable.
            Err(Errno::PERM) => Err(not_writable(Errno::ACCESS)),
            other => other.map_err(not_writable),
        }
    }

    /// Would [`Self::open_for_rewrite`] succeed? Changes nothing.
    pub(super) fn check_rewrite(&self) -> Result<(), String> {
        let own = |stat: &Stat| stat.st_uid == rustix::process::geteuid().as_raw();
        match self.at.open_file(&self.name, OFlags::RDWR, self.who) {
            // The mode of a file of one's own can be changed for the moment.
            Err(Errno::ACCESS) if self.at.stat_at(&self.name).is_ok_and(|stat| own(&stat)) => {
                Ok(())
            }
            other => other.map(drop).map_err(not_writable),
        }
    }
}

fn not_writable(errno: Errno) -> String {
    format!("the file can't be written: {errno}")
}

/// When an inode was made; `None` where the file system does not tell (statx(2)).
pub(super) fn birth(file: impl AsFd) -> Option<Birth> {
    let wanted = StatxFlags::BTIME;
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(wanted);
    told.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

/// How deep directories are searched for a file that was renamed.
const DEEPEST: usize = 1000;

/// Looks for an inode in the whole tree: it, or a directory above it, was renamed since.
pub(super) fn search(root: &Dir, wanted: &Wanted) -> Option<Place> {
    let device = root.stat().ok()?.st_dev;
    let find = |dir: &Dir, path: &[OsString]| wanted.find(dir, path.last()?);
    search_below(
        root,
        (&|ino| ino == wanted.ino, device),
        &mut Vec::new(),
        &find,
    )
}

/// The paths of files that have one of these inode numbers, found in one walk.
pub(super) fn paths_of(root: &Dir, inos: &HashSet<u64>) -> Vec<Vec<OsString>> {
    let paths = RefCell::new(Vec::new());
    let note = |_: &Dir, path: &[OsString]| -> Option<()> {
        paths.borrow_mut().push(path.to_vec());
        None
    };
    if let (false, Ok(stat)) = (inos.is_empty(), root.stat()) {
        let which = |ino| inos.contains(&ino);
        search_below(root, (&which, stat.st_dev), &mut Vec::new(), &note);
    }
    paths.into_inner()
}

/// The path of an inode, by one of its names.
pub(super) fn path_of(root: &Dir, ino: u64) -> Option<Vec<OsString>> {
    let device = root.stat().ok()?.st_dev;
    let mut path = Vec::new();
    search_below(root, (&|i| i == ino, device), &mut path, &|_, _| Some(()))?;
    Some(path)
}

/// What `found` makes of the first name of an inode that is `wanted` of which it makes something;
/// `path` is the way there then, as it is for `found`, with the directory that the name is in.
fn search_below<T>(
    dir: &Dir,
    (wanted, device): (&dyn Fn(u64) -> bool, u64),
    path: &mut Vec<OsString>,
    found: &dyn Fn(&Dir, &[OsString]) -> Option<T>,
) -> Option<T> {
    let entries = dir.list().unwrap_or_default();
    for entry in entries.iter().filter(|entry| wanted(entry.ino)) {
        path.push(entry.name.clone());
        if let Some(found) = found(dir, path) {
            return Some(found);
        }
        path.pop();
    }
    let depth = path.len();
    if depth == DEEPEST {
        return None;
    }
    let own = |entry: &&Listed| depth > 0 || entry.name.as_bytes() != DIRECTORY.as_bytes();
    let kinds = [FileType::Directory, FileType::Unknown];
    let dirs = entries.iter().filter(|entry| kinds.contains(&entry.kind));
    for entry in dirs.filter(own) {
        let Ok(below) = dir.open_dir(&entry.name) else {
            continue;
        };
        if below.stat().is_ok_and(|stat| stat.st_dev == device) {
            path.push(entry.name.clone());
            if let Some(found) = search_below(&below, (wanted, device), path, found) {
                return Some(found);
            }
            path.pop();
        }
    }
    None
}

/// The inode of a record, where it was. No path leads out of BACKING: [`Dir`] takes plain names only.
pub(super) fn find_target(root: &Dir, path: &[OsString], wanted: &Wanted) -> Option<Place> {
    let (name, parents) = path.split_last()?;
    let mut at = root.clone();
    for parent in parents {
        at = at.open_dir(parent).ok()?;
    }
    wanted.find(&at, name)
}

/// Opens an inode to rewrite it, also one that its own mode makes read-only.
pub fn open_for_rewrite(at: &Dir, name: &OsStr, who: Identity) -> Result<File, Errno> {
    match at.open_file(name, OFlags::RDWR, who) {
        Err(Errno::ACCESS) => {
            // Ours, but mode 0444: the kernel has already judged that the program may write it.
            let pinned = at.pin(name, who)?;
            let mode = rustix::fs::fstat(&pinned)?.st_mode;
            dir::chmod(&pinned, mode | 0o600)?;
            let opened = at.open_file(name, OFlags::RDWR, who);
            dir::chmod(&pinned, mode)?;
            opened
        }
        other => other,
    }
}

/// Opens a file once more, to read it, whatever its name is by now.
///
/// # Errors
/// `EACCES`, `EMFILE`.
pub fn open_again(file: &File) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let path = proc_path(file.as_raw_fd());
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn with_suffix(id: &OsStr, suffix: &str) -> OsString {
    let mut name = id.to_owned();
    name.push(suffix);
    name
}

fn strip(name: &OsStr, suffix: &str) -> Option<OsString> {
    let stem = name.as_bytes().strip_suffix(suffix.as_bytes())?;
    Some(OsStr::from_bytes(stem).to_owned())
}

#[cfg(test)]
mod tests;
