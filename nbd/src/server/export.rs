//! What the owner tells of an export, and how the handshake asks for it.

use std::fmt;

use crate::limits;
use crate::wire::block_sizes::BlockSizes;
use crate::wire::flags::TransmissionFlags;
use crate::wire::reply::ReplyForm;

/// One export, as the server's owner describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// The canonical name. May differ from the name asked for (a client may ask for the default export by the empty
    /// name). A name that exceeds [`limits::NAME_SIZE_MAX`] or holds a NUL is not sent.
    pub name: String,
    /// A text for people, sent to clients that ask for it. The same bounds.
    pub description: Option<String>,
    /// Size in bytes. A multiple of the minimum block size, or clients that obey the block sizes cannot reach the end.
    pub size_bytes: u64,
    /// What can be done with it.
    pub features: ExportFeatures,
    /// How requests must be shaped.
    pub block_sizes: BlockSizes,
    /// The longest READ or WRITE that is accepted, in bytes, whatever `block_sizes` advises. Counts as
    /// [`limits::DRAIN_SIZE_MAX`] if it exceeds that, and as the maximum block size if it is below that.
    pub payload_size_bytes_max: u32,
    /// The metadata contexts that are shown to clients. More may be had by name: see [`Exports::has_context`].
    pub contexts: Vec<String>,
}

/// What can be done with an export. All `false` is a writable export without any optional command.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ExportFeatures {
    /// Commands that change the export are refused with EPERM; TRIM and WRITE_ZEROES are not offered.
    pub is_read_only: bool,
    /// FLUSH is offered.
    pub has_flush: bool,
    /// The FUA flag is offered, and accepted on every command.
    pub has_fua: bool,
    /// TRIM is offered.
    pub has_trim: bool,
    /// WRITE_ZEROES is offered.
    pub has_write_zeroes: bool,
    /// FAST_ZERO is offered (with WRITE_ZEROES only). The owner must then answer ENOTSUP at once where zeroing is not
    /// fast.
    pub has_fast_zero: bool,
    /// CACHE is offered.
    pub has_cache: bool,
    /// A flush on one connection covers the replied writes of all, and all read the same bytes.
    pub is_multi_connection_safe: bool,
    /// Access is best in rising order.
    pub is_rotational: bool,
}

impl Export {
    /// An export with default block sizes, no description, and room for the payloads that clients are known to send.
    #[must_use]
    pub fn new(name: impl Into<String>, size_bytes: u64, features: ExportFeatures) -> Self {
        Self {
            name: name.into(),
            description: None,
            size_bytes,
            features,
            block_sizes: BlockSizes::DEFAULT,
            payload_size_bytes_max: limits::PAYLOAD_SIZE_DEFAULT,
            contexts: Vec::new(),
        }
    }

    /// The flags a client is told. Two depend on the connection: DF is offered where replies have chunks, and a payload of
    /// BLOCK_STATUS with extended headers and a chosen metadata context.
    #[must_use]
    pub fn transmission_flags(&self, form: ReplyForm, has_contexts: bool) -> TransmissionFlags {
        let features = self.features;
        let has_write_zeroes = features.has_write_zeroes && !features.is_read_only;
        TransmissionFlags::HAS_FLAGS
            .with_if(features.is_read_only, TransmissionFlags::READ_ONLY)
            .with_if(features.has_flush, TransmissionFlags::SEND_FLUSH)
            .with_if(features.has_fua, TransmissionFlags::SEND_FUA)
            .with_if(features.is_rotational, TransmissionFlags::ROTATIONAL)
            .with_if(features.has_trim && !features.is_read_only, TransmissionFlags::SEND_TRIM)
            .with_if(has_write_zeroes, TransmissionFlags::SEND_WRITE_ZEROES)
            .with_if(form != ReplyForm::Simple, TransmissionFlags::SEND_DF)
            .with_if(features.has_cache, TransmissionFlags::SEND_CACHE)
            .with_if(form == ReplyForm::Extended && has_contexts, TransmissionFlags::BLOCK_STATUS_PAYLOAD)
            .with_if(features.is_multi_connection_safe, TransmissionFlags::CAN_MULTI_CONN)
            .with_if(has_write_zeroes && features.has_fast_zero, TransmissionFlags::SEND_FAST_ZERO)
    }
}

/// What the handshake asks its owner. Called while a client negotiates: it must not wait, and should not open the
/// export's storage.
pub trait Exports {
    /// The names that LIST shows, in the order to show them.
    fn list(&self) -> Vec<String>;

    /// The export that a client means by `name`; the empty name is the default export. `name` comes from the peer: at
    /// most [`limits::NAME_SIZE_MAX`] bytes, no NUL.
    ///
    /// # Errors
    /// Why this client does not get it.
    fn find(&self, name: &str) -> Result<Export, FindError>;

    /// Whether `export`, which was just found, has the metadata context `name`; by default those that it shows. `name`
    /// comes from the peer.
    fn has_context(&self, export: &Export, name: &str) -> bool {
        export.contexts.iter().any(|context| context == name)
    }
}

/// Why a client does not get an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FindError {
    /// There is no such export.
    Unknown,
    /// There is one, but it cannot be served now.
    Unavailable,
    /// The client may not use it.
    Forbidden,
    /// The client must start TLS to use it. Only while it has not.
    TlsRequired,
    /// It has as many connections as it may have.
    Crowded,
    /// Somebody has it who must be the only one to write it, and this client might write too.
    HasWriter,
    /// The server is about to end.
    ShuttingDown,
}

impl fmt::Display for FindError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unknown => "The export is not known",
            Self::Unavailable => "The export is not available now",
            Self::Forbidden => "The export is not open to this client",
            Self::TlsRequired => "The export needs TLS",
            Self::Crowded => "The export has as many connections as it may have",
            Self::HasWriter => "The export has a writer that must be the only one",
            Self::ShuttingDown => "The server is shutting down",
        })
    }
}

impl std::error::Error for FindError {}
