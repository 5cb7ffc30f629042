//! Parsing and judging requests: each rule, one test.

use super::catalog::{ALL_FEATURES, SIZE_BYTES, catalog};
use crate::server::{Export, ExportFeatures, Refusal, RequestRules};
use crate::{BadMagic, CommandFlags, ReplyForm, Request, RequestForm, RequestKind, WireError, limits};

/// The longest length of the compact form.
const LENGTH_MAX: u64 = 0xffff_ffff;

const DRAIN_MAX: u64 = limits::DRAIN_SIZE_MAX as u64;

const MUTATIONS: [RequestKind; 3] = [RequestKind::Write, RequestKind::Trim, RequestKind::WriteZeroes];
const RANGED: [RequestKind; 5] =
    [RequestKind::Read, RequestKind::Write, RequestKind::Trim, RequestKind::WriteZeroes, RequestKind::Cache];

fn request(kind: RequestKind, offset: u64, length: u64) -> Request {
    Request { form: RequestForm::Compact, flags: CommandFlags::NONE, kind, cookie: 7, offset, length }
}

fn flagged(kind: RequestKind, flags: CommandFlags) -> Request {
    Request { flags, ..request(kind, 0, if kind == RequestKind::Flush { 0 } else { 512 }) }
}

fn rules() -> RequestRules {
    RequestRules::new(&catalog().exports[0], ReplyForm::Structured, 0)
}

fn rules_with(features: ExportFeatures) -> RequestRules {
    RequestRules::new(&Export::new("vol1", SIZE_BYTES, features), ReplyForm::Structured, 0)
}

fn payload_of(request: &Request) -> u32 {
    u32::try_from(request.payload_size_bytes()).expect("short")
}

/// The error and how much of the stream belongs to the refused request.
fn refused(rules: RequestRules, request: Request) -> (WireError, u32) {
    match rules.check(&request) {
        Err(Refusal::Answer { error, drain_size_bytes, .. }) => (error, drain_size_bytes),
        other => panic!("{request:?} was not refused with an answer: {other:?}"),
    }
}

#[test]
fn request_is_parsed_from_its_28_bytes() {
    let bytes = *b"\x25\x60\x95\x13\0\x11\0\x06\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\x01\0\0\0\0\x02\0";
    let expected = Request {
        form: RequestForm::Compact,
        flags: CommandFlags::FUA.with(CommandFlags::FAST_ZERO),
        kind: RequestKind::WriteZeroes,
        cookie: 0x0102_0304_0506_0708,
        offset: 65_536,
        length: 512,
    };
    assert_eq!(Request::parse(&bytes, RequestForm::Compact), Ok(Some(expected)));
    assert_eq!(expected.encode(), bytes);
}

#[test]
fn request_that_is_not_complete_is_waited_for() {
    let bytes = request(RequestKind::Read, 1, 2).encode();
    for len in 0..RequestForm::Compact.size() {
        assert_eq!(Request::parse(&bytes[..len], RequestForm::Compact), Ok(None));
    }
}

#[test]
fn bytes_behind_a_request_are_not_looked_at() {
    let read = request(RequestKind::Read, 1, 2);
    let bytes = [read.encode().as_slice(), &[0xff; 40]].concat();
    assert_eq!(Request::parse(&bytes, RequestForm::Compact), Ok(Some(read)));
}

#[test]
fn bad_magic_is_an_error_as_soon_as_it_is_there() {
    assert_eq!(Request::parse(&[0x25, 0x60, 0x95], RequestForm::Compact), Ok(None));
    assert_eq!(Request::parse(&[0x25, 0x60, 0x95, 0x14], RequestForm::Compact), Err(BadMagic(0x2560_9514)));
    assert_eq!(Request::parse(&[0; 28], RequestForm::Compact), Err(BadMagic(0)));
}

#[test]
fn only_a_write_has_a_payload() {
    assert_eq!(request(RequestKind::Write, 0, 512).payload_size_bytes(), 512);
    for kind in [RequestKind::Read, RequestKind::Trim, RequestKind::WriteZeroes, RequestKind::Unknown(9)] {
        assert_eq!(request(kind, 0, 512).payload_size_bytes(), 0);
    }
}

#[test]
fn flags_of_a_request_are_told_by_name() {
    let plain = request(RequestKind::WriteZeroes, 0, 512);
    assert!(!plain.is_durable() && !plain.is_fast_zero() && plain.may_punch_hole() && !plain.is_unfragmented());
    let all = Request { flags: CommandFlags(0xffff), ..plain };
    assert!(all.is_durable() && all.is_fast_zero() && !all.may_punch_hole() && all.is_unfragmented());
}

