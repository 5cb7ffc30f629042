//! Each rule of the handshake, one test each.

use super::catalog::{
    FLAGS, SIZE_BYTES, Talk, catalog, info_data, negotiated, no_exports, option, option_replies, option_with_length,
};
use crate::server::{CloseReason, FindError, Handshake, HandshakeBounds, Outcome, TlsOffer};
use crate::{ClientFlags, InfoKind, OptionError, OptionKind, ReplyForm, TransmissionFlags, limits};

/// Flags of `vol1` without structured replies: HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE,
/// FAST_ZERO.
const VOL1_FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048;
const DF: u16 = 128;

#[test]
fn server_greets_first_with_fixed_newstyle_and_no_zeroes() {
    let mut output = Vec::new();
    let progress = Handshake::default().advance(&[], &mut output, &catalog());
    assert_eq!(progress.outcome, Outcome::NeedMore);
    assert_eq!(output, b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn client_flag_that_was_not_offered_closes() {
    let mut talk = Talk { handshake: Handshake::default(), catalog: catalog() };
    let (_, progress) = talk.say(&[0, 0, 0, 7]);
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::UnknownClientFlags(ClientFlags(7))));
}

#[test]
fn option_without_the_magic_number_closes() {
    let (output, progress) = Talk::new(catalog()).say(b"IHAVEOPS\0\0\0\x03\0\0\0\0");
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::BadOptionMagic));
    assert!(output.is_empty());
}

#[test]
fn client_without_fixed_newstyle_may_send_export_name_only() {
    let (output, progress) = Talk::with_flags(catalog(), [0, 0, 0, 2]).say(&option(3, &[]));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::NotFixedNewstyle(OptionKind::List)));
    assert!(output.is_empty());
    let (output, progress) = Talk::with_flags(catalog(), [0, 0, 0, 2]).say(&option(1, b"vol1"));
    assert_eq!((negotiated(progress).requested_name.as_str(), output.len()), ("vol1", 10));
}

#[test]
fn export_name_is_answered_with_10_bytes_to_a_client_with_no_zeroes() {
    let (output, progress) = Talk::new(catalog()).say(&option(1, b"vol1"));
    assert_eq!(output, [SIZE_BYTES.to_be_bytes().as_slice(), &VOL1_FLAGS.to_be_bytes()].concat());
    assert!(negotiated(progress).is_without_zeroes);
}

#[test]
fn export_name_is_answered_with_134_bytes_to_a_client_without_no_zeroes() {
    let (output, progress) = Talk::with_flags(catalog(), [0, 0, 0, 1]).say(&option(1, b"vol1"));
    assert_eq!(output[..8], SIZE_BYTES.to_be_bytes());
    assert_eq!(output[8..10], VOL1_FLAGS.to_be_bytes());
    assert_eq!(output[10..], [0; 124]);
    assert!(!negotiated(progress).is_without_zeroes);
}

#[test]
fn go_is_never_padded_with_zeroes() {
    let (output, progress) = Talk::with_flags(catalog(), [0, 0, 0, 1]).say(&option(7, &info_data(b"vol1", &[])));
    let replies = option_replies(&output);
    assert_eq!(replies.len(), 2);
    assert!(replies[1].is_ack(OptionKind::Go));
    assert!(!negotiated(progress).is_without_zeroes);
}

#[test]
fn export_name_of_an_unknown_export_closes_without_an_answer() {
    let (output, progress) = Talk::new(catalog()).say(&option(1, b"nothing"));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::NoExport(FindError::Unknown)));
    assert!(output.is_empty());
}

#[test]
fn empty_export_name_chooses_the_default_export() {
    let (_, progress) = Talk::new(catalog()).say(&option(1, b""));
    let negotiated = negotiated(progress);
    assert_eq!((negotiated.requested_name.as_str(), negotiated.export.name.as_str()), ("", "vol1"));
}

#[test]
fn export_name_of_an_export_that_needs_block_sizes_closes() {
    let (output, progress) = Talk::new(catalog()).say(&option(1, b"strict"));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::BlockSizesNeeded));
    assert!(output.is_empty());
}

