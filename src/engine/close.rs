//! What a close means.
//!
//! FLUSH comes once for every close() of every copy of a descriptor, and only its answer can
//! carry an error to the program; RELEASE comes once, after the last, and nobody waits for it. So
//! a transaction is committed at the FLUSH after which nobody holds its descriptor any more, and
//! RELEASE commits what is left: what a mapping wrote after close(), or when two last holders
//! closed at the same moment and each saw the other.

use super::append::Appender;
use super::direct::DirectFile;
use super::io::Handle;
use super::transaction::{Continuation, Detached, Inner, Phase, Transaction};
use super::{Caller, Done, Engine, lookup};
use crate::backing::kept::Kind;
use crate::backing::{Errno, unfinished};
use crate::owner::{Exit, Search};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use log::error;

impl Engine {
    /// close(2) of one copy of a descriptor.
    ///
    /// # Errors
    /// What the commit says, if this close is the last (W6), or the error of a write before (W8).
    pub fn flush(self: &Arc<Self>, caller: Caller, handle: u64, done: Done<()>) {
        let appender = match self.handles.get(&handle).as_deref() {
            Some(Handle::Append(appender)) => Some(appender.clone()),
            _ => None,
        };
        if let Some(appender) = appender {
            return self.close_appender(caller, appender, done);
        }
        let transaction = match self.handles.get(&handle).as_deref() {
            Some(Handle::Transaction {
                transaction,
                flushed,
                ..
            }) => {
                if !flushed.swap(true, Ordering::Relaxed) {
                    transaction.inner.lock().unclosed -= 1;
                }
                Some(transaction.clone())
            }
            _ => None,
        };
        let Some(transaction) = transaction else {
            return done(Ok(()));
        };
        // It reads /proc and may commit: never on an event thread.
        self.spawn(move |engine| engine.close_one(&transaction, caller.tid, done));
    }

    fn close_one(self: &Arc<Self>, transaction: &Arc<Transaction>, tid: u32, done: Done<()>) {
        // `status` first, and nothing else before it is known that the process is not in execve.
        let thread = self.processes.thread(tid);
        let process = thread.as_ref().map(|t| t.process);
        let exiting = thread.as_ref().is_some_and(|t| t.exiting);
        let opener = transaction.writer.process;
        let signal = match process {
            Some(process) if exiting => match self.processes.exit(process) {
                Exit::Signalled(signal) => Some(signal),
                _ => None,
            },
            _ => None,
        };
        let (mappable, failed) = {
            let mut inner = transaction.inner.lock();
            match inner.phase {
                Phase::Pending | Phase::Open => {}
                Phase::Closing => return inner.at_end.push(Continuation(done)),
                Phase::Ended(result) => {
                    drop(inner);
                    return done(result);
                }
            }
            if let (Some(process), Some(signal)) = (process, signal) {
                inner.note_death(opener, process, signal);
            }
            inner.closed_elsewhere |= process != Some(opener);
            (inner.mappable, inner.failed)
        };
        let early = failed.map_or(Ok(()), Err);
        // A process of another pid namespace can't be looked into: RELEASE decides.
        let Some(process) = process else {
            return done(early);
        };
        let mapped = mappable && {
            transaction.inner.lock().mapped_by.insert(process);
            self.is_mapped(transaction)
        };
        // Another open(2) of its owner may not have its descriptor yet.
        let unclosed = transaction.inner.lock().unclosed > 0;
        if unclosed || self.is_held(transaction) {
            if !exiting {
                self.note_last_close_of(transaction, process);
            }
            return done(early);
        }
        // A mapping will write after this close.
        if mapped {
            return done(early);
        }
        self.note_death_of_another(transaction, process);
        self.finish(transaction, done);
    }

    /// Has a process that has closed it still a mapping to write by?
    fn is_mapped(&self, transaction: &Transaction) -> bool {
        let inode = transaction.reported;
        let mut seen = transaction.inner.lock().mapped_by.clone();
        seen.retain(|process| self.processes.maps(*process, inode));
        let mapped = !seen.is_empty();
        transaction.inner.lock().mapped_by = seen;
        mapped
    }

