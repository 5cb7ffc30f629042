//! Accepted sockets on their way to a lane: who is there, and whether there is a place.

use super::access::{Origin, Peer};
use super::exports::Client;
use super::mailbox::Message;
use super::server::Shared;
use super::settings::ListenSettings;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

/// Gives a connection to the next lane, or closes it if there are too many.
pub(super) fn hand_out(shared: &Shared, socket: OwnedFd, is_tcp: bool, settings: ListenSettings) {
    let Some(permit) = shared.permit() else {
        tracing::warn!("a connection was closed: there are too many");
        return;
    };
    let (socket, origin) = if is_tcp { tcp(socket) } else { unix(socket) };
    let client = Client { peer: Peer { origin, subjects: Vec::new() }, settings, is_encrypted: false };
    if let Err(error) = shared.next_mailbox().send(Message::Connect { socket, permit, client }) {
        tracing::warn!(%error, "a connection was closed");
    }
}

fn tcp(socket: OwnedFd) -> (OwnedFd, Origin) {
    let stream = TcpStream::from(socket);
    if let Err(error) = super::tcp::tune(&stream) {
        tracing::debug!(%error, "a connection was gone already");
    }
    let origin = stream.peer_addr().map_or(Origin::Unknown, |address| Origin::Tcp(address.ip()));
    (stream.into(), origin)
}

fn unix(socket: OwnedFd) -> (OwnedFd, Origin) {
    let origin = rustix::net::sockopt::socket_peercred(&socket).map_or(Origin::Unknown, |credentials| Origin::Unix {
        user: credentials.uid.as_raw(),
        group: credentials.gid.as_raw(),
    });
    (socket, origin)
}
