//! What users write: references, times, tags, names, labels, sizes, durations, rules of exports. The first byte chooses.
//!
//! What is read is shown as a text that is read as the same.
#![no_main]

// The command line and the daemon are only built with a metadata store.
#[path = "../../src/cli/duration.rs"]
mod duration;
#[path = "../../src/daemon/name_template.rs"]
#[allow(dead_code, reason = "its limits are for the daemon")]
mod name_template;
#[path = "../../src/cli/size.rs"]
mod size;
#[path = "../../src/daemon/version_rule.rs"]
#[allow(dead_code, reason = "its limits are for the daemon")]
mod version_rule;
#[path = "../../src/daemon/volume_rule.rs"]
#[allow(dead_code, reason = "its limits are for the daemon")]
mod volume_rule;

use libfuzzer_sys::fuzz_target;
use rok_blk::error::{self, Error, ErrorKind};
use rok_blk::lane::AllowRule;
use rok_blk::volume::reference::{check_name, check_tag};
use rok_blk::volume::{Reference, Selector, parse_time, time_text};
use rok_blk::{units, volume};
use rok_fuzz::bounded;
use std::fmt::{Debug, Display};

/// Names that are made of a template.
const NAME_COUNT: u32 = 20;

/// A refusal is the user's error.
fn refused<T>(text: &str, result: Result<T, Error>) -> Option<T> {
    result
        .inspect_err(|error| {
            assert_eq!(error.kind(), ErrorKind::Usage, "{text:?}");
            assert!(!error.message().is_empty());
        })
        .ok()
}

fn shown_and_read<T: Debug + Display + PartialEq>(value: &T, read: impl Fn(&str) -> Option<T>) {
    let shown = value.to_string();
    let again = read(&shown).unwrap_or_else(|| panic!("{shown:?} is shown and not read"));
    assert_eq!(&again, value);
    assert_eq!(again.to_string(), shown);
}

fn check_reference(text: &str) {
    let Some(reference) = refused(text, bounded(text.len(), || text.parse::<Reference>())) else { return };
    check_name(reference.volume_name()).expect("its name is one");
    shown_and_read(&reference, |text| text.parse().ok());
    if let Some(selector) = reference.selector() {
        shown_and_read(selector, |text| text.parse::<Selector>().ok());
    }
}

fn check_time(text: &str) {
    let Some(time) = refused(text, parse_time(text)) else { return };
    let shown = time_text(time);
    assert_eq!(parse_time(&shown).ok(), Some(time), "{shown:?} is shown and not read");
    assert_eq!(shown.parse::<Selector>().ok(), Some(Selector::Time(time)));
}

fn check_tag_or_name(text: &str) {
    if refused(text, check_tag(text)).is_some() {
        assert_eq!(text.parse::<Selector>().ok(), Some(Selector::Tag(text.to_owned())));
    }
    if refused(text, check_name(text)).is_some() {
        assert_eq!(text.parse::<Reference>().ok(), Reference::volume(text).ok());
    }
}

fn check_size(text: &str) {
    let Some(bytes) = refused(text, size::parse_size(text)) else { return };
    assert_eq!(size::parse_size(&bytes.to_string()).ok(), Some(bytes));
    let shown = size::format_size(bytes);
    // It has one decimal, so not all of them come to whole bytes.
    if let Ok(rounded) = size::parse_size(&shown) {
        assert!(rounded.abs_diff(bytes) <= bytes / 20, "{bytes} is shown as {shown}");
    }
    let _is_size_of_volume = refused(text, volume_rule::check_size(bytes)).is_some();
}

fn check_duration(text: &str) {
    let Some(seconds) = refused(text, duration::parse_duration(text)) else { return };
    assert!(seconds > 0);
    let shown = duration::format_duration(seconds);
    assert_eq!(duration::parse_duration(&shown).ok(), Some(seconds), "{shown:?} is shown and not read");
}

fn check_template(text: &str) {
    let Some(template) = refused(text, name_template::NameTemplate::parse(text)) else { return };
    let Some(names) = refused(text, bounded(text.len(), || template.names(NAME_COUNT))) else { return };
    names.iter().for_each(|name| check_name(name).expect("each is a name"));
    let mut different = names.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), names.len());
}

fn check_annotations(text: &str) {
    if let Some((key, value)) = refused(text, version_rule::parse_label(text)) {
        assert_eq!(format!("{key}={value}"), text);
        version_rule::check_label(&key, &value).expect("it was read");
    }
    for check in [version_rule::check_message, version_rule::check_hold, version_rule::check_file_name] {
        let _is_allowed = refused(text, check(text)).is_some();
    }
}

fuzz_target!(|input: &[u8]| {
    let [choice, text @ ..] = input else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match choice % 8 {
        0 => check_reference(text),
        1 => check_time(text),
        2 => check_tag_or_name(text),
        3 => check_size(text),
        4 => check_duration(text),
        5 => check_template(text),
        6 => check_annotations(text),
        _ => {
            if let Ok(rule) = text.parse::<AllowRule>() {
                shown_and_read(&rule, |text| text.parse().ok());
            }
        }
    }
});
