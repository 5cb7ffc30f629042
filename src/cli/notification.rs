//! What systemd is told of this process's state (`sd_notify(3)`): a datagram to the socket that it named.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Names the socket; not set where nobody wants to know.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// What is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// Clients can connect.
    Ready,
    /// The process is ending.
    Stopping,
}

/// Tells the state, if somebody wants to know. What fails is logged: systemd has a time limit.
pub(super) fn notify(state: State) {
    let Some(socket) = env::var_os(SOCKET_VARIABLE) else { return };
    let text = match state {
        State::Ready => "READY=1",
        State::Stopping => "STOPPING=1",
    };
    if let Err(error) = send(socket.as_encoded_bytes(), text) {
        tracing::warn!(%error, "systemd was not told {text}");
    }
}

/// To a path or, behind an `@`, a name that is in no directory.
fn send(socket: &[u8], text: &str) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::path::Path::new(
            std::str::from_utf8(socket).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
        ))?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(listener: &UnixDatagram) -> String {
        let mut memory = [0; 64];
        let len = listener.recv(&mut memory).expect("a datagram");
        String::from_utf8_lossy(&memory[..len]).into_owned()
    }

    #[test]
    fn state_is_told_to_paths_and_to_abstract_names() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).expect("a socket");
        send(path.as_os_str().as_encoded_bytes(), "READY=1").expect("somebody listens");
        assert_eq!(told(&listener), "READY=1");

        let name = format!("rok-blk-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let listener = UnixDatagram::bind_addr(&address).expect("a socket");
        send(format!("@{name}").as_bytes(), "STOPPING=1").expect("somebody listens");
        assert_eq!(told(&listener), "STOPPING=1");

        assert!(send(directory.path().join("nobody").as_os_str().as_encoded_bytes(), "READY=1").is_err());
    }
}