#[test]
fn export_name_tells_df_after_structured_replies_were_negotiated() {
    let mut talk = Talk::new(catalog());
    talk.ask(8, &[]);
    let (output, progress) = talk.say(&option(1, b"vol1"));
    assert_eq!(output[8..10], (VOL1_FLAGS | DF).to_be_bytes());
    assert_eq!(negotiated(progress).reply_form, ReplyForm::Structured);
}

#[test]
fn abort_is_acknowledged_and_closes_whatever_its_data() {
    for data in [b"".as_slice(), b"some data"] {
        let (output, progress) = Talk::new(catalog()).say(&option(2, data));
        assert_eq!(progress.outcome, Outcome::Close(CloseReason::Aborted));
        assert!(option_replies(&output)[0].is_ack(OptionKind::Abort));
    }
}

#[test]
fn list_names_every_export_and_ends_with_an_acknowledgement() {
    let replies = Talk::new(catalog()).ask(3, &[]);
    let names: Vec<_> = replies[..3].iter().map(|reply| (reply.kind, reply.data[4..].to_vec())).collect();
    assert_eq!(names, [(2, b"vol1".to_vec()), (2, b"strict".to_vec()), (2, b"frozen".to_vec())]);
    assert_eq!(replies[0].data[..4], [0, 0, 0, 4]);
    assert!(replies[3].is_ack(OptionKind::List));
    assert_eq!(replies.len(), 4);
}

#[test]
fn list_of_no_exports_is_an_acknowledgement() {
    let replies = Talk::new(no_exports()).ask(3, &[]);
    assert_eq!(replies.len(), 1);
    assert!(replies[0].is_ack(OptionKind::List));
}

#[test]
fn list_leaves_out_names_that_the_protocol_cannot_carry() {
    let mut catalog = catalog();
    catalog.exports[0].name = "x".repeat(4097);
    catalog.exports[1].name = "nul\0nul".to_owned();
    let replies = Talk::new(catalog).ask(3, &[]);
    assert_eq!(replies.len(), 2);
    assert_eq!(&replies[0].data[4..], b"frozen");
}

#[test]
fn list_with_data_is_invalid_and_keeps_the_connection() {
    let mut talk = Talk::new(catalog());
    assert!(talk.ask(3, b"x")[0].is_error(OptionKind::List, OptionError::Invalid));
    assert_eq!(talk.ask(3, &[]).len(), 4);
}

#[test]
fn unknown_option_is_dropped_whole_and_refused_and_keeps_the_connection() {
    let mut talk = Talk::new(catalog());
    // The data look like an option: they must not be taken for one.
    let replies = talk.ask(99, &option(2, &[]));
    assert_eq!(replies.len(), 1);
    assert!(replies[0].is_error(OptionKind::Unknown(99), OptionError::Unsupported));
    assert_eq!(talk.ask(3, &[]).len(), 4);
}

#[test]
fn tls_and_what_the_specification_withdrew_are_unsupported_options() {
    let mut talk = Talk::new(catalog());
    for number in [4, 5] {
        assert!(talk.ask(number, b"")[0].is_error(OptionKind::from_number(number), OptionError::Unsupported));
    }
}

#[test]
fn unknown_option_at_the_bound_of_dropped_data_keeps_the_connection() {
    let mut talk = Talk::new(catalog());
    let size = usize::try_from(limits::OPTION_SKIP_SIZE_MAX).expect("fits");
    let replies = talk.ask(99, &vec![0; size]);
    assert!(replies[0].is_error(OptionKind::Unknown(99), OptionError::Unsupported));
}

#[test]
fn option_beyond_the_bound_of_dropped_data_closes() {
    for number in [1, 2, 3, 6, 7, 8, 99] {
        for length in [limits::OPTION_SKIP_SIZE_MAX + 1, u32::MAX] {
            let (output, progress) = Talk::new(catalog()).say(&option_with_length(number, length, &[]));
            assert_eq!(progress.outcome, Outcome::Close(CloseReason::OptionTooLong(length)));
            assert!(output.is_empty());
        }
    }
}

