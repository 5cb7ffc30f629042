//! All routes, and the OpenAPI document that is made from the same list.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::Refusal;
use super::gate::Gate;
use super::request::BODY_BYTES_MAX;
use super::{
    attachment_routes, diff_routes, export_routes, job_routes, key_routes, metrics, policy_routes, pool_routes,
    scrub_routes, snapshot_routes, trash_routes, volume_routes,
};
use crate::error::{Error, ErrorKind};

#[derive(OpenApi)]
#[openapi(info(title = "rok-blk control API", description = "Volumes, exports, keys and the pool of one daemon."))]
struct Description;

/// The router over `gate`.
pub(super) fn router(gate: Arc<Gate>) -> Router {
    let (router, _) = all_routes().split_for_parts();
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(gate)
}

/// The description of the API, as `GET /v1/openapi.json` answers it.
#[must_use]
pub fn openapi_document() -> Document {
    all_routes().split_for_parts().1
}

fn all_routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .merge(volume_routes::routes())
        .merge(export_routes::routes())
        .merge(attachment_routes::routes())
        .merge(key_routes::routes())
        .merge(job_routes::routes())
        .merge(snapshot_routes::routes())
        .merge(diff_routes::routes())
        .merge(trash_routes::routes())
        .merge(policy_routes::routes())
        .merge(pool_routes::routes())
        .merge(scrub_routes::routes())
        .merge(metrics::routes())
        .routes(routes!(openapi))
}

/// Describes this API.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = serde_json::Value)))]
async fn openapi() -> Json<Document> {
    Json(openapi_document())
}

async fn unknown_path(uri: Uri) -> Refusal {
    let error = Error::new(ErrorKind::NotFound, format!("The API has no {}", uri.path()))
        .with_hint("GET /v1/openapi.json describes what it has");
    Refusal::new(StatusCode::NOT_FOUND, error)
}

async fn unknown_method(method: Method, uri: Uri) -> Refusal {
    let error = Error::new(ErrorKind::Usage, format!("{} does not take {method}", uri.path()))
        .with_hint("GET /v1/openapi.json describes what it takes");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error)
}
