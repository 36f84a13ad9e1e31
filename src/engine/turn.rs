//! Short turns at a file: its lease, for as long as one record takes.

use super::transaction::Transaction;
use super::tree::Key;
use super::waiting::Parked;
use super::{Caller, Engine};
use crate::backing::Errno;
use crate::leases::{Acquire, Kind, OwnerId, Wanted};
use crate::sync::Arc;
use std::time::Duration;

/// What a thread that asked for a turn has got.
pub(crate) enum Turn {
    /// The lease, to be given back by [`Engine::end_turn`].
    Taken,
    /// Nothing: it is writing the file itself.
    Own(Arc<Transaction>),
    /// Nothing: the file has changed, it has to ask again.
    Again,
}

/// What is to be done then.
pub(crate) type Go = Box<dyn FnOnce(&Arc<Engine>, Result<Turn, Errno>) + Send>;

/// Who waits for a turn.
pub(crate) struct Waits {
    /// The file.
    pub inode: Key,
    /// The thread.
    pub tid: u32,
    /// What is to be done then, by a thread of the pool.
    pub go: Go,
}

/// Threads of other pid namespaces have no number that would tell them apart.
const NOBODY: u64 = 1 << 32;

impl Engine {
    /// Takes a turn if nobody has to be waited for.
    pub(super) fn turn_at_once(&self, caller: Caller, key: Key) -> bool {
        let wanted = self.turn(caller, key, None);
        self.state.lock().leases.acquire(wanted) == Acquire::Granted
    }

    fn turn(&self, caller: Caller, key: Key, limit: Option<Duration>) -> Wanted {
        let owner = match caller.tid {
            0 => NOBODY + self.next_handle.fetch_add(1, super::Ordering::Relaxed),
            tid => u64::from(tid),
        };
        Wanted {
            file: Self::file_id(key),
            owner: OwnerId(owner),
            kind: Kind::Writer,
            deadline: self.now() + limit.unwrap_or_default(),
            nonblocking: limit.is_none(),
        }
    }

    /// Calls `go`, on a thread of the pool, when the turn of a thread has come, or `limit` has passed.
    pub(super) fn take_turn(
        self: &Arc<Self>,
        caller: Caller,
        key: Key,
        limit: Duration,
        go: impl FnOnce(&Arc<Engine>, Result<Turn, Errno>) + Send + 'static,
    ) {
        let wanted = self.turn(caller, key, Some(limit));
        let (turn, own) = {
            let mut state = self.state.lock();
            let turn = match state.leases.acquire(wanted) {
                Acquire::Queued(ticket) => {
                    let (inode, tid) = (key, caller.tid);
                    let go = Box::new(go);
                    state
                        .parked
                        .insert(ticket, Parked::Turn(Waits { inode, tid, go }));
                    self.watching.notify_one();
                    return;
                }
                Acquire::Granted => Ok(Turn::Taken),
                Acquire::Joined => Ok(Turn::Again),
                Acquire::Deadlock => Err(Errno::DEADLK),
                Acquire::WouldBlock => Err(Errno::AGAIN),
            };
            let own = state.tree.inode(key).and_then(|i| i.transaction.clone());
            (turn, own)
        };
        match (turn, own) {
            (Ok(Turn::Again), Some(own)) if own.is_in_flight() => {
                self.spawn(move |engine| go(engine, Ok(Turn::Own(own))));
            }
            (Ok(Turn::Again), Some(own)) => {
                let engine = self.clone();
                own.after_commit(move |_| engine.spawn(|engine| go(engine, Ok(Turn::Again))));
            }
            (turn, _) => self.spawn(move |engine| go(engine, turn)),
        }
    }

    /// Gives the lease to the next.
    pub(super) fn end_turn(self: &Arc<Self>, key: Key) {
        let completions = {
            let mut state = self.state.lock();
            let woken = state.leases.release(Self::file_id(key));
            match woken.is_empty() {
                true => return,
                false => self.wake(&mut state, woken, None, false),
            }
        };
        self.complete(completions);
    }
}
