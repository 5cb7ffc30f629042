//! The arguments that bound NBD connections.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::size::parse_size;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{Expose, ListenSettings, NbdLimits, TlsOffer};

/// Which volumes listeners offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExposeArgument {
    /// All but what was unexported
    All,
    /// What was exported by name
    Listed,
}

/// Whether connections are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TlsArgument {
    /// They must be
    Require,
    /// They may be
    Allow,
    /// They are not
    Off,
}

/// What is set of NBD.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "NBD connections")]
pub(super) struct NbdArguments {
    /// Offer all volumes or only what rok-blk export names; by default all on the unix socket and on loopback addresses, and
    /// only what is named elsewhere
    #[arg(long, value_name = "WHICH")]
    expose: Option<ExposeArgument>,
    /// Directory with server-cert.pem and server-key.pem for TLS, and ca-cert.pem if clients need a certificate that it vouches
    /// for; files that are replaced are read again for the next connection
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Whether connections over TCP are encrypted; with --tls-dir they must be, but on loopback addresses and the unix socket
    #[arg(long, value_name = "HOW")]
    tls: Option<TlsArgument>,
    /// Let machines that reach a listener connect without TLS
    #[arg(long)]
    allow_plaintext: bool,
    /// Also offer an export rok:null of this size, which stores nothing and reads as zeros: it tells what the protocol costs
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    nbd_null: Option<u64>,
    /// Connections in all; more are closed at once
    #[arg(long, value_name = "N", default_value_t = NbdLimits::default().connections_max)]
    nbd_max_connections: usize,
    /// Connections that have one volume open, unless its export says otherwise
    #[arg(long, value_name = "N", default_value_t = NbdLimits::default().connections_per_export_max)]
    nbd_max_connections_per_export: u32,
    /// How long a client may take to choose an export
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10s")]
    nbd_handshake_timeout: Duration,
    /// How long a message may take from its first byte to its last, and how long a client may take no replies
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "60s")]
    nbd_stall_timeout: Duration,
    /// Close connections that were silent for so long; by default never
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    nbd_idle_timeout: Option<Duration>,
    /// Options that a client may send before it chooses an export; more behind a list of many exports
    #[arg(long, value_name = "N", default_value_t = NbdLimits::default().options_max)]
    nbd_max_options: u32,
    /// Data of an option that are read; a longer one ends the connection
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "1MiB")]
    nbd_max_option_size: u64,
    /// Longest read or write
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "32MiB")]
    nbd_max_request_size: u64,
    /// Requests of a connection that are under way; the next one waits
    #[arg(long, value_name = "N", default_value_t = NbdLimits::default().requests_max)]
    nbd_max_requests: usize,
    /// What these hold in memory; the next one waits
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64MiB")]
    nbd_max_payload: u64,
}

impl NbdArguments {
    /// The bounds of connections.
    ///
    /// # Errors
    /// `Usage` naming what cannot be kept.
    pub(super) fn limits(&self) -> Result<NbdLimits> {
        let limits = NbdLimits {
            connections_max: self.nbd_max_connections,
            connections_per_export_max: self.nbd_max_connections_per_export,
            handshake_time_max: self.nbd_handshake_timeout,
            stall_time_max: self.nbd_stall_timeout,
            idle_time_max: self.nbd_idle_timeout,
            options_max: self.nbd_max_options,
            // What does not fit is far out of range, and told so.
            option_bytes_max: u32::try_from(self.nbd_max_option_size).unwrap_or(u32::MAX),
            request_bytes_max: u32::try_from(self.nbd_max_request_size).unwrap_or(u32::MAX),
            requests_max: self.nbd_max_requests,
            payload_bytes_max: usize::try_from(self.nbd_max_payload).unwrap_or(usize::MAX),
        };
        limits.check()?;
        Ok(limits)
    }

    /// Where certificates are.
    ///
    /// # Errors
    /// `Usage` if TLS was asked for without them.
    pub(super) fn tls_directory(&self) -> Result<Option<PathBuf>> {
        if self.tls_dir.is_none() && matches!(self.tls, Some(TlsArgument::Require | TlsArgument::Allow)) {
            return Err(
                Error::new(ErrorKind::Usage, "TLS needs certificates").with_hint("Name their directory with --tls-dir")
            );
        }
        self.tls_dir.as_deref().map(super::serve_command::absolute).transpose()
    }

    /// Whether other machines may connect without TLS.
    pub(super) fn is_plaintext_for_others(&self, address: &SocketAddr) -> bool {
        !address.ip().is_loopback() && self.tls_offer(address) != TlsOffer::Required
    }

    fn tls_offer(&self, address: &SocketAddr) -> TlsOffer {
        match self.tls {
            Some(TlsArgument::Require) => TlsOffer::Required,
            Some(TlsArgument::Allow) => TlsOffer::Allowed,
            Some(TlsArgument::Off) => TlsOffer::Off,
            None if self.tls_dir.is_none() => TlsOffer::Off,
            None if address.ip().is_loopback() => TlsOffer::Allowed,
            None => TlsOffer::Required,
        }
    }

    /// How the unix socket treats its clients.
    pub(super) fn unix_settings(&self) -> ListenSettings {
        let expose = if self.expose == Some(ExposeArgument::Listed) { Expose::Listed } else { Expose::All };
        let is_offered = self.tls_dir.is_some() && self.tls != Some(TlsArgument::Off);
        let tls = if is_offered { TlsOffer::Allowed } else { TlsOffer::Off };
        ListenSettings { expose, tls, null_size_bytes: self.nbd_null }
    }

    /// How a listener over TCP does.
    ///
    /// # Errors
    /// `Usage` if everything would be offered to other machines.
    pub(super) fn tcp_settings(&self, address: &SocketAddr) -> Result<ListenSettings> {
        let is_loopback = address.ip().is_loopback();
        if self.is_plaintext_for_others(address) && !self.allow_plaintext {
            let message =
                format!("{address} may be reachable from other machines, and connections need not be encrypted");
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("Name certificates with --tls-dir, or say --allow-plaintext"));
        }
        let expose = match self.expose {
            Some(ExposeArgument::All) if !is_loopback => {
                let message = format!("{address} may be reachable from other machines: --expose all is not for it");
                return Err(Error::new(ErrorKind::Usage, message)
                    .with_hint("Leave it out, and name what to offer with rok-blk export"));
            }
            Some(ExposeArgument::All) => Expose::All,
            None if is_loopback => Expose::All,
            Some(ExposeArgument::Listed) | None => Expose::Listed,
        };
        Ok(ListenSettings { expose, tls: self.tls_offer(address), null_size_bytes: self.nbd_null })
    }
}

/// A time like `10s` or `2m 30s`.
fn parse_time(text: &str) -> Result<Duration> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    parsed.ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{text:?} is no time")).with_hint("Write it like 10s, 2m or 1h 30m")
    })
}
