//! Each scenario, with each call failing in its turn.
//!
//! Each call fails with EIO, with ENOSPC and with one of the other errnos; with `LATCHFS_TEST_FULL=1` with all of
//! them, with `LATCHFS_TEST_ERRNO=EROFS` with that one. `LATCHFS_TEST_SCENARIO=linked` runs one scenario.

use crate::common::reliability::Row;
use crate::common::syscalls::Supervised;
use crate::common::{Mount, Running, options};
use crate::fault::{Fault, Hit};
use crate::scenarios::{DIRECT, IN_PLACE, NAMES, Scenario, VERSIONS, WORKER};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const ERRNOS: &[(&str, i32)] = &[
    ("EIO", libc::EIO),
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("EROFS", libc::EROFS),
    ("EMFILE", libc::EMFILE),
    ("ENOMEM", libc::ENOMEM),
];

/// What was found to be wrong, and what programs were told.
#[derive(Default)]
struct Findings {
    cases: u64,
    told: BTreeMap<String, u64>,
    /// What, and with which errnos.
    wrong: BTreeMap<String, Vec<String>>,
    /// What lies in the store's directories that should not.
    left: BTreeSet<String>,
}

struct Sweep {
    daemon: Supervised,
    worker: Running,
    fault: Fault,
    base: usize,
    findings: Findings,
}

impl Sweep {
    fn new() -> Self {
        let fault = Fault::default();
        let decider = fault.clone();
        let daemon = Supervised::mount(options(), move |call| decider.decide(call));
        let worker = worker(&daemon);
        let base = daemon.descriptors();
        let findings = Findings::default();
        Self {
            daemon,
            worker,
            fault,
            base,
            findings,
        }
    }

    fn ask(&mut self, command: &str) -> String {
        self.worker.tell(command);
        self.worker.hear()
    }

    /// One run, with the call after `before` others failing. False if there are not so many.
    fn run(&mut self, scenario: &Scenario, (name, errno): (&str, i32), before: usize) -> bool {
        let id = scenario.name;
        let ready = self.ask(&format!("prepare {id}"));
        assert_eq!(ready, "ready", "{id} {name} {before}");
        self.fault.arm(before, errno);
        let told = self.ask(&format!("run {id}"));
        let Some(hit) = self.fault.disarm() else {
            return false;
        };
        let Hit {
            label,
            previous,
            abused,
            ..
        } = hit;
        self.findings.cases += 1;
        let state = self.ask(&format!("judge {id}"));
        let mut wrong = vec![];
        let is = |states: &[&str]| states.contains(&state.as_str());
        let looked = ["fstat", "newfstatat"]
            .iter()
            .any(|call| label.starts_with(call));
        let directory = ["fsync backing:.", "openat backing:."].contains(&label.as_str());
        let right = match told.as_str() {
            "done" => is(scenario.done),
            _ => {
                is(scenario.failed)
                    || looked && is(scenario.untold)
                    || directory && scenario.commits && is(scenario.done)
            }
        };
        if !right {
            wrong.push(format!("it is {state}"));
        }
        for word in told.split(' ').filter(|word| *word != "done") {
            let (_, error) = word.split_once(':').unwrap_or(("", word));
            *self
                .findings
                .told
                .entry(format!("{name} -> {error}"))
                .or_default() += 1;
            if error != name && error != "EIO" {
                wrong.push(format!("{word} is told"));
            }
        }
        if !abused.is_empty() {
            wrong.push(format!("the shadow was used again: {abused:?}"));
        }
        let left = || {
            let names = ["tmp", "redo"].map(|store| self.daemon.store(store));
            names.concat()
        };
        // The file that a version has replaced stays for the next mount if it can't be removed.
        let old = label == "unlinkat backing:.latchfs/tmp/*";
        // A shadow goes with its handle, for the release of which no close waits.
        let end = Instant::now() + Duration::from_secs(10);
        let known = |name: &String| self.findings.left.contains(name);
        while !old && Instant::now() < end && !left().iter().all(known) {
            std::thread::sleep(Duration::from_millis(5));
        }
        for name in left() {
            if self.findings.left.insert(name) && !old {
                wrong.push(String::from("something is left in the store"));
            }
        }
        // No lease, lock or handle is left: the same again works.
        let ready = self.ask(&format!("prepare {id}"));
        let again = self.ask(&format!("run {id}"));
        let state = self.ask(&format!("judge {id}"));
        if (ready.as_str(), again.as_str()) != ("ready", "done")
            || !scenario.done.contains(&state.as_str())
        {
            wrong.push(format!("afterwards: {ready}, {again}, {state}"));
        }
        for what in wrong {
            let (told, what) = (told.replace(name, "E"), what.replace(name, "E"));
            let case = format!("{id}: {label} fails (after {previous}), told: {told}; {what}");
            let with = self.findings.wrong.entry(case).or_default();
            with.push(format!("{name} ({before})"));
        }
        true
    }

