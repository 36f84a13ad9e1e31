//! Names to node ids, and listings.

use super::transaction::Transaction;
use super::tree::{Key, NodeId, ROOT};
use super::{Caller, Engine, State};
use crate::backing::dir::{Listed, check_component};
use crate::backing::store::DIRECTORY;
use crate::backing::{Dir, Errno, Identity, Stat, identity};
use crate::show::printable;
use crate::sync::{Arc, Mutex};
use rustix::fs::FileType;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the kernel may believe what it was told of a name or of attributes that only a change
/// behind the mount's back can make wrong.
pub const VALID: Duration = Duration::from_secs(1);
/// How long the kernel may believe the attributes of a private version that it was told on its opener's way
/// there: until the open, which takes them back. So it need not ask in between for whether its opener may.
const ARRIVING: Duration = Duration::from_millis(10);

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The node id to use.
    pub node: NodeId,
    /// Its attributes.
    pub attributes: Attributes,
    /// How long the name may be believed to stand for this node id.
    pub name_valid: Duration,
}

/// What stat(2) is to report.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// As BACKING tells, but for the inode number.
    pub stat: Stat,
    /// The inode number, the same through all versions of the file.
    pub reported: u64,
    /// How long they may be believed.
    pub valid: Duration,
}

impl Entry {
    /// Of a transaction's private version, for its owner.
    pub(super) fn private(transaction: &Transaction, stat: Stat) -> Self {
        Self {
            node: transaction.node,
            attributes: Attributes::changing(transaction.reported, stat),
            name_valid: Duration::ZERO,
        }
    }
}

impl Attributes {
    /// Of something that may change at any moment.
    pub(super) fn changing(reported: u64, stat: Stat) -> Self {
        Self {
            stat,
            reported,
            valid: Duration::ZERO,
        }
    }

    /// Of a version that is not the file any more.
    fn superseded(mut self) -> Self {
        self.stat.st_nlink = 0;
        // Or the kernel would ask again, and be told of the file.
        self.valid = VALID;
        self
    }

    fn at_least(mut self, valid: Duration) -> Self {
        self.valid = self.valid.max(valid);
        self
    }

    fn at_most(mut self, valid: Duration) -> Self {
        self.valid = self.valid.min(valid);
        self
    }
}

/// An open directory: its entries as they were when reading it began.
#[derive(Debug)]
pub struct Listing {
    key: Key,
    /// `None` if it was removed before it was opened: it is empty then.
    dir: Option<Dir>,
    read: Mutex<Read>,
}

/// The entries of a directory, and how many versions had been published when reading them began.
#[derive(Clone, Debug, Default)]
struct Read {
    entries: Arc<Vec<Listed>>,
    versions: u64,
}

impl Listing {
    pub(super) fn new(key: Key, dir: Option<Dir>) -> Self {
        Self {
            key,
            dir,
            read: Mutex::default(),
        }
    }

    /// Makes its entries durable.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        self.dir.as_ref().map_or(Ok(()), Dir::sync)
    }
}

/// An entry of a listing.
#[derive(Clone, Debug)]
pub struct ListedEntry {
    /// The name.
    pub name: OsString,
    /// The inode number to report.
    pub reported: u64,
    /// Its type, as far as known.
    pub kind: FileType,
    /// Where to go on after it.
    pub next: u64,
}

impl Engine {
    /// lookup of one name in a directory; the kernel holds the node id until it forgets it.
    ///
    /// # Errors
    /// `ENOENT`, and what stat(2) in BACKING says.
    pub fn lookup(
        self: &Arc<Self>,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
    ) -> Result<Entry, Errno> {
        let parent = self.key_of(parent)?;
        self.state.lock().walks_to(caller.tid, parent, name);
        self.look_up_in(caller, parent, name)
            .inspect_err(|_| self.miss(caller, parent, name))
    }

    /// The inode of a node id.
    ///
    /// # Errors
    /// `ESTALE` if there is none.
    pub(super) fn key_of(&self, node: NodeId) -> Result<Key, Errno> {
        let state = self.state.lock();
        Ok(state.tree.inode_of(node).ok_or(Errno::STALE)?.0)
    }

