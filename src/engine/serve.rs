//! Opening committed versions to read them.

use super::Engine;
use super::io::Handle;
use super::open::{Opened, OpenedOn, Wish};
use super::tree::{Inode, Key, NodeId};
use super::version::Version;
use crate::backing::{Dir, Errno, Identity, Stamp, Stat, descriptors, stamp};
use crate::sync::Arc;
use rustix::fs::{FileType, OFlags};
use std::ffi::OsStr;

impl Engine {
    /// Sends an opener of a superseded version to the current one, which stays open for it.
    pub(super) fn send_to_current(&self, wish: &Wish) -> Errno {
        match self.version(wish.inode) {
            Ok((target, version)) => {
                let mut state = self.state.lock();
                let (caller, key, from) = (wish.caller, wish.inode, wish.node);
                state.redirect(caller, key, from, target, Some(version), None);
                Errno::STALE
            }
            Err(errno) => errno,
        }
    }

    /// Opens the version of a node id for reading; if that has been superseded just now, sends the
    /// opener to the one that is current.
    pub(super) fn serve_or_send(
        &self,
        wish: &Wish,
        pin: Option<Arc<Version>>,
    ) -> Result<Opened, Errno> {
        match self.serve(wish.inode, wish.node, pin) {
            Err(Errno::STALE) if wish.unnamed => self.serve_here(wish.inode),
            Err(Errno::STALE) => Err(self.send_to_current(wish)),
            other => other,
        }
    }

    /// Opens the current version by the node id of one that is gone: the opener holds that by
    /// `O_PATH` and came by a magic link, so it can't be sent to another.
    fn serve_here(&self, key: Key) -> Result<Opened, Errno> {
        let (_, version) = self.version(key)?;
        let handle = self.add_handle(Handle::reader(version, true));
        let on = OpenedOn::Backing;
        Ok(Opened { handle, on })
    }

    /// The current version of a file, opened if it is not open.
    ///
    /// # Errors
    /// `ESTALE` if it is not the file any more: that was changed behind the mount.
    pub(super) fn version(&self, key: Key) -> Result<(NodeId, Arc<Version>), Errno> {
        let (node, version, _) = self.version_seen(key)?;
        Ok((node, version))
    }

    /// The same, and what tells its content from an earlier one of the same inode.
    fn version_seen(&self, key: Key) -> Result<(NodeId, Arc<Version>, Stamp), Errno> {
        self.at_place(key, |dir, name, identity| {
            if let Some((node, version)) = self.open_version(key) {
                let stat = look(dir, name, identity)?;
                return Ok((node, version, stamp(&stat)));
            }
            if self.is_torn(key) {
                return Err(Errno::IO);
            }
            let file = dir.open_file(name, OFlags::RDONLY, identity);
            let file = descriptors::staying(file.map_err(gone)?)?;
            let stat = rustix::fs::fstat(&file)?;
            let (linked, stamp) = (stat.st_nlink > 1, stamp(&stat));
            let may_change = self.may_be_rewritten(dir, &file, &stat);
            let version = self.new_version(key, Arc::new(file), may_change, false);
            // Somebody may have opened it meanwhile; all must share one.
            let mut state = self.state.lock();
            let inode = state.tree.inode_mut(key).ok_or(Errno::STALE)?;
            inode.linked = linked;
            let current = inode.current;
            if let (_, Some(open)) = state.tree.alive(current) {
                return Ok((current, open, stamp));
            }
            state.tree.opened(current, &version);
            Ok((current, version, stamp))
        })
    }

    /// The current version, if somebody has it open.
    fn open_version(&self, key: Key) -> Option<(NodeId, Arc<Version>)> {
        let state = self.state.lock();
        let current = state.tree.inode(key)?.current;
        Some((current, state.tree.alive(current).1?))
    }

    /// Opens the version of a node id for reading.
    pub(super) fn serve(
        &self,
        key: Key,
        node: NodeId,
        pin: Option<Arc<Version>>,
    ) -> Result<Opened, Errno> {
        // What is not at a name in BACKING can't have been changed there.
        let elsewhere = || {
            let state = self.state.lock();
            let named = |inode: &Inode| inode.current == node && !inode.names.is_empty();
            let named = state.tree.inode(key).is_some_and(named);
            state.tree.alive(node).1.filter(|_| !named)
        };
        let (version, unchanged) = match pin.or_else(elsewhere) {
            Some(version) => (version, true),
            None => {
                let (current, version, stamp) = self.version_seen(key)?;
                if current != node {
                    return Err(Errno::STALE);
                }
                (version, self.is_unchanged(key, node, stamp))
            }
        };
        let flush = self.is_locked(key);
        let handle = self.add_handle(Handle::reader(version.clone(), flush));
        let on = OpenedOn::Version {
            version,
            flush,
            unchanged,
        };
        Ok(Opened { handle, on })
    }

    /// Has a version still the content of which the kernel may have cached some? If not, it was
    /// edited behind the mount, and what the kernel knows of its size and times goes.
    fn is_unchanged(&self, key: Key, node: NodeId, stamp: Stamp) -> bool {
        let before = {
            let mut state = self.state.lock();
            let inode = state.tree.inode_mut(key).filter(|i| i.current == node);
            inode.and_then(|inode| inode.opened_with.replace(Box::new(stamp)))
        };
        let unchanged = before.is_none_or(|before| *before == stamp);
        if let (false, Some(kernel)) = (unchanged, self.kernel.get()) {
            kernel.drop_attributes(node);
        }
        unchanged
    }
}

/// What the regular file of a name is like, if it is still that one.
///
/// # Errors
/// `ESTALE` if it was replaced or removed behind the mount.
pub(super) fn look(dir: &Dir, name: &OsStr, who: Identity) -> Result<Stat, Errno> {
    let stat = dir.stat_as(name, who).map_err(gone)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        _ => Err(Errno::STALE),
    }
}

/// What was removed behind the mount, or is something else that has got its inode number, is to be
/// looked up again.
fn gone(errno: Errno) -> Errno {
    match errno {
        Errno::NOENT | Errno::INVAL => Errno::STALE,
        other => other,
    }
}
