//! A run: recordings, the power cuts of each, and what came of them.

use crate::check::{Checker, Depth, Found};
use crate::common::reliability::Row;
use crate::cuts::{Cut, choose};
use crate::disk::Disk;
use crate::filesystem::Kind;
use crate::history::History;
use crate::log::{Entry, Overlay, apply, durable};
use crate::place::Place;
use crate::random::Random;
use crate::recording::{Recording, record, word};
use crate::saved;
use crate::settings::Settings;
use latchfs::config::Durability;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Power cuts of one recording, at most.
const OF_ONE: usize = 2500;
/// Rounds of each writer.
const ROUNDS: usize = 16;
/// Of every so many power cuts one is looked at with more care.
const FSCK: usize = 20;
const COMMAND: usize = 15;
const MOUNT: usize = 75;
/// And after so many the power is cut a second time, during recovery.
const TWICE: usize = 10;
/// Violations that are told in full.
const TOLD: usize = 20;

/// What came of the power cuts of one file system.
#[derive(Debug, Default)]
pub struct Tally {
    pub states: u64,
    pub twice: u64,
    pub barriers: u64,
    pub fscks: u64,
    pub mounts: u64,
    /// States in which something was wrong.
    pub violations: u64,
    /// The first of them.
    pub told: Vec<String>,
    /// States in which a control was torn; in which it was older than acknowledged.
    pub torn: BTreeMap<&'static str, u64>,
    pub older: BTreeMap<&'static str, u64>,
    /// What recovery did.
    pub actions: BTreeMap<String, u64>,
    /// States with a disk that ignored flushes, and those of them in which something was wrong.
    pub lying: u64,
    pub lies_found: u64,
    pub recording: Duration,
    pub checking: Duration,
    /// A recording in which something was wrong.
    pub saved: Option<PathBuf>,
}

/// The controls that must break, and the one that must not.
const BREAKING: [&str; 2] = ["bare/plain", "bare/unsynced"];
const CAREFUL: &str = "bare/careful";

/// Cuts the power so many times on one file system.
pub fn run(settings: &Settings, kind: Kind, durability: Durability, states: usize) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random::new(settings.seed ^ kind as u64);
    let recordings = states.div_ceil(OF_ONE).max(1);
    for number in 0..recordings {
        let seed = random.next();
        // A namespace belongs to a thread.
        let work = || {
            let place = Place::new();
            let disk = Disk::new(&place.dir("disk"), kind.size());
            let began = Instant::now();
            let recording = record(&place, &disk, (kind, durability), ROUNDS, seed);
            place.restart();
            tally.recording += began.elapsed();
            let share = states * (number + 1) / recordings - states * number / recordings;
            let history = History::new(&recording.log, durability);
            let checker = Checker {
                place: &place,
                disk: &disk,
                recording: &recording,
                history: &history,
            };
            let began = Instant::now();
            cut_power(&checker, share, &mut random, &mut tally);
            tally.checking += began.elapsed();
            if tally.violations > 0 && tally.saved.is_none() {
                tally.saved = Some(keep(&recording, seed));
            }
        };
        std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| {
            std::panic::resume_unwind(panic);
        });
    }
    tally
}

/// Leaves a recording for [`again`].
fn keep(recording: &Recording, seed: u64) -> PathBuf {
    let (kind, durability) = (recording.kind.name(), word(recording.durability));
    let name = format!("powercut-{kind}-{durability}-{seed:x}");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    saved::save(recording, &path).expect("the recording");
    path
}

/// Cuts the power once more at one place of a recording that was left.
pub fn again(path: &Path, cut: Cut) -> Found {
    let recording = saved::load(path).expect("a recording");
    let place = Place::new();
    place.restart();
    let disk = Disk::new(&place.dir("disk"), recording.kind.size());
    let checker = Checker {
        place: &place,
        disk: &disk,
        recording: &recording,
        history: &History::new(&recording.log, recording.durability),
    };
    let mut image = recording.base.clone();
    let durable = cut.durable(&recording.log);
    recording.log[..durable]
        .iter()
        .for_each(|entry| apply(&mut image, entry));
    let depth = Depth {
        command: true,
        mount: true,
        fsck: true,
        list: true,
    };
    look_twice(&checker, (&Arc::new(image), durable), cut, depth, true)
}

fn cut_power(checker: &Checker<'_>, states: usize, random: &mut Random, tally: &mut Tally) {
    let Recording { base, log, .. } = checker.recording;
    let flushes = log.iter().filter(|entry| matches!(entry, Entry::Flush));
    tally.barriers += flushes.count() as u64;
    let lying = (states / 10).max(20);
    for (lies, states) in [(false, states), (true, lying)] {
        let mut image = Arc::new(base.clone());
        let mut done = 0;
        for (number, cut) in choose(log, states, random, lies).into_iter().enumerate() {
            let durable = cut.durable(log);
            if durable > done {
                checker.disk.inner().state = Overlay::default();
                let image = Arc::get_mut(&mut image).expect("no state has it");
                log[done..durable]
                    .iter()
                    .for_each(|entry| apply(image, entry));
                done = durable;
            }
            let every = |n: usize| !lies && number % n == n - 1;
            let depth = Depth {
                command: every(COMMAND),
                mount: every(MOUNT),
                fsck: every(FSCK),
                list: false,
            };
            tally.fscks += u64::from(depth.fsck);
            tally.mounts += u64::from(depth.mount);
            tally.twice += u64::from(every(TWICE));
            let found = look_twice(checker, (&image, durable), cut, depth, every(TWICE));
            match lies {
                true => {
                    tally.lying += 1;
                    tally.lies_found += u64::from(!found.wrong.is_empty());
                }
                false => tally.add(checker, cut, found),
            }
        }
        checker.disk.inner().state = Overlay::default();
    }
}

