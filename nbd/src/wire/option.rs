//! Options of the handshake: their numbers, and the layout of options and their replies.

use super::fields::Fields;
use super::magic;

/// Length of the header in front of an option's data, in bytes.
pub(crate) const OPTION_HEADER_SIZE: usize = 16;
/// Length of the header in front of an option reply's data, in bytes.
pub(crate) const OPTION_REPLY_HEADER_SIZE: usize = 20;
/// Zeroes that end the answer to EXPORT_NAME unless NO_ZEROES was negotiated, in bytes.
pub(crate) const EXPORT_NAME_ZEROES_SIZE: usize = 124;

/// What a client asks for during the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OptionKind {
    /// Choose an export; the old form, without errors.
    ExportName,
    /// End the connection.
    Abort,
    /// Name the exports.
    List,
    /// Encrypt the connection.
    StartTls,
    /// Describe an export.
    Info,
    /// Describe an export and choose it.
    Go,
    /// Use structured replies.
    StructuredReply,
    /// Name the metadata contexts of an export.
    ListMetaContext,
    /// Choose the metadata contexts that BLOCK_STATUS reports.
    SetMetaContext,
    /// Use requests and replies with lengths of 64 bits.
    ExtendedHeaders,
    /// Any other number.
    Unknown(u32),
}

impl OptionKind {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::ExtendedHeaders => 11,
            Self::Unknown(number) => number,
        }
    }

    /// The option that `number` stands for.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            _ => Self::Unknown(number),
        }
    }
}

/// Why an option was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OptionError {
    /// The option is not known.
    Unsupported,
    /// The server's configuration forbids it.
    Policy,
    /// The option's data break a rule.
    Invalid,
    /// The server's platform cannot do it.
    Platform,
    /// TLS must be started first.
    TlsRequired,
    /// The export is not known or not available.
    Unknown,
    /// The server is about to end.
    Shutdown,
    /// The client must ask for the block sizes and obey them.
    BlockSizeRequired,
    /// The option's data, or the answer, is too large.
    TooBig,
    /// Extended headers are in use.
    ExtendedHeadersRequired,
    /// Any other error number.
    Other(u32),
}

/// The bit that marks an option reply as an error.
const ERROR_BIT: u32 = 1 << 31;

impl OptionError {
    /// The reply type on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        ERROR_BIT
            | match self {
                Self::Unsupported => 1,
                Self::Policy => 2,
                Self::Invalid => 3,
                Self::Platform => 4,
                Self::TlsRequired => 5,
                Self::Unknown => 6,
                Self::Shutdown => 7,
                Self::BlockSizeRequired => 8,
                Self::TooBig => 9,
                Self::ExtendedHeadersRequired => 10,
                Self::Other(number) => number,
            }
    }

    const fn from_number(number: u32) -> Self {
        match number & !ERROR_BIT {
            1 => Self::Unsupported,
            2 => Self::Policy,
            3 => Self::Invalid,
            4 => Self::Platform,
            5 => Self::TlsRequired,
            6 => Self::Unknown,
            7 => Self::Shutdown,
            8 => Self::BlockSizeRequired,
            9 => Self::TooBig,
            10 => Self::ExtendedHeadersRequired,
            _ => Self::Other(number),
        }
    }
}

/// What an option reply says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OptionReplyKind {
    /// The option is done.
    Ack,
    /// One export of a list.
    Server,
    /// One piece of information on an export.
    Info,
    /// One metadata context.
    MetaContext,
    /// The option was refused.
    Error(OptionError),
    /// Any other number.
    Unknown(u32),
}

impl OptionReplyKind {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Ack => 1,
            Self::Server => 2,
            Self::Info => 3,
            Self::MetaContext => 4,
            Self::Error(error) => error.number(),
            Self::Unknown(number) => number,
        }
    }

    /// The reply that `number` stands for.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Ack,
            2 => Self::Server,
            3 => Self::Info,
            4 => Self::MetaContext,
            _ if number & ERROR_BIT != 0 => Self::Error(OptionError::from_number(number)),
            _ => Self::Unknown(number),
        }
    }
}

/// A piece of information on an export.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InfoKind {
    /// Size and transmission flags; always sent.
    Export,
    /// The canonical name.
    Name,
    /// A text for people.
    Description,
    /// The block sizes.
    BlockSize,
    /// Any other number.
    Unknown(u16),
}

impl InfoKind {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Export => 0,
            Self::Name => 1,
            Self::Description => 2,
            Self::BlockSize => 3,
            Self::Unknown(number) => number,
        }
    }

    /// The information that `number` stands for.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Export,
            1 => Self::Name,
            2 => Self::Description,
            3 => Self::BlockSize,
            _ => Self::Unknown(number),
        }
    }
}

/// The header of an option: which one, and how many bytes of data follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OptionHeader {
    pub(crate) option: OptionKind,
    pub(crate) length: u32,
}

impl OptionHeader {
    /// The header in `bytes`, or `None` if they are too few or do not start with the magic number.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u64()? != magic::OPTION {
            return None;
        }
        let option = OptionKind::from_number(fields.u32()?);
        Some(Self { option, length: fields.u32()? })
    }

    pub(crate) fn append_to(self, output: &mut Vec<u8>) {
        output.extend_from_slice(&magic::OPTION.to_be_bytes());
        output.extend_from_slice(&self.option.number().to_be_bytes());
        output.extend_from_slice(&self.length.to_be_bytes());
    }
}

/// The header of an option reply: to which option, what it says, and how many bytes of data follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OptionReplyHeader {
    pub(crate) option: OptionKind,
    pub(crate) kind: OptionReplyKind,
    pub(crate) length: u32,
}

impl OptionReplyHeader {
    /// The header in `bytes`, or `None` if they are too few or do not start with the magic number.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u64()? != magic::OPTION_REPLY {
            return None;
        }
        let option = OptionKind::from_number(fields.u32()?);
        let kind = OptionReplyKind::from_number(fields.u32()?);
        Some(Self { option, kind, length: fields.u32()? })
    }

    pub(crate) fn append_to(self, output: &mut Vec<u8>) {
        output.extend_from_slice(&magic::OPTION_REPLY.to_be_bytes());
        output.extend_from_slice(&self.option.number().to_be_bytes());
        output.extend_from_slice(&self.kind.number().to_be_bytes());
        output.extend_from_slice(&self.length.to_be_bytes());
    }
}
