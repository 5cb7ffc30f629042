//! Who has how much of the used space, as far as counters tell: nothing is walked, so that it may be asked at any time.
//!
//! Each used block was written in one interval, and is counted there. What a head's own interval counts, nothing else can
//! map: nobody builds on a head. The rest of what a head maps is in its base too.

use crate::pool::catalog::Sharer;
use crate::pool::{Catalog, Pool};
use crate::units::Epoch;
use uuid::Uuid;

/// Used blocks, by what keeps them. Together they are all used blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceShares {
    /// All of them.
    pub used_count: u64,
    /// Those that the head of one volume maps, and nothing else.
    pub head_count: u64,
    /// Those that snapshots map, or clones of them; heads may map them too.
    pub snapshot_count: u64,
    /// Those of what was removed that checkpoints still have to look at.
    pub reclaim_count: u64,
}

/// What the head of a volume maps, in blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadShares {
    /// All of it.
    pub mapped_count: u64,
    /// What nothing else maps.
    pub own_count: u64,
    /// Who builds on the data that it shares, the nearest first.
    pub sharers: Vec<Sharer>,
}

impl Pool {
    /// By what the used blocks are kept, as of the last checkpoint.
    #[must_use]
    pub fn space_shares(&self) -> SpaceShares {
        let (used_count, reclaim_count, head_count) = {
            // The bitmap changes before the catalog does.
            let _nothing_half_done = self.commits.lock();
            let catalog = self.catalog.lock();
            let used_count = self.stored.lock().used_count;
            let own_count = |volume: &crate::format::catalog::VolumeRecord| {
                catalog.tree(volume.tree).map_or(0, |tree| tree.held.own_count)
            };
            (used_count, catalog.reclaim_block_count(), catalog.volumes().map(own_count).sum::<u64>())
        };
        // What leaked counts here: it looks like what is kept, and `check` names it.
        let snapshot_count = used_count.saturating_sub(head_count + reclaim_count);
        SpaceShares { used_count, head_count, snapshot_count, reclaim_count }
    }
}

impl Catalog {
    /// What the head of a volume maps, as of the last checkpoint, with at most so many who share it.
    #[must_use]
    pub fn head_shares(&self, volume: Uuid, sharers_max: usize) -> HeadShares {
        let tree = self.volume(volume).and_then(|volume| self.tree(volume.tree));
        let Some(tree) = tree else { return HeadShares::default() };
        let (mapped_count, own_count) = (self.mapped_count((tree.id, Epoch::NEWEST)), tree.held.own_count);
        let sharers = if mapped_count > own_count { self.sharers(tree.id, sharers_max) } else { Vec::new() };
        HeadShares { mapped_count, own_count, sharers }
    }
}
