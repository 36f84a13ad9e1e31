//! Locks that programs take themselves: flock(2), fcntl(2), lockf(3).
//!
//! They belong to the file, through all its versions: [`crate::locks`] keeps them by inode, and the
//! node id that a request comes with only says which inode. Taking one never changes a version, and
//! neither waits for a lease nor makes one wait.
//!
//! # When a lock goes
//!
//! * At an unlock, of course.
//! * A traditional fcntl lock goes at the first close of *any* descriptor of the file by its
//!   process: FLUSH names the process's locks by their owner.
//! * The others go with their open file description: RELEASE. Nobody waits for the answer to that,
//!   so the next request of the program that closed it can overtake it; see [`Engine::lock`] for
//!   what is done about that.
//!
//! Closes of a descriptor that is open for reading are not told of (FOPEN_NOFLUSH: a round trip for
//! each open file that most files never need), until the first lock on a file: who opens it from then
//! on tells. What was locked before through a descriptor that does not tell is looked after by asking
//! `/proc` whether the process still has the file open, when somebody else wants the lock.

use super::io::Handle;
use super::tree::{Key, NodeId};
use super::{Caller, Done, Engine};
use crate::backing::Errno;
use crate::locks::{
    FileId, HandleId, Lock, LockTable, Mode, Outcome, OwnerId, Range, Space, Ticket,
};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use log::warn;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long after the close of a copy of a descriptor its RELEASE may be on its way. It is in the
/// queue when close(2) returns; a thread of ours that has read it may be kept from handling it.
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// How often a request that must not wait looks whether it has arrived.
const AGAIN: Duration = Duration::from_millis(1);

/// All locks, and what is owed to those who wait.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    table: LockTable,
    parked: HashMap<Ticket, Parked>,
    /// The open files that a lock was asked for through.
    handles: HashMap<HandleId, Through>,
}

/// A request that waits for a lock.
struct Parked {
    tid: u32,
    process: u32,
    key: Key,
    since: Instant,
    done: Done<()>,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parked({}, {:?})", self.tid, self.key)
    }
}

/// What is known of an open file.
#[derive(Debug)]
struct Through {
    /// Its closes are told of.
    tells: bool,
    /// When the last of them was.
    closed: Option<Instant>,
    /// It does not tell, and these owners of locks by fcntl are processes.
    processes: HashSet<OwnerId>,
}

impl Locks {
    /// Is somebody waiting for a lock?
    pub(super) fn is_waited_for(&self) -> bool {
        self.table.waiters() > 0
    }

    /// Can it be that the lock is gone already, only that nobody has told of it yet?
    fn is_doubtful(&self, lock: &Lock) -> bool {
        self.handles.get(&lock.handle).is_some_and(|through| {
            let closed = through.closed;
            !through.tells || closed.is_some_and(|at| at.elapsed() < ON_ITS_WAY)
        })
    }

    fn tells(&self, handle: HandleId) -> bool {
        let through = self.handles.get(&handle);
        through.is_none_or(|through| through.tells)
    }

    /// Is it a lock of a process, that we would not be told of if the process closed the file?
    fn is_untold(&self, space: Space, lock: &Lock) -> bool {
        let through = self.handles.get(&lock.handle);
        space == Space::Fcntl
            && through.is_some_and(|t| !t.tells && t.processes.contains(&lock.owner))
    }

    fn take(&mut self, woken: Vec<Ticket>) -> Vec<Parked> {
        let parked = woken.iter();
        parked.filter_map(|t| self.parked.remove(t)).collect()
    }
}

/// A request for a lock, to be had, tested for, or given back.
#[derive(Clone, Copy, Debug)]
pub struct LockCall {
    /// The node id of the open file.
    pub node: NodeId,
    /// The open file.
    pub handle: u64,
    /// The owner, as the kernel names it.
    pub owner: u64,
    /// By flock, or by fcntl.
    pub space: Space,
    /// Which bytes.
    pub range: Range,
    /// What for; `None`: to unlock.
    pub mode: Option<Mode>,
    /// The process that asks (0 if it is of another pid namespace).
    pub process: u32,
}

impl LockCall {
    fn lock(&self, mode: Mode) -> Lock {
        Lock {
            owner: OwnerId(self.owner),
            handle: HandleId(self.handle),
            range: self.range,
            mode,
            process: self.process,
        }
    }
}

