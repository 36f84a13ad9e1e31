//! Who may open what now, who waits, and who is sent to look again.

use super::append::appends_by_rule;
use super::io::Handle;
use super::redirect::Redirect;
use super::transaction::{Phase, Transaction, Writer};
use super::tree::{Key, NodeId};
use super::turn::Turn;
use super::version::Version;
use super::waiting::Parked;
use super::{Caller, Done, Engine, State};
use crate::backing::Errno;
use crate::backing::store::Store;
use crate::config::Readers;
use crate::leases::{Acquire, Kind, OwnerId, Wanted};
use crate::rules::Policy;
use crate::sync::Arc;
use log::warn;
use rustix::fs::FileType;
use std::time::Duration;

/// What an open(2) asked for, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct OpenFlags {
    /// The handle may be written.
    pub write: bool,
    /// The handle may be written and read, and so mapped for writing.
    pub read_write: bool,
    /// The content goes.
    pub truncate: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Rather an error than a wait.
    pub nonblocking: bool,
    /// The name must be free.
    pub exclusive: bool,
}

impl OpenFlags {
    /// From the flags of open(2).
    pub fn from_bits(bits: i32) -> Self {
        let access = bits & libc::O_ACCMODE;
        Self {
            write: access != libc::O_RDONLY,
            read_write: access == libc::O_RDWR,
            truncate: bits & libc::O_TRUNC != 0,
            append: access != libc::O_RDONLY && bits & libc::O_APPEND != 0,
            nonblocking: bits & libc::O_NONBLOCK != 0,
            exclusive: bits & libc::O_EXCL != 0,
        }
    }

    /// Does it append to what is there? Unless a rule says otherwise, that takes no lease.
    pub(super) fn only_appends(self) -> bool {
        self.append && !self.truncate
    }

    /// Does it take the lease (W1)?
    fn changes(self) -> bool {
        self.write || self.truncate
    }
}

/// An open handle, and how the kernel is to use it.
#[derive(Debug)]
pub struct Opened {
    /// Its number.
    pub handle: u64,
    /// What it is open on.
    pub on: OpenedOn,
}

/// What a handle is open on.
#[derive(Debug)]
pub enum OpenedOn {
    /// A file of BACKING itself, or a version that is not this node id's: every read and write comes
    /// to the engine.
    Backing,
    /// A committed version: immutable, so the kernel may cache it, or read it by itself.
    Version {
        /// Which.
        version: Arc<Version>,
        /// Its closes matter.
        flush: bool,
        /// What the kernel has cached of it, if anything, is still right.
        unchanged: bool,
    },
    /// A transaction: every read and write comes to the engine.
    Transaction {
        /// Its closes matter.
        flush: bool,
    },
}

/// What becomes of an open, decided under the state lock.
enum Decision {
    /// It gets this error. `ESTALE` sends it to look again.
    Fail(Errno),
    /// It opens a transaction's private version.
    Join(Arc<Transaction>),
    /// It opens the version it came for, held open for it if it was sent there.
    Serve(Option<Arc<Version>>),
    /// It opens the file of BACKING itself.
    Direct,
    /// It opens the file to append records to it.
    Append(Option<Arc<Version>>),
    /// It is to be sent to where it can do that.
    AppendElsewhere,
    /// It is to be sent to the current version.
    Update,
    /// It comes again when this commit is over.
    AfterCommit(Arc<Transaction>),
    /// It waits.
    Parked,
}

impl Engine {
    /// open(2) of a file that exists.
    ///
    /// # Errors
    /// Through `done`: `ETIMEDOUT` after the lock timeout, `EAGAIN` where `O_NONBLOCK` would have
    /// to wait (for reading: only if there is no version yet), `EDEADLK` if waiting would close a cycle, `EINTR` if a signal ended the wait,
    /// `ESTALE` to make the kernel look the name up again (`EINTR` where it has done so already,
    /// and the name is another file by now), `EBUSY` for a write through
    /// `/proc/self/fd/N` of a descriptor opened for reading; and what opening the file of BACKING
    /// says.
    pub fn open(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        flags: OpenFlags,
        done: Done<Opened>,
    ) {
        let writer = flags.changes().then(|| self.writer_of_open(caller, node));
        if writer.is_some() && self.store.is_none() {
            return done(Err(Errno::ROFS));
        }
        let (inode, (spent, unnamed)) = {
            let mut state = self.state.lock();
            let known = state.tree.inode_of(node);
            if let Some(Err(errno)) = known.map(|(_, inode)| check_regular(inode.kind)) {
                drop(state);
                return done(Err(errno));
            }
            let inode = known.map(|(key, _)| key);
            let spent = state.was_spent(caller.tid);
            if inode.is_none() && !spent.1 {
                let wants = writer.clone().filter(|_| !flags.only_appends());
                state.send_elsewhere(caller.tid, wants);
            }
            (inode, spent)
        };
        let Some(inode) = inode else {
            // The kernel looks the name up again, but once.
            return done(Err(match spent {
                true => Errno::INTR,
                false => Errno::STALE,
            }));
        };
        let wish = Wish {
            caller,
            writer,
            node,
            inode,
            flags,
            spent,
            unnamed,
            appends: false,
        };
        if !self.is_unsettled(inode) {
            return self.grant(wish, done);
        }
        self.spawn(move |engine| match engine.settle_inode(inode) {
            Err(errno) if engine.is_torn(inode) => done(Err(errno)),
            // The inode is whole, only nothing may get into it: who wants to write there will hear.
            _ => engine.grant(wish, done),
        });
    }

