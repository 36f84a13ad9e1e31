//! What programs do, and random sequences of it. Nothing is appended: records keep no turns, and have
//! tests of their own (tests/append).

use crate::reference::{Reference, beginning};
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

/// How many programs there are, of one thread each.
pub const OWNERS: usize = 4;
/// The names they use.
pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// What an open(2) wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    pub access: Access,
    pub truncate: bool,
    pub create: bool,
    pub exclusive: bool,
    pub nonblocking: bool,
}

impl How {
    pub const fn new(access: Access) -> Self {
        Self {
            access,
            truncate: false,
            create: false,
            exclusive: false,
            nonblocking: false,
        }
    }

    /// The flags of open(2).
    pub fn bits(self) -> i32 {
        let access = match self.access {
            Access::Read => libc::O_RDONLY,
            Access::Write => libc::O_WRONLY,
            Access::ReadWrite => libc::O_RDWR,
        };
        let more = [
            (self.truncate, libc::O_TRUNC),
            (self.create, libc::O_CREAT),
            (self.exclusive, libc::O_EXCL),
            (self.nonblocking, libc::O_NONBLOCK),
        ];
        let more = more.into_iter().filter(|(wanted, _)| *wanted);
        more.fold(access, |bits, (_, bit)| bits | bit)
    }
}

/// A system call of a program, or its end. Descriptors are meant by a number, modulo those it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Open {
        owner: usize,
        name: &'static str,
        how: How,
    },
    Write {
        owner: usize,
        fd: usize,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        owner: usize,
        fd: usize,
        length: usize,
    },
    Dup {
        owner: usize,
        fd: usize,
    },
    Close {
        owner: usize,
        fd: usize,
    },
    Sync {
        owner: usize,
        fd: usize,
    },
    Rename {
        owner: usize,
        from: &'static str,
        to: &'static str,
    },
    Link {
        owner: usize,
        from: &'static str,
        to: &'static str,
    },
    Unlink {
        owner: usize,
        name: &'static str,
    },
    /// SIGKILL.
    Kill {
        owner: usize,
    },
    /// It ends by itself.
    Exit {
        owner: usize,
    },
    /// A signal that it handles, while it waits.
    Interrupt {
        owner: usize,
    },
}

impl Op {
    pub fn owner(&self) -> usize {
        match *self {
            Self::Open { owner, .. }
            | Self::Write { owner, .. }
            | Self::Truncate { owner, .. }
            | Self::Dup { owner, .. }
            | Self::Close { owner, .. }
            | Self::Sync { owner, .. }
            | Self::Rename { owner, .. }
            | Self::Link { owner, .. }
            | Self::Unlink { owner, .. }
            | Self::Kill { owner }
            | Self::Exit { owner }
            | Self::Interrupt { owner } => owner,
        }
    }

    pub fn descriptor(&self) -> Option<usize> {
        match *self {
            Self::Write { fd, .. }
            | Self::Truncate { fd, .. }
            | Self::Dup { fd, .. }
            | Self::Close { fd, .. }
            | Self::Sync { fd, .. } => Some(fd),
            _ => None,
        }
    }
}

fn how() -> impl Strategy<Value = How> {
    let access = prop_oneof![
        3 => Just(Access::Read),
        2 => Just(Access::Write),
        3 => Just(Access::ReadWrite),
    ];
    let flags = (
        proptest::bool::weighted(0.3),
        proptest::bool::weighted(0.3),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.15),
    );
    (access, flags).prop_map(|(access, flags)| {
        let (truncate, create, exclusive, nonblocking) = flags;
        let writes = access != Access::Read;
        How {
            access,
            truncate: truncate && writes,
            create,
            exclusive: exclusive && create,
            nonblocking,
        }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let owner = || 0..OWNERS;
    let fd = || 0..6usize;
    let name = || proptest::sample::select(&NAMES[..]);
    let data = proptest::collection::vec(b'a'..=b'z', 1..5);
    prop_oneof![
        12 => (owner(), name(), how()).prop_map(|(owner, name, how)| Op::Open { owner, name, how }),
        8 => (owner(), fd(), 0..6usize, data).prop_map(|(owner, fd, offset, data)| Op::Write { owner, fd, offset, data }),
        2 => (owner(), fd(), 0..8usize).prop_map(|(owner, fd, length)| Op::Truncate { owner, fd, length }),
        3 => (owner(), fd()).prop_map(|(owner, fd)| Op::Dup { owner, fd }),
        8 => (owner(), fd()).prop_map(|(owner, fd)| Op::Close { owner, fd }),
        3 => (owner(), fd()).prop_map(|(owner, fd)| Op::Sync { owner, fd }),
        2 => (owner(), name(), name()).prop_map(|(owner, from, to)| Op::Rename { owner, from, to }),
        2 => (owner(), name(), name()).prop_map(|(owner, from, to)| Op::Link { owner, from, to }),
        2 => (owner(), name()).prop_map(|(owner, name)| Op::Unlink { owner, name }),
        2 => owner().prop_map(|owner| Op::Kill { owner }),
        1 => owner().prop_map(|owner| Op::Exit { owner }),
        1 => owner().prop_map(|owner| Op::Interrupt { owner }),
    ]
}

/// The reference as proptest knows it.
#[derive(Debug)]
pub struct Machine;

impl ReferenceStateMachine for Machine {
    type State = Reference;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Reference> {
        let content = || proptest::option::weighted(0.7, Just("first"));
        (content(), content(), content())
            .prop_map(|(a, b, c)| Reference::new(&beginning([a, b, c])))
            .boxed()
    }

    fn transitions(_state: &Reference) -> BoxedStrategy<Op> {
        op().boxed()
    }

    fn apply(state: Reference, op: &Op) -> Reference {
        state.apply(op)
    }

    fn preconditions(state: &Reference, op: &Op) -> bool {
        state.allows(op)
    }
}