impl Engine {
    /// flock(2), and fcntl(2) with `F_SETLK`, `F_SETLKW` and their OFD kin; `wait`: rather wait than
    /// fail.
    ///
    /// Where the lock can't be had at once, and must not be waited for, a pool thread makes sure
    /// first that whoever stands in the way is still there: a program that has closed its
    /// descriptor has given its lock back, whatever we have been told of so far.
    ///
    /// # Errors
    /// Through `done`: `EAGAIN` if somebody else has a lock that conflicts; `EINTR` if a signal
    /// ended the wait; `EDEADLK` if the wait would close a circle of processes that wait for each
    /// other's traditional fcntl locks; `ETIMEDOUT` only where the kernel limits how long a
    /// request may take (see [`super::Settings::request_limit`]).
    pub fn lock(self: &Arc<Self>, caller: Caller, call: LockCall, wait: bool, done: Done<()>) {
        let key = match self.note_locked(call.node) {
            Ok(key) => key,
            Err(errno) => return done(Err(errno)),
        };
        let file = FileId(key.0);
        let Some(mode) = call.mode else {
            let owner = OwnerId(call.owner);
            let unlock = |table: &mut LockTable| table.unlock(file, call.space, owner, call.range);
            self.change_locks(unlock);
            return done(Ok(()));
        };
        self.note_handle(caller, &call);
        let lock = call.lock(mode);
        let mut done = Some(done);
        let (outcome, doubtful, woken) = {
            let mut locks = self.locks.lock();
            let (outcome, woken) = locks.table.lock(file, call.space, lock, wait);
            if let Outcome::Queued(ticket) = outcome
                && let Some(done) = done.take()
            {
                let parked = Parked {
                    tid: caller.tid,
                    process: call.process,
                    key,
                    since: Instant::now(),
                    done,
                };
                locks.parked.insert(ticket, parked);
            }
            let against = locks.table.against(file, call.space, &lock);
            let doubtful = against.iter().all(|held| locks.is_doubtful(held));
            let woken = locks.take(woken);
            (outcome, doubtful, woken)
        };
        grant(woken);
        match (outcome, done) {
            (Outcome::Queued(ticket), _) => self.waits_for_lock(ticket, caller.tid),
            (Outcome::Granted, Some(done)) => done(Ok(())),
            (Outcome::Refused, Some(done)) if doubtful => {
                self.spawn(move |engine| done(engine.lock_after_all(key, call.space, lock)));
            }
            (Outcome::Refused, Some(done)) => done(Err(Errno::AGAIN)),
            (Outcome::Granted | Outcome::Refused, None) => {}
        }
    }

    /// fcntl(2) with `F_GETLK` or `F_OFD_GETLK`: the first lock that stands in the way of the one
    /// asked about; without a mode (`F_UNLCK`), the first that the owner itself has in the range.
    ///
    /// # Errors
    /// `ESTALE` for a node id that is none.
    pub fn test_lock(self: &Arc<Self>, call: LockCall, done: Done<Option<Lock>>) {
        let key = match self.note_locked(call.node) {
            Ok(key) => key,
            Err(errno) => return done(Err(errno)),
        };
        let Some(mode) = call.mode else {
            let (file, owner) = (FileId(key.0), OwnerId(call.owner));
            let own = self.locks.lock().table.own(file, owner, call.range);
            return done(Ok(own));
        };
        let lock = call.lock(mode);
        match self.first_against(key, call.space, &lock) {
            None => done(Ok(None)),
            Some((found, false)) => done(Ok(Some(found))),
            Some((_, true)) => self.spawn(move |engine| {
                done(Ok(engine.standing(key, call.space, &lock)));
            }),
        }
    }

    /// The file of a node id. Whoever opens it from now on tells of its closes.
    fn note_locked(&self, node: NodeId) -> Result<Key, Errno> {
        let mut state = self.state.lock();
        let (key, _) = state.tree.inode_of(node).ok_or(Errno::STALE)?;
        if let Some(inode) = state.tree.inode_mut(key) {
            inode.locked = true;
        }
        Ok(key)
    }

    /// Has a program asked for a lock on a file? The next one may be taken through whatever is opened
    /// now.
    pub(super) fn is_locked(&self, key: Key) -> bool {
        let state = self.state.lock();
        state.tree.inode(key).is_some_and(|inode| inode.locked)
    }

