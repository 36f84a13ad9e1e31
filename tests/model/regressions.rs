//! Sequences that once went wrong, as they were shrunk.

use crate::compare::replay;
use crate::engine::Bench;
use crate::op::{Access, How, Op};
use crate::reference::beginning;

fn open(owner: usize, name: &'static str, access: Access) -> Op {
    let how = How::new(access);
    Op::Open { owner, name, how }
}

fn check(files: [Option<&str>; 3], ops: &[Op]) {
    replay::<Bench>(&beginning(files), ops);
}

/// Its next open failed with EINTR at once.
#[test]
fn who_waited_for_a_file_that_was_removed_waits_for_the_next_one() {
    check(
        [Some("first"), None, Some("first")],
        &[
            open(0, "c", Access::Write),
            open(0, "a", Access::Write),
            open(2, "a", Access::Read),
            Op::Unlink {
                owner: 0,
                name: "a",
            },
            open(2, "c", Access::Write),
        ],
    );
}

/// It read nothing, though fstat told the size.
#[test]
fn what_is_read_beside_a_transaction_stays_if_nothing_is_written() {
    check(
        [Some("first"), None, None],
        &[
            open(2, "a", Access::ReadWrite),
            open(2, "a", Access::Read),
            Op::Close { owner: 2, fd: 0 },
        ],
    );
}

/// fstat told the size that it had before.
#[test]
fn what_is_emptied_again_after_fsync_and_removed_has_no_size() {
    let emptied = How {
        create: true,
        truncate: true,
        ..How::new(Access::ReadWrite)
    };
    let again = Op::Open {
        owner: 2,
        name: "b",
        how: emptied,
    };
    check(
        [None; 3],
        &[
            again.clone(),
            Op::Write {
                owner: 2,
                fd: 0,
                offset: 1,
                data: b"ixh".to_vec(),
            },
            Op::Sync { owner: 2, fd: 0 },
            again,
            Op::Unlink {
                owner: 0,
                name: "b",
            },
        ],
    );
}

/// The rewrite in place of the other name was taken for a change behind the mount.
#[test]
fn a_file_renamed_over_one_of_two_names_is_committed_though_the_other_is_rewritten() {
    let create = |owner, name| Op::Open {
        owner,
        name,
        how: How {
            create: true,
            truncate: true,
            ..How::new(Access::Write)
        },
    };
    let (from, to) = ("b", "a");
    check(
        [None, Some("first"), None],
        &[
            Op::Link { owner: 0, from, to },
            create(1, "c"),
            Op::Rename {
                owner: 0,
                from: "c",
                to,
            },
            create(3, "b"),
            Op::Close { owner: 3, fd: 1 },
            Op::Sync { owner: 1, fd: 0 },
        ],
    );
}

/// It read what the second name was emptied to.
#[test]
fn what_is_read_beside_a_transaction_stays_after_fsync_when_the_file_is_rewritten_in_place() {
    let create = How {
        create: true,
        ..How::new(Access::Write)
    };
    let empty = How {
        truncate: true,
        ..How::new(Access::Write)
    };
    check(
        [None, None, None],
        &[
            Op::Open {
                owner: 3,
                name: "c",
                how: create,
            },
            Op::Write {
                owner: 3,
                fd: 0,
                offset: 1,
                data: vec![b'u'],
            },
            open(3, "c", Access::Read),
            Op::Sync { owner: 3, fd: 0 },
            Op::Link {
                owner: 0,
                from: "c",
                to: "a",
            },
            Op::Close { owner: 3, fd: 0 },
            Op::Open {
                owner: 0,
                name: "a",
                how: empty,
            },
            Op::Close { owner: 0, fd: 0 },
        ],
    );
}