    /// Others hold it still; was this the last copy of the process that decides?
    fn note_last_close_of(&self, transaction: &Transaction, process: u32) {
        let decides = |inner: &Inner| inner.decider(transaction.writer.process) == process;
        if !decides(&transaction.inner.lock()) {
            return;
        }
        let inode = transaction.reported;
        let closed = !self.processes.holds_open_for_writing(process, inode);
        let mut inner = transaction.inner.lock();
        inner.last_writer_closed |= closed && decides(&inner);
    }

    /// When a whole process group is killed, the descriptors of the one that decides may be gone
    /// before its own close has been seen (`closer` has been looked at already).
    fn note_death_of_another(&self, transaction: &Transaction, closer: u32) {
        let opener = transaction.writer.process;
        let decider = {
            let inner = transaction.inner.lock();
            let decider = inner.decider(opener);
            if decider == closer || inner.last_writer_closed {
                return;
            }
            decider
        };
        if let Exit::Signalled(signal) = self.processes.exit(decider) {
            transaction.inner.lock().note_death(opener, decider, signal);
        }
    }

    /// Does anybody still hold a descriptor of it?
    fn is_held(&self, transaction: &Transaction) -> bool {
        let appended = self.state.lock().appenders.contains_key(&transaction.inode);
        let (shared, appends) = {
            let inner = transaction.inner.lock();
            (inner.closed_elsewhere, inner.appends)
        };
        let mut search = Search {
            inode: transaction.reported,
            device: self.device.get().copied(),
            opener: transaction.writer.process,
            shared,
            // Who appends to the file meanwhile has descriptors that show the same number.
            no_append: appended && !appends,
        };
        loop {
            if self.processes.anyone_holds(&search) {
                return true;
            }
            // Had a copy been closed elsewhere meanwhile, the search was not wide enough.
            let shared = transaction.inner.lock().closed_elsewhere;
            if shared == search.shared {
                return false;
            }
            search.shared = shared;
        }
    }

    /// The last close of a transaction: commits it, or rolls it back, and tells `done`.
    pub(super) fn finish(self: &Arc<Self>, transaction: &Arc<Transaction>, done: Done<()>) {
        {
            // No write is under way from here on.
            let _writing = transaction.writing.write();
            let mut inner = transaction.inner.lock();
            let answer = match inner.phase {
                // Its owner opened it once more meanwhile: that close will be the last.
                Phase::Pending | Phase::Open if inner.unclosed > 0 => {
                    Some(inner.failed.map_or(Ok(()), Err))
                }
                Phase::Pending | Phase::Open => {
                    inner.phase = Phase::Closing;
                    None
                }
                Phase::Closing => return inner.at_end.push(Continuation(done)),
                Phase::Ended(result) => Some(result),
            };
            if let Some(answer) = answer {
                drop(inner);
                drop(_writing);
                return done(answer);
            }
            inner.at_end.push(Continuation(done));
        }
        self.settle(transaction);
    }

    /// The last copy of a descriptor is gone, and so is every mapping of it.
    pub fn release(self: &Arc<Self>, handle: u64) {
        self.unlock_released(handle);
        let file = |_: &u64, handle: &Handle| !matches!(handle, Handle::Directory(_));
        match self.handles.remove_if(&handle, file) {
            Some((
                _,
                Handle::Transaction {
                    transaction,
                    flushed,
                    ..
                },
            )) => self.drop_handle_of(&transaction, flushed.into_inner()),
            Some((_, Handle::Append(appender))) => self.drop_appender(appender),
            _ => {}
        }
    }

    /// A transaction has one handle less, of which a close has been told or not.
    pub(super) fn drop_handle_of(self: &Arc<Self>, transaction: &Arc<Transaction>, flushed: bool) {
        {
            let mut inner = transaction.inner.lock();
            inner.handles = inner.handles.saturating_sub(1);
            if !flushed {
                inner.unclosed = inner.unclosed.saturating_sub(1);
            }
            let alone = inner.handles == 0 && !inner.readable;
            if alone && inner.phase == Phase::Ended(Ok(())) {
                drop(inner);
                return self.state.lock().tree.keep_node(transaction);
            }
            if inner.handles > 0 || inner.phase != Phase::Open {
                return;
            }
            // From here on name operations wait for the outcome (N1).
            inner.phase = Phase::Closing;
        }
        let transaction = transaction.clone();
        self.spawn(move |engine| {
            engine.note_death_after_close(&transaction);
            engine.note_death_of_another(&transaction, 0);
            engine.settle(&transaction);
        });
    }

