//! A system and the reference, step by step.

use crate::common::reliability::Row;
use crate::op::{Machine, Op};
use crate::reference::{Ended, Flaw, Reference, Slot, Step};
use proptest::test_runner::{Config, TestError, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a descriptor reads, if it may, and the size it tells.
pub type Shown = (Option<Vec<u8>>, u64);

/// What is compared with the reference.
pub trait System: Sized {
    /// One with these files.
    fn new(files: &BTreeMap<&'static str, Vec<u8>>) -> Self;
    /// Does a step; how it ended, or `None` if it waits.
    fn act(&mut self, op: &Op, step: &Step) -> Option<Ended>;
    /// How a wait has ended, that must end now.
    fn ended(&mut self, owner: usize, slot: Slot) -> Ended;
    /// Does an owner wait (still)?
    fn waits(&mut self, owner: usize) -> bool;
    /// All descriptors of an owner that does not wait.
    fn descriptors(&mut self, owner: usize) -> BTreeMap<Slot, Shown>;
    /// Size and number of links of every name, as an owner that does not wait sees them, or a stranger.
    fn names(&mut self, who: Option<usize>) -> BTreeMap<String, (u64, u64)>;
    /// What BACKING holds.
    fn behind(&mut self) -> BTreeMap<String, Vec<u8>>;
    /// Nothing is open any more: is anything left over?
    fn end(self);
}

/// The comparison, as proptest knows it.
pub struct Compared<S>(PhantomData<S>);

static STEPS: AtomicU64 = AtomicU64::new(0);

fn owned<T>(names: BTreeMap<&'static str, T>) -> BTreeMap<String, T> {
    let names = names.into_iter();
    names.map(|(name, of)| (name.to_owned(), of)).collect()
}

fn step<S: System>(system: &mut S, reference: &Reference, op: &Op) {
    STEPS.fetch_add(1, Ordering::Relaxed);
    let step = &reference.step;
    assert_eq!(system.act(op, step), step.ended, "how it ended: {op:?}");
    for (owner, slot, ended) in &step.others {
        let got = system.ended(*owner, *slot);
        assert_eq!(got, *ended, "how the wait of {owner} ended: {op:?}");
    }
}

fn look<S: System>(system: &mut S, reference: &Reference) {
    for owner in 0..crate::op::OWNERS {
        let waits = system.waits(owner);
        assert_eq!(waits, reference.waits(owner), "does {owner} wait?");
        if !waits {
            let shown = system.descriptors(owner);
            assert_eq!(shown, reference.descriptors(owner), "what {owner} reads");
            let names = system.names(Some(owner));
            let expected = owned(reference.names(Some(owner)));
            assert_eq!(names, expected, "size and links that {owner} sees");
        }
    }
    let expected = owned(reference.names(None));
    assert_eq!(system.names(None), expected, "size and links for others");
    assert_eq!(system.behind(), owned(reference.behind()), "BACKING");
}

impl<S: System> StateMachineTest for Compared<S> {
    type SystemUnderTest = S;
    type Reference = Machine;

    fn init_test(reference: &Reference) -> S {
        S::new(&reference.behind())
    }

    fn apply(mut system: S, reference: &Reference, op: Op) -> S {
        step(&mut system, reference, &op);
        look(&mut system, reference);
        system
    }

    fn teardown(mut system: S, mut reference: Reference) {
        for op in reference.last_ops() {
            reference = reference.apply(&op);
            step(&mut system, &reference, &op);
        }
        look(&mut system, &reference);
        system.end();
    }
}

/// How many sequences are tried if nobody says more, and how long they are.
pub struct Size {
    pub cases: u32,
    pub steps: usize,
    pub shrink: u32,
}

fn run<S: System>(
    size: &Size,
    config: Config,
    flaw: Option<Flaw>,
) -> Result<(), TestError<String>> {
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = match flaw {
        Some(_) => TestRunner::new_with_rng(config.clone(), rng),
        None => TestRunner::new(config.clone()),
    };
    let sequences = Machine::sequential_strategy(1..size.steps);
    let failed = Mutex::new(String::new());
    let tried = runner.run(&sequences, |(mut reference, ops, seen)| {
        let (files, sequence) = (reference.behind(), ops.clone());
        let _attempt = Attempt(&failed, &files, &sequence);
        reference.flaw = flaw;
        // Only those that were seen are shrunk, which is of no use where nothing is.
        let seen = seen.filter(|_| flaw.is_none());
        Compared::<S>::test_sequential(config.clone(), reference, ops, seen);
        Ok(())
    });
    tried.map_err(|error| match error {
        TestError::Abort(reason) => TestError::Abort(reason),
        TestError::Fail(reason, _) => TestError::Fail(reason, failed.into_inner().expect("text")),
    })
}

/// Notes a sequence if it fails. (That which proptest returns is not always the last that did.)
struct Attempt<'a>(
    &'a Mutex<String>,
    &'a BTreeMap<&'static str, Vec<u8>>,
    &'a [Op],
);

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ops = self.2.iter().map(|op| format!("    {op:?},\n"));
            *self.0.lock().expect("text") = format!("{:?}\n{}", self.1, ops.collect::<String>());
        }
    }
}

fn config(size: &Size) -> Config {
    let times = std::env::var("LATCHFS_TIMES").ok();
    Config {
        cases: size.cases * times.map_or(1, |n| n.parse::<u32>().expect("a number")),
        failure_persistence: None,
        max_shrink_iters: size.shrink,
        ..Config::default()
    }
}

/// Compares random sequences, and reports how many.
pub fn explore<S: System>(what: &str, command: &str, size: &Size) {
    let config = config(size);
    let cases = u64::from(config.cases);
    let before = STEPS.load(Ordering::Relaxed);
    let outcome = run::<S>(size, config, None);
    let steps = STEPS.load(Ordering::Relaxed) - before;
    Row {
        fault: &format!(
            "{what}: opens, writes, closes, renames, kills of four programs, against a model"
        ),
        injected: &format!("{steps} steps in random sequences, everything compared after each"),
        cases,
        violations: outcome.is_err().into(),
        command,
    }
    .report();
    if let Err(TestError::Fail(reason, sequence)) = outcome {
        panic!("{reason}\nshrunk to, beginning with {sequence}");
    }
    outcome.expect("it ran");
}

/// Is it noticed if the reference is wrong?
pub fn notices<S: System>(flaw: Flaw, size: &Size) -> bool {
    let config = Config {
        max_shrink_iters: 0,
        ..config(size)
    };
    matches!(run::<S>(size, config, Some(flaw)), Err(TestError::Fail(..)))
}

/// One sequence, that once went wrong.
pub fn replay<S: System>(files: &BTreeMap<&'static str, Vec<u8>>, ops: &[Op]) {
    let mut reference = Reference::new(files);
    for op in ops {
        assert!(Machine::preconditions(&reference, op), "{op:?}");
        reference = reference.apply(op);
    }
    let reference = Reference::new(files);
    Compared::<S>::test_sequential(Config::default(), reference, ops.to_vec(), None);
}
