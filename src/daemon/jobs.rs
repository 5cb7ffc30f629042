//! Long work of the daemon: a thread each, told by its id, its progress and its end, and remembered in the catalog of the
//! pool, so that a restart loses none.
//!
//! What was running when the daemon ended is gone on with at the next start, or reported as failed if it cannot be.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::job_table::{JobTable, JobView, ended};
use super::resource::seconds_since_1970;
use crate::crypto::SealKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::job::{JobRecord, JobState, JobUnit};
use crate::format::key;
use crate::meta::{MetaError, MetaOp, Table};
use crate::pool::Pool;

/// Jobs that run at once.
const RUNNING_MAX: usize = 16;
/// Jobs that have ended and are remembered.
const ENDED_MAX: usize = 1000;

/// A job that is to begin.
pub(super) struct NewJob {
    /// What it does, a stable word.
    pub(super) work: &'static str,
    /// What it works on; empty if the whole pool.
    pub(super) target: String,
    /// What its progress counts.
    pub(super) unit: JobUnit,
    /// How much there is to do; 0 if that is not known.
    pub(super) total: u64,
    /// Whether it can be ended before it is done.
    pub(super) is_cancellable: bool,
}

/// What the work of a job sees of it.
pub(super) struct JobContext {
    table: Arc<JobTable>,
    id: u64,
}

impl JobContext {
    /// So much is done of all.
    pub(super) fn progress(&self, done: u64) {
        self.table.progress(self.id, done);
    }

    /// How much there is to do.
    pub(super) fn total(&self) -> u64 {
        self.table.find(self.id).map_or(0, |job| job.record.total)
    }

    /// Asks whether to go on; work does so between its steps, which take less than a second.
    ///
    /// # Errors
    /// `TimedOut` if somebody cancelled it or the daemon ends.
    pub(super) fn check(&self) -> Result<()> {
        if self.table.is_end_wanted(self.id) {
            return Err(Error::new(ErrorKind::TimedOut, format!("Job j-{} was cancelled", self.id)));
        }
        Ok(())
    }
}

/// The jobs of an open pool.
pub(super) struct Jobs {
    pool: Arc<Pool>,
    table: Arc<JobTable>,
    /// Held while a job begins or ends: its record is stored, then seen.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Jobs {
    /// Those that the pool remembers, and the ones among them that a daemon did not end.
    ///
    /// # Errors
    /// `Integrity` naming a damaged record, and the store's failure.
    pub(super) fn load(pool: Arc<Pool>) -> Result<(Self, Vec<JobRecord>)> {
        let end = [key::JOB_PREFIX[0] + 1];
        let found = pool.store().scan(Table::Catalog, key::JOB_PREFIX, &end, usize::MAX);
        let found = found.map_err(|error| store_error("Reading jobs", error))?;
        let mut records = Vec::new();
        for (record_key, value) in found {
            let damaged = |reason: String| {
                Error::new(ErrorKind::Integrity, format!("The record of a job in meta/ is damaged: {reason}"))
                    .with_hint("Restore meta/ and the devices from the same backup")
            };
            let body =
                pool.keys().open(SealKind::Job, &record_key, &value).map_err(|error| damaged(error.to_string()))?;
            records.push(JobRecord::decode(&body).map_err(|error| damaged(error.to_string()))?);
        }
        let running = records.iter().filter(|record| record.state == JobState::Running).cloned().collect();
        let table = Arc::new(JobTable::new(records.into_iter()));
        Ok((Self { pool, table, threads: Mutex::default() }, running))
    }

    pub(super) const fn table(&self) -> &Arc<JobTable> {
        &self.table
    }

    /// Begins a job. Its `work` runs on a thread of its own.
    ///
    /// # Errors
    /// `Busy` if too many run, or the daemon ends; the store's failure.
    pub(super) fn start(
        self: &Arc<Self>,
        new: NewJob,
        work: impl FnOnce(&JobContext) -> Result<()> + Send + 'static,
    ) -> Result<JobView> {
        let mut threads = self.threads.lock();
        let jobs = self.table.list();
        if self.table.is_closed() || jobs.iter().filter(|job| !job.is_ended()).count() >= RUNNING_MAX {
            return Err(Error::new(ErrorKind::Busy, format!("{RUNNING_MAX} jobs run already, or the daemon ends"))
                .with_hint("Wait for one of them: rok-blk job ls"));
        }
        let record = JobRecord {
            id: jobs.first().map_or(0, |newest| newest.record.id) + 1,
            work: new.work.to_owned(),
            target: new.target,
            state: JobState::Running,
            unit: new.unit,
            done: 0,
            total: new.total,
            began_at: seconds_since_1970(),
            ended_at: 0,
            failure: None,
        };
        let id = record.id;
        self.store(&record, &jobs)?;
        self.table.put(record, new.is_cancellable);
        self.spawn(&mut threads, id, work)?;
        self.table.find(id)
    }

