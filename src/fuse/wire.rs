//! The four answers that carry attributes, as bytes for the kernel.
//!
//! A version's node id is not the inode number that programs see, and the FUSE protocol has a
//! field for each. fuser 0.18 fills both from `FileAttr::ino`, in its answers to LOOKUP, CREATE
//! and READDIRPLUS alike. Answering with the node id in both makes every stat(2) a second round
//! trip and gives directory listings the wrong inode numbers, so these answers are written here;
//! fuser still reads every request and sends every other answer.
//!
//! Layouts and field names: include/uapi/linux/fuse.h, protocol 7.40.

use crate::backing::{Errno, Stat};
use crate::engine::lookup::{Attributes, Entry};
use crate::sync::{Arc, OnceLock};
use log::debug;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;
use zerocopy::{Immutable, IntoBytes};

/// What stat(2) reports as the size to read and write by: programs size their buffers by it, so
/// that they send few large requests (DESIGN: 256 KiB or more).
const BLOCK_SIZE: u32 = 256 * 1024;

/// The descriptor of `/dev/fuse` that requests come from; set once the session is mounted.
pub type Device = Arc<OnceLock<OwnedFd>>;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct OutHeader {
    len: u32,
    error: i32,
    unique: u64,
}

#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Attr {
    ino: u64,
    size: u64,
    blocks: u64,
    atime: i64,
    mtime: i64,
    ctime: i64,
    atimensec: u32,
    mtimensec: u32,
    ctimensec: u32,
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    blksize: u32,
    flags: u32,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct AttrOut {
    attr_valid: u64,
    attr_valid_nsec: u32,
    dummy: u32,
    attr: Attr,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct EntryOut {
    nodeid: u64,
    generation: u64,
    entry_valid: u64,
    attr_valid: u64,
    entry_valid_nsec: u32,
    attr_valid_nsec: u32,
    attr: Attr,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct OpenOut {
    fh: u64,
    open_flags: u32,
    backing_id: i32,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct DirentHeader {
    ino: u64,
    off: u64,
    namelen: u32,
    kind: u32,
}

const _: () = assert!(size_of::<Attr>() == 88 && size_of::<EntryOut>() == 128);

impl Attr {
    fn new(attributes: &Attributes) -> Self {
        let stat: &Stat = &attributes.stat;
        let (major, minor) = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        Self {
            ino: attributes.reported,
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: stat.st_atime,
            mtime: stat.st_mtime,
            ctime: stat.st_ctime,
            atimensec: stat.st_atime_nsec as u32,
            mtimensec: stat.st_mtime_nsec as u32,
            ctimensec: stat.st_ctime_nsec as u32,
            mode: stat.st_mode,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            // The kernel's new_encode_dev().
            rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
            blksize: BLOCK_SIZE,
            flags: 0,
        }
    }
}

impl EntryOut {
    fn new(entry: &Entry) -> Self {
        let attributes = &entry.attributes;
        Self {
            nodeid: entry.node.0,
            generation: 0,
            entry_valid: entry.name_valid.as_secs(),
            attr_valid: attributes.valid.as_secs(),
            entry_valid_nsec: entry.name_valid.subsec_nanos(),
            attr_valid_nsec: attributes.valid.subsec_nanos(),
            attr: Attr::new(attributes),
        }
    }
}

/// An answer still owed; if it is dropped unsent, the kernel gets `EIO`.
#[derive(Debug)]
pub struct Answer {
    unique: u64,
    device: Device,
    owed: bool,
}

impl Answer {
    /// In the place of `reply`, the one that fuser made for the request.
    pub fn instead_of<R>(reply: R, request: &fuser::Request, device: &Device) -> Self {
        // fuser's reply answers EIO when it is dropped. All it owns is a reference to the device.
        std::mem::forget(reply);
        Self {
            unique: request.unique().0,
            device: device.clone(),
            owed: true,
        }
    }

    /// To LOOKUP, MKDIR, MKNOD, SYMLINK and LINK. False if the kernel did not take it: then it
    /// holds no node id.
    pub fn entry(self, entry: &Entry) -> bool {
        self.send(&[EntryOut::new(entry).as_bytes()])
    }

    /// To CREATE.
    pub fn created(self, entry: &Entry, handle: u64, flags: fuser::FopenFlags) -> bool {
        let open = OpenOut {
            fh: handle,
            open_flags: flags.bits(),
            backing_id: 0,
        };
        self.send(&[EntryOut::new(entry).as_bytes(), open.as_bytes()])
    }

    /// To GETATTR and SETATTR.
    pub fn attributes(self, attributes: &Attributes) {
        let valid: Duration = attributes.valid;
        let out = AttrOut {
            attr_valid: valid.as_secs(),
            attr_valid_nsec: valid.subsec_nanos(),
            dummy: 0,
            attr: Attr::new(attributes),
        };
        self.send(&[out.as_bytes()]);
    }

    /// To READDIRPLUS.
    pub fn page(self, page: &Page) -> bool {
        self.send(&[&page.bytes])
    }

    /// An error, to any of them.
    pub fn error(mut self, errno: Errno) {
        self.owed = false;
        self.write(-errno.raw_os_error(), &[]);
    }

    fn send(mut self, parts: &[&[u8]]) -> bool {
        self.owed = false;
        self.write(0, parts)
    }

    fn write(&self, error: i32, parts: &[&[u8]]) -> bool {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let header = OutHeader {
            len: (size_of::<OutHeader>() + length) as u32,
            error,
            unique: self.unique,
        };
        let mut slices = vec![IoSlice::new(header.as_bytes())];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        let Some(device) = self.device.get() else {
            return false;
        };
        match rustix::io::writev(device, &slices) {
            Ok(_) => true,
            Err(errno) => {
                // ENOENT: the request was interrupted; ENODEV: unmounted.
                debug!("answer to request {} not taken: {errno}", self.unique);
                false
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.owed {
            self.write(-Errno::IO.raw_os_error(), &[]);
        }
    }
}

fn room_in(reply: &str) -> Option<usize> {
    let (_, after) = reply.split_once("max_size: ")?;
    let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|room| *room >= LEAST_ROOM)
}

/// The entries of one READDIRPLUS answer.
#[derive(Debug)]
pub struct Page {
    bytes: Vec<u8>,
    /// How many bytes the kernel takes.
    room: usize,
}

/// The least that the kernel has room for.
const LEAST_ROOM: usize = 4096;

impl Page {
    /// An empty one, as large as the kernel has room for: as much as the program that lists has, since Linux
    /// 6.16 up to fs.fuse.max_pages_limit.
    pub fn answering(reply: &fuser::ReplyDirectoryPlus) -> Self {
        // fuser keeps it to itself, but for this.
        let room = room_in(&format!("{reply:?}")).unwrap_or(LEAST_ROOM);
        Self {
            bytes: Vec::new(),
            room,
        }
    }

    /// Is there room for an entry of that name?
    pub fn has_room(&self, name: &OsStr) -> bool {
        let size = size_of::<EntryOut>() + size_of::<DirentHeader>() + name.len();
        self.bytes.len() + size.next_multiple_of(8) <= self.room
    }

    /// Adds a name with its node id and attributes.
    pub fn add(&mut self, name: &OsStr, entry: &Entry, next: u64) {
        let stat = &entry.attributes.stat;
        let kind = stat.st_mode >> 12;
        let out = EntryOut::new(entry);
        self.push(&out, name, entry.attributes.reported, kind, next);
    }

    /// Adds a name only: the kernel looks it up when it needs it.
    pub fn add_name(&mut self, name: &OsStr, reported: u64, kind: u32, next: u64) {
        let none = [0_u8; size_of::<EntryOut>()];
        self.bytes.extend_from_slice(&none);
        self.push_dirent(name, reported, kind, next);
    }

    fn push(&mut self, out: &EntryOut, name: &OsStr, reported: u64, kind: u32, next: u64) {
        self.bytes.extend_from_slice(out.as_bytes());
        self.push_dirent(name, reported, kind, next);
    }

    fn push_dirent(&mut self, name: &OsStr, reported: u64, kind: u32, next: u64) {
        let header = DirentHeader {
            ino: reported,
            off: next,
            namelen: name.len() as u32,
            kind,
        };
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        let padded = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(padded, 0);
    }
}
