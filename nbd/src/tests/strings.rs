//! Names of every length and content, in every option that carries one.

use super::catalog::{Talk, catalog, info_data, negotiated, option};
use crate::server::{CloseReason, Outcome};
use crate::{OptionError, OptionKind, limits};

/// Around every buffer size that a past server got wrong.
const LENGTHS: [usize; 9] = [1, 255, 256, 257, 1023, 1024, 1025, 4095, 4096];

fn catalog_with(name: &str) -> super::catalog::Catalog {
    let mut catalog = catalog();
    name.clone_into(&mut catalog.exports[0].name);
    catalog
}

#[test]
fn names_up_to_4096_bytes_choose_their_export() {
    for length in LENGTHS {
        let name = "n".repeat(length);
        let (_, chosen) = Talk::new(catalog_with(&name)).go(&info_data(name.as_bytes(), &[1]));
        assert_eq!(chosen.requested_name, name);
        let (_, progress) = Talk::new(catalog_with(&name)).say(&option(1, name.as_bytes()));
        assert_eq!(negotiated(progress).requested_name, name);
    }
}

#[test]
fn names_up_to_4096_bytes_are_listed_whole() {
    for length in LENGTHS {
        let name = "n".repeat(length);
        let replies = Talk::new(catalog_with(&name)).ask(3, &[]);
        assert_eq!(replies[0].data[4..], *name.as_bytes());
    }
}

#[test]
fn name_of_4097_bytes_is_invalid_in_info_and_go() {
    let name = vec![b'n'; 4097];
    for (number, kind) in [(6, OptionKind::Info), (7, OptionKind::Go)] {
        let mut talk = Talk::new(catalog());
        assert!(talk.ask(number, &info_data(&name, &[]))[0].is_error(kind, OptionError::Invalid));
        assert_eq!(talk.ask(3, &[]).len(), 4);
    }
}

#[test]
fn name_of_4097_bytes_in_export_name_closes() {
    let (output, progress) = Talk::new(catalog()).say(&option(1, &vec![b'n'; 4097]));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::BadExportName));
    assert!(output.is_empty());
}

#[test]
fn name_that_is_not_utf8_or_holds_a_nul_is_refused() {
    for name in [b"vol\xff".as_slice(), b"vol1\0", b"\0", b"\xed\xa0\x80"] {
        let mut talk = Talk::new(catalog());
        assert!(talk.ask(7, &info_data(name, &[]))[0].is_error(OptionKind::Go, OptionError::Invalid));
        let (_, progress) = talk.say(&option(1, name));
        assert_eq!(progress.outcome, Outcome::Close(CloseReason::BadExportName));
    }
}

#[test]
fn message_about_a_longest_name_stays_short_and_utf8() {
    // Two-byte characters: a cut in the middle of one would break the string.
    for name in ["ü".repeat(2048), "\u{1b}".repeat(4096), "n".repeat(4096)] {
        let replies = Talk::new(catalog()).ask(7, &info_data(name.as_bytes(), &[]));
        assert!(replies[0].is_error(OptionKind::Go, OptionError::Unknown));
        assert!(replies[0].data.len() <= limits::MESSAGE_SIZE_MAX);
        assert!(std::str::from_utf8(&replies[0].data).is_ok());
        assert!(!replies[0].data.contains(&0x1b), "control characters must not reach a terminal");
    }
}

#[test]
fn message_about_a_longest_name_still_says_what_is_wrong() {
    let replies = Talk::new(catalog()).ask(7, &info_data(&[b'n'; 4096], &[]));
    assert!(replies[0].data.ends_with(b"n\" is not known"), "{:?}", str::from_utf8(&replies[0].data));
}

#[test]
fn canonical_name_or_description_that_cannot_be_sent_is_left_out() {
    let mut catalog = catalog();
    catalog.exports[0].name = "n".repeat(4097);
    catalog.exports[0].description = Some("d".repeat(4097));
    let replies = Talk::new(catalog).ask(6, &info_data(b"", &[1, 2]));
    assert_eq!(replies.len(), 2);
    assert!(replies[1].is_ack(OptionKind::Info));
}
