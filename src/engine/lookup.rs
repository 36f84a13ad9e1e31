//! Names to node ids, and listings.

use super::transaction::Transaction;
use super::tree::{Key, NodeId, ROOT, ROOT_NODE};
use super::{Caller, Engine, State};
use crate::backing::dir::Listed;
use crate::backing::store::DIRECTORY;
use crate::backing::{Dir, Errno, Identity, Stat, identity};
use crate::sync::{Arc, Mutex};
use rustix::fs::FileType;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// How long the kernel may believe what it was told of a name or of attributes that only a change
/// behind the mount's back can make wrong.
pub const VALID: Duration = Duration::from_secs(1);

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
}

/// An open directory: its entries as they were when reading it began.
#[derive(Debug)]
pub struct Listing {
    key: Key,
    dir: Dir,
    entries: Mutex<Arc<Vec<Listed>>>,
}

impl Listing {
    pub(super) fn new(key: Key, dir: Dir) -> Self {
        Self {
            key,
            dir,
            entries: Mutex::default(),
        }
    }

    pub(super) fn dir(&self) -> &Dir {
        &self.dir
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
    pub fn lookup(&self, caller: Caller, parent: NodeId, name: &OsStr) -> Result<Entry, Errno> {
        let parent = self.key_of(parent)?;
        self.look_up_in(caller, parent, name)
    }

    /// The inode of a node id.
    ///
    /// # Errors
    /// `ESTALE` if there is none.
    pub(super) fn key_of(&self, node: NodeId) -> Result<Key, Errno> {
        let state = self.state.lock();
        Ok(state.tree.inode_of(node).ok_or(Errno::STALE)?.0)
    }

    fn look_up_in(&self, caller: Caller, parent: Key, name: &OsStr) -> Result<Entry, Errno> {
        if is_hidden(parent, name) {
            return Err(Errno::NOENT);
        }
        let (key, stat) = self.find(parent, name)?;
        self.entry_of(caller, key, stat)
    }

    /// The inode of a name, and what BACKING tells of it if it is there.
    fn find(&self, parent: Key, name: &OsStr) -> Result<(Key, Option<Stat>), Errno> {
        let _names = self.names_shared(parent);
        let in_flight = {
            let state = self.state.lock();
            let key = state.tree.child(parent, name);
            key.filter(|key| state.tree.inode(*key).is_some_and(|i| i.is_provisional()))
        };
        if let Some(key) = in_flight {
            return Ok((key, None));
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
        let key = {
            let kind = FileType::from_raw_mode(stat.st_mode);
            let mut state = self.state.lock();
            let key = state.tree.found(identity(&stat), kind, parent, name);
            if let Some(inode) = state.tree.inode_mut(key) {
                inode.linked = kind == FileType::RegularFile && stat.st_nlink > 1;
            }
            key
        };
        Ok((key, Some(stat)))
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

    /// What to tell a thread of an inode; counts as a lookup. Takes name locks.
    pub(super) fn entry_of(
        &self,
        caller: Caller,
        key: Key,
        stat: Option<Stat>,
    ) -> Result<Entry, Errno> {
        let (node, private, calm) = {
            let mut state = self.state.lock();
            let node = Self::view(&state, caller.tid, key).ok_or(Errno::STALE)?;
            state.tree.looked_up(node);
            let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
            let private = inode.transaction.clone().filter(|t| t.node == node);
            let calm = inode.transaction.is_none()
                && !inode.linked
                && node == inode.current
                && !state.redirects.contains_key(&caller.tid);
            (node, private, calm)
        };
        let attributes = match (private, stat) {
            (None, Some(stat)) => {
                let reported = self.reported(key);
                let valid = if calm { VALID } else { Duration::ZERO };
                reported.map(|reported| Attributes {
                    stat,
                    reported,
                    valid,
                })
            }
            _ => self.attributes(node),
        };
        match attributes {
            Ok(attributes) => Ok(Entry {
                node,
                attributes,
                name_valid: if calm { VALID } else { Duration::ZERO },
            }),
            Err(errno) => {
                self.forget(node, 1);
                Err(errno)
            }
        }
    }

    fn reported(&self, key: Key) -> Result<u64, Errno> {
        let state = self.state.lock();
        Ok(state.tree.inode(key).ok_or(Errno::STALE)?.reported)
    }

    /// The kernel forgets a node id that it was told of `times` times.
    pub fn forget(&self, node: NodeId, times: u64) {
        self.state.lock().tree.forget(node, times);
    }

    /// May a name be used there?
    ///
    /// # Errors
    /// `EPERM` for latchfs's own directory.
    pub(super) fn check_visible(&self, parent: Key, name: &OsStr) -> Result<(), Errno> {
        if is_hidden(parent, name) {
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
        /// More than fit into one answer.
        const PAGE: usize = 512;
        let listing = self.listing(handle)?;
        if offset == 0 {
            let mut entries = listing.dir.list()?;
            if listing.key == ROOT {
                entries.retain(|entry| entry.name.as_bytes() != DIRECTORY.as_bytes());
            }
            self.add_provisional(&listing, &mut entries);
            *listing.entries.lock() = Arc::new(entries);
        }
        let entries = listing.entries.lock().clone();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let dev = self.root_identity.dev;
        let mut state = self.state.lock();
        let page = entries.iter().enumerate().skip(start).take(PAGE);
        let page = page.map(|(index, entry)| {
            let reported = match state.tree.child(listing.key, &entry.name) {
                Some(key) => state.tree.inode(key).map(|inode| inode.reported),
                None => None,
            };
            let ino = entry.ino;
            ListedEntry {
                name: entry.name.clone(),
                reported: reported.unwrap_or_else(|| state.tree.number(Identity { dev, ino })),
                kind: entry.kind,
                next: index as u64 + 1,
            }
        });
        Ok(page.collect())
    }

    /// Adds the names of files being created, and leaves what they replace in once.
    fn add_provisional(&self, listing: &Listing, entries: &mut Vec<Listed>) {
        let state = self.state.lock();
        let names = state.tree.provisional_names(listing.key);
        if names.is_empty() {
            return;
        }
        for (name, key) in names {
            entries.retain(|entry| *entry.name != *name);
            entries.push(Listed {
                name: name.to_os_string(),
                ino: state.tree.inode(key).map_or(0, |inode| inode.reported),
                kind: FileType::RegularFile,
            });
        }
    }

    /// lookup of a name in an open directory, for a listing with attributes.
    ///
    /// # Errors
    /// As [`Engine::lookup`].
    pub fn look_up_listed(
        &self,
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

/// Is it latchfs's own directory?
fn is_hidden(parent: Key, name: &OsStr) -> bool {
    parent == ROOT && name.as_bytes() == DIRECTORY.as_bytes()
}

/// A path for the log.
pub(super) fn show(path: Option<Vec<OsString>>) -> String {
    match path {
        Some(path) => format!("/{}", path.join(OsStr::new("/")).to_string_lossy()),
        None => String::from("(no name)"),
    }
}

/// The node id of the root.
pub const fn root() -> NodeId {
    ROOT_NODE
}
