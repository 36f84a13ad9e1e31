//! What the kernel knows of the mount: inodes, their names, and the node ids it calls them by.
//!
//! The kernel keeps its page cache, its idea of the size and the passthrough file by node id. So
//! every version of a file has a node id of its own, and an [`Inode`] is what stays: the number
//! that `stat` reports, the names, and which node id is the file now.
//!
//! A plain data structure without I/O. Inodes and names are kept for what the kernel has looked up,
//! and go when it forgets, so memory is bounded by the kernel's own cache. What stays longer are the
//! numbers of files that were replaced, which must not change while the mount lasts.
//!
//! There may be millions of inodes, of which few have ever been written: those cost one allocation
//! and one name each. The node id of an inode's first version is the number of its [`Key`] and needs
//! no entry of its own.

use super::map::{Equivalent, Map};
use super::transaction::{Displaced, Transaction};
use super::version::Version;
use crate::backing::{Identity, Seen, Stamp, Stat};
use crate::sync::{Arc, Weak};
use rustix::fs::FileType;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};

#[cfg(test)]
mod tests;

/// A FUSE node id: one version of a file, or a directory, symbolic link or special file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// An inode of the table: one file through all its versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u64);

/// The root of the mount, as a node id (FUSE_ROOT_ID).
pub const ROOT_NODE: NodeId = NodeId(1);
/// The root of the mount, as an inode.
pub const ROOT: Key = Key(1);

/// Inode numbers for files whose own number in BACKING is taken by another file of the mount
/// (or lies on another device) start here.
const RENUMBERED: u64 = 1 << 56;

/// One name of an inode.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// The directory it is in.
    pub parent: Key,
    /// The name in that directory.
    pub name: Arc<OsStr>,
}

/// A [`Name`] to look for. It hashes like one: the same fields in the same order.
#[derive(Hash)]
struct NameRef<'a> {
    parent: Key,
    name: &'a OsStr,
}

impl Name {
    fn as_ref(&self) -> NameRef<'_> {
        NameRef {
            parent: self.parent,
            name: &self.name,
        }
    }
}

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, other: &Name) -> bool {
        self.parent == other.parent && *self.name == *other.name
    }
}

/// One file, through all its versions.
#[derive(Debug)]
pub struct Inode {
    /// `st_ino` as programs see it; the same for the life of the mount.
    pub reported: u64,
    /// What it is.
    pub kind: FileType,
    /// Which file of BACKING it is now; `None` while it is being created and not there yet.
    pub identity: Option<Identity>,
    /// Its names that are known.
    pub names: SmallVec<[Name; 1]>,
    /// The node id that is the file for whoever looks it up.
    pub current: NodeId,
    /// The transaction in flight.
    pub transaction: Option<Arc<Transaction>>,
    /// It was seen with more than one hard link.
    pub linked: bool,
    /// A program has asked for a lock on it.
    pub locked: bool,
    /// Records were appended to it, and no version has been committed since.
    pub appended: bool,
    /// Its inode in BACKING is being rewritten in place: nobody may open it now.
    pub rewriting: bool,
    /// What it was like when it lost its last name: the kernel may still ask, on behalf of a
    /// program that found it by that name just before.
    pub last: Option<Box<Last>>,
    /// What the current version was like when it was last opened for the kernel to cache. Boxed:
    /// most inodes are looked at only.
    pub opened_with: Option<Box<Stamp>>,
    /// Its first version, if somebody has it open.
    first: Weak<Version>,
    /// How often the kernel has looked up its first node id and not forgotten it.
    lookups: u64,
    /// The same for all its other node ids.
    lookups_elsewhere: u64,
    /// How many names in it are known (of a directory).
    children: u32,
    /// How many threads are on their way to it.
    pins: u32,
}

impl Inode {
    /// It is being created: it has names in the mount, and none in BACKING yet.
    pub fn is_provisional(&self) -> bool {
        self.identity.is_none()
    }

    /// May anybody come by its first node id?
    fn first_is_known(&self, key: Key) -> bool {
        self.current == first_node(key) || self.lookups > 0 || self.pins > 0
    }

