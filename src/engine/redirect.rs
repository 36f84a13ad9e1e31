//! Threads that were sent to look their name up again.
//!
//! An open(2) gets to another node id by the answer `ESTALE`: the kernel walks the path again, and
//! its LOOKUP, by the same thread, is answered with the node id meant for it ([`Redirect`]). It
//! does so once for an open(2). What can go wrong in between, and what is done about it:
//!
//! - The name comes to mean another file. A version, or a transaction that was joined, is led to by
//!   the name that it had when the thread was sent: the open(2) took place before the change. A
//!   transaction whose opener has not come back is dropped with its name, and the thread is
//!   [`Spent`]: its LOOKUP finds the other file, and begins a transaction there if it may.
//! - The kernel forgets the node id before the thread arrives: it is pinned.
//! - The thread never comes back: it dies, or its next request is another. What was reserved for it
//!   is given up then ([`Engine::drop_redirect`], and the thread of `waiting`).
//!
//! A thread that can't be led anywhere any more gets `EINTR`, on which Python, bash and many others
//! try again by themselves, and not `ESTALE`, which they report.

use super::lookup::Claim;
use super::open::{OpenFlags, Wish};
use super::transaction::{Transaction, Writer};
use super::tree::{Key, Name, NodeId};
use super::version::Version;
use super::{Caller, Engine, State};
use crate::leases::Acquire;
use crate::sync::Arc;
use std::ffi::OsStr;
use std::time::{Duration, Instant};

/// Where LOOKUP is to lead a thread.
#[derive(Debug)]
pub(crate) struct Redirect {
    /// The file it wants to open.
    pub inode: Key,
    /// The node id it came with.
    pub from: NodeId,
    /// The node id that LOOKUP is to give it.
    pub target: NodeId,
    /// Keeps the version it is sent to, should that be superseded meanwhile.
    pub pin: Option<Arc<Version>>,
    /// It holds the lease of this transaction.
    pub transaction: Option<Arc<Transaction>>,
    /// It has looked, and was led.
    pub looked: bool,
    /// It has looked for something. A magic link has nothing to look for.
    pub walked: bool,
    /// It is shown a version that is not the file any more, and that this is so.
    pub superseded: bool,
    /// When it was sent.
    pub since: Instant,
    /// The names by which it is led there.
    pub names: Vec<Name>,
}

/// A thread that was sent to look again, but not for what it finds there: from that it can't be
/// sent on. Its next LOOKUP of anything but a directory or a symbolic link is that of its name.
#[derive(Debug)]
pub(crate) struct Spent {
    /// Who it is, if it wants to write.
    writer: Option<Writer>,
    found: Found,
    /// Where it found that, or nothing.
    at: Option<Name>,
    /// It has looked for something.
    walked: bool,
    since: Instant,
}

/// What a spent thread's LOOKUP gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    NotLooked,
    File,
    Nothing,
}

impl Spent {
    /// Notes what a LOOKUP of a name gave it; what it had from the one before.
    fn looks(&mut self, parent: Key, name: &OsStr, found: Found) -> Found {
        let name = Arc::from(name);
        self.at = Some(Name { parent, name });
        std::mem::replace(&mut self.found, found)
    }
}

fn is_among(names: &[Name], parent: Key, name: &OsStr) -> bool {
    let mut names = names.iter();
    names.any(|n| n.parent == parent && *n.name == *name)
}

impl State {
    /// Notes where LOOKUP is to lead who is about to be answered `ESTALE`.
    pub(super) fn redirect(
        &mut self,
        caller: Caller,
        inode: Key,
        from: NodeId,
        target: NodeId,
        pin: Option<Arc<Version>>,
        transaction: Option<Arc<Transaction>>,
    ) {
        // Of another pid namespace: one number for all of them. They find the current version.
        if caller.tid == 0 {
            return;
        }
        let redirect = Redirect {
            inode,
            from,
            target,
            pin,
            transaction,
            looked: false,
            walked: false,
            superseded: false,
            since: Instant::now(),
            names: self.names_of(inode),
        };
        // The new one first: it may be for the same inode, which must not go in between.
        self.tree.pin(inode, target);
        if let Some(old) = self.redirects.insert(caller.tid, redirect) {
            self.tree.unpin(old.inode, old.target);
            // Two requests of one thread were under way at once, which no kernel does.
            let other = old.transaction.filter(|old| old.node != target);
            self.unclaimed.extend(other);
        }
    }

