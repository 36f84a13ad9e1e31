//! stat, chmod, chown, utimens, truncate and extended attributes.
//!
//! On a transaction's private version they act on its shadow and appear with its commit; on a
//! transaction that has written nothing, and on everything else, they act on the file of BACKING
//! at once.

use super::lookup::{Attributes, VALID};
use super::transaction::{Phase, Transaction};
use super::tree::{Key, NodeId};
use super::{Caller, Done, Engine};
use crate::backing::credentials::{APPROVED_BUT_SETGID, NOTHING, acting_as};
use crate::backing::dir;
use crate::backing::shadow::{self, Shadow};
use crate::backing::{Errno, Stat};
use crate::leases::Acquire;
use crate::sync::Arc;
use rustix::fs::Timestamps;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// What setattr is to change.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// chmod(2).
    pub mode: Option<u32>,
    /// chown(2).
    pub uid: Option<u32>,
    /// chown(2).
    pub gid: Option<u32>,
    /// truncate(2) or ftruncate(2).
    pub size: Option<u64>,
    /// utimensat(2).
    pub times: Option<Timestamps>,
    /// The handle, if it came through one.
    pub handle: Option<u64>,
}

impl Change {
    fn owner(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }

    fn is_nothing(&self) -> bool {
        !self.owner() && self.mode.is_none() && self.size.is_none() && self.times.is_none()
    }
}

/// What a request on a node id acts on.
enum Subject {
    /// A transaction's shadow.
    Shadow(Arc<Transaction>, Arc<Shadow>),
    /// The file of BACKING, by its name.
    Named(Key),
    /// A version that is still open, but is not the file any more.
    Open(Arc<File>),
}

