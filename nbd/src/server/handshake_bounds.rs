//! What the owner of a handshake allows: how much a client may send, and whether it is encrypted.

use crate::limits;

/// Whether a connection is encrypted (specification, "TLS versions").
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TlsOffer {
    /// STARTTLS is not supported.
    #[default]
    Off,
    /// A client may start TLS; exports may require it.
    Allowed,
    /// Nothing is answered before TLS is there, but STARTTLS and ABORT.
    Required,
}

/// What a client may send before it has chosen an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandshakeBounds {
    /// How many options; [`limits::OPTION_COUNT_PER_EXPORT`] more for each export that it was told of.
    pub option_count_max: u32,
    /// How long the data of an option may be that is read and dropped, in bytes; a longer one closes. Counts as
    /// [`limits::OPTION_SKIP_SIZE_MAX`] if it exceeds that.
    pub option_size_bytes_max: u32,
}

impl Default for HandshakeBounds {
    fn default() -> Self {
        Self { option_count_max: limits::OPTION_COUNT_MAX, option_size_bytes_max: limits::OPTION_SKIP_SIZE_MAX }
    }
}
