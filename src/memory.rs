//! Giving memory back to the system: glibc's allocator keeps what was freed below anything that is
//! still in use, until it is asked.

use crate::sync::spawn_blocking;

/// So many freed entries are worth asking.
const WORTH: u64 = 1024;

/// Decides when to ask: when half of what there was has been freed, and when freeing has ended,
/// since until then what is left is scattered over all pages.
#[derive(Debug, Default)]
pub struct Ebb {
    most: usize,
    freed: u64,
    given_back: u64,
}

impl Ebb {
    /// To be asked now and then: there are `entries` now, and `freed` were freed in all.
    pub fn is_over(&mut self, entries: usize, freed: u64) -> bool {
        let quiet = freed == self.freed;
        self.freed = freed;
        self.most = self.most.max(entries);
        let over = freed - self.given_back >= WORTH && (quiet || entries <= self.most / 2);
        if over {
            self.most = entries;
            self.given_back = freed;
        }
        over
    }
}

/// Has free memory given back, by a thread of the pool.
pub fn give_back() {
    spawn_blocking(trim);
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: malloc_trim(3) takes no pointers and may be called at any time by any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::Ebb;

    #[test]
    fn memory_is_given_back_when_half_is_freed_and_when_freeing_ends() {
        let mut ebb = Ebb::default();
        assert!(!ebb.is_over(100_000, 0));
        assert!(!ebb.is_over(90_000, 10_000), "there may come more");
        assert!(ebb.is_over(50_000, 50_000), "half");
        assert!(!ebb.is_over(40_000, 60_000));
        assert!(ebb.is_over(40_000, 60_000), "nothing was freed since");
        assert!(!ebb.is_over(40_000, 60_000), "and still nothing");
        assert!(!ebb.is_over(40_000, 61_000), "as many come as go");
        assert!(!ebb.is_over(39_990, 61_010));
        assert!(!ebb.is_over(39_990, 61_010), "not worth it");
    }
}
