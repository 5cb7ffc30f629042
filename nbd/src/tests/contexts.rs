//! Metadata contexts, block status and extended headers: each rule, one test.

use super::catalog::{Talk, catalog, info_data, meta_data, option_with_length};
use super::memory_server::Pair;
use crate::client;
use crate::server::{CloseReason, Outcome, RequestRules, SelectedContext};
use crate::{
    CommandFlags, OptionError, OptionKind, ReplyForm, Request, RequestForm, RequestKind, StatusExtent,
    TransmissionFlags, WireError, limits,
};

const STRUCTURED_REPLY: u32 = 8;
const LIST: u32 = 9;
const SET: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;
const BASE: &[u8] = b"base:allocation";

/// A talk with structured replies.
fn structured() -> Talk {
    let mut talk = Talk::new(catalog());
    talk.ask(STRUCTURED_REPLY, &[]);
    talk
}

/// The ids and names that an option answers, before its acknowledgement.
fn contexts(talk: &mut Talk, option: u32, queries: &[&[u8]]) -> Vec<(u32, String)> {
    let mut replies = talk.ask(option, &meta_data(b"vol1", queries));
    assert!(replies.pop().expect("an answer").is_ack(OptionKind::from_number(option)));
    let take = |data: &[u8]| {
        let id = u32::from_be_bytes(data[..4].try_into().expect("4 bytes"));
        (id, String::from_utf8(data[4..].to_vec()).expect("a name"))
    };
    replies.iter().map(|reply| take(&reply.data)).collect()
}

fn refusal(talk: &mut Talk, option: u32, data: &[u8]) -> Option<OptionError> {
    let replies = talk.ask(option, data);
    let errors = [OptionError::Invalid, OptionError::Unknown, OptionError::TooBig, OptionError::Policy];
    assert_eq!(replies.len(), 1);
    errors.into_iter().find(|error| replies[0].is_error(OptionKind::from_number(option), *error))
}

fn chosen(talk: &mut Talk, name: &[u8]) -> Vec<SelectedContext> {
    talk.go(&info_data(name, &[3])).1.contexts
}

#[test]
fn list_without_queries_shows_all_contexts() {
    let all = vec![(0, "base:allocation".to_owned()), (0, "qemu:allocation-depth".to_owned())];
    assert_eq!(contexts(&mut structured(), LIST, &[]), all);
}

#[test]
fn list_of_a_namespace_shows_what_is_in_it_and_what_is_named_is_shown_once() {
    let depth = (0, "qemu:allocation-depth".to_owned());
    assert_eq!(contexts(&mut structured(), LIST, &[b"qemu:"]), std::slice::from_ref(&depth));
    assert_eq!(contexts(&mut structured(), LIST, &[b"qemu:", b"qemu:allocation-depth"]), [depth]);
    assert_eq!(contexts(&mut structured(), LIST, &[b"rok:diff:7"]), [(0, "rok:diff:7".to_owned())]);
    assert_eq!(contexts(&mut structured(), LIST, &[b"other:", b"base:nothing"]), []);
}

#[test]
fn set_chooses_what_is_named_exactly_and_gives_each_an_id_of_its_own() {
    let mut talk = structured();
    let found = contexts(&mut talk, SET, &[b"rok:diff:7", BASE, b"base:", b"qemu:", BASE, b"other:thing"]);
    assert_eq!(found, [(1, "rok:diff:7".to_owned()), (2, "base:allocation".to_owned())]);
    let names: Vec<_> = chosen(&mut talk, b"vol1").into_iter().map(|context| (context.id, context.name)).collect();
    assert_eq!(names, found);
}

#[test]
fn set_without_queries_chooses_nothing() {
    let mut talk = structured();
    contexts(&mut talk, SET, &[BASE]);
    assert_eq!(contexts(&mut talk, SET, &[]), []);
    assert_eq!(chosen(&mut talk, b"vol1"), []);
}

#[test]
fn set_that_fails_forgets_the_choice_before_it() {
    let failures: [(&[u8], OptionError); 5] = [
        (&meta_data(b"nothing", &[BASE]), OptionError::Unknown),
        (&meta_data(b"forbidden", &[BASE]), OptionError::Policy),
        (&meta_data(b"vol1", &[b"no-colon"]), OptionError::Invalid),
        (&meta_data(b"vol1", &[b"a:\xff"]), OptionError::Invalid),
        (&meta_data(b"vol1", &[BASE; 65]), OptionError::TooBig),
    ];
    for (data, error) in failures {
        let mut talk = structured();
        contexts(&mut talk, SET, &[BASE]);
        assert_eq!(refusal(&mut talk, SET, data), Some(error));
        assert_eq!(chosen(&mut talk, b"vol1"), []);
    }
}

