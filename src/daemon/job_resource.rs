//! What the API answers about jobs, and takes.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::failure_resource::FailureDetail;
use super::job_table::JobView;
use super::resource::{ApiVersion, Kind, time_text};
use crate::error::{Error, ErrorKind, Result};
use crate::format::job::{JobState, JobUnit};

/// Longest wait of one request, in seconds.
pub const WAIT_SECONDS_MAX: u64 = 60;

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Under way.
    Running,
    /// It did what it should.
    Done,
    /// It could not.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

/// What the numbers of a progress count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Bytes of the pool.
    Bytes,
    /// Snapshots.
    Snapshots,
}

/// Long work in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// What commands call it: `j-` and a number.
    #[serde(rename = "ref")]
    pub reference: String,
    /// What it does, a stable word: `reclaim` gives the space of what was removed back, `scrub` reads
    /// and verifies the pool.
    pub work: String,
    /// What it works on; null if the whole pool.
    pub target: Option<String>,
    /// How it stands.
    pub state: State,
    /// How much is done.
    pub done: u64,
    /// How much there is; null if that is not known.
    pub total: Option<u64>,
    /// What both count.
    pub unit: Unit,
    /// Whether it can be ended before it is done.
    pub is_cancellable: bool,
    /// Whether somebody asked for its end.
    pub is_cancel_wanted: bool,
    /// When it began.
    pub began_at: String,
    /// When it ended; null while it runs.
    pub ended_at: Option<String>,
    /// Why it failed; null if it did not.
    pub failure: Option<FailureDetail>,
    /// Grows with each change, while the daemon runs; a wait takes it.
    pub revision: u64,
}

/// One job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Job`.
    pub kind: Kind,
    /// The job.
    #[serde(flatten)]
    pub job: Job,
}

/// Jobs, the newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `JobList`.
    pub kind: Kind,
    /// The jobs that run, and the last that ended.
    pub items: Vec<Job>,
}

/// Options of a wait.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitOptions {
    /// How long to wait at most: 0 to 60 seconds.
    #[serde(default)]
    #[param(required = false)]
    pub seconds: u64,
    /// The answer comes when the job's revision is above this one, too.
    #[serde(default)]
    #[param(required = false)]
    pub revision: u64,
}

impl JobAnswer {
    /// Of one job.
    pub(super) fn new(view: JobView) -> Self {
        Self { api: ApiVersion::V1, kind: Kind::Job, job: Job::new(view) }
    }
}

impl JobList {
    /// Of these jobs, in their order.
    pub(super) fn new(views: Vec<JobView>) -> Self {
        let items = views.into_iter().map(Job::new).collect();
        Self { api: ApiVersion::V1, kind: Kind::JobList, items }
    }
}

impl Job {
    fn new(view: JobView) -> Self {
        let JobView { record, revision, is_cancellable, is_cancel_wanted } = view;
        let failure = record.failure.map(|failure| FailureDetail {
            exit: ErrorKind::from_code(&failure.code).exit_code(),
            code: failure.code,
            message: failure.message,
            hint: Some(failure.hint).filter(|hint| !hint.is_empty()),
            reference: Some(record.target.clone()).filter(|target| !target.is_empty()),
        });
        Self {
            reference: job_reference(record.id),
            work: record.work,
            target: Some(record.target).filter(|target| !target.is_empty()),
            state: match record.state {
                JobState::Running => State::Running,
                JobState::Done => State::Done,
                JobState::Failed => State::Failed,
                JobState::Cancelled => State::Cancelled,
            },
            done: record.done,
            total: Some(record.total).filter(|total| *total > 0),
            unit: match record.unit {
                JobUnit::Bytes => Unit::Bytes,
                JobUnit::Snapshots => Unit::Snapshots,
            },
            is_cancellable,
            is_cancel_wanted,
            began_at: time_text(record.began_at),
            ended_at: Some(record.ended_at).filter(|ended| *ended > 0).map(time_text),
            failure,
            revision,
        }
    }
}

/// What commands call the job of this id.
#[must_use]
pub fn job_reference(id: u64) -> String {
    format!("j-{id}")
}

/// The id of a job that is called `j-41`, or `41`.
///
/// # Errors
/// `Usage` for anything else.
pub fn parse_job(text: &str) -> Result<u64> {
    let digits = text.strip_prefix("j-").unwrap_or(text);
    let is_number = !digits.is_empty() && !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    let id = if is_number { digits.parse().ok() } else { None };
    id.ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        Error::new(ErrorKind::Usage, format!("{shown:?} is no job"))
            .with_hint("Write it like j-41; rok-blk job ls lists them")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_called_by_their_number_with_or_without_its_mark() {
        assert_eq!(parse_job("j-41").expect("a job"), 41);
        assert_eq!(parse_job("41").expect("a job"), 41);
        assert_eq!(parse_job(&job_reference(u64::MAX)).expect("a job"), u64::MAX);
        for text in ["", "j-", "j-0", "007", "j-1x", "J-1", "-1", "18446744073709551616", "vol1"] {
            assert_eq!(parse_job(text).expect_err(text).kind(), ErrorKind::Usage, "{text}");
        }
    }
}
