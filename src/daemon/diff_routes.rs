//! The route of differences: `/v1/diff`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Options, run};
use super::diff_resource::{Diff, DiffOptions};
use super::failure_resource::Failure;
use super::gate::Gate;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(diff))
}

/// Tells where two volumes or snapshots differ, a page at a time.
///
/// A page takes a bounded time, whatever there is to compare, and may hold no range although there are more.
#[utoipa::path(get, path = "/v1/diff", params(DiffOptions), responses(
    (status = 200, body = Diff), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn diff(State(gate): State<Arc<Gate>>, Options(options): Options<DiffOptions>) -> Answer<Diff> {
    run(gate, Some(format!("{} {}", options.from, options.to)), move |control| control.diff(&options)).await
}
