//! Recovery itself, killed at each of its calls.

use crate::common::syscalls::{Process, Supervised};
use crate::common::{LATCHFS, Mount, User};
use crate::left::{Course, Left, Leftover, Leftovers, recover};
use crate::points::{Run, Swept, Target, Watch, sweep};
use crate::tree::{Tree, kept};
use std::process::{Command, Stdio};

/// What recovers.
#[derive(Clone, Copy, Debug)]
enum By {
    Command,
    Mount,
}

impl By {
    /// Recovers, with a kill at `target`.
    fn recover(self, mount: Mount, target: Target) -> (Mount, Run, Result<(), String>) {
        let watch = Watch::new(target);
        let decide = {
            let watch = watch.clone();
            move |call: &_| watch.decide(call)
        };
        let (mount, succeeded) = match self {
            Self::Command => {
                let mut command = Command::new(LATCHFS);
                command.arg("recover").arg(mount.backing());
                command.stdin(Stdio::null()).stdout(Stdio::null());
                let mut process = Process::spawn(command, mount.backing(), User::Root, decide);
                (mount, process.wait().success())
            }
            Self::Mount => {
                let mut daemon = Supervised::start(mount, decide);
                let served = daemon.is_served();
                daemon.process().terminate();
                (daemon.wait().0, served)
            }
        };
        let run = watch.run();
        let verdict = match succeeded || run.hit {
            true => Ok(()),
            false => Err(format!("{self:?} has failed: {}", mount.log())),
        };
        (mount, run, verdict)
    }
}

/// Kills recovery at each of its points, for each kind of leftover.
pub fn sweep_recovery(leftovers: &Leftovers) -> Swept {
    let mut all = Swept::default();
    for (number, (kind, leftover)) in leftovers.0.iter().enumerate() {
        let course = leftover.course();
        all.add(sweep_one(kind, leftover, &course, By::Command));
        if number == 0 {
            // What comes before and after the same recovery is the same whatever was left.
            all.add(sweep_one(kind, leftover, &course, By::Mount));
        }
        all.add(never_let_it_finish(kind, leftover, &course));
    }
    all
}

/// What there is after a recovery.
fn result(mount: &Mount) -> (Tree, Result<Vec<Vec<u8>>, String>) {
    (Tree::of(mount.backing()), kept(mount.backing()))
}

fn sweep_one(kind: &str, leftover: &Leftover, course: &Course, by: By) -> Swept {
    let mut uninterrupted = None;
    sweep(&format!("recovery of {kind} by {by:?}"), |target| {
        let Left { mount, claim, .. } = leftover.again(course);
        let (mount, run, verdict) = by.recover(mount, target);
        let verdict = verdict.and_then(|()| {
            course.look(&mount, &claim, !run.hit)?;
            recover(&mount)?;
            course.look(&mount, &claim, true)?;
            let found = result(&mount);
            let expected = uninterrupted.get_or_insert_with(|| found.clone());
            match found == *expected {
                true => Ok(()),
                false => Err(format!(
                    "{}, {:?}, which is another result",
                    found.0, found.1
                )),
            }
        });
        (run, verdict)
    })
}

/// Kills it at its first point, the next one at its second, and so on until one comes to its end.
fn never_let_it_finish(kind: &str, leftover: &Leftover, course: &Course) -> Swept {
    let mut swept = Swept::default();
    let Left {
        mut mount, claim, ..
    } = leftover.again(course);
    loop {
        let number = swept.killed.len();
        let (back, run, mut verdict) = By::Command.recover(mount, Target::Number(number));
        mount = back;
        verdict = verdict.and_then(|()| course.look(&mount, &claim, !run.hit));
        if let Err(what) = verdict {
            let violation = format!("recovery of {kind}, killed {number} times before: {what}");
            println!("violation: {violation}");
            swept.violations.push(violation);
        }
        if !run.hit {
            return swept;
        }
        swept.killed.push(run.seen.last().expect("a point").clone());
    }
}