    fn look_up_in(
        self: &Arc<Self>,
        caller: Caller,
        parent: Key,
        name: &OsStr,
    ) -> Result<Entry, Errno> {
        check_component(name)?;
        if is_hidden(parent, name) {
            return Err(Errno::NOENT);
        }
        let sent = self.state.lock().claim_sent(caller, parent, name);
        match sent.map(|claim| self.entry(claim, None)) {
            Some(Err(Errno::STALE)) => self.drop_redirect(caller),
            Some(other) => return other,
            None => {}
        }
        // What was found may be gone or replaced by the time it is looked at. The kernel would
        // ask again, but that it does only once for an open(2), which may need it.
        let mut last = Errno::STALE;
        for _ in 0..16 {
            let mut left_behind = None;
            let found = self.find(caller, parent, name, &mut left_behind);
            if let Some(transaction) = left_behind {
                self.abandon_pending(&transaction);
            }
            match found {
                Ok((claim, stat)) => match self.entry(claim, stat) {
                    Err(Errno::STALE) => {}
                    other => return other,
                },
                Err(Errno::STALE) => {}
                Err(errno) => {
                    last = errno;
                    break;
                }
            }
        }
        Err(last)
    }

    /// The inode of a name, claimed, and what BACKING tells of it if it is there; and a transaction
    /// that the caller does not need any more.
    fn find(
        &self,
        caller: Caller,
        parent: Key,
        name: &OsStr,
        left_behind: &mut Option<Arc<Transaction>>,
    ) -> Result<(Claim, Option<Stat>), Errno> {
        // Further directories whose names have to stay as they are meanwhile.
        let mut others = Vec::new();
        loop {
            let _names = match others.is_empty() {
                true => self.names.shared(parent),
                false => self.names.exclusive(others.iter().copied().chain([parent])),
            };
            let found = self.find_in(caller, (parent, name), &mut others, left_behind);
            if let Some(found) = found.transpose() {
                return found;
            }
        }
    }

