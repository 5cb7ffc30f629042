//! `GET /v1/metrics`: numbers of the pool in the text format of Prometheus, for who scrapes them from the control socket.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Refusal, run_at};
use super::failure_resource::Failure;
use super::gate::Gate;
use super::resource::Status;
use super::scrub_resource::ScrubPhase;

/// Of the exposition format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Numbers of the pool in the text format of Prometheus.
#[utoipa::path(get, path = "/v1/metrics", responses(
    (status = 200, body = String, content_type = "text/plain"),
    (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn metrics(State(gate): State<Arc<Gate>>) -> std::result::Result<impl IntoResponse, Refusal> {
    let Json(status) = run_at(gate, None, |gate| Ok(gate.status())).await?;
    Ok(([(CONTENT_TYPE, TEXT_FORMAT)], text(&status)))
}

/// One number with its name, what kind it is and what it means.
type Metric = (&'static str, &'static str, &'static str, u64);

fn text(status: &Status) -> String {
    let mut metrics: Vec<Metric> =
        vec![("rok_pool_locked", "gauge", "Whether the pool is locked.", u64::from(status.is_locked))];
    if let Some(pool) = &status.pool {
        let scrub = &pool.scrub;
        let is_running = u64::from(scrub.state == ScrubPhase::Running);
        let ranges = crate::units::to_u64(scrub.damages.len());
        metrics.extend([
            (
                "rok_pool_failed",
                "gauge",
                "Whether the pool takes no writes any more.",
                u64::from(pool.failure.is_some()),
            ),
            ("rok_damaged_reads_total", "counter", "Reads that met a damaged block.", pool.damaged_blocks),
            ("rok_scrub_running", "gauge", "Whether the pool is being scrubbed.", is_running),
            ("rok_scrub_passes_total", "counter", "Scrubs that came to their end.", scrub.passes),
            ("rok_scrub_read_bytes", "gauge", "What the scrub under way, or the last one, has read.", scrub.read_bytes),
            ("rok_scrub_damaged_blocks", "gauge", "Damaged blocks that scrubs found.", scrub.damaged_blocks),
            ("rok_scrub_damaged_ranges", "gauge", "Damaged ranges that status lists.", ranges),
        ]);
    }
    if let Some(space) = &status.space {
        metrics.extend([
            ("rok_pool_capacity_bytes", "gauge", "All of the pool.", space.capacity_bytes),
            ("rok_pool_used_bytes", "gauge", "What is in use of it.", space.used_bytes),
            ("rok_pool_free_bytes", "gauge", "What is free for writes.", space.free_bytes),
        ]);
    }
    let one = |(name, kind, meaning, value): Metric| {
        format!("# HELP {name} {meaning}\n# TYPE {name} {kind}\n{name} {value}\n")
    };
    metrics.into_iter().map(one).collect()
}