#[test]
fn list_that_fails_keeps_the_choice_before_it() {
    let mut talk = structured();
    contexts(&mut talk, SET, &[BASE]);
    assert_eq!(refusal(&mut talk, LIST, b"x"), Some(OptionError::Invalid));
    assert_eq!(chosen(&mut talk, b"vol1").len(), 1);
}

#[test]
fn choice_for_another_export_is_void() {
    let mut talk = structured();
    contexts(&mut talk, SET, &[BASE]);
    assert_eq!(chosen(&mut talk, b"strict"), []);
}

#[test]
fn choice_by_the_default_name_holds_for_the_name_itself() {
    let mut talk = structured();
    talk.ask(SET, &meta_data(b"", &[BASE]));
    assert_eq!(chosen(&mut talk, b"vol1").len(), 1);
}

#[test]
fn contexts_without_structured_replies_are_invalid() {
    for option in [LIST, SET] {
        let data = meta_data(b"vol1", &[BASE]);
        assert_eq!(refusal(&mut Talk::new(catalog()), option, &data), Some(OptionError::Invalid));
    }
}

#[test]
fn contexts_cut_at_any_byte_or_with_bytes_behind_are_invalid() {
    let data = meta_data(b"vol1", &[BASE, b"qemu:"]);
    for option in [LIST, SET] {
        for len in 0..data.len() {
            assert_eq!(refusal(&mut structured(), option, &data[..len]), Some(OptionError::Invalid), "{len} bytes");
        }
        assert_eq!(refusal(&mut structured(), option, &[data.as_slice(), b"x"].concat()), Some(OptionError::Invalid));
    }
}

#[test]
fn lengths_inside_of_an_option_that_exceed_it_are_invalid() {
    let huge = u32::MAX.to_be_bytes();
    let of_name = [huge.as_slice(), b"vol1\0\0\0\0"].concat();
    let of_query = [b"\0\0\0\x04vol1\0\0\0\x01".as_slice(), &huge, b"base:allocation"].concat();
    assert_eq!(refusal(&mut structured(), SET, &of_name), Some(OptionError::Invalid));
    assert_eq!(refusal(&mut structured(), SET, &of_query), Some(OptionError::Invalid));
    let of_count = [b"\0\0\0\x04vol1".as_slice(), &huge].concat();
    assert_eq!(refusal(&mut structured(), SET, &of_count), Some(OptionError::TooBig));
}

#[test]
fn option_with_more_queries_than_are_kept_is_too_big_and_keeps_the_connection() {
    let mut talk = structured();
    contexts(&mut talk, SET, &[BASE]);
    let size = limits::META_OPTION_DATA_SIZE_MAX + 1;
    let data = vec![0; usize::try_from(size).expect("fits")];
    assert_eq!(refusal(&mut talk, SET, &data), Some(OptionError::TooBig));
    assert_eq!(chosen(&mut talk, b"vol1"), []);
}

#[test]
fn option_of_4_gib_closes() {
    let (_, progress) = structured().say(&option_with_length(SET, u32::MAX, b""));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::OptionTooLong(u32::MAX)));
}

#[test]
fn extended_headers_replace_structured_replies_and_export_name() {
    let mut talk = structured();
    assert!(talk.ask(EXTENDED_HEADERS, b"x")[0].is_error(OptionKind::ExtendedHeaders, OptionError::Invalid));
    assert!(talk.ask(EXTENDED_HEADERS, &[])[0].is_ack(OptionKind::ExtendedHeaders));
    let again = talk.ask(STRUCTURED_REPLY, &[]);
    assert!(again[0].is_error(OptionKind::StructuredReply, OptionError::ExtendedHeadersRequired));
    let (output, progress) = talk.say(&super::catalog::option(1, b"vol1"));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::ExportNameWithExtendedHeaders));
    assert!(output.is_empty());
}

