//! The client's handshake: fixed newstyle, as a state machine that eats input and appends output.
//!
//! The owner asks one thing at a time (`list`, `info`, `go` …) while the handshake is ready, and gets one outcome for
//! it. Invariants: every reply is checked against the option it answers; memory grows with the bytes that came,
//! within [`limits`].

use std::fmt;

use super::export_info::ExportInfo;
use super::handshake_error::HandshakeError;
use crate::limits;
use crate::server::SelectedContext;
use crate::wire::fields::{Fields, gather, truncated};
use crate::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::wire::magic;
use crate::wire::option::{
    EXPORT_NAME_ZEROES_SIZE, InfoKind, OPTION_REPLY_HEADER_SIZE, OptionError, OptionHeader, OptionKind,
    OptionReplyHeader, OptionReplyKind,
};
use crate::wire::reply::ReplyForm;

/// Length of the greeting in bytes: two magic numbers and the flags.
const GREETING_SIZE: usize = 18;

/// A handshake in progress.
#[derive(Debug)]
pub struct Handshake {
    step: Step,
    /// The part of the message of `step` that came so far.
    pending: Vec<u8>,
    is_without_zeroes: bool,
    reply_form: ReplyForm,
    info: ExportInfo,
    has_export_info: bool,
    info_count: u32,
    names: Vec<String>,
    contexts: Vec<SelectedContext>,
}

/// What the handshake waits for.
#[derive(Clone, Copy, Debug)]
enum Step {
    Greeting,
    /// The owner's next wish.
    Ready,
    ReplyHeader(OptionKind),
    ReplyData(OptionReplyHeader),
    /// The answer to EXPORT_NAME.
    ExportNameAnswer,
    Over(HandshakeError),
}

/// What one call did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// How many bytes of the input were taken. The others must be given again, or belong to what follows the handshake.
    pub consumed: usize,
    /// How the handshake stands.
    pub outcome: Outcome,
}

/// How the handshake stands. [`Handshake::is_ready`] tells whether the next wish may follow: after `Ready`, and after
/// the answer to a wish unless it was `Transmission`, `Closed` or `Failed`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All input was taken; call again when more came.
    NeedMore,
    /// The greeting is done.
    Ready,
    /// The server's answer to the wish for structured replies: granted.
    StructuredReplies,
    /// The server's answer to the wish for extended headers: granted.
    ExtendedHeaders,
    /// The metadata contexts of an export that were asked for; chosen ones with the ids that replies name.
    Contexts(Vec<SelectedContext>),
    /// The server's exports.
    Listed(Vec<String>),
    /// The export that INFO asked for.
    Described(Box<ExportInfo>),
    /// The export was chosen: requests may be sent. The rest of the input belongs to their replies.
    Transmission(Box<ExportInfo>),
    /// The server refused the wish; with its message.
    Refused(OptionError, String),
    /// The server acknowledged ABORT: close.
    Closed,
    /// The server broke the protocol: close.
    Failed(HandshakeError),
}

