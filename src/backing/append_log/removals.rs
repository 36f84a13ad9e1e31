//! Logs that were removed, and may be back after a power cut.

use super::Errno;
use crate::sync::Mutex;
use std::collections::HashMap;

/// Which files have logs of which the removal may not have reached the disk.
#[derive(Debug)]
pub struct Removals(Mutex<Removed>);

#[derive(Debug)]
struct Removed {
    /// How many there have been.
    count: u64,
    /// By inode number, the last of each.
    last: HashMap<u64, u64>,
    /// Up to this one, they may be of any file.
    any: u64,
}

impl Default for Removals {
    fn default() -> Self {
        // Nothing is known of what an earlier daemon removed last.
        Self(Mutex::new(Removed {
            count: 1,
            last: HashMap::new(),
            any: 1,
        }))
    }
}

impl Removals {
    /// More are not told apart.
    const MANY: usize = 4096;

    pub(super) fn add(&self, ino: u64) {
        let removed = &mut *self.0.lock();
        removed.count += 1;
        if removed.last.len() >= Self::MANY {
            removed.last.clear();
            removed.any = removed.count;
        }
        removed.last.insert(ino, removed.count);
    }

    /// May a removed log of this file come back?
    pub(super) fn concern(&self, ino: u64) -> bool {
        let removed = self.0.lock();
        removed.any > 0 || removed.last.contains_key(&ino)
    }

    /// Can none come back?
    pub(in crate::backing) fn is_empty(&self) -> bool {
        let removed = self.0.lock();
        removed.any == 0 && removed.last.is_empty()
    }

    /// Does `sync`, which makes all that were so far durable.
    ///
    /// # Errors
    /// Those of `sync`.
    pub(in crate::backing) fn settle(
        &self,
        sync: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let so_far = self.0.lock().count;
        sync()?;
        let removed = &mut *self.0.lock();
        removed.last.retain(|_, number| *number > so_far);
        if removed.any <= so_far {
            removed.any = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
#[test]
fn a_removed_log_is_remembered_until_the_directory_is_durable() {
    let removals = Removals::default();
    assert!(removals.concern(1));
    assert_eq!(removals.settle(|| Ok(())), Ok(()));
    assert!(!removals.concern(1));
    removals.add(1);
    assert!(removals.concern(1) && !removals.concern(2));
    assert_eq!(removals.settle(|| Err(Errno::IO)), Err(Errno::IO));
    assert!(removals.concern(1));
    // One that comes while the disk is at work may have come too late.
    let settled = removals.settle(|| {
        removals.add(2);
        Ok(())
    });
    assert_eq!(settled, Ok(()));
    assert!(!removals.concern(1) && removals.concern(2));
    for ino in 10..10_000 {
        removals.add(ino);
    }
    assert!(removals.concern(2) && removals.0.lock().last.len() <= Removals::MANY);
    assert_eq!(removals.settle(|| Ok(())), Ok(()));
    assert!((0..10_000).all(|ino| !removals.concern(ino)));
}
