//! Giving memory back to the system.

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::spawn_blocking;

/// Calls of [`give_back`] that no trim has answered yet.
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Has free memory given back to the system, by a thread of the pool. glibc's allocator keeps what
/// lies below anything still in use until it is asked.
pub fn give_back() {
    if ASKED.fetch_add(1, Ordering::Relaxed) > 0 {
        return;
    }
    spawn_blocking(|| {
        loop {
            let asked = ASKED.load(Ordering::Relaxed);
            trim();
            if ASKED.fetch_sub(asked, Ordering::Relaxed) == asked {
                return;
            }
        }
    });
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: malloc_trim(3) takes no pointers and may be called at any time by any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
