//! What the next mount puts right before it serves, after a daemon that was killed (S2).

use super::redo::{self, Replayed};
use super::store::Store;
use super::{Dir, Errno};

/// One thing that recovery did, in words for the log.
pub type Action = String;

/// Finishes or removes what a daemon that was killed left in `.latchfs`, and says each thing it
/// did. Does nothing, and says nothing, after a clean end.
///
/// A transaction that was in flight needs nothing: its shadow had no name, and is gone.
///
/// # Errors
/// `EIO`, `ENOSPC`, ...: BACKING should not be served then.
pub fn recover(root: &Dir, store: &Store) -> Result<Vec<Action>, Errno> {
    let mut actions: Vec<Action> = redo::replay(root, store)?
        .into_iter()
        .map(|(what, path)| match what {
            Replayed::Finished => format!("finished the interrupted update of {path}"),
            Replayed::Kept => {
                format!("kept an interrupted update of {path} aside: the file is no longer there")
            }
            Replayed::Removed => format!("removed the unused redo/{path}"),
        })
        .collect();
    store.keeper().tidy();
    for entry in store.tmp().list()? {
        store.tmp().unlink(&entry.name)?;
        actions.push(format!(
            "removed the leftover of a commit, tmp/{}",
            entry.name.to_string_lossy()
        ));
    }
    Ok(actions)
}
