//! How much space deleted trees and snapshots still hold until checkpoints have freed it.

use crate::format::catalog::TreeState;
use crate::pool::{Catalog, Pool};

impl Pool {
    /// Blocks that may be freed: those of trees that are being deleted, and of frozen epochs that live no more, of which
    /// others keep what they map too.
    #[must_use]
    pub fn reclaim_block_count(&self) -> u64 {
        self.catalog.lock().reclaim_block_count()
    }

    /// Whether something that was deleted still waits for checkpoints, be it without blocks.
    #[must_use]
    pub fn is_reclaiming(&self) -> bool {
        let catalog = self.catalog.lock();
        catalog.deleting().is_some() || catalog.has_dead_points()
    }
}

impl Catalog {
    /// As [`Pool::reclaim_block_count`].
    pub(super) fn reclaim_block_count(&self) -> u64 {
        let deleted = self.trees().filter(|tree| tree.state != TreeState::Living);
        let of_trees: u64 = deleted.map(|tree| tree.held.own_count).sum();
        of_trees + self.dead_points().map(|point| point.held.own_count).sum::<u64>()
    }
}
