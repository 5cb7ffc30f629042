//! The headers of simple replies and of the chunks of structured replies.

use super::error::WireError;
use super::fields::truncated;
use super::flags::ChunkFlags;
use super::magic;
use super::request::Request;
use crate::limits;

/// Length of a simple reply without payload, in bytes.
pub(crate) const SIMPLE_SIZE: usize = 16;
/// Length of a chunk's header in a structured reply, in bytes.
pub(crate) const CHUNK_SIZE: usize = 20;
/// What stands in front of the data in an OFFSET_DATA chunk: the offset.
pub(crate) const DATA_PREFIX_SIZE: u32 = 8;
/// What an OFFSET_HOLE chunk holds: offset and length.
pub(crate) const HOLE_SIZE: u32 = 12;
/// What stands in front of the message in an ERROR chunk: number and length of the message.
pub(crate) const ERROR_PREFIX_SIZE: u32 = 6;
/// Length of a chunk's header with extended headers, in bytes.
pub(crate) const EXTENDED_CHUNK_SIZE: usize = 32;
/// The longest header: that of a hole.
const HEADER_SIZE_MAX: usize = EXTENDED_CHUNK_SIZE + 12;

/// What a chunk of a structured reply holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ChunkKind {
    /// Nothing.
    None,
    /// An offset and the bytes there.
    OffsetData,
    /// An offset and a length that reads as zeroes.
    OffsetHole,
    /// A metadata context and its runs.
    BlockStatus,
    /// The same with lengths of 64 bits.
    BlockStatusExtended,
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
            Self::BlockStatus => 5,
            Self::BlockStatusExtended => 6,
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
            5 => Self::BlockStatus,
            6 => Self::BlockStatusExtended,
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
/// [`ReplyHeader::as_bytes`], then the payload (if it is a reply to a READ) from where it lies. Made by [`ReplyTo`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyHeader {
    bytes: [u8; HEADER_SIZE_MAX],
    len: u8,
}

impl ReplyHeader {
    /// The bytes to send.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Writes behind what is there.
    #[inline]
    fn push<const N: usize>(&mut self, bytes: [u8; N]) {
        let len = usize::from(self.len);
        self.bytes[len..len + N].copy_from_slice(&bytes);
        self.len += u8::try_from(N).expect("fields have at most 8 bytes");
    }
}

impl AsRef<[u8]> for ReplyHeader {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// What was agreed on about replies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum ReplyForm {
    /// Simple replies only.
    #[default]
    Simple,
    /// Chunks for what a simple reply cannot carry: reads, messages of errors, block status.
    Structured,
    /// Chunks with lengths of 64 bits, for everything.
    Extended,
}

/// Which request a reply answers, and in which form: makes all that the reply is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyTo {
    form: ReplyForm,
    cookie: u64,
    /// The request's.
    offset: u64,
}

/// A run of a metadata context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusExtent {
    /// Its length in bytes, never 0.
    pub size_bytes: u64,
    /// What the context says of it. Only 32 bits are told without extended headers.
    pub status: u64,
}

impl ReplyTo {
    /// To `request`, on a connection that agreed on `form`.
    #[must_use]
    #[inline]
    pub const fn new(form: ReplyForm, request: &Request) -> Self {
        Self { form, cookie: request.cookie, offset: request.offset }
    }

    /// The whole reply to a request that succeeded and returns nothing.
    #[must_use]
    #[inline]
    pub fn success(self) -> ReplyHeader {
        match self.form {
            ReplyForm::Simple | ReplyForm::Structured => self.simple(None),
            ReplyForm::Extended => self.none(),
        }
    }

    /// A chunk that says only that the request succeeded and that the reply ends. A simple reply where there are no
    /// chunks.
    #[must_use]
    #[inline]
    pub fn none(self) -> ReplyHeader {
        self.chunk_or_simple(ChunkFlags::DONE, ChunkKind::None, 0)
    }

    /// The front of `data_size_bytes` bytes from `offset`, which must follow. `is_done` ends the reply; no error can be
    /// sent after it. Where there are no chunks it is the one reply to the READ, and the data must be all of it.
    ///
    /// # Panics
    /// If `data_size_bytes` exceeds [`limits::DRAIN_SIZE_MAX`], which no checked request does.
    #[must_use]
    #[inline]
    pub fn data(self, offset: u64, data_size_bytes: u32, is_done: bool) -> ReplyHeader {
        assert!(data_size_bytes <= limits::DRAIN_SIZE_MAX, "data chunk of {data_size_bytes} bytes");
        let flags = ChunkFlags::NONE.with_if(is_done, ChunkFlags::DONE);
        let mut header = self.chunk_or_simple(flags, ChunkKind::OffsetData, DATA_PREFIX_SIZE + data_size_bytes);
        if self.form != ReplyForm::Simple {
            header.push(offset.to_be_bytes());
        }
        header
    }

    /// The front of the reply to a READ that succeeded whole: the request's `length` bytes must follow. All of them must
    /// be at hand, since no error can be sent after this header.
    ///
    /// # Panics
    /// If the request is longer than any that passes [`RequestRules::check`](crate::server::RequestRules::check).
    #[must_use]
    #[inline]
    pub fn read(self, request: &Request) -> ReplyHeader {
        let length = u32::try_from(request.length).expect("a checked request has a bounded payload");
        if length == 0 { self.none() } else { self.data(request.offset, length, true) }
    }

