//! The rules a request must keep, and the replies to it.
//!
//! [`RequestRules::check`] gives the protocol's error exactly (specification, "Request types"). It is called for each
//! request: everything here is a `Copy` value and nothing allocates.

use super::export::Export;
use crate::limits;
use crate::wire::error::WireError;
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::reply::ReplyHeader;
use crate::wire::request::{Request, RequestKind};

/// What the requests of one connection are judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestRules {
    /// Size of the export in bytes.
    size_bytes: u64,
    /// The flags the client was told.
    flags: TransmissionFlags,
    /// Offsets and lengths have no bit in common with this.
    alignment_mask: u32,
    /// The longest READ or WRITE, in bytes.
    payload_size_bytes_max: u32,
}

/// Why a request is not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Read and drop `drain_size_bytes` bytes that follow the request, answer with `error`, and go on.
    Answer {
        /// What the reply says.
        error: WireError,
        /// A message for people, which a structured reply can carry.
        message: &'static str,
        /// The refused payload, in bytes; at most [`limits::DRAIN_SIZE_MAX`]. Until it was dropped, the next request
        /// does not begin.
        drain_size_bytes: u32,
    },
    /// The payload is too long to be dropped: finish what is in flight and close.
    Close,
}

/// Error and message of a refusal.
type Violation = (WireError, &'static str);

impl RequestRules {
    /// The rules for a connection to `export`.
    #[must_use]
    pub fn new(export: &Export, has_structured_replies: bool) -> Self {
        let payload_size_bytes_max = export.payload_size_bytes_max.max(export.block_sizes.max());
        Self {
            size_bytes: export.size_bytes,
            flags: export.transmission_flags(has_structured_replies),
            alignment_mask: export.block_sizes.min() - 1,
            payload_size_bytes_max: payload_size_bytes_max.min(limits::DRAIN_SIZE_MAX),
        }
    }

    /// Whether READ must be answered with a structured reply.
    #[must_use]
    #[inline]
    pub const fn has_structured_replies(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_DF)
    }

    /// The longest READ or WRITE that passes [`RequestRules::check`], in bytes.
    #[must_use]
    pub const fn payload_size_bytes_max(&self) -> u32 {
        self.payload_size_bytes_max
    }

    /// Whether `request` may be done. What passes lies within the export, is aligned, is no longer than the payload
    /// bound if it has a payload, and carries only flags that its command knows. A length of 0 passes. A disconnect
    /// always passes.
    ///
    /// # Errors
    /// How to refuse it.
    #[inline]
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        match self.violation(request) {
            None => Ok(()),
            Some((error, message)) => {
                let drain_size_bytes = request.payload_size_bytes();
                if drain_size_bytes > limits::DRAIN_SIZE_MAX {
                    return Err(Refusal::Close);
                }
                Err(Refusal::Answer { error, message, drain_size_bytes })
            }
        }
    }

    #[inline]
    fn violation(&self, request: &Request) -> Option<Violation> {
        match request.kind {
            RequestKind::Disconnect => None,
            RequestKind::Read => self
                .flag_violation(request, CommandFlags::DF)
                .or_else(|| self.payload_violation(request))
                .or_else(|| self.range_violation(request, WireError::Invalid)),
            RequestKind::Write => self
                .read_only_violation()
                .or_else(|| self.flag_violation(request, CommandFlags::NONE))
                .or_else(|| self.payload_violation(request))
                .or_else(|| self.range_violation(request, WireError::NoSpace)),
            RequestKind::Trim => self
                .read_only_violation()
                .or_else(|| self.offer_violation(TransmissionFlags::SEND_TRIM))
                .or_else(|| self.flag_violation(request, CommandFlags::NONE))
                .or_else(|| self.range_violation(request, WireError::Invalid)),
            RequestKind::WriteZeroes => self
                .read_only_violation()
                .or_else(|| self.offer_violation(TransmissionFlags::SEND_WRITE_ZEROES))
                .or_else(|| self.flag_violation(request, CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO)))
                .or_else(|| self.range_violation(request, WireError::NoSpace)),
            RequestKind::Flush => self
                .offer_violation(TransmissionFlags::SEND_FLUSH)
                .or_else(|| self.flag_violation(request, CommandFlags::NONE))
                .or_else(|| whole_export_violation(request)),
            RequestKind::Unknown(_) => Some((WireError::Invalid, "The command is not known")),
        }
    }

    fn read_only_violation(&self) -> Option<Violation> {
        let is_read_only = self.flags.contains(TransmissionFlags::READ_ONLY);
        is_read_only.then_some((WireError::NotPermitted, "The export is read-only"))
    }

    fn offer_violation(&self, offer: TransmissionFlags) -> Option<Violation> {
        let is_offered = self.flags.contains(offer);
        (!is_offered).then_some((WireError::Invalid, "The command was not offered"))
    }

    /// `known` are the flags of the command beside FUA, which clients put on every command.
    fn flag_violation(&self, request: &Request, known: CommandFlags) -> Option<Violation> {
        let allowed = CommandFlags::NONE
            .with_if(self.flags.contains(TransmissionFlags::SEND_FUA), CommandFlags::FUA)
            .with_if(self.flags.contains(TransmissionFlags::SEND_DF), CommandFlags::DF)
            .with_if(self.flags.contains(TransmissionFlags::SEND_FAST_ZERO), CommandFlags::FAST_ZERO)
            .with(CommandFlags::NO_HOLE);
        let forbidden = request.flags.without(CommandFlags(allowed.0 & known.with(CommandFlags::FUA).0));
        (forbidden != CommandFlags::NONE)
            .then_some((WireError::Invalid, "A flag of the command was not offered or does not belong to it"))
    }

    fn payload_violation(&self, request: &Request) -> Option<Violation> {
        (request.length > self.payload_size_bytes_max)
            .then_some((WireError::Invalid, "The request is longer than the server accepts"))
    }

    fn range_violation(&self, request: &Request, error_past_end: WireError) -> Option<Violation> {
        // Never `offset + length`: the sum can overflow.
        let is_past_end =
            request.offset > self.size_bytes || u64::from(request.length) > self.size_bytes - request.offset;
        if is_past_end {
            return Some((error_past_end, "The request reaches past the end of the export"));
        }
        let mask = self.alignment_mask;
        let is_unaligned = request.length & mask != 0 || request.offset & u64::from(mask) != 0;
        is_unaligned.then_some((WireError::Invalid, "The request is not aligned to the minimum block size"))
    }
}

