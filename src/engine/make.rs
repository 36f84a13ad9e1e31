//! mkdir, mknod and symlink, and whom what is made belongs to.

use super::lookup::{Entry, claim};
use super::tree::{Key, NodeId};
use super::{Caller, Engine};
use crate::backing::{Dir, Errno};
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::path::Path;

impl Engine {
    /// mkdir(2).
    pub fn make_dir(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
    ) -> Result<Entry, Errno> {
        let parent = self.key_of(parent)?;
        self.make(caller, parent, name, |dir| dir.make_dir(name, mode), mode)
    }

    /// mknod(2); `mode` with the type bits.
    pub fn make_node(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        rdev: u64,
    ) -> Result<Entry, Errno> {
        let parent = self.key_of(parent)?;
        let make = |dir: &Dir| dir.make_node(name, mode, rdev);
        self.make(caller, parent, name, make, mode)
    }

    /// symlink(2).
    pub fn make_symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &Path,
    ) -> Result<Entry, Errno> {
        let parent = self.key_of(parent)?;
        let make = |dir: &Dir| dir.make_symlink(name, target);
        self.make(caller, parent, name, make, 0)
    }

    /// Makes something of a name that is free, and claims its node id.
    ///
    /// # Errors
    /// `EEXIST`; what BACKING says.
    pub(super) fn make(
        &self,
        caller: Caller,
        parent: Key,
        name: &OsStr,
        make: impl FnOnce(&Dir) -> Result<(), Errno>,
        mode: u32,
    ) -> Result<Entry, Errno> {
        self.store()?;
        self.check_visible(parent, name)?;
        let names = self.names.exclusive([parent]);
        if self.is_provisional(parent, name) {
            return Err(Errno::EXIST);
        }
        let dir = self.dir(parent)?;
        make(&dir)?;
        let given = self.give_name_to(&dir, name, caller, mode);
        let stat = dir.stat_at(name)?;
        given?;
        let claim = {
            let kind = FileType::from_raw_mode(stat.st_mode);
            let mut state = self.state.lock();
            let identity = crate::backing::identity(&stat);
            let key = state.tree.found(identity, kind, parent, name);
            claim(&mut state, caller, key)?
        };
        drop(names);
        self.entry(claim, Some(stat))
    }

    /// Gives what was just made to whoever asked for it.
    fn give_name_to(
        &self,
        dir: &Dir,
        name: &OsStr,
        caller: Caller,
        mode: u32,
    ) -> Result<(), Errno> {
        let Some((uid, gid)) = self.new_owner(dir, caller)? else {
            return Ok(());
        };
        dir.chown(name, uid, gid)?;
        // chown clears these.
        if mode & 0o6000 != 0 {
            let stat = dir.stat_at(name)?;
            let pinned = dir.pin(name, crate::backing::identity(&stat))?;
            crate::backing::dir::chmod(pinned, stat.st_mode | mode & 0o6000)?;
        }
        Ok(())
    }

    /// The same for a shadow.
    pub(super) fn give_to(
        &self,
        file: &std::fs::File,
        dir: &Dir,
        caller: Caller,
    ) -> Result<(), Errno> {
        let Some((uid, gid)) = self.new_owner(dir, caller)? else {
            return Ok(());
        };
        let mode = rustix::fs::fstat(file)?.st_mode;
        let (uid, gid) = (
            uid.map(rustix::fs::Uid::from_raw),
            gid.map(rustix::fs::Gid::from_raw),
        );
        rustix::fs::fchown(file, uid, gid)?;
        if mode & 0o6000 != 0 {
            crate::backing::dir::chmod(file, mode)?;
        }
        Ok(())
    }

    /// Whom a new file in `dir` belongs to, if not to the daemon: the caller, and the directory's
    /// group where that is set-group-id (inode(7)).
    #[allow(clippy::type_complexity)]
    fn new_owner(
        &self,
        dir: &Dir,
        caller: Caller,
    ) -> Result<Option<(Option<u32>, Option<u32>)>, Errno> {
        if !self.privileged || (caller.uid, caller.gid) == (0, 0) {
            return Ok(None);
        }
        let inherits = dir.stat()?.st_mode & 0o2000 != 0;
        Ok(Some((Some(caller.uid), (!inherits).then_some(caller.gid))))
    }
}
