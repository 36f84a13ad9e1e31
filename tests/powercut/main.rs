//! Power cuts: what is in BACKING after one, wherever it comes.
//!
//! A disk is recorded (`disk.rs`): every write and every flush that a file system sends to it while
//! unmodified programs write to a latchfs mount above (`workload.py`), and what each close() and fsync()
//! had acknowledged by then. Then the power is cut, many times: for every flush the writes before it are on
//! the disk, and of those after it a random part. The file system is mounted, `latchfs recover` puts right
//! what there is to put right, and every file is looked at: is it one whole version, and none that is older
//! than what was acknowledged? (`history.rs` says what may be expected.)
//!
//! The tester must be able to fail. So there are programs that write beside BACKING as programs do without
//! latchfs, and whose files must be found torn; one that does all by the book, whose file must not; and
//! a disk that ignores flushes, with which latchfs, too, must be found wanting.
//!
//! Environment:
//!
//! ```text
//! LATCHFS_POWERCUT_STATES      power cuts on all file systems together (default 1500)
//! LATCHFS_POWERCUT_FS          ext4,xfs,btrfs or fewer of them
//! LATCHFS_POWERCUT_DURABILITY  full, rename or none; without it: full, and a few of the others on ext4
//! LATCHFS_POWERCUT_SEED        a number, for the same random choices (default: another one each time)
//! LATCHFS_POWERCUT_ONLY        FILE:CUT, as a failure tells them: this power cut of the recording that the
//!                              failing run has left in target/tmp, and nothing else
//! ```
//!
//! Programs that run at once never do the same twice; what the seed chooses is their data and where the power
//! is cut, so a failure leaves its recording. `scripts/crashtest` runs all this with more power cuts.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod content;
mod cuts;
mod disk;
mod filesystem;
mod history;
mod log;
mod loopdev;
mod place;
mod random;
mod recording;
mod run;
mod saved;
mod settings;

use filesystem::Kind;
use latchfs::config::Durability;
use settings::Settings;

fn cut_power_on(kind: Kind, durability: Option<Durability>, part: usize) {
    let settings = Settings::read();
    let wanted = durability.is_none() || settings.durability.is_none();
    let durability = durability.or(settings.durability).unwrap_or_default();
    let states = settings.share(kind) / part;
    if states == 0 || !wanted || settings.only.is_some() {
        return;
    }
    let tally = run::run(&settings, kind, durability, states);
    tally.report(&settings, kind, durability);
    tally.judge(durability);
}

#[test]
fn a_power_cut_on_ext4_loses_and_tears_no_version() {
    cut_power_on(Kind::Ext4, None, 1);
}

#[test]
fn a_power_cut_on_xfs_loses_and_tears_no_version() {
    cut_power_on(Kind::Xfs, None, 1);
}

#[test]
fn a_power_cut_on_btrfs_loses_and_tears_no_version() {
    cut_power_on(Kind::Btrfs, None, 1);
}

#[test]
fn with_durability_rename_a_power_cut_brings_back_old_versions_but_tears_none() {
    cut_power_on(Kind::Ext4, Some(Durability::Rename), 6);
}

#[test]
fn with_durability_none_recovery_leaves_nothing_behind_after_a_power_cut() {
    cut_power_on(Kind::Ext4, Some(Durability::None), 8);
}

#[test]
fn one_power_cut_of_a_recording_that_failed_can_be_repeated() {
    if let Some((path, cut)) = Settings::read().only {
        let found = run::again(&path, cut);
        println!("{found:#?}");
        assert!(found.wrong.is_empty(), "{}", found.wrong.join("\n"));
    }
}
