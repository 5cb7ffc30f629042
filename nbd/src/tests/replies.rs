//! The bytes of each reply.

use crate::server::{ReadReply, ReadReplyError, append_error, error_header, read_header};
use crate::{CommandFlags, ReplyHeader, Request, RequestKind, WireError, limits};

const COOKIE: u64 = 0x0102_0304_0506_0708;

fn read(length: u32, flags: CommandFlags) -> Request {
    Request { flags, kind: RequestKind::Read, cookie: COOKIE, offset: 4096, length }
}

#[test]
fn simple_reply_is_magic_error_and_cookie() {
    let success = ReplyHeader::simple(COOKIE, None);
    assert_eq!(success.as_bytes(), b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08");
    let failure = ReplyHeader::simple(COOKIE, Some(WireError::NoSpace));
    assert_eq!(failure.as_bytes(), b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08");
}

#[test]
fn read_without_structured_replies_gets_a_simple_reply() {
    let request = read(512, CommandFlags::NONE);
    assert_eq!(read_header(&request, false), ReplyHeader::simple(COOKIE, None));
}

#[test]
fn read_with_structured_replies_gets_one_data_chunk_that_ends_the_reply() {
    let request = read(512, CommandFlags::NONE);
    let expected = b"\x66\x8e\x33\xef\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\x02\x08\0\0\0\0\0\0\x10\0";
    assert_eq!(read_header(&request, true).as_bytes(), expected);
}

#[test]
fn read_of_length_zero_gets_a_chunk_without_content() {
    let request = read(0, CommandFlags::NONE);
    let expected = b"\x66\x8e\x33\xef\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0";
    assert_eq!(read_header(&request, true).as_bytes(), expected);
    assert_eq!(read_header(&request, false), ReplyHeader::simple(COOKIE, None));
}

#[test]
fn hole_chunk_is_offset_and_length() {
    let expected = b"\x66\x8e\x33\xef\0\0\0\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\x02\0";
    assert_eq!(ReplyHeader::offset_hole(COOKIE, 4096, 512, false).as_bytes(), expected);
}

#[test]
fn failed_request_gets_an_error_chunk_with_structured_replies_and_a_simple_reply_without() {
    let expected = b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x06\0\0\0\x05\0\0";
    assert_eq!(error_header(COOKIE, WireError::Io, true).as_bytes(), expected);
    assert_eq!(error_header(COOKIE, WireError::Io, false), ReplyHeader::simple(COOKIE, Some(WireError::Io)));
}

#[test]
fn error_chunk_carries_its_message() {
    let mut output = Vec::new();
    append_error(&mut output, COOKIE, WireError::Invalid, "why", true);
    let expected = b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x09\0\0\0\x16\0\x03why";
    assert_eq!(output, expected);
}

#[test]
fn simple_error_reply_has_no_message() {
    let mut output = Vec::new();
    append_error(&mut output, COOKIE, WireError::Invalid, "why", false);
    assert_eq!(output, ReplyHeader::simple(COOKIE, Some(WireError::Invalid)).as_bytes());
}

#[test]
fn long_message_is_cut_between_characters() {
    let mut output = Vec::new();
    // 257 bytes; the cut at 256 falls into the last character.
    ReplyHeader::append_error(&mut output, COOKIE, WireError::Io, &format!("x{}", "ü".repeat(128)));
    assert_eq!(output.len(), 26 + limits::MESSAGE_SIZE_MAX - 1);
    assert!(std::str::from_utf8(&output[26..]).is_ok());
    assert_eq!(output[24..26], [0, 255]);
}

#[test]
fn chunks_of_a_read_follow_each_other_and_the_last_ends_the_reply() {
    let mut reply = ReadReply::new(&read(4096, CommandFlags::NONE));
    assert_eq!(reply.data(1024), Ok(ReplyHeader::offset_data(COOKIE, 4096, 1024, false)));
    assert_eq!(reply.hole(2048), Ok(ReplyHeader::offset_hole(COOKIE, 5120, 2048, false)));
    assert_eq!(reply.remaining_size_bytes(), 1024);
    assert_eq!(reply.data(1024), Ok(ReplyHeader::offset_data(COOKIE, 7168, 1024, true)));
    assert_eq!(reply.remaining_size_bytes(), 0);
}

#[test]
fn chunk_that_is_empty_or_reaches_past_the_read_is_refused() {
    let mut reply = ReadReply::new(&read(4096, CommandFlags::NONE));
    assert_eq!(reply.data(0), Err(ReadReplyError::OutOfRange));
    assert_eq!(reply.hole(4097), Err(ReadReplyError::OutOfRange));
    assert_eq!(reply.remaining_size_bytes(), 4096);
}

#[test]
fn read_with_df_gets_one_content_chunk() {
    let request = read(4096, CommandFlags::DF);
    let mut reply = ReadReply::new(&request);
    assert_eq!(reply.data(1024), Err(ReadReplyError::Fragmented));
    assert_eq!(reply.hole(4095), Err(ReadReplyError::Fragmented));
    assert_eq!(reply.data(4096), Ok(ReplyHeader::offset_data(COOKIE, 4096, 4096, true)));
    assert_eq!(ReadReply::new(&request).hole(4096), Ok(ReplyHeader::offset_hole(COOKIE, 4096, 4096, true)));
}

#[test]
fn read_that_fails_between_chunks_ends_with_an_error_chunk() {
    let mut reply = ReadReply::new(&read(4096, CommandFlags::NONE));
    reply.data(1024).expect("within the request");
    let mut output = Vec::new();
    reply.fail(&mut output, WireError::Io, "the device failed");
    let mut expected = Vec::new();
    ReplyHeader::append_error(&mut expected, COOKIE, WireError::Io, "the device failed");
    assert_eq!(output, expected);
}

#[test]
fn longest_accepted_payload_fits_a_data_chunk() {
    let header = ReplyHeader::offset_data(COOKIE, 0, limits::DRAIN_SIZE_MAX, true);
    assert_eq!(header.as_bytes()[16..20], (limits::DRAIN_SIZE_MAX + 8).to_be_bytes());
}