    fn note_handle(&self, caller: Caller, call: &LockCall) {
        let tells = match self.handles.get(&call.handle).as_deref() {
            Some(Handle::Reader { flush, .. }) => *flush,
            // It has told, or never will.
            Some(Handle::Transaction { flushed, .. }) => !flushed.load(Ordering::Relaxed),
            _ => true,
        };
        // An OFD lock outlives the process that took it where a child has the descriptor, too.
        let process = !tells
            && call.space == Space::Fcntl
            && self.processes.locks_description(caller.tid) == Some(false);
        let mut locks = self.locks.lock();
        let through = locks.handles.entry(HandleId(call.handle));
        let through = through.or_insert_with(|| Through {
            tells,
            closed: None,
            processes: HashSet::new(),
        });
        if process {
            through.processes.insert(OwnerId(call.owner));
        }
    }

    /// Changes the table, and answers those who have their lock by that.
    fn change_locks(&self, change: impl FnOnce(&mut LockTable) -> Vec<Ticket>) {
        let woken = {
            let mut locks = self.locks.lock();
            let woken = change(&mut locks.table);
            locks.take(woken)
        };
        grant(woken);
    }

    /// The first lock that stands against one, and whether that is doubtful.
    fn first_against(&self, key: Key, space: Space, lock: &Lock) -> Option<(Lock, bool)> {
        let locks = self.locks.lock();
        let against = locks.table.against(FileId(key.0), space, lock);
        let first = *against.first()?;
        Some((first, locks.is_doubtful(&first)))
    }

    /// The second try of a request that must not wait, by a thread of the pool.
    fn lock_after_all(&self, key: Key, space: Space, lock: Lock) -> Result<(), Errno> {
        // Another may be faster, any number of times.
        let end = Instant::now() + ON_ITS_WAY;
        loop {
            let standing = self.standing(key, space, &lock);
            if standing.is_some() {
                return Err(Errno::AGAIN);
            }
            let (outcome, woken) = {
                let mut locks = self.locks.lock();
                let file = FileId(key.0);
                let (outcome, woken) = locks.table.lock(file, space, lock, false);
                (outcome, locks.take(woken))
            };
            grant(woken);
            match outcome {
                Outcome::Granted => return Ok(()),
                _ if Instant::now() > end => return Err(Errno::AGAIN),
                _ => {}
            }
        }
    }

