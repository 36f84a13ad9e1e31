//! The locks that programs take themselves: who holds which part of a file, and who waits for it.
//!
//! There are two spaces, which do not see each other, as on a local Linux file system: locks by
//! flock(2), which are on whole files, and locks by fcntl(2), traditional and open file
//! description ("OFD") ones alike, which are on ranges. An *owner* is whatever the kernel counts as
//! one: for a traditional lock the process, for the others the open file description. Locks of one
//! owner never conflict; what it asks for replaces what it has on the same range.
//!
//! [`LockTable`] is a state machine and nothing more, like [`crate::leases`]: no I/O, no clock, no
//! threads. The caller keeps the answers that are owed to waiters and sends them when the table says
//! so.
//!
//! # Order
//!
//! Whoever asks for a lock gets it if no lock that is *held* stands against it, as in Linux: those
//! who wait do not stand against anybody. Were it otherwise, a program with a shared lock that
//! takes another one on the same file (a script that calls a script) would hang as soon as somebody
//! waits for an exclusive one. When a lock goes, those who wait get theirs in the order in which they
//! came, so between exclusive locks nobody is passed over; an unbroken chain of overlapping shared
//! locks can keep an exclusive one waiting, here as there.
//!
//! # Invariants
//!
//! * Of two locks in one space of a file that overlap and have different owners, neither is exclusive.
//! * The locks of one owner in one space of a file do not overlap.
//! * A waiter's request conflicts with a lock that is held.

use std::collections::{HashMap, HashSet};

/// A file, by the number that the caller knows it by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// Whom a lock belongs to, by the number that the kernel gives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct OwnerId(pub u64);

/// The open file that a lock was taken through.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct HandleId(pub u64);

/// A waiter. Tickets are never reused within one [`LockTable`], and a later waiter's ticket is
/// always the greater one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Ticket(u64);

/// By which call a lock is taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Space {
    /// flock(2).
    Flock,
    /// fcntl(2) and lockf(3).
    Fcntl,
}

/// What a lock keeps others from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// Exclusive locks (a read lock).
    Shared,
    /// All locks (a write lock).
    Exclusive,
}

/// The bytes of a file that a lock is on, `start` and `end` included; `start` is not after `end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
}

impl Range {
    /// All bytes there can be.
    pub const WHOLE: Self = Self {
        start: 0,
        end: u64::MAX,
    };

    fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// A lock, held or asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lock {
    /// Whose.
    pub owner: OwnerId,
    /// Taken through this open file.
    pub handle: HandleId,
    /// On these bytes.
    pub range: Range,
    /// Of this kind.
    pub mode: Mode,
    /// By this process, for whoever asks (F_GETLK).
    pub process: u32,
}

impl Lock {
    /// Do they exclude each other?
    fn conflicts(&self, other: &Self) -> bool {
        let exclusive = self.mode == Mode::Exclusive || other.mode == Mode::Exclusive;
        exclusive && self.owner != other.owner && self.range.overlaps(other.range)
    }
}

/// The answer to [`LockTable::lock`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Outcome {
    /// The owner has the lock.
    Granted,
    /// Somebody else's lock stands against it, and the owner did not want to wait.
    Refused,
    /// Somebody else's lock stands against it, and the owner now waits under this ticket.
    Queued(Ticket),
}

/// All locks, and all who wait for one. See the [module](self) for the words.
#[derive(Debug, Default)]
pub struct LockTable {
    files: HashMap<FileId, FileLocks>,
    /// The file of each open file that a lock was taken through.
    handles: HashMap<HandleId, FileId>,
    /// Where the waiters are.
    waiting: HashMap<Ticket, FileId>,
    /// The number of tickets given so far.
    tickets: u64,
}

#[derive(Debug, Default)]
struct FileLocks {
    flock: Held,
    fcntl: Held,
    /// In the order of their arrival.
    waiters: Vec<Waiter>,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    ticket: Ticket,
    space: Space,
    lock: Lock,
}

impl FileLocks {
    fn held(&self, space: Space) -> &Held {
        match space {
            Space::Flock => &self.flock,
            Space::Fcntl => &self.fcntl,
        }
    }

    fn held_mut(&mut self, space: Space) -> &mut Held {
        match space {
            Space::Flock => &mut self.flock,
            Space::Fcntl => &mut self.fcntl,
        }
    }

    fn is_empty(&self) -> bool {
        self.flock.0.is_empty() && self.fcntl.0.is_empty() && self.waiters.is_empty()
    }

