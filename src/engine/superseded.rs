//! Telling those who watch a file that its version is not the file any more.
//!
//! An inotify watch sits on the kernel's inode, which is one version. A commit gives the file a
//! fresh node id, and the watch would never hear of anything again. After a rename over a file its
//! watchers hear `IN_DELETE_SELF`, and that is what they are to hear here.
//!
//! The kernel sends that event when it drops a dentry whose inode has no link left. So a thread
//! that walks the path of the file, from outside ([`KernelCache::superseded`]), is led to the old
//! version once, which its LOOKUP says has no link; its next LOOKUP finds the present version, and
//! the kernel drops the dentry of the old one.
//!
//! FUSE_NOTIFY_DELETE, made for this, is not used. It finds the old version only if that is what
//! the kernel has cached for the name, and mostly it is not: the writer's own LOOKUP has replaced
//! it. And it waits for the directory's lock inside of a write to `/dev/fuse`; were the daemon
//! killed then, while whoever has that lock waits for an answer, the descriptor would never be
//! closed, and the mount hang for good (fs/fuse/dir.c, fuse_reverse_inval_entry).

use super::lookup::VALID;
use super::redirect::Redirect;
use super::tree::{Key, Name, NodeId};
use super::{Engine, State};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A version that is not the file any more, but that the kernel still knows: somebody reads it, or
/// watches it.
#[derive(Debug)]
pub struct Superseded {
    /// The file.
    pub inode: Key,
    node: NodeId,
    /// The name that it had, and the way there.
    name: Name,
    path: Vec<OsString>,
    linked: bool,
}

impl Superseded {
    /// How long the kernel may go on believing that a name of the file is this version, without
    /// asking: what it was told before the file got its second name.
    pub fn believed(&self) -> Option<Duration> {
        self.linked.then_some(VALID)
    }
}

impl Engine {
    /// Tells who watches a file of the commit that took `before` its place, if it did.
    pub(super) fn tell_watchers(&self, key: Key, before: Option<NodeId>) {
        let (Some(kernel), Some(node)) = (self.kernel.get(), before) else {
            return;
        };
        let superseded = {
            let state: &mut State = &mut self.state.lock();
            // Mostly the kernel has forgotten it by now: the writer's LOOKUP took its dentry away.
            if !state.tree.is_known(node) {
                return;
            }
            let inode = state.tree.inode(key).filter(|i| i.current != node);
            let (Some(inode), Some(path)) = (inode, state.tree.path(key)) else {
                return;
            };
            let Some(name) = inode.names.first().cloned() else {
                return;
            };
            let linked = inode.linked;
            // Nobody is told from here on that the name may be believed for a while.
            *state.telling.entry(key).or_default() += 1;
            Superseded {
                inode: key,
                node,
                name,
                path,
                linked,
            }
        };
        if !kernel.superseded(superseded) {
            self.told(key);
        }
    }

    /// Who watches an old version of a file has been told.
    pub fn told(&self, key: Key) {
        let telling = &mut self.state.lock().telling;
        if let Some(count) = telling.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                telling.remove(&key);
            }
        }
    }

    /// From now on LOOKUP leads this thread to an old version. Returns the path to walk, relative
    /// to the root of the mount; `None` if the kernel has forgotten the version.
    pub fn show_superseded(&self, tid: u32, old: &Superseded) -> Option<PathBuf> {
        let state: &mut State = &mut self.state.lock();
        if !state.tree.is_known(old.node) {
            return None;
        }
        let mut names = state.names_of(old.inode);
        let path = match state.tree.path(old.inode).filter(|_| !names.is_empty()) {
            Some(path) => path,
            None => old.path.clone(),
        };
        names.push(old.name.clone());
        let redirect = Redirect {
            inode: old.inode,
            from: old.node,
            target: old.node,
            pin: None,
            transaction: None,
            looked: false,
            walked: false,
            superseded: true,
            since: Instant::now(),
            names,
        };
        state.tree.pin(old.inode, old.node);
        if let Some(last) = state.redirects.insert(tid, redirect) {
            state.tree.unpin(last.inode, last.target);
        }
        Some(path.into_iter().collect())
    }

    /// From now on LOOKUP leads this thread to what is there.
    pub fn hide_superseded(&self, tid: u32) {
        self.state.lock().take_redirect(tid);
    }
}
