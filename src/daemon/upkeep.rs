//! What a daemon does with an open pool beside requests: jobs, the trash, policies, and the keeper that empties it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::job_table::JobTable;
use super::keeper::Keeper;
use super::policies::Policies;
use super::reclaim_job::ReclaimJob;
use super::resource::milliseconds_since_1970;
use super::scrub_job::ScrubJob;
use super::trash::Trash;
use crate::error::Result;
use crate::lane::Server;
use crate::pool::directory::Copies;

/// The work in the background of one open pool.
pub(super) struct Upkeep {
    /// Held while something is changed: requests and the keeper take turns.
    pub(super) changes: Arc<Mutex<()>>,
    pub(super) reclaim: Arc<ReclaimJob>,
    pub(super) scrub: Arc<ScrubJob>,
    pub(super) trash: Trash,
    pub(super) policies: Arc<Policies>,
    pub(super) keeper: Keeper,
}

impl Upkeep {
    /// Begins it, and goes on with the jobs of an earlier life.
    ///
    /// # Errors
    /// What loading and beginning jobs report.
    pub(super) fn begin(server: &Arc<Server>, copies: Copies) -> Result<Self> {
        let reclaim = ReclaimJob::open(server)?;
        let begun = Self::begin_beside(server, &reclaim, copies);
        if begun.is_err() {
            reclaim.stop();
        }
        begun
    }

    fn begin_beside(server: &Arc<Server>, reclaim: &Arc<ReclaimJob>, copies: Copies) -> Result<Self> {
        let (changes, trash) = (Arc::new(Mutex::new(())), Trash::new(Arc::clone(server)));
        let jobs = Arc::clone(reclaim.jobs().table());
        let policies = Arc::new(Policies::load(server, trash.clone(), jobs, milliseconds_since_1970)?);
        let (reclaim, scrub) = (Arc::clone(reclaim), ScrubJob::open(server, reclaim.jobs(), copies)?);
        let keeper = Keeper::start(trash.clone(), Arc::clone(&policies), Arc::clone(&changes), Arc::clone(&reclaim))?;
        Ok(Self { changes, reclaim, scrub, trash, policies, keeper })
    }

    /// The jobs.
    pub(super) fn jobs(&self) -> &Arc<JobTable> {
        self.reclaim.jobs().table()
    }

    /// Ends what only waits, for good.
    pub(super) fn end_waits(&self) {
        self.reclaim.end_waits();
    }

    /// Ends it; the next opening of the pool goes on with the jobs.
    pub(super) fn stop(&self) {
        // First of all: the keeper may wait for a checkpoint, and that for space.
        self.end_waits();
        self.keeper.stop();
        self.reclaim.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::test_server::TestServer;
    use crate::format::policy::{PolicyKeep, PolicyRecord, PolicyVolume};

    #[test]
    fn it_ends_while_a_policy_waits_for_a_checkpoint_that_finds_no_space() {
        let world = TestServer::new();
        let upkeep = Upkeep::begin(&world.server, world.copies()).expect("it begins");
        let volume = world.create_touched_volume("vol1");
        world.store.fill_after(None);
        let record = PolicyRecord {
            name: "often".to_owned(),
            every_seconds: 1,
            created_at: 0,
            keep: PolicyKeep::default(),
            is_if_changed: true,
            volumes: vec![PolicyVolume { id: volume.id, applied_at: 0 }],
        };
        let one_at_a_time = upkeep.changes.lock();
        upkeep.policies.table().put(record).expect("there is space");
        world.store.fill_after(Some(1));
        let cuts = world.server.pool().cuts_begun();
        drop(one_at_a_time);
        upkeep.keeper.look();
        while world.server.pool().cuts_begun() == cuts {
            std::thread::yield_now();
        }

        upkeep.stop();

        assert!(upkeep.changes.try_lock().is_some());
        world.store.fill_after(None);
    }
}