    /// Gives locks to those who wait and can have one now, and returns them. To give one can free
    /// a part of what its owner had, so the search starts over after each.
    fn wake(&mut self) -> Vec<Waiter> {
        let mut woken = Vec::new();
        let free = |file: &Self| {
            let can = |w: &Waiter| file.held(w.space).against(&w.lock).next().is_none();
            file.waiters.iter().position(can)
        };
        while let Some(place) = free(self) {
            let waiter = self.waiters.remove(place);
            self.held_mut(waiter.space).set(waiter.lock);
            woken.push(waiter);
        }
        woken
    }
}

/// The locks that are held in one space of one file: those of one owner stand together, by
/// position; owners by the age of their oldest lock. F_GETLK tells of the first, as in Linux.
#[derive(Debug, Default)]
struct Held(Vec<Lock>);

impl Held {
    /// The locks that stand against one.
    fn against<'a>(&'a self, lock: &'a Lock) -> impl Iterator<Item = &'a Lock> {
        self.0.iter().filter(|held| held.conflicts(lock))
    }

    /// Those of an owner, as a part of the list.
    fn of(&self, owner: OwnerId) -> std::ops::Range<usize> {
        let start = self.0.iter().position(|l| l.owner == owner);
        let start = start.unwrap_or(self.0.len());
        let length = self.0[start..].iter().take_while(|l| l.owner == owner);
        start..start + length.count()
    }

    /// Takes a range away from an owner.
    fn clear(&mut self, owner: OwnerId, range: Range) {
        self.replace(owner, range, None);
    }

    /// Gives an owner a lock, in the place of whatever it has on that range.
    fn set(&mut self, lock: Lock) {
        self.replace(lock.owner, lock.range, Some(lock));
    }

    fn replace(&mut self, owner: OwnerId, range: Range, with: Option<Lock>) {
        let own = self.of(owner);
        let mut parts = Vec::with_capacity(own.len() + 2);
        for lock in &self.0[own.clone()] {
            if !lock.range.overlaps(range) {
                parts.push(*lock);
                continue;
            }
            if lock.range.start < range.start {
                let (start, end) = (lock.range.start, range.start - 1);
                let range = Range { start, end };
                parts.push(Lock { range, ..*lock });
            }
            if lock.range.end > range.end {
                let (start, end) = (range.end + 1, lock.range.end);
                let range = Range { start, end };
                parts.push(Lock { range, ..*lock });
            }
        }
        parts.extend(with);
        parts.sort_unstable_by_key(|lock| lock.range.start);
        parts.dedup_by(|next, lock| {
            let adjacent = lock.range.end.checked_add(1) == Some(next.range.start);
            let range = Range {
                end: next.range.end,
                ..lock.range
            };
            let one = adjacent && Lock { range, ..*lock } == Lock { range, ..*next };
            if one {
                lock.range = range;
            }
            one
        });
        self.0.splice(own, parts);
    }
}