    /// The first lock that stands against one, once it is sure that it does. Blocks for as long as
    /// an unlock may be on its way.
    fn standing(&self, key: Key, space: Space, lock: &Lock) -> Option<Lock> {
        let end = Instant::now() + ON_ITS_WAY;
        loop {
            let (held, doubtful) = self.first_against(key, space, lock)?;
            if !doubtful || Instant::now() > end {
                return Some(held);
            }
            if self.is_stale(key, space, &held) {
                self.forget_lock(key, &held);
                continue;
            }
            // One that does not tell stands for as long as its process has the file open.
            let tells = self.locks.lock().tells(held.handle);
            let other = held.process != lock.process;
            if !tells && other && self.has_open(key, held.process) == Some(true) {
                return Some(held);
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Has a process the file open, in whatever way? None if that can't be told.
    fn has_open(&self, key: Key, process: u32) -> Option<bool> {
        let reported = self.state.lock().tree.inode(key)?.reported;
        let device = self.device.get().copied();
        (process != 0)
            .then(|| self.processes.holds_open(process, reported, device))
            .flatten()
    }

    /// Is it a lock of a process that has closed the file without our being told?
    fn is_stale(&self, key: Key, space: Space, lock: &Lock) -> bool {
        let untold = self.locks.lock().is_untold(space, lock);
        untold && self.has_open(key, lock.process) == Some(false)
    }

    fn forget_lock(&self, key: Key, lock: &Lock) {
        self.change_locks(|table| table.forget(FileId(key.0), lock.owner, lock.handle));
    }

    /// A request for a lock has begun to wait.
    fn waits_for_lock(self: &Arc<Self>, ticket: Ticket, tid: u32) {
        {
            // With the lock that the thread sleeps on, or it could miss this.
            let _state = self.state.lock();
            self.watching.notify_one();
        }
        let circle = self.locks.lock().table.is_circle(ticket);
        if !circle {
            return;
        }
        self.spawn(move |engine| {
            // As in Linux: an OFD lock may be given back by any thread that has the descriptor.
            if engine.processes.locks_description(tid) == Some(true) {
                return;
            }
            let ended = {
                let mut locks = engine.locks.lock();
                match locks.table.is_circle(ticket) && locks.table.cancel(ticket) {
                    true => locks.parked.remove(&ticket),
                    false => None,
                }
            };
            if let Some(parked) = ended {
                (parked.done)(Err(Errno::DEADLK));
            }
        });
    }

    /// close(2) of one copy of a descriptor, as [`Engine::flush`]; `owner` is whose traditional
    /// fcntl locks on the file go by it. They go after the commit, if this is the last close.
    pub fn close(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        handle: u64,
        owner: u64,
        done: Done<()>,
    ) {
        let engine = self.clone();
        let unlock = move |result| {
            engine.unlock_closed(node, HandleId(handle), OwnerId(owner));
            done(result);
        };
        self.flush(caller, handle, Box::new(unlock));
    }

    fn unlock_closed(&self, node: NodeId, handle: HandleId, owner: OwnerId) {
        // As after most closes.
        if self.locks.lock().table.is_empty() {
            return;
        }
        let Ok(key) = self.key_of(node) else { return };
        let woken = {
            let mut locks = self.locks.lock();
            if let Some(through) = locks.handles.get_mut(&handle) {
                through.closed = Some(Instant::now());
            }
            let file = FileId(key.0);
            let woken = locks.table.unlock(file, Space::Fcntl, owner, Range::WHOLE);
            locks.take(woken)
        };
        grant(woken);
    }

    /// The last copy of a descriptor is gone.
    pub(super) fn unlock_released(&self, handle: u64) {
        let handle = HandleId(handle);
        let woken = {
            let mut locks = self.locks.lock();
            locks.handles.remove(&handle);
            let woken = locks.table.release(handle);
            locks.take(woken)
        };
        grant(woken);
    }

    /// Looks after those who wait for a lock: ends the waits of those for whom a signal is pending,
    /// and takes away locks that are gone without our being told.
    pub(super) fn look_after_locks(&self) {
        let waiters: Vec<(Ticket, u32, Instant)> = {
            let locks = self.locks.lock();
            let parked = locks.parked.iter();
            parked.map(|(t, p)| (*t, p.tid, p.since)).collect()
        };
        for (ticket, tid, since) in waiters {
            let too_long = |limit: Duration| since.elapsed() > limit;
            if self.settings().request_limit.is_some_and(too_long) {
                self.end_lock_wait(ticket, Errno::TIMEDOUT);
                continue;
            }
            let ended = match self.processes.thread(tid) {
                Some(thread) => thread.signalled || thread.exiting,
                None => tid != 0 && !super::waiting::thread_exists(tid),
            };
            if ended {
                self.end_lock_wait(ticket, Errno::INTR);
                continue;
            }
            let blockers = self.locks.lock().table.blockers(ticket);
            for (file, space, held) in blockers {
                let key = Key(file.0);
                if self.is_stale(key, space, &held) {
                    self.forget_lock(key, &held);
                }
            }
        }
    }

    fn end_lock_wait(&self, ticket: Ticket, errno: Errno) {
        let parked = {
            let mut locks = self.locks.lock();
            match locks.table.cancel(ticket) {
                true => locks.parked.remove(&ticket),
                false => None,
            }
        };
        let Some(parked) = parked else { return };
        if errno == Errno::TIMEDOUT {
            warn!(
                "{}: pid {} waited for a lock for {:?}, which is all that sysctl \
                 fs.fuse.*_request_timeout allows",
                self.path_of(parked.key),
                parked.process,
                parked.since.elapsed()
            );
        }
        (parked.done)(Err(errno));
    }

    /// The mount ends: whoever waits waits no longer.
    pub(super) fn fail_lock_waiters(&self) {
        let tickets: Vec<Ticket> = self.locks.lock().parked.keys().copied().collect();
        for ticket in tickets {
            self.end_lock_wait(ticket, Errno::NOTCONN);
        }
    }
}

/// Tells those who waited that they have their lock.
fn grant(woken: Vec<Parked>) {
    for parked in woken {
        (parked.done)(Ok(()));
    }
}
