//! The engine: versions, transactions and commits over one BACKING, without a FUSE type in it.
//!
//! Requests come in by node id and [`Caller`]; answers go out through a callback ([`Done`]), at
//! once where nothing has to be waited for, else later from a thread of the pool. Where to look:
//!
//! - [`tree`]: inodes, names and node ids. [`version`], [`transaction`]: the two kinds of content.
//! - [`open`]: who may open what now, who waits, who is sent to look again; [`create`], [`serve`]: what a
//!   creation, and an open to read, gets. [`redirect`]: those who
//!   were sent, and how they are led. [`waiting`]: the waiters, and the thread that looks after them.
//! - [`append`]: files that grow by [`records`]; [`turn`]: whose turn it is; [`late`]: records that come
//!   while a version is written. [`direct`]: files without versions. [`io`]: read, write and their kin on open handles. [`attributes`]: stat, chmod, xattrs.
//! - [`ahead`]: what goes to the disk before the close.
//! - [`close`]: what a close means. [`commit`]: how a version becomes the file, or does not;
//!   [`in_place`] where it has to keep its inode, [`conflict`] where that is not what it was;
//!   [`validation`]: what it must be; [`aside`]: what becomes of it if it does not.
//!   [`locks`]: flock(2) and fcntl(2).
//! - [`lookup`]: names to node ids, listings. [`names`]: rename, unlink and link.
//!   [`make`]: mkdir, mknod, symlink.
//! - [`offline`]: one file replaced where nobody serves BACKING.
//! - `status`: what the mount tells of its files by attributes of its own.
//! - [`superseded`]: how those who watch a version hear that it is not the file any more.

mod ahead;
pub mod append;
mod aside;
pub mod attributes;
pub mod close;
pub mod commit;
pub mod conflict;
mod create;
mod direct;
mod in_place;
pub mod io;
mod late;
pub mod locks;
pub mod lookup;
pub mod make;
mod map;
mod name_locks;
pub mod names;
pub mod offline;
pub mod open;
mod records;
mod redirect;
mod serve;
mod status;
pub mod superseded;
pub mod transaction;
pub mod tree;
mod turn;
mod validation;
pub mod version;
pub mod waiting;

#[cfg(test)]
mod tests;

use crate::backing::kept::Limits;
use crate::backing::store::{DIRECTORY, Store};
use crate::backing::{Credentials, Dir, Errno, Identity, descriptors, dir, identity};
use crate::leases::{Acquire, FileId, Kind, LeaseTable, OwnerId, Ticket, Wanted};
use crate::owner::Processes;
use crate::rules::{Defaults, Rules, Treatment};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, DashMap, Mutex, OnceLock, RwLock, spawn_blocking};
use lru::LruCache;
use name_locks::NameLocks;
use redirect::{Redirect, Spent};
use rustix::fs::FileType;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};
use transaction::{Transaction, Writer};
use tree::{Key, NodeId, ROOT, Tree};

pub use io::Handle;

/// How many directories of BACKING are kept open at most.
const OPEN_DIRECTORIES: usize = 512;

/// Who makes a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The thread (0: the kernel itself).
    pub tid: u32,
    /// Its file system user.
    pub uid: u32,
    /// Its file system group.
    pub gid: u32,
}

/// Where an answer goes; called without any lock held.
pub type Done<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

/// What the engine does differently per mount.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What is done where no rule says otherwise.
    pub defaults: Defaults,
    /// Which files get what.
    pub rules: Rules,
    /// The longest that any request may take, if the kernel limits that.
    pub request_limit: Option<Duration>,
    /// How much is kept of versions that could not become the file.
    pub kept: Limits,
}

impl Settings {
    /// How a file is treated, by its path within the mount.
    pub fn treatment(&self, path: &Path) -> Treatment {
        let mut treatment = Treatment::new(self.rules.settings(path), &self.defaults);
        if let Some(limit) = self.request_limit {
            treatment.lock_timeout = treatment.lock_timeout.min(limit);
        }
        treatment
    }
}

