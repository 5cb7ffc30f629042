//! NBD URIs, as `doc/uri.md` of the NetworkBlockDevice project defines them, without those for TLS and vsock.
//!
//! `nbd://HOST[:PORT]/NAME` and `nbd+unix:///NAME?socket=PATH`. The slash in front of the name does not belong to it.

use std::ffi::OsString;
use std::fmt;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::str::FromStr;

use crate::limits;
use crate::magic;

/// Where an export is to be found. `Display` writes the URI, `FromStr` reads it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Uri {
    /// How to reach the server.
    pub address: Address,
    /// The export's name; empty for the default export.
    pub export_name: String,
}

/// How to reach a server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// TCP.
    Tcp {
        /// A host name or an address; IPv6 addresses without brackets.
        host: String,
        /// The port; [`magic::PORT`] if the URI has none. `Display` leaves that one out only if it is `None`.
        port: Option<u16>,
    },
    /// A unix socket.
    Unix {
        /// The socket's path.
        path: PathBuf,
    },
}

/// Why a text is no NBD URI that this crate can use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UriError {
    /// Neither `nbd:` nor `nbd+unix:`.
    Scheme(String),
    /// `nbd+unix` with a host, or no `//`, or an empty or malformed host or port.
    Authority(String),
    /// `nbd+unix` without a `socket=` parameter, or with an empty one.
    NoSocket,
    /// A percent sign without two hexadecimal digits.
    Escape,
    /// The name is not UTF-8, holds a NUL, or is too long.
    Name,
}

impl Address {
    /// The port to connect to, for TCP.
    #[must_use]
    pub fn tcp_port(&self) -> Option<u16> {
        match self {
            Self::Tcp { port, .. } => Some(port.unwrap_or(magic::PORT)),
            Self::Unix { .. } => None,
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp { host, port } => {
                formatter.write_str("nbd://")?;
                if host.contains(':') {
                    formatter.write_char('[')?;
                    // A colon is legal between the brackets; a zone index keeps its percent sign escaped (RFC 6874).
                    write_escaped(formatter, host.as_bytes(), b":")?;
                    formatter.write_char(']')?;
                } else {
                    write_escaped(formatter, host.as_bytes(), b"")?;
                }
                if let Some(port) = port {
                    write!(formatter, ":{port}")?;
                }
                formatter.write_char('/')?;
                write_escaped(formatter, self.export_name.as_bytes(), b"/")
            }
            Address::Unix { path } => {
                formatter.write_str("nbd+unix:///")?;
                write_escaped(formatter, self.export_name.as_bytes(), b"/")?;
                formatter.write_str("?socket=")?;
                write_escaped(formatter, path.as_os_str().as_bytes(), b"/")
            }
        }
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| UriError::Scheme(text.to_owned()))?;
        let is_unix = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => false,
            "nbd+unix" => true,
            _ => return Err(UriError::Scheme(scheme.to_owned())),
        };
        let rest = rest.strip_prefix("//").ok_or_else(|| UriError::Authority(text.to_owned()))?;
        // A fragment has no meaning for NBD.
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, name) = location.split_once('/').unwrap_or((location, ""));

        let export_name = String::from_utf8(unescaped(name)?).map_err(|_| UriError::Name)?;
        if export_name.len() > limits::NAME_SIZE_MAX || export_name.contains('\0') {
            return Err(UriError::Name);
        }
        let address = if is_unix { unix_address(authority, query)? } else { tcp_address(authority)? };
        Ok(Self { address, export_name })
    }
}

fn unix_address(authority: &str, query: &str) -> Result<Address, UriError> {
    if !authority.is_empty() {
        return Err(UriError::Authority(authority.to_owned()));
    }
    let escaped = query.split('&').find_map(|pair| pair.strip_prefix("socket=")).ok_or(UriError::NoSocket)?;
    let bytes = unescaped(escaped)?;
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(UriError::NoSocket);
    }
    Ok(Address::Unix { path: PathBuf::from(OsString::from_vec(bytes)) })
}

fn tcp_address(authority: &str) -> Result<Address, UriError> {
    let bad = || UriError::Authority(authority.to_owned());
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').ok_or_else(bad)?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let host = String::from_utf8(unescaped(host)?).map_err(|_| bad())?;
    if host.is_empty() || host.contains('\0') {
        return Err(bad());
    }
    let port = match port.strip_prefix(':') {
        // An empty port means the default one (RFC 3986, section 3.2.3).
        Some("") => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().map_err(|_| bad())?),
        None if port.is_empty() => None,
        _ => return Err(bad()),
    };
    Ok(Address::Tcp { host, port })
}

/// Writes `bytes` with everything but unreserved characters (RFC 3986, section 2.3) and those in `kept` escaped.
fn write_escaped(formatter: &mut fmt::Formatter<'_>, bytes: &[u8], kept: &[u8]) -> fmt::Result {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            formatter.write_char(char::from(byte))?;
        } else {
            write!(formatter, "%{byte:02X}")?;
        }
    }
    Ok(())
}

/// `text` with its escapes resolved. A plus sign is a plus sign.
fn unescaped(text: &str) -> Result<Vec<u8>, UriError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>().ok_or(UriError::Escape)?;
        let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
        let value = high.zip(low).map(|(high, low)| high * 16 + low).ok_or(UriError::Escape)?;
        bytes.push(u8::try_from(value).map_err(|_| UriError::Escape)?);
        rest = after;
    }
    Ok(bytes)
}

impl fmt::Display for UriError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme(scheme) => {
                write!(formatter, "URI scheme {scheme:?} is not supported; use nbd: or nbd+unix:")
            }
            Self::Authority(authority) => write!(
                formatter,
                "{authority:?} is no address; use nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH"
            ),
            Self::NoSocket => formatter.write_str("The URI names no socket; add ?socket=PATH"),
            Self::Escape => formatter.write_str("The URI has a % without two hexadecimal digits; write %25 for a %"),
            Self::Name => write!(
                formatter,
                "The export name in the URI is not UTF-8 of at most {} bytes without NUL",
                limits::NAME_SIZE_MAX
            ),
        }
    }
}

impl std::error::Error for UriError {}
