//! The headers of simple replies and of the chunks of structured replies.

use super::error::WireError;
use super::fields::truncated;
use super::flags::ChunkFlags;
use super::magic;
use crate::limits;

/// Length of a simple reply without payload, in bytes.
pub(crate) const SIMPLE_SIZE: usize = 16;
/// Length of a chunk's header, in bytes.
pub(crate) const CHUNK_SIZE: usize = 20;
/// What stands in front of the data in an OFFSET_DATA chunk: the offset.
pub(crate) const DATA_PREFIX_SIZE: u32 = 8;
/// What an OFFSET_HOLE chunk holds: offset and length.
pub(crate) const HOLE_SIZE: u32 = 12;
/// What stands in front of the message in an ERROR chunk: number and length of the message.
pub(crate) const ERROR_PREFIX_SIZE: u32 = 6;
/// The longest header: that of a hole.
const HEADER_SIZE_MAX: usize = CHUNK_SIZE + 12;

/// What a chunk of a structured reply holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ChunkKind {
    /// Nothing.
    None,
    /// An offset and the bytes there.
    OffsetData,
    /// An offset and a length that reads as zeroes.
    OffsetHole,
    /// An error that concerns the whole request, and a message.
    Error,
    /// The same, with the offset at which it happened.
    ErrorOffset,
    /// Any other number.
    Unknown(u16),
}

/// The bit that marks a chunk as an error.
const ERROR_BIT: u16 = 1 << 15;

impl ChunkKind {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::None => 0,
            Self::OffsetData => 1,
            Self::OffsetHole => 2,
            Self::Error => ERROR_BIT | 1,
            Self::ErrorOffset => ERROR_BIT | 2,
            Self::Unknown(number) => number,
        }
    }

    /// The content that `number` stands for.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::None,
            1 => Self::OffsetData,
            2 => Self::OffsetHole,
            _ if number == ERROR_BIT | 1 => Self::Error,
            _ if number == ERROR_BIT | 2 => Self::ErrorOffset,
            _ => Self::Unknown(number),
        }
    }

    /// Whether the chunk says that the request failed; also true of unknown kinds in the range of errors.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.number() & ERROR_BIT != 0
    }
}

/// Everything of a reply that stands in front of its payload. A `Copy` value of a few bytes; send
/// [`ReplyHeader::as_bytes`], then the payload (if it is a reply to a READ) from where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyHeader {
    bytes: [u8; HEADER_SIZE_MAX],
    len: u8,
}

impl ReplyHeader {
    /// A simple reply: success, or the error. Nothing follows an error, and nothing a success unless it answers a READ.
    #[must_use]
    #[inline]
    pub fn simple(cookie: u64, error: Option<WireError>) -> Self {
        let mut header = Self { bytes: [0; HEADER_SIZE_MAX], len: 16 };
        header.bytes[0..4].copy_from_slice(&magic::SIMPLE_REPLY.to_be_bytes());
        header.bytes[4..8].copy_from_slice(&error.map_or(0, WireError::number).to_be_bytes());
        header.bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        header
    }

    /// A chunk that says only that the request succeeded and that the reply ends.
    #[must_use]
    #[inline]
    pub fn none(cookie: u64) -> Self {
        Self::chunk(cookie, ChunkFlags::DONE, ChunkKind::None, 0)
    }

    /// The front of a chunk of `data_size_bytes` bytes from `offset`, which must follow. `is_done` ends the reply; no
    /// error can be sent after it.
    ///
    /// # Panics
    /// If `data_size_bytes` exceeds [`limits::DRAIN_SIZE_MAX`], which no checked request does.
    #[must_use]
    #[inline]
    pub fn offset_data(cookie: u64, offset: u64, data_size_bytes: u32, is_done: bool) -> Self {
        assert!(data_size_bytes <= limits::DRAIN_SIZE_MAX, "data chunk of {data_size_bytes} bytes");
        let flags = ChunkFlags::NONE.with_if(is_done, ChunkFlags::DONE);
        let mut header = Self::chunk(cookie, flags, ChunkKind::OffsetData, DATA_PREFIX_SIZE + data_size_bytes);
        header.bytes[20..28].copy_from_slice(&offset.to_be_bytes());
        header.len = 28;
        header
    }

    /// A whole chunk that says that `hole_size_bytes` bytes from `offset` read as zeroes. `hole_size_bytes` must not
    /// be 0.
    #[must_use]
    #[inline]
    pub fn offset_hole(cookie: u64, offset: u64, hole_size_bytes: u32, is_done: bool) -> Self {
        let flags = ChunkFlags::NONE.with_if(is_done, ChunkFlags::DONE);
        let mut header = Self::chunk(cookie, flags, ChunkKind::OffsetHole, HOLE_SIZE);
        header.bytes[20..28].copy_from_slice(&offset.to_be_bytes());
        header.bytes[28..32].copy_from_slice(&hole_size_bytes.to_be_bytes());
        header.len = 32;
        header
    }

    /// A whole chunk that ends the reply with an error and no message.
    #[must_use]
    #[inline]
    pub fn error(cookie: u64, error: WireError) -> Self {
        let mut header = Self::error_front(cookie, error, 0);
        header.len = 26;
        header
    }

    /// Appends a chunk that ends the reply with an error and a message for people. The message is cut to
    /// [`limits::MESSAGE_SIZE_MAX`].
    pub fn append_error(output: &mut Vec<u8>, cookie: u64, error: WireError, message: &str) {
        let message = truncated(message, limits::MESSAGE_SIZE_MAX);
        let message_size = u16::try_from(message.len()).expect("the message was cut to less than 64 KiB");
        let header = Self::error_front(cookie, error, message_size);
        output.extend_from_slice(header.as_bytes());
        output.extend_from_slice(message.as_bytes());
    }

    /// The bytes to send.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn error_front(cookie: u64, error: WireError, message_size: u16) -> Self {
        let length = ERROR_PREFIX_SIZE + u32::from(message_size);
        let mut header = Self::chunk(cookie, ChunkFlags::DONE, ChunkKind::Error, length);
        header.bytes[20..24].copy_from_slice(&error.number().to_be_bytes());
        header.bytes[24..26].copy_from_slice(&message_size.to_be_bytes());
        header.len = 26;
        header
    }

    fn chunk(cookie: u64, flags: ChunkFlags, kind: ChunkKind, length: u32) -> Self {
        let mut header = Self { bytes: [0; HEADER_SIZE_MAX], len: 20 };
        header.bytes[0..4].copy_from_slice(&magic::STRUCTURED_REPLY.to_be_bytes());
        header.bytes[4..6].copy_from_slice(&flags.0.to_be_bytes());
        header.bytes[6..8].copy_from_slice(&kind.number().to_be_bytes());
        header.bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        header.bytes[16..20].copy_from_slice(&length.to_be_bytes());
        header
    }
}

impl AsRef<[u8]> for ReplyHeader {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}