#[test]
fn request_within_the_export_passes() {
    let end = SIZE_BYTES - 512;
    for kind in RANGED {
        assert_eq!(rules().check(&request(kind, 0, 512)), Ok(()));
        assert_eq!(rules().check(&request(kind, end, 512)), Ok(()));
    }
    assert_eq!(rules().check(&request(RequestKind::Flush, 0, 0)), Ok(()));
}

#[test]
fn request_of_length_zero_passes_up_to_the_very_end() {
    for kind in RANGED {
        assert_eq!(rules().check(&request(kind, 0, 0)), Ok(()));
        assert_eq!(rules().check(&request(kind, SIZE_BYTES, 0)), Ok(()));
    }
}

#[test]
fn request_of_length_zero_past_the_end_is_answered() {
    assert_eq!(refused(rules(), request(RequestKind::Read, SIZE_BYTES + 1, 0)), (WireError::Invalid, 0));
    assert_eq!(refused(rules(), request(RequestKind::Write, SIZE_BYTES + 1, 0)), (WireError::NoSpace, 0));
}

#[test]
fn read_and_trim_past_the_end_are_invalid() {
    for kind in [RequestKind::Read, RequestKind::Trim] {
        assert_eq!(refused(rules(), request(kind, SIZE_BYTES - 511, 512)), (WireError::Invalid, 0));
    }
}

#[test]
fn write_past_the_end_is_out_of_space_and_its_payload_is_dropped() {
    assert_eq!(refused(rules(), request(RequestKind::Write, SIZE_BYTES - 511, 512)), (WireError::NoSpace, 512));
}

#[test]
fn write_zeroes_past_the_end_is_out_of_space() {
    assert_eq!(refused(rules(), request(RequestKind::WriteZeroes, SIZE_BYTES, 1)), (WireError::NoSpace, 0));
}

#[test]
fn range_whose_end_overflows_is_past_the_end() {
    for kind in RANGED {
        let (error, _) = refused(rules(), request(kind, u64::MAX - 255, 512));
        assert!(matches!(error, WireError::Invalid | WireError::NoSpace));
    }
}

#[test]
fn read_only_export_permits_no_mutation() {
    let rules = rules_with(ExportFeatures { is_read_only: true, ..ALL_FEATURES });
    for kind in MUTATIONS {
        let request = request(kind, 0, 512);
        assert_eq!(refused(rules, request), (WireError::NotPermitted, payload_of(&request)));
    }
    assert_eq!(rules.check(&request(RequestKind::Read, 0, 512)), Ok(()));
    assert_eq!(rules.check(&request(RequestKind::Flush, 0, 0)), Ok(()));
}

#[test]
fn commands_that_were_not_offered_are_invalid() {
    let rules = rules_with(ExportFeatures::default());
    for kind in [RequestKind::Trim, RequestKind::WriteZeroes] {
        assert_eq!(refused(rules, request(kind, 0, 512)), (WireError::Invalid, 0));
    }
    assert_eq!(refused(rules, request(RequestKind::Flush, 0, 0)), (WireError::Invalid, 0));
}

#[test]
fn unknown_command_is_invalid_and_drops_nothing() {
    for number in [8, 9, u16::MAX] {
        let request = request(RequestKind::Unknown(number), u64::MAX, LENGTH_MAX);
        assert_eq!(refused(rules(), request), (WireError::Invalid, 0));
    }
}

#[test]
fn flush_with_offset_or_length_is_invalid() {
    assert_eq!(refused(rules(), request(RequestKind::Flush, 512, 0)), (WireError::Invalid, 0));
    assert_eq!(refused(rules(), request(RequestKind::Flush, 0, 512)), (WireError::Invalid, 0));
}

#[test]
fn fua_passes_on_every_command_where_it_was_offered() {
    for kind in [RequestKind::Flush].into_iter().chain(RANGED) {
        assert_eq!(rules().check(&flagged(kind, CommandFlags::FUA)), Ok(()));
    }
}

#[test]
fn fua_is_invalid_where_it_was_not_offered() {
    let rules = rules_with(ExportFeatures { has_fua: false, ..ALL_FEATURES });
    for kind in [RequestKind::Flush].into_iter().chain(RANGED) {
        assert_eq!(refused(rules, flagged(kind, CommandFlags::FUA)).0, WireError::Invalid);
    }
}

#[test]
fn df_passes_on_a_read_with_structured_replies_only() {
    let read = flagged(RequestKind::Read, CommandFlags::DF);
    assert_eq!(rules().check(&read), Ok(()));
    let simple = RequestRules::new(&catalog().exports[0], ReplyForm::Simple, 0);
    assert_eq!(refused(simple, read), (WireError::Invalid, 0));
}

#[test]
fn no_hole_and_fast_zero_pass_on_write_zeroes() {
    for flags in [CommandFlags::NO_HOLE, CommandFlags::FAST_ZERO, CommandFlags(1 | 2 | 16)] {
        assert_eq!(rules().check(&flagged(RequestKind::WriteZeroes, flags)), Ok(()));
    }
}

