//! Between HTTP and the control: bodies in, answers and failures out, blocking work off the runtime's threads.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::control::Control;
use super::failure_resource::Failure;
use super::gate::Gate;
use crate::error::{Error, ErrorKind, Result};

/// An answer as JSON, or a failure with its status.
pub(super) type Answer<T> = std::result::Result<Json<T>, Refusal>;

/// A failure on its way to the client.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: Error,
    reference: Option<String>,
}

impl Refusal {
    /// With a status of HTTP's own, where the error's kind says too little.
    pub(super) fn new(status: StatusCode, error: Error) -> Self {
        Self { status, error, reference: None }
    }

    /// About what the client asked for.
    pub(super) fn about(error: Error, reference: Option<String>) -> Self {
        Self { reference, ..Self::from(error) }
    }

    fn from_rejection(status: StatusCode, text: String) -> Self {
        Self::new(status, Error::new(ErrorKind::Usage, text))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::new(status_of(error.kind()), error)
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::from_rejection(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::from_rejection(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Refusal {
    fn from(rejection: PathRejection) -> Self {
        Self::from_rejection(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(code = self.error.kind().code(), error = %self.error, "a request failed");
        }
        (self.status, Json(Failure::new(&self.error, self.reference))).into_response()
    }
}

/// A JSON body whose rejection is a [`Refusal`].
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Refusal))]
pub(super) struct Body<T>(pub(super) T);

/// What a JSON body says that may be left out.
pub(super) fn optional<T: serde::de::DeserializeOwned + Default>(body: &[u8]) -> std::result::Result<T, Refusal> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        Refusal::from(Error::new(ErrorKind::Usage, format!("The body is not understood: {error}")).with_source(error))
    })
}

/// The query's options; a rejection is a [`Refusal`].
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Refusal))]
pub(super) struct Options<T>(pub(super) T);

/// The name in the path; a rejection is a [`Refusal`].
#[derive(serde::Deserialize, FromRequestParts)]
#[from_request(via(Path), rejection(Refusal))]
pub(super) struct Name(pub(super) String);

/// The key slot in the path; a rejection is a [`Refusal`].
#[derive(serde::Deserialize, FromRequestParts)]
#[from_request(via(Path), rejection(Refusal))]
pub(super) struct Slot(pub(super) u8);

/// Runs `work` on the open pool, where it may block. It runs to its end also if the client goes away.
pub(super) async fn run<T, W>(gate: Arc<Gate>, reference: Option<String>, work: W) -> Answer<T>
where
    T: Send + 'static,
    W: FnOnce(&Control) -> Result<T> + Send + 'static,
{
    fetch(gate, reference, work).await.map(Json)
}

/// The same for a handler that does more with what it gets.
pub(super) async fn fetch<T, W>(gate: Arc<Gate>, reference: Option<String>, work: W) -> std::result::Result<T, Refusal>
where
    T: Send + 'static,
    W: FnOnce(&Control) -> Result<T> + Send + 'static,
{
    blocking(gate, reference, |gate| gate.with(work)).await
}

/// As [`run`], for what can be asked of a locked pool too.
pub(super) async fn run_at<T, W>(gate: Arc<Gate>, reference: Option<String>, work: W) -> Answer<T>
where
    T: Send + 'static,
    W: FnOnce(&Gate) -> Result<T> + Send + 'static,
{
    blocking(gate, reference, work).await.map(Json)
}

async fn blocking<T, W>(gate: Arc<Gate>, reference: Option<String>, work: W) -> std::result::Result<T, Refusal>
where
    T: Send + 'static,
    W: FnOnce(&Gate) -> Result<T> + Send + 'static,
{
    let result = tokio::task::spawn_blocking(move || work(&gate)).await;
    let result = result.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Other, "The daemon stopped before the request was done").with_source(error))
    });
    result.map_err(|error| Refusal::about(error, reference))
}

/// The status for a kind of failure; the body's `code` says the same more precisely.
const fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Usage => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Exists | ErrorKind::Busy => StatusCode::CONFLICT,
        ErrorKind::Permission | ErrorKind::Key => StatusCode::FORBIDDEN,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Integrity | ErrorKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