    fn is_needed(&self) -> bool {
        let counts = [self.children, self.pins];
        self.lookups > 0
            || self.lookups_elsewhere > 0
            || counts.iter().any(|count| *count > 0)
            || self.transaction.is_some()
    }
}

/// The node id of an inode's first version.
fn first_node(key: Key) -> NodeId {
    NodeId(key.0)
}

/// What a node id stands for.
#[derive(Debug)]
enum Content {
    /// A committed version (alive while somebody has it open), or a file that has no versions.
    Version(Weak<Version>),
    /// A transaction's private version.
    Transaction(Weak<Transaction>),
}

/// A node id other than an inode's first.
#[derive(Debug)]
struct Node {
    /// Whose version it is.
    inode: Key,
    /// What it stands for.
    content: Content,
    lookups: u64,
    /// How many threads were sent to it and have not arrived.
    pins: u32,
}

/// What an inode was like that has lost its last name.
#[derive(Debug)]
pub struct Last {
    /// Its attributes.
    pub stat: Stat,
    /// Where it led, if it was a symbolic link: who has looked it up follows it all the same.
    pub target: Option<Vec<u8>>,
}

impl From<Stat> for Last {
    fn from(stat: Stat) -> Self {
        let target = None;
        Self { stat, target }
    }
}

/// What was known of a file of BACKING that is about to go.
#[derive(Debug)]
pub struct Vacated {
    identity: Identity,
    /// Which inode it was.
    pub key: Option<Key>,
    renumbered: Option<u64>,
    /// The number that it reports, and that nobody else may report meanwhile.
    reserved: Option<u64>,
}

/// A file of BACKING whose name a file being created has taken.
#[derive(Clone, Copy, Debug)]
pub struct GivenUp {
    seen: Seen,
    /// It has other names, by which it may change.
    linked: bool,
}

impl GivenUp {
    fn of(stat: &Stat) -> Self {
        Self {
            seen: Seen::of(stat),
            linked: stat.st_nlink > 1,
        }
    }

    /// What it is expected to be like, where `found` is.
    pub fn expected(&self, found: &Stat) -> Seen {
        let now = Seen::of(found);
        match self.linked && now.identity == self.seen.identity {
            true => now,
            false => self.seen,
        }
    }
}

/// The table of everything the kernel knows.
#[derive(Debug)]
pub struct Tree {
    inodes: Map<Key, Box<Inode>>,
    /// The node ids that are not the first of their inode.
    nodes: Map<NodeId, Node>,
    identities: Map<Identity, Key>,
    children: Map<Name, Key>,
    /// Which inodes have a transaction.
    in_flight: HashSet<Key>,
    /// The names of files being created, by directory: BACKING's own listing lacks them.
    provisional: HashMap<Key, HashSet<Arc<OsStr>>>,
    /// Those among them that BACKING has for another file, which the commit will replace.
    replacing: Map<Name, GivenUp>,
    /// The number to report for files whose number in BACKING is not it.
    renumbered: Map<Identity, u64>,
    /// Numbers that are reported for such a file, and so are not free for the file of BACKING
    /// that has that number now.
    taken: Map<u64, ()>,
    /// Directories that were dropped since somebody asked.
    dropped_dirs: Vec<Key>,
    /// How many inodes were dropped so far.
    dropped: u64,
    /// How many versions were published so far.
    versions: u64,
    device: u64,
    next: u64,
    next_number: u64,
}

impl Tree {
    /// A table that knows the root only.
    pub fn new(root: Identity) -> Self {
        let mut tree = Self {
            inodes: Map::default(),
            nodes: Map::default(),
            identities: Map::default(),
            children: Map::default(),
            in_flight: HashSet::new(),
            provisional: HashMap::new(),
            replacing: Map::default(),
            renumbered: Map::default(),
            taken: Map::default(),
            dropped_dirs: Vec::new(),
            dropped: 0,
            versions: 0,
            device: root.dev,
            next: ROOT.0,
            next_number: RENUMBERED,
        };
        tree.put(ROOT, root.ino, FileType::Directory, Some(root));
        tree.identities.insert(root, ROOT);
        tree.looked_up(ROOT_NODE);
        tree
    }

