//! Input that no honest peer sends, and input cut at every byte.

use proptest::prelude::*;

use super::catalog::{FLAGS, Talk, catalog, info_data, meta_data, option, option_with_length};
use crate::client;
use crate::client::Reply;
use crate::server::{Export, Handshake, Outcome, Refusal, RequestRules};
use crate::{CommandFlags, ReplyForm, Request, RequestForm, RequestKind, limits};

/// Feeds `input` in pieces of the given sizes (repeated), as an owner would; everything sent, how much was taken, and
/// the end.
fn fed(input: &[u8], piece_sizes: &[usize]) -> (Vec<u8>, usize, Outcome) {
    let mut handshake = Handshake::default();
    let exports = catalog();
    let mut sent = Vec::new();
    let mut output = Vec::new();
    let mut outcome = handshake.advance(&[], &mut output, &exports).outcome;
    let mut consumed = 0;
    let mut sizes = piece_sizes.iter().cycle();
    while consumed < input.len() && matches!(outcome, Outcome::NeedMore | Outcome::SendFirst) {
        sent.append(&mut output);
        let size = (*sizes.next().expect("at least one size")).min(input.len() - consumed);
        let progress = handshake.advance(&input[consumed..consumed + size], &mut output, &exports);
        consumed += progress.consumed;
        outcome = progress.outcome;
    }
    sent.append(&mut output);
    (sent, consumed, outcome)
}

/// A long handshake that uses every option, wrong and right, and ends with a choice.
fn long_handshake() -> Vec<u8> {
    let pieces = [
        FLAGS.to_vec(),
        option(3, b"data"),
        option(99, &[7; 300]),
        option(3, &[]),
        option(8, &[]),
        option(9, &meta_data(b"vol1", &[b"qemu:"])),
        option(10, &meta_data(b"vol1", &[b"base:allocation", b"rok:diff:7"])),
        option(11, &[]),
        option(6, &info_data(b"nothing", &[1, 3])),
        option(6, &info_data(b"strict", &[1])),
        option(7, b"\xff\xff\xff\xff"),
        option(7, &info_data(b"vol1", &[1, 2, 3])),
    ];
    pieces.concat()
}

#[test]
fn handshake_fed_byte_by_byte_equals_the_handshake_fed_at_once() {
    let closing = [FLAGS.to_vec(), option(3, &[]), option(2, b"bye")].concat();
    let by_name = [FLAGS.to_vec(), option(8, &[]), option(1, b"vol1")].concat();
    for input in [long_handshake(), closing, by_name] {
        assert_eq!(fed(&input, &[1]), fed(&input, &[usize::MAX]));
    }
}

#[test]
fn connection_cut_at_any_byte_is_only_waited_for() {
    let input = long_handshake();
    for len in 0..input.len() {
        let (_, consumed, outcome) = fed(&input[..len], &[usize::MAX]);
        assert_eq!((consumed, outcome), (len, Outcome::NeedMore));
    }
    assert!(matches!(fed(&input, &[usize::MAX]).2, Outcome::Transmission(_)));
}

#[test]
fn length_of_4_gib_in_any_option_closes_at_once() {
    for number in 0..16 {
        let (output, progress) = Talk::new(catalog()).say(&option_with_length(number, u32::MAX, b"some data"));
        assert!(matches!(progress.outcome, Outcome::Close(_)));
        assert_eq!((output.len(), progress.consumed), (0, 16));
    }
}

#[test]
fn dropped_data_of_the_longest_option_are_taken_without_being_kept() {
    let mut talk = Talk::new(catalog());
    talk.say(&option_with_length(99, limits::OPTION_SKIP_SIZE_MAX, &[]));
    let piece = vec![0; 1000];
    let (output, progress) = talk.say(&piece);
    assert_eq!((output.len(), progress.consumed, progress.outcome), (0, 1000, Outcome::NeedMore));
}

#[test]
fn client_that_never_reads_gets_no_more_than_the_bound_and_one_answer() {
    let input = [FLAGS.to_vec(), option(3, &[]).repeat(100)].concat();
    let mut catalog = catalog();
    catalog
        .exports
        .extend((0..200).map(|index| Export::new(format!("{index:04096}"), 1 << 20, super::catalog::ALL_FEATURES)));
    let mut output = Vec::new();
    let mut handshake = Handshake::default();
    let mut consumed = 0;
    for _ in 0..1000 {
        let progress = handshake.advance(&input[consumed..], &mut output, &catalog);
        consumed += progress.consumed;
    }
    // 203 names of up to 4096 bytes, each with 24 bytes in front.
    assert!(output.len() < limits::OUTPUT_SIZE_PAUSE + 203 * (4096 + 24) + 20);
    assert!(consumed < input.len());
}

/// Option, kind, whether it is an error, and data of a server's reply.
fn any_option_reply() -> impl Strategy<Value = (u32, u32, bool, Vec<u8>)> {
    (0..12_u32, 0..6_u32, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40))
}

