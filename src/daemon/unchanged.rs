//! Whether a volume has changed since its latest snapshot.

use std::time::{Duration, Instant};

use super::job_table::JobTable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{HeldBlocks, VolumeRecord};
use crate::format::snapshot::SnapshotRecord;
use crate::lane::Server;
use crate::units::{BLOCK_SIZE_U64, LEAF_ENTRIES_U64};

/// How long one request, or one look of the keeper, waits for checkpoints: nothing else can be changed meanwhile, and a
/// checkpoint may wait for space that only a removal gives back. A usual one takes less than a second.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// How long checkpoints may be waited for, whatever the number of volumes.
pub(super) struct CheckpointWait<'a> {
    server: &'a Server,
    /// It is over too when these are closed.
    jobs: &'a JobTable,
    deadline: Instant,
}

impl<'a> CheckpointWait<'a> {
    /// From now on.
    pub(super) fn begin(server: &'a Server, jobs: &'a JobTable) -> Self {
        Self { server, jobs, deadline: Instant::now() + WAIT_MAX }
    }

    /// Waits until more checkpoints than `count` are done, or the pool has failed; `false` if the time is over, or the daemon
    /// ends.
    fn until_beyond(&self, count: u64) -> bool {
        let (pool, events) = (self.server.pool(), self.server.events());
        pool.want_checkpoint();
        loop {
            let seen = events.count();
            if pool.checkpoints_done() > count || pool.check_writable().is_err() {
                return true;
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.jobs.is_closed() {
                return false;
            }
            events.wait_beyond_for(seen, left);
        }
    }
}

/// The latest snapshot of a volume, if the head has its content still. May wait for a checkpoint; one that does not come in
/// time leaves it open whether the volume has changed, and then it counts as changed.
///
/// # Errors
/// `Other` if the pool takes no writes any more.
pub(super) fn unchanged_snapshot(volume: &VolumeRecord, wait: &CheckpointWait<'_>) -> Result<Option<SnapshotRecord>> {
    let pool = wait.server.pool();
    let blocks = 0..(volume.size_bytes / BLOCK_SIZE_U64).next_multiple_of(LEAF_ENTRIES_U64);
    loop {
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
        if !wait.until_beyond(cuts) {
            tracing::debug!(volume = %volume.id, "no checkpoint told in time whether it has changed");
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::test_server::TestServer;

    /// No test waits so long.
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn it_counts_as_changed_when_no_checkpoint_tells_in_time() {
        let world = TestServer::new();
        let volume = world.create_touched_volume("vol1");
        let jobs = JobTable::new(std::iter::empty());

        let wait = CheckpointWait { server: &world.server, jobs: &jobs, deadline: Instant::now() };
        assert_eq!(unchanged_snapshot(&volume, &wait).expect("the pool is well"), None);
        world.store.fill_after(None);
        let wait = CheckpointWait { deadline: Instant::now() + LONG, ..wait };
        let latest = unchanged_snapshot(&volume, &wait).expect("the pool is well");

        assert_eq!(
            latest.map(|latest| latest.number),
            Some(1),
            "with space a checkpoint tells that nothing has changed"
        );
    }

    #[test]
    fn the_wait_for_a_checkpoint_ends_with_the_daemon() {
        let world = TestServer::new();
        let volume = world.create_touched_volume("vol1");
        let jobs = JobTable::new(std::iter::empty());
        let cuts = world.server.pool().cuts_begun();
        let wait = CheckpointWait { server: &world.server, jobs: &jobs, deadline: Instant::now() + LONG };

        let found = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| unchanged_snapshot(&volume, &wait));
            // Nobody but the waiter wants a checkpoint.
            while world.server.pool().cuts_begun() == cuts {
                std::thread::yield_now();
            }
            jobs.close();
            world.server.events().happen();
            waiter.join().expect("it ends")
        });

        assert_eq!(found.expect("the pool is well"), None);
        world.store.fill_after(None);
    }
}
