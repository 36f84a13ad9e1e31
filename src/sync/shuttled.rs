//! The same types under shuttle, which runs all threads of a test on one, and decides at each lock,
//! notification and atomic access who goes on. Outside of a test of shuttle none of this works.

pub use shuttle::sync::{atomic, mpsc};
pub use shuttle::thread_local;
pub use shuttle_dashmap::DashMap;
pub use shuttle_parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use std::time::{Duration, Instant};

/// A wait that may take so long lasts until it is notified: shuttle knows no time.
const FOR_EVER: Duration = Duration::from_secs(10);

/// `parking_lot::Condvar`, as far as it is used.
#[derive(Debug)]
pub struct Condvar {
    notified: shuttle::sync::Mutex<u64>,
    changed: shuttle::sync::Condvar,
}

/// Whether a wait has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Has it?
    pub fn timed_out(self) -> bool {
        self.0
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl Condvar {
    /// One that nobody waits for.
    pub const fn new() -> Self {
        Self {
            notified: shuttle::sync::Mutex::new(0),
            changed: shuttle::sync::Condvar::new(),
        }
    }

    /// Waits for a notification. A short wait ends by itself, at a moment that shuttle chooses.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, limit: Duration) -> WaitTimeoutResult {
        if limit < FOR_EVER {
            MutexGuard::unlocked(guard, shuttle::thread::yield_now);
            return WaitTimeoutResult(true);
        }
        // Locked before the other is given back: no notification gets lost in between.
        let mut notified = self.notified.lock().expect("no poison");
        let before = *notified;
        MutexGuard::unlocked(guard, || {
            while *notified == before {
                notified = self.changed.wait(notified).expect("no poison");
            }
            drop(notified);
        });
        WaitTimeoutResult(false)
    }

    /// The same, until a moment.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, end: Instant) -> WaitTimeoutResult {
        self.wait_for(guard, end.saturating_duration_since(Instant::now()))
    }

    /// Ends the wait of one.
    pub fn notify_one(&self) {
        self.notify_all();
    }

    /// Ends the wait of all.
    pub fn notify_all(&self) {
        if faults::loses(faults::Fault::Notifications) {
            return;
        }
        *self.notified.lock().expect("no poison") += 1;
        self.changed.notify_all();
    }
}

/// A thread of its own for each piece of work.
pub fn spawn_blocking(work: impl FnOnce() + Send + 'static) {
    if faults::loses(faults::Fault::Tasks) {
        return;
    }
    shuttle::thread::spawn(work);
}

/// What goes wrong on purpose, in the tests of one thread, to see that they notice.
pub mod faults {
    use std::cell::Cell;

    std::thread_local! {
        // Of the standard library: shuttle runs all threads of a test on this one.
        static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// What gets lost now and then.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// Notifications of a [`super::Condvar`].
        Notifications,
        /// Work for the pool.
        Tasks,
    }

    /// Sets what gets lost from now on.
    pub fn set(fault: Option<Fault>) {
        FAULT.set(fault);
    }

    pub(super) fn loses(what: Fault) -> bool {
        use shuttle::rand::Rng;
        FAULT.get() == Some(what) && shuttle::rand::thread_rng().gen_bool(0.3)
    }
}
