//! Accepts control connections: of this user and of root only, and not more than [`CONNECTION_COUNT_MAX`] at once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Control connections at once; further ones wait in the kernel's queue.
const CONNECTION_COUNT_MAX: usize = 64;
/// How long to wait after the kernel refused a connection (no file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket that asks the kernel who connects.
pub(super) struct PeerListener {
    listener: UnixListener,
    uid: u32,
    permits: Arc<Semaphore>,
}

impl PeerListener {
    /// Over a bound socket; `uid` and root may connect.
    pub(super) fn new(listener: UnixListener, uid: u32) -> Self {
        Self { listener, uid, permits: Arc::new(Semaphore::new(CONNECTION_COUNT_MAX)) }
    }

    fn is_allowed(&self, stream: &UnixStream) -> bool {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == self.uid || peer.uid() == 0 => true,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "refused a control connection of another user");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "refused a control connection of an unknown user");
                false
            }
        }
    }
}

impl Listener for PeerListener {
    type Io = PeerStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("nobody closes the semaphore");
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) if self.is_allowed(&stream) => {
                    return (PeerStream { stream, _permit: permit }, address);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "a control connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A control connection; it makes room for another one when it ends.
pub(super) struct PeerStream {
    stream: UnixStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
