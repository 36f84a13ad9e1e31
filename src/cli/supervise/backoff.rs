//! How long to wait before the next daemon: pure.

use std::time::Duration;

/// So many deaths in a row are followed by no pause.
const AT_ONCE: u32 = 5;
/// The pause after the next one; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// A daemon that has served for so long has not died "again".
const CALM: Duration = Duration::from_secs(60);

/// Counts the deaths.
pub(super) struct Backoff {
    longest: Duration,
    in_a_row: u32,
}

impl Backoff {
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            longest,
            in_a_row: 0,
        }
    }

    /// A daemon has died that has served for so long; the pause until the next one.
    pub(super) fn died(&mut self, served: Duration) -> Duration {
        if served >= CALM {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        match self.in_a_row.checked_sub(AT_ONCE + 1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST
                .saturating_mul(2_u32.saturating_pow(doublings))
                .min(self.longest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(pauses: impl IntoIterator<Item = Duration>) -> Vec<u64> {
        pauses.into_iter().map(|pause| pause.as_secs()).collect()
    }

    #[test]
    fn pauses_grow_when_a_daemon_dies_again_and_again() {
        let mut backoff = Backoff::new(Duration::from_secs(30));
        let pauses = (0..13).map(|_| backoff.died(Duration::from_secs(59)));
        assert_eq!(seconds(pauses), [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30]);
        for _ in 0..100 {
            assert_eq!(backoff.died(Duration::ZERO).as_secs(), 30);
        }
    }

    #[test]
    fn a_daemon_that_has_served_for_a_minute_is_started_at_once() {
        let mut backoff = Backoff::new(Duration::from_secs(30));
        for _ in 0..20 {
            assert_eq!(backoff.died(CALM), Duration::ZERO);
        }
        for _ in 0..20 {
            backoff.died(Duration::ZERO);
        }
        assert_eq!(backoff.died(CALM), Duration::ZERO);
    }

    #[test]
    fn no_pause_is_longer_than_asked_for() {
        let mut backoff = Backoff::new(Duration::from_millis(10));
        for _ in 0..50 {
            assert!(backoff.died(Duration::ZERO) <= Duration::from_millis(10));
        }
    }
}
