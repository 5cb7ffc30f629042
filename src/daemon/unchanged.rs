//! Whether a volume has changed since its latest snapshot.

use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{HeldBlocks, VolumeRecord};
use crate::format::snapshot::SnapshotRecord;
use crate::lane::Server;
use crate::units::{BLOCK_SIZE_U64, LEAF_ENTRIES_U64};

/// The latest snapshot of a volume, if the head has its content still. May wait for a checkpoint.
///
/// # Errors
/// `Other` if the pool takes no writes any more.
pub(super) fn unchanged_snapshot(server: &Server, volume: &VolumeRecord) -> Result<Option<SnapshotRecord>> {
    let pool = server.pool();
    let blocks = 0..(volume.size_bytes / BLOCK_SIZE_U64).next_multiple_of(LEAF_ENTRIES_U64);
    loop {
        let seen = server.events().count();
        let cuts = pool.cuts_begun();
        // Before the catalog: a checkpoint takes changes out of memory only once the catalog counts them. The other way round
        // it could do both between the two looks, and hide a write.
        let is_touched = pool.changes().next_touched(volume.tree, blocks.clone()).is_some();
        let latest = pool.with_catalog(|catalog, _| {
            let head = catalog.tree(volume.tree)?;
            let base = catalog.base((head.id, head.epoch)).map(|point| (point.tree, point.epoch));
            let mut living = catalog.snapshots_of(volume.id).filter(|record| !record.lifetime.is_trashed());
            let latest = living.next_back().filter(|latest| Some(latest.point) == base)?;
            let is_same = head.held == HeldBlocks::default() && latest.size_bytes == volume.size_bytes;
            is_same.then(|| latest.clone())
        });
        if latest.is_none() || !is_touched {
            return Ok(latest);
        }
        // What is in memory may be older than the latest snapshot: a checkpoint tells.
        pool.check_writable().map_err(|_| {
            Error::new(ErrorKind::Other, "The pool takes no writes any more").with_hint("See rok-blk status")
        })?;
        pool.want_checkpoint();
        let mut seen = seen;
        while pool.checkpoints_done() <= cuts && pool.check_writable().is_ok() {
            server.events().wait_beyond(seen);
            seen = server.events().count();
        }
    }
}
