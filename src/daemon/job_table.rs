//! The jobs of a daemon in memory: how they stand, who waits for them, and what was asked of them. No thread, no storage.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::format::job::{JobFailure, JobRecord, JobState};

/// Steps of a job's progress that wake waiters.
const PROGRESS_STEPS: u64 = 1000;

/// A job as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JobView {
    pub(super) record: JobRecord,
    /// Grows whenever the job changes.
    pub(super) revision: u64,
    pub(super) is_cancellable: bool,
    /// Somebody asked for its end.
    pub(super) is_cancel_wanted: bool,
}

impl JobView {
    pub(super) fn is_ended(&self) -> bool {
        self.record.state != JobState::Running
    }
}

#[derive(Default)]
struct Jobs {
    by_id: BTreeMap<u64, JobView>,
    revision: u64,
    is_closed: bool,
}

/// The jobs. Waiters hold it also while the pool is being locked, so it holds nothing of the pool.
pub(super) struct JobTable {
    jobs: Mutex<Jobs>,
    changes: watch::Sender<u64>,
}

impl JobTable {
    pub(super) fn new(records: impl Iterator<Item = JobRecord>) -> Self {
        let view = |record: JobRecord| JobView { record, revision: 0, is_cancellable: false, is_cancel_wanted: false };
        let by_id = records.map(|record| (record.id, view(record))).collect();
        Self { jobs: Mutex::new(Jobs { by_id, ..Jobs::default() }), changes: watch::Sender::new(0) }
    }

    /// All jobs, the newest first.
    pub(super) fn list(&self) -> Vec<JobView> {
        self.jobs.lock().by_id.values().rev().cloned().collect()
    }

    /// # Errors
    /// `NotFound`.
    pub(super) fn find(&self, id: u64) -> Result<JobView> {
        self.jobs.lock().by_id.get(&id).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("There is no job j-{id}"))
                .with_hint("rok-blk job ls lists those that run, and the last that ended")
        })
    }

    pub(super) fn put(&self, record: JobRecord, is_cancellable: bool) {
        let mut jobs = self.jobs.lock();
        let revision = next_revision(&mut jobs);
        let id = record.id;
        jobs.by_id.insert(id, JobView { record, revision, is_cancellable, is_cancel_wanted: false });
        drop(jobs);
        self.changes.send_replace(revision);
    }

    pub(super) fn forget(&self, id: u64) {
        self.jobs.lock().by_id.remove(&id);
    }

    /// Changes a job that is there; who waits for it is woken.
    pub(super) fn change(&self, id: u64, change: impl FnOnce(&mut JobRecord)) {
        let mut jobs = self.jobs.lock();
        let revision = next_revision(&mut jobs);
        if let Some(job) = jobs.by_id.get_mut(&id) {
            change(&mut job.record);
            job.revision = revision;
        }
        drop(jobs);
        self.changes.send_replace(revision);
    }

    /// Takes a job's progress. Waiters are woken for a thousand steps of it at most.
    pub(super) fn progress(&self, id: u64, done: u64) {
        let mut jobs = self.jobs.lock();
        let Some(job) = jobs.by_id.get_mut(&id) else { return };
        let record = &mut job.record;
        let step_before = step(record.done, record.total);
        record.done = record.done.max(done);
        if step(record.done, record.total) == step_before {
            return;
        }
        let revision = next_revision(&mut jobs);
        if let Some(job) = jobs.by_id.get_mut(&id) {
            job.revision = revision;
        }
        drop(jobs);
        self.changes.send_replace(revision);
    }

    /// Asks a job to end.
    ///
    /// # Errors
    /// `NotFound`; `Usage` for one that cannot be cancelled.
    pub(super) fn cancel(&self, id: u64, is_dry_run: bool) -> Result<JobView> {
        let job = self.find(id)?;
        if job.is_ended() {
            return Ok(job);
        }
        if !job.is_cancellable {
            let message = format!("Job j-{id} ({}) cannot be cancelled", job.record.work);
            return Err(
                Error::new(ErrorKind::Usage, message).with_hint("It ends by itself; rok-blk job wait tells when")
            );
        }
        if !is_dry_run {
            let mut jobs = self.jobs.lock();
            let revision = next_revision(&mut jobs);
            if let Some(job) = jobs.by_id.get_mut(&id) {
                (job.is_cancel_wanted, job.revision) = (true, revision);
            }
            drop(jobs);
            self.changes.send_replace(revision);
        }
        self.find(id)
    }

    /// Whether a job should end now: somebody asked for that, or the daemon ends.
    pub(super) fn is_end_wanted(&self, id: u64) -> bool {
        let jobs = self.jobs.lock();
        jobs.is_closed || jobs.by_id.get(&id).is_none_or(|job| job.is_cancel_wanted)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.jobs.lock().is_closed
    }

    /// Ends all waits, those to come too, and tells the jobs to stop where they are.
    pub(super) fn close(&self) {
        let mut jobs = self.jobs.lock();
        jobs.is_closed = true;
        let revision = next_revision(&mut jobs);
        drop(jobs);
        self.changes.send_replace(revision);
    }

    /// The job when it has ended, or has changed since `revision`, or after `time_max` as it is.
    ///
    /// # Errors
    /// `NotFound`; `Unreachable` if the daemon ends or the pool is locked meanwhile.
    pub(super) async fn wait(&self, id: u64, revision: u64, time_max: Duration) -> Result<JobView> {
        let mut changes = self.changes.subscribe();
        let deadline = tokio::time::sleep(time_max);
        tokio::pin!(deadline);
        loop {
            changes.mark_unchanged();
            if self.is_closed() {
                return Err(Error::new(ErrorKind::Unreachable, "The daemon ends, or locks its pool")
                    .with_hint(format!("Job j-{id} goes on when the pool is served again")));
            }
            let job = self.find(id)?;
            if job.is_ended() || job.revision > revision {
                return Ok(job);
            }
            tokio::select! {
                // The sender lives as long as this table.
                _ = changes.changed() => {}
                () = &mut deadline => return self.find(id),
            }
        }
    }
}