    /// What a node id stands for, if that is still there: a transaction, or a version somebody has
    /// open.
    pub fn alive(&self, id: NodeId) -> (Option<Arc<Transaction>>, Option<Arc<Version>>) {
        if let Some(inode) = self.inodes.get(&Key(id.0)) {
            return (None, inode.first.upgrade());
        }
        match self.nodes.get(&id).map(|node| &node.content) {
            Some(Content::Transaction(weak)) => (weak.upgrade(), None),
            Some(Content::Version(weak)) => (None, weak.upgrade()),
            None => (None, None),
        }
    }

    /// Somebody has opened the version that a node id stands for. False if it stands for nothing.
    pub fn opened(&mut self, id: NodeId, version: &Arc<Version>) -> bool {
        let version = Arc::downgrade(version);
        if let Some(inode) = self.inodes.get_mut(&Key(id.0)) {
            inode.first = version;
        } else if let Some(node) = self.nodes.get_mut(&id) {
            node.content = Content::Version(version);
        } else {
            return false;
        }
        true
    }

    /// An inode.
    pub fn inode(&self, key: Key) -> Option<&Inode> {
        self.inodes.get(&key).map(|inode| &**inode)
    }

    /// The same, to change it.
    pub fn inode_mut(&mut self, key: Key) -> Option<&mut Inode> {
        self.inodes.get_mut(&key).map(|inode| &mut **inode)
    }

    /// Has the kernel been told of a node id, and not forgotten it?
    pub fn is_known(&self, id: NodeId) -> bool {
        match self.inode(Key(id.0)) {
            Some(inode) => inode.lookups > 0,
            None => self.nodes.get(&id).is_some_and(|node| node.lookups > 0),
        }
    }

    /// The inode a node id belongs to.
    pub fn inode_of(&self, id: NodeId) -> Option<(Key, &Inode)> {
        let first = Key(id.0);
        if let Some(inode) = self.inode(first) {
            return inode.first_is_known(first).then_some((first, inode));
        }
        let key = self.nodes.get(&id)?.inode;
        Some((key, self.inode(key)?))
    }

    /// The inode known under a name.
    pub fn child(&self, parent: Key, name: &OsStr) -> Option<Key> {
        self.children.get(&NameRef { parent, name }).copied()
    }

    /// The names of files being created in a directory.
    pub fn provisional_names(&self, parent: Key) -> Vec<(Arc<OsStr>, Key)> {
        let names = self.provisional.get(&parent).into_iter().flatten();
        names
            .filter_map(|name| Some((name.clone(), self.child(parent, name)?)))
            .collect()
    }

    /// A file being created was renamed over one of BACKING, which its commit replaces.
    pub fn set_replacing(&mut self, parent: Key, name: &OsStr, over: &Stat) {
        let name = Arc::from(name);
        self.replacing
            .insert(Name { parent, name }, GivenUp::of(over));
    }

    /// The file of BACKING that has the name of a file being created.
    pub fn replacing(&self, parent: Key, name: &OsStr) -> Option<GivenUp> {
        self.replacing.get(&NameRef { parent, name }).copied()
    }

    /// Is it the name of a file being created, and of another one in BACKING?
    pub fn is_replacing(&self, parent: Key, name: &OsStr) -> bool {
        self.replacing.contains(&NameRef { parent, name })
    }

    /// All inodes with a transaction in flight.
    pub fn in_flight(&self) -> Vec<Arc<Transaction>> {
        let all = self.in_flight.iter();
        all.filter_map(|key| self.inode(*key)?.transaction.clone())
            .collect()
    }

    /// How many inodes and node ids are known.
    pub fn sizes(&self) -> (usize, usize) {
        (self.inodes.len(), self.inodes.len() + self.nodes.len())
    }

    /// How many inodes were known once and are not any more.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many versions were published so far.
    pub fn versions(&self) -> u64 {
        self.versions
    }

