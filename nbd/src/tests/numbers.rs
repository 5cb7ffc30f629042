//! The numbers of the protocol, typed in a second time from the specification.

use crate::{
    ChunkFlags, ChunkKind, ClientFlags, CommandFlags, HandshakeFlags, InfoKind, OptionError, OptionKind,
    OptionReplyKind, RequestKind, TransmissionFlags, WireError, magic,
};

#[test]
fn magic_numbers_and_the_port_are_those_of_the_specification() {
    assert_eq!(magic::PORT, 10809);
    assert_eq!(magic::GREETING, 0x4e42444d41474943);
    assert_eq!(&magic::GREETING.to_be_bytes(), b"NBDMAGIC");
    assert_eq!(magic::OPTION, 0x49484156454F5054);
    assert_eq!(&magic::OPTION.to_be_bytes(), b"IHAVEOPT");
    assert_eq!(magic::OPTION_REPLY, 0x3e889045565a9);
    assert_eq!(magic::REQUEST, 0x25609513);
    assert_eq!(magic::SIMPLE_REPLY, 0x67446698);
    assert_eq!(magic::STRUCTURED_REPLY, 0x668e33ef);
    assert_eq!(magic::EXTENDED_REQUEST, 0x21e41c71);
    assert_eq!(magic::EXTENDED_REPLY, 0x6e8a278c);
}

#[test]
fn handshake_flags_are_those_of_the_specification() {
    assert_eq!((HandshakeFlags::FIXED_NEWSTYLE.0, HandshakeFlags::NO_ZEROES.0), (1, 2));
    assert_eq!((ClientFlags::FIXED_NEWSTYLE.0, ClientFlags::NO_ZEROES.0), (1, 2));
}

#[test]
fn transmission_flags_are_those_of_the_specification() {
    let flags = [
        (TransmissionFlags::HAS_FLAGS, 1),
        (TransmissionFlags::READ_ONLY, 2),
        (TransmissionFlags::SEND_FLUSH, 4),
        (TransmissionFlags::SEND_FUA, 8),
        (TransmissionFlags::ROTATIONAL, 16),
        (TransmissionFlags::SEND_TRIM, 32),
        (TransmissionFlags::SEND_WRITE_ZEROES, 64),
        (TransmissionFlags::SEND_DF, 128),
        (TransmissionFlags::CAN_MULTI_CONN, 256),
        (TransmissionFlags::SEND_RESIZE, 512),
        (TransmissionFlags::SEND_CACHE, 1024),
        (TransmissionFlags::SEND_FAST_ZERO, 2048),
        (TransmissionFlags::BLOCK_STATUS_PAYLOAD, 4096),
    ];
    for (flag, number) in flags {
        assert_eq!(flag.0, number);
    }
}

#[test]
fn command_and_chunk_flags_are_those_of_the_specification() {
    let flags = [
        (CommandFlags::FUA, 1),
        (CommandFlags::NO_HOLE, 2),
        (CommandFlags::DF, 4),
        (CommandFlags::REQ_ONE, 8),
        (CommandFlags::FAST_ZERO, 16),
        (CommandFlags::PAYLOAD_LEN, 32),
    ];
    for (flag, number) in flags {
        assert_eq!(flag.0, number);
    }
    assert_eq!(ChunkFlags::DONE.0, 1);
}

#[test]
fn option_numbers_are_those_of_the_specification_and_map_both_ways() {
    let options = [
        (OptionKind::ExportName, 1),
        (OptionKind::Abort, 2),
        (OptionKind::List, 3),
        (OptionKind::Info, 6),
        (OptionKind::Go, 7),
        (OptionKind::StructuredReply, 8),
        (OptionKind::StartTls, 5),
        (OptionKind::ListMetaContext, 9),
        (OptionKind::SetMetaContext, 10),
        (OptionKind::ExtendedHeaders, 11),
        (OptionKind::Unknown(12), 12),
    ];
    for (option, number) in options {
        assert_eq!((option.number(), OptionKind::from_number(number)), (number, option));
    }
}

