//! The routes of the pool: `/v1/pool`, `/v1/space` and `/v1/status`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, run};
use super::control::Control;
use super::resource::{Failure, PoolAnswer, Space, Status};

pub(super) fn routes() -> OpenApiRouter<Arc<Control>> {
    OpenApiRouter::new().routes(routes!(pool)).routes(routes!(space)).routes(routes!(status))
}

/// Says what the pool is made of.
#[utoipa::path(get, path = "/v1/pool", responses(
    (status = 200, body = PoolAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn pool(State(control): State<Arc<Control>>) -> Answer<PoolAnswer> {
    run(control, None, Control::pool).await
}

/// Says where the pool's space is.
#[utoipa::path(get, path = "/v1/space", responses(
    (status = 200, body = Space), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn space(State(control): State<Arc<Control>>) -> Answer<Space> {
    run(control, None, |control| Ok(control.space())).await
}

/// Says how daemon and pool do.
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, body = Status), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn status(State(control): State<Arc<Control>>) -> Answer<Status> {
    run(control, None, |control| Ok(control.status())).await
}
