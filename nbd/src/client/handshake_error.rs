//! How a server can break the protocol during the handshake.

use std::fmt;

use crate::limits;
use crate::wire::option::{OptionKind, OptionReplyKind};

/// How a server broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandshakeError {
    /// It is no NBD server.
    BadGreeting,
    /// It does not speak fixed newstyle.
    NotFixedNewstyle,
    /// A reply does not start with the magic number.
    BadReplyMagic,
    /// A reply answers an option that was not asked.
    WrongOption(OptionKind),
    /// A reply that does not belong to its option.
    UnexpectedReply(OptionReplyKind),
    /// A reply with more data than are taken, in bytes.
    ReplyTooLong(u32),
    /// The data of a reply break a rule.
    BadReply(OptionReplyKind),
    /// A list of too many exports, or too many pieces of information.
    TooManyReplies,
    /// Size and flags of the export are missing.
    NoExportInfo,
    /// The handshake is over.
    AlreadyOver,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadGreeting => formatter.write_str("The peer does not greet as an NBD server; check the address"),
            Self::NotFixedNewstyle => formatter.write_str("The server does not speak the fixed newstyle handshake"),
            Self::BadReplyMagic => formatter.write_str("An option reply does not start with the magic number"),
            Self::WrongOption(option) => {
                write!(formatter, "A reply to option {}, which was not asked", option.number())
            }
            Self::UnexpectedReply(kind) => write!(formatter, "A reply of type {} to the wrong option", kind.number()),
            Self::ReplyTooLong(size) => write!(
                formatter,
                "An option reply has {size} bytes of data; at most {} are accepted",
                limits::OPTION_REPLY_DATA_SIZE_MAX
            ),
            Self::BadReply(kind) => write!(formatter, "An option reply of type {} has malformed data", kind.number()),
            Self::TooManyReplies => formatter.write_str("The server sent too many replies to one option"),
            Self::NoExportInfo => formatter.write_str("The server did not tell the export's size"),
            Self::AlreadyOver => formatter.write_str("The handshake is over"),
        }
    }
}

impl std::error::Error for HandshakeError {}