impl LockTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for a lock. Returns the answer, and those who waited and have theirs now.
    ///
    /// A lock by fcntl that the owner has on the range is replaced in one step, and stays if the
    /// new one is refused. One by flock goes first, as flock(2) says: it is lost where the new one
    /// is refused, or has to be waited for. Nobody gets in between where it can be had at once.
    pub fn lock(
        &mut self,
        file: FileId,
        space: Space,
        lock: Lock,
        wait: bool,
    ) -> (Outcome, Vec<Ticket>) {
        let locks = self.files.entry(file).or_default();
        let held = locks.held_mut(space);
        if space == Space::Flock {
            let own = held.of(lock.owner);
            let same = own.clone().any(|at| held.0[at].mode == lock.mode);
            if same {
                return (Outcome::Granted, Vec::new());
            }
            held.clear(lock.owner, Range::WHOLE);
        }
        let outcome = if held.against(&lock).next().is_none() {
            held.set(lock);
            Outcome::Granted
        } else if wait {
            self.tickets += 1;
            let ticket = Ticket(self.tickets);
            locks.waiters.push(Waiter {
                ticket,
                space,
                lock,
            });
            self.waiting.insert(ticket, file);
            Outcome::Queued(ticket)
        } else {
            Outcome::Refused
        };
        if outcome != Outcome::Refused {
            self.handles.insert(lock.handle, file);
        }
        (outcome, self.wake(file))
    }

    /// Takes a range away from an owner. Returns those who waited and have their lock now.
    #[must_use]
    pub fn unlock(
        &mut self,
        file: FileId,
        space: Space,
        owner: OwnerId,
        range: Range,
    ) -> Vec<Ticket> {
        let Some(locks) = self.files.get_mut(&file) else {
            return Vec::new();
        };
        locks.held_mut(space).clear(owner, range);
        self.wake(file)
    }

    /// Takes away what was taken through an open file that is gone. Returns those who waited and
    /// have their lock now.
    #[must_use]
    pub fn release(&mut self, handle: HandleId) -> Vec<Ticket> {
        let Some(file) = self.handles.remove(&handle) else {
            return Vec::new();
        };
        self.take_away(file, |lock| lock.handle == handle)
    }

    /// Takes away the locks by fcntl that an owner took through an open file. Returns those who
    /// waited and have their lock now.
    #[must_use]
    pub fn forget(&mut self, file: FileId, owner: OwnerId, handle: HandleId) -> Vec<Ticket> {
        let Some(locks) = self.files.get_mut(&file) else {
            return Vec::new();
        };
        let of = |lock: &Lock| lock.owner == owner && lock.handle == handle;
        locks.fcntl.0.retain(|lock| !of(lock));
        self.wake(file)
    }

    fn take_away(&mut self, file: FileId, which: impl Fn(&Lock) -> bool) -> Vec<Ticket> {
        let Some(locks) = self.files.get_mut(&file) else {
            return Vec::new();
        };
        locks.flock.0.retain(|lock| !which(lock));
        locks.fcntl.0.retain(|lock| !which(lock));
        self.wake(file)
    }

    fn wake(&mut self, file: FileId) -> Vec<Ticket> {
        let Some(locks) = self.files.get_mut(&file) else {
            return Vec::new();
        };
        let woken = locks.wake();
        if locks.is_empty() {
            self.files.remove(&file);
        }
        for waiter in &woken {
            self.waiting.remove(&waiter.ticket);
            self.handles.insert(waiter.lock.handle, file);
        }
        woken.iter().map(|waiter| waiter.ticket).collect()
    }

    /// Takes a waiter that gave up out of the queue. Returns false if it is not waiting any more.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Some(file) = self.waiting.remove(&ticket) else {
            return false;
        };
        if let Some(locks) = self.files.get_mut(&file) {
            locks.waiters.retain(|waiter| waiter.ticket != ticket);
            if locks.is_empty() {
                self.files.remove(&file);
            }
        }
        true
    }

    /// The locks that stand against one, the first of them first.
    #[must_use]
    pub fn against(&self, file: FileId, space: Space, lock: &Lock) -> Vec<Lock> {
        let locks = self.files.get(&file);
        let held = locks.map(|locks| locks.held(space).against(lock));
        held.into_iter().flatten().copied().collect()
    }

    /// The first lock by fcntl that an owner itself has in a range.
    #[must_use]
    pub fn own(&self, file: FileId, owner: OwnerId, range: Range) -> Option<Lock> {
        let held = &self.files.get(&file)?.fcntl;
        let mut own = held.0[held.of(owner)].iter();
        own.find(|lock| lock.range.overlaps(range)).copied()
    }

    /// The locks that a waiter waits for, with their file and space.
    #[must_use]
    pub fn blockers(&self, ticket: Ticket) -> Vec<(FileId, Space, Lock)> {
        let Some((file, waiter)) = self.waiter(ticket) else {
            return Vec::new();
        };
        let against = self.against(file, waiter.space, &waiter.lock);
        let place = |lock| (file, waiter.space, lock);
        against.into_iter().map(place).collect()
    }

    fn waiter(&self, ticket: Ticket) -> Option<(FileId, Waiter)> {
        let file = *self.waiting.get(&ticket)?;
        let waiters = &self.files.get(&file)?.waiters;
        let waiter = waiters.iter().find(|waiter| waiter.ticket == ticket)?;
        Some((file, *waiter))
    }

    /// Whether a waiter for a lock by fcntl waits, directly or through other owners who wait for
    /// such locks, for its own owner. There is no such check for flock (flock(2)).
    #[must_use]
    pub fn is_circle(&self, ticket: Ticket) -> bool {
        let Some((file, waiter)) = self.waiter(ticket) else {
            return false;
        };
        let holders = |file: &FileLocks, wanted: &Lock| {
            let against = file.fcntl.against(wanted);
            against.map(|held| held.owner).collect::<Vec<_>>()
        };
        if waiter.space == Space::Flock {
            return false;
        }
        let mut seen = HashSet::new();
        let mut next = self
            .files
            .get(&file)
            .map_or(Vec::new(), |locks| holders(locks, &waiter.lock));
        while let Some(owner) = next.pop() {
            if owner == waiter.lock.owner {
                return true;
            }
            if !seen.insert(owner) {
                continue;
            }
            for locks in self.files.values() {
                let waits = locks.waiters.iter();
                let its = waits.filter(|w| w.space == Space::Fcntl && w.lock.owner == owner);
                next.extend(its.flat_map(|w| holders(locks, &w.lock)));
            }
        }
        false
    }

    /// How many wait.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody holds a lock, and nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Was a lock taken, or waited for, through this open file?
    #[must_use]
    pub fn knows(&self, handle: HandleId) -> bool {
        self.handles.contains_key(&handle)
    }
}

#[cfg(test)]
mod tests;
