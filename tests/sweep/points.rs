//! Every point, one after another.

use crate::common::syscalls::{Call, Decision};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// Where a process is to be killed.
#[derive(Clone, Debug, Default)]
pub enum Target {
    /// Nowhere.
    #[default]
    Never,
    /// At the point of this name.
    At(String),
    /// At the point of this number, from 0.
    Number(usize),
}

/// The points that a process comes by, in their order: calls that touch BACKING, and answers to the
/// kernel.
#[derive(Clone, Default)]
pub struct Watch(Arc<Mutex<Notes>>);

#[derive(Default)]
struct Notes {
    target: Target,
    seen: Vec<String>,
    counts: HashMap<String, usize>,
    hit: bool,
}

/// What a process came by, and whether it was killed where it should be.
pub struct Run {
    pub seen: Vec<String>,
    pub hit: bool,
}

impl Watch {
    pub fn new(target: Target) -> Self {
        Self(Arc::new(Mutex::new(Notes {
            target,
            ..Notes::default()
        })))
    }

    /// Decides about a call.
    pub fn decide(&self, call: &Call) -> Decision {
        if !call.touches_backing() && !call.is_answer() {
            return Decision::Continue;
        }
        let mut notes = self.0.lock().expect("the notes");
        let label = call.label();
        let count = notes.counts.entry(label.clone()).or_default();
        *count += 1;
        let point = format!("{label} #{count}");
        notes.hit = match &notes.target {
            Target::Never => false,
            Target::At(target) => *target == point,
            Target::Number(number) => *number == notes.seen.len(),
        };
        notes.seen.push(point);
        match notes.hit {
            true => Decision::Kill,
            false => Decision::Continue,
        }
    }

    /// What it has seen, once the process has ended.
    pub fn run(&self) -> Run {
        let notes = std::mem::take(&mut *self.0.lock().expect("the notes"));
        Run {
            seen: notes.seen,
            hit: notes.hit,
        }
    }
}

/// What came of a sweep.
#[derive(Default)]
pub struct Swept {
    /// Points at which the process was killed.
    pub killed: Vec<String>,
    /// Points that one run came by, and none of several others: where the order of what two threads
    /// do decides.
    pub gone: Vec<String>,
    /// What was wrong, and after a kill at which point.
    pub violations: Vec<String>,
}

impl Swept {
    /// All of both.
    pub fn add(&mut self, other: Self) {
        self.killed.extend(other.killed);
        self.gone.extend(other.gone);
        self.violations.extend(other.violations);
    }
}

/// Runs once without a kill, and then once for each point that any of the runs came by, with a kill
/// there. `run` says, too, what is wrong with what is left.
pub fn sweep(what: &str, mut run: impl FnMut(Target) -> (Run, Result<(), String>)) -> Swept {
    /// How often a run is tried that is to come by a point once more.
    const TRIES: usize = 5;
    let mut swept = Swept::default();
    let mut known = BTreeSet::new();
    let mut todo = VecDeque::new();
    let mut note = |seen: Vec<String>, todo: &mut VecDeque<_>| {
        let new = seen.into_iter().filter(|point| known.insert(point.clone()));
        todo.extend(new.map(|point| (point, TRIES)));
    };
    let mut judge = |at: &str, verdict: Result<(), String>| {
        if let Err(what_is_wrong) = verdict {
            let violation = format!("{what}, {at}: {what_is_wrong}");
            println!("violation: {violation}");
            swept.violations.push(violation);
        }
    };
    let (Run { seen, .. }, verdict) = run(Target::Never);
    judge("without a kill", verdict);
    note(seen, &mut todo);
    while let Some((point, tries)) = todo.pop_front() {
        let (Run { seen, hit }, verdict) = run(Target::At(point.clone()));
        judge(&point, verdict);
        note(seen, &mut todo);
        match hit {
            true => swept.killed.push(point),
            false if tries > 1 => todo.push_back((point, tries - 1)),
            false => swept.gone.push(point),
        }
    }
    println!("{what}: killed at {} points", swept.killed.len());
    for point in &swept.killed {
        println!("    {point}");
    }
    for point in &swept.gone {
        println!("    (not met again: {point})");
    }
    swept
}
