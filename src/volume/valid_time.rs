//! Times as users write them: `2026-11-01`, `2026-11-01T10:00`, with seconds and a fraction, `Z` or an offset.
//!
//! What names no zone is UTC, and a bare date is its midnight. The text has one shape, that of RFC 3339 with parts left
//! out behind; nothing else that the ISO standard allows is guessed at.

use crate::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::Offset;

/// Characters of a date.
const DATE_LEN: usize = 10;
/// Most characters that a message shows of a text that is no time.
const SHOWN_LEN_MAX: usize = 64;
/// Digits behind the point that are kept: nanoseconds.
const FRACTION_LEN_MAX: usize = 9;

/// The time that `text` names.
///
/// # Errors
/// `Usage` for what has another shape, or for a day, hour or offset that does not exist.
pub fn parse_time(text: &str) -> Result<Timestamp> {
    let no_time = || {
        let shown: String = text.chars().take(SHOWN_LEN_MAX).collect();
        Error::new(ErrorKind::Usage, format!("{shown:?} is not a time"))
            .with_hint("Write it like 2026-11-01, 2026-11-01T10:00 or 2026-11-01T10:00:00+02:00; no zone means UTC")
    };
    let (date, behind) = text.split_at_checked(DATE_LEN).ok_or_else(no_time)?;
    let date = date_of(date).ok_or_else(no_time)?;
    if behind.is_empty() {
        return in_zone(date.to_datetime(Time::midnight()), Offset::UTC).ok_or_else(no_time);
    }
    let behind = behind.strip_prefix(['T', 't']).ok_or_else(no_time)?;
    let zone_start = behind.find(['Z', 'z', '+', '-']).unwrap_or(behind.len());
    let (time, zone) = behind.split_at(zone_start);
    let time = time_of(time).ok_or_else(no_time)?;
    let offset = offset_of(zone).ok_or_else(no_time)?;
    in_zone(date.to_datetime(time), offset).ok_or_else(no_time)
}

/// The time as it is shown: RFC 3339 in UTC, with a fraction where there is one.
#[must_use]
pub fn time_text(time: Timestamp) -> String {
    time.to_string()
}

/// Whether a text begins like a time, so that it must be one or is a mistake: four digits, `-`, a digit.
pub(super) fn is_like_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() > 5 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-' && bytes[5].is_ascii_digit()
}

/// Not in front of the year 0, where an offset may lead: a time is shown with four digits for its year.
fn in_zone(local: DateTime, offset: Offset) -> Option<Timestamp> {
    offset.to_timestamp(local).ok().filter(|time| Offset::UTC.to_datetime(*time).year() >= 0)
}

/// `YYYY-MM-DD`.
fn date_of(text: &str) -> Option<Date> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let (month, day) = (i8::try_from(digits(month, 2)?).ok()?, i8::try_from(digits(day, 2)?).ok()?);
    Date::new(i16::try_from(digits(year, 4)?).ok()?, month, day).ok()
}

