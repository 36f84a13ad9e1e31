//! The requests of a hostile sequence, and how they are drawn.

use crate::kernel::op;
use proptest::prelude::*;
use proptest::sample::select;

/// Which node id a request is about.
#[derive(Clone, Copy, Debug)]
pub enum Node {
    Root,
    /// One that the daemon gave and that is not forgotten.
    Given(u8),
    /// One that was given and is forgotten.
    Forgotten(u8),
    /// Any number.
    Number(u64),
}

/// Which handle.
#[derive(Clone, Copy, Debug)]
pub enum Handle {
    /// One that is open, of a file or a directory.
    Open(u8),
    /// One that was released.
    Released(u8),
    Number(u64),
}

/// A name.
#[derive(Clone)]
pub struct Name(pub Vec<u8>);

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "name(b\"{}\")", self.0.escape_ascii())
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self(name.as_bytes().to_vec())
    }
}

/// One step of a sequence.
#[derive(Clone, Debug)]
pub enum Op {
    Lookup(Node, Name),
    Forget(Node, u64),
    BatchForget(Vec<(Node, u64)>),
    GetAttr(Node, Handle),
    SetAttr {
        node: Node,
        handle: Handle,
        valid: u32,
        size: u64,
        mode: u32,
        owner: (u32, u32),
        times: (i64, i64),
    },
    ReadLink(Node),
    SymLink(Node, Name, Name),
    MkNod(Node, Name, u32, u32),
    MkDir(Node, Name, u32),
    Unlink(Node, Name),
    RmDir(Node, Name),
    Rename(Node, Name, Node, Name, Option<u32>),
    Link(Node, Node, Name),
    Open(Node, u32),
    Create(Node, Name, u32, u32),
    Read(Handle, u64, u32),
    Write(Handle, u64, u32, u32),
    Flush(Handle),
    Release(Handle),
    FSync(Handle),
    Fallocate(Handle, u64, u64, u32),
    Lseek(Handle, u64, u32),
    CopyRange(Handle, u64, Handle, u64, u64),
    OpenDir(Node),
    ReadDir(Handle, u64, u32),
    ReadDirPlus(Handle, u64, u32),
    ReleaseDir(Handle),
    FSyncDir(Handle),
    StatFs,
    SetXattr(Node, Name, u32, u32),
    GetXattr(Node, Name, u32),
    ListXattr(Node, u32),
    RemoveXattr(Node, Name),
    Lock {
        opcode: u32,
        node: Node,
        handle: Handle,
        range: (u64, u64),
        kind: u32,
        flags: u32,
    },
    Access(Node),
    Interrupt(u8),
    Bmap(Node),
    Ioctl(Handle),
    Poll(Handle),
    Unknown(u32, Vec<u8>),
    /// The process of a thread starts dying of a signal, or there is a new one of its number.
    Dying(bool),
    /// A signal for a thread is pending, or not any more.
    Interrupted(bool),
    /// Others hold all descriptors; files are mapped.
    Held(bool, bool),
    /// Something is done in BACKING directly.
    Behind(Behind),
}

/// What is done in BACKING directly, on its top level.
#[derive(Clone, Debug)]
pub enum Behind {
    Remove(&'static str),
    /// A symbolic link to what lies outside takes the name.
    LinkOut(&'static str),
    Write(&'static str),
    MakeDir(&'static str),
    Fifo(&'static str),
    Exchange(&'static str, &'static str),
    /// A directory is moved out of BACKING and back under another name.
    HardLink(&'static str, &'static str),
}

/// A step, by whom, and cut to how many bytes (for requests).
#[derive(Clone, Debug)]
pub struct Step {
    pub who: u8,
    pub op: Op,
    pub cut: Option<u8>,
    /// The next step does not wait for the answer.
    pub hurry: bool,
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        4 => Just(Node::Root),
        12 => any::<u8>().prop_map(Node::Given),
        2 => any::<u8>().prop_map(Node::Forgotten),
        1 => select(vec![0, 2, 3, 4, 5, 1 << 40, u64::MAX]).prop_map(Node::Number),
    ]
}

fn handle() -> impl Strategy<Value = Handle> {
    prop_oneof![
        14 => any::<u8>().prop_map(Handle::Open),
        2 => any::<u8>().prop_map(Handle::Released),
        1 => select(vec![0, 1, 1 << 40, u64::MAX]).prop_map(Handle::Number),
    ]
}

/// Names that lead somewhere.
const PLAIN: [&str; 14] = [
    "f", "g", "d", "e", "h", "new", "new2", "out", "outf", "store", "p", "tmp", "f.db", "new.lock",
];

/// Names that lead where nothing may lead.
fn bad_name() -> impl Strategy<Value = Name> {
    let fixed: Vec<Name> = [
        ".",
        "..",
        "",
        "/",
        "a/b",
        "../canary",
        "../canary/f",
        "/etc/passwd",
        "d/../../canary/f",
        "./f",
        "f/",
        ".latchfs",
        ".LATCHFS",
        ".latchfs/",
        "./.latchfs",
        ".latchfs/kept/0.data",
        "out/f",
        "d/out/f",
    ]
    .iter()
    .map(|name| Name::from(*name))
    .chain([255, 256, 5000].map(|length| Name(vec![b'x'; length])))
    .collect();
    prop_oneof![
        6 => select(fixed),
        1 => proptest::collection::vec(1..=255_u8, 0..20).prop_map(Name),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        10 => select(PLAIN.to_vec()).prop_map(Name::from),
        1 => bad_name(),
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..200_000_u64,
        1 => select(vec![
            u64::MAX, i64::MAX as u64, i64::MAX as u64 - 1, i64::MIN as u64, 1 << 50, 1 << 32,
        ]),
    ]
}

fn size() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => 0..10_000_u32,
        2 => select(vec![4096, 65536, 131_072, 150_000]),
        1 => select(vec![0, 1, 1 << 20, u32::MAX]),
    ]
}

fn open_flags() -> impl Strategy<Value = u32> {
    let usual = [
        libc::O_RDONLY,
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_WRONLY | libc::O_TRUNC,
        libc::O_RDWR | libc::O_TRUNC,
        libc::O_WRONLY | libc::O_APPEND,
        libc::O_RDWR | libc::O_NONBLOCK,
        libc::O_RDONLY | libc::O_TRUNC,
        libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL,
    ];
    prop_oneof![
        8 => select(usual.to_vec()).prop_map(|flags| flags as u32),
        1 => any::<u32>(),
    ]
}

fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => select(vec![0o644, 0o600, 0o755, 0o000, 0o6755, 0o7777]),
        1 => any::<u32>(),
    ]
}