impl Engine {
    /// stat(2) of a node id.
    ///
    /// # Errors
    /// `ESTALE` if what it stood for is gone.
    pub fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        // What it stood for when it was looked at may be over by the time it is asked. An ESTALE would use up
        // the one more walk that the kernel makes for an open(2).
        let mut looks = std::iter::repeat_with(|| self.attributes_now(node)).take(16);
        let told = looks.find(|told| !matches!(told, Err(Errno::STALE)));
        told.unwrap_or(Err(Errno::STALE))
    }

    fn attributes_now(&self, node: NodeId) -> Result<Attributes, Errno> {
        let (key, reported, names, transaction, version, valid, provisional) = {
            let state = self.state.lock();
            let (key, inode) = state.tree.inode_of(node).ok_or(Errno::STALE)?;
            let (transaction, version) = state.tree.alive(node);
            let creating = inode.transaction.clone().filter(|_| inode.is_provisional());
            // By another name, a hard link may be replaced without the kernel hearing of it. And a
            // file that is appended to grows.
            let grows = version.as_ref().is_some_and(|v| v.growth().is_some());
            let calm = inode.current == node && !inode.linked && !grows;
            let valid = if calm { VALID } else { Duration::ZERO };
            let names = inode.names.len();
            (
                key,
                inode.reported,
                names,
                transaction,
                version,
                valid,
                creating,
            )
        };
        if let Some(transaction) = transaction
            && let Some(stat) = self.private_stat(&transaction)?
        {
            return Ok(Attributes::changing(reported, stat));
        }
        if let Some(creating) = provisional {
            // To everyone but its writer it exists, and is empty.
            let shadow = creating.inner.lock().shadow.clone().ok_or(Errno::STALE)?;
            let mut stat = rustix::fs::fstat(shadow.file())?;
            (stat.st_size, stat.st_blocks) = (0, 0);
            stat.st_nlink = names.max(1) as _;
            return Ok(Attributes::changing(reported, stat));
        }
        if let Some(version) = version {
            let mut stat = version.seen(|file| rustix::fs::fstat(file))?;
            if version.growth().is_some() {
                stat.st_size = version.length()? as _;
            }
            return Ok(Attributes {
                stat,
                reported,
                valid,
            });
        }
        let stat = match self.named_stat(key) {
            Err(Errno::STALE | Errno::NOENT) if key == super::tree::ROOT => self.root.stat()?,
            Err(Errno::STALE | Errno::NOENT) => self.last_attributes(key)?,
            other => other?,
        };
        Ok(Attributes {
            stat: self.without_store(key, stat),
            reported,
            valid,
        })
    }

    /// The root without the link that latchfs's own directory is to it. (A file system that counts
    /// no links of directories says 1.)
    fn without_store(&self, key: Key, mut stat: Stat) -> Stat {
        if key == super::tree::ROOT && self.store.is_some() && stat.st_nlink > 2 {
            stat.st_nlink -= 1;
        }
        stat
    }

    /// What a file was like that has no name any more.
    fn last_attributes(&self, key: Key) -> Result<Stat, Errno> {
        let state = self.state.lock();
        let inode = state.tree.inode(key).filter(|i| i.names.is_empty());
        let last = inode.and_then(|inode| inode.last.as_deref());
        let mut stat = last.ok_or(Errno::STALE)?.stat;
        stat.st_nlink = 0;
        Ok(stat)
    }

    /// stat(2) of a transaction's private version; `None` if it has none any more.
    fn private_stat(&self, transaction: &Transaction) -> Result<Option<Stat>, Errno> {
        let (content, base_gone, phase, detached, replaced) = {
            let inner = transaction.inner.lock();
            let truncated = inner.dirty && inner.base.is_none();
            let detached = inner.detached.is_some();
            let content = inner.content();
            (content, truncated, inner.phase, detached, inner.replaced)
        };
        if let Some(content) = content {
            let mut stat = rustix::fs::fstat(&*content.file)?;
            if let Some(limit) = content.limit {
                stat.st_size = stat.st_size.min(limit as _);
            }
            self.take_over_stat(transaction, &mut stat);
            // The shadow has no name of its own, but the file has.
            stat.st_nlink = match detached {
                true => 0,
                false => self.links(transaction.inode),
            };
            return Ok(Some(stat));
        }
        if base_gone || phase == Phase::Pending {
            // Emptied by O_TRUNC, or about to be opened: the file's own attributes.
            let known = self.named_stat(transaction.inode).ok().or(replaced);
            let Some(mut stat) = known.or_else(|| self.last_attributes(transaction.inode).ok())
            else {
                return Ok(None);
            };
            if base_gone {
                (stat.st_size, stat.st_blocks) = (0, 0);
            }
            if detached {
                stat.st_nlink = 0;
            }
            return Ok(Some(stat));
        }
        Ok(None)
    }

    /// What of a shadow's attributes its commit will take over from the file (W11).
    fn take_over_stat(&self, transaction: &Transaction, stat: &mut Stat) {
        let (had, own_owner, own_mode, dropped) = {
            let inner = transaction.inner.lock();
            let own = &inner.explicit;
            let dropped = inner.privileges_dropped;
            (inner.attributes_of, own.owner, own.mode, dropped)
        };
        let Some(had) = had else { return };
        let now = self.named_stat(transaction.inode).unwrap_or(had);
        if !own_owner {
            // Not the shadow's, where the daemon may not give that away: the commit will keep the file's
            // inode then.
            (stat.st_uid, stat.st_gid) = (now.st_uid, now.st_gid);
        }
        if !own_mode && now.st_mode != had.st_mode {
            let in_group = transaction.writer.credentials.is_in(stat.st_gid);
            stat.st_mode = match dropped {
                true => shadow::mode_after_write(now.st_mode, in_group),
                false => now.st_mode,
            };
        }
    }

    /// stat(2) of the file of BACKING, by its name.
    fn named_stat(&self, key: Key) -> Result<Stat, Errno> {
        self.at_place(key, |dir, name, who| dir.stat_as(name, who))
    }

    /// How many names a file has: those that it will have, if it is being created.
    fn links(&self, key: Key) -> u64 {
        let (known, ask) = {
            let state = self.state.lock();
            let inode = state.tree.inode(key);
            let ask = inode.is_some_and(|inode| inode.linked && !inode.is_provisional());
            (inode.map_or(0, |inode| inode.names.len()), ask)
        };
        let links = match ask {
            true => self.at_place(key, |dir, name, _| Ok(dir.stat_at(name)?.st_nlink)),
            false => Ok(known as u64),
        };
        links.unwrap_or(known as u64).max(1)
    }

    fn subject(&self, node: NodeId) -> Result<Subject, Errno> {
        let state = self.state.lock();
        let (key, inode) = state.tree.inode_of(node).ok_or(Errno::STALE)?;
        let named = !inode.names.is_empty() || key == super::tree::ROOT;
        let creating = inode.transaction.clone().filter(|_| inode.is_provisional());
        let (transaction, version) = state.tree.alive(node);
        // Whoever changes the mode of a file being created changes that of the file to be.
        if let Some(transaction) = transaction.or(creating) {
            let inner = transaction.inner.lock();
            // Published, it is a version that must not change.
            let own = !inner.published && matches!(inner.phase, Phase::Pending | Phase::Open);
            let shadow = inner.shadow.clone().filter(|_| own);
            let base = inner.base.clone();
            // By O_TRUNC; what is set now must not wait in the old file, whose times go with it.
            let emptied = own && inner.dirty && base.is_none();
            drop(inner);
            if let Some(shadow) = shadow {
                return Ok(Subject::Shadow(transaction, shadow));
            }
            if !named || emptied {
                // The file that was unlinked under its writer; emptied, it is a new one.
                drop(state);
                return match base {
                    Some(base) => Ok(Subject::Open(base.file())),
                    None => {
                        let shadow = self.materialize(&transaction)?;
                        Ok(Subject::Shadow(transaction, shadow))
                    }
                };
            }
        }
        match version {
            _ if named => Ok(Subject::Named(key)),
            Some(version) => Ok(Subject::Open(version.file())),
            None => Err(Errno::STALE),
        }
    }

    /// setattr: chmod, chown, utimens and truncate.
    ///
    /// # Errors
    /// Through `done`: `EBUSY` for truncate(2) of a file that another owner is writing, `ESTALE`
    /// to have a name looked up again; what BACKING says.
    pub fn change(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        change: Change,
        done: Done<Attributes>,
    ) {
        if self.store.is_none() {
            return done(Err(Errno::ROFS));
        }
        // Minus one is nobody's number: to chown(2) it means "as it was".
        if change.uid == Some(u32::MAX) || change.gid == Some(u32::MAX) {
            return done(Err(Errno::INVAL));
        }
        let Some(size) = change.size else {
            let result = self.change_as(caller, node, &change);
            return done(result.and_then(|()| self.attributes(node)));
        };
        let appender =
            change
                .handle
                .and_then(|handle| match self.handles.get(&handle).as_deref() {
                    Some(super::Handle::Append(appender)) => Some(appender.clone()),
                    _ => None,
                });
        if let Some(appender) = appender {
            return self.truncate_appended(caller, node, (appender, change, size), done);
        }
        match self.direct_to_truncate(caller, node, change.handle) {
            Ok(None) => {}
            Ok(Some(file)) => {
                return self.spawn(move |engine| {
                    let who = engine.writer(caller).credentials;
                    let truncated = super::direct::truncate(&file, size, &who);
                    let changed = truncated.and_then(|()| engine.change_as(caller, node, &change));
                    done(changed.and_then(|()| engine.attributes(node)));
                });
            }
            Err(errno) => return done(Err(errno)),
        }
        let mut left_behind = None;
        let truncation = self.truncation(caller, node, change.handle, &mut left_behind);
        if let Some(transaction) = left_behind {
            self.abandon_pending(&transaction);
        }
        let truncation = match truncation {
            Ok(truncation) => truncation,
            Err(errno) => return done(Err(errno)),
        };
        self.truncate_by(caller, node, (change, size), truncation, done);
    }

    /// Truncates a version, and commits it if that is all of it.
    pub(super) fn truncate_by(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        (change, size): (Change, u64),
        truncation: (Arc<Transaction>, bool),
        done: Done<Attributes>,
    ) {
        // Making the shadow may copy a large file.
        self.spawn(move |engine| {
            let (transaction, whole) = truncation;
            if whole {
                engine.take_base(&transaction);
            }
            let drop_privileges = caller.uid != 0;
            let result = engine.truncate_to(&transaction, size).and_then(|()| {
                let rest = match drop_privileges {
                    true => transaction.drop_privileges(),
                    false => Ok(()),
                };
                let rest = rest.and_then(|()| engine.change_as(caller, node, &change));
                let attributes = rest.and_then(|()| engine.attributes(node));
                // The program takes it for not truncated (W8).
                attributes.inspect_err(|errno| {
                    transaction.inner.lock().failed.get_or_insert(*errno);
                })
            });
            if !whole {
                return done(result);
            }
            // truncate(2) is a transaction of its own.
            if let Err(errno) = result {
                transaction.inner.lock().failed.get_or_insert(errno);
            }
            engine.finish(&transaction, Box::new(move |ended| done(ended.and(result))));
        });
    }

    /// The transaction that a truncation belongs to, and whether it is all of it.
    fn truncation(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        handle: Option<u64>,
        left_behind: &mut Option<Arc<Transaction>>,
    ) -> Result<(Arc<Transaction>, bool), Errno> {
        if let Some(handle) = handle
            && let Some(super::Handle::Transaction { transaction, .. }) =
                self.handles.get(&handle).as_deref()
        {
            return Ok((transaction.clone(), false));
        }
        super::open::check_known(caller)?;
        let writer = self.writer(caller);
        let mut state = self.state.lock();
        let redirect = state.take_redirect(caller.tid);
        *left_behind = redirect
            .as_ref()
            .and_then(|r| r.transaction.clone())
            .filter(|t| t.node != node);
        let (spent, _) = state.was_spent(caller.tid);
        let again = match spent {
            true => Errno::BUSY,
            false => Errno::STALE,
        };
        let (key, inode) = state.tree.inode_of(node).ok_or(again)?;
        super::open::check_regular(inode.kind)?;
        let in_flight = inode.transaction.clone();
        if let Some(transaction) = in_flight {
            if transaction.node != node {
                // Another owner's; or its own, by a path that has to be looked up again.
                if transaction.writer.tid != caller.tid || redirect.is_some() {
                    return Err(Errno::BUSY);
                }
                let target = transaction.node;
                state.redirect(caller, key, node, target, None, None);
                return Err(Errno::STALE);
            }
            return Ok(join_to_truncate(transaction));
        }
        if redirect.is_some() || spent {
            // By a magic link, which can't be sent to another node id; or its name became another file.
            return Err(Errno::BUSY);
        }
        match self.lease_at_once(&mut state, key, caller.tid) {
            Acquire::Granted | Acquire::Joined => {
                // As with open(2), the old version keeps its node id and the truncation gets one
                // of its own: truncate(2) also walks the path again on ESTALE.
                let transaction = self.begin(&mut state, key, writer, Phase::Pending);
                let target = transaction.node;
                state.redirect(caller, key, node, target, None, Some(transaction));
                Err(Errno::STALE)
            }
            _ => Err(Errno::BUSY),
        }
    }

    /// A truncation that is a transaction of its own starts from what is there.
    fn take_base(self: &Arc<Self>, transaction: &Transaction) {
        let _turn = self.wait_for_turn(transaction.inode);
        let base = self
            .check_changeable(transaction)
            .and_then(|()| self.note_base(transaction))
            .and_then(|()| self.version(transaction.inode));
        let mut inner = transaction.inner.lock();
        match base {
            Ok((_, base)) => inner.base = Some(base),
            // It has lost its name in the mount since it was looked up, and nothing is published.
            Err(_) if inner.detached.is_some() => {}
            Err(errno) => inner.failed = Some(errno),
        }
    }

    /// What the kernel has judged on the mount that the caller may change. For a change of owner or
    /// ACL, whether set-group-id goes depends on the caller's groups.
    fn change_as(&self, caller: Caller, node: NodeId, change: &Change) -> Result<(), Errno> {
        let result = match change.owner() {
            _ if change.is_nothing() => self.chown_to_nobody(caller, node),
            true => self.without_setgid(caller, || self.change_attributes(node, change)),
            false => self.change_attributes(node, change),
        };
        self.drop_attributes_of_others(node);
        result
    }

    /// chown(2) to -1 and -1, of which nothing is left on its way here; it drops set-user-id. Or the
    /// announcement of a fallocate(2), which looks the same, and has to succeed; for whoever is not
    /// the owner that is all it can be.
    fn chown_to_nobody(&self, caller: Caller, node: NodeId) -> Result<(), Errno> {
        self.with_descriptor(node, |fd| {
            let chown = || dir::chown(fd, None, None);
            let result = match self.privileged && caller.uid != 0 {
                true => acting_as(&self.writer(caller).credentials, NOTHING, chown),
                false => chown(),
            };
            match result {
                Err(Errno::PERM) => Ok(()),
                other => other,
            }
        })
    }

    /// Does `work`, to which the caller has the right, so that the kernel drops set-group-id as it
    /// would for the caller.
    fn without_setgid<T>(
        &self,
        caller: Caller,
        work: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if !self.privileged || caller.uid == 0 {
            return work();
        }
        let who = self.writer(caller).credentials;
        acting_as(&who, APPROVED_BUT_SETGID, work)
    }

    /// A change through one node id of a file changes what the kernel believes of another.
    fn drop_attributes_of_others(&self, node: NodeId) {
        let others = self
            .state
            .lock()
            .tree
            .inode_of(node)
            .and_then(|(key, inode)| (inode.current != node).then_some(key));
        if let Some(key) = others {
            self.drop_cached_attributes(key);
        }
    }

    /// chmod, chown and utimens, in that order of need: chown clears bits that chmod may set.
    fn change_attributes(&self, node: NodeId, change: &Change) -> Result<(), Errno> {
        if change.mode.is_none() && !change.owner() && change.times.is_none() {
            return Ok(());
        }
        match self.subject(node)? {
            Subject::Shadow(transaction, shadow) => {
                apply(&**shadow.file(), change)?;
                let mut inner = transaction.inner.lock();
                inner.dirty = true;
                inner.explicit.mode |= change.mode.is_some();
                inner.explicit.owner |= change.owner();
                Ok(())
            }
            Subject::Open(file) => apply(&*file, change),
            Subject::Named(super::tree::ROOT) => apply(&self.root, change),
            Subject::Named(key) if change.times.is_some() => {
                self.alone_at_place(key, |dir, name, identity| {
                    let file = &dir.pin(name, identity)?;
                    self.noting_times(key, file, || apply(file, change))
                })
            }
            Subject::Named(key) => self.at_place(key, |dir, name, identity| {
                apply(&dir.pin(name, identity)?, change)
            }),
        }
    }

    /// Calls `work` with a descriptor of what a node id stands for.
    fn with_descriptor<T>(
        &self,
        node: NodeId,
        work: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self.subject(node)? {
            Subject::Shadow(_, shadow) => work(shadow.file().as_fd()),
            Subject::Open(file) => work(file.as_fd()),
            Subject::Named(super::tree::ROOT) => work(self.root.as_fd()),
            Subject::Named(key) => self.at_place(key, |dir, name, identity| {
                work(dir.pin(name, identity)?.as_fd())
            }),
        }
    }

    /// getxattr(2): the whole value.
    ///
    /// # Errors
    /// `ENODATA`, `ENOTSUP`, as BACKING says. Where the kernel judges by ACLs, a file that can't have
    /// one (in a mount within BACKING) has none: the kernel would take an error for its judgement.
    pub fn xattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>, Errno> {
        if name == crate::in_flight::ATTRIBUTE {
            return self.in_flight_of(node);
        }
        if name == crate::in_flight::ALIVE {
            return self.alive();
        }
        match self.with_descriptor(node, |fd| dir::xattr(fd, name)) {
            Err(Errno::OPNOTSUPP) if self.acls && is_acl(name) => Err(Errno::NODATA),
            other => other,
        }
    }

    /// listxattr(2): names, each ended by a NUL byte. `trusted.*` is for the privileged (xattr(7)).
    pub fn xattr_names(&self, node: NodeId, privileged: bool) -> Result<Vec<u8>, Errno> {
        let names = self.with_descriptor(node, |fd| dir::xattr_names(fd))?;
        if privileged {
            return Ok(names);
        }
        let mut shown = Vec::with_capacity(names.len());
        for name in dir::split_names(&names) {
            if !name.as_bytes().starts_with(b"trusted.") {
                shown.extend_from_slice(name.as_bytes());
                shown.push(0);
            }
        }
        Ok(shown)
    }

    /// setxattr(2) with its flags.
    pub fn set_xattr(
        &self,
        caller: Caller,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        let set = || self.with_descriptor(node, |fd| dir::set_xattr(fd, name, value, flags));
        match is_acl(name) {
            true => self.without_setgid(caller, set)?,
            false => set()?,
        }
        self.note_xattr(node, name);
        Ok(())
    }

    /// removexattr(2).
    pub fn remove_xattr(&self, node: NodeId, name: &OsStr) -> Result<(), Errno> {
        self.with_descriptor(node, |fd| dir::remove_xattr(fd, name))?;
        self.note_xattr(node, name);
        Ok(())
    }

    fn note_xattr(&self, node: NodeId, name: &OsStr) {
        if is_acl(name) {
            // An ACL is the group's permissions too (acl(5)), and the kernel doesn't know.
            if let Some(kernel) = self.kernel.get() {
                kernel.drop_attributes(node);
            }
            self.drop_attributes_of_others(node);
        }
        if let Ok(Subject::Shadow(transaction, _)) = self.subject(node) {
            let mut inner = transaction.inner.lock();
            inner.dirty = true;
            inner.explicit.xattrs.insert(name.to_owned());
        }
    }

    /// statfs(2).
    pub fn stat_fs(&self) -> Result<rustix::fs::StatVfs, Errno> {
        rustix::fs::fstatvfs(&self.root)
    }
}

/// truncate(2) comes back for the transaction it was given, or finds its owner's open one.
fn join_to_truncate(transaction: Arc<Transaction>) -> (Arc<Transaction>, bool) {
    let whole = {
        let mut inner = transaction.inner.lock();
        let whole = inner.phase == Phase::Pending;
        if whole {
            inner.phase = Phase::Open;
        }
        whole
    };
    (transaction, whole)
}

fn is_acl(name: &OsStr) -> bool {
    name == dir::ACL_ACCESS || name == dir::ACL_DEFAULT
}

/// By a descriptor, perhaps an `O_PATH` one, and so not by a name that may be another file's by now.
fn apply(file: impl AsFd + Copy, change: &Change) -> Result<(), Errno> {
    if change.owner() {
        dir::chown(file, change.uid, change.gid)?;
    }
    if let Some(mode) = change.mode {
        dir::chmod(file, mode)?;
    }
    if let Some(times) = &change.times {
        dir::set_times(file, times)?;
    }
    Ok(())
}
