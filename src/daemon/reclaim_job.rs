//! The job that tells how the space of what was removed comes back. The pool frees it with its checkpoints, also where
//! nobody looks; the job watches that, and cannot be cancelled: what is removed stays so.

use std::sync::Arc;

use parking_lot::Mutex;

use super::jobs::{JobContext, Jobs, NewJob};
use super::scrub_job;
use crate::error::{Error, ErrorKind, Result};
use crate::format::job::{JobRecord, JobUnit};
use crate::lane::Server;
use crate::units::BLOCK_SIZE_U64;

/// The word for it in a job's record.
const WORK: &str = "reclaim";

/// One job at a time, which what is removed meanwhile adds to.
pub(super) struct ReclaimJob {
    jobs: Arc<Jobs>,
    server: Arc<Server>,
    /// The job that watches. Held while it decides that nothing is left.
    watching: Mutex<Option<u64>>,
}

impl ReclaimJob {
    /// Loads the jobs of the server's pool, and goes on with those of an earlier life, but for the scrub.
    ///
    /// # Errors
    /// What [`Jobs::load`] and beginning a job report.
    pub(super) fn open(server: &Arc<Server>) -> Result<Arc<Self>> {
        let (jobs, running) = Jobs::load(Arc::clone(server.pool()))?;
        let (jobs, server) = (Arc::new(jobs), Arc::clone(server));
        let reclaim = Arc::new(Self { jobs, server, watching: Mutex::new(None) });
        let resumed = reclaim.resume(running);
        if resumed.is_err() {
            reclaim.stop();
        }
        resumed.map(|()| reclaim)
    }

    fn resume(self: &Arc<Self>, running: Vec<JobRecord>) -> Result<()> {
        for mut record in running {
            if record.work == scrub_job::WORK {
                continue;
            }
            if record.work != WORK {
                self.jobs.give_up(&record);
                continue;
            }
            record.total = record.total.max(self.waiting_bytes());
            *self.watching.lock() = Some(record.id);
            self.jobs.resume(record, false, self.work())?;
        }
        let is_watched = self.watching.lock().is_some();
        // What was removed while the record of its job could not be stored.
        if !is_watched {
            self.begin("")?;
        }
        Ok(())
    }

    pub(super) const fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// The job that watches the space of what was removed come back, `target` among it; `None` if there is none.
    ///
    /// # Errors
    /// What beginning a job reports.
    pub(super) fn begin(self: &Arc<Self>, target: &str) -> Result<Option<u64>> {
        let mut watching = self.watching.lock();
        let waiting = self.waiting_bytes();
        if let Some(id) = *watching {
            self.jobs.set_left(id, waiting);
            return Ok(Some(id));
        }
        if waiting == 0 {
            return Ok(None);
        }
        let target = target.to_owned();
        let new = NewJob { work: WORK, target, unit: JobUnit::Bytes, total: waiting, is_cancellable: false };
        let job = self.jobs.start(new, self.work())?;
        *watching = Some(job.record.id);
        Ok(*watching)
    }

    /// Ends all waits for jobs and for the pool, those to come too.
    pub(super) fn end_waits(&self) {
        self.jobs.table().close();
        self.server.events().happen();
    }

    /// Ends the jobs, to be gone on with when the pool is opened again.
    pub(super) fn stop(&self) {
        self.jobs.stop(|| self.server.events().happen());
    }

    fn waiting_bytes(&self) -> u64 {
        self.server.pool().reclaim_block_count() * BLOCK_SIZE_U64
    }

    fn work(self: &Arc<Self>) -> impl FnOnce(&JobContext) -> Result<()> + Send + 'static {
        let reclaim = Arc::clone(self);
        move |context| reclaim.watch(context)
    }

    fn watch(&self, context: &JobContext) -> Result<()> {
        loop {
            let seen = self.server.events().count();
            {
                let mut watching = self.watching.lock();
                context.progress(context.total().saturating_sub(self.waiting_bytes()));
                if !self.server.pool().is_reclaiming() {
                    *watching = None;
                    return Ok(());
                }
                if self.server.pool().check_writable().is_err() {
                    *watching = None;
                    let message = "The pool takes no writes any more, so no space comes back";
                    return Err(Error::new(ErrorKind::Other, message).with_hint("See rok-blk status"));
                }
            }
            context.check()?;
            self.server.events().wait_beyond(seen);
        }
    }
}
