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
