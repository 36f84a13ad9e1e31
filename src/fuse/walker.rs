//! The thread that walks the mount's own paths, to have the kernel drop what it cached of versions
//! that are not the file any more (see `engine/superseded.rs`).
//!
//! It is a client of this very daemon, which nothing in the daemon may wait for. It must hold no
//! descriptor of `/dev/fuse` either: were the daemon killed while this thread waits for an answer
//! or a directory's lock, the kernel would never see the device closed, and the mount would hang
//! for good. So it has a table of descriptors of its own, an empty one.

use crate::engine::Engine;
use crate::engine::superseded::Superseded;
use crate::sync::Arc;
use crate::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use log::warn;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::thread::UnshareFlags;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

/// How often a version is shown and hidden again. The first time may only take away the name of a
/// dentry that a reader holds; the second time there is a dentry of its own.
const ROUNDS: usize = 2;

/// Starts the thread. It ends when the sender goes.
///
/// # Errors
/// If the thread can't be started.
pub(super) fn start(
    engine: Arc<Engine>,
    mountpoint: PathBuf,
) -> std::io::Result<Sender<Superseded>> {
    let (sender, inbox) = channel();
    let builder = thread::Builder::new().name(String::from("walker"));
    builder.spawn(move || {
        // Never dropped here: what it would close then would not be this thread's.
        let engine = ManuallyDrop::new(engine);
        block_signals();
        if let Err(errno) = leave_descriptors() {
            return warn!("inotify watchers of files will not hear of commits: {errno}");
        }
        walk(&engine, &mountpoint, &inbox);
    })?;
    Ok(sender)
}

/// Leaves the process's signals to its other threads: what is done on one writes to a descriptor, which this thread
/// has not, and the signal would be lost. (A process that goes on after SIGSTOP hands what it was sent meanwhile
/// to any of its threads.)
fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset(3) initialises the set, and cannot fail; pthread_sigmask(3) reads it, and changes the mask of
    // this thread only.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// Gives the calling thread a table of descriptors of its own, with nothing in it.
fn leave_descriptors() -> rustix::io::Result<()> {
    // SAFETY: nothing that this thread does from here on uses a descriptor it knew before: it
    // waits for a channel, changes the engine's tables in memory, and calls statx by path. It logs
    // nothing, and never drops what it shares with others.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES)? };
    // SAFETY: closes descriptors of this thread's own table only, of which it uses none.
    if unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) } != 0 {
        return Err(
            rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::IO),
        );
    }
    Ok(())
}

fn walk(engine: &Engine, mountpoint: &Path, inbox: &Receiver<Superseded>) {
    let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    // Those that are to be walked to once more, soonest first.
    let mut again: VecDeque<(Instant, Superseded)> = VecDeque::new();
    loop {
        let next = match again.front() {
            Some((due, _)) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => inbox.recv().map_err(RecvTimeoutError::from),
        };
        match next {
            Ok(old) => {
                walk_to(engine, tid, mountpoint, &old);
                engine.told(old.inode);
                if let Some(believed) = old.believed() {
                    again.push_back((Instant::now() + believed, old));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some((_, old)) = again.pop_front() {
                    walk_to(engine, tid, mountpoint, &old);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn walk_to(engine: &Engine, tid: u32, mountpoint: &Path, old: &Superseded) {
    for _ in 0..ROUNDS {
        let Some(path) = engine.show_superseded(tid, old) else {
            return;
        };
        let path = mountpoint.join(path);
        look_up(&path);
        engine.hide_superseded(tid);
        look_up(&path);
    }
}

/// Has the kernel look a path up, and ask for no attributes.
fn look_up(path: &Path) {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    // Whatever comes of it: the name may be gone, or the mount.
    let _ = rustix::fs::statx(CWD, path, flags, StatxFlags::empty());
}
