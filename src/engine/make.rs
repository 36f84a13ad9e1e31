//! mkdir, mknod and symlink, and whom what is made belongs to.
//!
//! Files are made as the user who asks, with that user's umask: the kernel then decides in one step
//! about owner, group, mode, ACL and quota, as if the user had made them in BACKING. The right to
//! make them has been judged before, on the mount.

use super::lookup::{Claim, Entry, claim};
use super::tree::{Key, NodeId};
use super::{Caller, Engine};
use crate::backing::credentials::{APPROVED, acting_as, with_umask};
use crate::backing::{Credentials, Dir, Errno, Stat, identity};
use crate::sync::Arc;
use rustix::fs::{FileType, OFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

/// The mode that a new file is to have.
#[derive(Clone, Copy, Debug)]
pub struct NewMode {
    /// As the program gave it, with the type bits for mknod(2).
    pub bits: u32,
    /// What the program's umask takes away, unless the directory has a default ACL.
    pub umask: u32,
}

impl NewMode {
    /// A mode and a umask.
    pub const fn new(bits: u32, umask: u32) -> Self {
        Self { bits, umask }
    }
}

/// A file that was made in BACKING itself.
pub(super) struct Made {
    pub(super) file: Arc<File>,
    pub(super) stat: Stat,
    /// Its node id, for who made it.
    pub(super) claim: Claim,
    pub(super) key: Key,
}

impl Engine {
    /// mkdir(2).
    pub fn make_dir(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: NewMode,
    ) -> Result<Entry, Errno> {
        let parent = self.key_of(parent)?;
        let make = |dir: &Dir| dir.make_dir(name, mode.bits);
        self.make(caller, parent, name, mode.umask, make)
    }

    /// mknod(2).
    pub fn make_node(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: NewMode,
        rdev: u64,
    ) -> Result<Entry, Errno> {
        let parent = self.key_of(parent)?;
        let make = |dir: &Dir| dir.make_node(name, mode.bits, rdev);
        self.make(caller, parent, name, mode.umask, make)
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
        self.make(caller, parent, name, 0, make)
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
        umask: u32,
        make: impl FnOnce(&Dir) -> Result<(), Errno>,
    ) -> Result<Entry, Errno> {
        self.store()?;
        self.check_name(parent, name)?;
        let names = self.names.exclusive([parent]);
        if self.is_provisional(parent, name) {
            return Err(Errno::EXIST);
        }
        let dir = self.dir(parent)?;
        self.making(caller, umask, || make(&dir))?;
        // What can't be told of is not left there.
        let stat = dir.stat_at(name).inspect_err(|_| {
            if dir.unlink(name) == Err(Errno::ISDIR) {
                let _ = dir.remove_dir(name);
            }
        })?;
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

    /// Makes a regular file in BACKING itself, as the caller, and opens it with `access`; who calls this
    /// holds the directory's lock on names.
    ///
    /// # Errors
    /// `EEXIST` if the name is not free; what BACKING says.
    pub(super) fn make_file(
        &self,
        caller: Caller,
        (parent, dir): (Key, &Dir),
        name: &OsStr,
        mode: NewMode,
        access: OFlags,
    ) -> Result<Made, Errno> {
        let file = self.making(caller, mode.umask, || {
            dir.create_file(name, access, mode.bits)
        })?;
        let stat = rustix::fs::fstat(&file)?;
        let mut state = self.state.lock();
        let (identity, kind) = (identity(&stat), FileType::RegularFile);
        let key = state.tree.found(identity, kind, parent, name);
        let claim = claim(&mut state, caller, key)?;
        let file = Arc::new(file);
        Ok(Made {
            file,
            stat,
            claim,
            key,
        })
    }

    /// Does `work`, which makes a file, as the caller.
    pub(super) fn making<T>(
        &self,
        caller: Caller,
        umask: u32,
        work: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let who = Credentials {
            uid: caller.uid,
            gid: caller.gid,
            groups: None,
        };
        with_umask(umask, || self.approved(&who, work))
    }

    /// Does `work`, to which `who` has the right, at that user's expense.
    pub(super) fn approved<T>(
        &self,
        who: &Credentials,
        work: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if self.privileged && (who.uid, who.gid) != (0, 0) {
            acting_as(who, APPROVED, work)
        } else {
            work()
        }
    }
}
