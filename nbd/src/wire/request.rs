//! The request of the transmission phase.

use std::fmt;

use super::fields::Fields;
use super::flags::CommandFlags;
use super::magic;

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RequestKind {
    /// Return the bytes of a range.
    Read,
    /// Replace the bytes of a range by the payload.
    Write,
    /// End the connection once the requests in flight are done. There is no reply.
    Disconnect,
    /// Make every write that was replied to durable.
    Flush,
    /// Forget the bytes of a range.
    Trim,
    /// Make a range read as zeroes.
    WriteZeroes,
    /// Any other number.
    Unknown(u16),
}

impl RequestKind {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::Unknown(number) => number,
        }
    }

    /// The command that `number` stands for.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            6 => Self::WriteZeroes,
            _ => Self::Unknown(number),
        }
    }
}

/// A request as it stands on the wire. Nothing in it was checked but the magic number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// How it is to be done.
    pub flags: CommandFlags,
    /// What is to be done.
    pub kind: RequestKind,
    /// The client's mark, repeated in the reply. It may be used again once it was replied to.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes; 0 is legal.
    pub length: u32,
}

/// The stream is out of step: a request does not start with the magic number. The only way on is to close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadMagic(
    /// What stood in its place.
    pub u32,
);

impl fmt::Display for BadMagic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "A request starts with 0x{:08x} instead of 0x{:08x}", self.0, magic::REQUEST)
    }
}

impl std::error::Error for BadMagic {}

impl Request {
    /// Length of a request without its payload, in bytes.
    pub const SIZE: usize = 28;

    /// The request at the start of `input`; `None` while there are fewer than [`Request::SIZE`] bytes.
    ///
    /// # Errors
    /// [`BadMagic`] if the first four bytes are there and are not the magic number.
    #[inline]
    pub fn parse(input: &[u8]) -> Result<Option<Self>, BadMagic> {
        let mut fields = Fields::new(input);
        match fields.u32() {
            None => return Ok(None),
            Some(magic::REQUEST) => {}
            Some(other) => return Err(BadMagic(other)),
        }
        Ok(Self::parse_after_magic(fields))
    }

    /// The 28 bytes of this request. A payload follows them if it is a WRITE.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&magic::REQUEST.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.0.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.number().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// How many bytes follow the request on the wire.
    #[must_use]
    #[inline]
    pub const fn payload_size_bytes(&self) -> u32 {
        match self.kind {
            RequestKind::Write => self.length,
            _ => 0,
        }
    }

    /// Whether the reply waits until what was changed is durable.
    #[must_use]
    pub const fn is_durable(&self) -> bool {
        self.flags.contains(CommandFlags::FUA)
    }

    /// Whether it must be refused at once with ENOTSUP where it is not faster than writing zeroes.
    #[must_use]
    pub const fn is_fast_zero(&self) -> bool {
        self.flags.contains(CommandFlags::FAST_ZERO)
    }

    /// Whether a WRITE_ZEROES may give the range's space back.
    #[must_use]
    pub const fn may_punch_hole(&self) -> bool {
        !self.flags.contains(CommandFlags::NO_HOLE)
    }

    /// Whether a READ must be answered with one content chunk.
    #[must_use]
    pub const fn is_unfragmented(&self) -> bool {
        self.flags.contains(CommandFlags::DF)
    }

    #[inline]
    fn parse_after_magic(mut fields: Fields<'_>) -> Option<Self> {
        Some(Self {
            flags: CommandFlags(fields.u16()?),
            kind: RequestKind::from_number(fields.u16()?),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }
}
