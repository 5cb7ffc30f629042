//! The routes of exports, under `/v1/exports`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Name, Options, optional, run};
use super::export_resource::ExportList;
use super::failure_resource::Failure;
use super::gate::Gate;
use super::request::{ChangeOptions, ExportVolume, UnexportOptions};
use super::resource::Change;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(export, unexport))
}

/// Lists what the listeners offer.
#[utoipa::path(get, path = "/v1/exports", responses(
    (status = 200, body = ExportList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn list(State(gate): State<Arc<Gate>>) -> Answer<ExportList> {
    run(gate, None, |control| Ok(control.exports())).await
}

/// Offers a volume on every listener, and says to whom and how.
#[utoipa::path(put, path = "/v1/exports/{name}", params(("name" = String, Path), ChangeOptions),
    request_body = ExportVolume, responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn export(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    body: Bytes,
) -> Answer<Change> {
    let request: ExportVolume = optional(&body)?;
    run(gate, Some(name.clone()), move |control| control.export(&name, &request, options.dry_run)).await
}

/// Hides a volume from every listener.
#[utoipa::path(delete, path = "/v1/exports/{name}", params(("name" = String, Path), UnexportOptions), responses(
    (status = 200, body = Change), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn unexport(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<UnexportOptions>,
) -> Answer<Change> {
    run(gate, Some(name.clone()), move |control| control.unexport(&name, options)).await
}