fn whole_export_violation(request: &Request) -> Option<Violation> {
    (request.offset != 0 || request.length != 0)
        .then_some((WireError::Invalid, "A flush must have offset and length 0"))
}

/// The front of the reply to a READ that succeeded whole: the request's `length` bytes must follow. All of them must
/// be at hand, since no error can be sent after this header.
///
/// # Panics
/// If the request is longer than any that passes [`RequestRules::check`].
#[must_use]
#[inline]
pub fn read_header(request: &Request, has_structured_replies: bool) -> ReplyHeader {
    if !has_structured_replies {
        return ReplyHeader::simple(request.cookie, None);
    }
    if request.length == 0 {
        return ReplyHeader::none(request.cookie);
    }
    ReplyHeader::offset_data(request.cookie, request.offset, request.length, true)
}

/// The whole reply to a request that failed, without a message.
#[must_use]
#[inline]
pub fn error_header(cookie: u64, error: WireError, has_structured_replies: bool) -> ReplyHeader {
    if has_structured_replies { ReplyHeader::error(cookie, error) } else { ReplyHeader::simple(cookie, Some(error)) }
}

/// Appends the whole reply to a request that failed, with a message where the connection has structured replies.
pub fn append_error(output: &mut Vec<u8>, cookie: u64, error: WireError, message: &str, has_structured_replies: bool) {
    if has_structured_replies {
        ReplyHeader::append_error(output, cookie, error, message);
    } else {
        output.extend_from_slice(ReplyHeader::simple(cookie, Some(error)).as_bytes());
    }
}
