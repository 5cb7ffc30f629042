//! The routes of attachments, under `/v1/devices`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Body, Name, Options, run};
use super::attachment_resource::{AttachmentChange, AttachmentList, DetachOptions};
use super::device_request::AttachDevice;
use super::failure_resource::Failure;
use super::gate::Gate;
use super::request::ChangeOptions;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(list, attach)).routes(routes!(detach))
}

/// Lists the volumes and snapshots that are block devices of this host.
#[utoipa::path(get, path = "/v1/devices", responses(
    (status = 200, body = AttachmentList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn list(State(gate): State<Arc<Gate>>) -> Answer<AttachmentList> {
    run(gate, None, |control| Ok(control.attachments())).await
}

/// Makes a block device of a volume or a snapshot. What is attached already stays as it is.
#[utoipa::path(post, path = "/v1/devices", params(ChangeOptions), request_body = AttachDevice, responses(
    (status = 200, body = AttachmentChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn attach(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<AttachDevice>,
) -> Answer<AttachmentChange> {
    run(gate, Some(request.reference.clone()), move |control| control.attach(&request, options.dry_run)).await
}

/// Takes a block device away. The name is that of the volume or snapshot, or the device's path, escaped: `%2Fdev%2Fublkb0`.
#[utoipa::path(delete, path = "/v1/devices/{name}", params(("name" = String, Path), DetachOptions), responses(
    (status = 200, body = AttachmentChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn detach(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<DetachOptions>,
) -> Answer<AttachmentChange> {
    run(gate, Some(name.clone()), move |control| control.detach(&name, options)).await
}
