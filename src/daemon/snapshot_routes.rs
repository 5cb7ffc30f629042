//! The routes of snapshots: `/v1/snapshots`, `/v1/resolve`, and those of a volume's.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Body, Name, Options, run};
use super::attention::Attention;
use super::failure_resource::Failure;
use super::gate::Gate;
use super::request::{ChangeOptions, RemoveOptions};
use super::resource::ChangeList;
use super::snapshot_request::{
    AddHold, AddTag, ChangeLabels, CloneSnapshot, CreateSnapshots, LogOptions, RemoveHold, RemoveTag, Resolve, RollBack,
};
use super::snapshot_resource::{
    ResolutionList, RollbackAnswer, SnapshotAnswer, SnapshotChange, SnapshotChangeList, SnapshotList,
};
use super::space_resource::ShowOptions;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(log))
        .routes(routes!(show, remove))
        .routes(routes!(resolve))
        .routes(routes!(tag))
        .routes(routes!(untag))
        .routes(routes!(labels))
        .routes(routes!(hold))
        .routes(routes!(release))
        .routes(routes!(clone))
        .routes(routes!(roll_back))
}

/// Makes snapshots of volumes at one instant, all or none.
#[utoipa::path(post, path = "/v1/snapshots", params(ChangeOptions), request_body = CreateSnapshots, responses(
    (status = 200, body = SnapshotChangeList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn create(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<CreateSnapshots>,
) -> Answer<SnapshotChangeList> {
    run(gate, request.targets.first().cloned(), move |control| control.snapshot(&request, options.dry_run)).await
}

/// Lists the snapshots of a volume, the highest number first.
#[utoipa::path(get, path = "/v1/volumes/{name}/snapshots", params(("name" = String, Path), LogOptions), responses(
    (status = 200, body = SnapshotList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn log(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<LogOptions>,
) -> Answer<SnapshotList> {
    run(gate, Some(name.clone()), move |control| control.log(&name, &options)).await
}

/// Shows a snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{name}", params(("name" = String, Path), ShowOptions), responses(
    (status = 200, body = SnapshotAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn show(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ShowOptions>,
) -> Answer<SnapshotAnswer> {
    let (attention, _waiting) = Attention::new();
    run(gate, Some(name.clone()), move |control| control.show_snapshot(&name, options, &attention)).await
}

/// Puts a snapshot into the trash, or removes it for good.
#[utoipa::path(delete, path = "/v1/snapshots/{name}", params(("name" = String, Path), RemoveOptions), responses(
    (status = 200, body = SnapshotChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn remove(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<RemoveOptions>,
) -> Answer<SnapshotChange> {
    run(gate, Some(name.clone()), move |control| control.remove_snapshot(&name, options)).await
}

/// Says which snapshots references mean. That one means none is told in its item.
#[utoipa::path(post, path = "/v1/resolve", request_body = Resolve, responses(
    (status = 200, body = ResolutionList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn resolve(State(gate): State<Arc<Gate>>, Body(request): Body<Resolve>) -> Answer<ResolutionList> {
    run(gate, None, move |control| control.resolve(&request)).await
}

/// Gives a snapshot a tag.
#[utoipa::path(post, path = "/v1/snapshots/{name}/tag", params(("name" = String, Path), ChangeOptions),
    request_body = AddTag, responses(
    (status = 200, body = SnapshotChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn tag(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<AddTag>,
) -> Answer<SnapshotChange> {
    run(gate, Some(name.clone()), move |control| control.tag(&name, &request, options.dry_run)).await
}

/// Takes a tag from a snapshot.
#[utoipa::path(post, path = "/v1/snapshots/{name}/untag", params(("name" = String, Path), ChangeOptions),
    request_body = RemoveTag, responses(
    (status = 200, body = SnapshotChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn untag(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<RemoveTag>,
) -> Answer<SnapshotChange> {
    run(gate, Some(name.clone()), move |control| control.untag(&name, &request, options.dry_run)).await
}

/// Gives labels of a snapshot new values, and takes others away.
#[utoipa::path(post, path = "/v1/snapshots/{name}/labels", params(("name" = String, Path), ChangeOptions),
    request_body = ChangeLabels, responses(
    (status = 200, body = SnapshotChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn labels(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<ChangeLabels>,
) -> Answer<SnapshotChange> {
    run(gate, Some(name.clone()), move |control| control.set_labels(&name, &request, options.dry_run)).await
}

/// Keeps a snapshot from being removed.
#[utoipa::path(post, path = "/v1/snapshots/{name}/hold", params(("name" = String, Path), ChangeOptions),
    request_body = AddHold, responses(
    (status = 200, body = SnapshotChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn hold(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<AddHold>,
) -> Answer<SnapshotChange> {
    run(gate, Some(name.clone()), move |control| control.hold(&name, &request, options.dry_run)).await
}

/// Ends a hold of a snapshot.
#[utoipa::path(post, path = "/v1/snapshots/{name}/release", params(("name" = String, Path), ChangeOptions),
    request_body = RemoveHold, responses(
    (status = 200, body = SnapshotChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn release(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<RemoveHold>,
) -> Answer<SnapshotChange> {
    run(gate, Some(name.clone()), move |control| control.release(&name, &request, options.dry_run)).await
}

/// Makes volumes that start as a snapshot, all or none.
#[utoipa::path(post, path = "/v1/snapshots/{name}/clone", params(("name" = String, Path), ChangeOptions),
    request_body = CloneSnapshot, responses(
    (status = 200, body = ChangeList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn clone(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<CloneSnapshot>,
) -> Answer<ChangeList> {
    run(gate, Some(name.clone()), move |control| control.clone_snapshot(&name, &request, options.dry_run)).await
}

/// Switches a volume back to one of its snapshots, and keeps what was there before as one.
#[utoipa::path(post, path = "/v1/volumes/{name}/rollback", params(("name" = String, Path), ChangeOptions),
    request_body = RollBack, responses(
    (status = 200, body = RollbackAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn roll_back(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<RollBack>,
) -> Answer<RollbackAnswer> {
    run(gate, Some(name.clone()), move |control| control.roll_back(&name, &request, options.dry_run)).await
}