/// Looks at the disk after one power cut, and if `twice`, after another one at some moment of the first look.
fn look_twice(
    checker: &Checker<'_>,
    (image, durable_now): (&Arc<crate::log::Image>, usize),
    cut: Cut,
    depth: Depth,
    twice: bool,
) -> Found {
    let log = &checker.recording.log;
    let mut random = Random::new(cut.seed);
    let mut disk = Overlay::new(image.clone());
    disk.apply_some(&log[durable_now..cut.position], &mut random);
    if !twice {
        return checker.look_at(disk, cut.position, depth);
    }
    let mut again = disk.clone();
    checker.disk.inner().state_log = Some(Vec::new());
    let mut found = checker.look_at(disk, cut.position, depth);
    let second = checker
        .disk
        .inner()
        .state_log
        .take()
        .expect("it was logged");
    let position = random.below(second.len() + 1);
    let sure = durable(&second, position, 0);
    second[..sure].iter().for_each(|entry| again.apply(entry));
    again.apply_some(&second[sure..position], &mut random);
    let later = checker.look_at(again, cut.position, Depth::default());
    let wrong = later.wrong.into_iter();
    found
        .wrong
        .extend(wrong.map(|wrong| format!("after a second power cut: {wrong}")));
    found
}

impl Tally {
    fn add(&mut self, checker: &Checker<'_>, cut: Cut, found: Found) {
        self.states += 1;
        let mut wrong = found.wrong;
        let of = |list: &[String], name: &str| list.iter().any(|what| what.starts_with(name));
        for name in BREAKING {
            *self.torn.entry(name).or_default() += u64::from(of(&found.torn, name));
            *self.older.entry(name).or_default() += u64::from(of(&found.older, name));
        }
        let careful = found.torn.iter().chain(&found.older);
        let careful = careful.filter(|what| what.starts_with(CAREFUL));
        wrong.extend(careful.map(|what| format!("the tester itself: {what}")));
        for action in found.actions {
            *self.actions.entry(action).or_default() += 1;
        }
        if !wrong.is_empty() {
            self.violations += 1;
            if self.told.len() < TOLD {
                let kind = checker.recording.kind.name();
                self.told
                    .push(format!("{kind}, power cut {cut}: {}", wrong.join("; ")));
                eprintln!("{}", self.told[self.told.len() - 1]);
            }
        }
    }

    /// Prints what came of it.
    pub fn report(&self, settings: &Settings, kind: Kind, durability: Durability) {
        let (name, word) = (kind.name(), word(durability));
        let of = |map: &BTreeMap<&str, u64>, name| map.get(name).copied().unwrap_or_default();
        let controls = BREAKING.map(|name| {
            let (torn, older) = (of(&self.torn, name), of(&self.older, name));
            format!("{name} {torn} torn, {older} older")
        });
        println!(
            "powercut\t{name}\t{word}\t{}\t{}\t{}\t{}\t{}/{}\t{:.0}/s",
            self.states,
            self.violations,
            of(&self.torn, BREAKING[0]),
            of(&self.torn, BREAKING[1]),
            self.lies_found,
            self.lying,
            self.states as f64 / self.checking.as_secs_f64(),
        );
        println!(
            "  {name}, durability {word}, seed {}: {} flushes recorded in {:.1} s, {} power cuts in {:.1} s \
             (and {} more during recovery; fsck after {}, a mount after {}); controls: {}; recovery: {:?}",
            settings.seed,
            self.barriers,
            self.recording.as_secs_f64(),
            self.states,
            self.checking.as_secs_f64(),
            self.twice,
            self.fscks,
            self.mounts,
            controls.join(", "),
            self.actions,
        );
        Row {
            fault: &format!("power cut, {name}, durability {word}"),
            injected: "replay of the recorded writes up to each flush, and of random parts of those after it",
            cases: self.states,
            violations: self.violations,
            command: &format!("scripts/crashtest --fs {name} --durability {word}"),
        }
        .report();
    }

    /// Fails if latchfs did, or the tester can't.
    pub fn judge(&self, durability: Durability) {
        if let Some(saved) = &self.saved {
            let told = self.told.join("\n");
            let repeat = format!("scripts/crashtest --only {}:CUT", saved.display());
            panic!(
                "{} violations:\n{told}\nagain, for CUT of the first: {repeat}",
                self.violations
            );
        }
        for name in BREAKING {
            assert!(self.torn[name] > 0, "the control {name} never broke");
        }
        // Without durability nothing depends on flushes.
        let noticed = self.lies_found > 0 || durability == Durability::None;
        assert!(noticed, "a disk that ignores flushes was not noticed");
    }
}
