//! The client's end of the control API: one request, one connection.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use super::failure::{Failed, Outcome};
use crate::daemon::control_socket;
use crate::daemon::failure_resource::Failure;
use crate::daemon::host;
use crate::error::{Error, ErrorKind, Result};

/// How long the daemon may take to accept a connection.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a request may take: a shrink discards what it cuts off, and changes wait for each other.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(600);
/// Largest answer: a volume takes about 300 bytes of JSON.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A daemon's control socket.
pub(super) struct Client {
    path: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// At `socket`, or at the default one; for root, also that of the host's service.
    ///
    /// # Errors
    /// `Permission` if somebody else could have made the directory of the default socket.
    pub(super) fn new(socket: Option<&Path>) -> Result<Self> {
        let mut path = socket_path(socket);
        let service = control_socket::path_of_service(host::effective_uid());
        if socket.is_none()
            && let Some(service) = service.filter(|service| path == *service || service.exists() && !path.exists())
        {
            path = service;
        } else if socket.is_none()
            && let Some(directory) = path.parent().filter(|directory| directory.exists())
        {
            control_socket::check_private_directory(directory, host::effective_uid())?;
        }
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::new(ErrorKind::Other, "The client did not start").with_source(error))?;
        Ok(Self { path, runtime })
    }

    /// Asks for `path`.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str, reference: Option<&str>) -> Outcome<T> {
        self.send(Method::GET, path, Bytes::new(), reference)
    }

    /// Sends `body` to `path`.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, reference: &str) -> Outcome<T> {
        let body = serde_json::to_vec(body).expect("requests are plain data");
        self.send(Method::POST, path, Bytes::from(body), Some(reference))
    }

    /// Changes what is at `path` as `body` says.
    pub(super) fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, reference: &str) -> Outcome<T> {
        let body = serde_json::to_vec(body).expect("requests are plain data");
        self.send(Method::PATCH, path, Bytes::from(body), Some(reference))
    }

    /// Puts a body where `path` is.
    pub(super) fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, reference: &str) -> Outcome<T> {
        let body = serde_json::to_vec(body).expect("requests are plain data");
        self.send(Method::PUT, path, Bytes::from(body), Some(reference))
    }

    /// Sends a request without a body.
    pub(super) fn change<T: DeserializeOwned>(&self, method: Method, path: &str, reference: &str) -> Outcome<T> {
        self.send(method, path, Bytes::new(), Some(reference))
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        reference: Option<&str>,
    ) -> Outcome<T> {
        let exchange = async {
            let stream = within(CONNECT_TIME_MAX, self.connect()).await??;
            within(REQUEST_TIME_MAX, exchange(stream, method, path, body)).await?
        };
        let answer = self.runtime.block_on(exchange).and_then(|(status, body)| read_answer(status, &body));
        answer.map_err(|error| Failed::Error { error, reference: reference.map(str::to_owned) })
    }

    async fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.path).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Error::from_io("Connecting to", &self.path, error)
                .with_hint("The daemon serves the user who started it, and root"),
            _ => Error::new(ErrorKind::Unreachable, format!("No daemon answers at {}", self.path.display()))
                .with_hint("Start one with rok-blk serve --pool DIR, or name its socket with --socket")
                .with_source(error),
        })
    }
}

/// The socket that was asked for, or the default one.
pub(super) fn socket_path(socket: Option<&Path>) -> PathBuf {
    socket.map_or_else(
        || {
            let runtime_directory = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            control_socket::default_path(runtime_directory.as_deref(), host::effective_uid())
        },
        Path::to_owned,
    )
}

async fn within<T>(time_max: Duration, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(time_max, work).await.map_err(|_| {
        let message = format!("The daemon did not answer within {} s", time_max.as_secs());
        Error::new(ErrorKind::TimedOut, message).with_hint("The request may still be carried out; see rok-blk status")
    })
}

async fn exchange(stream: UnixStream, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|error| Error::new(ErrorKind::Other, "The request is malformed").with_source(error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(cut_off)?;
    let talk = async {
        let answer = sender.send_request(request).await.map_err(cut_off)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| Error::new(ErrorKind::Unreachable, "The daemon's answer broke off").with_source(error))?;
        Ok((status, body.to_bytes()))
    };
    // The connection ends when the answer is read and its sender gone; its own end is told through the sender.
    let connection = async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the control connection broke off");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = talk => result,
        () = connection => unreachable!("a pending future never ends"),
    }
}

fn cut_off(error: hyper::Error) -> Error {
    Error::new(ErrorKind::Unreachable, "The daemon went away before it answered")
        .with_hint("See its log, and whether it still runs: rok-blk status")
        .with_source(error)
}

fn read_answer<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T> {
    let foreign = |error: serde_json::Error| {
        Error::new(ErrorKind::Other, format!("The daemon's answer (HTTP {}) is not understood", status.as_u16()))
            .with_hint("Is the daemon of another version? See rok-blk status")
            .with_source(error)
    };
    if status.is_success() {
        return serde_json::from_slice(body).map_err(foreign);
    }
    Err(serde_json::from_slice::<Failure>(body).map_err(foreign)?.into_error())
}
