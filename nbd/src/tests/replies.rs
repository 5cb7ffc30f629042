//! The bytes of each reply.

use super::catalog::catalog;
use crate::server::{ReadReply, ReadReplyError, RequestRules};
use crate::{
    CommandFlags, ReplyForm, ReplyHeader, ReplyTo, Request, RequestForm, RequestKind, StatusExtent, WireError, limits,
};

const COOKIE: u64 = 0x0102_0304_0506_0708;

fn to(form: ReplyForm) -> ReplyTo {
    ReplyTo::new(form, &read(0, CommandFlags::NONE))
}

fn simple(error: Option<WireError>) -> ReplyHeader {
    error.map_or_else(|| to(ReplyForm::Simple).success(), |error| to(ReplyForm::Simple).error(error))
}

fn read_header(request: &Request, form: ReplyForm) -> ReplyHeader {
    RequestRules::new(&catalog().exports[0], form, 0).reply_to(request).read(request)
}

fn read(length: u64, flags: CommandFlags) -> Request {
    Request { form: RequestForm::Compact, flags, kind: RequestKind::Read, cookie: COOKIE, offset: 4096, length }
}

#[test]
fn simple_reply_is_magic_error_and_cookie() {
    let success = simple(None);
    assert_eq!(success.as_bytes(), b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08");
    let failure = simple(Some(WireError::NoSpace));
    assert_eq!(failure.as_bytes(), b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08");
}

#[test]
fn read_without_structured_replies_gets_a_simple_reply() {
    let request = read(512, CommandFlags::NONE);
    assert_eq!(read_header(&request, ReplyForm::Simple), simple(None));
}

#[test]
fn read_with_structured_replies_gets_one_data_chunk_that_ends_the_reply() {
    let request = read(512, CommandFlags::NONE);
    let expected = b"\x66\x8e\x33\xef\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\x02\x08\0\0\0\0\0\0\x10\0";
    assert_eq!(read_header(&request, ReplyForm::Structured).as_bytes(), expected);
}

#[test]
fn read_of_length_zero_gets_a_chunk_without_content() {
    let request = read(0, CommandFlags::NONE);
    let expected = b"\x66\x8e\x33\xef\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0";
    assert_eq!(read_header(&request, ReplyForm::Structured).as_bytes(), expected);
    assert_eq!(read_header(&request, ReplyForm::Simple), simple(None));
}

#[test]
fn hole_chunk_is_offset_and_length() {
    let expected = b"\x66\x8e\x33\xef\0\0\0\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\x02\0";
    assert_eq!(to(ReplyForm::Structured).hole(4096, 512, false).as_bytes(), expected);
}

#[test]
fn failed_request_gets_an_error_chunk_with_structured_replies_and_a_simple_reply_without() {
    let expected = b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x06\0\0\0\x05\0\0";
    assert_eq!(to(ReplyForm::Structured).error(WireError::Io).as_bytes(), expected);
    assert_eq!(to(ReplyForm::Simple).error(WireError::Io), simple(Some(WireError::Io)));
}

#[test]
fn error_chunk_carries_its_message() {
    let mut output = Vec::new();
    to(ReplyForm::Structured).append_error(&mut output, WireError::Invalid, "why");
    let expected = b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x09\0\0\0\x16\0\x03why";
    assert_eq!(output, expected);
}

#[test]
fn simple_error_reply_has_no_message() {
    let mut output = Vec::new();
    to(ReplyForm::Simple).append_error(&mut output, WireError::Invalid, "why");
    assert_eq!(output, simple(Some(WireError::Invalid)).as_bytes());
}

#[test]
fn long_message_is_cut_between_characters() {
    let mut output = Vec::new();
    // 257 bytes; the cut at 256 falls into the last character.
    to(ReplyForm::Structured).append_error(&mut output, WireError::Io, &format!("x{}", "ü".repeat(128)));
    assert_eq!(output.len(), 26 + limits::MESSAGE_SIZE_MAX - 1);
    assert!(std::str::from_utf8(&output[26..]).is_ok());
    assert_eq!(output[24..26], [0, 255]);
}

#[test]
fn chunks_of_a_read_follow_each_other_and_the_last_ends_the_reply() {
    let mut reply = ReadReply::new(ReplyForm::Structured, &read(4096, CommandFlags::NONE));
    assert_eq!(reply.data(1024), Ok(to(ReplyForm::Structured).data(4096, 1024, false)));
    assert_eq!(reply.hole(2048), Ok(to(ReplyForm::Structured).hole(5120, 2048, false)));
    assert_eq!(reply.remaining_size_bytes(), 1024);
    assert_eq!(reply.data(1024), Ok(to(ReplyForm::Structured).data(7168, 1024, true)));
    assert_eq!(reply.remaining_size_bytes(), 0);
}

#[test]
fn chunk_that_is_empty_or_reaches_past_the_read_is_refused() {
    let mut reply = ReadReply::new(ReplyForm::Structured, &read(4096, CommandFlags::NONE));
    assert_eq!(reply.data(0), Err(ReadReplyError::OutOfRange));
    assert_eq!(reply.hole(4097), Err(ReadReplyError::OutOfRange));
    assert_eq!(reply.remaining_size_bytes(), 4096);
}

#[test]
fn read_with_df_gets_one_content_chunk() {
    let request = read(4096, CommandFlags::DF);
    let mut reply = ReadReply::new(ReplyForm::Structured, &request);
    assert_eq!(reply.data(1024), Err(ReadReplyError::Fragmented));
    assert_eq!(reply.hole(4095), Err(ReadReplyError::Fragmented));
    assert_eq!(reply.data(4096), Ok(to(ReplyForm::Structured).data(4096, 4096, true)));
    assert_eq!(
        ReadReply::new(ReplyForm::Structured, &request).hole(4096),
        Ok(to(ReplyForm::Structured).hole(4096, 4096, true))
    );
}

#[test]
fn read_that_fails_between_chunks_ends_with_an_error_chunk() {
    let mut reply = ReadReply::new(ReplyForm::Structured, &read(4096, CommandFlags::NONE));
    reply.data(1024).expect("within the request");
    let mut output = Vec::new();
    reply.fail(&mut output, WireError::Io, "the device failed");
    let mut expected = Vec::new();
    to(ReplyForm::Structured).append_error(&mut expected, WireError::Io, "the device failed");
    assert_eq!(output, expected);
}

#[test]
fn longest_accepted_payload_fits_a_data_chunk() {
    let header = to(ReplyForm::Structured).data(0, limits::DRAIN_SIZE_MAX, true);
    assert_eq!(header.as_bytes()[16..20], (limits::DRAIN_SIZE_MAX + 8).to_be_bytes());
}

#[test]
fn extended_chunk_repeats_the_offset_and_has_a_length_of_64_bits() {
    let front = |length: u8, kind: &[u8; 2], is_done: u8| {
        let front = [b"\x6e\x8a\x27\x8c\0".as_slice(), &[is_done], kind, b"\x01\x02\x03\x04\x05\x06\x07\x08"];
        [front.concat().as_slice(), b"\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0", &[length]].concat()
    };
    let to = to(ReplyForm::Extended);
    assert_eq!(to.success().as_bytes(), front(0, b"\0\0", 1));
    let data = [front(13, b"\0\x01", 0), b"\0\0\0\0\0\0\x10\0".to_vec()].concat();
    assert_eq!(to.data(4096, 5, false).as_bytes(), data);
    let hole = [front(12, b"\0\x02", 1), b"\0\0\0\0\0\0\x20\0\0\0\x02\0".to_vec()].concat();
    assert_eq!(to.hole(8192, 512, true).as_bytes(), hole);
    let error = [front(6, b"\x80\x01", 1), b"\0\0\0\x05\0\0".to_vec()].concat();
    assert_eq!(to.error(WireError::Io).as_bytes(), error);
}

#[test]
fn success_is_a_simple_reply_where_chunks_are_not_needed() {
    assert_eq!(to(ReplyForm::Structured).success(), simple(None));
}

const EXTENTS: [StatusExtent; 3] = [
    StatusExtent { size_bytes: 4096, status: 3 },
    StatusExtent { size_bytes: 4096, status: 3 },
    StatusExtent { size_bytes: 512, status: 0 },
];

#[test]
fn block_status_is_a_context_and_its_merged_runs() {
    let mut output = Vec::new();
    to(ReplyForm::Structured).append_status(&mut output, 2, EXTENTS, true);
    let front = b"\x66\x8e\x33\xef\0\x01\0\x05\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x14\0\0\0\x02";
    let runs = b"\0\0\x20\0\0\0\0\x03\0\0\x02\0\0\0\0\0";
    assert_eq!(output, [front.as_slice(), runs].concat());
}

#[test]
fn extended_block_status_has_a_count_and_runs_of_64_bits() {
    let mut output = Vec::new();
    let long = StatusExtent { size_bytes: 1 << 40, status: 1 << 33 };
    to(ReplyForm::Extended).append_status(&mut output, 1, [long], false);
    assert_eq!(output[4..8], [0, 0, 0, 6]);
    assert_eq!(output[24..32], 24_u64.to_be_bytes());
    assert_eq!(output[32..40], [0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(output[40..], [(1_u64 << 40).to_be_bytes(), (1_u64 << 33).to_be_bytes()].concat());
}

#[test]
#[should_panic(expected = "a status has at least one run")]
fn block_status_without_runs_is_a_bug_of_the_owner() {
    to(ReplyForm::Structured).append_status(&mut Vec::new(), 1, [], true);
}
