//! Bounds of an open pool.

use crate::pool::Watermarks;

/// What bounds the pool's memory and the length of recovery.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Changes that start a checkpoint.
    pub changes_soft_max: u64,
    /// Changes at which writes wait for the running checkpoint.
    pub changes_hard_max: u64,
    /// Records of one lane that start a checkpoint.
    pub records_soft_max: u64,
    /// Memory for decoded leaves, in bytes.
    pub map_cache_bytes: u64,
    /// When space counts as low.
    pub watermarks: Watermarks,
    /// Leaves that a checkpoint stores in one synced batch, at least 1.
    pub leaves_per_batch: usize,
    /// Leaves that a checkpoint deletes or merges in one synced batch, at least 1.
    pub reclaimed_per_batch: usize,
    /// Leaves that one checkpoint deletes or merges.
    pub reclaimed_per_checkpoint: usize,
    /// Trees in which a leaf has to be looked for, at least 1: one that has more gets the leaves of its parents.
    pub lineage_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // 100,000 changes are 400 MiB of log: recovery reads that in well under two seconds from NVMe.
        Self {
            changes_soft_max: 100_000,
            changes_hard_max: 400_000,
            records_soft_max: 20_000,
            map_cache_bytes: 256 << 20,
            watermarks: Watermarks::default(),
            // 1.5 MiB if they are put whole, some 50 KiB if few of their entries changed: worth a flush of the log.
            leaves_per_batch: 256,
            // At most 6 MiB are read for it.
            reclaimed_per_batch: 512,
            reclaimed_per_checkpoint: 65_536,
            lineage_max: 16,
        }
    }
}
