//! The server's handshake: fixed newstyle, as a state machine that eats input and appends output.
//!
//! Invariants: it keeps at most one option in memory and takes not one byte beyond it, so that what follows the
//! handshake (requests, or later a TLS record) is still the owner's. Memory for an option grows with the bytes that
//! came, never with the length that was announced. Owned by the connection; the owner also keeps the deadline.

use super::close_reason::CloseReason;
use super::export::{Export, Exports, FindError};
use super::handshake_bounds::{HandshakeBounds, TlsOffer};
use super::info_request::InfoRequest;
use super::meta_context::{MetaRequest, SelectedContext};
use super::option_replies::{OptionReplies, append_export_name_answer, is_sendable};
use super::transmission::RequestRules;
use crate::limits;
use crate::wire::fields::{gather, string, truncated};
use crate::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::wire::magic;
use crate::wire::option::{OPTION_HEADER_SIZE, OptionError, OptionHeader, OptionKind};
use crate::wire::reply::ReplyForm;

/// What a client is told by ERR_TLS_REQD.
const TLS_NEEDED: &str = "Start TLS first";
/// What a client is told by ERR_SHUTDOWN.
const SHUTTING_DOWN: &str = "The server is shutting down";

/// A handshake in progress.
#[derive(Debug)]
pub struct Handshake {
    step: Step,
    /// The part of the message of `step` that came so far.
    pending: Vec<u8>,
    client_flags: ClientFlags,
    reply_form: ReplyForm,
    /// The canonical name of the export that contexts were chosen for, and these.
    contexts: Option<(String, Vec<SelectedContext>)>,
    is_shutting_down: bool,
    option_count: u32,
    option_count_max: u32,
    bounds: HandshakeBounds,
    tls: TlsOffer,
    is_encrypted: bool,
}

/// What the handshake waits for.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The first call, to send the greeting.
    Start,
    /// Four bytes of flags.
    ClientFlags,
    /// The 16 bytes in front of an option's data.
    OptionHeader,
    /// The data of an option that are kept.
    OptionData(OptionHeader),
    /// The data of an option that are dropped, of which `remaining` are still to come.
    Skip { header: OptionHeader, remaining: u32 },
    /// Nothing: the handshake ended.
    Over(CloseReason),
}

/// What one call did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// How many bytes of the input were taken. The others must be given again, or belong to what follows the handshake.
    pub consumed: usize,
    /// What is to be done now. The output must be sent in every case, also before closing.
    pub outcome: Outcome,
}

/// How the handshake stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All input was taken; call again when more came.
    NeedMore,
    /// [`limits::OUTPUT_SIZE_PAUSE`] bytes or more wait: send the output, clear it, and call again with the rest of
    /// the input.
    SendFirst,
    /// The client starts TLS, and its option is acknowledged: send the output, and take the rest of the input as the
    /// beginning of its TLS records. Call [`Handshake::tls_started`] and go on with what these decrypt to.
    StartTls,
    /// The client chose an export. The rest of the input is its first requests.
    Transmission(Box<Negotiated>),
    /// Send the output, then close.
    Close(CloseReason),
}

/// What was agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// The export that the client chose.
    pub export: Export,
    /// The name by which the client chose it.
    pub requested_name: String,
    /// What replies are like; requests have the form that goes with it.
    pub reply_form: ReplyForm,
    /// The metadata contexts of the export that BLOCK_STATUS reports.
    pub contexts: Vec<SelectedContext>,
    /// The client asked for the block sizes, so it obeys them.
    pub has_requested_block_sizes: bool,
    /// The client negotiated NO_ZEROES.
    pub is_without_zeroes: bool,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new(HandshakeBounds::default(), TlsOffer::Off)
    }
}

