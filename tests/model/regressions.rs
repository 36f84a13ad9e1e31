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