#[test]
fn info_and_go_longer_than_the_kept_data_are_too_big_and_keep_the_connection() {
    let mut talk = Talk::new(catalog());
    let size = usize::try_from(limits::OPTION_DATA_SIZE_MAX).expect("fits") + 1;
    for (number, kind) in [(6, OptionKind::Info), (7, OptionKind::Go)] {
        assert!(talk.ask(number, &vec![0; size])[0].is_error(kind, OptionError::TooBig));
    }
    assert_eq!(talk.ask(3, &[]).len(), 4);
}

#[test]
fn structured_replies_are_acknowledged_also_a_second_time() {
    let mut talk = Talk::new(catalog());
    for _ in 0..2 {
        assert!(talk.ask(8, &[])[0].is_ack(OptionKind::StructuredReply));
    }
    assert_eq!(talk.go(&info_data(b"vol1", &[])).1.reply_form, ReplyForm::Structured);
}

#[test]
fn structured_replies_with_data_are_invalid_and_not_negotiated() {
    let mut talk = Talk::new(catalog());
    assert!(talk.ask(8, b"x")[0].is_error(OptionKind::StructuredReply, OptionError::Invalid));
    assert_eq!(talk.go(&info_data(b"vol1", &[])).1.reply_form, ReplyForm::Simple);
}

#[test]
fn df_is_told_only_where_structured_replies_were_negotiated() {
    let mut talk = Talk::new(catalog());
    let plain = talk.ask(6, &info_data(b"vol1", &[]));
    talk.ask(8, &[]);
    let structured = talk.ask(6, &info_data(b"vol1", &[]));
    assert_eq!(plain[0].data[10..], VOL1_FLAGS.to_be_bytes());
    assert_eq!(structured[0].data[10..], (VOL1_FLAGS | DF).to_be_bytes());
}

#[test]
fn info_describes_size_and_flags_even_if_nothing_was_asked() {
    let replies = Talk::new(catalog()).ask(6, &info_data(b"vol1", &[]));
    assert_eq!(replies.len(), 2);
    assert_eq!(replies[0].info(), InfoKind::Export);
    assert_eq!(replies[0].data[2..10], SIZE_BYTES.to_be_bytes());
    assert!(replies[1].is_ack(OptionKind::Info));
}

