//! The routes of the scrub, under `/v1/scrub`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Options, run};
use super::failure_resource::Failure;
use super::gate::Gate;
use super::request::ChangeOptions;
use super::scrub_resource::{ScrubAnswer, ScrubOptions};

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(show, begin)).routes(routes!(pause)).routes(routes!(stop))
}

/// Says how the scrub of the pool is, and what it has found.
#[utoipa::path(get, path = "/v1/scrub", responses(
    (status = 200, body = ScrubAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn show(State(gate): State<Arc<Gate>>) -> Answer<ScrubAnswer> {
    run(gate, None, |control| Ok(control.scrub_state())).await
}

/// Begins to read and verify every block that is mapped, as a job; goes on with what paused.
#[utoipa::path(post, path = "/v1/scrub", params(ScrubOptions), responses(
    (status = 200, body = ScrubAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn begin(State(gate): State<Arc<Gate>>, Options(options): Options<ScrubOptions>) -> Answer<ScrubAnswer> {
    run(gate, None, move |control| control.begin_scrub(options)).await
}

/// Ends the job of the scrub; the next one goes on from there.
#[utoipa::path(post, path = "/v1/scrub/pause", params(ChangeOptions), responses(
    (status = 200, body = ScrubAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn pause(State(gate): State<Arc<Gate>>, Options(options): Options<ChangeOptions>) -> Answer<ScrubAnswer> {
    run(gate, None, move |control| control.pause_scrub(false, options.dry_run)).await
}

/// Ends the job of the scrub and gives its pass up; the next one begins at the start.
#[utoipa::path(post, path = "/v1/scrub/stop", params(ChangeOptions), responses(
    (status = 200, body = ScrubAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn stop(State(gate): State<Arc<Gate>>, Options(options): Options<ChangeOptions>) -> Answer<ScrubAnswer> {
    run(gate, None, move |control| control.pause_scrub(true, options.dry_run)).await
}