#[test]
fn payload_of_block_status_is_offered_with_extended_headers_and_a_context_only() {
    let payload = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    for (form, has_context, is_offered) in
        [(ReplyForm::Structured, true, false), (ReplyForm::Extended, false, false), (ReplyForm::Extended, true, true)]
    {
        let mut pair = Pair::with_form(form);
        if has_context {
            choose(&mut pair, &["base:allocation"]);
        }
        assert_eq!(pair.go("vol1").flags.contains(payload), is_offered);
    }
}

fn choose(pair: &mut Pair, queries: &[&str]) {
    let outcome = pair.wish(|client, output| client.set_contexts("vol1", queries, output).expect("short names"));
    let client::Outcome::Contexts(found) = outcome else { panic!("refused: {outcome:?}") };
    assert_eq!(found.len(), queries.len());
}

/// A pair with two contexts and a MiB of zeroes, in which one block is not.
fn pair_with_status(form: ReplyForm) -> Pair {
    let mut pair = Pair::with_form(form);
    choose(&mut pair, &["base:allocation", "rok:diff:7"]);
    pair.go("vol1");
    pair.server.data[8192..12_288].fill(1);
    pair
}

#[test]
fn block_status_tells_each_context_once_in_merged_runs() {
    for form in [ReplyForm::Structured, ReplyForm::Extended] {
        let mut pair = pair_with_status(form);
        let chunks = pair.status(CommandFlags::NONE, (4096, 16_384), &[]).expect("an answer");
        let runs = |status| {
            [(4096, status), (4096, 0), (8192, status)].map(|(size_bytes, status)| StatusExtent { size_bytes, status })
        };
        assert_eq!(chunks.len(), 2);
        assert_eq!((chunks[0].context_id, chunks[0].extents.as_slice()), (1, runs(1).as_slice()));
        assert_eq!((chunks[1].context_id, chunks[1].extents.as_slice()), (2, runs(2).as_slice()));
    }
}

#[test]
fn block_status_with_a_payload_tells_the_contexts_it_names() {
    let mut pair = pair_with_status(ReplyForm::Extended);
    let payload = [4096_u64.to_be_bytes().as_slice(), &2_u32.to_be_bytes()].concat();
    let chunks = pair.status(CommandFlags::PAYLOAD_LEN, (0, 12), &payload).expect("an answer");
    assert_eq!(chunks.len(), 1);
    assert_eq!((chunks[0].context_id, chunks[0].extents[0].size_bytes), (2, 4096));
}

#[test]
fn payload_of_block_status_that_breaks_a_rule_is_invalid_and_keeps_the_stream_in_step() {
    let mut pair = pair_with_status(ReplyForm::Extended);
    let size = 512_u64.to_be_bytes();
    let cases: [&[&[u8]]; 6] = [
        &[b"x"],
        &[&size],
        &[&size, &1_u32.to_be_bytes(), b"x"],
        &[&size, &3_u32.to_be_bytes()],
        &[&size, &1_u32.to_be_bytes(), &1_u32.to_be_bytes()],
        &[&u64::MAX.to_be_bytes(), &1_u32.to_be_bytes()],
    ];
    for parts in cases {
        let payload = parts.concat();
        let length = u64::try_from(payload.len()).expect("short");
        let result = pair.status(CommandFlags::PAYLOAD_LEN, (0, length), &payload);
        assert_eq!(result, Err(WireError::Invalid), "{payload:?}");
    }
    let too_long = vec![0; usize::try_from(limits::STATUS_PAYLOAD_SIZE_MAX).expect("fits") + 1];
    let length = limits::STATUS_PAYLOAD_SIZE_MAX + 1;
    assert_eq!(pair.status(CommandFlags::PAYLOAD_LEN, (0, length), &too_long), Err(WireError::Invalid));
    assert_eq!(pair.status(CommandFlags::NONE, (0, 512), &[]).expect("in step").len(), 2);
}

#[test]
fn block_status_of_nothing_or_past_the_end_is_invalid() {
    for form in [ReplyForm::Structured, ReplyForm::Extended] {
        let mut pair = pair_with_status(form);
        for range in [(0, 0), (super::catalog::SIZE_BYTES, 1), (1, super::catalog::SIZE_BYTES), (u64::MAX, 512)] {
            assert_eq!(pair.status(CommandFlags::NONE, range, &[]), Err(WireError::Invalid), "{range:?}");
        }
    }
}

#[test]
fn block_status_without_a_context_is_invalid() {
    let mut pair = Pair::connected(ReplyForm::Structured);
    assert_eq!(pair.status(CommandFlags::NONE, (0, 512), &[]), Err(WireError::Invalid));
}