    /// A whole chunk that says that `hole_size_bytes` bytes from `offset` read as zeroes. `hole_size_bytes` must not
    /// be 0.
    ///
    /// # Panics
    /// Where there are no chunks.
    #[must_use]
    #[inline]
    pub fn hole(self, offset: u64, hole_size_bytes: u32, is_done: bool) -> ReplyHeader {
        assert!(self.form != ReplyForm::Simple, "a simple reply cannot tell a hole");
        let flags = ChunkFlags::NONE.with_if(is_done, ChunkFlags::DONE);
        let mut header = self.chunk_or_simple(flags, ChunkKind::OffsetHole, HOLE_SIZE);
        header.push(offset.to_be_bytes());
        header.push(hole_size_bytes.to_be_bytes());
        header
    }

    /// The whole reply to a request that failed, without a message.
    #[must_use]
    #[inline]
    pub fn error(self, error: WireError) -> ReplyHeader {
        if self.form == ReplyForm::Simple { self.simple(Some(error)) } else { self.error_front(error, 0) }
    }

    /// Appends the whole reply to a request that failed, with a message for people where the form can carry one; it is
    /// cut to [`limits::MESSAGE_SIZE_MAX`]. It also ends a reply of several chunks.
    pub fn append_error(self, output: &mut Vec<u8>, error: WireError, message: &str) {
        if self.form == ReplyForm::Simple {
            output.extend_from_slice(self.simple(Some(error)).as_bytes());
            return;
        }
        let message = truncated(message, limits::MESSAGE_SIZE_MAX);
        let message_size = u16::try_from(message.len()).expect("the message was cut to less than 64 KiB");
        output.extend_from_slice(self.error_front(error, message_size).as_bytes());
        output.extend_from_slice(message.as_bytes());
    }

    /// Appends a chunk with what a metadata context says: the runs from the request's offset on, in order. Neighbours of
    /// one status are sent as one.
    ///
    /// # Panics
    /// Where there are no chunks; if there is no run, or more than [`limits::STATUS_EXTENT_COUNT_MAX`]; if a run does
    /// not fit the form.
    pub fn append_status(
        self,
        output: &mut Vec<u8>,
        context_id: u32,
        extents: impl IntoIterator<Item = StatusExtent>,
        is_done: bool,
    ) {
        assert!(self.form != ReplyForm::Simple, "a simple reply cannot tell a status");
        let mut merged: Vec<StatusExtent> = Vec::new();
        for extent in extents {
            match merged.last_mut() {
                Some(last) if last.status == extent.status => last.size_bytes += extent.size_bytes,
                _ => merged.push(extent),
            }
        }
        assert!(!merged.is_empty(), "a status has at least one run");
        assert!(merged.len() <= limits::STATUS_EXTENT_COUNT_MAX, "a status of {} runs", merged.len());
        let count = u32::try_from(merged.len()).expect("the bound is below 2^32");
        let flags = ChunkFlags::NONE.with_if(is_done, ChunkFlags::DONE);
        if self.form == ReplyForm::Extended {
            let mut header = self.chunk_or_simple(flags, ChunkKind::BlockStatusExtended, 8 + 16 * count);
            header.push(context_id.to_be_bytes());
            header.push(count.to_be_bytes());
            output.extend_from_slice(header.as_bytes());
            for extent in merged {
                output.extend_from_slice(&extent.size_bytes.to_be_bytes());
                output.extend_from_slice(&extent.status.to_be_bytes());
            }
            return;
        }
        let mut header = self.chunk_or_simple(flags, ChunkKind::BlockStatus, 4 + 8 * count);
        header.push(context_id.to_be_bytes());
        output.extend_from_slice(header.as_bytes());
        for extent in merged {
            let size = u32::try_from(extent.size_bytes).expect("a request of 32 bits has runs of 32 bits");
            let status = u32::try_from(extent.status).expect("a status of 32 bits");
            output.extend_from_slice(&size.to_be_bytes());
            output.extend_from_slice(&status.to_be_bytes());
        }
    }

    fn error_front(self, error: WireError, message_size: u16) -> ReplyHeader {
        let length = ERROR_PREFIX_SIZE + u32::from(message_size);
        let mut header = self.chunk_or_simple(ChunkFlags::DONE, ChunkKind::Error, length);
        header.push(error.number().to_be_bytes());
        header.push(message_size.to_be_bytes());
        header
    }

    #[inline]
    fn simple(self, error: Option<WireError>) -> ReplyHeader {
        let mut header = ReplyHeader { bytes: [0; HEADER_SIZE_MAX], len: 0 };
        header.push(magic::SIMPLE_REPLY.to_be_bytes());
        header.push(error.map_or(0, WireError::number).to_be_bytes());
        header.push(self.cookie.to_be_bytes());
        header
    }

    #[inline]
    fn chunk_or_simple(self, flags: ChunkFlags, kind: ChunkKind, length: u32) -> ReplyHeader {
        let number = match self.form {
            ReplyForm::Simple => return self.simple(None),
            ReplyForm::Structured => magic::STRUCTURED_REPLY,
            ReplyForm::Extended => magic::EXTENDED_REPLY,
        };
        let mut header = ReplyHeader { bytes: [0; HEADER_SIZE_MAX], len: 0 };
        header.push(number.to_be_bytes());
        header.push(flags.0.to_be_bytes());
        header.push(kind.number().to_be_bytes());
        header.push(self.cookie.to_be_bytes());
        if self.form == ReplyForm::Extended {
            header.push(self.offset.to_be_bytes());
            header.push(u64::from(length).to_be_bytes());
        } else {
            header.push(length.to_be_bytes());
        }
        header
    }
}
