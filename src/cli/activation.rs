//! The sockets that systemd passes to a daemon (`sd_listen_fds(3)`), read from the environment once.

use listenfd::ListenFd;

use super::nbd_arguments::NbdArguments;
use crate::daemon::GivenListen;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{GivenSocket, ListenAddress};
use std::sync::Arc;

/// Takes every socket that was passed to this process, each with the settings that it would have had, had the process
/// made it.
///
/// # Errors
/// `Usage` naming what was passed that is no listening stream socket, or may not be offered to other machines.
pub(super) fn given_sockets(arguments: &NbdArguments) -> Result<Vec<GivenListen>> {
    let mut passed = ListenFd::from_env();
    (0..passed.len())
        .map(|index| {
            let socket = take(&mut passed, index)?;
            let settings = match socket.address() {
                ListenAddress::Unix(_) => arguments.unix_settings(),
                ListenAddress::Tcp(address) => arguments.tcp_settings(address)?,
            };
            Ok(GivenListen { socket: Arc::new(socket), settings })
        })
        .collect()
}

fn take(passed: &mut ListenFd, index: usize) -> Result<GivenSocket> {
    if let Ok(Some(listener)) = passed.take_unix_listener(index) {
        return GivenSocket::unix(listener);
    }
    match passed.take_tcp_listener(index) {
        Ok(Some(listener)) => GivenSocket::tcp(listener),
        Ok(None) => unreachable!("each index is taken once"),
        Err(error) => {
            let message = format!("Socket {} of those that were passed to this process is no stream socket", index + 1);
            Err(Error::new(ErrorKind::Usage, message)
                .with_hint("The socket unit must have ListenStream= only")
                .with_source(error))
        }
    }
}
