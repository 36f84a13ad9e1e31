//! How long a call waits for others.

use std::time::{Duration, Instant};

/// The first pause between two attempts.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest.
const LONGEST: Duration = Duration::from_millis(10);

/// The time that a call has. flock(2) has no limit in time, and what could end it (a signal, a
/// thread of its own) is no business of a library: so attempts that do not wait, with pauses.
#[derive(Debug)]
pub(super) struct Wait {
    began: Instant,
    timeout: Duration,
    pause: Duration,
}

impl Wait {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            began: Instant::now(),
            timeout,
            pause: SHORTEST,
        }
    }

    /// The whole of it.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Pauses before the next attempt; false, at once, if there is no time for one.
    pub(super) fn pause(&mut self) -> bool {
        let left = self.timeout.saturating_sub(self.began.elapsed());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(self.pause.min(left));
        self.pause = (self.pause * 2).min(LONGEST);
        true
    }
}
