//! The commands on jobs: `job ls show wait cancel`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::arguments::DryRun;
use super::client::Client;
use super::duration::{format_duration, parse_duration};
use super::failure::{Failed, Outcome};
use super::output::Output;
use super::table::Table;
use crate::daemon::job_resource::{Job, JobAnswer, JobList, State, Unit, WAIT_SECONDS_MAX, job_reference, parse_job};
use crate::error::{Error, ErrorKind};

/// Time between two lines about a job's progress.
const PROGRESS_PERIOD: Duration = Duration::from_secs(10);
/// Longest wait of one request: the daemon ends when it is told to, so it need not be short.
const REQUEST_SECONDS_MAX: u64 = WAIT_SECONDS_MAX;

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// List the jobs that run, and the last that ended
    #[command(name = "ls")]
    List,
    /// Show a job
    Show(JobName),
    /// Wait until a job has ended; a job that failed is a failure of this command, with the same exit code
    Wait(Wait),
    /// End a job before it is done
    Cancel(Cancel),
}

/// A job.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct JobName {
    /// The job, as job ls calls it
    #[arg(value_name = "JOB", value_parser = parse_job)]
    id: u64,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    #[command(flatten)]
    job: JobName,
    /// Give up after this time, like 30s or 5m; the job goes on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct Cancel {
    #[command(flatten)]
    job: JobName,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `job ls|show|wait|cancel`.
pub(super) fn run(command: &JobCommand, client: &Client, output: &Output) -> Outcome<ExitCode> {
    match command {
        JobCommand::List => list(client, output)?,
        JobCommand::Show(name) => show(*name, client, output)?,
        JobCommand::Wait(arguments) => return wait(arguments, client, output),
        JobCommand::Cancel(arguments) => cancel(arguments, client, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(client: &Client, output: &Output) -> Outcome<()> {
    let answer: JobList = client.get("/v1/jobs", None)?;
    let mut table = Table::new(&["JOB", "WORK", "TARGET", "STATE", "PROGRESS", "BEGAN", "ENDED"], &[]);
    for job in &answer.items {
        let cells = vec![
            job.reference.clone(),
            job.work.clone(),
            or_dash(job.target.as_ref()),
            state_text(job.state).to_owned(),
            progress_text(job, *output),
            job.began_at.clone(),
            or_dash(job.ended_at.as_ref()),
        ];
        table.row(&job.reference, cells);
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

fn show(name: JobName, client: &Client, output: &Output) -> Outcome<()> {
    let reference = job_reference(name.id);
    let answer: JobAnswer = client.get(&format!("/v1/jobs/{reference}"), Some(&reference))?;
    let job = &answer.job;
    let mut fields = vec![
        ("job", job.reference.clone()),
        ("work", job.work.clone()),
        ("target", or_dash(job.target.as_ref())),
        ("state", state_text(job.state).to_owned()),
        ("progress", progress_text(job, *output)),
        ("began", job.began_at.clone()),
        ("ended", or_dash(job.ended_at.as_ref())),
    ];
    if let Some(failure) = &job.failure {
        fields.push(("failure", failure.message.clone()));
    }
    Ok(output.one(&answer, &Table::of_fields(&job.reference, fields))?)
}

fn wait(arguments: &Wait, client: &Client, output: &Output) -> Outcome<ExitCode> {
    let reference = job_reference(arguments.job.id);
    let answer = wait_until_ended(&reference, arguments.timeout, client, output)?;
    output.reference(&answer, &answer.job.reference)?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until a job is done, or so many seconds. One that failed or was cancelled is a failure.
pub(super) fn wait_until_ended(
    reference: &str,
    timeout: Option<u64>,
    client: &Client,
    output: &Output,
) -> Outcome<JobAnswer> {
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut told_at = Instant::now();
    let mut revision = 0;
    let answer = loop {
        let seconds = deadline.map_or(REQUEST_SECONDS_MAX, |deadline| seconds_until(deadline).min(REQUEST_SECONDS_MAX));
        let path = format!("/v1/jobs/{reference}/wait?seconds={seconds}&revision={revision}");
        let answer: JobAnswer = client.get(&path, Some(reference))?;
        if answer.job.state != State::Running {
            break answer;
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let time = format_duration(timeout.unwrap_or_default());
            let error = Error::new(ErrorKind::TimedOut, format!("Job {reference} has not ended within {time}"))
                .with_hint(format!("It goes on; rok-blk job show {reference} tells how far it is"));
            return Err(Failed::about(error, reference));
        }
        revision = answer.job.revision;
        if told_at.elapsed() >= PROGRESS_PERIOD {
            told_at = Instant::now();
            output.message(&format!("{reference}: {}", progress_text(&answer.job, *output)));
        }
    };
    match answer.job.state {
        State::Running | State::Done => Ok(answer),
        State::Cancelled => {
            let error = Error::new(ErrorKind::TimedOut, format!("Job {reference} was cancelled"));
            Err(Failed::about(error, reference))
        }
        State::Failed => Err(Failed::about(failure_of(&answer.job), reference)),
    }
}

fn cancel(arguments: &Cancel, client: &Client, output: &Output) -> Outcome<()> {
    let reference = job_reference(arguments.job.id);
    let is_dry_run = arguments.dry_run.is_dry_run;
    let path = format!("/v1/jobs/{reference}/cancel?dry_run={is_dry_run}");
    let answer: JobAnswer = client.change(hyper::Method::POST, &path, &reference)?;
    match answer.job.state {
        State::Running if is_dry_run => output.message(&format!("Would cancel {reference}.")),
        State::Running => output.message(&format!("{reference} ends; rok-blk job wait {reference} tells when.")),
        ended => output.message(&format!("{reference} had ended before: it is {}.", state_text(ended))),
    }
    Ok(output.reference(&answer, &answer.job.reference)?)
}

fn failure_of(job: &Job) -> Error {
    let Some(failure) = &job.failure else {
        return Error::new(ErrorKind::Other, format!("Job {} failed", job.reference));
    };
    let error = Error::new(ErrorKind::from_code(&failure.code), failure.message.clone());
    match &failure.hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// Whole seconds, rounded up, so that a wait of less than one does not turn into none.
fn seconds_until(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

fn progress_text(job: &Job, output: Output) -> String {
    let count = |number: u64| match job.unit {
        Unit::Bytes => output.size(number),
        Unit::Snapshots => number.to_string(),
    };
    match job.total {
        Some(total) => {
            let percent = u128::from(job.done) * 100 / u128::from(total.max(1));
            format!("{} of {} ({percent} %)", count(job.done), count(total))
        }
        None => count(job.done),
    }
}

const fn state_text(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Done => "done",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    }
}

fn or_dash(text: Option<&String>) -> String {
    text.map_or_else(|| "-".to_owned(), Clone::clone)
}
