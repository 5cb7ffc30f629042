//! Exports for the tests, and the bytes of a client written out by hand: independent of the client's code.

use crate::server::{Export, ExportFeatures, Exports, FindError, Handshake, Negotiated, Outcome, Progress};
use crate::{BlockSizes, InfoKind, OptionError, OptionKind};

/// 3 MiB and 3 bytes: odd, so that a test of the end is a test of the exact end.
pub(super) const SIZE_BYTES: u64 = 1_048_577 * 3;

/// A fixed set of exports.
pub(super) struct Catalog {
    pub(super) exports: Vec<Export>,
}

impl Exports for Catalog {
    fn list(&self) -> Vec<String> {
        self.exports.iter().map(|export| export.name.clone()).collect()
    }

    fn has_context(&self, export: &Export, name: &str) -> bool {
        export.contexts.iter().any(|context| context == name) || name.strip_prefix("rok:diff:") == Some("7")
    }

    fn find(&self, name: &str) -> Result<Export, FindError> {
        match name {
            "forbidden" => Err(FindError::Forbidden),
            "offline" => Err(FindError::Unavailable),
            "owned" => Err(FindError::HasWriter),
            "late" => Err(FindError::ShuttingDown),
            "" => self.exports.first().cloned().ok_or(FindError::Unknown),
            _ => self.exports.iter().find(|export| export.name == name).cloned().ok_or(FindError::Unknown),
        }
    }
}

pub(super) const ALL_FEATURES: ExportFeatures = ExportFeatures {
    is_read_only: false,
    has_flush: true,
    has_fua: true,
    has_trim: true,
    has_write_zeroes: true,
    has_fast_zero: true,
    has_cache: true,
    is_multi_connection_safe: true,
    is_rotational: false,
};

/// `vol1` (also the default; everything on), `strict` (4 KiB blocks only) and `frozen` (read-only).
pub(super) fn catalog() -> Catalog {
    let mut first = Export::new("vol1", SIZE_BYTES, ALL_FEATURES);
    first.description = Some("the first volume".to_owned());
    first.contexts = ["base:allocation", "qemu:allocation-depth"].map(str::to_owned).to_vec();
    let mut strict = Export::new("strict", 1 << 20, ALL_FEATURES);
    strict.block_sizes = BlockSizes::new(4096, 65_536, 1 << 25).expect("legal sizes");
    let frozen = Export::new("frozen", 1 << 20, ExportFeatures { is_read_only: true, ..ALL_FEATURES });
    Catalog { exports: vec![first, strict, frozen] }
}

pub(super) fn no_exports() -> Catalog {
    Catalog { exports: Vec::new() }
}

/// FIXED_NEWSTYLE and NO_ZEROES.
pub(super) const FLAGS: [u8; 4] = [0, 0, 0, 3];

/// An option with a length field of its own.
pub(super) fn option_with_length(number: u32, length: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

pub(super) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    option_with_length(number, u32::try_from(data.len()).expect("short data"), data)
}

/// Data of INFO and GO.
pub(super) fn info_data(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let name_size = u32::try_from(name.len()).expect("short name");
    let count = u16::try_from(infos.len()).expect("few infos");
    let numbers: Vec<u8> = infos.iter().flat_map(|info| info.to_be_bytes()).collect();
    [&name_size.to_be_bytes(), name, &count.to_be_bytes(), &numbers].concat()
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(super) fn meta_data(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let sized = |text: &[u8]| [&u32::try_from(text.len()).expect("short").to_be_bytes(), text].concat();
    let count = u32::try_from(queries.len()).expect("few").to_be_bytes().to_vec();
    [vec![sized(name), count], queries.iter().map(|query| sized(query)).collect()].concat().concat()
}

/// One reply to an option, taken apart by hand.
#[derive(PartialEq, Eq, Debug, Clone)]
pub(super) struct OptionReply {
    pub(super) option: u32,
    pub(super) kind: u32,
    pub(super) data: Vec<u8>,
}

impl OptionReply {
    pub(super) fn is_error(&self, option: OptionKind, error: OptionError) -> bool {
        self.option == option.number() && self.kind == error.number()
    }

    pub(super) fn is_ack(&self, option: OptionKind) -> bool {
        self.option == option.number() && self.kind == 1 && self.data.is_empty()
    }

    pub(super) fn info(&self) -> InfoKind {
        assert_eq!(self.kind, 3, "{self:?}");
        InfoKind::from_number(u16::from_be_bytes([self.data[0], self.data[1]]))
    }
}

/// Everything in `output`, which must be whole replies.
pub(super) fn option_replies(output: &[u8]) -> Vec<OptionReply> {
    let mut rest = output;
    let mut replies = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_be_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        assert_eq!(&rest[..8], &0x0003_e889_0455_65a9_u64.to_be_bytes());
        let size = usize::try_from(word(16)).expect("short");
        replies.push(OptionReply { option: word(8), kind: word(12), data: rest[20..20 + size].to_vec() });
        rest = &rest[20 + size..];
    }
    replies
}

/// A connection whose output is kept apart from the greeting.
pub(super) struct Talk {
    pub(super) handshake: Handshake,
    pub(super) catalog: Catalog,
}

impl Talk {
    /// A connection past its greeting, with the client's flags sent.
    pub(super) fn new(catalog: Catalog) -> Self {
        Self::with_flags(catalog, FLAGS)
    }

    pub(super) fn with_flags(catalog: Catalog, flags: [u8; 4]) -> Self {
        let mut talk = Self { handshake: Handshake::default(), catalog };
        let (_, progress) = talk.say(&flags);
        assert_eq!(progress, Progress { consumed: 4, outcome: Outcome::NeedMore });
        talk
    }

    /// The output and what came of `input`.
    pub(super) fn say(&mut self, input: &[u8]) -> (Vec<u8>, Progress) {
        let mut output = Vec::new();
        let progress = self.handshake.advance(input, &mut output, &self.catalog);
        (output, progress)
    }

    /// The replies to one option that does not end the handshake.
    pub(super) fn ask(&mut self, number: u32, data: &[u8]) -> Vec<OptionReply> {
        let (output, progress) = self.say(&option(number, data));
        assert_eq!(progress.outcome, Outcome::NeedMore);
        option_replies(&output)
    }

    /// The replies to a GO that succeeds, and what was agreed on.
    pub(super) fn go(&mut self, data: &[u8]) -> (Vec<OptionReply>, Negotiated) {
        let (output, progress) = self.say(&option(7, data));
        (option_replies(&output), negotiated(progress))
    }
}

pub(super) fn negotiated(progress: Progress) -> Negotiated {
    match progress.outcome {
        Outcome::Transmission(negotiated) => *negotiated,
        other => panic!("the handshake did not end well: {other:?}"),
    }
}
