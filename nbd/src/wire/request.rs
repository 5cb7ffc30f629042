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
    /// Make later reads of a range fast; a hint.
    Cache,
    /// Make a range read as zeroes.
    WriteZeroes,
    /// Describe a range in the chosen metadata contexts.
    BlockStatus,
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
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
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
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => Self::Unknown(number),
        }
    }
}

/// How requests stand on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum RequestForm {
    /// 28 bytes, with a length of 32 bits.
    #[default]
    Compact,
    /// 32 bytes, with a length of 64 bits: extended headers were negotiated.
    Extended,
}

impl RequestForm {
    /// Length of a request without its payload, in bytes.
    #[must_use]
    #[inline]
    pub const fn size(self) -> usize {
        match self {
            Self::Compact => 28,
            Self::Extended => Request::SIZE_MAX,
        }
    }

    const fn magic(self) -> u32 {
        match self {
            Self::Compact => magic::REQUEST,
            Self::Extended => magic::EXTENDED_REQUEST,
        }
    }
}

/// A request as it stands on the wire. Nothing in it was checked but the magic number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// How it stands on the wire.
    pub form: RequestForm,
    /// How it is to be done.
    pub flags: CommandFlags,
    /// What is to be done.
    pub kind: RequestKind,
    /// The client's mark, repeated in the reply. It may be used again once it was replied to.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes, or of the payload with PAYLOAD_LEN; 0 is legal. Below 2^32 in the compact form.
    pub length: u64,
}

/// The stream is out of step: a request does not start with the magic number. The only way on is to close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadMagic(
    /// What stood in its place.
    pub u32,
);

impl fmt::Display for BadMagic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "A request starts with 0x{:08x}, which is not the magic number", self.0)
    }
}

impl std::error::Error for BadMagic {}

impl Request {
    /// Length of the longest request without its payload, in bytes.
    pub const SIZE_MAX: usize = 32;

    /// The request at the start of `input`; `None` while there are fewer than [`RequestForm::size`] bytes.
    ///
    /// # Errors
    /// [`BadMagic`] if the first four bytes are there and are not the magic number.
    #[inline]
    pub fn parse(input: &[u8], form: RequestForm) -> Result<Option<Self>, BadMagic> {
        let mut fields = Fields::new(input);
        match fields.u32() {
            None => return Ok(None),
            Some(number) if number == form.magic() => {}
            Some(other) => return Err(BadMagic(other)),
        }
        Ok(Self::parse_after_magic(fields, form))
    }

    /// Appends the request in its form. A payload follows it if it has one.
    ///
    /// # Panics
    /// If the length does not fit the form.
    pub fn append_to(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.form.magic().to_be_bytes());
        output.extend_from_slice(&self.flags.0.to_be_bytes());
        output.extend_from_slice(&self.kind.number().to_be_bytes());
        output.extend_from_slice(&self.cookie.to_be_bytes());
        output.extend_from_slice(&self.offset.to_be_bytes());
        match self.form {
            RequestForm::Compact => {
                let length = u32::try_from(self.length).expect("the compact form has lengths below 4 GiB");
                output.extend_from_slice(&length.to_be_bytes());
            }
            RequestForm::Extended => output.extend_from_slice(&self.length.to_be_bytes()),
        }
    }

    /// The bytes of this request. A payload follows them if it has one.
    ///
    /// # Panics
    /// If the length does not fit the form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SIZE_MAX);
        self.append_to(&mut bytes);
        bytes
    }

    /// How many bytes follow the request on the wire: those of a write, whatever its flags, and with extended headers
    /// those of any request with PAYLOAD_LEN.
    #[must_use]
    #[inline]
    pub const fn payload_size_bytes(&self) -> u64 {
        let is_announced = matches!(self.form, RequestForm::Extended) && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        match self.kind {
            RequestKind::Write => self.length,
            _ if is_announced => self.length,
            _ => 0,
        }
    }

    /// Whether BLOCK_STATUS is to report one extent.
    #[must_use]
    pub const fn wants_one_extent(&self) -> bool {
        self.flags.contains(CommandFlags::REQ_ONE)
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
    fn parse_after_magic(mut fields: Fields<'_>, form: RequestForm) -> Option<Self> {
        Some(Self {
            form,
            flags: CommandFlags(fields.u16()?),
            kind: RequestKind::from_number(fields.u16()?),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: match form {
                RequestForm::Compact => u64::from(fields.u32()?),
                RequestForm::Extended => fields.u64()?,
            },
        })
    }
}
