//! What the mount tells of its files by attributes of its own.

use super::{Engine, NodeId};
use crate::backing::Errno;
use crate::in_flight::InFlight;

impl Engine {
    /// Who is writing the file that a node id stands for, as the value of
    /// [`crate::in_flight::ATTRIBUTE`]. Waits for nobody.
    ///
    /// # Errors
    /// `ENODATA` if nobody is; `ESTALE`.
    pub(super) fn in_flight_of(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        let (writer, began) = {
            let state = self.state.lock();
            let (_, inode) = state.tree.inode_of(node).ok_or(Errno::STALE)?;
            let transaction = inode.transaction.as_ref().ok_or(Errno::NODATA)?;
            (transaction.writer.clone(), transaction.began)
        };
        let told = InFlight {
            pid: writer.process,
            program: writer.program,
            seconds: self.now().saturating_sub(began).as_secs_f64(),
        };
        serde_json::to_vec(&told).map_err(|_| Errno::IO)
    }

    /// Answers [`crate::in_flight::ALIVE`], once it has had the lock that everything needs.
    ///
    /// # Errors
    /// `ENODATA`, always.
    pub(super) fn alive(&self) -> Result<Vec<u8>, Errno> {
        drop(self.state.lock());
        Err(Errno::NODATA)
    }
}
