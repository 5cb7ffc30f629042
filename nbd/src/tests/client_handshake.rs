//! What the client accepts from a server during the handshake, and what it refuses.

use crate::client::{BadName, Handshake, HandshakeError, Outcome, Progress};
use crate::{OptionError, OptionKind, OptionReplyKind, TransmissionFlags, limits};

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
/// 1 MiB, with HAS_FLAGS.
const EXPORT_INFO: &[u8] = b"\0\0\0\0\0\0\0\x10\0\0\0\x01";

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("short data");
    let front = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    [&front, option.to_be_bytes().as_slice(), &kind.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// A client that has been greeted.
fn greeted() -> Handshake {
    let mut client = Handshake::new();
    let mut output = Vec::new();
    let progress = client.advance(GREETING, &mut output);
    assert_eq!(progress, Progress { consumed: 18, outcome: Outcome::Ready });
    assert_eq!(output, [0, 0, 0, 3]);
    client
}

/// What a client that asked for a list, or for an export, makes of `input`.
fn after_list(input: &[u8]) -> Outcome {
    let mut client = greeted();
    client.list(&mut Vec::new());
    client.advance(input, &mut Vec::new()).outcome
}

fn after_go(input: &[u8]) -> Outcome {
    let mut client = greeted();
    client.go("vol1", &mut Vec::new()).expect("a short name");
    client.advance(input, &mut Vec::new()).outcome
}

#[test]
fn greeting_of_something_else_fails() {
    for greeting in [b"SSH-2.0-OpenSSH_9.2\r\n".as_slice(), b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0"] {
        let outcome = Handshake::new().advance(greeting, &mut Vec::new()).outcome;
        assert_eq!(outcome, Outcome::Failed(HandshakeError::BadGreeting));
    }
}

#[test]
fn server_without_fixed_newstyle_is_refused() {
    let outcome = Handshake::new().advance(b"NBDMAGICIHAVEOPT\0\x02", &mut Vec::new()).outcome;
    assert_eq!(outcome, Outcome::Failed(HandshakeError::NotFixedNewstyle));
}

#[test]
fn server_without_no_zeroes_is_expected_to_send_134_bytes() {
    let mut client = Handshake::new();
    let mut output = Vec::new();
    client.advance(b"NBDMAGICIHAVEOPT\0\x01", &mut output);
    assert_eq!(output, [0, 0, 0, 1]);
    client.export_name("vol1", &mut output).expect("a short name");
    let answer = [&EXPORT_INFO[2..], &[0; 124], b"more"].concat();
    let progress = client.advance(&answer, &mut output);
    assert_eq!(progress.consumed, 134);
    assert!(matches!(progress.outcome, Outcome::Transmission(info) if info.size_bytes == 1 << 20));
}

#[test]
fn wishes_are_sent_as_options() {
    let mut output = Vec::new();
    greeted().list(&mut output);
    assert_eq!(output, b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    output.clear();
    greeted().go("ab", &mut output).expect("a short name");
    assert_eq!(output, b"IHAVEOPT\0\0\0\x07\0\0\0\x0e\0\0\0\x02ab\0\x03\0\x01\0\x02\0\x03");
    output.clear();
    greeted().info("", &mut output).expect("a short name");
    assert_eq!(output, b"IHAVEOPT\0\0\0\x06\0\0\0\x0c\0\0\0\0\0\x03\0\x01\0\x02\0\x03");
    output.clear();
    greeted().request_structured_replies(&mut output);
    assert_eq!(output, b"IHAVEOPT\0\0\0\x08\0\0\0\0");
    output.clear();
    greeted().abort(&mut output);
    assert_eq!(output, b"IHAVEOPT\0\0\0\x02\0\0\0\0");
    output.clear();
    greeted().export_name("ab", &mut output).expect("a short name");
    assert_eq!(output, b"IHAVEOPT\0\0\0\x01\0\0\0\x02ab");
}

#[test]
fn name_that_cannot_be_sent_is_refused_before_anything_is() {
    let mut client = greeted();
    let mut output = Vec::new();
    for name in ["n".repeat(limits::NAME_SIZE_MAX + 1), "nul\0".to_owned()] {
        assert_eq!(client.go(&name, &mut output), Err(BadName));
        assert_eq!(client.info(&name, &mut output), Err(BadName));
        assert_eq!(client.export_name(&name, &mut output), Err(BadName));
    }
    assert!(output.is_empty() && client.is_ready());
}

#[test]
fn go_needs_size_and_flags_before_its_acknowledgement() {
    assert_eq!(after_go(&reply(7, 1, &[])), Outcome::Failed(HandshakeError::NoExportInfo));
    let whole = [reply(7, 3, EXPORT_INFO), reply(7, 1, &[])].concat();
    let Outcome::Transmission(info) = after_go(&whole) else { panic!("no export") };
    assert_eq!((info.size_bytes, info.flags), (1 << 20, TransmissionFlags::HAS_FLAGS));
}

#[test]
fn unknown_information_is_ignored() {
    let whole = [reply(7, 3, b"\0\x63whatever"), reply(7, 3, EXPORT_INFO), reply(7, 1, &[])].concat();
    assert!(matches!(after_go(&whole), Outcome::Transmission(_)));
}

#[test]
fn malformed_information_fails() {
    let cases = [
        b"".as_slice(),
        b"\0",
        &EXPORT_INFO[..11],
        b"\0\0\0\0\0\0\0\x10\0\0\0\x01\0",
        b"\0\x01\xff",
        b"\0\x03\0\0\0\x03\0\0\x10\0\x02\0\0\0",
        b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0",
    ];
    for data in cases {
        let expected = Outcome::Failed(HandshakeError::BadReply(OptionReplyKind::Info));
        assert_eq!(after_go(&reply(7, 3, data)), expected, "{data:?}");
    }
}

#[test]
fn more_information_than_there_can_be_fails() {
    let replies = reply(7, 3, EXPORT_INFO).repeat(65);
    assert_eq!(after_go(&replies), Outcome::Failed(HandshakeError::TooManyReplies));
}

#[test]
fn refused_wish_leaves_the_handshake_ready() {
    let mut client = greeted();
    client.go("vol1", &mut Vec::new()).expect("a short name");
    let outcome = client.advance(&reply(7, 0x8000_0006, b"no such export"), &mut Vec::new()).outcome;
    assert_eq!(outcome, Outcome::Refused(OptionError::Unknown, "no such export".to_owned()));
    assert!(client.is_ready());
}

#[test]
fn refused_go_is_forgotten_by_the_next() {
    let mut client = greeted();
    client.go("vol1", &mut Vec::new()).expect("a short name");
    let refused = [reply(7, 3, EXPORT_INFO), reply(7, 0x8000_0006, b"")].concat();
    client.advance(&refused, &mut Vec::new());
    client.go("vol1", &mut Vec::new()).expect("a short name");
    let outcome = client.advance(&reply(7, 1, &[]), &mut Vec::new()).outcome;
    assert_eq!(outcome, Outcome::Failed(HandshakeError::NoExportInfo));
}

#[test]
fn list_ignores_details_behind_a_name() {
    let whole = [reply(3, 2, b"\0\0\0\x01adetails"), reply(3, 2, b"\0\0\0\0"), reply(3, 1, &[])].concat();
    assert_eq!(after_list(&whole), Outcome::Listed(vec!["a".to_owned(), String::new()]));
}

#[test]
fn malformed_line_of_a_list_fails() {
    for data in [b"".as_slice(), b"\0\0\0", b"\0\0\0\x02a", b"\xff\xff\xff\xffa", b"\0\0\0\x01\xff", b"\0\0\0\x01\0"] {
        let expected = Outcome::Failed(HandshakeError::BadReply(OptionReplyKind::Server));
        assert_eq!(after_list(&reply(3, 2, data)), expected);
    }
}

#[test]
fn list_longer_than_the_bound_fails() {
    let lines = reply(3, 2, b"\0\0\0\x01a").repeat(limits::LISTED_EXPORT_COUNT_MAX + 1);
    assert_eq!(after_list(&lines), Outcome::Failed(HandshakeError::TooManyReplies));
}

#[test]
fn reply_to_another_option_fails() {
    let expected = Outcome::Failed(HandshakeError::WrongOption(OptionKind::Go));
    assert_eq!(after_list(&reply(7, 1, &[])), expected);
}

#[test]
fn reply_that_does_not_belong_to_its_option_fails() {
    let info = Outcome::Failed(HandshakeError::UnexpectedReply(OptionReplyKind::Info));
    assert_eq!(after_list(&reply(3, 3, EXPORT_INFO)), info);
    let server = Outcome::Failed(HandshakeError::UnexpectedReply(OptionReplyKind::Server));
    assert_eq!(after_go(&reply(7, 2, b"\0\0\0\0")), server);
}

#[test]
fn acknowledgement_with_data_fails() {
    let expected = Outcome::Failed(HandshakeError::BadReply(OptionReplyKind::Ack));
    assert_eq!(after_list(&reply(3, 1, b"x")), expected);
}

#[test]
fn reply_without_the_magic_number_fails() {
    assert_eq!(after_list(&[0; 20]), Outcome::Failed(HandshakeError::BadReplyMagic));
}

#[test]
fn reply_longer_than_the_bound_fails_before_its_data_come() {
    let mut header = reply(3, 2, &[]);
    header[16..20].copy_from_slice(&[0xff; 4]);
    assert_eq!(after_list(&header), Outcome::Failed(HandshakeError::ReplyTooLong(u32::MAX)));
}

#[test]
fn bytes_behind_the_acknowledgement_of_go_are_left_to_the_owner() {
    let mut client = greeted();
    client.go("vol1", &mut Vec::new()).expect("a short name");
    let whole = [reply(7, 3, EXPORT_INFO), reply(7, 1, &[])].concat();
    let progress = client.advance(&[whole.as_slice(), b"first reply"].concat(), &mut Vec::new());
    assert_eq!(progress.consumed, whole.len());
    let progress = client.advance(b"first reply", &mut Vec::new());
    assert_eq!((progress.consumed, progress.outcome), (0, Outcome::Failed(HandshakeError::AlreadyOver)));
}

#[test]
fn client_that_has_no_wish_takes_nothing() {
    let progress = greeted().advance(&reply(3, 1, &[]), &mut Vec::new());
    assert_eq!(progress, Progress { consumed: 0, outcome: Outcome::NeedMore });
}
