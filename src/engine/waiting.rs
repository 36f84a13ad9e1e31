//! The opens that wait, and the thread that looks after them (and after the daemon's memory, and the
//! age of kept versions).
//!
//! A waiter leaves in one of four ways: its turn comes ([`Engine::wake`]), its time is up, a
//! signal for it is pending, or its file loses its name. The kernel would tell of the signal by a
//! FUSE_INTERRUPT request, but fuser answers that itself; so while anybody waits, the thread here
//! asks `/proc` every [`LOOK`], or more seldom when so many wait that the asking itself takes long
//! ([`Pace`]).

use super::open::{Opened, Wish};
use super::transaction::{Phase, Transaction};
use super::version::Version;
use super::{Done, Engine, State};
use crate::backing::Errno;
use crate::leases::{Kind, Ticket, Wake};
use crate::memory::{self, Ebb};
use crate::sync::Arc;
use log::{debug, warn};
use std::time::{Duration, Instant};

/// How often waiters are asked for pending signals: W3 promises 100 ms.
const LOOK: Duration = Duration::from_millis(40);
/// After a look the thread rests at least so many times as long as that took: ten thousand waiters
/// are not to take a processor from those they wait for.
const REST: u32 = 4;
/// How often the thread looks when nobody waits: for openers that were sent to look their name up
/// again and died before they came back.
const IDLE: Duration = Duration::from_secs(1);
/// How long such an opener may take. It needs microseconds; a stopped one may never come.
const COME_BACK: Duration = Duration::from_secs(5);

/// How often kept versions that are too old are removed.
const PRUNE: Duration = Duration::from_secs(60 * 60);

/// An open that waits.
pub(crate) struct Parked {
    /// What it wants.
    pub wish: Wish,
    /// Where its answer goes.
    pub done: Done<Opened>,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Parked").field(&self.wish).finish()
    }
}

/// An open that need not wait any more, to be answered once the state lock is given back.
pub(super) struct Completion(Wish, Done<Opened>, Answer);

pub(super) enum Answer {
    Fail(Errno),
    Serve,
    /// It is to be decided about once more.
    Again,
}

/// When `/proc` was asked last, and how long that took.
struct Pace {
    ended: Instant,
    took: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self::after(Instant::now())
    }
}

impl Pace {
    fn after(began: Instant) -> Self {
        let ended = Instant::now();
        let took = ended - began;
        Self { ended, took }
    }

    /// How long until it is asked again.
    fn rest(&self, usual: Duration) -> Duration {
        usual
            .max(self.took * REST)
            .saturating_sub(self.ended.elapsed())
    }
}

impl Engine {
    /// Decides for those whom the end of a lease woke. `published` is the version that the ended
    /// transaction left, if it left one.
    pub(super) fn wake(
        &self,
        state: &mut State,
        woken: Vec<Wake>,
        published: Option<&Arc<Version>>,
        gone: bool,
    ) -> Vec<Completion> {
        let mut completions = Vec::with_capacity(woken.len());
        for wake in woken {
            let Some(parked) = state.parked.remove(&wake.ticket) else {
                continue;
            };
            let Parked { wish, done } = parked;
            let current = state.tree.inode(wish.inode).map(|inode| inode.current);
            let answer = match (wake.kind, current) {
                (_, None) => Answer::Fail(Errno::STALE),
                _ if gone && wish.spent => Answer::Fail(Errno::NOENT),
                _ if gone => {
                    state.send_elsewhere(wish.caller.tid, wish.wants_lease());
                    Answer::Fail(Errno::STALE)
                }
                (Kind::Reader, Some(_)) if wish.appends => Answer::Again,
                (Kind::Writer, Some(_)) => {
                    self.begin_and_redirect(state, &wish);
                    Answer::Fail(Errno::STALE)
                }
                (Kind::Reader, Some(current)) if current == wish.node => Answer::Serve,
                (Kind::Reader, Some(_)) if wish.spent => Answer::Fail(Errno::INTR),
                (Kind::Reader, Some(current)) => {
                    let (caller, inode, from) = (wish.caller, wish.inode, wish.node);
                    // Records may have been appended to it since: then it is read as what grows.
                    let open = state.tree.alive(current).1;
                    let pin = published.filter(|version| {
                        open.as_ref().is_some_and(|open| Arc::ptr_eq(open, version))
                    });
                    let pin = pin.cloned();
                    state.redirect(caller, inode, from, current, pin, None);
                    Answer::Fail(Errno::STALE)
                }
            };
            completions.push(Completion(wish, done, answer));
        }
        completions
    }

