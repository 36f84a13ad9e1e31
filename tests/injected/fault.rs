//! A call that fails: the N-th on BACKING from now on.

use crate::common::syscalls::{Call, Decision, Place};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The fault, as the test and the one who decides share it.
#[derive(Clone, Default)]
pub struct Fault(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// How many calls are still to go on before the one that fails, and its errno.
    armed: Option<(usize, i32)>,
    /// Also before the mount is served.
    starting: bool,
    /// The last call before it.
    previous: String,
    hit: Option<Hit>,
}

/// The call that failed, and what came after it.
pub struct Hit {
    /// What it was, and the one before it.
    pub label: String,
    pub previous: String,
    /// The file that was to be made durable by it, if it was that.
    synced: Option<PathBuf>,
    /// Calls with the same file that would use it all the same.
    pub abused: Vec<String>,
}

impl Fault {
    /// From now on `before` calls go on, and the next one fails.
    pub fn arm(&self, before: usize, errno: i32) {
        let armed = Some((before, errno));
        *self.0.lock().expect("the fault") = State {
            armed,
            ..State::default()
        };
    }

    /// The same, counted from the beginning of the daemon.
    pub fn arm_from_the_start(&self, before: usize, errno: i32) {
        self.arm(before, errno);
        self.0.lock().expect("the fault").starting = true;
    }

    /// No further call fails. Returns the one that has.
    pub fn disarm(&self) -> Option<Hit> {
        std::mem::take(&mut *self.0.lock().expect("the fault")).hit
    }

    /// What becomes of a call.
    pub fn decide(&self, call: &Call) -> Decision {
        let touches = |place: &Place| matches!(place, Place::Backing(_));
        let mut state = self.0.lock().expect("the fault");
        let counts = call.serving || state.starting;
        if !counts || !call.places.iter().any(touches) {
            return Decision::Continue;
        }
        if let Some(hit) = &mut state.hit {
            if hit.synced.as_deref().is_some_and(|file| uses(call, file)) {
                hit.abused.push(call.label());
            }
            return Decision::Continue;
        }
        match &mut state.armed {
            None => Decision::Continue,
            Some((before @ 1.., _)) => {
                *before -= 1;
                state.previous = call.label();
                Decision::Continue
            }
            Some((0, errno)) => {
                let errno = *errno;
                let synced = match (call.name.as_ref(), &call.places[..]) {
                    // Not of a directory: that may be tried again.
                    ("fsync" | "fdatasync", [Place::Backing(file)]) if is_unnamed(file) => {
                        Some(file.clone())
                    }
                    _ => None,
                };
                state.hit = Some(Hit {
                    label: call.label(),
                    previous: std::mem::take(&mut state.previous),
                    synced,
                    abused: vec![],
                });
                Decision::Fail(errno)
            }
        }
    }
}

fn is_unnamed(file: &Path) -> bool {
    file.to_string_lossy().contains('#')
}

/// Would this call make the file durable after all, or give it a name? A place among what is kept aside
/// is no such name.
fn uses(call: &Call, file: &Path) -> bool {
    let at = |index: usize| match call.places.get(index) {
        Some(Place::Backing(path)) => Some(path.as_path()),
        _ => None,
    };
    match call.name.as_ref() {
        "fsync" | "fdatasync" => at(0) == Some(file),
        "linkat" => at(0) == Some(file) && !at(1).is_some_and(|to| to.starts_with(".latchfs/kept")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &'static str, places: &[&str]) -> Call {
        Call {
            thread: 1,
            number: 0,
            name: name.into(),
            args: [0; 6],
            places: places.iter().map(|p| Place::Backing(p.into())).collect(),
            serving: true,
        }
    }

    #[test]
    fn a_shadow_that_is_used_after_a_failed_fsync_is_noticed() {
        let fault = Fault::default();
        let after = |name, places: &[&str]| {
            fault.arm(0, libc::EIO);
            let failed = fault.decide(&call("fsync", &["#1 (deleted)"]));
            assert_eq!(failed, Decision::Fail(libc::EIO));
            fault.decide(&call(name, places));
            fault.disarm().expect("a hit").abused.len()
        };
        assert_eq!(after("fsync", &["#1 (deleted)"]), 1);
        assert_eq!(after("linkat", &["#1 (deleted)", ".latchfs/tmp/x"]), 1);
        assert_eq!(after("linkat", &["#1 (deleted)", ".latchfs/kept/x"]), 0);
        assert_eq!(after("fsync", &["#2 (deleted)"]), 0);
    }
}
