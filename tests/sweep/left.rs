//! What a killed daemon leaves, and whether it may.

use crate::common::syscalls::{Decision, Supervised};
use crate::common::{LATCHFS, Mount, finish, options, text};
use crate::points::{Run, Swept, Target, Watch, sweep};
use crate::program::{self, Program};
use crate::scenarios::Scenario;
use crate::tree::{MayBe, Tree, kept, store};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// A scenario, and the states it goes through: before its first step, and after each.
pub struct Course {
    pub scenario: &'static Scenario,
    states: Vec<Tree>,
}

impl Course {
    /// Finds the states out, in a bare directory.
    pub fn of(scenario: &'static Scenario) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        (scenario.prepare)(dir.path()).expect("prepare");
        let mut program = Program::new(dir.path());
        let mut states = vec![Tree::of(dir.path())];
        for step in scenario.steps {
            (step.means)(&mut program).expect("a step in a bare directory");
            states.push(Tree::of(dir.path()));
        }
        Self { scenario, states }
    }

    /// Runs it, with the daemon killed at `target`, or else unmounted at its end.
    pub fn run(&self, target: Target) -> Left {
        let mount = options().unmounted();
        (self.scenario.prepare)(mount.backing()).expect("prepare");
        let watch = Watch::new(target);
        let mut daemon = Supervised::start(mount, {
            let watch = watch.clone();
            move |call| match call.serving {
                true => watch.decide(call),
                false => Decision::Continue,
            }
        });
        assert!(daemon.is_served(), "not mounted: {}", daemon.log());
        let (done, said) = program::run(self.scenario.name, daemon.point());
        // What the daemon does at its end are points, too.
        daemon.process().terminate();
        let (mount, _) = daemon.wait();
        let run = watch.run();
        let claim = Claim {
            done,
            killed: run.hit,
            torn: None,
        };
        let program = if run.hit { Ok(()) } else { said };
        Left {
            mount,
            run,
            claim,
            program,
        }
    }

    /// Kills the daemon at every point of it. Notes what is left.
    pub fn sweep(&self, leftovers: &mut Leftovers) -> Swept {
        sweep(self.scenario.name, |target| {
            let left = self.run(target.clone());
            if let Target::At(target) = target {
                leftovers.note(&left, self.scenario, &target);
            }
            let verdict = left.program.clone().and_then(|()| {
                self.look(&left.mount, &left.claim, false)?;
                recover(&left.mount)?;
                self.look(&left.mount, &left.claim, true)
            });
            (left.run, verdict)
        })
    }

    /// Is BACKING what it may be: as it was left, or after a recovery (`clean`)?
    pub fn look(&self, mount: &Mount, claim: &Claim, clean: bool) -> Result<(), String> {
        let backing = mount.backing();
        let done = claim.done;
        // The step that was under way may have been done.
        let next = match claim.killed {
            true => (done + 1).min(self.states.len() - 1),
            false => done,
        };
        let may = match clean {
            true => MayBe::default(),
            false => MayBe::by_store_of(backing),
        };
        let fits = Tree::of(backing).check(&self.states[done], &self.states[next], &may);
        let when = if clean {
            "after recovery"
        } else {
            "as it was left"
        };
        fits.map_err(|what| format!("{when}, {done} steps done: {what}"))?;
        if !clean {
            return Ok(());
        }
        for name in ["tmp", "redo", "append"] {
            let left = store(backing, name);
            if !left.is_empty() {
                return Err(format!("left in .latchfs/{name}: {left:?}"));
            }
        }
        let kept = kept(backing)?;
        if ![done, next]
            .map(|steps| self.aside(steps, claim))
            .contains(&kept)
        {
            return Err(format!("{done} steps done, kept aside: {kept:?}"));
        }
        Ok(())
    }

    /// What is kept aside after so many steps.
    fn aside(&self, steps: usize, claim: &Claim) -> Vec<Vec<u8>> {
        let contents = self.scenario.steps[..steps].iter();
        let contents = contents.filter_map(|step| step.aside).chain(claim.torn);
        contents
            .map(|content| content.as_bytes().to_vec())
            .collect()
    }
}

/// What a run leaves.
pub struct Left {
    pub mount: Mount,
    pub run: Run,
    pub claim: Claim,
    /// What the program says, if it should have come to its end.
    program: Result<(), String>,
}

/// What BACKING is to be like after it.
pub struct Claim {
    /// So many steps were acknowledged.
    done: usize,
    /// One more may have been done.
    killed: bool,
    /// This part of a record was written by hand.
    torn: Option<&'static str>,
}

impl Left {
    /// What is left in the store, as kinds of names.
    pub fn kind(&self) -> String {
        let mut found = Vec::new();
        for dir in ["tmp", "redo", "append", "kept"] {
            for name in store(self.mount.backing(), dir) {
                let kind = Path::new(&name).extension().and_then(|kind| kind.to_str());
                let kind = kind.filter(|kind| ["json", "data"].contains(kind));
                found.push(format!("{dir}/{}", kind.unwrap_or_default()));
            }
        }
        found.sort();
        found.join(" ")
    }
}

/// `latchfs recover`, which must succeed.
pub fn recover(mount: &Mount) -> Result<(), String> {
    let mut command = Command::new(LATCHFS);
    command.arg("recover").arg(mount.backing());
    let output = finish(command.stdin(Stdio::null()));
    match output.status.success() {
        true => Ok(()),
        false => Err(text(&output.stderr)),
    }
}

/// Something in the store that recovery is to deal with, and how to get it again.
pub struct Leftover {
    scenario: &'static Scenario,
    target: String,
    kind: String,
    torn: bool,
}

/// One of each kind.
#[derive(Default)]
pub struct Leftovers(pub BTreeMap<String, Leftover>);

impl Leftovers {
    fn note(&mut self, left: &Left, scenario: &'static Scenario, target: &str) {
        let kind = left.kind();
        // A version that was kept needs nothing any more.
        if !left.run.hit || kind.is_empty() || kind == "kept/data kept/json" {
            return;
        }
        let mut add = |name: String, torn: bool| {
            let leftover = Leftover {
                scenario,
                target: target.into(),
                kind: kind.clone(),
                torn,
            };
            self.0.entry(name).or_insert(leftover);
        };
        add(kind.clone(), false);
        if target == "write backing:log #1" {
            add(format!("{kind} and a torn record"), true);
        }
    }
}

impl Leftover {
    /// The course it is from.
    pub fn course(&self) -> Course {
        Course::of(self.scenario)
    }

    /// Another one like it.
    pub fn again(&self, course: &Course) -> Left {
        for _ in 0..10 {
            let mut left = course.run(Target::At(self.target.clone()));
            if !left.run.hit || left.kind() != self.kind {
                continue;
            }
            if self.torn {
                // As a power cut would: a kill can't come in the middle of a call.
                let log = left.mount.behind("log");
                let log = std::fs::OpenOptions::new().append(true).open(log);
                let torn = log.and_then(|mut log| log.write_all(PART.as_bytes()));
                torn.expect("a torn record");
                left.claim.torn = Some(PART);
            }
            return left;
        }
        panic!("{} leaves no {} any more", self.target, self.kind);
    }
}

/// Of the first record of every log.
const PART: &str = "on";
