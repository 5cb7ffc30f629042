//! The routes of jobs, under `/v1/jobs`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Name, Options, fetch, run};
use super::failure_resource::Failure;
use super::gate::Gate;
use super::job_resource::{JobAnswer, JobList, WAIT_SECONDS_MAX, WaitOptions, parse_job};
use super::request::ChangeOptions;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(wait)).routes(routes!(cancel))
}

/// Lists the jobs that run, and the last that ended.
#[utoipa::path(get, path = "/v1/jobs", responses(
    (status = 200, body = JobList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn list(State(gate): State<Arc<Gate>>) -> Answer<JobList> {
    run(gate, None, |control| Ok(JobList::new(control.jobs().list()))).await
}

/// Shows a job.
#[utoipa::path(get, path = "/v1/jobs/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = JobAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn show(State(gate): State<Arc<Gate>>, Name(name): Name) -> Answer<JobAnswer> {
    run(gate, Some(name.clone()), move |control| control.jobs().find(parse_job(&name)?).map(JobAnswer::new)).await
}

/// Answers when a job has ended, has gone on, or the time is over.
#[utoipa::path(get, path = "/v1/jobs/{name}/wait", params(("name" = String, Path), WaitOptions), responses(
    (status = 200, body = JobAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn wait(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<WaitOptions>,
) -> Answer<JobAnswer> {
    let reference = Some(name.clone());
    // The wait itself holds neither a thread nor the gate.
    let (id, table) =
        fetch(gate, reference.clone(), move |control| Ok((parse_job(&name)?, Arc::clone(control.jobs())))).await?;
    let time_max = Duration::from_secs(options.seconds.min(WAIT_SECONDS_MAX));
    let job = table.wait(id, options.revision, time_max).await;
    job.map(|job| Json(JobAnswer::new(job))).map_err(|error| super::answer::Refusal::about(error, reference))
}

/// Asks a job to end before it is done. Its state tells when it did.
#[utoipa::path(post, path = "/v1/jobs/{name}/cancel", params(("name" = String, Path), ChangeOptions), responses(
    (status = 200, body = JobAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn cancel(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
) -> Answer<JobAnswer> {
    let reference = Some(name.clone());
    run(gate, reference, move |control| control.jobs().cancel(parse_job(&name)?, options.dry_run).map(JobAnswer::new))
        .await
}
