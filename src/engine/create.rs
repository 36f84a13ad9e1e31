//! Files that programs create by open(2).

use super::append::appends_by_rule;
use super::io::Handle;
use super::lookup::Entry;
use super::make::NewMode;
use super::open::{OpenFlags, Opened, OpenedOn, check_known};
use super::transaction::Phase;
use super::tree::{Key, NodeId};
use super::{Caller, Engine};
use crate::backing::shadow::Shadow;
use crate::backing::{Errno, identity};
use crate::leases::Acquire;
use crate::sync::Arc;
use rustix::fs::OFlags;
use std::ffi::OsStr;

impl Engine {
    /// open(2) with `O_CREAT` of a name that the kernel believes free.
    ///
    /// # Errors
    /// `EEXIST` with `O_EXCL` if it is not free, else `ESTALE` to have it looked up; what making a
    /// file there says.
    pub fn create(
        self: &Arc<Self>,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(Entry, Opened), Errno> {
        self.check_descriptors()?;
        let writer = self.writer(caller);
        let store = self.store()?;
        let (parent, left_behind, spent) = {
            let mut state = self.state.lock();
            let (key, _) = state.tree.inode_of(parent).ok_or(Errno::STALE)?;
            let redirect = state.take_redirect(caller.tid);
            let spent = state.was_spent_on_nothing(caller.tid);
            (key, redirect.and_then(|r| r.transaction), spent)
        };
        if let Some(transaction) = left_behind {
            self.abandon_pending(&transaction);
        }
        self.check_name(parent, name)?;
        let taken = match (flags.exclusive, spent) {
            (true, _) => Errno::EXIST,
            (false, false) => Errno::STALE,
            (false, true) => Errno::INTR,
        };
        let sent_elsewhere = || {
            if taken == Errno::STALE {
                let mut state = self.state.lock();
                let wants = Some(writer.clone()).filter(|_| !flags.only_appends());
                state.send_elsewhere(caller.tid, wants);
            }
            taken
        };
        let treatment = self.treatment_at(parent, name);
        let direct = treatment.is_direct();
        let appends = flags.append && appends_by_rule(Some(&treatment), flags.truncate);
        if !direct && !appends {
            check_known(caller)?;
        }
        if !flags.write && !direct {
            let made = self.create_to_read(caller, parent, name, mode);
            return made.map_err(|errno| match errno {
                Errno::EXIST => sent_elsewhere(),
                other => other,
            });
        }
        let _names = self.names.exclusive([parent]);
        if self.is_provisional(parent, name) {
            return Err(sent_elsewhere());
        }
        let dir = self.dir(parent)?;
        match dir.stat_at(name) {
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(sent_elsewhere()),
            Err(e) => return Err(e),
        }
        if direct {
            return match self.create_direct((caller, &writer), (parent, &dir), name, mode, flags) {
                Err(Errno::EXIST) => Err(sent_elsewhere()),
                other => other,
            };
        }
        if appends {
            return match self.create_append((caller, &writer), (parent, &dir), name, mode, flags) {
                Err(Errno::EXIST) => Err(sent_elsewhere()),
                other => other,
            };
        }
        let shadow = self.making(caller, mode.umask, || {
            Shadow::create(&dir, store, mode.bits)
        })?;
        let stat = rustix::fs::fstat(shadow.file())?;
        let watch = match flags.read_write {
            true => self.processes.watch(writer.process),
            false => None,
        };
        let transaction = {
            let mut state = self.state.lock();
            let identity = identity(&stat);
            let key = state.tree.provisional(identity, parent, name);
            // A new inode: nobody else can hold it.
            let granted = self.lease_at_once(&mut state, key, caller.tid);
            debug_assert_eq!(granted, Acquire::Granted);
            let transaction = self.begin(&mut state, key, writer, Phase::Open);
            // Before anybody can see it.
            let mut inner = transaction.inner.lock();
            inner.shadow = Some(Arc::new(shadow));
            inner.dirty = true;
            inner.handles = 1;
            inner.unclosed = 1;
            inner.mappable = flags.read_write;
            inner.readable = !flags.write || flags.read_write;
            inner.appends = flags.append;
            inner.watch = watch;
            drop(inner);
            state.tree.looked_up(transaction.node);
            transaction
        };
        let entry = Entry::private(&transaction, stat);
        let handle = self.add_handle(Handle::transaction(transaction, flags.write, true));
        let on = OpenedOn::Transaction { flush: true };
        Ok((entry, Opened { handle, on }))
    }

    /// The same for a handle that can't write: there is nothing to wait for, so the file is there
    /// at once, and empty. A lock file that is only ever locked is made so (flock(1)).
    fn create_to_read(
        &self,
        caller: Caller,
        parent: Key,
        name: &OsStr,
        mode: NewMode,
    ) -> Result<(Entry, Opened), Errno> {
        let mut created = None;
        let make = |dir: &crate::backing::Dir| {
            let file = dir.create_file(name, OFlags::RDONLY, mode.bits)?;
            created = Some((dir.clone(), file));
            Ok(())
        };
        let entry = self.make(caller, parent, name, mode.umask, make)?;
        let created = created.map(|(dir, file)| {
            let may_change = self.may_be_rewritten(&dir, &file, &rustix::fs::fstat(&file)?);
            let key = self.key_of(entry.node)?;
            Ok(self.new_version(key, Arc::new(file), may_change, false))
        });
        let created = created.transpose()?;
        let version = {
            let mut state = self.state.lock();
            let open = state.tree.alive(entry.node).1;
            match (open, created) {
                (Some(open), _) => Ok(open),
                (None, Some(created)) if state.tree.opened(entry.node, &created) => Ok(created),
                _ => Err(Errno::STALE),
            }
        };
        let version = version.inspect_err(|_| self.forget(entry.node, 1))?;
        // Most programs that make a file in order to read it want to lock it, like flock(1).
        let flush = true;
        let handle = self.add_handle(Handle::reader(version.clone(), flush));
        let on = OpenedOn::Version {
            version,
            flush,
            unchanged: true,
        };
        Ok((entry, Opened { handle, on }))
    }
}
