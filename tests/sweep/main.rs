//! kill -9 of the daemon, and of recovery, at each of their system calls that touch BACKING or answer
//! the kernel: every one, by its name, found by looking at what the binary does. After each kill every
//! file is old or new, and whole; and recovery, killed anywhere, comes to the same end.
//!
//! `scripts/test sweep -- --nocapture` tells the points of each scenario.

#[path = "../common/mod.rs"]
mod common;

mod left;
mod points;
mod program;
mod recovery;
mod scenarios;
mod startup;
mod tool;
mod tree;

use common::reliability::Row;
use left::{Course, Leftovers};
use points::Swept;
use scenarios::Scenario;

/// Tells what came of a sweep, which must have come by calls of all these names, and found nothing.
#[track_caller]
fn report(fault: &str, test: &str, swept: &Swept, expected: &[&str]) {
    Row {
        fault,
        injected: "kill -9 before each system call on BACKING and each answer to the kernel",
        cases: swept.killed.len() as u64,
        violations: swept.violations.len() as u64,
        command: &format!("scripts/test {test}"),
    }
    .report();
    for name in expected {
        let mut points = swept.killed.iter();
        let met = points.any(|point| point.split(' ').next() == Some(name));
        assert!(met, "{test}: no {name} among the points");
    }
    assert!(swept.violations.is_empty(), "{:#?}", swept.violations);
}

/// Sweeps scenarios, and the recovery of each kind of leftover they make.
fn sweep(what: &str, test: &str, scenarios: &'static [Scenario], expected: &[&str]) {
    let (mut swept, mut leftovers) = (Swept::default(), Leftovers::default());
    for scenario in scenarios {
        swept.add(Course::of(scenario).sweep(&mut leftovers));
    }
    report(&format!("daemon killed, {what}"), test, &swept, expected);
    let swept = recovery::sweep_recovery(&leftovers);
    let fault = format!("recovery killed, {what}");
    report(&fault, test, &swept, &["openat", "getdents64", "unlinkat"]);
}

#[test]
fn a_daemon_killed_at_any_point_of_a_commit_leaves_the_old_version_or_the_new() {
    sweep(
        "versions",
        "a_daemon_killed_at_any_point_of_a_commit",
        scenarios::COMMITS,
        &[
            "openat",
            "pwrite64",
            "fsync",
            "linkat",
            "renameat2",
            "unlinkat",
            "fallocate",
            "writev",
        ],
    );
}

#[test]
fn a_daemon_killed_at_any_point_of_a_rewrite_in_place_leaves_what_recovery_finishes() {
    sweep(
        "files that keep their inode",
        "a_daemon_killed_at_any_point_of_a_rewrite",
        scenarios::IN_PLACE,
        &[
            "fallocate",
            "fsync",
            "linkat",
            "renameat",
            "unlinkat",
            "writev",
        ],
    );
}

#[test]
fn a_daemon_killed_at_any_point_of_appending_leaves_whole_records() {
    sweep(
        "records",
        "a_daemon_killed_at_any_point_of_appending",
        scenarios::APPENDING,
        &[
            "write",
            "pwrite64",
            "fdatasync",
            "fsync",
            "unlinkat",
            "writev",
        ],
    );
}

#[test]
fn a_daemon_killed_at_any_point_of_a_name_operation_leaves_it_done_or_not() {
    sweep(
        "names and attributes",
        "a_daemon_killed_at_any_point_of_a_name_operation",
        scenarios::NAMES,
        &[
            "renameat2",
            "unlinkat",
            "mkdirat",
            "symlinkat",
            "linkat",
            "utimensat",
            "writev",
        ],
    );
}

#[test]
fn a_daemon_killed_at_any_point_of_keeping_a_version_keeps_it_with_its_record_or_not_at_all() {
    sweep(
        "versions kept aside",
        "a_daemon_killed_at_any_point_of_keeping",
        scenarios::ASIDE,
        &["linkat", "renameat", "fsync", "unlinkat", "writev"],
    );
}

#[test]
fn the_same_sweep_finds_what_a_file_without_versions_leaves_torn() {
    for scenario in scenarios::CONTROLS {
        let swept = Course::of(scenario).sweep(&mut Leftovers::default());
        let torn = swept.violations.len();
        println!(
            "{}: {torn} of {} kills seen",
            scenario.name,
            swept.killed.len()
        );
        assert!(
            torn > 0,
            "{}: a sweep that sees nothing proves nothing",
            scenario.name
        );
    }
}