/// Everything that decides who gets what, under one lock, held for memory operations only.
#[derive(Debug)]
pub(crate) struct State {
    tree: Tree,
    leases: LeaseTable,
    parked: HashMap<Ticket, waiting::Parked>,
    redirects: HashMap<u32, Redirect>,
    spent: HashMap<u32, Spent>,
    /// Files of which an old version is about to be shown, and of how many.
    telling: HashMap<Key, u32>,
    /// Files whose turn somebody has, and who comes next.
    turns: HashMap<Key, turn::Queue>,
    /// How many handles append to a file.
    appenders: HashMap<Key, usize>,
    /// Versions that were appended to, and that the disk has lost something of.
    broken: HashMap<Key, (NodeId, Arc<version::Version>)>,
    /// Transactions whose openers were sent elsewhere, to be given up.
    unclaimed: Vec<Arc<Transaction>>,
}

/// The engine over one BACKING.
///
/// # Lock order
///
/// A [`turn`] at a file comes before all of these but 3, and is held like 3. Then:
///
/// 1. `Transaction::copying` (a pool thread copying a base into a shadow)
/// 2. `Transaction::writing` (shared: bytes go into the shadow; exclusive: they stop)
/// 3. `Growth::syncing` (what was appended is made durable)
/// 4. `names`, by one call for all that are needed
/// 5. `Growth::records` (a record goes into a file)
/// 6. `state`
/// 7. `Transaction::inner`
///
/// `dirs`, `handles`, `locks`, `settings`, the locks of a `Version` and of a directory listing are leaves: nothing is
/// locked while one of them is held; so are those of the store. No lock but 1 to 5 is held across a system call on BACKING,
/// and none but 3 (and, in the store, that of who settles what a failure left) across fsync, a read of
/// `/proc` or an answer.
pub struct Engine {
    root: Dir,
    root_identity: Identity,
    /// What is never shown, whatever its name.
    own_directory: Option<Identity>,
    store: Option<Store>,
    /// Replaced whole when the configuration is read again.
    settings: RwLock<Arc<Settings>>,
    processes: Box<dyn Processes>,
    started: Instant,
    state: Mutex<State>,
    names: NameLocks,
    dirs: Mutex<LruCache<Key, Dir>>,
    handles: DashMap<u64, Handle>,
    /// What programs have locked themselves.
    locks: Mutex<locks::Locks>,
    next_handle: AtomicU64,
    /// Wakes the thread that looks after waiters.
    watching: Condvar,
    watcher_stop: Mutex<bool>,
    tasks: Tasks,
    /// The mount ends: nothing is appended any more.
    over: AtomicBool,
    /// Runs as root: it can act for others.
    privileged: bool,
    /// BACKING has POSIX ACLs.
    acls: bool,
    device: OnceLock<u64>,
    kernel: OnceLock<Box<dyn KernelCache>>,
    counters: Counters,
}

/// What the engine asks of the kernel's cache.
pub trait KernelCache: Send + Sync {
    /// Has it ask again for the attributes of a node id. Takes no lock of the kernel that a
    /// request may hold (unlike dropping a name).
    fn drop_attributes(&self, node: NodeId);

    /// Has it tell those who watch an old version of a file that this is gone, and then calls
    /// [`Engine::told`]. Returns at once; false if it can't.
    fn superseded(&self, old: superseded::Superseded) -> bool;
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Versions published.
    pub commits: AtomicU64,
    /// Transactions rolled back: their writer died, or a write failed.
    pub rollbacks: AtomicU64,
    /// Versions that were not what they must be.
    pub refused: AtomicU64,
    /// Transactions whose file lost its name meanwhile.
    pub detached: AtomicU64,
    /// Commits that found their file changed behind the mount's back.
    pub conflicts: AtomicU64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("settings", &self.settings())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine over an open BACKING; `store` is `None` for a read-only mount.
    ///
    /// # Errors
    /// `EIO` and its like if the root can't be stat'ed.
    pub fn new(
        root: Dir,
        store: Option<Store>,
        settings: Settings,
        processes: Box<dyn Processes>,
    ) -> Result<Arc<Self>, Errno> {
        let root_identity = identity(&root.stat()?);
        let acls = dir::xattr(&root, OsStr::new(dir::ACL_ACCESS)) != Err(Errno::OPNOTSUPP);
        let own_directory = root.stat_at(OsStr::new(DIRECTORY)).ok();
        if let Some(store) = &store {
            store.keeper().set_limits(settings.kept);
        }
        let state = State {
            tree: Tree::new(root_identity),
            leases: LeaseTable::default(),
            parked: HashMap::new(),
            redirects: HashMap::new(),
            spent: HashMap::new(),
            telling: HashMap::new(),
            turns: HashMap::new(),
            appenders: HashMap::new(),
            broken: HashMap::new(),
            unclaimed: Vec::new(),
        };
        Ok(Arc::new(Self {
            root,
            root_identity,
            own_directory: own_directory.as_ref().map(identity),
            store,
            settings: RwLock::new(Arc::new(settings)),
            processes,
            started: Instant::now(),
            state: Mutex::new(state),
            names: NameLocks::new(),
            dirs: Mutex::new(LruCache::new(
                NonZeroUsize::new(OPEN_DIRECTORIES).unwrap_or(NonZeroUsize::MIN),
            )),
            handles: DashMap::new(),
            locks: Mutex::default(),
            next_handle: AtomicU64::new(1),
            watching: Condvar::new(),
            watcher_stop: Mutex::new(false),
            tasks: Tasks::default(),
            over: AtomicBool::new(false),
            privileged: rustix::process::geteuid().is_root(),
            acls,
            device: OnceLock::new(),
            kernel: OnceLock::new(),
            counters: Counters::default(),
        }))
    }

