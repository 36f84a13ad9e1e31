//! The same types, with a note of how long each lock is held: for scripts/bench --locks.
//!
//! Per place in the source where locks are made, the one that was held longest in all counts. Shared holds
//! are not noted, since they keep out nobody but who wants the lock alone.

use log::info;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use parking_lot::RwLockReadGuard;

/// A place where locks are made.
#[derive(Debug, Default)]
struct Site {
    /// How long the one of its locks was held that was held longest in all, in nanoseconds.
    most: AtomicU64,
    /// The longest that one was held at a time, in nanoseconds.
    longest: AtomicU64,
    /// How often its locks were taken.
    taken: AtomicU64,
}

type Sites = parking_lot::Mutex<BTreeMap<(&'static str, u32), &'static Site>>;

static SITES: Sites = parking_lot::Mutex::new(BTreeMap::new());
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// The time that locks could be held begins here.
pub fn begin_report() {
    let _ = BEGAN.set(Instant::now());
}

/// Logs how long locks were held.
pub fn report() {
    let wall = BEGAN.get().map_or(Duration::ZERO, Instant::elapsed);
    info!("locks: {:.3} s in all", wall.as_secs_f64());
    for ((file, line), site) in SITES.lock().iter() {
        let [most, longest, taken] =
            [&site.most, &site.longest, &site.taken].map(|n| n.load(Ordering::Relaxed));
        let share = most as f64 / wall.as_nanos().max(1) as f64;
        info!(
            "locks: {:.3} % at most {} us {taken} times {file}:{line}",
            share * 100.0,
            longest / 1000
        );
    }
}

/// What is noted of one lock.
struct Times {
    site: &'static Site,
    held: AtomicU64,
}

impl Times {
    #[track_caller]
    fn new() -> Self {
        let place = Location::caller();
        let mut sites = SITES.lock();
        let site = sites
            .entry((place.file(), place.line()))
            .or_insert_with(|| Box::leak(Box::default()));
        Self {
            site,
            held: AtomicU64::new(0),
        }
    }

    fn note(&self, since: Instant) {
        let took = since.elapsed().as_nanos() as u64;
        let all = self.held.fetch_add(took, Ordering::Relaxed) + took;
        self.site.most.fetch_max(all, Ordering::Relaxed);
        self.site.longest.fetch_max(took, Ordering::Relaxed);
        self.site.taken.fetch_add(1, Ordering::Relaxed);
    }
}

/// A guard that notes how long it was there.
pub struct Timed<'a, G> {
    guard: G,
    times: &'a Times,
    since: Instant,
}

impl<'a, G> Timed<'a, G> {
    fn new(guard: G, times: &'a Times) -> Self {
        let since = Instant::now();
        Self {
            guard,
            times,
            since,
        }
    }
}

impl<G> Drop for Timed<'_, G> {
    fn drop(&mut self) {
        self.times.note(self.since);
    }
}

impl<G: Deref> Deref for Timed<'_, G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Timed<'_, G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl<G> fmt::Debug for Timed<'_, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timed")
    }
}

/// As `parking_lot::MutexGuard`.
pub type MutexGuard<'a, T> = Timed<'a, parking_lot::MutexGuard<'a, T>>;
/// As `parking_lot::RwLockWriteGuard`.
pub type RwLockWriteGuard<'a, T> = Timed<'a, parking_lot::RwLockWriteGuard<'a, T>>;

/// As `parking_lot::Mutex`.
pub struct Mutex<T> {
    lock: parking_lot::Mutex<T>,
    times: Times,
}

impl<T> Mutex<T> {
    /// One that nobody holds.
    #[track_caller]
    pub fn new(value: T) -> Self {
        Self {
            lock: parking_lot::Mutex::new(value),
            times: Times::new(),
        }
    }

    /// Takes it, once nobody else has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        Timed::new(self.lock.lock(), &self.times)
    }

    /// Takes it if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = self.lock.try_lock()?;
        Some(Timed::new(guard, &self.times))
    }
}

impl<T: Default> Default for Mutex<T> {
    #[track_caller]
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock.fmt(f)
    }
}

/// As `parking_lot::RwLock`.
pub struct RwLock<T> {
    lock: parking_lot::RwLock<T>,
    times: Times,
}

impl<T> RwLock<T> {
    /// One that nobody holds.
    #[track_caller]
    pub fn new(value: T) -> Self {
        Self {
            lock: parking_lot::RwLock::new(value),
            times: Times::new(),
        }
    }

    /// Takes it together with others who only look.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.lock.read()
    }

    /// Takes it alone.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        Timed::new(self.lock.write(), &self.times)
    }
}

impl<T: fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock.fmt(f)
    }
}

/// As `parking_lot::Condvar`.
#[derive(Debug, Default)]
pub struct Condvar(parking_lot::Condvar);

impl Condvar {
    /// One that nobody waits for.
    pub const fn new() -> Self {
        Self(parking_lot::Condvar::new())
    }

    /// Waits for a notification, for so long at most.
    pub fn wait_for<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        limit: Duration,
    ) -> parking_lot::WaitTimeoutResult {
        self.wait_until(guard, Instant::now() + limit)
    }

    /// The same, until a moment.
    pub fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        end: Instant,
    ) -> parking_lot::WaitTimeoutResult {
        guard.times.note(guard.since);
        let result = self.0.wait_until(&mut guard.guard, end);
        guard.since = Instant::now();
        result
    }

    /// Ends the wait of one.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Ends the wait of all.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