    /// The thread has arrived, or goes elsewhere.
    pub(super) fn take_redirect(&mut self, tid: u32) -> Option<Redirect> {
        let redirect = self.redirects.remove(&tid)?;
        self.tree.unpin(redirect.inode, redirect.target);
        Some(redirect)
    }

    /// The thread goes elsewhere, and does not come for what was reserved for it. False if it was not
    /// sent at all.
    pub(super) fn give_up_redirect(&mut self, tid: u32) -> bool {
        let redirect = self.take_redirect(tid);
        let sent = redirect.is_some();
        self.unclaimed.extend(redirect.and_then(|r| r.transaction));
        sent
    }

    /// A thread looks for a name: it is on its way, and not by a magic link. If it has looked for another
    /// one already, at the end of its way, its open(2) has failed meanwhile. (The kernel may look for one
    /// name several times: to see whether what it knows of it is so still, and then for the name.)
    pub(super) fn walks_to(&mut self, tid: u32, parent: Key, name: &OsStr) {
        self.walks(tid);
        let at = self.spent.get(&tid).and_then(|spent| spent.at.as_ref());
        if at.is_some_and(|at| !is_among(std::slice::from_ref(at), parent, name)) {
            self.spent.remove(&tid);
        }
    }

    fn walks(&mut self, tid: u32) {
        if let Some(redirect) = self.redirects.get_mut(&tid) {
            redirect.walked = true;
        }
        if let Some(spent) = self.spent.get_mut(&tid) {
            spent.walked = true;
        }
    }

    /// Has a thread that was sent looked already? Then its next request is the OPEN.
    pub(super) fn has_looked(&self, tid: u32) -> bool {
        self.redirects.get(&tid).is_some_and(|r| r.looked)
    }

    /// A thread is about to be answered `ESTALE` and will find whatever its name means by then.
    pub(super) fn send_elsewhere(&mut self, tid: u32, writer: Option<Writer>) {
        if tid == 0 {
            return;
        }
        let spent = Spent {
            writer,
            found: Found::NotLooked,
            at: None,
            walked: false,
            since: Instant::now(),
        };
        self.spent.insert(tid, spent);
    }

    /// Is this OPEN the last that the kernel makes for its open(2)? And did the thread come back
    /// without having looked, by a magic link?
    pub(super) fn was_spent(&mut self, tid: u32) -> (bool, bool) {
        match self.spent.remove(&tid).map(|s| (s.found, s.walked)) {
            Some((Found::File, _) | (Found::NotLooked, true)) => (true, false),
            Some((Found::NotLooked, false)) => (false, true),
            Some((Found::Nothing, _)) | None => (false, false),
        }
    }

    /// The same for a CREATE.
    pub(super) fn was_spent_on_nothing(&mut self, tid: u32) -> bool {
        let spent = self.spent.remove(&tid);
        spent.is_some_and(|spent| spent.found == Found::Nothing)
    }

    /// Forgets those who did not come back within `limit`.
    pub(super) fn forget_spent(&mut self, limit: Duration) {
        self.spent.retain(|_, spent| spent.since.elapsed() < limit);
    }

    pub(super) fn names_of(&self, key: Key) -> Vec<Name> {
        let inode = self.tree.inode(key);
        inode.map(|inode| inode.names.to_vec()).unwrap_or_default()
    }

    /// The node id that LOOKUP gives a thread for a file.
    pub(super) fn view(&mut self, tid: u32, key: Key) -> Option<NodeId> {
        if let Some(redirect) = self.redirects.get_mut(&tid)
            && redirect.inode == key
        {
            redirect.looked = true;
            return Some(redirect.target);
        }
        let inode = self.tree.inode(key)?;
        match &inode.transaction {
            Some(mine) if mine.writer.tid == tid && mine.is_in_flight() => Some(mine.node),
            _ => Some(inode.current),
        }
    }

    /// Is a thread sent to this node id of a transaction of its own, which nobody else was told of?
    pub(super) fn is_arriving(&self, tid: u32, node: NodeId) -> bool {
        self.sent_to(tid, node).is_some()
    }

    /// Who that was when the transaction began.
    pub(super) fn writer_sent_to(&self, tid: u32, node: NodeId) -> Option<Writer> {
        Some(self.sent_to(tid, node)?.writer.clone())
    }

    fn sent_to(&self, tid: u32, node: NodeId) -> Option<&Arc<Transaction>> {
        let redirect = self.redirects.get(&tid).filter(|r| r.target == node)?;
        redirect.transaction.as_ref()
    }

