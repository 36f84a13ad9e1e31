//! Answers to OPEN: who reads a file, the kernel by itself or through requests.

use super::convert::fuse_errno;
use crate::backing::Errno;
use crate::engine::Engine;
use crate::engine::open::{Opened, OpenedOn};
use crate::engine::version::{KernelFile, Reading, Version};
use crate::rules::Policy;
use crate::sync::Arc;
use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};
use log::debug;

/// Answers an open: the kernel caches a committed version, or reads its file by itself, and sends
/// everything about a transaction.
pub(super) fn send_opened(
    engine: &Engine,
    reply: ReplyOpen,
    passthrough: bool,
    result: Result<Opened, Errno>,
) {
    let opened = match result {
        Ok(opened) => opened,
        Err(errno) => return reply.error(fuse_errno(errno)),
    };
    let handle = FileHandle(opened.handle);
    let (version, flush, unchanged) = match opened.on {
        OpenedOn::Transaction { flush } => return reply.opened(handle, private_flags(flush)),
        OpenedOn::Backing => return reply.opened(handle, private_flags(true)),
        OpenedOn::Version {
            version,
            flush,
            unchanged,
        } => (version, flush, unchanged),
    };
    if version.policy == Policy::Append {
        // So that it sees whole records only.
        return reply.opened(handle, private_flags(flush));
    }
    let told = match flush {
        true => FopenFlags::empty(),
        false => FopenFlags::FOPEN_NOFLUSH,
    };
    match backing_id(&version, &reply, passthrough) {
        Some(id) => {
            let token: KernelFile = id.clone();
            engine.attach(opened.handle, token);
            reply.opened_passthrough(handle, told, &id);
        }
        None if unchanged => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | told),
        // The kernel drops what it has cached.
        None => reply.opened(handle, told),
    }
}

/// How the kernel is to use a handle of a transaction, or of a direct file: every read and write comes here, so that
/// every error of one is seen. `flush`: its closes matter.
fn private_flags(flush: bool) -> FopenFlags {
    if flush {
        FopenFlags::FOPEN_DIRECT_IO
    } else {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH
    }
}

/// How the kernel is to use the handle that an answer to CREATE carries. Of a version, too, every
/// read comes here: others may open it before the creator's open(2) is over, and neither caching
/// nor passthrough would then be the one way that they have to share.
pub(super) fn created_flags(on: &OpenedOn) -> FopenFlags {
    match on {
        OpenedOn::Transaction { flush } => private_flags(*flush),
        OpenedOn::Backing => private_flags(true),
        OpenedOn::Version { flush, .. } => private_flags(*flush),
    }
}

/// The kernel's own handle on a version's file, if it is to read that by itself. All open handles
/// of a node id share it: the kernel allows one.
fn backing_id(version: &Version, reply: &ReplyOpen, passthrough: bool) -> Option<Arc<BackingId>> {
    let mut reading = version.reading.lock();
    match &*reading {
        Reading::Cached => return None,
        Reading::Passthrough(weak) => {
            if let Some(id) = weak.upgrade().and_then(|token| token.downcast().ok()) {
                return Some(id);
            }
        }
        Reading::Undecided => {}
    }
    if !passthrough {
        *reading = Reading::Cached;
        return None;
    }
    match reply.open_backing(&*version.file()) {
        Ok(id) => {
            let id = Arc::new(id);
            let token: KernelFile = id.clone();
            *reading = Reading::Passthrough(Arc::downgrade(&token));
            Some(id)
        }
        Err(error) => {
            // For one, BACKING may be stacked too deep itself.
            debug!("no passthrough for a version: {error}");
            *reading = Reading::Cached;
            None
        }
    }
}
