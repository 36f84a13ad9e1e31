//! The kernel's side of the FUSE protocol, over a socket in the place of `/dev/fuse`: writes raw
//! requests, collects the answers.
//!
//! Layouts: include/uapi/linux/fuse.h, protocol 7.40.

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The numbers of the requests (`enum fuse_opcode`).
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
const ENTRY_OUT: usize = 128;
/// Room for the largest message in either direction.
const BUFFER: usize = 4 << 20;

/// Who a request is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub uid: u32,
    pub gid: u32,
    pub tid: u32,
}

/// The arguments of a request.
#[derive(Clone, Debug, Default)]
pub struct Args(pub Vec<u8>);

impl Args {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    /// A name, ended by a NUL byte.
    pub fn name(self, value: &[u8]) -> Self {
        self.bytes(value).bytes(&[0])
    }
}

/// What came back for a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 0, or an errno.
    pub errno: i32,
    pub body: Vec<u8>,
}

/// An entry of an answer: a node id that the kernel holds from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub node: u64,
    pub mode: u32,
}

fn u64_at(body: &[u8], at: usize) -> Option<u64> {
    let bytes = body.get(at..at + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

fn u32_at(body: &[u8], at: usize) -> Option<u32> {
    let bytes = body.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

impl Answer {
    /// The entry of an answer to LOOKUP, CREATE, MKDIR and their like.
    pub fn entry(&self) -> Option<Told> {
        entry_at(&self.body, 0)
    }

    /// The handle of an answer to OPEN and OPENDIR.
    pub fn handle(&self) -> Option<u64> {
        u64_at(&self.body, 0)
    }

    /// The handle of an answer to CREATE.
    pub fn created_handle(&self) -> Option<u64> {
        u64_at(&self.body, ENTRY_OUT)
    }

    /// The mode in an answer to GETATTR or SETATTR.
    pub fn mode(&self) -> Option<u32> {
        u32_at(&self.body, 16 + 60)
    }

    /// The names of an answer to READDIR.
    pub fn names(&self) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = 0;
        while let Some((name, length)) = dirent_at(&self.body, at) {
            names.push(name);
            at += length;
        }
        names
    }

    /// The names of an answer to READDIRPLUS, and the entries that the kernel was told with them.
    pub fn entries(&self) -> Vec<(Vec<u8>, Option<Told>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        while let Some((name, length)) = dirent_at(&self.body, at + ENTRY_OUT) {
            let told = entry_at(&self.body, at).filter(|told| told.node != 0);
            entries.push((name, told));
            at += ENTRY_OUT + length;
        }
        entries
    }
}

fn entry_at(body: &[u8], at: usize) -> Option<Told> {
    let node = u64_at(body, at)?;
    let mode = u32_at(body, at + 40 + 60)?;
    Some(Told { node, mode })
}

fn dirent_at(body: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    let length = u32_at(body, at + 16)? as usize;
    let name = body.get(at + 24..at + 24 + length)?.to_vec();
    Some((name, (24 + length).next_multiple_of(8)))
}

#[derive(Default)]
struct Inbox {
    answers: HashMap<u64, Vec<Answer>>,
    notices: usize,
}

/// The kernel's end of the socket.
pub struct Kernel {
    socket: Arc<OwnedFd>,
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
    next: AtomicU64,
    reader: Option<JoinHandle<()>>,
}

impl Kernel {
    /// A kernel, and the descriptor for the daemon.
    pub fn new() -> (Self, OwnedFd) {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket pair");
        for end in [&ours, &theirs] {
            rustix::net::sockopt::set_socket_send_buffer_size_force(end, BUFFER)
                .expect("a large buffer (the tests run as root)");
        }
        let socket = Arc::new(ours);
        let inbox: Arc<(Mutex<Inbox>, Condvar)> = Arc::default();
        let reader = std::thread::spawn({
            let (socket, inbox) = (socket.clone(), inbox.clone());
            move || read_answers(&socket, &inbox)
        });
        let kernel = Self {
            socket,
            inbox,
            next: AtomicU64::new(2),
            reader: Some(reader),
        };
        (kernel, theirs)
    }

    /// INIT, with everything that a kernel can do.
    pub fn init(&self) -> u64 {
        let args = Args::new().u32(7).u32(40).u32(128 << 10).u32(!0).u32(!0);
        let root = Who {
            uid: 0,
            gid: 0,
            tid: 0,
        };
        self.send(op::INIT, 0, root, &args.bytes(&[0; 44]))
    }

    /// Sends a request, and returns its number.
    pub fn send(&self, opcode: u32, node: u64, who: Who, args: &Args) -> u64 {
        let unique = self.next.fetch_add(2, Ordering::Relaxed);
        let header = Args::new()
            .u32((IN_HEADER + args.0.len()) as u32)
            .u32(opcode)
            .u64(unique)
            .u64(node)
            .u32(who.uid)
            .u32(who.gid)
            .u32(who.tid)
            .u32(0);
        let message = header.bytes(&args.0);
        rustix::net::send(&*self.socket, &message.0, SendFlags::NOSIGNAL).expect("send");
        unique
    }

    /// Waits for the answer to a request, for a while.
    pub fn wait(&self, unique: u64, limit: Duration) -> Option<Answer> {
        let end = Instant::now() + limit;
        let (inbox, changed) = &*self.inbox;
        let mut inbox = inbox.lock().expect("the inbox");
        loop {
            if let Some(answers) = inbox.answers.get(&unique) {
                return answers.first().cloned();
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            inbox = changed.wait_timeout(inbox, left).expect("the inbox").0;
        }
    }

    /// How many answers a request has got.
    pub fn count(&self, unique: u64) -> usize {
        let inbox = self.inbox.0.lock().expect("the inbox");
        inbox.answers.get(&unique).map_or(0, Vec::len)
    }

    /// How many answers there are to requests that were never made.
    pub fn unasked(&self) -> usize {
        let next = self.next.load(Ordering::Relaxed);
        let inbox = self.inbox.0.lock().expect("the inbox");
        let asked = |unique: &&u64| **unique >= 2 && **unique < next && **unique % 2 == 0;
        inbox.answers.len() - inbox.answers.keys().filter(asked).count()
    }

    /// Is something in what came back?
    pub fn has_seen(&self, marker: &[u8]) -> bool {
        let inbox = self.inbox.0.lock().expect("the inbox");
        let mut all = inbox.answers.values().flatten();
        all.any(|answer| contains(&answer.body, marker))
    }

    /// Hangs up, as the kernel does after the unmount.
    pub fn hang_up(&mut self) {
        let _ = rustix::net::shutdown(self.socket.as_fd(), rustix::net::Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader");
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.hang_up();
    }
}

pub fn contains(text: &[u8], marker: &[u8]) -> bool {
    text.windows(marker.len()).any(|window| window == marker)
}

fn read_answers(socket: &OwnedFd, inbox: &(Mutex<Inbox>, Condvar)) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => return,
            Ok((length, _)) => length,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        let message = &buffer[..length];
        let unique = u64_at(message, 8).expect("a header");
        let errno = -(u32_at(message, 4).expect("a header") as i32);
        let mut inbox_now = inbox.0.lock().expect("the inbox");
        if unique == 0 {
            inbox_now.notices += 1;
        } else {
            let body = message[OUT_HEADER..].to_vec();
            let answers = inbox_now.answers.entry(unique).or_default();
            answers.push(Answer { errno, body });
        }
        drop(inbox_now);
        inbox.1.notify_all();
    }
}