    /// Goes on with a job of an earlier life of the daemon.
    ///
    /// # Errors
    /// If its thread does not start; it has failed then.
    pub(super) fn resume(
        self: &Arc<Self>,
        record: JobRecord,
        is_cancellable: bool,
        work: impl FnOnce(&JobContext) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut threads = self.threads.lock();
        let id = record.id;
        self.table.put(record, is_cancellable);
        self.spawn(&mut threads, id, work)
    }

    /// Gives up a job of an earlier life of the daemon that cannot be gone on with.
    pub(super) fn give_up(&self, record: &JobRecord) {
        let error = Error::new(ErrorKind::Other, "The daemon ended before it was done").with_hint("Begin it again");
        self.end(record.id, &Err(error));
    }

    /// So much is left to do for a running job, which may be more than before.
    pub(super) fn set_left(&self, id: u64, left: u64) {
        self.table.change(id, |record| record.total = record.total.max(record.done.saturating_add(left)));
    }

    /// Has all jobs stop where they are, to be gone on with, and waits for them; `wake` wakes those that wait for the pool.
    pub(super) fn stop(&self, wake: impl Fn()) {
        self.table.close();
        wake();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("the thread of a job panicked");
            }
        }
    }

    fn spawn(
        self: &Arc<Self>,
        threads: &mut Vec<JoinHandle<()>>,
        id: u64,
        work: impl FnOnce(&JobContext) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        threads.retain(|thread| !thread.is_finished());
        let (jobs, context) = (Arc::downgrade(self), JobContext { table: Arc::clone(&self.table), id });
        let body = move || {
            let result = work(&context);
            // Where the daemon has ended meanwhile, the record stays as it is: running, to be gone on with.
            if let Some(jobs) = jobs.upgrade().filter(|_| !context.table.is_closed()) {
                jobs.end(id, &result);
            }
        };
        match std::thread::Builder::new().name(format!("job-{id}")).spawn(body) {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                let message = format!("The thread of job j-{id} did not start: {source}");
                self.end(id, &Err(Error::new(ErrorKind::Other, message.clone())));
                return Err(Error::new(ErrorKind::Other, message).with_source(source));
            }
        }
        Ok(())
    }

    fn end(&self, id: u64, result: &Result<()>) {
        let Ok(job) = self.table.find(id) else { return };
        let mut record = job.record;
        ended(&mut record, result, job.is_cancel_wanted, seconds_since_1970());
        match result {
            Ok(()) => tracing::info!(job = id, work = record.work, "a job is done"),
            Err(error) => tracing::warn!(job = id, work = record.work, %error, "a job ended"),
        }
        if let Err(error) = self.store(&record, &[]) {
            // Then the next start finds it running.
            tracing::warn!(job = id, %error, "the end of a job is not stored");
        }
        self.table.change(id, |present| *present = record);
    }

    /// Stores a record, and forgets the oldest that have ended of `jobs`, the newest first.
    fn store(&self, record: &JobRecord, jobs: &[JobView]) -> Result<()> {
        let record_key = key::job(record.id);
        let value = self.pool.keys().seal(SealKind::Job, &record_key, &record.encode());
        let mut batch = vec![MetaOp::Put(Table::Catalog, record_key, value)];
        let old: Vec<u64> = jobs.iter().filter(|job| job.is_ended()).skip(ENDED_MAX).map(|job| job.record.id).collect();
        batch.extend(old.iter().map(|id| MetaOp::Delete(Table::Catalog, key::job(*id))));
        self.pool.commit_beside(&batch).map_err(|error| store_error("Storing a job", error))?;
        old.into_iter().for_each(|id| self.table.forget(id));
        Ok(())
    }
}

fn store_error(action: &str, error: MetaError) -> Error {
    let kind = if error.is_out_of_space { ErrorKind::NoSpace } else { ErrorKind::Other };
    Error::new(kind, format!("{action} failed: {}", error.message)).with_source(error)
}