/// `HH:MM`, `HH:MM:SS` or `HH:MM:SS.f`.
fn time_of(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    let mut parts = whole.split(':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let second = parts.next();
    if parts.next().is_some() || (fraction.is_some() && second.is_none()) {
        return None;
    }
    let second = second.map_or(Some(0), |second| digits(second, 2))?;
    let nanosecond = fraction.map_or(Some(0), nanoseconds)?;
    let small = |number: i32| i8::try_from(number).ok();
    Time::new(small(hour)?, small(minute)?, small(second)?, nanosecond).ok()
}

/// The digits behind the point as nanoseconds.
fn nanoseconds(fraction: &str) -> Option<i32> {
    if fraction.len() > FRACTION_LEN_MAX {
        return None;
    }
    let number = digits(fraction, fraction.len())?;
    Some((fraction.len()..FRACTION_LEN_MAX).fold(number, |number, _| number * 10))
}

/// Nothing, `Z`, `+HH:MM` or `-HH:MM`.
fn offset_of(text: &str) -> Option<Offset> {
    if matches!(text, "" | "Z" | "z") {
        return Some(Offset::UTC);
    }
    let (sign, clock) = match text.split_at_checked(1)? {
        ("+", clock) => (1, clock),
        ("-", clock) => (-1, clock),
        _ => return None,
    };
    let (hours, minutes) = clock.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    // RFC 3339 has no day of more than 24 hours.
    if hours > 23 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

/// Exactly `len` ASCII digits, at least one.
fn digits(text: &str, len: usize) -> Option<i32> {
    let is_number = !text.is_empty() && text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> String {
        time_text(parse_time(text).expect(text))
    }

    #[test]
    fn parts_may_be_left_out_behind() {
        assert_eq!(parsed("2026-11-01"), "2026-11-01T00:00:00Z");
        assert_eq!(parsed("2026-11-01T10:00"), "2026-11-01T10:00:00Z");
        assert_eq!(parsed("2026-11-01T10:00:05"), "2026-11-01T10:00:05Z");
        assert_eq!(parsed("2026-11-01T10:00:05.5"), "2026-11-01T10:00:05.5Z");
        assert_eq!(parsed("2026-11-01t10:00:05.000000001z"), "2026-11-01T10:00:05.000000001Z");
    }

    #[test]
    fn offsets_move_to_utc_also_over_the_year() {
        assert_eq!(parsed("2026-11-01T10:00+02:00"), "2026-11-01T08:00:00Z");
        assert_eq!(parsed("2026-12-31T23:30-05:30"), "2027-01-01T05:00:00Z");
        assert_eq!(parsed("2026-01-01T00:00:00+23:59"), "2025-12-31T00:01:00Z");
        assert_eq!(parsed("2026-11-01T10:00-00:00"), "2026-11-01T10:00:00Z");
    }

    #[test]
    fn days_and_hours_that_do_not_exist_are_refused() {
        assert_eq!(parsed("2028-02-29"), "2028-02-29T00:00:00Z", "a leap year");
        for text in [
            "2026-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-11-31",
            "2026-11-01T24:00",
            "2026-11-01T10:60",
            "2026-11-01T10:00:60",
            "2026-11-01T10:00+24:00",
            "2026-11-01T10:00+02:60",
        ] {
            assert_eq!(parse_time(text).expect_err(text).kind(), ErrorKind::Usage, "{text}");
        }
    }

    #[test]
    fn times_in_front_of_the_year_0_are_refused_since_they_would_be_shown_in_another_shape() {
        assert_eq!(parsed("0000-01-01"), "0000-01-01T00:00:00Z");
        assert_eq!(parsed("0000-01-01T10:00+10:00"), "0000-01-01T00:00:00Z");
        for text in ["0000-01-01T00:00+00:01", "0000-01-01T09:59:59.999999999+10:00"] {
            assert_eq!(parse_time(text).expect_err(text).kind(), ErrorKind::Usage, "{text}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in [
            "",
            "2026",
            "2026-11",
            "2026-1-1",
            "26-11-01",
            "20261101",
            "2026-11-01T",
            "2026-11-01T10",
            "2026-11-01 10:00",
            "2026-11-01T10:00 ",
            "2026-11-01T1000",
            "2026-11-01T10:00:5",
            "2026-11-01T10:00.5",
            "2026-11-01T10:00:05.",
            "2026-11-01T10:00:05,5",
            "2026-11-01T10:00:05.0000000001",
            "2026-11-01T10:00:05.1.2",
            "2026-11-01T10:00ZZ",
            "2026-11-01T10:00+2",
            "2026-11-01T10:00+0200",
            "2026-11-01T10:00+02:00Z",
            "2026-11-01Z",
            "+2026-11-01",
            "2026-11-01T+1:00",
            "2026-11-0\u{661}",
            "\u{661}\u{661}\u{661}\u{661}\u{661}",
        ] {
            assert_eq!(parse_time(text).expect_err(text).kind(), ErrorKind::Usage, "{text:?}");
        }
    }

    #[test]
    fn the_message_about_a_time_is_bounded_and_escaped() {
        let error = parse_time(&"\u{1b}".repeat(100_000)).expect_err("control characters");

        assert!(error.message().len() < 1024);
        assert!(!error.message().contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn every_time_that_is_shown_is_read_again(
            seconds in -62_135_596_800_i64..253_402_207_200,
            nanoseconds in 0_i32..1_000_000_000,
        ) {
            let time = Timestamp::new(seconds, nanoseconds).expect("in range");
            prop_assert_eq!(parse_time(&time_text(time)).expect("our own"), time);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _is_time = parse_time(&text).is_ok();
        }

        #[test]
        fn nearly_right_texts_are_read_as_rfc_3339_or_refused(text in "[0-9]{4}-[0-3][0-9]-[0-3][0-9]([Tt][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\\.[0-9]{1,9})?)?(Z|[+-][0-2][0-9]:[0-6][0-9])?)?") {
            // The crate's own parser accepts more, but where both accept they agree.
            if let Ok(time) = parse_time(&text) {
                let whole = if text.len() == DATE_LEN { format!("{text}T00:00Z") } else { text.clone() };
                let zoned = if whole[DATE_LEN..].contains(['Z', 'z', '+', '-']) { whole } else { format!("{whole}Z") };
                let expected: Timestamp = zoned.parse().expect("the crate reads it too");
                prop_assert_eq!(time, expected);
            }
        }
    }
}
