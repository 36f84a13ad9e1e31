//! What the environment asks for.

use crate::cuts::Cut;
use crate::filesystem::Kind;
use clap::ValueEnum;
use latchfs::config::Durability;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// See the top of `main.rs`.
#[derive(Debug)]
pub struct Settings {
    pub states: usize,
    pub kinds: Vec<Kind>,
    pub durability: Option<Durability>,
    pub seed: u64,
    /// Nothing but this power cut of a recording.
    pub only: Option<(PathBuf, Cut)>,
}

/// The durability that is called so.
pub fn durability(word: &str) -> Option<Durability> {
    Durability::from_str(word, false).ok()
}

impl Settings {
    /// Reads the environment.
    pub fn read() -> Self {
        let variable = |name: &str| std::env::var(format!("LATCHFS_POWERCUT_{name}")).ok();
        let kinds = variable("FS").map(|list| {
            let kind = |name| Kind::parse(name).unwrap_or_else(|| panic!("no file system {name}"));
            list.split(',').map(kind).collect()
        });
        let level =
            |word: String| durability(&word).unwrap_or_else(|| panic!("no durability {word}"));
        let only = variable("ONLY").map(|only| {
            let (file, cut) = only.rsplit_once(':').expect("FILE:CUT");
            (PathBuf::from(file), cut.parse().expect("a power cut"))
        });
        let number = |name: &str| variable(name).map(|n| n.parse::<u64>().expect("a number"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            states: number("STATES").unwrap_or(1500) as usize,
            kinds: kinds.unwrap_or_else(|| Kind::ALL.to_vec()),
            durability: variable("DURABILITY").map(level),
            only,
            seed: number("SEED").unwrap_or_else(|| now.expect("a clock").as_millis() as u64),
        }
    }

    /// How many of the power cuts are on a file system: XFS is mounted slowly.
    pub fn share(&self, kind: Kind) -> usize {
        let weight = |kind: Kind| match kind {
            Kind::Ext4 => 5,
            Kind::Btrfs => 3,
            Kind::Xfs => 2,
        };
        let all: usize = self.kinds.iter().copied().map(weight).sum();
        match self.kinds.contains(&kind) {
            true => self.states * weight(kind) / all,
            false => 0,
        }
    }
}