/// Types with permissions. The numbers are harmless should the device be opened.
fn node_mode() -> impl Strategy<Value = (u32, u32)> {
    let kinds = [
        libc::S_IFREG,
        libc::S_IFIFO,
        libc::S_IFSOCK,
        libc::S_IFCHR,
        libc::S_IFBLK,
        libc::S_IFDIR,
        libc::S_IFLNK,
        libc::S_IFMT,
        0,
    ];
    (
        select(kinds.to_vec()),
        0..0o10000_u32,
        select(vec![0x103, 0x105, 0xfff_ff0, 0]),
    )
        .prop_map(|(kind, mode, device)| (kind | mode, device))
}

fn rename_flags() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![
        4 => Just(None),
        4 => (0..8_u32).prop_map(Some),
        1 => any::<u32>().prop_map(Some),
    ]
}

fn xattr() -> impl Strategy<Value = Name> {
    let names = [
        "user.a",
        "user.b",
        "trusted.t",
        "security.capability",
        "security.selinux",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "user.",
        "",
        "nonsense",
    ];
    select(names.to_vec()).prop_map(Name::from)
}

fn top() -> impl Strategy<Value = &'static str> {
    select(vec!["f", "g", "d", "new", "new2", "p", "out", "f.db"])
}

fn behind() -> impl Strategy<Value = Behind> {
    prop_oneof![
        2 => top().prop_map(Behind::Remove),
        3 => top().prop_map(Behind::LinkOut),
        2 => top().prop_map(Behind::Write),
        1 => top().prop_map(Behind::MakeDir),
        2 => top().prop_map(Behind::Fifo),
        3 => (top(), top()).prop_map(|(a, b)| Behind::Exchange(a, b)),
        2 => (top(), top()).prop_map(|(a, b)| Behind::HardLink(a, b)),
    ]
}

fn set_attr() -> impl Strategy<Value = Op> {
    // All bits of `valid` that Linux has; more would be another protocol.
    let valid = prop_oneof![select(vec![1, 2, 4, 8, 72, 48, 384, 13, 6]), 0..4096_u32];
    // fuser 0.18 can't take -2^63 seconds where overflows are checked. (The kernel can send that.)
    let seconds = || select(vec![0, 1, -1, 1 << 40, i64::MAX, i64::MIN + 1]);
    let id = || select(vec![0, 1000, 65534, u32::MAX]);
    (
        node(),
        handle(),
        valid,
        offset(),
        mode(),
        (id(), id()),
        (seconds(), seconds()),
    )
        .prop_map(
            |(node, handle, valid, size, mode, owner, times)| Op::SetAttr {
                node,
                handle,
                valid,
                size,
                mode,
                owner,
                times,
            },
        )
}

fn lock() -> impl Strategy<Value = Op> {
    (
        select(vec![op::GETLK, op::SETLK, op::SETLKW]),
        node(),
        handle(),
        (offset(), offset()),
        prop_oneof![0..4_u32, any::<u32>()],
        0..3_u32,
    )
        .prop_map(|(opcode, node, handle, range, kind, flags)| Op::Lock {
            opcode,
            node,
            handle,
            range,
            kind,
            flags,
        })
}