/// An option as a client might send it: right, wrong, of any kind.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just(b"vol1".to_vec()),
        Just(b"strict".to_vec()),
        Just(b"nothing".to_vec()),
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let info =
        (name.clone(), proptest::collection::vec(0..6_u16, 0..5)).prop_map(|(name, infos)| info_data(&name, &infos));
    let query = prop_oneof![
        Just(b"base:allocation".to_vec()),
        Just(b"qemu:".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..20),
    ];
    let meta = (name.clone(), proptest::collection::vec(query, 0..5))
        .prop_map(|(name, queries)| meta_data(&name, &queries.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    let data = prop_oneof![Just(Vec::new()), info, meta, name, proptest::collection::vec(any::<u8>(), 0..60)];
    (0..12_u32, data).prop_map(|(number, data)| option(number, &data))
}

proptest! {
    #[test]
    fn options_in_any_order_and_any_pieces_have_the_same_outcome(
        flags in 0..4_u8,
        options in proptest::collection::vec(any_option(), 0..12),
        piece_sizes in proptest::collection::vec(1..50_usize, 1..8),
    ) {
        let input = [vec![0, 0, 0, flags], options.concat()].concat();
        let whole = fed(&input, &[usize::MAX]);
        prop_assert_eq!(&fed(&input, &piece_sizes), &whole);
        prop_assert!(whole.1 <= input.len());
        prop_assert!(whole.1 == input.len() || !matches!(whole.2, Outcome::NeedMore));
    }

    #[test]
    fn garbage_in_the_handshake_never_panics(
        input in proptest::collection::vec(any::<u8>(), 0..2000),
        piece_size in 1..100_usize,
    ) {
        fed(&input, &[piece_size]);
        fed(&[FLAGS.as_slice(), &input].concat(), &[piece_size]);
        fed(&[FLAGS.as_slice(), b"IHAVEOPT\0\0\0", &input].concat(), &[piece_size]);
    }

    #[test]
    fn garbage_option_data_never_panic(number in 0..12_u32, data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut talk = Talk::new(catalog());
        talk.say(&option(number, &data));
    }

    #[test]
    fn damaged_handshake_never_panics(position: prop::sample::Index, byte: u8) {
        let mut input = long_handshake();
        let position = position.index(input.len());
        input[position] = byte;
        prop_assert_eq!(fed(&input, &[1]), fed(&input, &[usize::MAX]));
    }

    #[test]
    fn garbage_request_is_parsed_or_refused_and_what_passes_lies_in_the_export(
        body: [u8; 28],
        is_extended: bool,
        size_bytes in prop_oneof![Just(0_u64), 0..1_u64 << 33, any::<u64>()],
        number in 0..9_u16,
        flags in 0..64_u16,
        context_count in 0..3_usize,
    ) {
        let form = if is_extended { RequestForm::Extended } else { RequestForm::Compact };
        let magic = if is_extended { b"\x21\xe4\x1c\x71" } else { b"\x25\x60\x95\x13" };
        let bytes = [magic.as_slice(), &body[..form.size() - 4]].concat();
        let mut request = Request::parse(&bytes, form).expect("the magic number is right").expect("all bytes");
        prop_assert_eq!(request.encode(), bytes.clone());
        (request.kind, request.flags) = (RequestKind::from_number(number), CommandFlags(flags));
        let export = Export::new("any", size_bytes, super::catalog::ALL_FEATURES);
        let reply_form = if is_extended { ReplyForm::Extended } else { ReplyForm::Structured };
        let rules = RequestRules::new(&export, reply_form, context_count);
        let drain_max = u64::from(limits::DRAIN_SIZE_MAX);
        match rules.check(&request) {
            Ok(()) if request.kind == RequestKind::Disconnect => {}
            Ok(()) if request.kind == RequestKind::BlockStatus && request.payload_size_bytes() > 0 => {
                prop_assert!(request.payload_size_bytes() <= limits::STATUS_PAYLOAD_SIZE_MAX);
            }
            Ok(()) => {
                let end = u128::from(request.offset) + u128::from(request.length);
                prop_assert!(end <= u128::from(size_bytes));
                prop_assert!(request.payload_size_bytes() <= drain_max);
            }
            Err(Refusal::Answer { drain_size_bytes, .. }) => {
                prop_assert_eq!(u64::from(drain_size_bytes), request.payload_size_bytes());
                prop_assert!(u64::from(drain_size_bytes) <= drain_max);
            }
            Err(Refusal::Close) => prop_assert!(request.payload_size_bytes() > drain_max),
        }
    }

    #[test]
    fn garbage_payload_of_a_block_status_is_refused_or_names_chosen_contexts(
        payload in prop_oneof![
            proptest::collection::vec(any::<u8>(), 1..40),
            (1..600_u64, proptest::collection::vec(0..5_u32, 0..5)).prop_map(|(size, ids)| {
                let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
                [size.to_be_bytes().as_slice(), &ids].concat()
            }),
        ],
    ) {
        let rules = RequestRules::new(&catalog().exports[0], ReplyForm::Extended, 3);
        let request = Request {
            form: RequestForm::Extended,
            flags: CommandFlags::PAYLOAD_LEN,
            kind: RequestKind::BlockStatus,
            cookie: 1,
            offset: super::catalog::SIZE_BYTES - 512,
            length: u64::try_from(payload.len()).expect("short"),
        };
        prop_assert_eq!(rules.check(&request), Ok(()));
        if let Ok(asked) = rules.status_request(&request, &payload) {
            prop_assert!((1..=512).contains(&asked.size_bytes));
            prop_assert!(!asked.context_ids.is_empty() && asked.context_ids.iter().all(|id| (1..=3).contains(id)));
            let distinct: std::collections::BTreeSet<_> = asked.context_ids.iter().collect();
            prop_assert_eq!(distinct.len(), asked.context_ids.len());
        }
    }

    #[test]
    fn garbage_never_panics_the_request_parser(input in proptest::collection::vec(any::<u8>(), 0..64)) {
        let is_right = input.len() >= 4 && input[..4] == *b"\x25\x60\x95\x13";
        prop_assert_eq!(Request::parse(&input, RequestForm::Compact).is_ok(), is_right || input.len() < 4);
    }

    #[test]
    fn garbage_replies_never_panic_the_client(
        magic in prop_oneof![Just(0x6744_6698_u32), Just(0x668e_33ef), Just(0x6e8a_278c), any::<u32>()],
        input in proptest::collection::vec(any::<u8>(), 0..64),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        kind in prop_oneof![0..8_u16, 0x8000..0x8004_u16],
    ) {
        let bytes = [magic.to_be_bytes().as_slice(), &input].concat();
        if let Ok(Some((Reply::Chunk(header), size))) = Reply::parse(&bytes) {
            prop_assert_eq!(size, if header.request_offset.is_some() { 32 } else { 20 });
            let header = client::ChunkHeader { kind: crate::ChunkKind::from_number(kind), ..header };
            prop_assert!(header.extent(&payload).is_err() || !header.kind.is_error());
            prop_assert!(header.status(&payload).is_err() || !header.kind.is_error());
            prop_assert!(header.error(&payload).is_err() || header.kind.is_error());
        }
    }

    #[test]
    fn garbage_from_a_server_never_panics_the_client(
        wish in 0..7_u8,
        replies in proptest::collection::vec(any_option_reply(), 0..10),
        tail in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut handshake = client::Handshake::new();
        let mut output = Vec::new();
        handshake.advance(b"NBDMAGICIHAVEOPT\0\x03", &mut output);
        match wish {
            0 => handshake.list(&mut output),
            1 => handshake.info("vol1", &mut output).expect("a short name"),
            2 => handshake.go("vol1", &mut output).expect("a short name"),
            3 => handshake.export_name("vol1", &mut output).expect("a short name"),
            4 => handshake.set_contexts("vol1", &["base:allocation"], &mut output).expect("short names"),
            5 => handshake.request_extended_headers(&mut output),
            _ => handshake.request_structured_replies(&mut output),
        }
        let mut input = Vec::new();
        for (option, kind, is_error, data) in replies {
            let kind = if is_error { kind | 1 << 31 } else { kind };
            input.extend_from_slice(&0x0003_e889_0455_65a9_u64.to_be_bytes());
            input.extend_from_slice(&option.to_be_bytes());
            input.extend_from_slice(&kind.to_be_bytes());
            input.extend_from_slice(&u32::try_from(data.len()).expect("short").to_be_bytes());
            input.extend_from_slice(&data);
        }
        input.extend_from_slice(&tail);
        let progress = handshake.advance(&input, &mut output);
        prop_assert!(progress.consumed <= input.len());
    }
}

#[test]
fn client_fed_byte_by_byte_equals_the_client_fed_at_once() {
    let mut talk = Talk::new(catalog());
    let mut wish = Vec::new();
    let mut whole = client::Handshake::new();
    whole.advance(b"NBDMAGICIHAVEOPT\0\x03", &mut Vec::new());
    whole.go("vol1", &mut wish).expect("a short name");
    let (replies, _) = talk.say(&wish);

    let mut pieces = client::Handshake::new();
    for byte in b"NBDMAGICIHAVEOPT\0\x03" {
        pieces.advance(&[*byte], &mut Vec::new());
    }
    pieces.go("vol1", &mut Vec::new()).expect("a short name");
    let (last, before) = replies.split_last().expect("replies");
    for byte in before {
        let progress = pieces.advance(&[*byte], &mut Vec::new());
        assert_eq!((progress.consumed, progress.outcome), (1, client::Outcome::NeedMore));
    }
    let outcome = pieces.advance(&[*last], &mut Vec::new()).outcome;
    assert!(matches!(outcome, client::Outcome::Transmission(_)));
    assert_eq!(outcome, whole.advance(&replies, &mut Vec::new()).outcome);
}
