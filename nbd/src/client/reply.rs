//! The replies a server sends in the transmission phase.

use std::fmt;

use crate::limits;
use crate::wire::error::WireError;
use crate::wire::fields::Fields;
use crate::wire::flags::ChunkFlags;
use crate::wire::magic;
use crate::wire::reply::{
    CHUNK_SIZE, ChunkKind, DATA_PREFIX_SIZE, ERROR_PREFIX_SIZE, EXTENDED_CHUNK_SIZE, HOLE_SIZE, SIMPLE_SIZE,
    StatusExtent,
};

/// The front of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// A simple reply. If it answers a READ and says success, the request's `length` bytes follow.
    Simple(SimpleReply),
    /// A chunk of a structured or extended reply. `payload_size_bytes` bytes follow.
    Chunk(ChunkHeader),
}

/// A simple reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimpleReply {
    /// Which request it answers.
    pub cookie: u64,
    /// `None` is success.
    pub error: Option<WireError>,
}

/// The header of a chunk of a structured or extended reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkHeader {
    /// Which request it answers.
    pub cookie: u64,
    /// What its payload is.
    pub kind: ChunkKind,
    /// Whether the reply ends with it.
    pub is_done: bool,
    /// How many bytes follow. For OFFSET_DATA that is 8 for the offset, then the data.
    pub payload_size_bytes: u32,
    /// The offset of the request, which an extended reply repeats.
    pub request_offset: Option<u64>,
}

/// A run of bytes that a content chunk covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Where it begins in the export, in bytes.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub size_bytes: u32,
}

/// The payload of an error chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorChunk<'a> {
    /// What went wrong.
    pub error: WireError,
    /// The server's message, if it is UTF-8.
    pub message: &'a str,
    /// Where it went wrong, if the server told.
    pub offset: Option<u64>,
}

/// The payload of a chunk of block status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusChunk {
    /// The context's id.
    pub context_id: u32,
    /// The runs from the request's offset on, at least one.
    pub extents: Vec<StatusExtent>,
}

/// The stream is out of step; the only way on is to close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyError {
    /// What should be a magic number.
    BadMagic(u32),
    /// A chunk whose payload length does not suit its kind, or exceeds every bound.
    BadChunkLength(ChunkKind, u64),
}

/// A chunk's payload breaks a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkPayloadError(
    /// Which kind of chunk.
    pub ChunkKind,
);

impl Reply {
    /// The reply at the start of `input` and how many bytes its header has; `None` while the header is not complete.
    ///
    /// # Errors
    /// If the stream is out of step.
    pub fn parse(input: &[u8]) -> Result<Option<(Self, usize)>, ReplyError> {
        let mut fields = Fields::new(input);
        match fields.u32() {
            None => Ok(None),
            Some(magic::SIMPLE_REPLY) => Ok(parse_simple(fields).map(|reply| (Self::Simple(reply), SIMPLE_SIZE))),
            Some(magic::STRUCTURED_REPLY) => {
                let Some((header, length)) = parse_chunk(fields, false) else { return Ok(None) };
                Ok(Some((Self::Chunk(checked_chunk(header, length)?), CHUNK_SIZE)))
            }
            Some(magic::EXTENDED_REPLY) => {
                let Some((header, length)) = parse_chunk(fields, true) else { return Ok(None) };
                Ok(Some((Self::Chunk(checked_chunk(header, length)?), EXTENDED_CHUNK_SIZE)))
            }
            Some(other) => Err(ReplyError::BadMagic(other)),
        }
    }
}

impl ChunkHeader {
    /// How many bytes of the payload stand in front of data: 8 for OFFSET_DATA, else the whole payload.
    #[must_use]
    pub const fn prefix_size_bytes(&self) -> u32 {
        match self.kind {
            ChunkKind::OffsetData => DATA_PREFIX_SIZE,
            _ => self.payload_size_bytes,
        }
    }

    /// The run that a content chunk covers, from the start of its payload (for OFFSET_DATA the first 8 bytes suffice).
    ///
    /// # Errors
    /// If this is no content chunk, `payload` is too short, or the run is empty.
    pub fn extent(&self, payload: &[u8]) -> Result<Extent, ChunkPayloadError> {
        let error = ChunkPayloadError(self.kind);
        let mut fields = Fields::new(payload);
        let offset = fields.u64().ok_or(error)?;
        let size_bytes = match self.kind {
            ChunkKind::OffsetData => self.payload_size_bytes.checked_sub(DATA_PREFIX_SIZE).ok_or(error)?,
            ChunkKind::OffsetHole => fields.u32().ok_or(error)?,
            _ => return Err(error),
        };
        if size_bytes == 0 { Err(error) } else { Ok(Extent { offset, size_bytes }) }
    }

