//! What the client accepts as replies, and what it refuses.

use crate::client::{ChunkHeader, Extent, ReadContent, ReadContentError, Reply, ReplyError, SimpleReply};
use crate::{
    ChunkKind, CommandFlags, ReplyForm, ReplyHeader, ReplyTo, Request, RequestForm, RequestKind, StatusExtent,
    WireError, limits,
};

const COOKIE: u64 = 42;

fn request(offset: u64, length: u64, flags: CommandFlags) -> Request {
    Request { form: RequestForm::Compact, flags, kind: RequestKind::Read, cookie: COOKIE, offset, length }
}

fn read(offset: u64, length: u64, flags: CommandFlags) -> ReadContent {
    ReadContent::new(&request(offset, length, flags))
}

fn to(form: ReplyForm) -> ReplyTo {
    ReplyTo::new(form, &request(0, 0, CommandFlags::NONE))
}

fn simple(error: Option<WireError>) -> ReplyHeader {
    error.map_or_else(|| to(ReplyForm::Simple).success(), |error| to(ReplyForm::Simple).error(error))
}

fn extent(offset: u64, size_bytes: u32) -> Extent {
    Extent { offset, size_bytes }
}

fn chunk(kind: u16, length: u32) -> Vec<u8> {
    let front = [b"\x66\x8e\x33\xef\0\0".as_slice(), &kind.to_be_bytes(), &COOKIE.to_be_bytes()].concat();
    [front.as_slice(), &length.to_be_bytes()].concat()
}

fn parsed_chunk(bytes: &[u8]) -> ChunkHeader {
    match Reply::parse(bytes) {
        Ok(Some((Reply::Chunk(header), 20))) => header,
        other => panic!("no chunk: {other:?}"),
    }
}

#[test]
fn simple_replies_are_parsed() {
    let success = Reply::Simple(SimpleReply { cookie: COOKIE, error: None });
    assert_eq!(Reply::parse(simple(None).as_bytes()), Ok(Some((success, 16))));
    let failure = Reply::Simple(SimpleReply { cookie: COOKIE, error: Some(WireError::Io) });
    let header = simple(Some(WireError::Io));
    assert_eq!(Reply::parse(header.as_bytes()), Ok(Some((failure, 16))));
}

#[test]
fn unknown_error_number_counts_as_invalid() {
    let bytes = b"\x67\x44\x66\x98\0\0\x12\x34\0\0\0\0\0\0\0\x2a";
    let reply = Reply::Simple(SimpleReply { cookie: COOKIE, error: Some(WireError::Invalid) });
    assert_eq!(Reply::parse(bytes), Ok(Some((reply, 16))));
}

#[test]
fn reply_header_that_is_not_complete_is_waited_for() {
    for header in [simple(None), to(ReplyForm::Structured).none()] {
        let bytes = header.as_bytes();
        for len in 0..bytes.len() {
            assert_eq!(Reply::parse(&bytes[..len]), Ok(None));
        }
    }
}

#[test]
fn reply_without_a_magic_number_is_an_error() {
    assert_eq!(Reply::parse(&[0; 16]), Err(ReplyError::BadMagic(0)));
}

#[test]
fn chunk_whose_length_does_not_suit_its_kind_is_an_error() {
    let cases =
        [(0, 1), (1, 8), (1, 0), (1, u32::MAX), (2, 11), (2, 13), (0x8001, 5), (0x8001, u32::MAX), (5, u32::MAX)];
    for (kind, length) in cases {
        let error = ReplyError::BadChunkLength(ChunkKind::from_number(kind), u64::from(length));
        assert_eq!(Reply::parse(&chunk(kind, length)), Err(error));
    }
}

#[test]
fn content_chunks_tell_their_extent() {
    let data = to(ReplyForm::Structured).data(4096, 512, false);
    let header = parsed_chunk(data.as_bytes());
    assert_eq!((header.prefix_size_bytes(), header.is_done), (8, false));
    assert_eq!(header.extent(&data.as_bytes()[20..]), Ok(extent(4096, 512)));

    let hole = to(ReplyForm::Structured).hole(4096, 512, true);
    let header = parsed_chunk(hole.as_bytes());
    assert_eq!((header.prefix_size_bytes(), header.is_done), (12, true));
    assert_eq!(header.extent(&hole.as_bytes()[20..]), Ok(extent(4096, 512)));
}

#[test]
fn content_chunk_that_is_cut_or_empty_is_malformed() {
    let hole = to(ReplyForm::Structured).hole(4096, 0, true);
    let header = parsed_chunk(hole.as_bytes());
    for len in 0..=12 {
        assert!(header.extent(&hole.as_bytes()[20..20 + len]).is_err());
    }
    let none = to(ReplyForm::Structured).none();
    assert!(parsed_chunk(none.as_bytes()).extent(&[0; 12]).is_err());
}

#[test]
fn error_chunks_tell_error_message_and_offset() {
    let mut bytes = Vec::new();
    to(ReplyForm::Structured).append_error(&mut bytes, WireError::NoSpace, "full");
    let error = parsed_chunk(&bytes).error(&bytes[20..]).expect("well formed");
    assert_eq!((error.error, error.message, error.offset), (WireError::NoSpace, "full", None));

    let with_offset = [chunk(0x8002, 16).as_slice(), b"\0\0\0\x05\0\x02no\0\0\0\0\0\0\x10\0"].concat();
    let error = parsed_chunk(&with_offset).error(&with_offset[20..]).expect("well formed");
    assert_eq!((error.error, error.message, error.offset), (WireError::Io, "no", Some(4096)));
}

