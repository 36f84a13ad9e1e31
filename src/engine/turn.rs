//! Turns at the end of a file: one at a time appends a record to it, begins a transaction with what is
//! there, or puts a version in its place.
//!
//! A turn is no lease. It takes as long as one record does, or the last step of a commit, and whoever
//! comes meanwhile has the next one, in the order in which they came.

use super::Engine;
use super::transaction::Work;
use super::tree::Key;
use crate::sync::Arc;
use crate::sync::mpsc::{Sender, channel};
use std::collections::VecDeque;

/// Those who come next.
pub(crate) type Queue = VecDeque<Next>;

/// Who comes next.
pub(crate) enum Next {
    /// A thread of the pool is to do this.
    Work(Work),
    /// A thread waits.
    Thread(Sender<()>),
}

impl std::fmt::Debug for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Next")
    }
}

/// A turn, until it is dropped.
pub(super) struct Turn {
    engine: Arc<Engine>,
    key: Key,
}

impl Engine {
    /// Takes a turn at a file if nobody has to be waited for.
    pub(super) fn turn_at_once(self: &Arc<Self>, key: Key) -> Option<Turn> {
        let mut state = self.state.lock();
        if state.turns.contains_key(&key) {
            return None;
        }
        state.turns.insert(key, Queue::new());
        Some(self.turn(key))
    }

    /// Has a thread of the pool do `work` when its turn has come.
    pub(super) fn take_turn(
        self: &Arc<Self>,
        key: Key,
        work: impl FnOnce(&Arc<Engine>, Turn) + Send + 'static,
    ) {
        let work = move |engine: &Arc<Engine>| work(engine, engine.turn(key));
        {
            let mut state = self.state.lock();
            if let Some(queue) = state.turns.get_mut(&key) {
                return queue.push_back(Next::Work(Box::new(work)));
            }
            state.turns.insert(key, Queue::new());
        }
        self.spawn(work);
    }

    /// Waits for a turn; never on an event thread.
    pub(super) fn wait_for_turn(self: &Arc<Self>, key: Key) -> Turn {
        let come = {
            let mut state = self.state.lock();
            let (send, come) = channel();
            match state.turns.get_mut(&key) {
                Some(queue) => queue.push_back(Next::Thread(send)),
                None => {
                    state.turns.insert(key, Queue::new());
                    return self.turn(key);
                }
            }
            come
        };
        // Whoever has it gives it on, whatever happens.
        let _ = come.recv();
        self.turn(key)
    }

    fn turn(self: &Arc<Self>, key: Key) -> Turn {
        let engine = self.clone();
        Turn { engine, key }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut state = self.engine.state.lock();
            let next = state.turns.get_mut(&self.key).and_then(Queue::pop_front);
            if next.is_none() {
                state.turns.remove(&self.key);
            }
            next
        };
        match next {
            Some(Next::Work(work)) => self.engine.spawn(work),
            Some(Next::Thread(thread)) => drop(thread.send(())),
            None => {}
        }
    }
}