    /// The context and runs in the whole `payload` of a chunk of block status.
    ///
    /// # Errors
    /// If this is no such chunk, or the payload breaks a rule.
    pub fn status(&self, payload: &[u8]) -> Result<StatusChunk, ChunkPayloadError> {
        let error = ChunkPayloadError(self.kind);
        let mut fields = Fields::new(payload);
        let context_id = fields.u32().ok_or(error)?;
        let mut extents = Vec::new();
        match self.kind {
            ChunkKind::BlockStatus => {
                while let Some((size, status)) = fields.u32().zip(fields.u32()) {
                    extents.push(StatusExtent { size_bytes: u64::from(size), status: u64::from(status) });
                }
            }
            ChunkKind::BlockStatusExtended => {
                let count = fields.u32().ok_or(error)?;
                while let Some((size_bytes, status)) = fields.u64().zip(fields.u64()) {
                    extents.push(StatusExtent { size_bytes, status });
                }
                if u32::try_from(extents.len()) != Ok(count) {
                    return Err(error);
                }
            }
            _ => return Err(error),
        }
        let is_legal = !extents.is_empty() && extents.iter().all(|extent| extent.size_bytes > 0);
        if is_legal && fields.rest().is_empty() { Ok(StatusChunk { context_id, extents }) } else { Err(error) }
    }

    /// The error in the whole `payload` of an error chunk. An unknown kind in the range of errors is read as far as
    /// all errors agree.
    ///
    /// # Errors
    /// If this is no error chunk, or the payload breaks a rule.
    pub fn error<'a>(&self, payload: &'a [u8]) -> Result<ErrorChunk<'a>, ChunkPayloadError> {
        let malformed = ChunkPayloadError(self.kind);
        if !self.kind.is_error() {
            return Err(malformed);
        }
        let mut fields = Fields::new(payload);
        let number = fields.u32().ok_or(malformed)?;
        let message_size = usize::from(fields.u16().ok_or(malformed)?);
        let message = std::str::from_utf8(fields.bytes(message_size).ok_or(malformed)?).unwrap_or_default();
        let offset = match self.kind {
            ChunkKind::ErrorOffset => Some(fields.u64().ok_or(malformed)?),
            _ => None,
        };
        if number == 0 {
            return Err(malformed);
        }
        Ok(ErrorChunk { error: WireError::from_number(number), message, offset })
    }
}

fn parse_simple(mut fields: Fields<'_>) -> Option<SimpleReply> {
    let number = fields.u32()?;
    let error = (number != 0).then(|| WireError::from_number(number));
    Some(SimpleReply { cookie: fields.u64()?, error })
}

/// The header, whose payload length is not in it yet, and that length.
fn parse_chunk(mut fields: Fields<'_>, is_extended: bool) -> Option<(ChunkHeader, u64)> {
    let flags = ChunkFlags(fields.u16()?);
    let kind = ChunkKind::from_number(fields.u16()?);
    let cookie = fields.u64()?;
    let request_offset = if is_extended { Some(fields.u64()?) } else { None };
    let length = if is_extended { fields.u64()? } else { u64::from(fields.u32()?) };
    let is_done = flags.contains(ChunkFlags::DONE);
    Some((ChunkHeader { cookie, kind, is_done, payload_size_bytes: 0, request_offset }, length))
}

fn checked_chunk(header: ChunkHeader, length: u64) -> Result<ChunkHeader, ReplyError> {
    /// Number, message and offset of the longest error.
    const ERROR_SIZE_MAX: u32 = ERROR_PREFIX_SIZE + 65_535 + 8;
    let error = ReplyError::BadChunkLength(header.kind, length);
    let length = u32::try_from(length).map_err(|_| error)?;
    let is_plausible = match header.kind {
        ChunkKind::None => length == 0,
        ChunkKind::OffsetData => length > DATA_PREFIX_SIZE && length - DATA_PREFIX_SIZE <= limits::DRAIN_SIZE_MAX,
        ChunkKind::OffsetHole => length == HOLE_SIZE,
        _ if header.kind.is_error() => (ERROR_PREFIX_SIZE..=ERROR_SIZE_MAX).contains(&length),
        _ => length <= limits::DRAIN_SIZE_MAX,
    };
    if is_plausible { Ok(ChunkHeader { payload_size_bytes: length, ..header }) } else { Err(error) }
}

impl fmt::Display for ReplyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic(number) => write!(formatter, "A reply starts with 0x{number:08x}"),
            Self::BadChunkLength(kind, size) => {
                write!(formatter, "A chunk of type {} has a payload of {size} bytes", kind.number())
            }
        }
    }
}

impl std::error::Error for ReplyError {}

impl fmt::Display for ChunkPayloadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "The payload of a chunk of type {} is malformed", self.0.number())
    }
}

impl std::error::Error for ChunkPayloadError {}
