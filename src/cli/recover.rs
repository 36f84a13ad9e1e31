//! `latchfs recover`: by hand what a mount does by itself before it serves.

use super::args::RecoverArgs;
use super::exit::{Exit, Failure, shell_word};
use super::served;
use crate::backing::Errno;
use crate::backing::recover::recover;
use crate::backing::store::{DIRECTORY, OpenError, Store};
use std::ffi::OsStr;

/// Puts right what a daemon that was killed left in BACKING, and says each thing it did.
pub(super) fn run(args: &RecoverArgs) -> Result<(), Failure> {
    let shown = shell_word(&args.backing);
    let unusable = |e: Errno| Failure::new(Exit::Backing, format!("{shown} can't be used: {e}"));
    let found = served::find(&args.backing)?;
    if !found.rest.as_os_str().is_empty() {
        if !args.backing.exists() {
            return Err(unusable(Errno::NOENT));
        }
        let message = format!(
            "{shown} is not what was mounted, but inside it; run: latchfs recover {}",
            shell_word(&found.backing)
        );
        return Err(Failure::new(Exit::Backing, message));
    }
    if let Some(daemon) = found.daemon {
        let message = format!(
            "{shown} is served by latchfs (pid {}), which does this by itself; unmount it first",
            daemon.pid
        );
        return Err(Failure::new(Exit::Busy, message));
    }
    let root = found.root;
    match root.open_dir(OsStr::new(DIRECTORY)) {
        // Nothing is made where latchfs never was.
        Err(Errno::NOENT) => {
            println!("{shown}: nothing to put right");
            return Ok(());
        }
        other => drop(other.map_err(unusable)?),
    }
    let store = Store::open(&root).map_err(|e| {
        let exit = match e {
            OpenError::Served(_) => Exit::Busy,
            OpenError::Foreign(_) | OpenError::Writable(_) | OpenError::Io(..) => Exit::Backing,
        };
        Failure::new(exit, format!("{shown}: {e}"))
    })?;
    let actions = recover(&root, &store).map_err(unusable)?;
    if actions.is_empty() {
        println!("{shown}: nothing to put right");
    }
    for action in actions {
        println!("{shown}: {action}");
    }
    Ok(())
}
