//! What an administrator may set of NBD: the bounds of its connections. Each has a name and a default.

use super::limits;
use crate::error::{Error, ErrorKind, Result};
use rok_nbd::server::TlsOffer;
use std::time::Duration;

/// Which volumes a listener offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expose {
    /// All but what was unexported.
    #[default]
    All,
    /// What was exported by name.
    Listed,
}

/// How a listener treats its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenSettings {
    /// Which volumes it offers.
    pub expose: Expose,
    /// Whether connections are encrypted.
    pub tls: TlsOffer,
    /// Size of the export `rok:null` in bytes, if there is to be one: it stores nothing, and reads as zeros.
    pub null_size_bytes: Option<u64>,
}

/// The bounds of NBD connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdLimits {
    /// Connections of the server, in whatever phase; more are closed at once.
    pub connections_max: usize,
    /// Connections that have one volume open, unless its export says otherwise.
    pub connections_per_export_max: u32,
    /// How long a client may take to choose an export, TLS included.
    pub handshake_time_max: Duration,
    /// How long a message may take from its first byte to its last, and how long a client may take no replies.
    pub stall_time_max: Duration,
    /// How long a connection may be silent that has an export open; `None` is for ever.
    pub idle_time_max: Option<Duration>,
    /// Options that a client may send; more are allowed behind a list of many exports.
    pub options_max: u32,
    /// Data of one option in bytes that are read; a longer one ends the connection.
    pub option_bytes_max: u32,
    /// Longest READ or WRITE in bytes.
    pub request_bytes_max: u32,
    /// Requests of a connection that are not yet answered.
    pub requests_max: usize,
    /// Bytes of payload that the requests of a connection hold; a single request may always go ahead.
    pub payload_bytes_max: usize,
}

impl Default for NbdLimits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_per_export_max: 1024,
            handshake_time_max: Duration::from_secs(10),
            stall_time_max: Duration::from_secs(60),
            idle_time_max: None,
            options_max: rok_nbd::limits::OPTION_COUNT_MAX,
            option_bytes_max: rok_nbd::limits::OPTION_SKIP_SIZE_MAX,
            request_bytes_max: 32 << 20,
            requests_max: limits::REQUESTS_MAX,
            payload_bytes_max: limits::PAYLOAD_BYTES_MAX,
        }
    }
}

/// Open files that connections leave to the metadata store, devices, rings, disks and the API.
const FILES_KEPT: u64 = 640;

impl NbdLimits {
    /// The same for a process that may have so many files open: each connection is one, and a metadata store that gets none stops
    /// the pool. Of few files connections have half.
    #[must_use]
    pub fn within_open_files(self, files_max: u64) -> Self {
        let files = files_max - FILES_KEPT.min(files_max / 2);
        let connections_max = usize::try_from(files).unwrap_or(usize::MAX).clamp(1, self.connections_max);
        Self { connections_max, ..self }
    }

    /// Whether each bound is one that the server can keep.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the setting and its range.
    pub fn check(&self) -> Result<()> {
        let second = Duration::from_secs(1);
        check_range("connections", self.connections_max, (1, limits::CONNECTIONS_MAX))?;
        check_range("connections of an export", self.connections_per_export_max, (1, u32::MAX))?;
        check_range("options of a handshake", self.options_max, (1, 100_000))?;
        check_range("bytes of an option", self.option_bytes_max, (64 << 10, rok_nbd::limits::OPTION_SKIP_SIZE_MAX))?;
        check_range("bytes of a request", self.request_bytes_max, (64 << 10, 64 << 20))?;
        check_range("requests of a connection", self.requests_max, (1, limits::REQUESTS_MAX))?;
        check_range("bytes of a connection's payloads", self.payload_bytes_max, (64 << 10, 1 << 30))?;
        check_range("seconds of a handshake", self.handshake_time_max, (second, second * 3600))?;
        check_range("seconds of a message", self.stall_time_max, (second, second * 3600))?;
        check_range("seconds of silence", self.idle_time_max.unwrap_or(second), (second, second * 86_400 * 365))?;
        if !self.request_bytes_max.is_multiple_of(4096) {
            return Err(Error::new(ErrorKind::Usage, "The bytes of a request are not a multiple of 4096")
                .with_hint("Round them up"));
        }
        Ok(())
    }
}

fn check_range<T: PartialOrd + std::fmt::Debug>(what: &str, value: T, (min, max): (T, T)) -> Result<()> {
    if (&min..=&max).contains(&&value) {
        return Ok(());
    }
    let message = format!("There cannot be {value:?} as the limit of {what}");
    Err(Error::new(ErrorKind::Usage, message).with_hint(format!("Use a limit from {min:?} to {max:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_can_be_kept() {
        NbdLimits::default().check().expect("they are");
    }

    #[test]
    fn connections_leave_files_to_the_daemon() {
        let connections_max = |files_max| NbdLimits::default().within_open_files(files_max).connections_max;

        assert_eq!([0, 1, 200, 1024, 1664, u64::MAX].map(connections_max), [1, 1, 100, 512, 1024, 1024]);
    }

    #[test]
    fn each_bound_out_of_its_range_is_refused_by_name() {
        let limits = NbdLimits::default;
        let zero = Duration::ZERO;
        let cases = [
            (NbdLimits { connections_max: 0, ..limits() }, "connections"),
            (NbdLimits { connections_max: 1_000_000, ..limits() }, "connections"),
            (NbdLimits { connections_per_export_max: 0, ..limits() }, "export"),
            (NbdLimits { options_max: 0, ..limits() }, "options"),
            (NbdLimits { option_bytes_max: 1, ..limits() }, "option"),
            (NbdLimits { request_bytes_max: 4096, ..limits() }, "request"),
            (NbdLimits { request_bytes_max: (64 << 10) + 1, ..limits() }, "4096"),
            (NbdLimits { requests_max: 0, ..limits() }, "requests"),
            (NbdLimits { payload_bytes_max: 0, ..limits() }, "payloads"),
            (NbdLimits { handshake_time_max: zero, ..limits() }, "handshake"),
            (NbdLimits { stall_time_max: zero, ..limits() }, "message"),
            (NbdLimits { idle_time_max: Some(zero), ..limits() }, "silence"),
        ];
        for (limits, word) in cases {
            let error = limits.check().expect_err("it is out of range");
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.message().contains(word), "{error} names {word}");
        }
    }
}