/// What is left of a length near 2^32, or of the whole offset, never wraps (CVE-2025-47711, CVE-2025-47712).
#[test]
fn block_status_of_the_longest_lengths_is_judged_without_overflow() {
    let mut export = catalog().exports.swap_remove(0);
    export.size_bytes = u64::MAX;
    for (form, request_form, length) in [
        (ReplyForm::Structured, RequestForm::Compact, 0xffff_ffff_u64),
        (ReplyForm::Structured, RequestForm::Compact, 0xffff_fe01),
        (ReplyForm::Extended, RequestForm::Extended, u64::MAX),
    ] {
        let rules = RequestRules::new(&export, form, 1);
        let kind = RequestKind::BlockStatus;
        let at = |offset| Request { form: request_form, flags: CommandFlags::REQ_ONE, kind, cookie: 0, offset, length };
        assert_eq!(rules.check(&at(0)), Ok(()));
        assert_eq!(rules.status_request(&at(0), &[]).expect("legal").size_bytes, length);
        assert!(rules.check(&at(u64::MAX - length + 1)).is_err());
    }
}

#[test]
fn flag_of_block_status_and_cache_that_was_not_offered_is_invalid() {
    let rules = RequestRules::new(&catalog().exports[0], ReplyForm::Structured, 1);
    for (kind, legal) in [(RequestKind::BlockStatus, 1 | 8), (RequestKind::Cache, 1)] {
        for flag in (0..16).map(|bit| 1_u16 << bit) {
            let flags = CommandFlags(flag);
            let request = Request { form: RequestForm::Compact, flags, kind, cookie: 0, offset: 0, length: 512 };
            assert_eq!(rules.check(&request).is_ok(), flag & legal != 0, "{request:?}");
        }
    }
}

#[test]
fn cache_that_was_not_offered_is_invalid() {
    let mut export = catalog().exports.swap_remove(0);
    export.features.has_cache = false;
    let rules = RequestRules::new(&export, ReplyForm::Structured, 0);
    let (form, flags, kind) = (RequestForm::Compact, CommandFlags::NONE, RequestKind::Cache);
    assert!(rules.check(&Request { form, flags, kind, cookie: 0, offset: 0, length: 512 }).is_err());
}

#[test]
fn any_command_with_a_payload_it_may_not_have_is_dropped_whole() {
    let mut pair = Pair::connected(ReplyForm::Extended);
    for kind in [RequestKind::Read, RequestKind::Trim, RequestKind::Flush, RequestKind::Unknown(99)] {
        let result = pair.call(kind, CommandFlags::PAYLOAD_LEN, 0, 100, &[7; 100]);
        assert_eq!(result.map_err(|(error, _)| error), Err(WireError::Invalid), "{kind:?}");
    }
    assert_eq!(pair.call(RequestKind::Read, CommandFlags::NONE, 0, 1, &[]), Ok(vec![0]), "in step");
}

#[test]
fn extended_write_has_a_payload_with_and_without_the_flag_for_it() {
    let mut pair = Pair::connected(ReplyForm::Extended);
    for flags in [CommandFlags::NONE, CommandFlags::PAYLOAD_LEN] {
        assert_eq!(pair.call(RequestKind::Write, flags, 0, 3, b"abc"), Ok(Vec::new()));
    }
    assert_eq!(pair.call(RequestKind::Read, CommandFlags::NONE, 0, 3, &[]), Ok(b"abc".to_vec()));
}

#[test]
fn compact_magic_with_extended_headers_is_out_of_step_and_the_other_way_round() {
    let compact = Request {
        form: RequestForm::Compact,
        flags: CommandFlags::NONE,
        kind: RequestKind::Read,
        cookie: 0,
        offset: 0,
        length: 0,
    };
    assert!(Request::parse(&compact.encode(), RequestForm::Extended).is_err());
    let extended = Request { form: RequestForm::Extended, length: 1 << 40, ..compact };
    assert_eq!(Request::parse(&extended.encode(), RequestForm::Extended), Ok(Some(extended)));
    assert!(Request::parse(&extended.encode(), RequestForm::Compact).is_err());
    for len in 0..RequestForm::Extended.size() {
        assert_eq!(Request::parse(&extended.encode()[..len], RequestForm::Extended), Ok(None));
    }
}
