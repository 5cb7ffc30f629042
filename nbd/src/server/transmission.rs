//! The rules a request must keep, and the replies to it.
//!
//! [`RequestRules::check`] gives the protocol's error exactly (specification, "Request types"). It is called for each
//! request: everything here is a `Copy` value and nothing allocates.

use super::export::Export;
use crate::limits;
use crate::wire::error::WireError;
use crate::wire::fields::Fields;
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::reply::{ReplyForm, ReplyTo};
use crate::wire::request::{Request, RequestForm, RequestKind};

/// What the requests of one connection are judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestRules {
    /// Size of the export in bytes.
    size_bytes: u64,
    /// The flags the client was told.
    flags: TransmissionFlags,
    reply_form: ReplyForm,
    /// Metadata contexts that the client chose; their ids are 1 to this.
    context_count: u32,
    /// Offsets and lengths have no bit in common with this.
    alignment_mask: u32,
    /// The longest READ or WRITE, in bytes.
    payload_size_bytes_max: u32,
}

/// What a BLOCK_STATUS asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusRequest {
    /// How many bytes it asks about, from the request's offset on; not 0.
    pub size_bytes: u64,
    /// The ids of the contexts to report, at least one, each once.
    pub context_ids: Vec<u32>,
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
    ///
    /// # Panics
    /// If there are more contexts than [`limits::META_QUERY_COUNT_MAX`].
    pub fn new(export: &Export, reply_form: ReplyForm, context_count: usize) -> Self {
        let context_count = u32::try_from(context_count).unwrap_or(u32::MAX);
        assert!(context_count <= limits::META_QUERY_COUNT_MAX, "{context_count} metadata contexts");
        let payload_size_bytes_max = export.payload_size_bytes_max.max(export.block_sizes.max());
        Self {
            size_bytes: export.size_bytes,
            flags: export.transmission_flags(reply_form, context_count > 0),
            reply_form,
            context_count,
            alignment_mask: export.block_sizes.min() - 1,
            payload_size_bytes_max: payload_size_bytes_max.min(limits::DRAIN_SIZE_MAX),
        }
    }

    /// How requests stand on the wire.
    #[must_use]
    #[inline]
    pub const fn request_form(&self) -> RequestForm {
        match self.reply_form {
            ReplyForm::Simple | ReplyForm::Structured => RequestForm::Compact,
            ReplyForm::Extended => RequestForm::Extended,
        }
    }

    /// What replies are like.
    #[must_use]
    #[inline]
    pub const fn reply_form(&self) -> ReplyForm {
        self.reply_form
    }

    /// What makes the reply to a request.
    #[must_use]
    #[inline]
    pub const fn reply_to(&self, request: &Request) -> ReplyTo {
        ReplyTo::new(self.reply_form, request)
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
                let Some(drain_size_bytes) =
                    u32::try_from(drain_size_bytes).ok().filter(|size| *size <= limits::DRAIN_SIZE_MAX)
                else {
                    return Err(Refusal::Close);
                };
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
            // With extended headers PAYLOAD_LEN belongs to it; one that lacks it means the same.
            RequestKind::Write => self
                .read_only_violation()
                .or_else(|| self.flag_violation(request, CommandFlags::PAYLOAD_LEN))
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
            RequestKind::Cache => self
                .offer_violation(TransmissionFlags::SEND_CACHE)
                .or_else(|| self.flag_violation(request, CommandFlags::NONE))
                .or_else(|| self.range_violation(request, WireError::Invalid)),
            RequestKind::BlockStatus => self.status_violation(request),
            RequestKind::Unknown(_) => Some((WireError::Invalid, "The command is not known")),
        }
    }

    fn status_violation(&self, request: &Request) -> Option<Violation> {
        if self.context_count == 0 {
            return Some((WireError::Invalid, "No metadata context was chosen for the export"));
        }
        self.flag_violation(request, CommandFlags::REQ_ONE.with(CommandFlags::PAYLOAD_LEN)).or_else(|| {
            if request.payload_size_bytes() > 0 {
                let is_legal = self.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
                    && request.length <= limits::STATUS_PAYLOAD_SIZE_MAX;
                return (!is_legal).then_some((WireError::Invalid, "The payload is not one of a block status"));
            }
            self.status_range_violation(request)
        })
    }

    fn status_range_violation(&self, request: &Request) -> Option<Violation> {
        let is_empty = request.length == 0;
        self.range_violation(request, WireError::Invalid)
            .or_else(|| is_empty.then_some((WireError::Invalid, "A block status of nothing")))
    }

    /// What a BLOCK_STATUS that passed [`Self::check`] asks for. `payload` is its payload, empty if it has none.
    ///
    /// # Errors
    /// The error to answer with, and a message for people.
    pub fn status_request(
        &self,
        request: &Request,
        payload: &[u8],
    ) -> Result<StatusRequest, (WireError, &'static str)> {
        const MALFORMED: (WireError, &str) = (WireError::Invalid, "The payload is not one of a block status");
        if payload.is_empty() {
            let context_ids = (1..=self.context_count).collect();
            return Ok(StatusRequest { size_bytes: request.length, context_ids });
        }
        let mut fields = Fields::new(payload);
        let size_bytes = fields.u64().ok_or(MALFORMED)?;
        let effect = Request { length: size_bytes, ..*request };
        if let Some(violation) = self.status_range_violation(&effect) {
            return Err(violation);
        }
        let mut context_ids = Vec::new();
        while let Some(id) = fields.u32() {
            if !(1..=self.context_count).contains(&id) || context_ids.contains(&id) {
                return Err((WireError::Invalid, "A metadata context was not chosen, or is named twice"));
            }
            context_ids.push(id);
        }
        if context_ids.is_empty() || !fields.rest().is_empty() {
            Err(MALFORMED)
        } else {
            Ok(StatusRequest { size_bytes, context_ids })
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
            .with_if(self.reply_form == ReplyForm::Extended, CommandFlags::PAYLOAD_LEN)
            .with(CommandFlags::NO_HOLE)
            .with(CommandFlags::REQ_ONE);
        let forbidden = request.flags.without(CommandFlags(allowed.0 & known.with(CommandFlags::FUA).0));
        (forbidden != CommandFlags::NONE)
            .then_some((WireError::Invalid, "A flag of the command was not offered or does not belong to it"))
    }

    fn payload_violation(&self, request: &Request) -> Option<Violation> {
        (request.length > u64::from(self.payload_size_bytes_max))
            .then_some((WireError::Invalid, "The request is longer than the server accepts"))
    }

    fn range_violation(&self, request: &Request, error_past_end: WireError) -> Option<Violation> {
        // Never `offset + length`: the sum can overflow.
        let is_past_end = request.offset > self.size_bytes || request.length > self.size_bytes - request.offset;
        if is_past_end {
            return Some((error_past_end, "The request reaches past the end of the export"));
        }
        let mask = u64::from(self.alignment_mask);
        let is_unaligned = (request.length | request.offset) & mask != 0;
        is_unaligned.then_some((WireError::Invalid, "The request is not aligned to the minimum block size"))
    }
}

fn whole_export_violation(request: &Request) -> Option<Violation> {
    (request.offset != 0 || request.length != 0)
        .then_some((WireError::Invalid, "A flush must have offset and length 0"))
}
