//! The routes of the trash, under `/v1/trash`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Body, Options, run};
use super::attention::Attention;
use super::failure_resource::Failure;
use super::gate::Gate;
use super::request::{ChangeOptions, RestoreFromTrash};
use super::trash_resource::{EmptyAnswer, EmptyOptions, RestoreAnswer, TrashList};

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(list, empty)).routes(routes!(restore))
}

/// Lists what is in the trash.
#[utoipa::path(get, path = "/v1/trash", responses(
    (status = 200, body = TrashList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn list(State(gate): State<Arc<Gate>>) -> Answer<TrashList> {
    run(gate, None, |control| Ok(control.trash())).await
}

/// Removes for good what is in the trash. What cannot go is told in its item.
#[utoipa::path(delete, path = "/v1/trash", params(EmptyOptions), responses(
    (status = 200, body = EmptyAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn empty(State(gate): State<Arc<Gate>>, Options(options): Options<EmptyOptions>) -> Answer<EmptyAnswer> {
    let (attention, _waiting) = Attention::new();
    run(gate, None, move |control| control.empty_trash(options, &attention)).await
}

/// Takes something out of the trash.
#[utoipa::path(post, path = "/v1/trash/restore", params(ChangeOptions), request_body = RestoreFromTrash, responses(
    (status = 200, body = RestoreAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn restore(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<RestoreFromTrash>,
) -> Answer<RestoreAnswer> {
    run(gate, Some(request.reference.clone()), move |control| control.restore(&request, options.dry_run)).await
}