    /// A thread that is sent to its transaction finds it by this name.
    pub(super) fn came_by(&self, caller: Caller, parent: Key, name: &OsStr) {
        let redirect = self.redirects.get(&caller.tid);
        if let Some(transaction) = redirect.and_then(|r| r.transaction.as_ref()) {
            let name = Arc::from(name);
            transaction.inner.lock().opened_as = Some(Name { parent, name });
        }
    }

    /// Claims what a thread was sent to by this name.
    pub(super) fn claim_sent(
        &mut self,
        caller: Caller,
        parent: Key,
        name: &OsStr,
    ) -> Option<Claim> {
        let redirect = self.redirects.get_mut(&caller.tid)?;
        if !is_among(&redirect.names, parent, name) {
            return None;
        }
        redirect.looked = true;
        let (node, key) = (redirect.target, redirect.inode);
        let superseded = redirect.superseded;
        self.came_by(caller, parent, name);
        self.tree.looked_up(node);
        Some(Claim {
            node,
            reported: self.tree.inode(key)?.reported,
            private: true,
            calm: false,
            arriving: self.is_arriving(caller.tid, node),
            superseded,
        })
    }
}

impl Engine {
    /// A thread that was sent to look for one file finds another by its name. If it wants to write,
    /// its transaction begins here if the lease is free, and LOOKUP leads it there. Returns the
    /// transaction that it does not need any more, to be abandoned without the lock.
    pub(super) fn meet(
        &self,
        state: &mut State,
        caller: Caller,
        (parent, name): (Key, &OsStr),
        key: Key,
    ) -> Option<Arc<Transaction>> {
        let tid = caller.tid;
        let mut left_behind = None;
        if state.redirects.get(&tid).is_some_and(|r| r.inode != key)
            && let Some(redirect) = state.take_redirect(tid)
        {
            let writer = redirect.transaction.as_ref().map(|t| t.writer.clone());
            state.send_elsewhere(tid, writer);
            left_behind = redirect.transaction;
        }
        let (Some(spent), Some(inode)) = (state.spent.get_mut(&tid), state.tree.inode(key)) else {
            return left_behind;
        };
        if spent.looks(parent, name, Found::File) == Found::Nothing {
            // Either its open(2) went on to create the file, and another was faster; or it has
            // failed, and this LOOKUP is for something else, and must not take a lease.
            spent.writer = None;
        }
        let Some(writer) = spent.writer.clone() else {
            return left_behind;
        };
        if inode.transaction.is_some()
            || self.treatment_of(state, key).is_some_and(|t| t.is_direct())
        {
            return left_behind;
        }
        let wish = Wish {
            caller,
            writer: Some(writer),
            inode: key,
            node: inode.current,
            flags: OpenFlags::from_bits(libc::O_WRONLY),
            spent: true,
            unnamed: false,
            appends: false,
        };
        if self.lease_at_once(state, key, tid) == Acquire::Granted {
            self.begin_and_redirect(state, &wish);
            state.walks(tid);
            state.spent.remove(&tid);
        }
        left_behind
    }

    /// A thread's LOOKUP failed: whatever it was sent for, its open(2) ends here, or goes on as a
    /// creation.
    pub(super) fn miss(self: &Arc<Self>, caller: Caller, parent: Key, name: &OsStr) {
        let left_behind = {
            let mut state = self.state.lock();
            let redirect = state.take_redirect(caller.tid);
            if redirect.is_some() {
                state.send_elsewhere(caller.tid, None);
            }
            if let Some(spent) = state.spent.get_mut(&caller.tid) {
                spent.looks(parent, name, Found::Nothing);
            }
            redirect.and_then(|r| r.transaction)
        };
        if let Some(transaction) = left_behind {
            self.abandon_pending(&transaction);
        }
    }

    /// A thread can't get where it was sent, and finds what its name means now.
    pub(super) fn drop_redirect(self: &Arc<Self>, caller: Caller) {
        let redirect = {
            let mut state = self.state.lock();
            let Some(redirect) = state.take_redirect(caller.tid) else {
                return;
            };
            let writer = redirect.transaction.as_ref().map(|t| t.writer.clone());
            state.send_elsewhere(caller.tid, writer);
            state.walks(caller.tid);
            redirect
        };
        if let Some(transaction) = redirect.transaction {
            self.abandon_pending(&transaction);
        }
    }
}
