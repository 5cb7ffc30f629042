//! Why a connection ends during the handshake.

use std::fmt;

use super::export::FindError;
use crate::wire::flags::ClientFlags;
use crate::wire::option::OptionKind;

/// Why a connection ends during the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// The client sent ABORT.
    Aborted,
    /// The handshake already ended with a chosen export.
    AlreadyChosen,
    /// The client set a flag that was not offered.
    UnknownClientFlags(ClientFlags),
    /// An option does not start with the magic number.
    BadOptionMagic,
    /// A client without fixed newstyle sent something else than EXPORT_NAME.
    NotFixedNewstyle(OptionKind),
    /// An option announces more data than are dropped for anyone, in bytes.
    OptionTooLong(u32),
    /// The client sent more options than it may.
    TooManyOptions,
    /// The name in EXPORT_NAME is too long, not UTF-8, or holds a NUL. EXPORT_NAME has no error reply.
    BadExportName,
    /// The export of EXPORT_NAME is not to be had.
    NoExport(FindError),
    /// The export needs block sizes, of which EXPORT_NAME cannot speak.
    BlockSizesNeeded,
    /// The client chose by EXPORT_NAME although extended headers were negotiated.
    ExportNameWithExtendedHeaders,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => formatter.write_str("The client aborted the handshake"),
            Self::AlreadyChosen => formatter.write_str("The handshake is over"),
            Self::UnknownClientFlags(flags) => write!(formatter, "The client set unknown flags 0x{:08x}", flags.0),
            Self::BadOptionMagic => formatter.write_str("An option does not start with the magic number"),
            Self::NotFixedNewstyle(option) => {
                write!(formatter, "A client without fixed newstyle sent option {}", option.number())
            }
            Self::OptionTooLong(size) => write!(formatter, "An option has {size} bytes of data, which is too much"),
            Self::TooManyOptions => formatter.write_str("The client sent too many options"),
            Self::BadExportName => formatter.write_str("The client chose an export by a name that is no valid string"),
            Self::NoExport(error) => write!(formatter, "The client chose an export it does not get: {error}"),
            Self::ExportNameWithExtendedHeaders => {
                formatter.write_str("The client chose an export by an option that does not go with extended headers")
            }
            Self::BlockSizesNeeded => {
                formatter.write_str("The client chose an export with block sizes by an option that cannot tell them")
            }
        }
    }
}

impl std::error::Error for CloseReason {}