    /// Answers them.
    pub(super) fn complete(self: &Arc<Self>, completions: Vec<Completion>) {
        super::name_locks::assert_none_held();
        for Completion(wish, done, answer) in completions {
            let result = match answer {
                Answer::Fail(errno) => Err(errno),
                Answer::Serve => self.serve_or_send(&wish, None),
                Answer::Again => {
                    self.grant(wish, done);
                    continue;
                }
            };
            self.answer(&wish, result, done);
        }
    }

    /// The body of the thread that looks after waiters; returns after [`Engine::stop_watching`].
    pub fn watch(self: &Arc<Self>) {
        let mut ebb = Ebb::default();
        let mut pruned = Instant::now();
        let mut pace = Pace::default();
        loop {
            let (expired, look, unclaimed, known, dropped) = {
                let mut state = self.state.lock();
                let nap = self.nap(&state, &pace);
                self.watching.wait_for(&mut state, nap);
                let tickets = state.leases.expire(self.now());
                let expired: Vec<Parked> = tickets
                    .iter()
                    .filter_map(|ticket| state.parked.remove(ticket))
                    .collect();
                state.forget_spent(COME_BACK);
                let look = pace.rest(self.usual(&state)).is_zero().then(|| {
                    let parked = state.parked.iter();
                    let waiters: Vec<(Ticket, u32)> = parked
                        .map(|(ticket, p)| (*ticket, p.wish.caller.tid))
                        .collect();
                    let redirects = state.redirects.iter();
                    let sent: Vec<(u32, Instant)> =
                        redirects.map(|(tid, r)| (*tid, r.since)).collect();
                    (waiters, sent)
                });
                let (known, dropped) = (state.tree.sizes().0, state.tree.dropped());
                let unclaimed = std::mem::take(&mut state.unclaimed);
                (expired, look, unclaimed, known, dropped)
            };
            if *self.watcher_stop.lock() {
                return self.fail_waiters();
            }
            for parked in expired {
                self.timed_out(parked);
            }
            if let Some((waiters, sent)) = look {
                let began = Instant::now();
                self.end_interrupted(&waiters);
                self.look_after_locks();
                self.end_lost(&sent);
                pace = Pace::after(began);
            }
            self.close_dropped_dirs();
            self.forget_nameless_broken();
            if pruned.elapsed() > PRUNE {
                pruned = Instant::now();
                self.spawn(|engine| engine.prune_kept());
            }
            for transaction in unclaimed {
                self.abandon_pending(&transaction);
            }
            if ebb.is_over(known, dropped) {
                debug!(
                    "the kernel has forgotten much, {known} inodes are known: memory is given back"
                );
                memory::give_back();
            }
        }
    }

    fn nap(&self, state: &State, pace: &Pace) -> Duration {
        let until_deadline = state
            .leases
            .next_deadline()
            .map(|deadline| deadline.saturating_sub(self.now()));
        let look = pace.rest(self.usual(state));
        until_deadline.map_or(look, |d| d.min(look))
    }

    /// How often `/proc` is to be asked now.
    fn usual(&self, state: &State) -> Duration {
        let waiting = !state.parked.is_empty() || self.locks.lock().is_waited_for();
        if waiting { LOOK } else { IDLE }
    }