#[test]
fn fast_zero_is_invalid_where_it_was_not_offered() {
    let rules = rules_with(ExportFeatures { has_fast_zero: false, ..ALL_FEATURES });
    assert_eq!(refused(rules, flagged(RequestKind::WriteZeroes, CommandFlags::FAST_ZERO)), (WireError::Invalid, 0));
}

#[test]
fn flag_that_does_not_belong_to_its_command_is_invalid() {
    let legal = [
        (RequestKind::Read, 1 | 4),
        (RequestKind::Write, 1),
        (RequestKind::Flush, 1),
        (RequestKind::Trim, 1),
        (RequestKind::Cache, 1),
        (RequestKind::WriteZeroes, 1 | 2 | 16),
    ];
    for (kind, legal) in legal {
        for flag in (0..16).map(|bit| 1_u16 << bit).filter(|flag| flag & legal == 0) {
            let request = flagged(kind, CommandFlags(flag));
            assert_eq!(refused(rules(), request), (WireError::Invalid, payload_of(&request)), "{request:?}");
        }
    }
}

#[test]
fn disconnect_always_passes() {
    let request =
        Request { flags: CommandFlags(0xffff), ..request(RequestKind::Disconnect, u64::MAX - 511, LENGTH_MAX) };
    assert_eq!(rules().check(&request), Ok(()));
    assert_eq!(request.payload_size_bytes(), 0);
}

/// An export so large that a length alone decides.
fn large_rules() -> RequestRules {
    RequestRules::new(&Export::new("large", u64::MAX, ALL_FEATURES), ReplyForm::Structured, 0)
}

#[test]
fn read_longer_than_accepted_is_invalid() {
    let max = u64::from(large_rules().payload_size_bytes_max());
    assert_eq!(max, u64::from(limits::PAYLOAD_SIZE_DEFAULT));
    assert_eq!(large_rules().check(&request(RequestKind::Read, 0, max)), Ok(()));
    for length in [max + 1, LENGTH_MAX] {
        assert_eq!(refused(large_rules(), request(RequestKind::Read, 0, length)), (WireError::Invalid, 0));
    }
}

#[test]
fn write_longer_than_accepted_is_dropped_up_to_the_bound() {
    let max = u64::from(large_rules().payload_size_bytes_max());
    assert_eq!(large_rules().check(&request(RequestKind::Write, 0, max)), Ok(()));
    for length in [max + 1, DRAIN_MAX] {
        let refusal = refused(large_rules(), request(RequestKind::Write, 0, length));
        assert_eq!((refusal.0, u64::from(refusal.1)), (WireError::Invalid, length));
    }
}

#[test]
fn refused_write_beyond_the_bound_closes() {
    let read_only = rules_with(ExportFeatures { is_read_only: true, ..ALL_FEATURES });
    for rules in [large_rules(), rules(), read_only] {
        for length in [DRAIN_MAX + 1, LENGTH_MAX] {
            assert_eq!(rules.check(&request(RequestKind::Write, 0, length)), Err(Refusal::Close));
        }
    }
}

#[test]
fn trim_and_write_zeroes_of_4_gib_pass() {
    for kind in [RequestKind::Trim, RequestKind::WriteZeroes] {
        assert_eq!(large_rules().check(&request(kind, 1 << 40, LENGTH_MAX)), Ok(()));
    }
}

#[test]
fn advertised_maximum_is_always_accepted_and_nothing_beyond_the_bound() {
    let mut export = Export::new("vol1", SIZE_BYTES, ALL_FEATURES);
    export.payload_size_bytes_max = 0;
    assert_eq!(RequestRules::new(&export, ReplyForm::Structured, 0).payload_size_bytes_max(), export.block_sizes.max());
    export.payload_size_bytes_max = u32::MAX;
    assert_eq!(RequestRules::new(&export, ReplyForm::Structured, 0).payload_size_bytes_max(), limits::DRAIN_SIZE_MAX);
}

#[test]
fn request_that_is_not_aligned_to_the_minimum_is_invalid() {
    let rules = RequestRules::new(&catalog().exports[1], ReplyForm::Structured, 0);
    for kind in RANGED {
        assert_eq!(rules.check(&request(kind, 4096, 8192)), Ok(()));
        assert_eq!(refused(rules, request(kind, 512, 4096)).0, WireError::Invalid);
        assert_eq!(refused(rules, request(kind, 4096, 4095)).0, WireError::Invalid);
    }
}

#[test]
fn any_alignment_passes_with_byte_granularity() {
    for kind in RANGED {
        assert_eq!(rules().check(&request(kind, 12_345, 678)), Ok(()));
    }
}
