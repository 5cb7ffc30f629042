//! How much space deleted trees still hold until checkpoints have freed it.

use crate::format::catalog::TreeState;
use crate::pool::Pool;

impl Pool {
    /// Blocks that wait to be freed: those of trees that are being deleted.
    #[must_use]
    pub fn reclaim_block_count(&self) -> u64 {
        let catalog = self.catalog.lock();
        let deleted = catalog.trees().filter(|tree| tree.state != TreeState::Living);
        deleted.map(|tree| tree.mapped_block_count).sum()
    }

    /// Whether something that was deleted still waits for checkpoints, be it without blocks.
    #[must_use]
    pub fn is_reclaiming(&self) -> bool {
        self.catalog.lock().deleting().is_some()
    }
}