#[test]
fn info_tells_name_description_and_block_sizes_if_asked() {
    let replies = Talk::new(catalog()).ask(6, &info_data(b"", &[3, 2, 1]));
    let name = replies.iter().find(|reply| reply.info() == InfoKind::Name).expect("a name");
    let description = replies.iter().find(|reply| reply.kind == 3 && reply.info() == InfoKind::Description);
    assert_eq!(&name.data[2..], b"vol1");
    assert_eq!(&description.expect("a description").data[2..], b"the first volume");
    assert_eq!(replies[3].data, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(replies.len(), 5);
}

#[test]
fn info_tells_no_description_where_there_is_none() {
    let replies = Talk::new(catalog()).ask(6, &info_data(b"frozen", &[2]));
    assert_eq!(replies.len(), 2);
}

#[test]
fn unknown_and_repeated_kinds_of_information_are_ignored() {
    let replies = Talk::new(catalog()).ask(6, &info_data(b"vol1", &[77, 1, 1, 0xffff, 0]));
    let kinds: Vec<_> = replies[..2].iter().map(super::catalog::OptionReply::info).collect();
    assert_eq!((kinds, replies.len()), (vec![InfoKind::Export, InfoKind::Name], 3));
}

#[test]
fn go_after_info_with_the_same_data_gets_the_same_answers() {
    let mut talk = Talk::new(catalog());
    let data = info_data(b"strict", &[1, 2, 3]);
    let info: Vec<_> = talk.ask(6, &data).into_iter().map(|reply| (reply.kind, reply.data)).collect();
    let (go, _) = talk.go(&data);
    assert_eq!(info, go.into_iter().map(|reply| (reply.kind, reply.data)).collect::<Vec<_>>());
}

#[test]
fn go_hands_over_what_was_agreed_on() {
    let (_, negotiated) = Talk::new(catalog()).go(&info_data(b"vol1", &[3]));
    assert_eq!(negotiated.export, catalog().exports[0]);
    assert_eq!(negotiated.requested_name, "vol1");
    assert!(negotiated.has_requested_block_sizes);
    assert!(negotiated.is_without_zeroes);
    assert_eq!(negotiated.reply_form, ReplyForm::Simple);
}

#[test]
fn requests_behind_go_are_left_to_the_owner() {
    let go = option(7, &info_data(b"vol1", &[]));
    let (_, progress) = Talk::new(catalog()).say(&[go.as_slice(), b"first request"].concat());
    assert_eq!(progress.consumed, go.len());
}

#[test]
fn client_that_does_not_ask_for_block_sizes_gets_an_export_with_byte_granularity() {
    let (_, negotiated) = Talk::new(catalog()).go(&info_data(b"vol1", &[]));
    assert!(!negotiated.has_requested_block_sizes);
}

#[test]
fn client_that_does_not_ask_for_needed_block_sizes_is_told_them_and_refused() {
    for (number, kind) in [(6, OptionKind::Info), (7, OptionKind::Go)] {
        let mut talk = Talk::new(catalog());
        let replies = talk.ask(number, &info_data(b"strict", &[1]));
        assert_eq!(replies[0].data, [0, 3, 0, 0, 16, 0, 0, 1, 0, 0, 2, 0, 0, 0]);
        assert!(replies[1].is_error(kind, OptionError::BlockSizeRequired));
        assert_eq!(replies.len(), 2);
        assert!(talk.go(&info_data(b"strict", &[3])).1.has_requested_block_sizes);
    }
}

#[test]
fn exports_that_are_not_to_be_had_are_refused_with_their_reason() {
    let cases = [
        (b"nothing".as_slice(), OptionError::Unknown),
        (b"offline", OptionError::Unknown),
        (b"forbidden", OptionError::Policy),
        (b"owned", OptionError::Policy),
        (b"late", OptionError::Shutdown),
    ];
    let mut talk = Talk::new(catalog());
    for (name, error) in cases {
        let replies = talk.ask(7, &info_data(name, &[]));
        assert!(replies[0].is_error(OptionKind::Go, error), "{replies:?}");
        assert_eq!(replies.len(), 1);
    }
}

#[test]
fn go_that_was_refused_can_be_followed_by_another() {
    let mut talk = Talk::new(catalog());
    talk.ask(7, &info_data(b"nothing", &[]));
    assert_eq!(talk.go(&info_data(b"vol1", &[])).1.requested_name, "vol1");
}

#[test]
fn read_only_export_offers_no_command_that_changes_it() {
    let (_, negotiated) = Talk::new(catalog()).go(&info_data(b"frozen", &[]));
    let flags = negotiated.export.transmission_flags(ReplyForm::Simple, false);
    assert!(flags.contains(TransmissionFlags::READ_ONLY));
    let changing = TransmissionFlags::SEND_TRIM.0 | TransmissionFlags::SEND_WRITE_ZEROES.0 | 2048;
    assert_eq!(flags.0 & changing, 0);
}

#[test]
fn fast_zero_is_not_offered_without_write_zeroes() {
    let mut export = catalog().exports.remove(0);
    export.features.has_write_zeroes = false;
    assert!(!export.transmission_flags(ReplyForm::Structured, false).contains(TransmissionFlags::SEND_FAST_ZERO));
}

#[test]
fn info_and_go_with_lengths_that_do_not_add_up_are_invalid() {
    let whole = info_data(b"vol1", &[1, 3]);
    let longer = [whole.as_slice(), &[0]].concat();
    let name_beyond = [&[0, 0, 0, 9], &whole[4..]].concat();
    let name_of_4_gib = [&[255, 255, 255, 255], &whole[4..]].concat();
    let count_beyond = [&whole[..8], &[255, 255], &whole[10..]].concat();
    let mut cases: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
    cases.extend([longer, name_beyond, name_of_4_gib, count_beyond]);
    let mut talk = Talk::new(catalog());
    for data in &cases {
        let replies = talk.ask(6, data);
        assert!(replies[0].is_error(OptionKind::Info, OptionError::Invalid), "{data:?}");
    }
}

#[test]
fn shutting_down_refuses_every_option_but_abort() {
    for number in [3, 6, 7, 8, 99] {
        let mut talk = Talk::new(catalog());
        talk.handshake.shut_down();
        let replies = talk.ask(number, &info_data(b"vol1", &[]));
        assert!(replies[0].is_error(OptionKind::from_number(number), OptionError::Shutdown));
        let (output, _) = talk.say(&option(2, &[]));
        assert!(option_replies(&output)[0].is_ack(OptionKind::Abort));
    }
}

#[test]
fn shutting_down_closes_on_export_name() {
    let mut talk = Talk::new(catalog());
    talk.handshake.shut_down();
    let (output, progress) = talk.say(&option(1, b"vol1"));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::NoExport(FindError::ShuttingDown)));
    assert!(output.is_empty());
}

