//! The NBD protocol without I/O: bytes in, structs and bytes out, for the server and for the client.
//!
//! This crate opens no socket, reads no clock, starts no thread and knows nothing of what it exports. Its owner moves
//! the bytes:
//!
//! 1. A connection starts with a [`server::Handshake`]. The owner feeds it what arrives, sends what it appends, and
//!    answers its questions about exports through [`server::Exports`].
//! 2. The handshake ends with [`server::Negotiated`]. From then on each request is a [`Request`], parsed from 28 or 32
//!    bytes by [`Request::parse`] and judged by [`server::RequestRules::check`]. Neither allocates.
//! 3. Replies are a [`ReplyHeader`] (a small `Copy` value) that the owner sends in front of a payload it never copies.
//!
//! Invariants: no input makes the crate panic; no memory is reserved from a length that was not checked against a
//! bound of [`limits`]; every loop consumes input. The specification is `doc/proto.md` of the NetworkBlockDevice
//! project; the doc comments name its sections.
//!
//! Not here: TLS itself (the handshake says when it starts), resize.

#![forbid(unsafe_code)]

pub mod client;
pub mod limits;
pub mod server;
pub mod uri;
mod wire;

pub use wire::block_sizes::{BlockSizeError, BlockSizes};
pub use wire::error::WireError;
pub use wire::flags::{ChunkFlags, ClientFlags, CommandFlags, HandshakeFlags, TransmissionFlags};
pub use wire::magic;
pub use wire::option::{InfoKind, OptionError, OptionKind, OptionReplyKind};
pub use wire::reply::{ChunkKind, ReplyForm, ReplyHeader, ReplyTo, StatusExtent};
pub use wire::request::{BadMagic, Request, RequestForm, RequestKind};

#[cfg(test)]
mod tests;
