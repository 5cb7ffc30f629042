//! The routes of volumes, under `/v1/volumes`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Body, Name, Options, run};
use super::attention::Attention;
use super::failure_resource::Failure;
use super::gate::Gate;
use super::request::{ChangeOptions, CreateVolume, RemoveOptions, RenameVolume, ResizeVolume, SetVolume};
use super::resource::{Change, VolumeAnswer, VolumeList};
use super::space_resource::ShowOptions;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, set, remove))
        .routes(routes!(rename))
        .routes(routes!(resize))
}

/// Lists all volumes.
#[utoipa::path(get, path = "/v1/volumes", responses(
    (status = 200, body = VolumeList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn list(State(gate): State<Arc<Gate>>) -> Answer<VolumeList> {
    run(gate, None, |control| Ok(control.volumes())).await
}

/// Creates a volume.
#[utoipa::path(post, path = "/v1/volumes", params(ChangeOptions), request_body = CreateVolume, responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn create(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<CreateVolume>,
) -> Answer<Change> {
    run(gate, Some(request.name.clone()), move |control| control.create(&request, options.dry_run)).await
}

/// Shows a volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", params(("name" = String, Path), ShowOptions), responses(
    (status = 200, body = VolumeAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn show(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ShowOptions>,
) -> Answer<VolumeAnswer> {
    let (attention, _waiting) = Attention::new();
    run(gate, Some(name.clone()), move |control| control.volume(&name, options, &attention)).await
}

/// Gives properties of a volume new values.
#[utoipa::path(patch, path = "/v1/volumes/{name}", params(("name" = String, Path), ChangeOptions),
    request_body = SetVolume, responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn set(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<SetVolume>,
) -> Answer<Change> {
    run(gate, Some(name.clone()), move |control| control.set(&name, &request, options.dry_run)).await
}

/// Puts a volume with its snapshots into the trash, or removes it for good.
#[utoipa::path(delete, path = "/v1/volumes/{name}", params(("name" = String, Path), RemoveOptions), responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn remove(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<RemoveOptions>,
) -> Answer<Change> {
    run(gate, Some(name.clone()), move |control| control.remove(&name, options)).await
}

/// Gives a volume a new name.
#[utoipa::path(post, path = "/v1/volumes/{name}/rename", params(("name" = String, Path), ChangeOptions),
    request_body = RenameVolume, responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn rename(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<RenameVolume>,
) -> Answer<Change> {
    run(gate, Some(name.clone()), move |control| control.rename(&name, &request.name, options.dry_run)).await
}

/// Gives a volume a new size.
#[utoipa::path(post, path = "/v1/volumes/{name}/resize", params(("name" = String, Path), ChangeOptions),
    request_body = ResizeVolume, responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn resize(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<ResizeVolume>,
) -> Answer<Change> {
    run(gate, Some(name.clone()), move |control| control.resize(&name, &request, options.dry_run)).await
}