    /// Who opens a node id to write: known if it was sent there, or what `/proc` tells, which no lock is held for.
    fn writer_of_open(&self, caller: Caller, node: NodeId) -> Writer {
        let sent = self.state.lock().writer_sent_to(caller.tid, node);
        sent.unwrap_or_else(|| self.writer(caller))
    }

    /// Decides about an open, and answers it unless it has to wait.
    pub(super) fn grant(self: &Arc<Self>, mut wish: Wish, done: Done<Opened>) {
        let mut done = Some(done);
        let mut left_behind = None;
        let decision = {
            let mut state = self.state.lock();
            self.decide(&mut state, &mut wish, &mut done, &mut left_behind)
        };
        if let Some(transaction) = left_behind {
            self.abandon_pending(&transaction);
        }
        // Only a parked open has given its callback away.
        let Some(done) = done else { return };
        let key = wish.inode;
        let result = match decision {
            // Between two records, and not while a version takes the place of another.
            Decision::Join(_) | Decision::Append(_) | Decision::AppendElsewhere => {
                return match self.turn_at_once(key) {
                    Some(turn) => self.carry_out(decision, wish, done, turn),
                    None => self.take_turn(key, |engine, turn| {
                        engine.carry_out(decision, wish, done, turn);
                    }),
                };
            }
            Decision::Parked => return,
            Decision::AfterCommit(transaction) => {
                let engine = self.clone();
                return transaction.after_commit(move |_| engine.grant(wish, done));
            }
            Decision::Fail(errno) => Err(errno),
            Decision::Direct if wish.flags.changes() && self.was_appended(wish.inode) => {
                // What is written now, no log knows of.
                return self.spawn(move |engine| {
                    let settled = engine.store().and_then(Store::settle_logs);
                    let result = settled.and_then(|()| engine.open_direct(&wish));
                    engine.answer(&wish, result, done);
                });
            }
            Decision::Direct => self.open_direct(&wish),
            Decision::Serve(pin) => self.serve_or_send(&wish, pin),
            Decision::Update => Err(self.send_to_current(&wish)),
        };
        self.answer(&wish, result, done);
    }

    /// Carries out a decision that takes a turn at the file.
    fn carry_out(self: &Arc<Self>, decision: Decision, wish: Wish, done: Done<Opened>, turn: Turn) {
        let result = match decision {
            Decision::Join(transaction) if self.is_to_be_emptied(&wish) => {
                let joined = self.join(&transaction, &wish);
                drop(turn);
                return self.empty_and_append(joined, transaction, wish, done);
            }
            Decision::Join(transaction) => self.join(&transaction, &wish),
            Decision::Append(pin) => self.open_append(&wish, pin),
            _ => Err(self.send_to_append(&wish)),
        };
        drop(turn);
        self.answer(&wish, result, done);
    }

    /// Answers an open. The kernel looks a name up again on `ESTALE`, but once: who has used that
    /// up gets `EINTR`, on which many programs try again by themselves.
    pub(super) fn answer(&self, wish: &Wish, result: Result<Opened, Errno>, done: Done<Opened>) {
        let result = match result {
            Err(Errno::STALE) if wish.spent => Err(Errno::INTR),
            Err(Errno::STALE) if !wish.unnamed => {
                let mut state = self.state.lock();
                let tid = wish.caller.tid;
                if !state.redirects.contains_key(&tid) && !state.spent.contains_key(&tid) {
                    state.send_elsewhere(tid, wish.wants_lease());
                }
                Err(Errno::STALE)
            }
            other => other,
        };
        done(result);
    }

