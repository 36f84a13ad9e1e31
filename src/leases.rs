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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestCaseError, TestError, TestRng, TestRunner};

    const F: FileId = FileId(1);
    const G: FileId = FileId(2);
    const H: FileId = FileId(3);
    const A: OwnerId = OwnerId(10);
    const B: OwnerId = OwnerId(11);
    const C: OwnerId = OwnerId(12);
    const D: OwnerId = OwnerId(13);

    fn wanted(file: FileId, owner: OwnerId, kind: Kind) -> Wanted {
        Wanted {
            file,
            owner,
            kind,
            deadline: Duration::from_secs(10),
            nonblocking: false,
        }
    }

    fn write(table: &mut LeaseTable, file: FileId, owner: OwnerId) -> Acquire {
        table.acquire(wanted(file, owner, Kind::Writer))
    }

    fn read(table: &mut LeaseTable, file: FileId, owner: OwnerId) -> Acquire {
        table.acquire(wanted(file, owner, Kind::Reader))
    }

    #[track_caller]
    fn ticket(answer: Acquire) -> Ticket {
        match answer {
            Acquire::Queued(ticket) => ticket,
            other => panic!("expected to be queued, got {other:?}"),
        }
    }

    fn owners(wakes: &[Wake]) -> Vec<OwnerId> {
        wakes.iter().map(|wake| wake.owner).collect()
    }

    #[test]
    fn a_writer_of_a_free_file_holds_it_until_it_is_released() {
        let mut table = LeaseTable::new();
        assert_eq!(write(&mut table, F, A), Acquire::Granted);
        assert_eq!(table.holder(F), Some(A));
        assert!(!table.is_idle());
        assert!(table.release(F).is_empty());
        assert_eq!(table.holder(F), None);
        assert!(table.is_idle());
    }

    #[test]
    fn a_reader_of_a_free_file_goes_on_and_holds_nothing() {
        let mut table = LeaseTable::new();
        assert_eq!(read(&mut table, F, A), Acquire::Granted);
        assert_eq!(table.holder(F), None);
        assert!(table.is_idle());
    }

    #[test]
    fn the_holder_joins_itself_as_writer_and_as_reader() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        assert_eq!(write(&mut table, F, A), Acquire::Joined);
        assert_eq!(read(&mut table, F, A), Acquire::Joined);
        let joining = Wanted {
            nonblocking: true,
            ..wanted(F, A, Kind::Writer)
        };
        assert_eq!(table.acquire(joining), Acquire::Joined);
        assert_eq!(table.waiting(F), 0);
    }

    #[test]
    fn leases_of_different_files_have_nothing_to_do_with_each_other() {
        let mut table = LeaseTable::new();
        assert_eq!(write(&mut table, F, A), Acquire::Granted);
        assert_eq!(write(&mut table, G, B), Acquire::Granted);
        assert!(table.release(F).is_empty());
        assert_eq!(table.holder(G), Some(B));
    }

    #[test]
    fn a_second_owner_queues_whether_it_wants_to_write_or_to_read() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        ticket(write(&mut table, F, B));
        ticket(read(&mut table, F, C));
        assert_eq!(table.waiting(F), 2);
        assert_eq!(table.holder(F), Some(A));
    }

    #[test]
    fn one_that_does_not_want_to_wait_is_told_so_and_leaves_no_trace() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        for kind in [Kind::Writer, Kind::Reader] {
            let impatient = Wanted {
                nonblocking: true,
                ..wanted(F, B, kind)
            };
            assert_eq!(table.acquire(impatient), Acquire::WouldBlock);
        }
        assert_eq!(table.waiting(F), 0);
        assert_eq!(table.next_deadline(), None);
    }

    #[test]
    fn writers_get_the_lease_one_by_one_in_order_of_arrival() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let b = ticket(write(&mut table, F, B));
        let c = ticket(write(&mut table, F, C));
        let wake = |ticket, owner| Wake {
            ticket,
            owner,
            kind: Kind::Writer,
        };
        assert_eq!(table.release(F), [wake(b, B)]);
        assert_eq!(table.holder(F), Some(B));
        assert_eq!(table.waiting(F), 1);
        assert_eq!(table.release(F), [wake(c, C)]);
        assert_eq!(table.holder(F), Some(C));
        assert!(table.release(F).is_empty());
        assert!(table.is_idle());
    }

    #[test]
    fn readers_all_leave_at_the_end_of_the_lease_they_met_before_the_next_writer() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        ticket(write(&mut table, F, B));
        ticket(read(&mut table, F, D));
        ticket(read(&mut table, F, C));
        let wakes = table.release(F);
        assert_eq!(owners(&wakes), [D, C, B]);
        assert_eq!(wakes[2].kind, Kind::Writer);
        assert_eq!(table.holder(F), Some(B));
        assert_eq!(table.waiting(F), 0);
    }

    #[test]
    fn a_file_with_waiting_readers_only_is_free_after_its_release() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        ticket(read(&mut table, F, B));
        assert_eq!(owners(&table.release(F)), [B]);
        assert_eq!(table.holder(F), None);
        assert!(table.is_idle());
    }

    #[test]
    fn to_release_or_abandon_a_file_without_a_lease_wakes_nobody() {
        let mut table = LeaseTable::new();
        assert!(table.release(F).is_empty());
        assert!(table.abandon(F).is_empty());
        assert!(table.is_idle());
    }

    #[test]
    fn everyone_leaves_an_abandoned_file_in_order_of_arrival_and_nobody_gets_it() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        ticket(write(&mut table, F, B));
        ticket(read(&mut table, F, C));
        ticket(write(&mut table, F, D));
        assert_eq!(owners(&table.abandon(F)), [B, C, D]);
        assert_eq!(table.holder(F), None);
        assert!(table.is_idle());
    }

    #[test]
    fn a_wait_for_one_who_waits_for_me_is_refused_and_the_other_goes_on() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let _ = write(&mut table, G, B);
        ticket(write(&mut table, G, A));
        assert_eq!(write(&mut table, F, B), Acquire::Deadlock);
        assert_eq!(table.waiting(F), 0);
        assert_eq!(owners(&table.release(G)), [A]);
        assert_eq!(table.holder(G), Some(A));
    }

    #[test]
    fn a_cycle_through_a_third_owner_is_refused_too() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let _ = write(&mut table, G, B);
        let _ = write(&mut table, H, C);
        ticket(write(&mut table, G, A));
        ticket(write(&mut table, H, B));
        assert_eq!(write(&mut table, F, C), Acquire::Deadlock);
    }

    #[test]
    fn a_reader_s_wait_closes_a_cycle_like_a_writer_s() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let _ = write(&mut table, G, B);
        ticket(read(&mut table, G, A));
        assert_eq!(write(&mut table, F, B), Acquire::Deadlock);
        assert_eq!(read(&mut table, F, B), Acquire::Deadlock);
    }

    #[test]
    fn one_that_does_not_want_to_wait_is_never_told_of_a_deadlock() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let _ = write(&mut table, G, B);
        ticket(write(&mut table, G, A));
        let impatient = Wanted {
            nonblocking: true,
            ..wanted(F, B, Kind::Writer)
        };
        assert_eq!(table.acquire(impatient), Acquire::WouldBlock);
    }

    #[test]
    fn a_chain_of_waits_without_a_cycle_is_no_deadlock() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let _ = write(&mut table, G, B);
        ticket(write(&mut table, F, B));
        ticket(write(&mut table, G, C));
        assert_eq!(owners(&table.release(F)), [B]);
        assert_eq!(owners(&table.release(G)), [C]);
    }

    #[test]
    fn a_wait_that_was_given_up_closes_no_cycle() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let _ = write(&mut table, G, B);
        let a = ticket(write(&mut table, G, A));
        assert!(table.cancel(a));
        ticket(write(&mut table, F, B));
    }

    #[test]
    fn a_waiter_is_cancelled_once_and_its_place_in_the_queue_is_gone() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let b = ticket(write(&mut table, F, B));
        ticket(write(&mut table, F, C));
        assert!(table.cancel(b));
        assert!(!table.cancel(b));
        assert_eq!(table.waiting(F), 1);
        assert_eq!(owners(&table.release(F)), [C]);
    }

    #[test]
    fn a_waiter_that_was_woken_can_not_be_cancelled() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let b = ticket(write(&mut table, F, B));
        assert_eq!(owners(&table.release(F)), [B]);
        assert!(!table.cancel(b));
        assert_eq!(table.holder(F), Some(B));
    }

    #[test]
    fn waiters_expire_at_their_deadline_in_its_order_and_then_in_order_of_arrival() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let mut wait = |owner, kind, seconds| {
            ticket(table.acquire(Wanted {
                deadline: Duration::from_secs(seconds),
                ..wanted(F, owner, kind)
            }))
        };
        let late = wait(B, Kind::Writer, 3);
        let early = wait(C, Kind::Reader, 1);
        let as_early = wait(D, Kind::Writer, 1);
        assert_eq!(table.next_deadline(), Some(Duration::from_secs(1)));
        assert!(table.expire(Duration::from_millis(999)).is_empty());
        assert_eq!(table.expire(Duration::from_secs(1)), [early, as_early]);
        assert_eq!(table.next_deadline(), Some(Duration::from_secs(3)));
        assert_eq!(table.expire(Duration::from_secs(60)), [late]);
        assert_eq!(table.next_deadline(), None);
        assert_eq!(table.waiting(F), 0);
        assert_eq!(table.holder(F), Some(A));
    }

    #[test]
    fn a_waiter_that_was_woken_does_not_expire() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        ticket(write(&mut table, F, B));
        assert_eq!(owners(&table.release(F)), [B]);
        assert_eq!(table.next_deadline(), None);
        assert!(table.expire(Duration::MAX).is_empty());
    }

    #[test]
    fn tickets_are_never_given_twice_and_count_up() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let first = ticket(write(&mut table, F, B));
        assert!(table.cancel(first));
        let second = ticket(write(&mut table, F, B));
        assert!(second > first);
        assert!(!table.cancel(first));
        assert_eq!(table.waiting(F), 1);
    }

    #[test]
    fn an_owner_that_asks_again_has_given_up_its_earlier_wait() {
        let mut table = LeaseTable::new();
        let _ = write(&mut table, F, A);
        let _ = write(&mut table, G, A);
        let stale = ticket(write(&mut table, F, B));
        ticket(write(&mut table, F, C));
        let fresh = ticket(write(&mut table, F, B));
        assert!(!table.cancel(stale));
        assert_eq!(table.waiting(F), 2);
        ticket(read(&mut table, G, B));
        assert!(!table.cancel(fresh));
        assert_eq!(table.waiting(F), 1);
        assert_eq!(owners(&table.release(F)), [C]);
        assert_eq!(owners(&table.release(G)), [B]);
        assert_eq!(table.next_deadline(), None);
    }

    #[test]
    fn ten_thousand_waiters_of_one_file_can_leave_in_any_way_in_no_time() {
        const WAITERS: u64 = 10_000;
        let start = std::time::Instant::now();
        for way in 0..4 {
            let mut table = LeaseTable::new();
            let _ = write(&mut table, F, A);
            let tickets: Vec<_> = (0..WAITERS)
                .map(|n| ticket(write(&mut table, F, OwnerId(1000 + n))))
                .collect();
            match way {
                0 => tickets.iter().for_each(|&t| assert!(table.cancel(t))),
                1 => tickets.iter().rev().for_each(|&t| assert!(table.cancel(t))),
                2 => assert_eq!(table.expire(Duration::MAX), tickets),
                _ => tickets
                    .iter()
                    .for_each(|&t| assert_eq!(table.release(F)[0].ticket, t)),
            }
            assert_eq!(table.waiting(F), 0);
            let _ = table.release(F);
            assert!(table.is_idle());
        }
        // Forty thousand departures take a quarter of a second unoptimised. A quadratic table
        // needs hundreds of millions of steps, so the margin for a busy machine can be wide.
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    // The table against a model of it that is too simple to be wrong: two lists, searched from
    // end to end.

    #[derive(Clone, Debug)]
    enum Step {
        Acquire(Wanted),
        Release(FileId),
        Abandon(FileId),
        /// Cancels one of the tickets ever given, chosen by this number modulo theirs.
        Cancel(usize),
        Expire(Duration),
    }

    /// What can be wrong with a model, to see that the comparison would notice.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Flaw {
        LastComeFirstServed,
        ReadersDelayTheNextWriter,
        ReadersAreLeftWaiting,
        ReadersCloseNoCycles,
        OnlyShortCyclesAreSeen,
        EveryLongWaitIsADeadlock,
        NobodyInherits,
        AbandonedFilesAreInherited,
        CancelledWaitersStay,
        ExpiryIsInOrderOfArrival,
        DeadlinesAreExclusive,
        StaleWaitersStay,
    }

    #[derive(Default)]
    struct Model {
        flaw: Option<Flaw>,
        leases: Vec<(FileId, OwnerId)>,
        /// In order of arrival, each with its number in that order.
        line: Vec<(usize, Wanted)>,
        arrivals: usize,
    }

    #[derive(Debug, PartialEq)]
    enum Outcome {
        Granted,
        Joined,
        Queued(usize),
        WouldBlock,
        Deadlock,
        Woken(Vec<(usize, OwnerId, Kind)>),
        Cancelled(bool),
        Expired(Vec<usize>),
    }

    impl Model {
        fn has(&self, flaw: Flaw) -> bool {
            self.flaw == Some(flaw)
        }

        fn holder(&self, file: FileId) -> Option<OwnerId> {
            let lease = self.leases.iter().find(|lease| lease.0 == file)?;
            Some(lease.1)
        }

        fn take(&mut self, leaves: impl Fn(&Wanted) -> bool) -> Vec<(usize, Wanted)> {
            let line = std::mem::take(&mut self.line);
            let (left, stay) = line.into_iter().partition(|waiter| leaves(&waiter.1));
            self.line = stay;
            left
        }

        /// A search of the whole graph of who waits for whom, that assumes nothing of its shape.
        fn would_deadlock(&self, wanted: &Wanted) -> bool {
            let mut waits: Vec<&Wanted> = self.line.iter().map(|(_, waiter)| waiter).collect();
            if self.has(Flaw::ReadersCloseNoCycles) {
                waits.retain(|waiter| waiter.kind == Kind::Writer);
            }
            let mut reached: Vec<OwnerId> = self.holder(wanted.file).into_iter().collect();
            let mut done = 0;
            while done < reached.len() {
                for wait in &waits {
                    let next = self.holder(wait.file);
                    if wait.owner == reached[done] {
                        reached.extend(next.filter(|next| !reached.contains(next)));
                    }
                }
                done += 1;
                if self.has(Flaw::OnlyShortCyclesAreSeen) {
                    break;
                }
            }
            reached.contains(&wanted.owner)
                || (self.has(Flaw::EveryLongWaitIsADeadlock) && reached.len() > 2)
        }

        fn acquire(&mut self, wanted: Wanted) -> Outcome {
            if !self.has(Flaw::StaleWaitersStay) {
                self.take(|waiter| waiter.owner == wanted.owner);
            }
            match self.holder(wanted.file) {
                None => {
                    if wanted.kind == Kind::Writer {
                        self.leases.push((wanted.file, wanted.owner));
                    }
                    Outcome::Granted
                }
                Some(holder) if holder == wanted.owner => Outcome::Joined,
                Some(_) if wanted.nonblocking => Outcome::WouldBlock,
                Some(_) if self.would_deadlock(&wanted) => Outcome::Deadlock,
                Some(_) => {
                    self.line.push((self.arrivals, wanted));
                    self.arrivals += 1;
                    Outcome::Queued(self.arrivals - 1)
                }
            }
        }

        fn release(&mut self, file: FileId) -> Outcome {
            self.leases.retain(|lease| lease.0 != file);
            let mut woken = Vec::new();
            if !self.has(Flaw::ReadersAreLeftWaiting) {
                woken = self.take(|w| w.file == file && w.kind == Kind::Reader);
            }
            let mut writers = self
                .line
                .iter()
                .filter(|(_, w)| w.file == file && w.kind == Kind::Writer);
            let heir = match self.flaw {
                Some(Flaw::LastComeFirstServed) => writers.next_back(),
                Some(Flaw::ReadersDelayTheNextWriter) if !woken.is_empty() => None,
                _ => writers.next(),
            };
            if let Some(&heir) = heir {
                self.line.retain(|waiter| waiter.0 != heir.0);
                if !self.has(Flaw::NobodyInherits) {
                    self.leases.push((file, heir.1.owner));
                }
                woken.push(heir);
            }
            Self::woken(&woken)
        }

        fn abandon(&mut self, file: FileId) -> Outcome {
            if self.has(Flaw::AbandonedFilesAreInherited) {
                return self.release(file);
            }
            self.leases.retain(|lease| lease.0 != file);
            Self::woken(&self.take(|waiter| waiter.file == file))
        }

        fn woken(waiters: &[(usize, Wanted)]) -> Outcome {
            Outcome::Woken(waiters.iter().map(|(n, w)| (*n, w.owner, w.kind)).collect())
        }

        fn cancel(&mut self, number: usize) -> Outcome {
            let before = self.line.len();
            let waits = self.line.iter().any(|waiter| waiter.0 == number);
            if !self.has(Flaw::CancelledWaitersStay) {
                self.line.retain(|waiter| waiter.0 != number);
                assert_eq!(waits, self.line.len() < before);
            }
            Outcome::Cancelled(waits)
        }

        fn expire(&mut self, now: Duration) -> Outcome {
            let exclusive = self.has(Flaw::DeadlinesAreExclusive);
            let mut expired = self.take(|w| w.deadline < now || (!exclusive && w.deadline == now));
            if !self.has(Flaw::ExpiryIsInOrderOfArrival) {
                // Stable, so equal deadlines stay in order of arrival.
                expired.sort_by_key(|waiter| waiter.1.deadline);
            }
            Outcome::Expired(expired.iter().map(|waiter| waiter.0).collect())
        }
    }

    /// The table, with its tickets translated to numbers in order of arrival.
    #[derive(Default)]
    struct Subject {
        table: LeaseTable,
        tickets: Vec<Ticket>,
    }

    impl Subject {
        fn number(&self, ticket: Ticket) -> Result<usize, String> {
            let place = self.tickets.iter().position(|&given| given == ticket);
            place.ok_or_else(|| format!("{ticket:?} was never given"))
        }

        fn woken(&self, wakes: &[Wake]) -> Result<Outcome, String> {
            let woken: Result<_, String> = wakes
                .iter()
                .map(|wake| Ok((self.number(wake.ticket)?, wake.owner, wake.kind)))
                .collect();
            Ok(Outcome::Woken(woken?))
        }

        fn step(&mut self, step: &Step) -> Result<Outcome, String> {
            Ok(match *step {
                Step::Acquire(wanted) => match self.table.acquire(wanted) {
                    Acquire::Granted => Outcome::Granted,
                    Acquire::Joined => Outcome::Joined,
                    Acquire::WouldBlock => Outcome::WouldBlock,
                    Acquire::Deadlock => Outcome::Deadlock,
                    Acquire::Queued(ticket) => {
                        if self.tickets.contains(&ticket) {
                            return Err(format!("{ticket:?} was given twice"));
                        }
                        self.tickets.push(ticket);
                        Outcome::Queued(self.tickets.len() - 1)
                    }
                },
                Step::Release(file) => {
                    let wakes = self.table.release(file);
                    self.woken(&wakes)?
                }
                Step::Abandon(file) => {
                    let wakes = self.table.abandon(file);
                    self.woken(&wakes)?
                }
                Step::Cancel(n) => match self.tickets.len() {
                    0 => Outcome::Cancelled(false),
                    given => Outcome::Cancelled(self.table.cancel(self.tickets[n % given])),
                },
                Step::Expire(now) => {
                    let expired: Result<_, String> = self
                        .table
                        .expire(now)
                        .into_iter()
                        .map(|ticket| self.number(ticket))
                        .collect();
                    Outcome::Expired(expired?)
                }
            })
        }
    }

    const FILES: u64 = 4;
    const OWNERS: u64 = 6;

    /// Takes the table and a model through the same steps, and compares what they answer and
    /// what can be seen of them after each. In the end everything is let go.
    fn compare(steps: &[Step], flaw: Option<Flaw>) -> Result<(), String> {
        let mut subject = Subject::default();
        let mut model = Model {
            flaw,
            ..Model::default()
        };
        let everything = (0..FILES).map(|file| Step::Abandon(FileId(file)));
        for step in steps.iter().cloned().chain(everything) {
            let given = subject.tickets.len();
            let expected = match step {
                Step::Acquire(wanted) => model.acquire(wanted),
                Step::Release(file) => model.release(file),
                Step::Abandon(file) => model.abandon(file),
                Step::Cancel(_) if given == 0 => Outcome::Cancelled(false),
                Step::Cancel(n) => model.cancel(n % given),
                Step::Expire(now) => model.expire(now),
            };
            let actual = subject.step(&step)?;
            if actual != expected {
                return Err(format!("{step:?}: {actual:?}, expected {expected:?}"));
            }
            let table = &subject.table;
            for file in (0..FILES).map(FileId) {
                let waiting = model.line.iter().filter(|(_, w)| w.file == file).count();
                if (table.holder(file), table.waiting(file)) != (model.holder(file), waiting) {
                    return Err(format!("after {step:?}: {table:?}"));
                }
            }
            let deadline = model.line.iter().map(|(_, w)| w.deadline).min();
            let idle = model.leases.is_empty() && model.line.is_empty();
            if (table.next_deadline(), table.is_idle()) != (deadline, idle) {
                return Err(format!("after {step:?}: {table:?}"));
            }
        }
        match subject.table.is_idle() {
            true => Ok(()),
            false => Err(format!("left over: {:?}", subject.table)),
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let file = (0..FILES).prop_map(FileId);
        let time = (0..20u64).prop_map(Duration::from_secs);
        let kind = prop_oneof![2 => Just(Kind::Writer), 1 => Just(Kind::Reader)];
        let wanted = (
            file.clone(),
            (0..OWNERS).prop_map(OwnerId),
            kind,
            time.clone(),
            proptest::bool::weighted(0.1),
        )
            .prop_map(|(file, owner, kind, deadline, nonblocking)| Wanted {
                file,
                owner,
                kind,
                deadline,
                nonblocking,
            });
        let step = prop_oneof![
            12 => wanted.prop_map(Step::Acquire),
            4 => file.clone().prop_map(Step::Release),
            1 => file.prop_map(Step::Abandon),
            1 => any::<usize>().prop_map(Step::Cancel),
            1 => time.prop_map(Step::Expire),
        ];
        proptest::collection::vec(step, 0..80)
    }

    fn config() -> Config {
        Config {
            cases: 1000,
            failure_persistence: None,
            ..Config::default()
        }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn the_table_does_what_a_naive_model_does(steps in steps()) {
            compare(&steps, None).map_err(TestCaseError::fail)?;
        }
    }

    #[test]
    fn the_comparison_with_the_model_notices_every_flaw() {
        for flaw in [
            Flaw::LastComeFirstServed,
            Flaw::ReadersDelayTheNextWriter,
            Flaw::ReadersAreLeftWaiting,
            Flaw::ReadersCloseNoCycles,
            Flaw::OnlyShortCyclesAreSeen,
            Flaw::EveryLongWaitIsADeadlock,
            Flaw::NobodyInherits,
            Flaw::AbandonedFilesAreInherited,
            Flaw::CancelledWaitersStay,
            Flaw::ExpiryIsInOrderOfArrival,
            Flaw::DeadlinesAreExclusive,
            Flaw::StaleWaitersStay,
        ] {
            let config = Config {
                max_shrink_iters: 0,
                ..config()
            };
            let rng = TestRng::deterministic_rng(config.rng_algorithm);
            let result = TestRunner::new_with_rng(config, rng).run(&steps(), |steps| {
                compare(&steps, Some(flaw)).map_err(TestCaseError::fail)
            });
            assert!(matches!(result, Err(TestError::Fail(..))), "{flaw:?}");
        }
    }
}