impl Handshake {
    /// A handshake that has not sent its greeting. Call [`Handshake::advance`] with no input as soon as the
    /// connection is there: the server speaks first.
    #[must_use]
    pub fn new(bounds: HandshakeBounds, tls: TlsOffer) -> Self {
        Self {
            step: Step::Start,
            pending: Vec::new(),
            client_flags: ClientFlags::NONE,
            reply_form: ReplyForm::Simple,
            contexts: None,
            is_shutting_down: false,
            option_count: 0,
            option_count_max: bounds.option_count_max,
            bounds,
            tls,
            is_encrypted: false,
        }
    }

    /// TLS is there. All that was negotiated in clear is forgotten: somebody else may have put it there (CVE-2021-3716).
    pub fn tls_started(&mut self) {
        self.is_encrypted = true;
        self.reply_form = ReplyForm::Simple;
        self.contexts = None;
    }

    /// Whether the client must start TLS before anything else.
    fn lacks_tls(&self) -> bool {
        self.tls == TlsOffer::Required && !self.is_encrypted
    }

    /// From now on answers every option but ABORT with ERR_SHUTDOWN, and EXPORT_NAME by closing.
    pub fn shut_down(&mut self) {
        self.is_shutting_down = true;
    }

    /// Takes `input`, appends what must be sent to `output`, and asks `exports` where it must. May be called with any
    /// part of the stream, also with none; after the end it repeats that it ended and takes nothing.
    pub fn advance(&mut self, input: &[u8], output: &mut Vec<u8>, exports: &dyn Exports) -> Progress {
        let mut rest = input;
        let outcome = loop {
            if output.len() >= limits::OUTPUT_SIZE_PAUSE && !rest.is_empty() && !matches!(self.step, Step::Over(_)) {
                break Outcome::SendFirst;
            }
            if !self.take(&mut rest) {
                break Outcome::NeedMore;
            }
            if let Some(outcome) = self.process(output, exports) {
                break outcome;
            }
        };
        self.step = match &outcome {
            Outcome::Transmission(_) => Step::Over(CloseReason::AlreadyChosen),
            Outcome::Close(reason) => Step::Over(*reason),
            Outcome::NeedMore | Outcome::SendFirst | Outcome::StartTls => self.step,
        };
        Progress { consumed: input.len() - rest.len(), outcome }
    }

    /// Takes what the present step needs from `rest`; whether it is complete.
    fn take(&mut self, rest: &mut &[u8]) -> bool {
        let wanted_size = match &mut self.step {
            Step::Start | Step::Over(_) => 0,
            Step::ClientFlags => size_of::<u32>(),
            Step::OptionHeader => OPTION_HEADER_SIZE,
            Step::OptionData(header) => usize::try_from(header.length).expect("the length was checked against a bound"),
            Step::Skip { remaining, .. } => {
                let dropped = u32::try_from(rest.len()).map_or(*remaining, |len| len.min(*remaining));
                *rest = &rest[usize::try_from(dropped).expect("no more than the input")..];
                *remaining -= dropped;
                return *remaining == 0;
            }
        };
        gather(&mut self.pending, wanted_size, rest)
    }

    /// Deals with the message of the present step, which is complete, and goes on to the next step.
    fn process(&mut self, output: &mut Vec<u8>, exports: &dyn Exports) -> Option<Outcome> {
        let step = std::mem::replace(&mut self.step, Step::OptionHeader);
        let message = std::mem::take(&mut self.pending);
        let outcome = match step {
            Step::Start => {
                append_greeting(output);
                self.step = Step::ClientFlags;
                None
            }
            Step::ClientFlags => self.process_client_flags(&message),
            Step::OptionHeader => self.process_option_header(&message),
            Step::OptionData(header) => self.process_option(header, &message, output, exports),
            Step::Skip { header, .. } => self.process_skipped(header, output, exports),
            Step::Over(reason) => Some(Outcome::Close(reason)),
        };
        // The allocation is kept for the next message.
        self.pending = message;
        self.pending.clear();
        outcome
    }