    fn decide(
        &self,
        state: &mut State,
        wish: &mut Wish,
        done: &mut Option<Done<Opened>>,
        left_behind: &mut Option<Arc<Transaction>>,
    ) -> Decision {
        let (caller, node, key, flags) = (wish.caller, wish.node, wish.inode, wish.flags);
        let redirect = state.take_redirect(caller.tid);
        if let Some(Redirect {
            transaction: Some(transaction),
            ..
        }) = &redirect
            && transaction.node != node
        {
            *left_behind = Some(transaction.clone());
        }
        let to_this = redirect.as_ref().filter(|r| r.inode == key);
        // It was sent to look again, and is where it was sent.
        let returned = to_this.is_some_and(|r| r.target == node);
        // It was sent to look again, and came back to where it was without looking: through a
        // magic link (/proc/self/fd/N), which has no name. It can't be sent a second time.
        let magic = !returned && to_this.is_some_and(|r| r.from == node && !r.walked);
        wish.spent |= redirect.is_some() && !magic;
        wish.unnamed |= magic;
        if let (Some(transaction), _) = state.tree.alive(node)
            && transaction.is_in_flight()
        {
            // Only its owner was told this node id. Others get here by a magic link of a
            // descriptor they inherited, like a child that opens /dev/stdout.
            transaction.inner.lock().arrived = true;
            return Decision::Join(transaction);
        }
        let treatment = self.treatment_of(state, key);
        let settled = state
            .tree
            .inode(key)
            .is_some_and(|i| i.transaction.is_none());
        let magic = magic || wish.unnamed;
        wish.appends = self.appends(state, key, treatment.as_ref(), flags, magic);
        let direct = settled
            && self.settle_policy(state, key, treatment.as_ref(), wish.appends) == Policy::Direct;
        let Some(inode) = state.tree.inode(key) else {
            return Decision::Fail(Errno::STALE);
        };
        let current = inode.current;
        // Without a name it can only be meant by a magic link, wherever it is.
        let nameless = inode.names.is_empty() && is_direct(state.tree.alive(node).1);
        if nameless || direct && current == node {
            return Decision::Direct;
        }
        if direct && !magic {
            state.redirect(caller, key, node, current, None, None);
            return Decision::Fail(Errno::STALE);
        }
        let (provisional, rewriting) = (inode.is_provisional(), inode.rewriting);
        let in_flight = inode.transaction.clone();
        let mine = in_flight
            .as_ref()
            .filter(|t| t.writer.tid == caller.tid)
            .cloned();
        if let Some(mine) = mine
            && !magic
        {
            if !mine.is_in_flight() {
                return Decision::AfterCommit(mine);
            }
            let target = mine.node;
            state.redirect(caller, key, node, target, None, None);
            return Decision::Fail(Errno::STALE);
        }
        let (lock_timeout, readers) = match treatment {
            Some(treatment) => (treatment.lock_timeout, treatment.readers),
            None => {
                let defaults = self.settings().defaults;
                (defaults.lock_timeout, defaults.readers)
            }
        };
        if wish.appends {
            let pin = redirect.and_then(|r| r.pin);
            return self.decide_append(state, wish, pin, lock_timeout, done);
        }
        if flags.changes() {
            if inode.names.is_empty() {
                return Decision::Fail(Errno::STALE);
            }
            if magic {
                return Decision::Fail(Errno::BUSY);
            }
            if wish.spent {
                // No use in waiting for a lease that it could not be sent to use.
                return Decision::Fail(Errno::INTR);
            }
            if let Err(errno) = check_known(caller) {
                return Decision::Fail(errno);
            }
            return self.want(state, wish.clone(), Kind::Writer, lock_timeout, done);
        }
        // tar, tail and others open everything with O_NONBLOCK and expect no EAGAIN of a file.
        let patient = readers == Readers::Wait && !flags.nonblocking;
        let must_wait = patient || provisional || rewriting;
        if in_flight.is_some() && must_wait && !returned && !magic {
            return self.want(state, wish.clone(), Kind::Reader, lock_timeout, done);
        }
        if returned || magic || current == node {
            let pin = redirect.filter(|_| returned).and_then(|r| r.pin);
            return Decision::Serve(pin);
        }
        Decision::Update
    }

