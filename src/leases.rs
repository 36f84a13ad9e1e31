//! Who may write a file, and who waits for it.
//!
//! A *lease* is the exclusive right to write a file. Writers queue for it, first come first
//! served. Readers hold nothing: they only wait for the end of the lease that was in force when
//! they asked. An *owner* is a thread; it waits for at most one thing at a time, because the
//! request that waits is the system call the thread is in.
//!
//! [`LeaseTable`] is a state machine and nothing more: no I/O, no clock, no threads. The caller
//! brings the time, keeps the replies that are owed to waiters, and sends them when the table
//! says so. That makes every interleaving a plain sequence of calls, which the tests use to
//! compare the table with a naive model over random sequences.
//!
//! # Invariants
//!
//! * Only a leased file has waiters.
//! * An owner has at most one waiter, and never one for a file that it holds.
//! * The graph "owner waits for holder" has no cycle: [`LeaseTable::acquire`] refuses the wait
//!   that would close one, and handing a lease over only adds arrows that point at an owner who
//!   has just stopped waiting.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// A file, by the number that the caller knows it by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// Someone who can hold a lease: a thread, by number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct OwnerId(pub u64);

/// A waiter. Tickets are never reused within one [`LeaseTable`], and a later waiter's ticket is
/// always the greater one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What an owner wants the file for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// To hold the lease.
    Writer,
    /// To get past the lease that is in force now, holding nothing afterwards.
    Reader,
}

/// The answer to [`LeaseTable::acquire`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Acquire {
    /// Nobody held the lease. A writer holds it now, a reader may go on.
    Granted,
    /// The owner itself already holds the lease.
    Joined,
    /// Somebody else holds the lease, and the owner now waits for it under this ticket.
    Queued(Ticket),
    /// Somebody else holds the lease, and the owner did not want to wait.
    WouldBlock,
    /// Somebody else holds the lease and is waiting, directly or through others, for this owner.
    Deadlock,
}

/// A request for [`LeaseTable::acquire`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The file.
    pub file: FileId,
    /// Who asks.
    pub owner: OwnerId,
    /// What for.
    pub kind: Kind,
    /// When to give up waiting: the time since an origin of the caller's choice, the same for
    /// every call on one table.
    pub deadline: Duration,
    /// Answer [`Acquire::WouldBlock`] rather than queue.
    pub nonblocking: bool,
}

/// A waiter that waits no longer, because the lease it waited for has ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Wake {
    /// The ticket that [`Acquire::Queued`] gave it.
    pub ticket: Ticket,
    /// Who waited.
    pub owner: OwnerId,
    /// What for. After [`LeaseTable::release`] a writer that is woken holds the lease.
    pub kind: Kind,
}

/// All leases, and all who wait for one. See the [module](self) for the words.
///
/// [`acquire`](Self::acquire) and [`release`](Self::release) without contention take constant
/// time whatever the number of leased files. Everything else takes time logarithmic in the number
/// of waiters, for each waiter concerned; looking for a cycle takes a step for each owner in the
/// chain of waits that starts at the holder.
#[derive(Debug, Default)]
pub struct LeaseTable {
    /// The leases in force.
    leases: HashMap<FileId, Lease>,
    waiters: Waiters,
}

/// Everyone who waits, found by ticket, by owner and by deadline. The queues of the leases say
/// the same by file.
#[derive(Debug, Default)]
struct Waiters {
    by_ticket: HashMap<Ticket, Waiter>,
    by_owner: HashMap<OwnerId, Ticket>,
    by_deadline: BTreeSet<(Duration, Ticket)>,
    /// The number of tickets given so far.
    tickets: u64,
}

#[derive(Debug)]
struct Lease {
    holder: OwnerId,
    /// Boxed and absent while nobody waits, which is the state of nearly every lease.
    queue: Option<Box<Queue>>,
}

/// Sets rather than deques, because waiters leave from the middle as well. Tickets count up, so
/// the order of the tickets is the order of arrival.
#[derive(Debug, Default)]
struct Queue {
    writers: BTreeSet<Ticket>,
    readers: BTreeSet<Ticket>,
}

