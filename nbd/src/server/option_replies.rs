//! The replies to one option, appended to the connection's output.

use super::export::Export;
use super::info_request::InfoRequest;
use crate::limits;
use crate::wire::fields::truncated;
use crate::wire::flags::TransmissionFlags;
use crate::wire::option::{
    EXPORT_NAME_ZEROES_SIZE, InfoKind, OptionError, OptionKind, OptionReplyHeader, OptionReplyKind,
};

/// Where the replies to one option go.
pub(super) struct OptionReplies<'a> {
    pub(super) option: OptionKind,
    pub(super) output: &'a mut Vec<u8>,
}

impl OptionReplies<'_> {
    pub(super) fn ack(&mut self) {
        self.reply(OptionReplyKind::Ack, &[]);
    }

    /// An error with a message for people, which is cut to [`limits::MESSAGE_SIZE_MAX`]: a message that quotes what
    /// the client sent must not outgrow the protocol's bound on strings (CVE-2020-10761).
    pub(super) fn error(&mut self, error: OptionError, message: &str) {
        let message = truncated(message, limits::MESSAGE_SIZE_MAX);
        self.reply(OptionReplyKind::Error(error), &[message.as_bytes()]);
    }

    /// One line of a list.
    pub(super) fn server(&mut self, name: &str) {
        let name_size = u32::try_from(name.len()).expect("the name was checked against the bound on names");
        self.reply(OptionReplyKind::Server, &[&name_size.to_be_bytes(), name.as_bytes()]);
    }

    /// One metadata context.
    pub(super) fn meta_context(&mut self, id: u32, name: &str) {
        self.reply(OptionReplyKind::MetaContext, &[&id.to_be_bytes(), name.as_bytes()]);
    }

    /// What is told of an export before the acknowledgement: always its size and flags, the rest as asked.
    pub(super) fn export(&mut self, export: &Export, flags: TransmissionFlags, request: &InfoRequest<'_>) {
        self.info(InfoKind::Export, &[&export.size_bytes.to_be_bytes(), &flags.0.to_be_bytes()]);
        if request.wants_name && is_sendable(&export.name) {
            self.info(InfoKind::Name, &[export.name.as_bytes()]);
        }
        if let Some(description) = export.description.as_deref().filter(|text| is_sendable(text))
            && request.wants_description
        {
            self.info(InfoKind::Description, &[description.as_bytes()]);
        }
        if request.wants_block_sizes {
            self.block_sizes(export);
        }
    }

    /// The block sizes of an export.
    pub(super) fn block_sizes(&mut self, export: &Export) {
        let sizes = export.block_sizes;
        let parts = [sizes.min().to_be_bytes(), sizes.preferred().to_be_bytes(), sizes.max().to_be_bytes()];
        self.info(InfoKind::BlockSize, &[&parts[0], &parts[1], &parts[2]]);
    }

    fn info(&mut self, kind: InfoKind, parts: &[&[u8]]) {
        let number = kind.number().to_be_bytes();
        let mut all: [&[u8]; 4] = [&number, &[], &[], &[]];
        all[1..=parts.len()].copy_from_slice(parts);
        self.reply(OptionReplyKind::Info, &all);
    }

    fn reply(&mut self, kind: OptionReplyKind, parts: &[&[u8]]) {
        let size: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(size).expect("replies are bounded by the bounds on strings");
        OptionReplyHeader { option: self.option, kind, length }.append_to(self.output);
        for part in parts {
            self.output.extend_from_slice(part);
        }
    }
}

/// Whether `text` may be sent as a string of the protocol.
pub(super) fn is_sendable(text: &str) -> bool {
    text.len() <= limits::NAME_SIZE_MAX && !text.contains('\0')
}

/// The answer to EXPORT_NAME, which has no reply header: 10 bytes, or 134 for a client that did not negotiate
/// NO_ZEROES.
pub(super) fn append_export_name_answer(
    output: &mut Vec<u8>,
    export: &Export,
    flags: TransmissionFlags,
    is_without_zeroes: bool,
) {
    output.extend_from_slice(&export.size_bytes.to_be_bytes());
    output.extend_from_slice(&flags.0.to_be_bytes());
    if !is_without_zeroes {
        output.extend_from_slice(&[0; EXPORT_NAME_ZEROES_SIZE]);
    }
}
