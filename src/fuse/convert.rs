//! Between fuser's types and the engine's.

use crate::backing::Errno;
use crate::engine::Caller;
use crate::engine::tree::NodeId;
use fuser::{INodeNo, Request, TimeOrNow};
use rustix::fs::{FileType, Timespec, Timestamps};
use std::time::UNIX_EPOCH;

pub(super) fn caller(request: &Request) -> Caller {
    Caller {
        tid: request.pid(),
        uid: request.uid(),
        gid: request.gid(),
    }
}

pub(super) fn fuse_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(super) fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn timespec(time: TimeOrNow) -> Timespec {
    match time {
        TimeOrNow::Now => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        TimeOrNow::SpecificTime(time) => match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Timespec {
                tv_sec: since.as_secs() as i64,
                tv_nsec: i64::from(since.subsec_nanos()) as _,
            },
            // fuser 0.18 makes a time before 1970 of -SECONDS + NANOSECONDS (as the kernel sends
            // it) by going back both; undone here.
            Err(before) => Timespec {
                // 2^63 seconds are the one number that stays what it is.
                tv_sec: (before.duration().as_secs() as i64).wrapping_neg(),
                tv_nsec: i64::from(before.duration().subsec_nanos()) as _,
            },
        },
    }
}

/// What utimensat(2) gets for what SETATTR asks.
pub(super) fn timestamps(atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>) -> Option<Timestamps> {
    if atime.is_none() && mtime.is_none() {
        return None;
    }
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_OMIT,
    };
    Some(Timestamps {
        last_access: atime.map_or(omit, timespec),
        last_modification: mtime.map_or(omit, timespec),
    })
}

pub(super) fn fuse_type(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharacterDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        _ => fuser::FileType::RegularFile,
    }
}

/// The number that a directory entry has for a type (DT_DIR and the rest).
pub(super) fn dirent_type(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        kind => kind.as_raw_mode() >> 12,
    }
}