    /// For writes of a mapping, which come after close(): did the process that mapped it die of a
    /// signal? (W9)
    fn note_death_after_close(&self, transaction: &Transaction) {
        let Some(watch) = transaction.inner.lock().watch.take() else {
            return;
        };
        if let Some(Exit::Signalled(signal)) = watch.exit() {
            let opener = transaction.writer.process;
            transaction.inner.lock().note_death(opener, opener, signal);
        }
    }

    /// The kernel has ended the mount. Of what was closed last it may not have told the release, and that is
    /// done here. What a program has open all the same (the connection was aborted) is given up.
    pub fn release_all(self: &Arc<Self>) {
        let open = self.handles.iter().filter_map(|entry| match entry.value() {
            Handle::Directory(_) => None,
            Handle::Transaction { transaction, .. } => {
                Some((*entry.key(), Some(transaction.clone())))
            }
            _ => Some((*entry.key(), None)),
        });
        // Releasing changes the table.
        let open: Vec<(u64, Option<Arc<Transaction>>)> = open.collect();
        for (handle, transaction) in open {
            if transaction.is_none_or(|transaction| self.is_closed(&transaction)) {
                self.release(handle);
            }
        }
        self.give_up("the mount ended before it was closed");
    }

    /// Has every opener of it closed it, and nobody a copy or a mapping?
    fn is_closed(&self, transaction: &Transaction) -> bool {
        let (ended, unclosed) = {
            let inner = transaction.inner.lock();
            (matches!(inner.phase, Phase::Ended(_)), inner.unclosed > 0)
        };
        ended || !unclosed && !self.is_held(transaction) && !self.is_mapped(transaction)
    }

    /// The mount ends: transactions still in flight do not become the file, but are kept aside.
    pub fn give_up(self: &Arc<Self>, reason: &'static str) {
        let in_flight = self.state.lock().tree.in_flight();
        for transaction in in_flight {
            let path = lookup::within_mount(self.state.lock().tree.path(transaction.inode));
            {
                let _writing = transaction.writing.write();
                let mut inner = transaction.inner.lock();
                if !matches!(inner.phase, Phase::Pending | Phase::Open) {
                    continue;
                }
                inner.phase = Phase::Closing;
                inner.detached.get_or_insert(Detached {
                    path,
                    by_writer: false,
                    kind: Kind::Unmounted,
                    reason,
                });
            }
            self.settle(&transaction);
        }
        self.retire_all();
    }

    /// The mount has ended: what is left to do for files that programs may use directly from now on.
    pub fn settle_store(&self) {
        let Ok(store) = self.store() else { return };
        store.discard_what_is_left();
        let settled = store.settle_logs().and(unfinished::settle_all(store));
        if let Err(errno) = settled {
            error!(".latchfs could not be cleared, which the next mount will do: {errno}");
        }
    }

    /// fsync(2) of a handle: what has been written so far is committed (W6).
    ///
    /// # Errors
    /// As close(2).
    pub fn sync(self: &Arc<Self>, handle: u64, done: Done<()>) {
        enum Kept {
            Transaction(Arc<Transaction>),
            Direct(Arc<DirectFile>),
            Append(Arc<Appender>),
            Version,
        }
        let open = self.handles.get(&handle).map(|handle| match &*handle {
            Handle::Transaction { transaction, .. } => Kept::Transaction(transaction.clone()),
            Handle::Direct(direct) => Kept::Direct(direct.clone()),
            Handle::Append(appender) => Kept::Append(appender.clone()),
            Handle::Reader { .. } | Handle::Directory(_) => Kept::Version,
        });
        match open {
            Some(Kept::Transaction(transaction)) => {
                self.spawn(move |engine| engine.commit_so_far(&transaction, done));
            }
            Some(Kept::Direct(direct)) => self.sync_direct(direct, done),
            Some(Kept::Append(appender)) => {
                self.spawn(move |engine| done(engine.sync_appended(&appender, true)));
            }
            // A committed version is as durable as the mount makes versions.
            Some(Kept::Version) => done(Ok(())),
            None => done(Err(Errno::BADF)),
        }
    }
}