#[test]
fn error_chunk_of_an_unknown_kind_is_read_as_far_as_all_errors_agree() {
    let bytes = [chunk(0x80ff, 10).as_slice(), b"\0\0\0\x05\0\x02no??"].concat();
    assert_eq!(parsed_chunk(&bytes).error(&bytes[20..]).expect("well formed").message, "no");
}

#[test]
fn error_chunk_that_is_cut_or_says_success_is_malformed() {
    let mut bytes = Vec::new();
    to(ReplyForm::Structured).append_error(&mut bytes, WireError::NoSpace, "full");
    let header = parsed_chunk(&bytes);
    for len in 20..bytes.len() {
        assert!(header.error(&bytes[20..len]).is_err());
    }
    assert!(header.error(&[0; 10]).is_err());
}

#[test]
fn content_may_come_in_any_order_and_is_whole_when_every_byte_came() {
    let mut content = read(1000, 100, CommandFlags::NONE);
    assert_eq!(content.accept(extent(1050, 50)), Ok(50));
    assert_eq!(content.accept(extent(1000, 20)), Ok(0));
    assert_eq!(content.finish(), Err(ReadContentError::Incomplete));
    assert_eq!(content.accept(extent(1020, 30)), Ok(20));
    assert_eq!(content.finish(), Ok(()));
}

#[test]
fn content_of_a_read_of_length_zero_is_whole_at_once() {
    assert_eq!(read(1000, 0, CommandFlags::NONE).finish(), Ok(()));
}

#[test]
fn content_outside_the_request_is_refused() {
    for outside in [extent(999, 1), extent(999, 50), extent(1100, 1), extent(1099, 2), extent(u64::MAX, u32::MAX)] {
        assert_eq!(read(1000, 100, CommandFlags::NONE).accept(outside), Err(ReadContentError::OutOfRange(outside)));
    }
}

#[test]
fn content_that_overlaps_is_refused() {
    for overlapping in [extent(1040, 10), extent(1030, 11), extent(1049, 5), extent(1000, 100), extent(1045, 1)] {
        let mut content = read(1000, 100, CommandFlags::NONE);
        assert_eq!(content.accept(extent(1040, 10)), Ok(40));
        assert_eq!(content.accept(overlapping), Err(ReadContentError::Overlap(overlapping)));
    }
}

#[test]
fn second_content_chunk_is_refused_with_df() {
    let mut content = read(1000, 100, CommandFlags::DF);
    assert_eq!(content.accept(extent(1000, 50)), Ok(0));
    assert_eq!(content.accept(extent(1050, 50)), Err(ReadContentError::TooManyChunks));
}

#[test]
fn more_content_chunks_than_any_honest_server_sends_are_refused() {
    let mut content = read(0, u64::from(u32::MAX), CommandFlags::NONE);
    for index in 0..u64::try_from(limits::READ_CHUNK_COUNT_MAX).expect("fits") {
        content.accept(extent(index * 2, 1)).expect("within the bound");
    }
    assert_eq!(content.accept(extent(1 << 30, 1)), Err(ReadContentError::TooManyChunks));
}

fn status_chunk(form: ReplyForm) -> (ChunkHeader, Vec<u8>) {
    let mut bytes = Vec::new();
    to(form).append_status(&mut bytes, 7, [StatusExtent { size_bytes: 512, status: 3 }], true);
    let Ok(Some((Reply::Chunk(header), size))) = Reply::parse(&bytes) else { panic!("no chunk") };
    (header, bytes.split_off(size))
}

#[test]
fn block_status_is_parsed_in_both_forms() {
    for form in [ReplyForm::Structured, ReplyForm::Extended] {
        let (header, payload) = status_chunk(form);
        let chunk = header.status(&payload).expect("well formed");
        assert_eq!((chunk.context_id, chunk.extents), (7, vec![StatusExtent { size_bytes: 512, status: 3 }]));
        assert!(header.is_done);
    }
}

#[test]
fn block_status_that_is_cut_empty_or_of_empty_runs_is_refused() {
    for form in [ReplyForm::Structured, ReplyForm::Extended] {
        let (header, payload) = status_chunk(form);
        for len in 0..payload.len() {
            assert!(header.status(&payload[..len]).is_err(), "{len} bytes");
        }
        let mut empty_run = payload.clone();
        let front = if form == ReplyForm::Structured { 4 } else { 8 };
        let size = (payload.len() - front) / 2;
        empty_run[front..front + size].fill(0);
        assert!(header.status(&empty_run).is_err());
    }
}

#[test]
fn extended_block_status_whose_count_is_wrong_is_refused() {
    let (header, mut payload) = status_chunk(ReplyForm::Extended);
    payload[7] = 2;
    assert!(header.status(&payload).is_err());
}

#[test]
fn extended_chunk_of_more_than_4_gib_is_an_error() {
    let mut bytes = to(ReplyForm::Extended).data(0, 1, true).as_bytes()[..32].to_vec();
    bytes[27] = 1;
    assert_eq!(Reply::parse(&bytes), Err(ReplyError::BadChunkLength(ChunkKind::OffsetData, (1 << 32) + 9)));
}
