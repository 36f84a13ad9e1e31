//! Records that come while a transaction is in flight: its commit adds them to its version.
//!
//! A transaction is about what there was when it began, or at its last fsync(2): up to its
//! [`mark`](super::transaction::Inner::mark). What the file has beyond that was acknowledged to those who appended it. It is copied
//! to the end of the shadow before that takes the place of the file; no record comes in between, since
//! the commit has the [`turn`](super::turn).

use super::Engine;
use super::commit::Published;
use super::conflict::Candidate;
use super::io::length;
use super::names::Loose;
use super::tree::Key;
use super::version::Version;
use crate::backing::kept::is_lack_of_room;
use crate::backing::{Errno, Seen, shadow};
use crate::config::Durability;
use crate::sync::Arc;
use std::fs::File;

impl Engine {
    /// A record was appended to a version, or could not be: a transaction in flight expects that, and
    /// its commit will add what is there of it.
    pub(super) fn note_record(&self, key: Key, version: &Arc<Version>, before: Seen, file: &File) {
        let in_flight = {
            let mut state = self.state.lock();
            state.tree.inode_mut(key).and_then(|inode| {
                inode.appended = true;
                inode.transaction.clone()
            })
        };
        if let (Some(transaction), Ok(stat)) = (in_flight, rustix::fs::fstat(file)) {
            let mut inner = transaction.inner.lock();
            inner.expect_instead(before, Seen::of(&stat));
            inner.late = Some(version.clone());
        }
    }

    /// Publishes the shadow, with the records at its end that came since its transaction began. The
    /// caller has the turn at the file.
    pub(super) fn publish_with_records(
        &self,
        candidate: &Candidate,
        mark: Option<u64>,
        loose: &mut Loose,
    ) -> Result<Published, Errno> {
        let (transaction, file) = (candidate.transaction, candidate.shadow.file());
        let own = length(file)?;
        let result = self.add_records(candidate, mark).and_then(|added| {
            let published = self.publish(candidate, loose)?;
            let mut inner = transaction.inner.lock();
            inner.expected = Some(published.seen);
            // After fsync(2) the next version begins without them, too.
            inner.late = added.then(|| published.version.clone());
            Ok(published)
        });
        result.inspect_err(|_| {
            // What is kept aside is its writer's; the records are where they were.
            let nameless = || rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0);
            if candidate.shadow.is_named() || nameless() {
                let _ = rustix::fs::ftruncate(file, own);
            }
        })
    }

    /// Adds what was appended to the file beyond `mark` to the shadow; false if there is nothing.
    fn add_records(&self, candidate: &Candidate, mark: Option<u64>) -> Result<bool, Errno> {
        let &Candidate {
            transaction,
            shadow,
            treatment,
        } = candidate;
        let late = transaction.inner.lock().late.clone();
        let (Some(version), Some(mark)) = (late, mark) else {
            return Ok(false);
        };
        let end = version.length()?;
        if end <= mark {
            return Ok(false);
        }
        let (from, to) = (version.file(), shadow.file());
        let own = length(to)?;
        let payer = &transaction.writer.credentials;
        loop {
            let added = self.approved(payer, || shadow::append_range(&from, mark..end, to));
            match added {
                Err(errno)
                    if is_lack_of_room(errno)
                        && self.make_room_for(transaction, errno, end - mark) =>
                {
                    rustix::fs::ftruncate(to, own)?;
                }
                other => break other?,
            }
        }
        if treatment.durability != Durability::None {
            rustix::fs::fsync(to)?;
        }
        Ok(true)
    }
}