#[test]
fn more_options_than_allowed_close() {
    let mut talk = Talk::new(no_exports());
    for _ in 0..limits::OPTION_COUNT_MAX {
        talk.ask(99, &[]);
    }
    let (_, progress) = talk.say(&option(99, &[]));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::TooManyOptions));
}

#[test]
fn list_allows_options_for_each_listed_export_once() {
    let mut talk = Talk::new(catalog());
    let allowed = limits::OPTION_COUNT_MAX + 3 * limits::OPTION_COUNT_PER_EXPORT;
    for _ in 0..allowed {
        talk.ask(3, &[]);
    }
    let (_, progress) = talk.say(&option(3, &[]));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::TooManyOptions));
}

#[test]
fn handshake_stays_over_and_takes_nothing_more() {
    let mut talk = Talk::new(catalog());
    talk.say(&option(2, &[]));
    let (output, progress) = talk.say(&option(3, &[]));
    assert_eq!((progress.consumed, progress.outcome), (0, Outcome::Close(CloseReason::Aborted)));
    assert!(output.is_empty());

    let mut talk = Talk::new(catalog());
    talk.go(&info_data(b"vol1", &[]));
    let (output, progress) = talk.say(&option(3, &[]));
    assert_eq!((progress.consumed, progress.outcome), (0, Outcome::Close(CloseReason::AlreadyChosen)));
    assert!(output.is_empty());
}

#[test]
fn client_that_does_not_read_is_made_to_wait() {
    let mut talk = Talk::new(catalog());
    let mut output = vec![0; limits::OUTPUT_SIZE_PAUSE];
    let input = option(3, &[]);
    let progress = talk.handshake.advance(&input, &mut output, &talk.catalog);
    assert_eq!((progress.consumed, progress.outcome), (0, Outcome::SendFirst));
    assert_eq!(output.len(), limits::OUTPUT_SIZE_PAUSE);
    output.clear();
    let progress = talk.handshake.advance(&input, &mut output, &talk.catalog);
    assert_eq!((progress.consumed, progress.outcome), (input.len(), Outcome::NeedMore));
    assert_eq!(option_replies(&output).len(), 4);
}

#[test]
fn whole_handshake_may_come_in_one_piece() {
    let mut talk = Talk { handshake: Handshake::default(), catalog: catalog() };
    let pieces = [FLAGS.to_vec(), option(8, &[]), option(3, &[]), option(7, &info_data(b"vol1", &[3]))];
    let (output, progress) = talk.say(&pieces.concat());
    assert_eq!(option_replies(&output[18..]).len(), 1 + 4 + 3);
    assert_eq!(negotiated(progress).reply_form, ReplyForm::Structured);
}

#[test]
fn bounds_of_the_owner_hold() {
    let bounds = HandshakeBounds { option_count_max: 2, option_size_bytes_max: 100 };
    let talk = || {
        let mut talk = Talk { handshake: Handshake::new(bounds, TlsOffer::Off), catalog: no_exports() };
        talk.say(&FLAGS);
        talk
    };
    let mut counted = talk();
    counted.ask(8, &[]);
    counted.ask(8, &[]);
    let (_, progress) = counted.say(&option(8, &[]));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::TooManyOptions));
    let mut sized = talk();
    sized.ask(99, &[0; 100]);
    let (_, progress) = sized.say(&option(99, &[0; 101]));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::OptionTooLong(101)));
}