    /// Decides about an open to append. It needs no lease, and waits only for a file that is not there
    /// yet.
    fn decide_append(
        &self,
        state: &mut State,
        wish: &Wish,
        pin: Option<Arc<Version>>,
        lock_timeout: Duration,
        done: &mut Option<Done<Opened>>,
    ) -> Decision {
        let (node, key) = (wish.node, wish.inode);
        let Some(inode) = state.tree.inode(key) else {
            return Decision::Fail(Errno::STALE);
        };
        let current = inode.current;
        if inode.is_provisional() && inode.transaction.is_some() {
            return self.want(state, wish.clone(), Kind::Reader, lock_timeout, done);
        }
        // A handle to append by belongs to the file, so any of its node ids will do on which no other
        // handle is in the way. Sent to one, it holds the version there open from now on, or a
        // reader could be in the way by the time it arrives.
        let can_be_sent = !wish.unnamed && !wish.spent;
        if can_be_sent && (current != node || super::append::is_in_the_way(state, node)) {
            return Decision::AppendElsewhere;
        }
        match super::append::is_in_the_way(state, node) {
            false => Decision::Append(pin),
            true if wish.unnamed => Decision::Fail(Errno::BUSY),
            true => Decision::Fail(Errno::INTR),
        }
    }

    /// Does an open that appends begin with an empty file?
    fn is_to_be_emptied(&self, wish: &Wish) -> bool {
        let treatment = || self.treatment_of(&self.state.lock(), wish.inode);
        wish.flags.append && wish.flags.truncate && appends_by_rule(treatment().as_ref(), true)
    }

    /// Commits an empty version, and then opens the file to append to it.
    fn empty_and_append(
        self: &Arc<Self>,
        joined: Result<Opened, Errno>,
        transaction: Arc<Transaction>,
        wish: Wish,
        done: Done<Opened>,
    ) {
        let opened = match joined {
            Ok(opened) => opened,
            Err(errno) => return self.answer(&wish, Err(errno), done),
        };
        {
            let mut inner = transaction.inner.lock();
            if inner.handles > 1 {
                // Its owner is writing it already: this belongs to that (W4).
                drop(inner);
                return self.answer(&wish, Ok(opened), done);
            }
            inner.handles = 0;
            inner.unclosed = inner.unclosed.saturating_sub(1);
        }
        self.handles.remove(&opened.handle);
        self.spawn(move |engine| {
            let again = engine.clone();
            let committed = move |result: Result<(), Errno>| {
                let result = result.and_then(|()| again.open_append(&wish, None));
                again.answer(&wish, result, done);
            };
            engine.finish(&transaction, Box::new(committed));
        });
    }

    /// Asks the lease table, and parks who has to wait.
    fn want(
        &self,
        state: &mut State,
        wish: Wish,
        kind: Kind,
        lock_timeout: Duration,
        done: &mut Option<Done<Opened>>,
    ) -> Decision {
        let wanted = Wanted {
            file: Self::file_id(wish.inode),
            owner: OwnerId(u64::from(wish.caller.tid)),
            kind,
            deadline: self.now() + lock_timeout,
            nonblocking: wish.flags.nonblocking,
        };
        match (state.leases.acquire(wanted), kind) {
            (Acquire::Queued(ticket), _) => {
                if let Some(done) = done.take() {
                    state.parked.insert(ticket, Parked { wish, done });
                    self.watching.notify_one();
                }
                Decision::Parked
            }
            (Acquire::WouldBlock, _) => Decision::Fail(Errno::AGAIN),
            (Acquire::Deadlock, _) => Decision::Fail(Errno::DEADLK),
            (Acquire::Granted | Acquire::Joined, Kind::Reader) if wish.appends => {
                Decision::Append(None)
            }
            (Acquire::Granted | Acquire::Joined, Kind::Reader) => Decision::Serve(None),
            (Acquire::Granted | Acquire::Joined, Kind::Writer) => {
                self.begin_and_redirect(state, &wish);
                Decision::Fail(Errno::STALE)
            }
        }
    }

    /// Starts a transaction for who has just got the lease, and sends it there.
    pub(super) fn begin_and_redirect(&self, state: &mut State, wish: &Wish) {
        let Some(writer) = wish.writer.clone() else {
            return;
        };
        let transaction = self.begin(state, wish.inode, writer, Phase::Pending);
        let target = transaction.node;
        let (caller, inode, from) = (wish.caller, wish.inode, wish.node);
        state.redirect(caller, inode, from, target, None, Some(transaction));
    }

    /// Starts a transaction; the caller of this has the lease.
    pub(super) fn begin(
        &self,
        state: &mut State,
        key: Key,
        writer: Writer,
        phase: Phase,
    ) -> Arc<Transaction> {
        let node = state.tree.reserve_node();
        let reported = state.tree.inode(key).map_or(0, |inode| inode.reported);
        let settings = self.settings();
        let transaction =
            Transaction::new(node, key, reported, writer, settings, self.now(), phase);
        state.tree.add_transaction(&transaction);
        transaction
    }

