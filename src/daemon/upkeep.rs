//! What a daemon does with an open pool beside requests: jobs, the trash, policies, and the keeper that empties it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::job_table::JobTable;
use super::keeper::Keeper;
use super::policies::Policies;
use super::reclaim_job::ReclaimJob;
use super::resource::milliseconds_since_1970;
use super::trash::Trash;
use crate::error::Result;
use crate::lane::Server;

/// The work in the background of one open pool.
pub(super) struct Upkeep {
    /// Held while something is changed: requests and the keeper take turns.
    pub(super) changes: Arc<Mutex<()>>,
    pub(super) reclaim: Arc<ReclaimJob>,
    pub(super) trash: Trash,
    pub(super) policies: Arc<Policies>,
    pub(super) keeper: Keeper,
}

impl Upkeep {
    /// Begins it, and goes on with the jobs of an earlier life.
    ///
    /// # Errors
    /// What loading and beginning jobs report.
    pub(super) fn begin(server: &Arc<Server>) -> Result<Self> {
        let (changes, trash) = (Arc::new(Mutex::new(())), Trash::new(Arc::clone(server)));
        let policies = Arc::new(Policies::load(server, trash.clone(), milliseconds_since_1970)?);
        let reclaim = ReclaimJob::open(server)?;
        let keeper = Keeper::start(trash.clone(), Arc::clone(&policies), Arc::clone(&changes), Arc::clone(&reclaim));
        if keeper.is_err() {
            reclaim.stop();
        }
        Ok(Self { changes, reclaim, trash, policies, keeper: keeper? })
    }

    /// The jobs.
    pub(super) fn jobs(&self) -> &Arc<JobTable> {
        self.reclaim.jobs().table()
    }

    /// Ends it; the next opening of the pool goes on with the jobs.
    pub(super) fn stop(&self) {
        self.keeper.stop();
        self.reclaim.stop();
    }
}