    /// The same; the caller has locked the names of the directory and of `others`. `None` if some of
    /// another directory have to be locked first, which is among `others` then.
    fn find_in(
        &self,
        caller: Caller,
        (parent, name): (Key, &OsStr),
        others: &mut Vec<Key>,
        left_behind: &mut Option<Arc<Transaction>>,
    ) -> Result<Option<(Claim, Option<Stat>)>, Errno> {
        {
            let mut state = self.state.lock();
            if let Some(key) = state.tree.child(parent, name)
                && state.tree.inode(key).is_some_and(|i| i.is_provisional())
            {
                *left_behind = self.meet(&mut state, caller, (parent, name), key);
                return Ok(Some((claim(&mut state, caller, key)?, None)));
            }
        }
        let dir = self.dir(parent)?;
        let stat = match dir.stat_at(name) {
            Ok(stat) => stat,
            Err(errno) => {
                if errno == Errno::NOENT {
                    self.vanished(parent, name);
                }
                return Err(errno);
            }
        };
        if self.own_directory == Some(identity(&stat)) {
            return Err(Errno::NOENT);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut state = self.state.lock();
        let key = state.tree.found(identity(&stat), kind, parent, name);
        let linked = kind != FileType::Directory && stat.st_nlink > 1;
        if !linked {
            // Its other names were taken away behind the mount's back; unless that is just being done
            // in the mount, in BACKING first, and in the table next.
            let names = state.names_of(key).into_iter();
            let before = others.len();
            others.extend(names.map(|name| name.parent).filter(|p| *p != parent));
            others.sort_unstable();
            others.dedup();
            if others.len() > before {
                return Ok(None);
            }
            state.tree.keep_only(key, parent, name);
        }
        if let Some(inode) = state.tree.inode_mut(key) {
            inode.linked = linked;
        }
        if kind == FileType::RegularFile {
            *left_behind = self.meet(&mut state, caller, (parent, name), key);
            state.came_by(caller, parent, name);
        }
        Ok(Some((claim(&mut state, caller, key)?, Some(stat))))
    }

    /// A name was removed behind the mount's back.
    fn vanished(&self, parent: Key, name: &OsStr) {
        let mut state = self.state.lock();
        let known = state.tree.child(parent, name);
        let ours = known.and_then(|key| state.tree.inode(key)?.transaction.clone());
        // A transaction in flight keeps its name: its commit finds out.
        if known.is_some() && ours.is_none() {
            state.tree.detach(parent, name);
        }
    }

    /// What to tell a thread of an inode that it has claimed. Takes name locks.
    pub(super) fn entry(&self, claim: Claim, stat: Option<Stat>) -> Result<Entry, Errno> {
        let valid = if claim.calm { VALID } else { Duration::ZERO };
        let is_open = || self.state.lock().tree.alive(claim.node).1.is_some();
        let attributes = match stat.filter(|_| !claim.private && !is_open()) {
            Some(stat) => Ok(Attributes {
                stat,
                reported: claim.reported,
                valid,
            }),
            // What BACKING tells may be of an inode that is just being rewritten, or that grows.
            None => self.attributes(claim.node),
        };
        let attributes = attributes.map(|attributes| match &claim {
            Claim {
                superseded: true, ..
            } => attributes.superseded(),
            Claim { arriving: true, .. } => attributes.at_least(ARRIVING),
            Claim { private: true, .. } => attributes,
            _ => attributes.at_most(valid),
        });
        match attributes {
            Ok(attributes) => Ok(Entry {
                node: claim.node,
                attributes,
                name_valid: valid,
            }),
            Err(errno) => {
                self.forget(claim.node, 1);
                Err(errno)
            }
        }
    }

    /// The kernel forgets a node id that it was told of `times` times.
    pub fn forget(&self, node: NodeId, times: u64) {
        self.state.lock().tree.forget(node, times);
        self.close_dropped_dirs();
    }

    /// Closes the directories that the table does not know any more. A FORGET drops most of them;
    /// for others the thread of `waiting` comes by.
    pub(super) fn close_dropped_dirs(&self) {
        let dirs = self.state.lock().tree.take_dropped_dirs();
        for key in dirs {
            let dir = self.dirs.lock().pop(&key);
            drop(dir);
        }
    }

    /// May a name be used there?
    ///
    /// # Errors
    /// `EINVAL` for what is no name of an entry, `EPERM` for latchfs's own directory, by whatever
    /// name: where BACKING takes `.LATCHFS` for the same, so does this.
    pub(super) fn check_name(&self, parent: Key, name: &OsStr) -> Result<(), Errno> {
        check_component(name)?;
        if is_hidden(parent, name) {
            return Err(Errno::PERM);
        }
        if parent == ROOT
            && let (Some(own), Ok(stat)) = (self.own_directory, self.root.stat_at(name))
            && own == identity(&stat)
        {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// Is it the name of a file being created, that BACKING doesn't have yet?
    pub(super) fn is_provisional(&self, parent: Key, name: &OsStr) -> bool {
        let state = self.state.lock();
        let key = state.tree.child(parent, name);
        key.and_then(|key| state.tree.inode(key))
            .is_some_and(|inode| inode.is_provisional())
    }

    /// A page of a directory's listing, from `offset` on (0: from the start, read anew).
    ///
    /// # Errors
    /// As readdir(3) on BACKING; `EBADF`.
    pub fn read_dir(&self, handle: u64, offset: u64) -> Result<Vec<ListedEntry>, Errno> {
        /// About as many as fit into an answer of 4 KiB with attributes.
        const PAGE: usize = 32;
        let listing = self.listing(handle)?;
        if offset == 0 {
            // These first: one that is published meanwhile is then found twice, and not never.
            let (provisional, versions) = {
                let tree = &self.state.lock().tree;
                (tree.provisional_names(listing.key), tree.versions())
            };
            let mut entries = match &listing.dir {
                Some(dir) => dir.list()?,
                None => Vec::new(),
            };
            if listing.key == ROOT {
                let own = self.own_directory.map(|own| own.ino);
                entries.retain(|e| !is_hidden(ROOT, &e.name) && Some(e.ino) != own);
            }
            self.add_provisional(provisional, &mut entries);
            let entries = Arc::new(entries);
            *listing.read.lock() = Read { entries, versions };
        }
        let Read { entries, versions } = listing.read.lock().clone();
        let start = usize::try_from(offset).map_or(entries.len(), |start| start.min(entries.len()));
        let page = &entries[start..entries.len().min(start.saturating_add(PAGE))];
        let numbers = self.numbers_of(&listing, page, versions);
        let page = page.iter().zip(numbers).zip(start as u64 + 1..);
        let page = page.map(|((entry, reported), next)| ListedEntry {
            name: entry.name.clone(),
            reported,
            kind: entry.kind,
            next,
        });
        Ok(page.collect())
    }

    /// The numbers that programs see of entries that were read when so many versions had been published.
    fn numbers_of(&self, listing: &Listing, entries: &[Listed], versions: u64) -> Vec<u64> {
        let dev = self.root_identity.dev;
        let mut unsure = Vec::new();
        let mut numbers: Vec<u64> = {
            let state: &mut State = &mut self.state.lock();
            let fresh = state.tree.versions() == versions;
            let number = |(index, entry): (usize, &Listed)| {
                let known = state.tree.child(listing.key, &entry.name);
                let known = known.and_then(|key| state.tree.inode(key));
                let ino = entry.ino;
                match known {
                    Some(inode) => inode.reported,
                    None if fresh => state.tree.number(Identity { dev, ino }),
                    None => {
                        unsure.push(index);
                        ino
                    }
                }
            };
            entries.iter().enumerate().map(number).collect()
        };
        let Some(dir) = listing.dir.as_ref().filter(|_| !unsure.is_empty()) else {
            return numbers;
        };
        // They may have another inode by now, and the one that was read has no number of theirs any more.
        let _names = self.names.shared(listing.key);
        for index in unsure {
            if let Ok(stat) = dir.stat_at(&entries[index].name) {
                numbers[index] = self.state.lock().tree.number(identity(&stat));
            }
        }
        numbers
    }

    /// Adds the names of files being created, and leaves what has the same name in once.
    fn add_provisional(&self, names: Vec<(Arc<OsStr>, Key)>, entries: &mut Vec<Listed>) {
        if names.is_empty() {
            return;
        }
        let taken: HashSet<&OsStr> = names.iter().map(|(name, _)| &**name).collect();
        entries.retain(|entry| !taken.contains(&*entry.name));
        let state = self.state.lock();
        entries.extend(names.iter().map(|(name, key)| Listed {
            name: (**name).into(),
            ino: state.tree.inode(*key).map_or(0, |inode| inode.reported),
            kind: FileType::RegularFile,
        }));
    }

    /// lookup of a name in an open directory, for a listing with attributes.
    ///
    /// # Errors
    /// As [`Engine::lookup`].
    pub fn look_up_listed(
        self: &Arc<Self>,
        caller: Caller,
        handle: u64,
        name: &OsStr,
    ) -> Result<Entry, Errno> {
        let listing = self.listing(handle)?;
        self.look_up_in(caller, listing.key, name)
    }

    /// The root's own entry numbers, for `.` and `..` in listings.
    pub fn dot_numbers(&self, handle: u64) -> Result<(u64, u64), Errno> {
        let listing = self.listing(handle)?;
        let state: &State = &self.state.lock();
        let own = state.tree.inode(listing.key).ok_or(Errno::STALE)?;
        let parent = own.names.first().map_or(ROOT, |name| name.parent);
        let parent = state.tree.inode(parent).map_or(0, |inode| inode.reported);
        Ok((own.reported, parent))
    }
}

/// A node id that the kernel is about to be told, and so must not go.
pub(super) struct Claim {
    pub node: NodeId,
    pub reported: u64,
    /// Its attributes are not those of the name in BACKING.
    pub private: bool,
    /// Nobody writes the file, and it has one name: what is told may be believed for a while.
    pub calm: bool,
    /// Its attributes may be believed until the caller, whom it is for, has opened it.
    pub arriving: bool,
    /// It is to be shown as what it is: a version without a name.
    pub superseded: bool,
}

/// Claims the node id that a thread gets for an inode. Under the same lock as what found the
/// inode: a FORGET in between might drop it.
pub(super) fn claim(state: &mut State, caller: Caller, key: Key) -> Result<Claim, Errno> {
    let node = state.view(caller.tid, key).ok_or(Errno::STALE)?;
    state.tree.looked_up(node);
    let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
    let in_flight = inode.transaction.as_ref();
    Ok(Claim {
        node,
        reported: inode.reported,
        private: in_flight.is_some_and(|t| t.node == node),
        // A directory is one whoever asks, also who is sent to look again and passes it.
        calm: inode.kind == FileType::Directory
            || in_flight.is_none()
                && !inode.linked
                && !state.telling.contains_key(&key)
                && node == inode.current
                && !state.redirects.contains_key(&caller.tid),
        arriving: state.is_arriving(caller.tid, node),
        superseded: false,
    })
}

/// Is it latchfs's own directory?
fn is_hidden(parent: Key, name: &OsStr) -> bool {
    parent == ROOT && name.as_bytes() == DIRECTORY.as_bytes()
}

/// A path within the mount; empty if there is none.
pub(super) fn within_mount(path: Option<Vec<OsString>>) -> PathBuf {
    let below = path.map(|path| path.iter().collect::<PathBuf>());
    below.map_or_else(PathBuf::new, |below| Path::new("/").join(below))
}

/// The same for people.
pub(super) fn shown(path: &Path) -> String {
    match path.as_os_str().is_empty() {
        true => String::from("(no name)"),
        false => printable(path),
    }
}

/// A path for the log.
pub(super) fn show(path: Option<Vec<OsString>>) -> String {
    shown(&within_mount(path))
}