    /// The directories that were dropped since this was last asked.
    pub fn take_dropped_dirs(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.dropped_dirs)
    }

    /// The way from the root to an inode, by its first name.
    pub fn path(&self, key: Key) -> Option<Vec<OsString>> {
        let mut path = Vec::new();
        let mut at = key;
        while at != ROOT {
            let name = self.inodes.get(&at)?.names.first()?;
            path.push(name.name.to_os_string());
            at = name.parent;
        }
        path.reverse();
        Some(path)
    }

    /// The inode for a file of BACKING, made if it is new, under the name it was found by.
    pub fn found(&mut self, identity: Identity, kind: FileType, parent: Key, name: &OsStr) -> Key {
        let known = self.identities.get(&identity).copied();
        // The same number with another type is another file: the old one was removed behind the
        // mount's back and its number used again.
        let same = |key: &Key| self.inode(*key).is_some_and(|inode| inode.kind == kind);
        let key = match known.filter(same) {
            Some(key) => key,
            None => {
                let reported = self.number(identity);
                let key = self.insert(reported, kind, Some(identity));
                self.identities.insert(identity, key);
                key
            }
        };
        self.attach(key, parent, name);
        key
    }

    /// An inode for a file being created; `identity` is that of its shadow.
    pub fn provisional(&mut self, identity: Identity, parent: Key, name: &OsStr) -> Key {
        let reported = self.number(identity);
        let key = self.insert(reported, FileType::RegularFile, None);
        self.attach(key, parent, name);
        key
    }

    fn insert(&mut self, reported: u64, kind: FileType, identity: Option<Identity>) -> Key {
        let key = Key(self.fresh());
        self.put(key, reported, kind, identity);
        key
    }

    fn put(&mut self, key: Key, reported: u64, kind: FileType, identity: Option<Identity>) {
        let inode = Inode {
            reported,
            kind,
            identity,
            names: SmallVec::new(),
            current: first_node(key),
            transaction: None,
            linked: false,
            locked: false,
            appended: false,
            rewriting: false,
            last: None,
            opened_with: None,
            first: Weak::new(),
            lookups: 0,
            lookups_elsewhere: 0,
            children: 0,
            pins: 0,
        };
        self.inodes.insert(key, Box::new(inode));
    }

    fn add_node(&mut self, id: NodeId, inode: Key, content: Content) {
        let node = Node {
            inode,
            content,
            lookups: 0,
            pins: 0,
        };
        self.nodes.insert(id, node);
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A node id for a transaction, before the transaction itself exists.
    pub fn reserve_node(&mut self) -> NodeId {
        NodeId(self.fresh())
    }

    /// Puts a transaction's node id to use.
    pub fn add_transaction(&mut self, transaction: &Arc<Transaction>) {
        let content = Content::Transaction(Arc::downgrade(transaction));
        self.add_node(transaction.node, transaction.inode, content);
        if let Some(inode) = self.inodes.get_mut(&transaction.inode) {
            inode.transaction = Some(transaction.clone());
            self.in_flight.insert(transaction.inode);
        }
    }

    /// The number to report for a file of BACKING.
    pub fn number(&mut self, identity: Identity) -> u64 {
        if let Some(number) = self.renumbered.get(&identity) {
            return *number;
        }
        if identity.dev == self.device && !self.taken.contains(&identity.ino) {
            return identity.ino;
        }
        self.next_number += 1;
        self.renumbered.insert(identity, self.next_number);
        self.next_number
    }

    /// Gives an inode a fresh node id, for whoever looks it up from now on.
    pub fn renew(&mut self, key: Key) {
        let fresh = NodeId(self.fresh());
        let Some(inode) = self.inodes.get_mut(&key) else {
            return;
        };
        let previous = std::mem::replace(&mut inode.current, fresh);
        inode.opened_with = None;
        self.add_node(fresh, key, Content::Version(Weak::new()));
        self.drop_node_if_unused(previous);
    }

    /// A new version was published: the inode is now another file of BACKING. Whoever looks it up
    /// from now on gets a fresh node id, unless the file had no version before.
    pub fn published(&mut self, key: Key, identity: Identity, version: &Arc<Version>) {
        let fresh = NodeId(self.fresh());
        let Some(inode) = self.inodes.get_mut(&key) else {
            return;
        };
        self.versions += 1;
        inode.appended = false;
        let old = inode.identity.replace(identity);
        let reported = inode.reported;
        let previous = inode.current;
        inode.opened_with = None;
        if old.is_some() {
            inode.current = fresh;
        } else {
            for name in inode.names.clone() {
                self.settle(&name.as_ref());
            }
        }
        if let Some(old) = old {
            self.give_up(key, old);
            let content = Content::Version(Arc::downgrade(version));
            self.add_node(fresh, key, content);
            self.drop_node_if_unused(previous);
        } else {
            self.opened(previous, version);
        }
        self.identities.insert(identity, key);
        if identity.dev != self.device || identity.ino != reported {
            self.renumbered.insert(identity, reported);
            self.taken.insert(reported, ());
        } else {
            // It got its own number back.
            self.renumbered.remove(&identity);
            self.taken.remove(&reported);
        }
    }

    /// The node id of a transaction that has ended, and that nobody has open, becomes that of the version that it
    /// left, if the kernel was told of no other. So its writer's next walk finds what the kernel has of the
    /// name still.
    pub fn keep_node(&mut self, transaction: &Transaction) {
        let (key, id) = (transaction.inode, transaction.node);
        let Some(current) = self.inode(key).map(|inode| inode.current) else {
            return;
        };
        let pins = match self.inode(Key(current.0)) {
            Some(inode) => inode.pins,
            None => self.nodes.get(&current).map_or(0, |node| node.pins),
        };
        if pins > 0 || self.is_known(current) || !self.is_known(id) {
            return;
        }
        let open = self.alive(current).1;
        let version = open.map_or_else(Weak::new, |open| Arc::downgrade(&open));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.content = Content::Version(version);
        }
        if let Some(inode) = self.inodes.get_mut(&key) {
            inode.current = id;
        }
        self.drop_node_if_unused(current);
    }

    /// An inode is about to lose a name, perhaps its last; this is what it is like.
    pub fn remember(&mut self, key: Key, last: Option<Last>) {
        if let Some(inode) = self.inodes.get_mut(&key) {
            inode.last = last.map(Box::new);
        }
    }

    /// A file of BACKING is about to go, and its inode number may be used again before the caller
    /// can tell that it has gone. Should it stay, [`Tree::reoccupy`] takes what this returns.
    pub fn vacate(&mut self, identity: Identity) -> Vacated {
        let key = self.identities.remove(&identity);
        let inode = key.and_then(|key| self.inodes.get(&key));
        let reserved = inode
            .map(|inode| inode.reported)
            .filter(|number| self.taken.insert(*number, ()).is_none());
        Vacated {
            identity,
            key,
            renumbered: self.renumbered.remove(&identity),
            reserved,
        }
    }

    /// The file is still there.
    pub fn reoccupy(&mut self, vacated: Vacated) {
        if let Some(key) = vacated.key {
            self.identities.insert(vacated.identity, key);
        }
        if let Some(number) = vacated.renumbered {
            self.renumbered.insert(vacated.identity, number);
        }
        if let Some(number) = vacated.reserved {
            self.taken.remove(&number);
        }
    }

    /// The file of BACKING is gone: the number that was reported for it is free for another.
    pub fn removed(&mut self, key: Key) {
        let Some(inode) = self.inodes.get(&key) else {
            return;
        };
        let (identity, reported) = (inode.identity, inode.reported);
        if let Some(identity) = identity {
            self.give_up(key, identity);
            self.taken.remove(&reported);
        }
    }

    /// An inode is not this file of BACKING any more; another may be by now.
    fn give_up(&mut self, key: Key, identity: Identity) {
        if self.identities.get(&identity) == Some(&key) {
            self.identities.remove(&identity);
            self.renumbered.remove(&identity);
        }
    }

    /// Gives an inode a name; whatever had that name loses it.
    pub fn attach(&mut self, key: Key, parent: Key, name: &OsStr) {
        // A directory that is mounted on one within itself: there is no way back from there.
        if key == parent {
            return;
        }
        match self.child(parent, name) {
            Some(known) if known == key => return,
            Some(other) => {
                self.displace(other, parent, name);
                self.detach(parent, name);
            }
            None => {}
        }
        if self.inode(key).is_some_and(|inode| inode.children > 0) && self.is_below(parent, key) {
            // Directories were moved behind the mount's back: where the parent was known to be is
            // not where it is.
            for name in self.names(parent) {
                self.detach(name.parent, &name.name);
            }
        }
        let name = Name {
            parent,
            name: Arc::from(name),
        };
        self.restore_displaced(key, &name);
        let Some(inode) = self.inodes.get_mut(&key) else {
            return;
        };
        inode.names.push(name.clone());
        if inode.is_provisional() {
            let names = self.provisional.entry(parent).or_default();
            names.insert(name.name.clone());
        }
        self.children.insert(name, key);
        if let Some(parent) = self.inodes.get_mut(&parent) {
            parent.children += 1;
        }
    }

    /// A file loses a name behind the mount, mostly to another file: a transaction in flight is told.
    fn displace(&self, key: Key, parent: Key, name: &OsStr) {
        let Some(inode) = self.inode(key) else {
            return;
        };
        if let (Some(transaction), Some(mut path)) = (&inode.transaction, self.path(parent)) {
            path.push(name.to_owned());
            let name = Name {
                parent,
                name: Arc::from(name),
            };
            let mut inner = transaction.inner.lock();
            if inner.opened_as.as_ref() == Some(&name) || inode.names.len() == 1 {
                inner.displaced = Some(Displaced { name, path });
            }
        }
    }

    /// It has the name back.
    fn restore_displaced(&self, key: Key, name: &Name) {
        if let Some(transaction) = self.inode(key).and_then(|i| i.transaction.as_ref()) {
            let displaced = &mut transaction.inner.lock().displaced;
            if displaced.as_ref().is_some_and(|d| d.name == *name) {
                *displaced = None;
            }
        }
    }

    fn names(&self, key: Key) -> SmallVec<[Name; 1]> {
        let inode = self.inode(key);
        inode.map(|inode| inode.names.clone()).unwrap_or_default()
    }

    /// Does the way from a directory to the root lead by another?
    fn is_below(&self, key: Key, above: Key) -> bool {
        let up = |key: &Key| Some(self.inode(*key)?.names.first()?.parent);
        std::iter::successors(Some(key), up).any(|key| key == above)
    }

    /// Takes a name away; returns whose it was.
    pub fn detach(&mut self, parent: Key, name: &OsStr) -> Option<Key> {
        let name = NameRef { parent, name };
        let key = self.children.remove(&name)?;
        self.settle(&name);
        if let Some(inode) = self.inodes.get_mut(&key) {
            inode.names.retain(|other| !name.equivalent(other));
        }
        if let Some(parent) = self.inodes.get_mut(&parent) {
            parent.children -= 1;
        }
        self.reap(parent);
        Some(key)
    }

    /// A file of BACKING has this name and no other.
    pub fn keep_only(&mut self, key: Key, parent: Key, name: &OsStr) {
        let name = NameRef { parent, name };
        if self.inode(key).is_none_or(|inode| inode.names.len() <= 1) {
            return;
        }
        for other in self.names(key) {
            if !name.equivalent(&other) {
                self.displace(key, other.parent, &other.name);
                self.detach(other.parent, &other.name);
            }
        }
    }

    /// A name is no longer that of a file being created.
    fn settle(&mut self, name: &NameRef) {
        self.replacing.remove(name);
        if let Some(names) = self.provisional.get_mut(&name.parent) {
            names.remove(name.name);
            if names.is_empty() {
                self.provisional.remove(&name.parent);
            }
        }
    }

    /// A thread is sent to a node id. The kernel may forget it, and the whole inode, before the
    /// thread has arrived: on the second LOOKUP it drops what the first one gave it.
    pub fn pin(&mut self, key: Key, id: NodeId) {
        if let Some(inode) = self.inodes.get_mut(&key) {
            inode.pins += 1;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.pins += 1;
        }
    }

    /// It has arrived, or will not.
    pub fn unpin(&mut self, key: Key, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.pins = node.pins.saturating_sub(1);
        }
        if let Some(inode) = self.inodes.get_mut(&key) {
            inode.pins = inode.pins.saturating_sub(1);
        }
        self.drop_node_if_unused(id);
        self.reap(key);
    }

    /// The kernel was told of a node id once more.
    pub fn looked_up(&mut self, id: NodeId) {
        if let Some(inode) = self.inodes.get_mut(&Key(id.0)) {
            inode.lookups += 1;
        } else if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
            if let Some(inode) = self.inodes.get_mut(&node.inode) {
                inode.lookups_elsewhere += 1;
            }
        }
    }

    /// The kernel forgets a node id that it was told of `times` times.
    pub fn forget(&mut self, id: NodeId, times: u64) {
        let key = if let Some(inode) = self.inodes.get_mut(&Key(id.0)) {
            inode.lookups -= times.min(inode.lookups);
            Key(id.0)
        } else if let Some(node) = self.nodes.get_mut(&id) {
            let times = times.min(node.lookups);
            node.lookups -= times;
            if let Some(inode) = self.inodes.get_mut(&node.inode) {
                inode.lookups_elsewhere -= times;
            }
            node.inode
        } else {
            return;
        };
        self.drop_node_if_unused(id);
        self.reap(key);
    }

    /// Of an inode's first node id, only what it stands for can be dropped.
    fn drop_node_if_unused(&mut self, id: NodeId) {
        if let Some(inode) = self.inodes.get_mut(&Key(id.0)) {
            if !inode.first_is_known(Key(id.0)) {
                inode.first = Weak::new();
            }
            return;
        }
        let Some(node) = self.nodes.get(&id) else {
            return;
        };
        let needed = match self.inodes.get(&node.inode) {
            Some(inode) => {
                let in_flight = inode.transaction.as_ref().is_some_and(|t| t.node == id);
                inode.current == id || in_flight
            }
            None => false,
        };
        if node.lookups == 0 && node.pins == 0 && !needed {
            self.nodes.remove(&id);
        }
    }

    /// A transaction ended: its node id stays only while the kernel uses it.
    pub fn transaction_ended(&mut self, transaction: &Transaction) {
        if let Some(inode) = self.inodes.get_mut(&transaction.inode)
            && let Some(in_flight) = &inode.transaction
            && in_flight.node == transaction.node
        {
            inode.transaction = None;
        }
        let inode = self.inode(transaction.inode);
        if inode.is_none_or(|inode| inode.transaction.is_none()) {
            self.in_flight.remove(&transaction.inode);
        }
        self.drop_node_if_unused(transaction.node);
        self.reap(transaction.inode);
    }

    /// Drops an inode that nobody needs, and then its directory if that was the last child.
    fn reap(&mut self, key: Key) {
        let mut unneeded = vec![key];
        while let Some(key) = unneeded.pop() {
            if key == ROOT || self.inode(key).is_none_or(Inode::is_needed) {
                continue;
            }
            let Some(inode) = self.inodes.remove(&key) else {
                continue;
            };
            self.dropped += 1;
            if let Some(identity) = inode.identity
                && self.identities.get(&identity) == Some(&key)
            {
                self.identities.remove(&identity);
            }
            self.nodes.remove(&inode.current);
            if inode.kind == FileType::Directory {
                self.dropped_dirs.push(key);
            }
            for name in inode.names {
                let parent = name.parent;
                self.children.remove(&name);
                self.settle(&name.as_ref());
                if let Some(parent) = self.inodes.get_mut(&parent) {
                    parent.children -= 1;
                }
                unneeded.push(parent);
            }
        }
    }
}
