//! The routes of exports, under `/v1/exports`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Name, Options, run};
use super::gate::Gate;
use super::request::ChangeOptions;
use super::resource::{Change, ExportList, Failure};

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(export, unexport))
}

/// Lists what the listeners offer.
#[utoipa::path(get, path = "/v1/exports", responses(
    (status = 200, body = ExportList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn list(State(gate): State<Arc<Gate>>) -> Answer<ExportList> {
    run(gate, None, |control| Ok(control.exports())).await
}

/// Offers a volume on every listener.
#[utoipa::path(put, path = "/v1/exports/{name}", params(("name" = String, Path), ChangeOptions), responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn export(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
) -> Answer<Change> {
    run(gate, Some(name.clone()), move |control| control.set_exported(&name, true, options.dry_run)).await
}

/// Hides a volume from every listener.
#[utoipa::path(delete, path = "/v1/exports/{name}", params(("name" = String, Path), ChangeOptions), responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn unexport(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
) -> Answer<Change> {
    run(gate, Some(name.clone()), move |control| control.set_exported(&name, false, options.dry_run)).await
}