#[test]
fn option_reply_numbers_are_those_of_the_specification_and_map_both_ways() {
    let replies = [
        (OptionReplyKind::Ack, 1),
        (OptionReplyKind::Server, 2),
        (OptionReplyKind::Info, 3),
        (OptionReplyKind::MetaContext, 4),
        (OptionReplyKind::Unknown(5), 5),
        (OptionReplyKind::Error(OptionError::Unsupported), 0x8000_0001),
        (OptionReplyKind::Error(OptionError::Policy), 0x8000_0002),
        (OptionReplyKind::Error(OptionError::Invalid), 0x8000_0003),
        (OptionReplyKind::Error(OptionError::Platform), 0x8000_0004),
        (OptionReplyKind::Error(OptionError::TlsRequired), 0x8000_0005),
        (OptionReplyKind::Error(OptionError::Unknown), 0x8000_0006),
        (OptionReplyKind::Error(OptionError::Shutdown), 0x8000_0007),
        (OptionReplyKind::Error(OptionError::BlockSizeRequired), 0x8000_0008),
        (OptionReplyKind::Error(OptionError::TooBig), 0x8000_0009),
        (OptionReplyKind::Error(OptionError::ExtendedHeadersRequired), 0x8000_000a),
        (OptionReplyKind::Error(OptionError::Other(0x8000_1234)), 0x8000_1234),
    ];
    for (reply, number) in replies {
        assert_eq!((reply.number(), OptionReplyKind::from_number(number)), (number, reply));
    }
}

#[test]
fn information_numbers_are_those_of_the_specification_and_map_both_ways() {
    let infos = [
        (InfoKind::Export, 0),
        (InfoKind::Name, 1),
        (InfoKind::Description, 2),
        (InfoKind::BlockSize, 3),
        (InfoKind::Unknown(9), 9),
    ];
    for (info, number) in infos {
        assert_eq!((info.number(), InfoKind::from_number(number)), (number, info));
    }
}

#[test]
fn command_numbers_are_those_of_the_specification_and_map_both_ways() {
    let commands = [
        (RequestKind::Read, 0),
        (RequestKind::Write, 1),
        (RequestKind::Disconnect, 2),
        (RequestKind::Flush, 3),
        (RequestKind::Trim, 4),
        (RequestKind::Cache, 5),
        (RequestKind::WriteZeroes, 6),
        (RequestKind::BlockStatus, 7),
        (RequestKind::Unknown(8), 8),
    ];
    for (command, number) in commands {
        assert_eq!((command.number(), RequestKind::from_number(number)), (number, command));
    }
}

#[test]
fn chunk_numbers_are_those_of_the_specification_and_map_both_ways() {
    let chunks = [
        (ChunkKind::None, 0),
        (ChunkKind::OffsetData, 1),
        (ChunkKind::OffsetHole, 2),
        (ChunkKind::BlockStatus, 5),
        (ChunkKind::BlockStatusExtended, 6),
        (ChunkKind::Unknown(7), 7),
        (ChunkKind::Error, 0x8001),
        (ChunkKind::ErrorOffset, 0x8002),
        (ChunkKind::Unknown(0x8003), 0x8003),
    ];
    for (chunk, number) in chunks {
        assert_eq!((chunk.number(), ChunkKind::from_number(number)), (number, chunk));
    }
    assert!(ChunkKind::Unknown(0x8003).is_error());
    assert!(!ChunkKind::BlockStatus.is_error());
}

#[test]
fn error_numbers_are_those_of_the_specification_and_map_both_ways() {
    let errors = [
        (WireError::NotPermitted, 1),
        (WireError::Io, 5),
        (WireError::NoMemory, 12),
        (WireError::Invalid, 22),
        (WireError::NoSpace, 28),
        (WireError::Overflow, 75),
        (WireError::NotSupported, 95),
        (WireError::ShuttingDown, 108),
    ];
    for (error, number) in errors {
        assert_eq!((error.number(), WireError::from_number(number)), (number, error));
    }
    assert_eq!(WireError::from_number(17), WireError::Invalid);
}

#[test]
fn system_errors_become_errors_that_the_protocol_allows() {
    let cases = [
        (30, WireError::NotPermitted), // EROFS
        (27, WireError::NoSpace),      // EFBIG
        (122, WireError::NoSpace),     // EDQUOT
        (5, WireError::Io),
        (28, WireError::NoSpace),
        (2, WireError::Invalid), // ENOENT has no number of its own
    ];
    for (errno, error) in cases {
        assert_eq!(WireError::from_errno(errno, false), error);
    }
}

#[test]
fn not_supported_is_sent_only_for_a_fast_zero() {
    assert_eq!(WireError::from_errno(95, true), WireError::NotSupported);
    assert_eq!(WireError::from_errno(95, false), WireError::Invalid);
}