/// How a record of a running job reads once it came to `result`.
pub(super) fn ended(record: &mut JobRecord, result: &Result<()>, is_cancel_wanted: bool, now: u64) {
    record.ended_at = now.max(1);
    match result {
        Ok(()) => {
            record.state = JobState::Done;
            record.done = record.total.max(record.done);
        }
        Err(_) if is_cancel_wanted => record.state = JobState::Cancelled,
        Err(error) => {
            record.state = JobState::Failed;
            record.failure = Some(JobFailure {
                code: error.kind().code().to_owned(),
                message: error.message().to_owned(),
                hint: error.hint().unwrap_or_default().to_owned(),
            });
        }
    }
}

fn next_revision(jobs: &mut Jobs) -> u64 {
    jobs.revision += 1;
    jobs.revision
}

/// How far a job is, in steps.
fn step(done: u64, total: u64) -> u128 {
    u128::from(done) * u128::from(PROGRESS_STEPS) / u128::from(total.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::job::JobUnit;
    use std::sync::Arc;

    fn record(id: u64) -> JobRecord {
        JobRecord {
            id,
            work: "reclaim".to_owned(),
            target: String::new(),
            state: JobState::Running,
            unit: JobUnit::Bytes,
            done: 0,
            total: 1 << 30,
            began_at: 1,
            ended_at: 0,
            failure: None,
        }
    }

    fn table() -> Arc<JobTable> {
        let table = JobTable::new(std::iter::empty());
        table.put(record(1), true);
        Arc::new(table)
    }

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(100);

    #[tokio::test]
    async fn a_wait_ends_with_the_job_and_tells_how() {
        let table = table();
        let seen = table.find(1).expect("there").revision;
        let waiting = Arc::clone(&table);
        let waiter = tokio::spawn(async move { waiting.wait(1, seen, LONG).await });

        table.change(1, |record| ended(record, &Err(Error::new(ErrorKind::Busy, "No")), false, 60));

        let job = waiter.await.expect("no panic").expect("the job");
        assert_eq!((job.record.state, job.record.ended_at), (JobState::Failed, 60));
        assert_eq!(job.record.failure.expect("why").code, "busy");
        let again = table.wait(1, job.revision, LONG).await.expect("what has ended is told at once");
        assert_eq!(again.revision, job.revision);
    }

    #[tokio::test]
    async fn a_wait_ends_with_progress_but_not_with_every_byte_of_it() {
        let table = table();
        let seen = table.find(1).expect("there").revision;

        table.progress(1, 4096);
        assert_eq!(table.find(1).expect("there").revision, seen, "less than a thousandth");
        table.progress(1, 1 << 29);

        let job = table.wait(1, seen, LONG).await.expect("the job");
        assert_eq!((job.record.done, job.record.state), (1 << 29, JobState::Running));
        table.progress(1, 5);
        assert_eq!(table.find(1).expect("there").record.done, 1 << 29, "progress does not go back");
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_time() {
        let table = table();
        let seen = table.find(1).expect("there");

        let job = table.wait(1, seen.revision, Duration::ZERO).await.expect("the job");

        assert_eq!(job, seen);
        assert_eq!(table.wait(2, 0, LONG).await.expect_err("no such job").kind(), ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn closing_ends_waits_and_those_to_come() {
        let table = table();
        let seen = table.find(1).expect("there").revision;
        let waiting = Arc::clone(&table);
        let waiter = tokio::spawn(async move { waiting.wait(1, seen, LONG).await });

        table.close();

        assert_eq!(waiter.await.expect("no panic").expect_err("closed").kind(), ErrorKind::Unreachable);
        assert_eq!(table.wait(1, 0, LONG).await.expect_err("closed").kind(), ErrorKind::Unreachable);
        assert!(table.is_end_wanted(1));
    }

    #[test]
    fn a_job_is_cancelled_when_it_ends_after_it_was_asked_to() {
        let table = table();
        let refused = Err(Error::new(ErrorKind::TimedOut, "Cancelled"));

        let asked = table.cancel(1, false).expect("it can be");
        assert_eq!((asked.is_cancel_wanted, asked.record.state), (true, JobState::Running));
        assert!(table.is_end_wanted(1));
        table.change(1, |record| ended(record, &refused, true, 60));

        let job = table.find(1).expect("there");
        assert_eq!((job.record.state, job.record.failure), (JobState::Cancelled, None));
        assert_eq!(table.cancel(1, false).expect("it has ended").record.state, JobState::Cancelled);
    }

    #[test]
    fn a_job_that_is_done_before_it_sees_the_wish_is_done() {
        let table = table();
        table.cancel(1, false).expect("it can be");

        table.change(1, |record| ended(record, &Ok(()), true, 60));

        assert_eq!(table.find(1).expect("there").record.state, JobState::Done);
    }

    #[test]
    fn a_dry_run_and_a_job_that_cannot_be_cancelled_change_nothing() {
        let table = table();
        table.put(record(2), false);

        assert!(!table.cancel(1, true).expect("it could be").is_cancel_wanted);
        assert_eq!(table.cancel(2, false).expect_err("it cannot").kind(), ErrorKind::Usage);
        assert_eq!(table.cancel(3, false).expect_err("no such job").kind(), ErrorKind::NotFound);

        assert!(!table.is_end_wanted(1) && !table.is_end_wanted(2));
    }
}