    fn process_client_flags(&mut self, message: &[u8]) -> Option<Outcome> {
        let flags = message.first_chunk().map_or(ClientFlags::NONE, |bytes| ClientFlags(u32::from_be_bytes(*bytes)));
        let known = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
        if flags.without(known) != ClientFlags::NONE {
            return Some(Outcome::Close(CloseReason::UnknownClientFlags(flags)));
        }
        self.client_flags = flags;
        None
    }

    /// Decides from an option's header whether its data are kept or dropped.
    fn process_option_header(&mut self, message: &[u8]) -> Option<Outcome> {
        let Some(header) = OptionHeader::parse(message) else {
            return Some(Outcome::Close(CloseReason::BadOptionMagic));
        };
        self.option_count += 1;
        if self.option_count > self.option_count_max {
            return Some(Outcome::Close(CloseReason::TooManyOptions));
        }
        if header.length > self.bounds.option_size_bytes_max.min(limits::OPTION_SKIP_SIZE_MAX) {
            return Some(Outcome::Close(CloseReason::OptionTooLong(header.length)));
        }
        let is_fixed_newstyle = self.client_flags.contains(ClientFlags::FIXED_NEWSTYLE);
        if !is_fixed_newstyle && header.option != OptionKind::ExportName {
            return Some(Outcome::Close(CloseReason::NotFixedNewstyle(header.option)));
        }
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if header.option == OptionKind::ExportName && length > limits::NAME_SIZE_MAX {
            return Some(Outcome::Close(CloseReason::BadExportName));
        }
        let is_kept = match header.option {
            OptionKind::ExportName => true,
            OptionKind::Info | OptionKind::Go => header.length <= limits::OPTION_DATA_SIZE_MAX,
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => {
                header.length <= limits::META_OPTION_DATA_SIZE_MAX
            }
            _ => false,
        };
        self.step = if is_kept { Step::OptionData(header) } else { Step::Skip { header, remaining: header.length } };
        None
    }

    /// Answers an option whose data were kept.
    fn process_option(
        &mut self,
        header: OptionHeader,
        data: &[u8],
        output: &mut Vec<u8>,
        exports: &dyn Exports,
    ) -> Option<Outcome> {
        if header.option == OptionKind::ExportName {
            return Some(match self.choose_by_name(data, output, exports) {
                Ok(negotiated) => Outcome::Transmission(Box::new(negotiated)),
                Err(reason) => Outcome::Close(reason),
            });
        }
        let mut replies = OptionReplies { option: header.option, output };
        if self.is_shutting_down {
            replies.error(OptionError::Shutdown, SHUTTING_DOWN);
            return None;
        }
        if self.lacks_tls() {
            replies.error(OptionError::TlsRequired, TLS_NEEDED);
            return None;
        }
        if matches!(header.option, OptionKind::ListMetaContext | OptionKind::SetMetaContext) {
            self.answer_contexts(replies, data, exports);
            return None;
        }
        self.describe(replies, data, exports).map(|negotiated| Outcome::Transmission(Box::new(negotiated)))
    }

