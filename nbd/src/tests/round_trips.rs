//! The client against the server, in memory.

use proptest::prelude::*;

use super::catalog::{ALL_FEATURES, SIZE_BYTES, catalog};
use super::memory_server::Pair;
use crate::client;
use crate::{BlockSizes, CommandFlags, OptionError, ReplyForm, RequestForm, RequestKind, TransmissionFlags, WireError};

const NONE: CommandFlags = CommandFlags::NONE;
const FORMS: [ReplyForm; 3] = [ReplyForm::Simple, ReplyForm::Structured, ReplyForm::Extended];

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| u8::try_from(index % 251).expect("below 251") + 1).collect()
}

#[test]
fn client_lists_the_servers_exports() {
    let outcome = Pair::new().wish(client::Handshake::list);
    assert_eq!(outcome, client::Outcome::Listed(vec!["vol1".into(), "strict".into(), "frozen".into()]));
}

#[test]
fn client_gets_everything_the_server_tells_of_an_export() {
    let outcome = Pair::new().wish(|client, output| client.info("", output).expect("a short name"));
    let client::Outcome::Described(info) = outcome else { panic!("not described: {outcome:?}") };
    assert_eq!(info.size_bytes, SIZE_BYTES);
    assert_eq!(info.flags, catalog().exports[0].transmission_flags(ReplyForm::Simple, false));
    assert_eq!(info.name.as_deref(), Some("vol1"));
    assert_eq!(info.description.as_deref(), Some("the first volume"));
    assert_eq!(info.block_sizes, Some(BlockSizes::DEFAULT));
}

#[test]
fn client_opens_an_export_that_needs_block_sizes() {
    assert_eq!(Pair::new().go("strict").block_sizes.map(BlockSizes::min), Some(4096));
}

#[test]
fn client_opens_an_export_by_export_name() {
    let outcome = Pair::new().wish(|client, output| client.export_name("vol1", output).expect("a short name"));
    let client::Outcome::Transmission(info) = outcome else { panic!("not opened: {outcome:?}") };
    assert_eq!(
        (info.size_bytes, info.flags),
        (SIZE_BYTES, catalog().exports[0].transmission_flags(ReplyForm::Simple, false))
    );
}

#[test]
fn client_is_told_why_an_export_is_refused_and_may_choose_another() {
    let mut pair = Pair::new();
    let outcome = pair.wish(|client, output| client.go("nothing", output).expect("a short name"));
    let message = "Export \"nothing\" is not known".to_owned();
    assert_eq!(outcome, client::Outcome::Refused(OptionError::Unknown, message));
    assert_eq!(pair.go("vol1").size_bytes, SIZE_BYTES);
}

#[test]
fn client_sees_df_after_structured_replies() {
    let mut pair = Pair::new();
    pair.wish(client::Handshake::request_structured_replies);
    assert_eq!(pair.client.reply_form(), ReplyForm::Structured);
    assert!(pair.go("vol1").flags.contains(TransmissionFlags::SEND_DF));
}

#[test]
fn client_aborts() {
    let mut pair = Pair::new();
    assert_eq!(pair.wish(client::Handshake::abort), client::Outcome::Closed);
    assert!(pair.is_closed());
}

#[test]
fn every_command_round_trips_with_simple_and_structured_replies() {
    for form in FORMS {
        let mut pair = Pair::connected(form);
        let data = pattern(4096);
        assert_eq!(pair.call(RequestKind::Write, CommandFlags::FUA, 1000, 4096, &data), Ok(vec![]));
        assert_eq!(pair.call(RequestKind::Flush, NONE, 0, 0, &[]), Ok(vec![]));
        assert_eq!(pair.call(RequestKind::Read, NONE, 1000, 4096, &[]), Ok(data.clone()));
        assert_eq!(pair.call(RequestKind::Trim, NONE, 1000, 1024, &[]), Ok(vec![]));
        let flags = CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO);
        assert_eq!(pair.call(RequestKind::WriteZeroes, flags, 4000, 96, &[]), Ok(vec![]));
        let expected = [&[0; 1024], &data[1024..3000], &[0; 96], &data[3096..]].concat();
        assert_eq!(pair.call(RequestKind::Read, CommandFlags::FUA, 1000, 4096, &[]), Ok(expected));
        let disconnect = crate::Request {
            form: if form == ReplyForm::Extended { RequestForm::Extended } else { RequestForm::Compact },
            flags: NONE,
            kind: RequestKind::Disconnect,
            cookie: 9,
            offset: 1,
            length: 1,
        };
        pair.deliver(&disconnect.encode());
        assert!(pair.is_closed());
    }
}

#[test]
fn read_comes_back_whole_from_data_and_holes() {
    let mut pair = Pair::connected(ReplyForm::Structured);
    pair.server.piece_size_bytes = Some(512);
    pair.server.data[4096..5000].copy_from_slice(&pattern(904));
    let expected = pair.server.data[3000..9000].to_vec();
    assert_eq!(pair.call(RequestKind::Read, NONE, 3000, 6000, &[]), Ok(expected.clone()));
    assert_eq!(pair.call(RequestKind::Read, CommandFlags::DF, 3000, 6000, &[]), Ok(expected));
}