impl Queue {
    fn of(&mut self, kind: Kind) -> &mut BTreeSet<Ticket> {
        match kind {
            Kind::Writer => &mut self.writers,
            Kind::Reader => &mut self.readers,
        }
    }

    fn len(&self) -> usize {
        self.writers.len() + self.readers.len()
    }
}

#[derive(Debug)]
struct Waiter {
    file: FileId,
    owner: OwnerId,
    kind: Kind,
    deadline: Duration,
}

impl LeaseTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the lease of a file, or for a way past it.
    ///
    /// With no lease in force the answer is [`Acquire::Granted`], and a writer is the holder from
    /// now on. The holder itself is [`Acquire::Joined`]. Anyone else gets [`Acquire::WouldBlock`]
    /// if `nonblocking`; [`Acquire::Deadlock`] if the holder waits for a lease of this owner,
    /// directly or through other owners who wait, as writers or as readers; and is otherwise
    /// [`Acquire::Queued`] behind those of its kind who came before.
    ///
    /// An owner that asks is evidently not waiting any more. If a waiter of its own is still
    /// queued, for this file or another, that waiter is dropped first, as by
    /// [`cancel`](Self::cancel).
    pub fn acquire(&mut self, wanted: Wanted) -> Acquire {
        if let Some(&stale) = self.waiters.by_owner.get(&wanted.owner) {
            self.cancel(stale);
        }
        let lease = match self.leases.entry(wanted.file) {
            Entry::Vacant(free) => {
                if wanted.kind == Kind::Writer {
                    free.insert(Lease {
                        holder: wanted.owner,
                        queue: None,
                    });
                }
                return Acquire::Granted;
            }
            Entry::Occupied(lease) => lease.into_mut(),
        };
        let holder = lease.holder;
        if holder == wanted.owner {
            return Acquire::Joined;
        }
        if wanted.nonblocking {
            return Acquire::WouldBlock;
        }
        if self.waits_for(holder, wanted.owner) {
            return Acquire::Deadlock;
        }
        let ticket = self.waiters.enter(&wanted);
        if let Some(lease) = self.leases.get_mut(&wanted.file) {
            let queue = lease.queue.get_or_insert_default();
            queue.of(wanted.kind).insert(ticket);
        }
        Acquire::Queued(ticket)
    }

    /// Ends the lease of a file: every reader that waits for it leaves, in order of arrival, and
    /// then the first writer in the queue, which is the holder from now on.
    ///
    /// Returns those who left, in that order; nobody for a file that is not leased.
    #[must_use]
    pub fn release(&mut self, file: FileId) -> Vec<Wake> {
        let Entry::Occupied(mut lease) = self.leases.entry(file) else {
            return Vec::new();
        };
        let Some(mut queue) = lease.get_mut().queue.take() else {
            lease.remove();
            return Vec::new();
        };
        let mut wakes = Vec::with_capacity(queue.readers.len() + 1);
        for ticket in std::mem::take(&mut queue.readers) {
            wakes.extend(self.waiters.wake(ticket));
        }
        let heir = queue.writers.pop_first();
        match heir.and_then(|ticket| self.waiters.wake(ticket)) {
            Some(heir) => {
                wakes.push(heir);
                let lease = lease.get_mut();
                lease.holder = heir.owner;
                lease.queue = (queue.len() > 0).then_some(queue);
            }
            None => {
                lease.remove();
            }
        }
        wakes
    }

    /// Ends the lease of a file that is gone: everyone who waits for it leaves, and nobody gets
    /// it.
    ///
    /// Returns those who left, readers and writers together in order of arrival; nobody for a
    /// file that is not leased.
    #[must_use]
    pub fn abandon(&mut self, file: FileId) -> Vec<Wake> {
        let Some(queue) = self.leases.remove(&file).and_then(|lease| lease.queue) else {
            return Vec::new();
        };
        let Queue {
            mut writers,
            mut readers,
        } = *queue;
        writers.append(&mut readers);
        writers
            .into_iter()
            .filter_map(|ticket| self.waiters.wake(ticket))
            .collect()
    }

    /// Takes a waiter that gave up out of the queue. Returns false if it is not waiting any more:
    /// it was woken, expired or cancelled before.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Some(waiter) = self.waiters.leave(ticket) else {
            return false;
        };
        if let Some(lease) = self.leases.get_mut(&waiter.file) {
            if let Some(queue) = &mut lease.queue {
                queue.of(waiter.kind).remove(&ticket);
                if queue.len() == 0 {
                    lease.queue = None;
                }
            }
        }
        true
    }

    /// Takes out the waiters whose deadline is `now` or earlier, and returns them by deadline,
    /// those with the same deadline in order of arrival.
    ///
    /// `now` is a time since the origin that [`Wanted::deadline`] is counted from.
    #[must_use]
    pub fn expire(&mut self, now: Duration) -> Vec<Ticket> {
        let mut expired = Vec::new();
        while let Some(ticket) = self.waiters.first_due(now) {
            self.cancel(ticket);
            expired.push(ticket);
        }
        expired
    }

    /// The earliest deadline of all who wait: when to call [`expire`](Self::expire) next. None if
    /// nobody waits.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.waiters
            .by_deadline
            .first()
            .map(|&(deadline, _)| deadline)
    }

    /// Who holds the lease of a file, if it is leased.
    #[must_use]
    pub fn holder(&self, file: FileId) -> Option<OwnerId> {
        self.leases.get(&file).map(|lease| lease.holder)
    }

    /// How many wait for a file, readers and writers together.
    #[must_use]
    pub fn waiting(&self, file: FileId) -> usize {
        self.leases
            .get(&file)
            .and_then(|lease| lease.queue.as_ref())
            .map_or(0, |queue| queue.len())
    }

    /// Whether a waiter is still in a queue.
    #[must_use]
    pub fn waits(&self, ticket: Ticket) -> bool {
        self.waiters.by_ticket.contains_key(&ticket)
    }

    /// Whether no lease is in force and nobody waits: nothing has leaked.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.leases.is_empty()
            && self.waiters.by_ticket.is_empty()
            && self.waiters.by_owner.is_empty()
            && self.waiters.by_deadline.is_empty()
    }

    /// Whether `from` waits for `to`, directly or through others. Every owner waits for at most
    /// one file and every file has one holder, so the search is a walk along one chain, which
    /// ends because there is no cycle yet.
    fn waits_for(&self, mut from: OwnerId, to: OwnerId) -> bool {
        while let Some(holder) = self
            .waiters
            .by_owner
            .get(&from)
            .and_then(|ticket| self.waiters.by_ticket.get(ticket))
            .and_then(|waiter| self.leases.get(&waiter.file))
            .map(|lease| lease.holder)
        {
            if holder == to {
                return true;
            }
            from = holder;
        }
        false
    }
}

impl Waiters {
    fn enter(&mut self, wanted: &Wanted) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let waiter = Waiter {
            file: wanted.file,
            owner: wanted.owner,
            kind: wanted.kind,
            deadline: wanted.deadline,
        };
        self.by_ticket.insert(ticket, waiter);
        self.by_owner.insert(wanted.owner, ticket);
        self.by_deadline.insert((wanted.deadline, ticket));
        ticket
    }

    /// Takes the waiter with the earliest deadline out of that order, if it is `now` or earlier.
    fn first_due(&mut self, now: Duration) -> Option<Ticket> {
        let &(deadline, ticket) = self.by_deadline.first()?;
        if deadline > now {
            return None;
        }
        self.by_deadline.pop_first();
        Some(ticket)
    }

    fn leave(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.by_ticket.remove(&ticket)?;
        self.by_owner.remove(&waiter.owner);
        self.by_deadline.remove(&(waiter.deadline, ticket));
        Some(waiter)
    }

    fn wake(&mut self, ticket: Ticket) -> Option<Wake> {
        self.leave(ticket).map(|waiter| Wake {
            ticket,
            owner: waiter.owner,
            kind: waiter.kind,
        })
    }
}

#[cfg(test)]
mod tests;
