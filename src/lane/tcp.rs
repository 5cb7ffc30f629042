//! The options of accepted TCP connections.
//!
//! A host that vanishes says nothing. Its connection must end by itself: it holds a place, and a volume that it has open
//! cannot be removed or shrunk.

use super::limits::{TCP_PROBE_COUNT, TCP_PROBE_PERIOD, TCP_SILENCE_MAX};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::TcpStream;

/// Sends small replies at once, and ends the connection when the other host is gone.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes =
        TcpKeepalive::new().with_time(TCP_SILENCE_MAX).with_interval(TCP_PROBE_PERIOD).with_retries(TCP_PROBE_COUNT);
    socket.set_tcp_keepalive(&probes)?;
    // Probes are sent only while nothing waits for an acknowledgement; this is for what does.
    socket.set_tcp_user_timeout(Some(TCP_SILENCE_MAX + TCP_PROBE_PERIOD * TCP_PROBE_COUNT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    #[test]
    fn a_tuned_connection_ends_a_minute_after_the_last_sign_of_its_host() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (stream, _) = listener.accept().expect("a connection");

        tune(&stream).expect("a live connection");

        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().expect("an option"));
        assert!(socket.keepalive().expect("an option"));
        let silence = socket.tcp_keepalive_time().expect("an option");
        let probes =
            socket.tcp_keepalive_interval().expect("an option") * socket.tcp_keepalive_retries().expect("an option");
        assert_eq!(silence + probes, Duration::from_secs(60));
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(Duration::from_secs(60)));
    }
}