    fn timed_out(self: &Arc<Self>, parked: Parked) {
        let Parked { wish, done } = parked;
        let (holder, path, treatment) = {
            let state = self.state.lock();
            let inode = state.tree.inode(wish.inode);
            (
                inode.and_then(|i| i.transaction.clone()),
                state.tree.path(wish.inode),
                self.treatment_of(&state, wish.inode),
            )
        };
        let waited = treatment.map_or(self.settings().defaults.lock_timeout, |t| t.lock_timeout);
        let tid = wish.caller.tid;
        let thread = self.processes.thread(tid);
        let holder = holder.map_or(String::from("nobody any more"), |t| {
            format!("pid {} ({})", t.writer.process, t.writer.program)
        });
        warn!(
            "{}: open by pid {} ({}) timed out after {:?}: {} is writing it",
            super::lookup::show(path),
            thread.as_ref().map_or(tid, |t| t.process),
            thread.as_ref().map_or("?", |t| &t.name),
            waited,
            holder
        );
        done(Err(Errno::TIMEDOUT));
    }

    /// Ends the waits of those for whom a signal is pending.
    fn end_interrupted(self: &Arc<Self>, waiters: &[(Ticket, u32)]) {
        for (ticket, tid) in waiters {
            // A next open of the same thread has taken its place, which no kernel makes while the
            // first is under way.
            let overtaken = !self.state.lock().leases.waits(*ticket);
            let ended = match self.processes.thread(*tid) {
                _ if overtaken => true,
                Some(thread) => thread.interrupted,
                // Not to be seen from here (another pid namespace), or gone.
                None => *tid != 0 && !thread_exists(*tid),
            };
            if !ended {
                continue;
            }
            let parked = {
                let mut state = self.state.lock();
                state.leases.cancel(*ticket);
                // Whoever was woken meanwhile is not there any more.
                state.parked.remove(ticket)
            };
            if let Some(parked) = parked {
                (parked.done)(Err(Errno::INTR));
            }
        }
    }

    /// Takes the lease back from openers that were sent to look again and did not come.
    fn end_lost(self: &Arc<Self>, sent: &[(u32, Instant)]) {
        for (tid, since) in sent {
            let late = since.elapsed() > COME_BACK;
            if !late && self.processes.thread(*tid).is_some_and(|t| !t.exiting) {
                continue;
            }
            let redirect = {
                let mut state = self.state.lock();
                // It may have come back, and been sent once more.
                let same = state.redirects.get(tid).is_some_and(|r| r.since == *since);
                if same {
                    state.take_redirect(*tid)
                } else {
                    None
                }
            };
            if let Some(transaction) = redirect.and_then(|r| r.transaction) {
                self.abandon_pending(&transaction);
            }
        }
    }

    /// The mount has ended: whoever was sent to look again, and has not come back, will not.
    pub fn end_all_lost(self: &Arc<Self>) {
        let lost = {
            let mut state = self.state.lock();
            let mut lost = std::mem::take(&mut state.unclaimed);
            let sent: Vec<u32> = state.redirects.keys().copied().collect();
            let redirects = sent.into_iter().filter_map(|tid| state.take_redirect(tid));
            lost.extend(redirects.filter_map(|redirect| redirect.transaction));
            lost
        };
        for transaction in lost {
            self.abandon_pending(&transaction);
        }
    }

    /// Ends a transaction whose opener never came for it.
    pub(super) fn abandon_pending(self: &Arc<Self>, transaction: &Arc<Transaction>) {
        {
            let mut inner = transaction.inner.lock();
            if inner.phase != Phase::Pending {
                return;
            }
            inner.phase = Phase::Closing;
        }
        self.end(transaction, Ok(()), None);
    }

    /// Makes [`Engine::watch`] return, and every wait end.
    pub fn stop_watching(&self) {
        *self.watcher_stop.lock() = true;
        self.watching.notify_all();
    }

    fn fail_waiters(self: &Arc<Self>) {
        self.fail_lock_waiters();
        let parked: Vec<Parked> = {
            let mut state = self.state.lock();
            let tickets: Vec<Ticket> = state.parked.keys().copied().collect();
            for ticket in &tickets {
                state.leases.cancel(*ticket);
            }
            tickets
                .iter()
                .filter_map(|t| state.parked.remove(t))
                .collect()
        };
        for parked in parked {
            (parked.done)(Err(Errno::NOTCONN));
        }
    }
}

pub(super) fn thread_exists(tid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{tid}")).exists()
}