    /// Answers an option whose data were dropped, or that had none.
    fn process_skipped(
        &mut self,
        header: OptionHeader,
        output: &mut Vec<u8>,
        exports: &dyn Exports,
    ) -> Option<Outcome> {
        let mut replies = OptionReplies { option: header.option, output };
        match header.option {
            OptionKind::Abort => {
                replies.ack();
                return Some(Outcome::Close(CloseReason::Aborted));
            }
            _ if self.is_shutting_down => replies.error(OptionError::Shutdown, SHUTTING_DOWN),
            OptionKind::StartTls if self.tls != TlsOffer::Off => return self.start_tls(header, &mut replies),
            _ if self.lacks_tls() => replies.error(OptionError::TlsRequired, TLS_NEEDED),
            OptionKind::List | OptionKind::StructuredReply | OptionKind::ExtendedHeaders if header.length > 0 => {
                replies.error(OptionError::Invalid, "The option must have no data");
            }
            OptionKind::List => self.list(&mut replies, exports),
            OptionKind::StructuredReply if self.reply_form == ReplyForm::Extended => {
                replies.error(OptionError::ExtendedHeadersRequired, "Extended headers are in use, which replace this");
            }
            // Asking twice changes nothing; the specification allows either answer.
            OptionKind::StructuredReply => {
                self.reply_form = ReplyForm::Structured;
                replies.ack();
            }
            OptionKind::ExtendedHeaders => {
                self.reply_form = ReplyForm::Extended;
                replies.ack();
            }
            OptionKind::SetMetaContext | OptionKind::ListMetaContext => {
                self.forget_contexts(header.option);
                replies.error(OptionError::TooBig, "The option is too long");
            }
            OptionKind::Info | OptionKind::Go => replies.error(OptionError::TooBig, "The option is too long"),
            OptionKind::ExportName | OptionKind::StartTls | OptionKind::Unknown(_) => {
                replies.error(OptionError::Unsupported, "The option is not supported");
            }
        }
        None
    }

    fn start_tls(&self, header: OptionHeader, replies: &mut OptionReplies<'_>) -> Option<Outcome> {
        if header.length > 0 || self.is_encrypted {
            replies.error(OptionError::Invalid, "TLS is started once, by an option without data");
            return None;
        }
        replies.ack();
        Some(Outcome::StartTls)
    }

    fn list(&mut self, replies: &mut OptionReplies<'_>, exports: &dyn Exports) {
        let names = exports.list();
        for name in names.iter().filter(|name| is_sendable(name)) {
            replies.server(name);
        }
        replies.ack();
        let export_count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let option_count_max =
            self.bounds.option_count_max.saturating_add(export_count.saturating_mul(limits::OPTION_COUNT_PER_EXPORT));
        self.option_count_max = self.option_count_max.max(option_count_max);
    }

    /// EXPORT_NAME: the export, or the end.
    fn choose_by_name(
        &self,
        data: &[u8],
        output: &mut Vec<u8>,
        exports: &dyn Exports,
    ) -> Result<Negotiated, CloseReason> {
        if self.is_shutting_down {
            return Err(CloseReason::NoExport(FindError::ShuttingDown));
        }
        if self.lacks_tls() {
            return Err(CloseReason::NoExport(FindError::TlsRequired));
        }
        if self.reply_form == ReplyForm::Extended {
            return Err(CloseReason::ExportNameWithExtendedHeaders);
        }
        let name = string(data).ok_or(CloseReason::BadExportName)?;
        let export = exports.find(name).map_err(CloseReason::NoExport)?;
        if export.block_sizes.min() > 1 {
            return Err(CloseReason::BlockSizesNeeded);
        }
        let negotiated = self.negotiated(export, name, false);
        let flags = negotiated.transmission_flags();
        append_export_name_answer(output, &negotiated.export, flags, negotiated.is_without_zeroes);
        Ok(negotiated)
    }