    /// What applies to opens from now on.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().clone()
    }

    /// Changes what applies to later opens; transactions in flight keep what they began with.
    pub fn set_settings(&self, settings: Settings) {
        if let Some(store) = &self.store {
            store.keeper().set_limits(settings.kept);
        }
        *self.settings.write() = Arc::new(settings);
    }

    /// The root of BACKING.
    pub fn root(&self) -> &Dir {
        &self.root
    }

    /// Tells the engine which device number the kernel gave the mount, by which descriptors of
    /// the mount are told from others in `/proc`.
    pub fn set_device(&self, device: u64) {
        let _ = self.device.set(device);
        if let Some(Err(errno)) = self.store.as_ref().map(|store| store.announce(device)) {
            log::warn!(".latchfs/lock can't name the mount: {errno}");
        }
    }

    /// Gives the engine the kernel's cache of a mount.
    pub fn set_kernel(&self, kernel: Box<dyn KernelCache>) {
        let _ = self.kernel.set(kernel);
    }

    /// Has the kernel ask again for the attributes of a file.
    fn drop_cached_attributes(&self, key: Key) {
        let current = self.state.lock().tree.inode(key).map(|i| i.current);
        if let (Some(kernel), Some(current)) = (self.kernel.get(), current) {
            kernel.drop_attributes(current);
        }
    }

    /// Has BACKING (its root, at least) POSIX ACLs?
    pub fn has_acls(&self) -> bool {
        self.acls
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Time since the engine's start, the clock of the lease table.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Where latchfs's own files live.
    ///
    /// # Errors
    /// `EROFS` on a read-only mount.
    fn store(&self) -> Result<&Store, Errno> {
        self.store.as_ref().ok_or(Errno::ROFS)
    }

    /// Has `work` done by a thread of the pool.
    fn spawn(self: &Arc<Self>, work: impl FnOnce(&Arc<Engine>) + Send + 'static) {
        let engine = self.clone();
        engine.tasks.begin();
        spawn_blocking(move || {
            let _task = TaskGuard(&engine.tasks);
            work(&engine);
        });
    }

    /// Waits until no task of the pool is under way; false if `limit` has passed before.
    pub fn drain(&self, limit: Duration) -> bool {
        self.tasks.drain(limit)
    }

    /// How many transactions are in flight.
    pub fn in_flight(&self) -> usize {
        self.state.lock().tree.in_flight().len()
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        let directory = |handle: &Handle| matches!(handle, Handle::Directory(_));
        self.handles.iter().filter(|h| !directory(h)).count()
    }

    /// How many inodes and node ids the kernel knows (the root is one of each).
    pub fn known(&self) -> (usize, usize) {
        self.state.lock().tree.sizes()
    }

    /// Everything that is known, for a test that fails.
    #[doc(hidden)]
    pub fn describe(&self) -> String {
        format!("{:?}", *self.state.lock())
    }

    /// True when nothing is held and nobody waits: what every test ends with.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let waited_for = self.locks.lock().is_waited_for();
        let idle = state.leases.is_idle() && state.turns.is_empty();
        idle && state.parked.is_empty() && !waited_for
    }

    /// An open directory.
    fn dir(&self, key: Key) -> Result<Dir, Errno> {
        // Up to one that is open, then down again; not by recursion, as it may be any depth.
        let mut closed = Vec::new();
        let mut at = key;
        let mut dir = loop {
            if at == ROOT {
                break self.root.clone();
            }
            if let Some(dir) = self.dirs.lock().get(&at) {
                break dir.clone();
            }
            let state = self.state.lock();
            let inode = state.tree.inode(at).ok_or(Errno::STALE)?;
            if inode.kind != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            let name = inode.names.first().ok_or(Errno::NOENT)?;
            let expected = inode.identity.ok_or(Errno::STALE)?;
            closed.push((at, name.name.clone(), expected));
            at = name.parent;
        };
        for (key, name, expected) in closed.into_iter().rev() {
            dir = dir.open_dir(&name)?;
            if identity(&dir.stat()?) != expected {
                return Err(Errno::STALE);
            }
            // Under the lock, or it could be dropped from the table first, and stay open.
            let state = self.state.lock();
            if state.tree.inode(key).is_some() && descriptors::may_stay(&dir) {
                self.dirs.lock().put(key, dir.clone());
            }
        }
        Ok(dir)
    }

    /// May a descriptor that stays open be made? Asked before it is.
    ///
    /// # Errors
    /// `EMFILE`.
    fn check_descriptors(&self) -> Result<(), Errno> {
        descriptors::check(&self.root)
    }

    /// Calls `work` with a place where the file of BACKING is, while its name can't change.
    ///
    /// # Errors
    /// `ESTALE` if it has no name any more; `ENOENT` if it has none in BACKING yet.
    fn at_place<T>(
        &self,
        key: Key,
        work: impl FnOnce(&Dir, &OsStr, Identity) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.at_place_by(key, |parent| self.names.shared(parent), work)
    }

    /// The same, with nobody else at the names of its directory.
    fn alone_at_place<T>(
        &self,
        key: Key,
        work: impl FnOnce(&Dir, &OsStr, Identity) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.at_place_by(key, |parent| self.names.exclusive([parent]), work)
    }

    fn at_place_by<'a, T>(
        &self,
        key: Key,
        lock: impl Fn(Key) -> name_locks::Held<'a>,
        work: impl FnOnce(&Dir, &OsStr, Identity) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        loop {
            let place = |state: &State| {
                let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
                let name = inode.names.first().cloned().ok_or(Errno::STALE)?;
                Ok((name, inode.identity.ok_or(Errno::NOENT)?))
            };
            let (name, _) = place(&self.state.lock())?;
            let _names = lock(name.parent);
            let (still, identity) = place(&self.state.lock())?;
            if still != name {
                continue;
            }
            let dir = self.dir(name.parent)?;
            return work(&dir, &name.name, identity);
        }
    }

    /// The path of an inode within the mount, for the log.
    fn path_of(&self, key: Key) -> String {
        lookup::show(self.state.lock().tree.path(key))
    }

    /// What `/proc` tells of a thread that wants to write.
    fn writer(&self, caller: Caller) -> Writer {
        let credentials = |groups| Credentials {
            uid: caller.uid,
            gid: caller.gid,
            groups: Some(groups),
        };
        match self.processes.thread(caller.tid) {
            Some(thread) => Writer {
                tid: caller.tid,
                process: thread.process,
                program: thread.name,
                credentials: credentials(thread.groups),
            },
            // Of another pid namespace, or the kernel itself.
            None => Writer {
                tid: caller.tid,
                process: caller.tid,
                program: String::from("?"),
                credentials: credentials(Vec::new()),
            },
        }
    }

    fn add_handle(&self, handle: Handle) -> u64 {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.insert(number, handle);
        number
    }

    /// Asks for the lease of a file for a thread that must not wait.
    fn lease_at_once(&self, state: &mut State, key: Key, tid: u32) -> Acquire {
        state.leases.acquire(Wanted {
            file: Self::file_id(key),
            owner: OwnerId(u64::from(tid)),
            kind: Kind::Writer,
            deadline: self.now(),
            nonblocking: true,
        })
    }

    fn file_id(key: Key) -> FileId {
        FileId(key.0)
    }
}

/// Counts what the pool has under way, so that a shutdown can wait for it.
#[derive(Debug, Default)]
struct Tasks {
    running: Mutex<usize>,
    changed: Condvar,
}

struct TaskGuard<'a>(&'a Tasks);

impl Drop for TaskGuard<'_> {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
        self.0.changed.notify_all();
    }
}

impl Tasks {
    fn begin(&self) {
        *self.running.lock() += 1;
    }

    fn drain(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut running = self.running.lock();
        while *running > 0 {
            if self.changed.wait_until(&mut running, end).timed_out() {
                return *running == 0;
            }
        }
        true
    }
}
