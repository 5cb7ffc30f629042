//! What `rok-blk status` and `df` show of a pool.

use crate::crypto::Suite;
use crate::meta::MetaStore;
use crate::pool::watermark::{SpaceLevel, Watermarks};
use crate::pool::{CleaningStatus, Pool};
use crate::units::BLOCK_SIZE_U64;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// The state of an open pool at one moment. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct PoolStatus {
    /// The pool's id.
    pub id: Uuid,
    /// Space for data and records on all devices.
    pub capacity_bytes: u64,
    /// What stored leaves map.
    pub used_bytes: u64,
    /// What nothing holds.
    pub free_bytes: u64,
    /// Part of the free space: what was given back to the file systems of the pool's files, and is taken back for use.
    pub released_bytes: u64,
    /// Whether that failed when it was tried last.
    pub is_restock_failing: bool,
    /// What is neither: new data and records since the last checkpoint, windows, and what waits for it.
    pub quarantined_bytes: u64,
    /// Part of the free space that only overwrites and deletions may take.
    pub reserve_bytes: u64,
    /// How much is left, as of the last checkpoint.
    pub space_level: SpaceLevel,
    /// From when on it is low and critical.
    pub watermarks: Watermarks,
    /// Size of `meta/`.
    pub metadata_bytes: u64,
    /// Number of the last checkpoint.
    pub checkpoint: u64,
    /// Number of the current session.
    pub session: u64,
    /// Changes that no checkpoint holds.
    pub changes: u64,
    /// Whether `meta/` ran out of space and lives on its reserve.
    pub is_meta_reserve_gone: bool,
    /// Memory that cached leaves of the map take.
    pub map_cache_bytes: u64,
    /// Most that they may take.
    pub map_cache_bytes_max: u64,
    /// How the free space lies, and what the cleaner did.
    pub cleaning: CleaningStatus,
    /// Whether blocks are encrypted.
    pub is_encrypted: bool,
    /// Why writes are refused, if they are.
    pub failure: Option<String>,
    /// Records that recovery followed at this open.
    pub recovered_records: u64,
    /// Blocks of the last batches that a crash lost or tore, found at this open.
    pub lost_blocks: u64,
    /// Damaged blocks that reads met since the pool was opened, one that is read again counted again.
    pub damaged_blocks: u64,
}

impl Pool {
    /// The pool's state now.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let (used, checkpoint) = {
            let stored = self.stored.lock();
            (stored.used_count, stored.checkpoint)
        };
        let (capacity, free, released) = {
            let space = self.space.lock();
            (space.block_count(), space.free_count() + space.released_blocks(), space.released_blocks())
        };
        PoolStatus {
            id: self.id,
            capacity_bytes: capacity * BLOCK_SIZE_U64,
            used_bytes: used * BLOCK_SIZE_U64,
            free_bytes: free * BLOCK_SIZE_U64,
            released_bytes: released * BLOCK_SIZE_U64,
            is_restock_failing: self.is_restock_failing(),
            quarantined_bytes: capacity.saturating_sub(used + free) * BLOCK_SIZE_U64,
            reserve_bytes: self.reserve_blocks() * BLOCK_SIZE_U64,
            space_level: self.space_level(),
            watermarks: self.limits.watermarks,
            metadata_bytes: self.store.size_bytes(),
            checkpoint: checkpoint.get(),
            session: self.session.get(),
            changes: self.changes.active_count() + self.changes.frozen_count(),
            is_meta_reserve_gone: self.is_meta_reserve_gone(),
            map_cache_bytes: self.leaves.size().0,
            map_cache_bytes_max: self.limits.map_cache_bytes,
            cleaning: self.cleaning_status(),
            is_encrypted: self.keys.suite() == Suite::XtsGmac,
            failure: self.failure.read().clone(),
            recovered_records: self.recovery.record_count,
            lost_blocks: self.recovery.lost_block_count,
            damaged_blocks: self.damaged_blocks.load(Ordering::Relaxed),
        }
    }
}