    /// INFO and GO: describes the export; GO also chooses it.
    fn describe(&self, mut replies: OptionReplies<'_>, data: &[u8], exports: &dyn Exports) -> Option<Negotiated> {
        let request = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(message) => {
                replies.error(OptionError::Invalid, message);
                return None;
            }
        };
        let export = match exports.find(request.name) {
            Ok(export) => export,
            Err(error) => {
                refuse_export(&mut replies, request.name, error);
                return None;
            }
        };
        if export.block_sizes.min() > 1 && !request.wants_block_sizes {
            replies.block_sizes(&export);
            replies.error(OptionError::BlockSizeRequired, "Ask for the block sizes and obey them to use this export");
            return None;
        }
        let negotiated = self.negotiated(export, request.name, request.wants_block_sizes);
        replies.export(&negotiated.export, negotiated.transmission_flags(), &request);
        replies.ack();
        let is_chosen = replies.option == OptionKind::Go;
        is_chosen.then_some(negotiated)
    }

    /// A new choice of contexts takes the place of the one before, also when it fails.
    fn forget_contexts(&mut self, option: OptionKind) {
        if option == OptionKind::SetMetaContext {
            self.contexts = None;
        }
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT.
    fn answer_contexts(&mut self, mut replies: OptionReplies<'_>, data: &[u8], exports: &dyn Exports) {
        let is_choice = replies.option == OptionKind::SetMetaContext;
        self.forget_contexts(replies.option);
        if self.reply_form == ReplyForm::Simple {
            replies.error(OptionError::Invalid, "Negotiate structured replies or extended headers first");
            return;
        }
        let request = match MetaRequest::parse(data) {
            Ok(request) => request,
            Err((error, message)) => return replies.error(error, message),
        };
        let export = match exports.find(request.export_name) {
            Ok(export) => export,
            Err(error) => return refuse_export(&mut replies, request.export_name, error),
        };
        if is_choice {
            let contexts = request.selected(&export, exports);
            contexts.iter().for_each(|context| replies.meta_context(context.id, &context.name));
            self.contexts = Some((export.name, contexts));
        } else {
            // The id of a context that is only listed means nothing.
            request.listed(&export, exports).iter().for_each(|name| replies.meta_context(0, name));
        }
        replies.ack();
    }

    fn negotiated(&self, export: Export, requested_name: &str, has_requested_block_sizes: bool) -> Negotiated {
        let of_export = self.contexts.iter().filter(|(name, _)| *name == export.name);
        Negotiated {
            contexts: of_export.flat_map(|(_, contexts)| contexts.clone()).collect(),
            export,
            requested_name: requested_name.to_owned(),
            reply_form: self.reply_form,
            has_requested_block_sizes,
            is_without_zeroes: self.client_flags.contains(ClientFlags::NO_ZEROES),
        }
    }
}

impl Negotiated {
    /// The rules by which this connection's requests are judged.
    #[must_use]
    pub fn rules(&self) -> RequestRules {
        RequestRules::new(&self.export, self.reply_form, self.contexts.len())
    }

    fn transmission_flags(&self) -> TransmissionFlags {
        self.export.transmission_flags(self.reply_form, !self.contexts.is_empty())
    }
}

fn append_greeting(output: &mut Vec<u8>) {
    output.extend_from_slice(&magic::GREETING.to_be_bytes());
    output.extend_from_slice(&magic::OPTION.to_be_bytes());
    let flags = HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES);
    output.extend_from_slice(&flags.0.to_be_bytes());
}

fn refuse_export(replies: &mut OptionReplies<'_>, name: &str, error: FindError) {
    let quoted = truncated(name, limits::QUOTED_NAME_SIZE_MAX);
    match error {
        FindError::Unknown => replies.error(OptionError::Unknown, &format!("Export {quoted:?} is not known")),
        FindError::Unavailable => {
            replies.error(OptionError::Unknown, &format!("Export {quoted:?} is not available now"));
        }
        FindError::Forbidden => replies.error(OptionError::Policy, &format!("Export {quoted:?} is not open to you")),
        FindError::TlsRequired => replies.error(OptionError::TlsRequired, TLS_NEEDED),
        FindError::Crowded => {
            let message = format!("Export {quoted:?} has as many connections as it may have; try again later");
            replies.error(OptionError::Policy, &message);
        }
        FindError::HasWriter => {
            let message = format!(
                "Export {quoted:?} is a disk of the server's host, which writes it; it can be offered for reads only, or \
                 the disk shared"
            );
            replies.error(OptionError::Policy, &message);
        }
        FindError::ShuttingDown => replies.error(OptionError::Shutdown, SHUTTING_DOWN),
    }
}