/// A name that cannot be sent: longer than [`limits::NAME_SIZE_MAX`], or with a NUL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadName;

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// A handshake that waits for the server's greeting.
    #[must_use]
    pub fn new() -> Self {
        Self {
            step: Step::Greeting,
            pending: Vec::new(),
            is_without_zeroes: false,
            reply_form: ReplyForm::Simple,
            info: ExportInfo::default(),
            has_export_info: false,
            info_count: 0,
            names: Vec::new(),
            contexts: Vec::new(),
        }
    }

    /// Whether a wish may be appended.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.step, Step::Ready)
    }

    /// What was granted: how replies are, and requests must be.
    #[must_use]
    pub fn reply_form(&self) -> ReplyForm {
        self.reply_form
    }

    /// Appends the wish for structured replies. Outcome: `StructuredReplies` or `Refused`.
    ///
    /// # Panics
    /// Like every wish, if the handshake is not ready.
    pub fn request_structured_replies(&mut self, output: &mut Vec<u8>) {
        self.send(OptionKind::StructuredReply, &[], output);
    }

    /// Appends the wish for extended headers. Outcome: `ExtendedHeaders` or `Refused`.
    ///
    /// # Panics
    /// If the handshake is not ready.
    pub fn request_extended_headers(&mut self, output: &mut Vec<u8>) {
        self.send(OptionKind::ExtendedHeaders, &[], output);
    }

    /// Appends the wish to choose metadata contexts of export `name`. Outcome: `Contexts` or `Refused`.
    ///
    /// # Errors
    /// If the name or a query cannot be sent; nothing was appended.
    ///
    /// # Panics
    /// If the handshake is not ready.
    pub fn set_contexts(&mut self, name: &str, queries: &[&str], output: &mut Vec<u8>) -> Result<(), BadName> {
        self.ask_contexts(OptionKind::SetMetaContext, name, queries, output)
    }

    /// Appends the wish to see metadata contexts of export `name`. Outcome: `Contexts` or `Refused`.
    ///
    /// # Errors
    /// If the name or a query cannot be sent; nothing was appended.
    ///
    /// # Panics
    /// If the handshake is not ready.
    pub fn list_contexts(&mut self, name: &str, queries: &[&str], output: &mut Vec<u8>) -> Result<(), BadName> {
        self.ask_contexts(OptionKind::ListMetaContext, name, queries, output)
    }

    /// Appends the wish for a list of exports. Outcome: `Listed` or `Refused`.
    ///
    /// # Panics
    /// If the handshake is not ready.
    pub fn list(&mut self, output: &mut Vec<u8>) {
        self.names.clear();
        self.send(OptionKind::List, &[], output);
    }

    /// Appends the wish for a description of export `name`, with everything the server can tell. Outcome: `Described`
    /// or `Refused`.
    ///
    /// # Errors
    /// If the name cannot be sent; nothing was appended.
    ///
    /// # Panics
    /// If the handshake is not ready.
    pub fn info(&mut self, name: &str, output: &mut Vec<u8>) -> Result<(), BadName> {
        let data = info_request(name)?;
        self.forget_info();
        self.send(OptionKind::Info, &data, output);
        Ok(())
    }

    /// Appends the wish to use export `name`, and to obey its block sizes. Outcome: `Transmission` or `Refused`.
    ///
    /// # Errors
    /// If the name cannot be sent; nothing was appended.
    ///
    /// # Panics
    /// If the handshake is not ready.
    pub fn go(&mut self, name: &str, output: &mut Vec<u8>) -> Result<(), BadName> {
        let data = info_request(name)?;
        self.forget_info();
        self.send(OptionKind::Go, &data, output);
        Ok(())
    }

    /// Appends the old wish to use export `name`, for servers without GO. Outcome: `Transmission`, or the server
    /// closes.
    ///
    /// # Errors
    /// If the name cannot be sent; nothing was appended.
    ///
    /// # Panics
    /// If the handshake is not ready.
    pub fn export_name(&mut self, name: &str, output: &mut Vec<u8>) -> Result<(), BadName> {
        let data = sendable(name)?.as_bytes();
        self.forget_info();
        self.send(OptionKind::ExportName, data, output);
        self.step = Step::ExportNameAnswer;
        Ok(())
    }

    /// Appends the wish to end. Outcome: `Closed`; the server may also close without an answer.
    ///
    /// # Panics
    /// If the handshake is not ready.
    pub fn abort(&mut self, output: &mut Vec<u8>) {
        self.send(OptionKind::Abort, &[], output);
    }

    /// Takes `input` and appends what must be sent to `output`. May be called with any part of the stream, also with
    /// none.
    pub fn advance(&mut self, input: &[u8], output: &mut Vec<u8>) -> Progress {
        let mut rest = input;
        let outcome = loop {
            match self.step {
                Step::Ready => break Outcome::NeedMore,
                Step::Over(error) => break Outcome::Failed(error),
                Step::Greeting | Step::ReplyHeader(_) | Step::ReplyData(_) | Step::ExportNameAnswer => {}
            }
            if !self.take(&mut rest) {
                break Outcome::NeedMore;
            }
            match self.process(output) {
                Ok(None) => {}
                Ok(Some(outcome)) => break outcome,
                Err(error) => break Outcome::Failed(error),
            }
        };
        match &outcome {
            Outcome::Failed(error) => self.step = Step::Over(*error),
            Outcome::Transmission(_) | Outcome::Closed => self.step = Step::Over(HandshakeError::AlreadyOver),
            _ => {}
        }
        Progress { consumed: input.len() - rest.len(), outcome }
    }

    fn ask_contexts(
        &mut self,
        option: OptionKind,
        name: &str,
        queries: &[&str],
        output: &mut Vec<u8>,
    ) -> Result<(), BadName> {
        let mut data = Vec::new();
        append_string(&mut data, name)?;
        let query_count = u32::try_from(queries.len()).map_err(|_| BadName)?;
        data.extend_from_slice(&query_count.to_be_bytes());
        for query in queries {
            append_string(&mut data, query)?;
        }
        self.contexts.clear();
        self.send(option, &data, output);
        Ok(())
    }

    fn send(&mut self, option: OptionKind, data: &[u8], output: &mut Vec<u8>) {
        assert!(self.is_ready(), "a wish during {:?}", self.step);
        let length = u32::try_from(data.len()).expect("names were checked against their bound");
        OptionHeader { option, length }.append_to(output);
        output.extend_from_slice(data);
        self.step = Step::ReplyHeader(option);
    }

    fn forget_info(&mut self) {
        self.info = ExportInfo::default();
        self.has_export_info = false;
        self.info_count = 0;
    }

    /// Takes what the present step needs from `rest`; whether it is complete.
    fn take(&mut self, rest: &mut &[u8]) -> bool {
        let wanted_size = match self.step {
            Step::Greeting => GREETING_SIZE,
            Step::Ready | Step::Over(_) => 0,
            Step::ReplyHeader(_) => OPTION_REPLY_HEADER_SIZE,
            Step::ReplyData(header) => usize::try_from(header.length).expect("the length was checked against a bound"),
            Step::ExportNameAnswer if self.is_without_zeroes => 10,
            Step::ExportNameAnswer => 10 + EXPORT_NAME_ZEROES_SIZE,
        };
        gather(&mut self.pending, wanted_size, rest)
    }

    /// Deals with the message of the present step, which is complete.
    fn process(&mut self, output: &mut Vec<u8>) -> Result<Option<Outcome>, HandshakeError> {
        let message = std::mem::take(&mut self.pending);
        match self.step {
            Step::Ready | Step::Over(_) => Ok(None),
            Step::Greeting => self.process_greeting(&message, output).map(Some),
            Step::ReplyHeader(option) => self.process_reply_header(option, &message),
            Step::ReplyData(header) => self.process_reply(header, &message),
            Step::ExportNameAnswer => {
                let mut fields = Fields::new(&message);
                self.info.size_bytes = fields.u64().ok_or(HandshakeError::NoExportInfo)?;
                self.info.flags = TransmissionFlags(fields.u16().ok_or(HandshakeError::NoExportInfo)?);
                Ok(Some(Outcome::Transmission(Box::new(std::mem::take(&mut self.info)))))
            }
        }
    }

    fn process_greeting(&mut self, message: &[u8], output: &mut Vec<u8>) -> Result<Outcome, HandshakeError> {
        let mut fields = Fields::new(message);
        if fields.u64() != Some(magic::GREETING) || fields.u64() != Some(magic::OPTION) {
            return Err(HandshakeError::BadGreeting);
        }
        let flags = HandshakeFlags(fields.u16().ok_or(HandshakeError::BadGreeting)?);
        if !flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            return Err(HandshakeError::NotFixedNewstyle);
        }
        self.is_without_zeroes = flags.contains(HandshakeFlags::NO_ZEROES);
        let answer = ClientFlags::FIXED_NEWSTYLE.with_if(self.is_without_zeroes, ClientFlags::NO_ZEROES);
        output.extend_from_slice(&answer.0.to_be_bytes());
        self.step = Step::Ready;
        Ok(Outcome::Ready)
    }

    fn process_reply_header(&mut self, option: OptionKind, message: &[u8]) -> Result<Option<Outcome>, HandshakeError> {
        let header = OptionReplyHeader::parse(message).ok_or(HandshakeError::BadReplyMagic)?;
        if header.option != option {
            return Err(HandshakeError::WrongOption(header.option));
        }
        if header.length > limits::OPTION_REPLY_DATA_SIZE_MAX {
            return Err(HandshakeError::ReplyTooLong(header.length));
        }
        self.step = Step::ReplyData(header);
        Ok(None)
    }

    fn process_reply(&mut self, header: OptionReplyHeader, data: &[u8]) -> Result<Option<Outcome>, HandshakeError> {
        match header.kind {
            OptionReplyKind::Error(error) => {
                self.step = Step::Ready;
                let text = String::from_utf8_lossy(data);
                let message = truncated(&text, limits::NAME_SIZE_MAX).to_owned();
                Ok(Some(Outcome::Refused(error, message)))
            }
            OptionReplyKind::Ack if !data.is_empty() => Err(HandshakeError::BadReply(header.kind)),
            OptionReplyKind::Ack => self.process_ack(header.option).map(Some),
            OptionReplyKind::Server if header.option == OptionKind::List => {
                self.take_name(data)?;
                self.step = Step::ReplyHeader(header.option);
                Ok(None)
            }
            OptionReplyKind::MetaContext
                if matches!(header.option, OptionKind::SetMetaContext | OptionKind::ListMetaContext) =>
            {
                self.take_context(data)?;
                self.step = Step::ReplyHeader(header.option);
                Ok(None)
            }
            OptionReplyKind::Info if matches!(header.option, OptionKind::Info | OptionKind::Go) => {
                self.take_info(data)?;
                self.step = Step::ReplyHeader(header.option);
                Ok(None)
            }
            kind => Err(HandshakeError::UnexpectedReply(kind)),
        }
    }

    fn process_ack(&mut self, option: OptionKind) -> Result<Outcome, HandshakeError> {
        self.step = Step::Ready;
        match option {
            OptionKind::Abort => Ok(Outcome::Closed),
            OptionKind::List => Ok(Outcome::Listed(std::mem::take(&mut self.names))),
            OptionKind::StructuredReply => {
                self.reply_form = ReplyForm::Structured;
                Ok(Outcome::StructuredReplies)
            }
            OptionKind::ExtendedHeaders => {
                self.reply_form = ReplyForm::Extended;
                Ok(Outcome::ExtendedHeaders)
            }
            OptionKind::SetMetaContext | OptionKind::ListMetaContext => {
                Ok(Outcome::Contexts(std::mem::take(&mut self.contexts)))
            }
            OptionKind::Info | OptionKind::Go if !self.has_export_info => Err(HandshakeError::NoExportInfo),
            OptionKind::Info => Ok(Outcome::Described(Box::new(std::mem::take(&mut self.info)))),
            OptionKind::Go => Ok(Outcome::Transmission(Box::new(std::mem::take(&mut self.info)))),
            OptionKind::ExportName | OptionKind::StartTls | OptionKind::Unknown(_) => {
                Err(HandshakeError::WrongOption(option))
            }
        }
    }

    /// One line of a list: a name, then details that are for people and dropped.
    fn take_name(&mut self, data: &[u8]) -> Result<(), HandshakeError> {
        const BAD: HandshakeError = HandshakeError::BadReply(OptionReplyKind::Server);
        if self.names.len() >= limits::LISTED_EXPORT_COUNT_MAX {
            return Err(HandshakeError::TooManyReplies);
        }
        let mut fields = Fields::new(data);
        let name_size = fields.u32().and_then(|size| usize::try_from(size).ok()).ok_or(BAD)?;
        let name = fields.string(name_size).ok_or(BAD)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    fn take_context(&mut self, data: &[u8]) -> Result<(), HandshakeError> {
        const BAD: HandshakeError = HandshakeError::BadReply(OptionReplyKind::MetaContext);
        if self.contexts.len() >= limits::LISTED_CONTEXT_COUNT_MAX {
            return Err(HandshakeError::TooManyReplies);
        }
        let mut fields = Fields::new(data);
        let id = fields.u32().ok_or(BAD)?;
        let name = fields.string(fields.rest().len()).ok_or(BAD)?.to_owned();
        self.contexts.push(SelectedContext { id, name });
        Ok(())
    }

    fn take_info(&mut self, data: &[u8]) -> Result<(), HandshakeError> {
        self.info_count += 1;
        if self.info_count > limits::INFO_REPLY_COUNT_MAX {
            return Err(HandshakeError::TooManyReplies);
        }
        let kind = self.info.take_in(data).ok_or(HandshakeError::BadReply(OptionReplyKind::Info))?;
        self.has_export_info |= kind == InfoKind::Export;
        Ok(())
    }
}

fn sendable(name: &str) -> Result<&str, BadName> {
    if name.len() > limits::NAME_SIZE_MAX || name.contains('\0') { Err(BadName) } else { Ok(name) }
}

fn append_string(data: &mut Vec<u8>, text: &str) -> Result<(), BadName> {
    let text = sendable(text)?;
    data.extend_from_slice(&u32::try_from(text.len()).map_err(|_| BadName)?.to_be_bytes());
    data.extend_from_slice(text.as_bytes());
    Ok(())
}

/// The data of INFO or GO that asks for everything this client understands.
fn info_request(name: &str) -> Result<Vec<u8>, BadName> {
    let wanted = [InfoKind::Name, InfoKind::Description, InfoKind::BlockSize];
    let name_size = u32::try_from(sendable(name)?.len()).map_err(|_| BadName)?;
    let mut data = name_size.to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&3_u16.to_be_bytes());
    for kind in wanted {
        data.extend_from_slice(&kind.number().to_be_bytes());
    }
    Ok(data)
}

impl fmt::Display for BadName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "An export name must have at most {} bytes and no NUL; choose another", limits::NAME_SIZE_MAX)
    }
}

impl std::error::Error for BadName {}