    /// Opens a transaction's private version.
    fn join(
        self: &Arc<Self>,
        transaction: &Arc<Transaction>,
        wish: &Wish,
    ) -> Result<Opened, Errno> {
        let flags = wish.flags;
        let first = {
            let mut inner = transaction.inner.lock();
            match inner.phase {
                Phase::Pending | Phase::Open => {}
                Phase::Closing | Phase::Ended(_) => return Err(Errno::STALE),
            }
            let first = inner.phase == Phase::Pending;
            inner.phase = Phase::Open;
            inner.handles += 1;
            inner.unclosed += u32::from(flags.changes());
            inner.mappable |= flags.read_write;
            inner.readable |= !flags.write || flags.read_write;
            inner.appends |= flags.append;
            first
        };
        if let (true, Some(kernel)) = (first, self.kernel.get()) {
            // They were believed on the way here only.
            kernel.drop_attributes(transaction.node);
        }
        let ready = self.prepare(transaction, wish, first);
        if let Err(errno) = ready {
            self.drop_handle_of(transaction, !flags.changes());
            return Err(errno);
        }
        let handle = Handle::transaction(transaction.clone(), flags.write, flags.changes());
        // The close of one that only reads matters to the locks of its process.
        let flush = flags.changes() || self.is_locked(wish.inode);
        Ok(Opened {
            handle: self.add_handle(handle),
            on: OpenedOn::Transaction { flush },
        })
    }

    /// What a handle of a transaction needs before its first use.
    fn prepare(
        &self,
        transaction: &Arc<Transaction>,
        wish: &Wish,
        first: bool,
    ) -> Result<(), Errno> {
        let flags = wish.flags;
        if first {
            self.check_changeable(transaction)?;
            let noted = self.note_base(transaction);
            match noted {
                // It lost its name in the mount, and is what was opened all the same.
                Err(_) if transaction.inner.lock().detached.is_some() => {}
                // It is gone behind the mount since it was looked up, which is done again.
                Err(Errno::NOENT) => return Err(Errno::STALE),
                other => other?,
            }
        }
        if first && !flags.truncate {
            let (_, base) = self.version(transaction.inode)?;
            transaction.inner.lock().base = Some(base);
        }
        if flags.truncate {
            self.truncate_to_nothing(transaction)?;
            if wish.caller.uid != 0 {
                // With FUSE_HANDLE_KILLPRIV_V2 that is the server's to do.
                transaction.drop_privileges()?;
            }
        }
        if flags.read_write && transaction.inner.lock().watch.is_none() {
            let watch = self.processes.watch(transaction.writer.process);
            transaction.inner.lock().watch = watch;
        }
        Ok(())
    }
}

fn is_direct(open: Option<Arc<Version>>) -> bool {
    open.is_some_and(|open| open.policy == Policy::Direct)
}

/// Has it content? Everything else the kernel opens by itself, and never here.
///
/// # Errors
/// `EISDIR`, `ELOOP` and `ENXIO`, as open(2) says for what is none of the caller's to open.
pub(super) fn check_regular(kind: FileType) -> Result<(), Errno> {
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::NXIO),
    }
}

/// Can the caller be the owner of a lease? The kernel gives no thread number for processes outside
/// the daemon's pid namespace, so such writers can't be told apart.
///
/// # Errors
/// `EOPNOTSUPP`.
pub(super) fn check_known(caller: Caller) -> Result<(), Errno> {
    if caller.tid == 0 {
        warn!("a process outside this daemon's pid namespace may not write: owners need a number");
        return Err(Errno::OPNOTSUPP);
    }
    Ok(())
}

/// An open that has to be decided.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Who.
    pub caller: Caller,
    /// Who, as `/proc` tells, if it wants to write.
    pub writer: Option<Writer>,
    /// The node id it came with.
    pub node: NodeId,
    /// The file.
    pub inode: Key,
    /// How.
    pub flags: OpenFlags,
    /// It can't be sent to look again: the kernel has done so already.
    pub spent: bool,
    /// It can't be sent to look again: it has no name (a magic link).
    pub unnamed: bool,
    /// It is to append records, as far as decided.
    pub appends: bool,
}

impl Wish {
    /// Who is to get the lease of what it finds when it looks again, if it needs one.
    pub(super) fn wants_lease(&self) -> Option<Writer> {
        self.writer.clone().filter(|_| !self.flags.only_appends())
    }
}
