//! What a large version's writer has written is sent to the disk before its commit, which then has less to wait
//! for.
//!
//! Only where the file grows: what is written again and again in one place would go to the disk as often.

use super::Engine;
use super::transaction::Transaction;
use crate::backing::order;
use crate::config::Durability;
use crate::sync::Arc;
use std::ops::Range;

/// In pieces of so many bytes: large enough for one extent each.
const PIECE: u64 = 4 << 20;

/// How far it is.
#[derive(Debug, Default)]
pub struct Ahead {
    /// Everything before is on its way, or has been there.
    to: u64,
    /// A piece is just being sent.
    busy: bool,
}

impl Ahead {
    /// The piece to be sent now that a write has ended at `end`; [`Ahead::sent`] is to follow.
    pub fn piece(&mut self, end: u64) -> Option<Range<u64>> {
        if self.busy || end < self.to.saturating_add(PIECE) {
            return None;
        }
        self.busy = true;
        Some(std::mem::replace(&mut self.to, end)..end)
    }

    /// It has been sent.
    pub fn sent(&mut self) {
        self.busy = false;
    }
}

impl Engine {
    /// Has a piece of a transaction's content sent to the disk, if its commit will wait for that.
    pub(super) fn write_out(self: &Arc<Self>, transaction: &Arc<Transaction>, piece: Range<u64>) {
        let transaction = transaction.clone();
        self.spawn(move |engine| {
            let durability = engine.treatment_of_transaction(&transaction).durability;
            let shadow = transaction.inner.lock().writable();
            if let Some(shadow) = shadow.filter(|_| durability != Durability::None) {
                order::begin_write_out(shadow.file(), piece);
            }
            transaction.inner.lock().ahead.sent();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_file_and_one_that_is_written_again_are_not_sent_ahead() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.piece(PIECE - 1), None);
        assert_eq!(ahead.piece(PIECE), Some(0..PIECE));
        ahead.sent();
        for end in [1, PIECE, PIECE + 1] {
            assert_eq!(ahead.piece(end), None);
        }
    }

    proptest! {
        #[test]
        fn the_pieces_of_a_file_follow_each_other_one_at_a_time(
            steps in proptest::collection::vec((1..3 * PIECE, any::<bool>()), 1..50)
        ) {
            let (mut ahead, mut written, mut sent) = (Ahead::default(), 0, 0);
            let mut under_way = false;
            for (length, finishes) in steps {
                written += length;
                let piece = ahead.piece(written);
                prop_assert_eq!(piece.is_some(), !under_way && written - sent >= PIECE);
                if let Some(piece) = piece {
                    prop_assert_eq!(piece, sent..written);
                    (sent, under_way) = (written, true);
                }
                if under_way && finishes {
                    ahead.sent();
                    under_way = false;
                }
            }
        }
    }
}
