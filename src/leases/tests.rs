//! The lease table: each sentence of its documentation, and random sequences against a naive model.

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
