//! Sequences that were found by `storm` and broke something, made small.

use crate::ops::{Behind, Handle, Name, Node, Op, Step};
use crate::scene::one_at_a_time;
use crate::storm::play_scripted;
use latchfs::config::Readers;

fn check(ops: impl IntoIterator<Item = (u8, Op, bool)>) {
    let _one = one_at_a_time();
    let steps = ops.into_iter().map(|(who, op, hurry)| Step {
        who,
        op,
        cut: None,
        hurry,
    });
    let steps: Vec<Step> = steps.collect();
    play_scripted(&steps, Readers::Wait).unwrap_or_else(|failure| panic!("{failure}"));
}

fn name(name: &str) -> Name {
    Name::from(name)
}

fn create(parent: Node, at: &str) -> Op {
    Op::Create(parent, name(at), libc::O_RDWR as u32, 0o644)
}

const WRITE: u32 = libc::O_WRONLY as u32;

#[test]
fn a_release_of_the_wrong_kind_closes_nothing() {
    check([
        (0, create(Node::Root, "new"), false),
        (0, Op::ReleaseDir(Handle::Open(0)), false),
        (0, Op::OpenDir(Node::Root), false),
        (0, Op::Release(Handle::Open(1)), false),
    ]);
}

#[test]
fn a_name_given_in_a_directory_that_is_gone_leaves_nothing_in_the_store() {
    check([
        (0, Op::Lookup(Node::Root, name("d")), false),
        (0, Op::Lookup(Node::Given(0), name("f")), false),
        (0, Op::Behind(Behind::Remove("d")), false),
        (0, create(Node::Root, "new"), false),
        (
            0,
            Op::Link(Node::Given(2), Node::Given(0), name("g")),
            false,
        ),
        (0, Op::Write(Handle::Open(0), 0, 10, 0), false),
    ]);
}

#[test]
fn an_opener_that_creates_in_no_directory_or_truncates_another_file_gives_up_its_lease() {
    for instead in [
        create(Node::Number(u64::MAX), "new"),
        Op::SetAttr {
            node: Node::Given(1),
            handle: Handle::Number(0),
            valid: 8,
            size: 3,
            mode: 0,
            owner: (0, 0),
            times: (0, 0),
        },
    ] {
        check([
            (0, Op::Lookup(Node::Root, name("g")), false),
            (0, Op::Lookup(Node::Root, name("f.db")), false),
            (0, Op::Open(Node::Given(0), WRITE), false),
            (0, instead, false),
        ]);
    }
}

#[test]
fn two_opens_of_one_thread_at_once_are_both_answered() {
    check([
        (0, Op::Lookup(Node::Root, name("f")), false),
        (0, Op::Lookup(Node::Root, name("g")), false),
        (0, Op::Open(Node::Given(0), WRITE), false),
        (0, Op::Lookup(Node::Root, name("f")), false),
        (0, Op::Open(Node::Given(2), WRITE), false),
        (2, Op::Open(Node::Given(0), WRITE), true),
        (2, Op::Open(Node::Given(0), WRITE), true),
        (2, Op::Open(Node::Given(1), WRITE), true),
    ]);
}

#[test]
fn a_listing_that_fails_half_way_keeps_no_entry() {
    let look = |hurry| (0, Op::ReadDirPlus(Handle::Open(0), 0, 8000), hurry);
    check([
        (0, Op::OpenDir(Node::Root), false),
        look(true),
        (1, Op::ReleaseDir(Handle::Open(0)), true),
        look(true),
    ]);
}

#[test]
fn a_file_that_became_a_directory_of_the_same_number_is_not_walked_into() {
    check([
        (0, Op::Lookup(Node::Root, name("g")), false),
        (0, Op::Behind(Behind::MakeDir("g")), false),
        (0, Op::OpenDir(Node::Given(0)), false),
        (0, Op::Lookup(Node::Given(0), name("f")), false),
        (0, Op::Lookup(Node::Root, name("g")), false),
    ]);
}