#[test]
fn requests_of_length_zero_are_answered_and_keep_the_connection() {
    for form in FORMS {
        let mut pair = Pair::connected(form);
        for kind in [RequestKind::Read, RequestKind::Write, RequestKind::Trim, RequestKind::WriteZeroes] {
            assert_eq!(pair.call(kind, NONE, 512, 0, &[]), Ok(vec![]));
        }
        assert!(!pair.is_closed());
    }
}

#[test]
fn stream_stays_in_step_behind_a_refused_write() {
    for form in FORMS {
        let mut pair = Pair::connected(form);
        // The payload looks like a request: it must not be taken for one.
        let payload = b"\x25\x60\x95\x13".repeat(256);
        let result = pair.call(RequestKind::Write, NONE, SIZE_BYTES, 1024, &payload);
        assert_eq!(result.expect_err("past the end").0, WireError::NoSpace);
        assert_eq!(pair.call(RequestKind::Read, NONE, 0, 512, &[]), Ok(vec![0; 512]));
    }
}

#[test]
fn early_error_of_a_read_is_structured_and_explained_where_that_was_negotiated() {
    let mut pair = Pair::connected(ReplyForm::Structured);
    let (error, message) = pair.call(RequestKind::Read, NONE, SIZE_BYTES, 1, &[]).expect_err("past the end");
    assert_eq!((error, message.as_str()), (WireError::Invalid, "The request reaches past the end of the export"));
}

#[test]
fn refused_commands_keep_the_connection() {
    let mut pair = Pair::connected(ReplyForm::Structured);
    for number in [5, 7, 8, 999] {
        let result = pair.call(RequestKind::Unknown(number), NONE, 0, u64::from(u32::MAX), &[]);
        assert_eq!(result.expect_err("unknown").0, WireError::Invalid);
    }
    assert_eq!(pair.call(RequestKind::Flush, NONE, 0, 0, &[]), Ok(vec![]));
}

#[test]
fn write_of_4_gib_closes() {
    let mut pair = Pair::connected(ReplyForm::Structured);
    let request = crate::Request {
        form: RequestForm::Compact,
        flags: NONE,
        kind: RequestKind::Write,
        cookie: 1,
        offset: 0,
        length: u64::from(u32::MAX),
    };
    pair.deliver(&request.encode());
    assert!(pair.is_closed());
}

/// One request of the property below.
fn any_call() -> impl Strategy<Value = (u8, u16, u64, u32)> {
    // Offsets around both ends of the export and lengths that often cross its end.
    let offset = prop_oneof![0..8192_u64, SIZE_BYTES - 8192..SIZE_BYTES + 8192, any::<u64>()];
    (0..9_u8, prop_oneof![Just(0_u16), 0..32_u16, any::<u16>()], offset, 0..16_384_u32)
}

proptest! {
    #[test]
    fn reads_return_what_was_written_whatever_else_was_asked(
        form in prop_oneof![Just(ReplyForm::Simple), Just(ReplyForm::Structured), Just(ReplyForm::Extended)],
        piece_size in proptest::option::of(1..5000_u32),
        calls in proptest::collection::vec(any_call(), 1..30),
    ) {
        let mut pair = Pair::connected(form);
        pair.server.piece_size_bytes = piece_size;
        let mut model = pair.server.data.clone();
        for (number, flags, offset, length) in calls {
            let kind = RequestKind::from_number(u16::from(number));
            if kind == RequestKind::Disconnect {
                continue;
            }
            let is_announced = form == ReplyForm::Extended && flags & CommandFlags::PAYLOAD_LEN.0 != 0;
            let payload = if kind == RequestKind::Write || is_announced {
                vec![number + u8::try_from(length % 200).expect("below 200"); usize::try_from(length).expect("fits")]
            } else {
                Vec::new()
            };
            let result = pair.call(kind, CommandFlags(flags), offset, u64::from(length), &payload);
            let is_inside = offset <= SIZE_BYTES && u64::from(length) <= SIZE_BYTES - offset;
            if let (true, Ok(data)) = (is_inside, &result) {
                let begin = usize::try_from(offset).expect("fits");
                let range = begin..begin + usize::try_from(length).expect("fits");
                match kind {
                    RequestKind::Read => prop_assert_eq!(data, &model[range]),
                    RequestKind::Write => model[range].copy_from_slice(&payload),
                    RequestKind::Trim | RequestKind::WriteZeroes => model[range].fill(0),
                    _ => {}
                }
            } else if let Ok(data) = &result {
                prop_assert!(data.is_empty() && kind == RequestKind::Flush);
            }
            prop_assert!(ALL_FEATURES.has_flush && !pair.is_closed());
        }
        prop_assert_eq!(&pair.server.data, &model);
    }
}
