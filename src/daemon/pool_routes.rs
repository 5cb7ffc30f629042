//! The routes of the pool: `/v1/pool` and what changes its devices, `/v1/space`, `/v1/status` and `/v1/check`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Body, Options, run};
use super::check_resource::CheckAnswer;
use super::control::Control;
use super::device_resource::{AddDevice, DeviceChange, GrowDevice};
use super::request::ChangeOptions;
use super::resource::{Failure, PoolAnswer, Space, Status};

pub(super) fn routes() -> OpenApiRouter<Arc<Control>> {
    OpenApiRouter::new()
        .routes(routes!(pool))
        .routes(routes!(grow))
        .routes(routes!(add_device))
        .routes(routes!(space))
        .routes(routes!(status))
        .routes(routes!(check))
}

/// Says what the pool is made of.
#[utoipa::path(get, path = "/v1/pool", responses(
    (status = 200, body = PoolAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn pool(State(control): State<Arc<Control>>) -> Answer<PoolAnswer> {
    run(control, None, Control::pool).await
}

/// Makes a device of the pool larger, while it is used. Answers when that is done: a file is written with zeros first.
#[utoipa::path(post, path = "/v1/pool/grow", params(ChangeOptions), request_body = GrowDevice, responses(
    (status = 200, body = DeviceChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn grow(
    State(control): State<Arc<Control>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<GrowDevice>,
) -> Answer<DeviceChange> {
    let reference = request.device.clone();
    run(control, reference, move |control| control.grow_device(&request, options.dry_run)).await
}

/// Adds a device to the pool, while it is used. Answers when that is done: a file is written with zeros first.
#[utoipa::path(post, path = "/v1/pool/devices", params(ChangeOptions), request_body = AddDevice, responses(
    (status = 200, body = DeviceChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn add_device(
    State(control): State<Arc<Control>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<AddDevice>,
) -> Answer<DeviceChange> {
    run(control, None, move |control| control.add_device(&request, options.dry_run)).await
}

/// Says where the pool's space is.
#[utoipa::path(get, path = "/v1/space", responses(
    (status = 200, body = Space), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn space(State(control): State<Arc<Control>>) -> Answer<Space> {
    run(control, None, |control| Ok(control.space())).await
}

/// Compares what is counted as used with what the map uses, while the pool is used. Takes some ten seconds for each TiB.
#[utoipa::path(get, path = "/v1/check", responses(
    (status = 200, body = CheckAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn check(State(control): State<Arc<Control>>) -> Answer<CheckAnswer> {
    run(control, None, Control::check).await
}

/// Says how daemon and pool do.
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, body = Status), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn status(State(control): State<Arc<Control>>) -> Answer<Status> {
    run(control, None, |control| Ok(control.status())).await
}
