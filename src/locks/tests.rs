use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const F: FileId = FileId(1);
const G: FileId = FileId(2);
const A: OwnerId = OwnerId(10);
const B: OwnerId = OwnerId(11);
const C: OwnerId = OwnerId(12);

use Mode::{Exclusive, Shared};

fn range(start: u64, end: u64) -> Range {
    Range { start, end }
}

/// Each owner here uses one open file, of the same number.
fn lock(owner: OwnerId, range: Range, mode: Mode) -> Lock {
    Lock {
        owner,
        handle: HandleId(owner.0),
        range,
        mode,
        process: owner.0 as u32,
    }
}

fn fcntl(table: &mut LockTable, owner: OwnerId, range: Range, mode: Mode) -> Outcome {
    table
        .lock(F, Space::Fcntl, lock(owner, range, mode), true)
        .0
}

fn flock(table: &mut LockTable, owner: OwnerId, mode: Mode) -> Outcome {
    table
        .lock(F, Space::Flock, lock(owner, Range::WHOLE, mode), true)
        .0
}

fn ticket(outcome: Outcome) -> Ticket {
    match outcome {
        Outcome::Queued(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn shared_locks_go_together_and_exclusive_ones_alone() {
    for space in [Space::Flock, Space::Fcntl] {
        let mut table = LockTable::new();
        let mut ask = |owner, mode| {
            let wanted = lock(owner, Range::WHOLE, mode);
            table.lock(F, space, wanted, false).0
        };
        assert_eq!(ask(A, Shared), Outcome::Granted);
        assert_eq!(ask(B, Shared), Outcome::Granted);
        assert_eq!(ask(C, Exclusive), Outcome::Refused);
        assert_eq!(table.unlock(F, space, A, Range::WHOLE), []);
        let upgrade = lock(B, Range::WHOLE, Exclusive);
        let (outcome, _) = table.lock(F, space, upgrade, false);
        assert_eq!(outcome, Outcome::Granted);
        let (outcome, _) = table.lock(F, space, lock(A, Range::WHOLE, Shared), false);
        assert_eq!(outcome, Outcome::Refused);
    }
}

#[test]
fn flock_and_fcntl_do_not_see_each_other() {
    let mut table = LockTable::new();
    assert_eq!(flock(&mut table, A, Exclusive), Outcome::Granted);
    let other = fcntl(&mut table, B, Range::WHOLE, Exclusive);
    assert_eq!(other, Outcome::Granted);
    assert_eq!(table.unlock(F, Space::Fcntl, A, Range::WHOLE), []);
    ticket(flock(&mut table, B, Shared));
}

#[test]
fn locks_on_different_files_or_bytes_do_not_conflict() {
    let mut table = LockTable::new();
    let first = fcntl(&mut table, A, range(0, 9), Exclusive);
    let second = fcntl(&mut table, B, range(10, 19), Exclusive);
    assert_eq!((first, second), (Outcome::Granted, Outcome::Granted));
    let elsewhere = lock(B, range(0, 9), Exclusive);
    let (outcome, _) = table.lock(G, Space::Fcntl, elsewhere, false);
    assert_eq!(outcome, Outcome::Granted);
    ticket(fcntl(&mut table, C, range(9, 10), Shared));
}

#[test]
fn a_part_that_is_unlocked_or_changed_splits_a_lock() {
    let mut table = LockTable::new();
    let _ = fcntl(&mut table, A, range(0, 99), Exclusive);
    let _ = fcntl(&mut table, A, range(40, 59), Shared);
    assert_eq!(table.unlock(F, Space::Fcntl, A, range(10, 19)), []);
    let probe = lock(B, Range::WHOLE, Exclusive);
    let parts = table.against(F, Space::Fcntl, &probe);
    let seen: Vec<_> = parts.iter().map(|l| (l.range, l.mode)).collect();
    let expected = [
        (range(0, 9), Exclusive),
        (range(20, 39), Exclusive),
        (range(40, 59), Shared),
        (range(60, 99), Exclusive),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn adjacent_locks_of_a_kind_become_one() {
    let mut table = LockTable::new();
    let _ = fcntl(&mut table, A, range(0, 9), Exclusive);
    let _ = fcntl(&mut table, A, range(20, u64::MAX), Exclusive);
    let _ = fcntl(&mut table, A, range(10, 19), Exclusive);
    let whole = lock(A, Range::WHOLE, Exclusive);
    assert_eq!(table.own(F, A, range(15, 15)), Some(whole));
}

#[test]
fn an_upgrade_that_is_refused_leaves_the_fcntl_lock_and_loses_the_flock_lock() {
    for (space, kept) in [(Space::Fcntl, true), (Space::Flock, false)] {
        let mut table = LockTable::new();
        for owner in [A, B] {
            let _ = table.lock(F, space, lock(owner, Range::WHOLE, Shared), false);
        }
        let upgrade = lock(A, Range::WHOLE, Exclusive);
        assert_eq!(table.lock(F, space, upgrade, false).0, Outcome::Refused);
        let probe = lock(C, Range::WHOLE, Exclusive);
        let holders = table.against(F, space, &probe);
        assert_eq!(holders.iter().any(|l| l.owner == A), kept, "{space:?}");
    }
}

#[test]
fn two_that_upgrade_by_flock_do_not_wait_for_each_other() {
    let mut table = LockTable::new();
    let _ = flock(&mut table, A, Shared);
    let _ = flock(&mut table, B, Shared);
    let first = ticket(flock(&mut table, A, Exclusive));
    // B's shared lock goes first, so nothing stands against its exclusive one.
    assert_eq!(flock(&mut table, B, Exclusive), Outcome::Granted);
    assert_eq!(table.release(HandleId(B.0)), [first]);
}

#[test]
fn exclusive_locks_go_to_those_who_wait_in_the_order_they_came() {
    let mut table = LockTable::new();
    let _ = flock(&mut table, A, Exclusive);
    let first = ticket(flock(&mut table, B, Exclusive));
    let second = ticket(flock(&mut table, C, Exclusive));
    assert_eq!(table.unlock(F, Space::Flock, A, Range::WHOLE), [first]);
    // Whoever comes now comes behind.
    let third = ticket(flock(&mut table, A, Exclusive));
    assert_eq!(table.unlock(F, Space::Flock, B, Range::WHOLE), [second]);
    assert_eq!(table.unlock(F, Space::Flock, C, Range::WHOLE), [third]);
}

#[test]
fn all_who_wait_for_shared_locks_get_theirs_at_once() {
    let mut table = LockTable::new();
    let _ = flock(&mut table, A, Exclusive);
    let first = ticket(flock(&mut table, B, Shared));
    let second = ticket(flock(&mut table, C, Shared));
    assert_eq!(table.release(HandleId(A.0)), [first, second]);
}

#[test]
fn a_second_shared_lock_is_not_kept_waiting_by_one_who_waits_for_an_exclusive_one() {
    let mut table = LockTable::new();
    let _ = flock(&mut table, A, Shared);
    ticket(flock(&mut table, B, Exclusive));
    assert_eq!(flock(&mut table, C, Shared), Outcome::Granted);
}

#[test]
fn a_downgrade_lets_others_in() {
    let mut table = LockTable::new();
    let _ = fcntl(&mut table, A, Range::WHOLE, Exclusive);
    let waiting = ticket(fcntl(&mut table, B, range(5, 6), Shared));
    let downgrade = lock(A, range(0, 9), Shared);
    let (outcome, woken) = table.lock(F, Space::Fcntl, downgrade, false);
    assert_eq!((outcome, woken), (Outcome::Granted, vec![waiting]));
}

#[test]
fn what_was_taken_through_an_open_file_goes_with_it_and_nothing_else() {
    let mut table = LockTable::new();
    let _ = fcntl(&mut table, A, range(0, 9), Exclusive);
    let again = Lock {
        handle: HandleId(99),
        ..lock(A, range(5, 6), Exclusive)
    };
    let _ = table.lock(F, Space::Fcntl, again, false);
    assert_eq!(table.release(HandleId(A.0)), []);
    assert!(!table.knows(HandleId(A.0)) && table.knows(HandleId(99)));
    let left = table.own(F, A, Range::WHOLE).map(|lock| lock.range);
    assert_eq!(left, Some(range(5, 6)));
    assert_eq!(table.release(HandleId(99)), []);
    assert!(table.is_empty());
}

#[test]
fn a_waiter_that_gives_up_is_gone() {
    let mut table = LockTable::new();
    let _ = flock(&mut table, A, Exclusive);
    let gone = ticket(flock(&mut table, B, Exclusive));
    let next = ticket(flock(&mut table, C, Exclusive));
    assert!(table.cancel(gone) && !table.cancel(gone));
    assert_eq!(table.release(HandleId(A.0)), [next]);
    assert_eq!(table.release(HandleId(C.0)), []);
    assert!(table.is_empty() && table.waiters() == 0);
}

#[test]
fn a_circle_of_owners_who_wait_is_found_over_files_and_not_for_flock() {
    let mut table = LockTable::new();
    let mut ask = |file, space, owner| {
        let wanted = lock(owner, Range::WHOLE, Exclusive);
        table.lock(file, space, wanted, true).0
    };
    for (file, owner) in [(F, A), (G, B), (FileId(3), C)] {
        assert_eq!(ask(file, Space::Fcntl, owner), Outcome::Granted);
        assert_eq!(ask(file, Space::Flock, owner), Outcome::Granted);
    }
    let mut wait = |space| {
        let circle = [(G, A), (FileId(3), B), (F, C)];
        circle.map(|(file, owner)| ticket(ask(file, space, owner)))
    };
    let (fcntl, flock) = (wait(Space::Fcntl), wait(Space::Flock));
    assert!(fcntl.iter().all(|ticket| table.is_circle(*ticket)));
    assert!(!flock.iter().any(|ticket| table.is_circle(*ticket)));
    assert!(table.cancel(fcntl[1]));
    assert!(!table.is_circle(fcntl[0]) && !table.is_circle(fcntl[2]));
}

// --- against a naive model: what each owner has, byte by byte ---

const BYTES: u64 = 8;
const OWNERS: u64 = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    Lock(bool, Lock, bool),
    Unlock(bool, OwnerId, Range),
    Release(HandleId),
    Forget(OwnerId, HandleId),
    Cancel(usize),
}

/// How a wrong table might act: the comparison has to find each of these.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    OneSpace,
    UnlocksAll,
    FlockIsKept,
    LastWaiterFirst,
    WaitersStandAgainstNewcomers,
}

type Byte = BTreeMap<OwnerId, (HandleId, Mode)>;

struct Model {
    flaw: Flaw,
    /// By space (flock: true) and byte.
    bytes: BTreeMap<(bool, u64), Byte>,
    waiters: Vec<(u64, bool, Lock)>,
    tickets: u64,
}

impl Model {
    fn new(flaw: Flaw) -> Self {
        Self {
            flaw,
            bytes: BTreeMap::new(),
            waiters: Vec::new(),
            tickets: 0,
        }
    }

    fn space(&self, flock: bool) -> bool {
        flock && self.flaw != Flaw::OneSpace
    }

    fn is_free(&self, flock: bool, lock: &Lock) -> bool {
        let space = self.space(flock);
        (lock.range.start..=lock.range.end).all(|byte| {
            let there = self.bytes.get(&(space, byte));
            there.into_iter().flatten().all(|(owner, (_, mode))| {
                *owner == lock.owner || (*mode == Shared && lock.mode == Shared)
            })
        })
    }

    fn give(&mut self, flock: bool, lock: &Lock) {
        let space = self.space(flock);
        for byte in lock.range.start..=lock.range.end {
            let there = self.bytes.entry((space, byte)).or_default();
            there.insert(lock.owner, (lock.handle, lock.mode));
        }
    }

    fn wake(&mut self) -> Vec<Ticket> {
        let mut woken = Vec::new();
        loop {
            let can = |(_, flock, lock): &(u64, bool, Lock)| self.is_free(*flock, lock);
            let place = match self.flaw {
                Flaw::LastWaiterFirst => self.waiters.iter().rposition(can),
                _ => self.waiters.iter().position(can),
            };
            let Some(place) = place else { return woken };
            let (ticket, flock, lock) = self.waiters.remove(place);
            self.give(flock, &lock);
            woken.push(Ticket(ticket));
        }
    }

    fn lock(&mut self, flock: bool, lock: Lock, wait: bool) -> (Outcome, Vec<Ticket>) {
        let space = self.space(flock);
        if flock {
            let had = self.bytes.get(&(space, 0)).and_then(|b| b.get(&lock.owner));
            if had.is_some_and(|(_, mode)| *mode == lock.mode) {
                return (Outcome::Granted, Vec::new());
            }
            if self.flaw != Flaw::FlockIsKept {
                self.clear(space, |owner, _, _| owner == lock.owner);
            }
        }
        let queue = self.flaw == Flaw::WaitersStandAgainstNewcomers
            && self
                .waiters
                .iter()
                .any(|(_, f, w)| *f == flock && w.conflicts(&lock));
        let outcome = if self.is_free(flock, &lock) && !queue {
            self.give(flock, &lock);
            Outcome::Granted
        } else if wait {
            self.tickets += 1;
            self.waiters.push((self.tickets, flock, lock));
            Outcome::Queued(Ticket(self.tickets))
        } else {
            Outcome::Refused
        };
        (outcome, self.wake())
    }

    fn clear(&mut self, space: bool, which: impl Fn(OwnerId, u64, HandleId) -> bool) {
        for ((of, byte), there) in &mut self.bytes {
            if *of == space {
                there.retain(|owner, (handle, _)| !which(*owner, *byte, *handle));
            }
        }
    }

    fn apply(&mut self, step: Step) -> (Option<Outcome>, Vec<Ticket>) {
        match step {
            Step::Lock(flock, lock, wait) => {
                let (outcome, woken) = self.lock(flock, lock, wait);
                return (Some(outcome), woken);
            }
            Step::Unlock(flock, owner, range) => {
                let all = self.flaw == Flaw::UnlocksAll;
                let inside = |byte| all || (range.start..=range.end).contains(&byte);
                self.clear(self.space(flock), |o, byte, _| o == owner && inside(byte));
            }
            Step::Release(handle) => {
                self.clear(false, |_, _, h| h == handle);
                self.clear(true, |_, _, h| h == handle);
            }
            Step::Forget(owner, handle) => {
                self.clear(false, |o, _, h| o == owner && h == handle);
            }
            Step::Cancel(place) => {
                if !self.waiters.is_empty() {
                    self.waiters.remove(place % self.waiters.len());
                }
                return (None, Vec::new());
            }
        }
        (None, self.wake())
    }
}

fn space_of(flock: bool) -> Space {
    match flock {
        true => Space::Flock,
        false => Space::Fcntl,
    }
}

fn apply(table: &mut LockTable, step: Step) -> (Option<Outcome>, Vec<Ticket>) {
    match step {
        Step::Lock(flock, lock, wait) => {
            let (outcome, woken) = table.lock(F, space_of(flock), lock, wait);
            (Some(outcome), woken)
        }
        Step::Unlock(flock, owner, range) => (None, table.unlock(F, space_of(flock), owner, range)),
        Step::Release(handle) => (None, table.release(handle)),
        Step::Forget(owner, handle) => (None, table.forget(F, owner, handle)),
        Step::Cancel(place) => {
            let locks = table.files.get(&F);
            let waiters =
                locks.map_or(Vec::new(), |l| l.waiters.iter().map(|w| w.ticket).collect());
            if !waiters.is_empty() {
                assert!(table.cancel(waiters[place % waiters.len()]));
            }
            (None, Vec::new())
        }
    }
}

/// What each owner has of a byte, as the table tells; checks that its lists are as they should be.
fn bytes_of(table: &LockTable) -> BTreeMap<(bool, u64), Byte> {
    let mut bytes: BTreeMap<(bool, u64), Byte> = BTreeMap::new();
    let Some(file) = table.files.get(&F) else {
        return bytes;
    };
    for (flock, held) in [(true, &file.flock), (false, &file.fcntl)] {
        for (place, lock) in held.0.iter().enumerate() {
            let next = held
                .0
                .get(place + 1)
                .filter(|next| next.owner == lock.owner);
            assert!(next.is_none_or(|next| next.range.start > lock.range.end));
            let later = held
                .0
                .iter()
                .skip(place + 1)
                .skip_while(|l| l.owner == lock.owner);
            assert!(later.into_iter().all(|other| other.owner != lock.owner));
            for byte in lock.range.start..=lock.range.end {
                let there = bytes.entry((flock, byte)).or_default();
                there.insert(lock.owner, (lock.handle, lock.mode));
            }
        }
    }
    bytes
}

/// What a table and a model say differently, if anything.
fn difference(steps: &[Step], flaw: Flaw) -> Option<String> {
    let (mut table, mut model) = (LockTable::new(), Model::new(flaw));
    for step in steps {
        let (is, should) = (apply(&mut table, *step), model.apply(*step));
        if is != should {
            return Some(format!("{step:?}: {is:?}, not {should:?}"));
        }
        model.bytes.retain(|_, there| !there.is_empty());
        let is = bytes_of(&table);
        if is != model.bytes {
            return Some(format!("{step:?}: {is:?}, not {:?}", model.bytes));
        }
        for owner in (0..OWNERS).map(OwnerId) {
            for (mode, flock) in [(Shared, false), (Exclusive, false), (Exclusive, true)] {
                let probe = Lock {
                    handle: HandleId(0),
                    ..lock(owner, range(2, 5), mode)
                };
                let against = table.against(F, space_of(flock), &probe);
                if against.is_empty() != model.is_free(flock, &probe) {
                    return Some(format!("{step:?}: asked for {probe:?}: {against:?}"));
                }
            }
        }
    }
    let waiting = model.waiters.len();
    (table.waiters() != waiting).then(|| format!("{} wait, not {waiting}", table.waiters()))
}

fn step() -> impl Strategy<Value = Step> {
    let owner = (0..OWNERS).prop_map(OwnerId);
    let range = (0..BYTES, 0..BYTES).prop_map(|(a, b)| range(a.min(b), a.max(b)));
    let mode = prop_oneof![Just(Shared), Just(Exclusive)];
    // An owner of the fcntl space may use two open files.
    let handle = (owner.clone(), any::<bool>());
    let wanted = (any::<bool>(), handle, range.clone(), mode, any::<bool>());
    prop_oneof![
        6 => wanted.prop_map(|(flock, (owner, second), range, mode, wait)| {
            let number = owner.0 + OWNERS * u64::from(second && !flock);
            let range = match flock {
                true => Range { start: 0, end: BYTES },
                false => range,
            };
            Step::Lock(flock, Lock { handle: HandleId(number), ..lock(owner, range, mode) }, wait)
        }),
        3 => (any::<bool>(), owner.clone(), range).prop_map(|(flock, owner, range)| match flock {
            true => Step::Unlock(true, owner, Range::WHOLE),
            false => Step::Unlock(false, owner, range),
        }),
        1 => (0..2 * OWNERS).prop_map(|handle| Step::Release(HandleId(handle))),
        1 => (owner, 0..2 * OWNERS).prop_map(|(o, handle)| Step::Forget(o, HandleId(handle))),
        1 => any::<usize>().prop_map(Step::Cancel),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_calls_does_what_a_list_of_bytes_would_do(steps in steps()) {
        prop_assert_eq!(difference(&steps, Flaw::None), None);
    }
}

#[test]
fn a_table_with_a_flaw_would_be_found() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    for flaw in [
        Flaw::OneSpace,
        Flaw::UnlocksAll,
        Flaw::FlockIsKept,
        Flaw::LastWaiterFirst,
        Flaw::WaitersStandAgainstNewcomers,
    ] {
        let mut runner = TestRunner::deterministic();
        let found = (0..500).any(|_| {
            let tree = steps().new_tree(&mut runner).expect("a sequence");
            difference(&tree.current(), flaw).is_some()
        });
        assert!(found, "{flaw:?}");
    }
}
