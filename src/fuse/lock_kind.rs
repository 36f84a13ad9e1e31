//! Requests for locks, and whether one came by flock(2) or by fcntl(2).
//!
//! The kernel says so in the last word of the request (`FUSE_LK_FLOCK` in `fuse_lk_in.lk_flags`),
//! and it matters: the two kinds do not see each other, and many programs that deliver mail take
//! both on one file. fuser 0.18 reads the request and drops that word.
//!
//! What fuser hands out, [`Request`], is a reference to the header at the front of the buffer that
//! the request was read into (`#[repr(transparent)]` over `fuse_in_header`), so the whole request is
//! at that address. To read it through the reference would be undefined behaviour in Rust, whose
//! rules give the reference its header only; so the kernel is asked for the bytes, by
//! `/proc/self/mem`, which no rule of the language covers and which fails where there is nothing.
//! The bytes are believed only if everything in them that fuser has told, too, is the same. With a
//! fuser that keeps its requests elsewhere nothing would match, and locks are refused rather than
//! guessed at (as the tests of locks would tell at once).

use super::convert::node;
use crate::backing::Errno;
use crate::engine::locks::LockCall;
use crate::locks::{Mode, Range, Space};
use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicBool, Ordering};
use fuser::{FileHandle, INodeNo, LockOwner, Request};
use log::error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// `FUSE_SETLK` and `FUSE_SETLKW`.
const SETLK: [u32; 2] = [32, 33];
/// `FUSE_LK_FLOCK`.
const FLOCK: u32 = 1;

/// A request to set a lock, from its first byte to its last: include/uapi/linux/fuse.h, since
/// protocol 7.9.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes)]
struct SetLock {
    // fuse_in_header
    len: u32,
    opcode: u32,
    unique: u64,
    nodeid: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    extensions: u32,
    // fuse_lk_in
    fh: u64,
    owner: u64,
    start: u64,
    end: u64,
    kind: u32,
    locker: u32,
    flags: u32,
    padding: u32,
}

const _: () = assert!(size_of::<SetLock>() == 88);

/// What fuser tells of a request for a lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub node: INodeNo,
    pub handle: FileHandle,
    pub owner: LockOwner,
    pub start: u64,
    pub end: u64,
    pub kind: i32,
    pub locker: u32,
    pub wait: bool,
}

impl Told {
    /// What the engine is asked for.
    ///
    /// # Errors
    /// `EINVAL` for a type that fcntl(2) does not know, and for a range that ends before it starts.
    pub(super) fn call(&self, space: Space) -> Result<LockCall, Errno> {
        let mode = match self.kind {
            libc::F_RDLCK => Some(Mode::Shared),
            libc::F_WRLCK => Some(Mode::Exclusive),
            libc::F_UNLCK => None,
            _ => return Err(Errno::INVAL),
        };
        let (start, end) = (self.start, self.end);
        if start > end {
            return Err(Errno::INVAL);
        }
        Ok(LockCall {
            node: node(self.node),
            handle: self.handle.0,
            owner: self.owner.0,
            space,
            range: Range { start, end },
            mode,
            process: self.locker,
        })
    }
}

/// The type of lock that fcntl(2) calls a mode.
pub(super) fn type_of(mode: Mode) -> i32 {
    match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    }
}

/// This process's memory, as a file.
#[derive(Debug, Default)]
pub(super) struct Memory {
    file: OnceLock<Option<File>>,
    /// It has been said that it does not work.
    reported: AtomicBool,
}

impl Memory {
    /// By which call a lock is asked for; `None` if that can't be told.
    pub(super) fn space(&self, request: &Request, told: &Told) -> Option<Space> {
        let file = self.file.get_or_init(|| File::open("/proc/self/mem").ok());
        let mut raw = SetLock::new_zeroed();
        let place = std::ptr::from_ref(request).addr() as u64;
        let read = file
            .as_ref()
            .is_some_and(|file| file.read_exact_at(raw.as_mut_bytes(), place).is_ok());
        if read && raw == expected(request, told, raw.flags) {
            return Some(match raw.flags & FLOCK {
                0 => Space::Fcntl,
                _ => Space::Flock,
            });
        }
        if !self.reported.swap(true, Ordering::Relaxed) {
            error!(
                "bug: locks by flock and fcntl can't be told apart with this fuser (read: {read}); \
                 all are refused with ENOLCK"
            );
        }
        None
    }
}

/// The request as fuser tells of it.
fn expected(request: &Request, told: &Told, flags: u32) -> SetLock {
    SetLock {
        len: size_of::<SetLock>() as u32,
        opcode: SETLK[usize::from(told.wait)],
        unique: request.unique().0,
        nodeid: told.node.0,
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        extensions: 0,
        fh: told.handle.0,
        owner: told.owner.0,
        start: told.start,
        end: told.end,
        kind: told.kind as u32,
        locker: told.locker,
        flags,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_file_shows_what_lies_behind_an_address_and_fails_where_nothing_does() {
        let bytes: Vec<u8> = (0..200).collect();
        let file = File::open("/proc/self/mem").expect("/proc/self/mem");
        let mut copy = [0; 88];
        let place = bytes.as_ptr().addr() as u64;
        file.read_exact_at(&mut copy, place + 1).expect("the bytes");
        assert_eq!(copy, bytes[1..89]);
        assert!(file.read_exact_at(&mut copy, 8).is_err());
    }
}