    fn sweep(&mut self, scenario: &Scenario) {
        let one = std::env::var("LATCHFS_TEST_ERRNO").ok();
        let wanted = |name: &str| one.as_deref().is_none_or(|one| one == name);
        // Two for each call, and of the other four one.
        let all = one.is_some() || std::env::var_os("LATCHFS_TEST_FULL").is_some();
        let (common, rest) = ERRNOS.split_at(2);
        let by_turns: Vec<&[(&str, i32)]> = match all {
            true => ERRNOS.iter().map(std::slice::from_ref).collect(),
            false => common
                .iter()
                .map(std::slice::from_ref)
                .chain([rest])
                .collect(),
        };
        for errnos in by_turns.into_iter().filter(|errnos| wanted(errnos[0].0)) {
            let mut before = 0;
            while self.run(scenario, errnos[before % errnos.len()], before) {
                before += 1;
            }
            assert!(before > 0, "{} does no call", scenario.name);
            let (daemon, base) = (&self.daemon, self.base);
            daemon.wait_until_descriptors_are_back(base + 4);
        }
    }

    fn end(self, what: &str, command: &str) {
        let Findings {
            cases, told, wrong, ..
        } = self.findings;
        println!("{cases} cases; told: {told:?}");
        Row {
            fault: what,
            injected: "ENOSPC, EDQUOT, EIO, EROFS, EMFILE, ENOMEM as the answer to each call on BACKING in turn",
            cases,
            violations: wrong.values().map(|with| with.len() as u64).sum(),
            command,
        }
        .report();
        for (case, with) in &wrong {
            println!("wrong: {case} [{}]", with.join(", "));
        }
        assert!(wrong.is_empty(), "{} kinds of violations", wrong.len());
    }
}

fn worker(mount: &Mount) -> Running {
    let mut python = mount.command("python3");
    let prelude = crate::common::PRELUDE;
    python.arg("-c").arg(format!("{prelude}{WORKER}"));
    Running::new(python.arg(mount.backing()).current_dir(mount.point()))
}

fn all(what: &str, command: &str, scenarios: &[Scenario]) {
    let only = std::env::var("LATCHFS_TEST_SCENARIO").ok();
    let mut sweep = Sweep::new();
    for scenario in scenarios {
        if only.as_deref().is_none_or(|only| only == scenario.name) {
            let (cases, began) = (sweep.findings.cases, std::time::Instant::now());
            sweep.sweep(scenario);
            let cases = sweep.findings.cases - cases;
            println!("{}: {cases} cases, {:?}", scenario.name, began.elapsed());
        }
    }
    sweep.end(what, command);
}

#[test]
fn a_call_that_fails_while_a_version_is_written_leaves_the_old_one_and_is_told() {
    all(
        "a call on BACKING fails, versions",
        "scripts/test a_call_that_fails",
        VERSIONS,
    );
}

#[test]
fn a_call_that_fails_while_a_file_that_keeps_its_inode_is_written_leaves_it_whole() {
    all(
        "a call on BACKING fails, files that keep their inode",
        "scripts/test a_call_that_fails",
        IN_PLACE,
    );
}

#[test]
fn a_call_that_fails_in_an_operation_on_names_leaves_them_as_they_were() {
    all(
        "a call on BACKING fails, names",
        "scripts/test a_call_that_fails",
        NAMES,
    );
}

/// The control: a plain overwrite, of a file without versions, is torn when a write of it fails.
#[test]
fn the_same_sweep_finds_a_plain_overwrite_torn() {
    let mut sweep = Sweep::new();
    sweep.sweep(&DIRECT);
    let wrong = sweep.findings.wrong;
    assert!(wrong.keys().any(|case| case.contains("torn")), "{wrong:?}");
    assert!(wrong.keys().all(|case| case.starts_with("direct: ")));
}
