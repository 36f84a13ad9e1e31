//! Where the power is cut.

use crate::log::{Entry, durable};
use crate::random::Random;
use std::fmt;
use std::str::FromStr;

/// One power cut. The same one of the same log leaves the same disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// So many entries of the log had happened.
    pub position: usize,
    /// Decides which of those after the last flush reached the disk.
    pub seed: u64,
    /// The disk has lied about so many flushes.
    pub ignored: usize,
}

impl Cut {
    /// How many entries have reached the disk for sure.
    pub fn durable(&self, log: &[Entry]) -> usize {
        durable(log, self.position, self.ignored)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}.{}", self.position, self.seed, self.ignored)
    }
}

impl FromStr for Cut {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let mut part = || parts.next().ok_or(());
        Ok(Self {
            position: part()?.parse().map_err(drop)?,
            seed: u64::from_str_radix(part()?, 16).map_err(drop)?,
            ignored: part()?.parse().map_err(drop)?,
        })
    }
}

/// Chooses `count` power cuts: after each flush, as far as there are enough, and then at random places
/// between two; in the order of what is on the disk for sure. With `lying`, on a disk that ignores its last
/// flushes.
pub fn choose(log: &[Entry], count: usize, random: &mut Random, lying: bool) -> Vec<Cut> {
    let flushes = (0..log.len()).filter(|at| matches!(log[*at], Entry::Flush));
    let ends: Vec<usize> = flushes.chain([log.len()]).collect();
    let cut = |number: usize| {
        let which = match count >= ends.len() {
            true => number % ends.len(),
            false => (number * ends.len() + random.below(ends.len())) / count,
        };
        let end = ends[which.min(ends.len() - 1)];
        let begin = which.checked_sub(1).map_or(0, |before| ends[before] + 1);
        // Often all that happened before the next flush.
        let position = match random.below(2) {
            0 => end,
            _ => begin + random.below(end - begin + 1),
        };
        let seed = random.next();
        let ignored = if lying { 1 + random.below(20) } else { 0 };
        Cut {
            position,
            seed,
            ignored,
        }
    };
    let mut cuts: Vec<Cut> = (0..count).map(cut).collect();
    cuts.sort_by_key(|cut| cut.durable(log));
    cuts
}

#[test]
fn every_flush_is_followed_by_a_power_cut() {
    let mark = || Entry::Mark(String::new());
    let log = [mark(), Entry::Flush, mark(), mark(), Entry::Flush, mark()];
    let cuts = choose(&log, 12, &mut Random::new(1), false);
    let after = |durable| {
        cuts.iter()
            .filter(|cut| cut.durable(&log) == durable)
            .count()
    };
    assert_eq!([after(0), after(2), after(5)], [4, 4, 4]);
    let cut = cuts[3];
    assert_eq!(cut.to_string().parse(), Ok(cut));
    let lying = choose(&log, 12, &mut Random::new(1), true);
    assert!(
        lying
            .iter()
            .all(|cut| cut.durable(&log) < cut.position.max(1))
    );
}