fn any_op() -> BoxedStrategy<Op> {
    let count = || select(vec![0, 1, 1, 1, 2, 3, 1000, u64::MAX]);
    let names = prop_oneof![
        12 => (node(), name()).prop_map(|(n, s)| Op::Lookup(n, s)),
        1 => (node(), name(), name()).prop_map(|(n, s, t)| Op::SymLink(n, s, t)),
        2 => (node(), name(), node_mode()).prop_map(|(n, s, (m, d))| Op::MkNod(n, s, m, d)),
        2 => (node(), name(), mode()).prop_map(|(n, s, m)| Op::MkDir(n, s, m)),
        3 => (node(), name()).prop_map(|(n, s)| Op::Unlink(n, s)),
        1 => (node(), name()).prop_map(|(n, s)| Op::RmDir(n, s)),
        4 => (node(), name(), node(), name(), rename_flags())
            .prop_map(|(n, s, m, t, f)| Op::Rename(n, s, m, t, f)),
        2 => (node(), node(), name()).prop_map(|(n, m, s)| Op::Link(n, m, s)),
        6 => (node(), name(), open_flags(), mode()).prop_map(|(n, s, f, m)| Op::Create(n, s, f, m)),
        2 => (node(), count()).prop_map(|(n, c)| Op::Forget(n, c)),
        1 => proptest::collection::vec((node(), count()), 0..4).prop_map(Op::BatchForget),
        1 => node().prop_map(Op::ReadLink),
    ];
    let files = prop_oneof![
        12 => (node(), open_flags()).prop_map(|(n, f)| Op::Open(n, f)),
        3 => (handle(), offset(), size()).prop_map(|(h, o, s)| Op::Read(h, o, s)),
        6 => (handle(), offset(), size(), 0..8_u32).prop_map(|(h, o, s, f)| Op::Write(h, o, s, f)),
        4 => handle().prop_map(Op::Flush),
        4 => handle().prop_map(Op::Release),
        2 => handle().prop_map(Op::FSync),
        1 => (handle(), offset(), offset(), prop_oneof![0..64_u32, any::<u32>()])
            .prop_map(|(h, o, l, m)| Op::Fallocate(h, o, l, m)),
        1 => (handle(), offset(), 0..6_u32).prop_map(|(h, o, w)| Op::Lseek(h, o, w)),
        1 => (handle(), offset(), handle(), offset(), offset())
            .prop_map(|(h, o, i, p, l)| Op::CopyRange(h, o, i, p, l)),
        2 => lock(),
    ];
    let attributes = prop_oneof![
        3 => (node(), handle()).prop_map(|(n, h)| Op::GetAttr(n, h)),
        6 => set_attr(),
        2 => (node(), xattr(), size(), 0..4_u32).prop_map(|(n, x, s, f)| Op::SetXattr(n, x, s, f)),
        1 => (node(), xattr(), size()).prop_map(|(n, x, s)| Op::GetXattr(n, x, s)),
        1 => (node(), size()).prop_map(|(n, s)| Op::ListXattr(n, s)),
        1 => (node(), xattr()).prop_map(|(n, x)| Op::RemoveXattr(n, x)),
        1 => Just(Op::StatFs),
        1 => node().prop_map(Op::Access),
    ];
    let directories = prop_oneof![
        3 => node().prop_map(Op::OpenDir),
        2 => (handle(), offset(), size()).prop_map(|(h, o, s)| Op::ReadDir(h, o, s)),
        3 => (handle(), prop_oneof![Just(0), offset()], size())
            .prop_map(|(h, o, s)| Op::ReadDirPlus(h, o, s)),
        1 => handle().prop_map(Op::ReleaseDir),
        1 => handle().prop_map(Op::FSyncDir),
    ];
    let odd = prop_oneof![
        any::<u8>().prop_map(Op::Interrupt),
        node().prop_map(Op::Bmap),
        handle().prop_map(Op::Ioctl),
        handle().prop_map(Op::Poll),
        // Not DESTROY (38), which ends the session, and not what has no answer.
        (
            prop_oneof![48..200_u32, Just(7), Just(0), Just(26), Just(1 << 31)],
            proptest::collection::vec(any::<u8>(), 0..80)
        )
            .prop_map(|(o, b)| Op::Unknown(o, b)),
    ];
    let world = prop_oneof![
        1 => any::<bool>().prop_map(Op::Dying),
        1 => any::<bool>().prop_map(Op::Interrupted),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(h, m)| Op::Held(h, m)),
        4 => behind().prop_map(Op::Behind),
    ];
    prop_oneof![
        10 => names,
        10 => files,
        4 => attributes,
        3 => directories,
        1 => odd,
        2 => world,
    ]
    .boxed()
}

/// One step.
pub fn step() -> impl Strategy<Value = Step> {
    let cut = prop_oneof![40 => Just(None), 1 => any::<u8>().prop_map(Some)];
    let who = prop_oneof![6 => 0..2_u8, 4 => any::<u8>()];
    (who, any_op(), cut, prop::bool::weighted(0.25)).prop_map(|(who, op, cut, hurry)| Step {
        who,
        op,
        cut,
        hurry,
    })
}
