//! Sockets that somebody else listens on for this process: systemd, which has them before the process starts and keeps them
//! while it restarts, so that clients wait instead of being refused.
//!
//! Invariant: the file of a unix socket is its maker's; it stays when the server ends.

use super::address::ListenAddress;
use crate::error::{Error, ErrorKind, Result};
use socket2::SockRef;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// A socket that listens, and where.
#[derive(Debug)]
pub struct GivenSocket {
    socket: OwnedFd,
    address: ListenAddress,
}

impl GivenSocket {
    /// A unix socket with a path.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if it does not listen, or has no path; else the system's.
    pub fn unix(listener: UnixListener) -> Result<Self> {
        let address = listener.local_addr().map_err(|error| failure(&error))?;
        let Some(path) = address.as_pathname() else {
            return Err(Error::new(ErrorKind::Usage, "A unix socket that was passed to this process has no path")
                .with_hint("Give it one: ListenStream=/run/rok-blk/nbd.sock"));
        };
        Self::new(ListenAddress::Unix(path.to_path_buf()), listener.into())
    }

    /// A TCP socket.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if it does not listen; else the system's.
    pub fn tcp(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr().map_err(|error| failure(&error))?;
        Self::new(ListenAddress::Tcp(address), listener.into())
    }

    fn new(address: ListenAddress, socket: OwnedFd) -> Result<Self> {
        let is_listening = SockRef::from(&socket).is_listener().map_err(|error| failure(&error))?;
        if !is_listening {
            let message = format!("The socket {address} that was passed to this process does not listen");
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("A socket unit for rok-blk needs Accept=no, which is the default"));
        }
        // The ring waits for connections only where the socket does: with O_NONBLOCK an accept ends at once.
        SockRef::from(&socket).set_nonblocking(false).map_err(|error| failure(&error))?;
        Ok(Self { socket, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The socket for a lane, which closes it when the server ends. This one stays open for the next server.
    pub(super) fn duplicate(&self) -> Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned().map_err(|error| failure(&error))
    }
}

fn failure(error: &io::Error) -> Error {
    Error::new(ErrorKind::Other, format!("A socket that was passed to this process cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    #[test]
    fn socket_without_a_path_is_refused() {
        let name = format!("rok-blk-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("nobody else has this name");

        let error = GivenSocket::unix(listener).expect_err("it has no path");

        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn connected_socket_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let client = std::net::TcpStream::connect(address).expect("it listens");

        // As systemd passes it with Accept=yes.
        let error = GivenSocket::tcp(TcpListener::from(OwnedFd::from(client))).expect_err("it does not listen");

        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}
