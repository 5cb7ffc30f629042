//! The routes of the pool: `/v1/pool` and what changes its devices, `/v1/space`, `/v1/status` and `/v1/check`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Body, Options, run, run_at};
use super::attention::Attention;
use super::check_resource::CheckAnswer;
use super::control::Control;
use super::device_request::{AddDevice, GrowDevice};
use super::device_resource::DeviceChange;
use super::failure_resource::Failure;
use super::gate::Gate;
use super::lock_resource::LockAnswer;
use super::request::{ChangeOptions, ForecastRemoval, LockOptions, UnlockPool};
use super::resource::{PoolAnswer, Space, Status};
use super::space_resource::RemovalForecast;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new()
        .routes(routes!(pool))
        .routes(routes!(grow))
        .routes(routes!(add_device))
        .routes(routes!(space))
        .routes(routes!(forecast))
        .routes(routes!(status))
        .routes(routes!(check))
        .routes(routes!(repair))
        .routes(routes!(lock))
        .routes(routes!(unlock))
}

/// Says what the pool is made of.
#[utoipa::path(get, path = "/v1/pool", responses(
    (status = 200, body = PoolAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn pool(State(gate): State<Arc<Gate>>) -> Answer<PoolAnswer> {
    run_at(gate, None, Gate::pool).await
}

/// Makes a device of the pool larger, while it is used. Answers when that is done: a file is written with zeros first.
#[utoipa::path(post, path = "/v1/pool/grow", params(ChangeOptions), request_body = GrowDevice, responses(
    (status = 200, body = DeviceChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn grow(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<GrowDevice>,
) -> Answer<DeviceChange> {
    let reference = request.device.clone();
    run(gate, reference, move |control| control.grow_device(&request, options.dry_run)).await
}

/// Adds a device to the pool, while it is used. Answers when that is done: a file is written with zeros first.
#[utoipa::path(post, path = "/v1/pool/devices", params(ChangeOptions), request_body = AddDevice, responses(
    (status = 200, body = DeviceChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn add_device(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<AddDevice>,
) -> Answer<DeviceChange> {
    run(gate, None, move |control| control.add_device(&request, options.dry_run)).await
}

/// Says what removing a set of volumes and snapshots for good would free, exactly; it removes nothing. What was written
/// before is stored first.
#[utoipa::path(post, path = "/v1/forecast", request_body = ForecastRemoval, responses(
    (status = 200, body = RemovalForecast), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn forecast(State(gate): State<Arc<Gate>>, Body(request): Body<ForecastRemoval>) -> Answer<RemovalForecast> {
    let (attention, _waiting) = Attention::new();
    run(gate, None, move |control| control.forecast(&request, &attention)).await
}

/// Says where the pool's space is.
#[utoipa::path(get, path = "/v1/space", responses(
    (status = 200, body = Space), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn space(State(gate): State<Arc<Gate>>) -> Answer<Space> {
    run(gate, None, |control| Ok(control.space())).await
}

/// Compares what is counted as used with what the map uses, while the pool is used. Takes some ten seconds for each TiB.
#[utoipa::path(get, path = "/v1/check", responses(
    (status = 200, body = CheckAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn check(State(gate): State<Arc<Gate>>) -> Answer<CheckAnswer> {
    run(gate, None, Control::check).await
}

/// Checks as `GET /v1/check` does and, if leaked blocks are all that is wrong, repairs them: they count as used no more.
#[utoipa::path(post, path = "/v1/check/repair", params(ChangeOptions), responses(
    (status = 200, body = CheckAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn repair(State(gate): State<Arc<Gate>>, Options(options): Options<ChangeOptions>) -> Answer<CheckAnswer> {
    run(gate, None, move |control| control.repair(options.dry_run)).await
}

/// Closes the pool and forgets its keys; the daemon goes on. Refused while connections have a volume open.
#[utoipa::path(post, path = "/v1/pool/lock", params(LockOptions), responses(
    (status = 200, body = LockAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn lock(State(gate): State<Arc<Gate>>, Options(options): Options<LockOptions>) -> Answer<LockAnswer> {
    run_at(gate, None, move |gate| gate.lock(options)).await
}

/// Opens a locked pool again, and serves it where it was served.
#[utoipa::path(post, path = "/v1/pool/unlock", params(ChangeOptions), request_body = UnlockPool, responses(
    (status = 200, body = LockAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn unlock(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<UnlockPool>,
) -> Answer<LockAnswer> {
    run_at(gate, None, move |gate| gate.unlock(&request.credential, options.dry_run)).await
}

/// Says how daemon and pool do.
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, body = Status), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn status(State(gate): State<Arc<Gate>>) -> Answer<Status> {
    run_at(gate, None, |gate| Ok(gate.status())).await
}
