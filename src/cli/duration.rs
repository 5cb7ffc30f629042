//! Durations as people write and read them.

use jiff::{Span, SpanRelativeTo};

use crate::error::{Error, ErrorKind};

/// Longest duration: 100 years.
const SECONDS_MAX: i64 = 100 * 365 * 86_400;

/// Seconds of a duration: `30s`, `5m`, `12h`, `7d`, `2w`, or several of them, like `1d12h`. A day has 24 hours.
///
/// # Errors
/// `Usage` for anything else, months and years too: how long they are depends on when they begin.
pub(super) fn parse_duration(text: &str) -> Result<u64, Error> {
    let no_duration = || {
        Error::new(ErrorKind::Usage, format!("{text:?} is not a duration"))
            .with_hint("Write it like 30s, 5m, 12h, 7d or 2w, from 1s to 36500d")
    };
    // The crate reads the ISO form, signs and "ago" too.
    if !text.starts_with(|first: char| first.is_ascii_digit()) || text.ends_with("ago") {
        return Err(no_duration());
    }
    let span: Span = text.parse().map_err(|_| no_duration())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(no_duration().with_hint("Months and years differ in length: use days, like 30d or 365d"));
    }
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| no_duration())?;
    let is_whole = duration.subsec_nanos() == 0 && (1..=SECONDS_MAX).contains(&duration.as_secs());
    if is_whole { u64::try_from(duration.as_secs()).map_err(|_| no_duration()) } else { Err(no_duration()) }
}

/// A duration for people, in the largest unit that leaves no rest.
pub(super) fn format_duration(seconds: u64) -> String {
    const UNITS: [(u64, char); 4] = [(7 * 86_400, 'w'), (86_400, 'd'), (3600, 'h'), (60, 'm')];
    let unit = UNITS.iter().find(|(length, _)| seconds > 0 && seconds.is_multiple_of(*length));
    unit.map_or_else(|| format!("{seconds}s"), |(length, letter)| format!("{}{letter}", seconds / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        let cases = [
            ("1s", 1),
            ("90s", 90),
            ("5m", 300),
            ("12h", 43_200),
            ("7d", 604_800),
            ("2w", 1_209_600),
            ("1d12h", 129_600),
            ("1h 30m", 5400),
            ("1.5h", 5400),
            ("5 minutes", 300),
            ("36500d", 3_153_600_000),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse_duration(text).expect(text), seconds, "{text}");
        }
    }

    #[test]
    fn everything_else_is_usage() {
        for text in [
            "",
            "5",
            "d",
            "-5m",
            "+5m",
            "P1D",
            "0s",
            "1ms",
            "1.0001s",
            "5m ago",
            "36501d",
            "5x",
            "99999999999999999999d",
        ] {
            let error = parse_duration(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.hint().is_some(), "{text}");
        }
    }

    #[test]
    fn months_and_years_are_refused_with_the_way_out() {
        for text in ["1mo", "1y", "1 month", "1y 2d"] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.hint().is_some_and(|hint| hint.contains("use days")), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for (seconds, text) in
            [(45, "45s"), (300, "5m"), (5400, "90m"), (86_400, "1d"), (1_209_600, "2w"), (93_600, "26h")]
        {
            assert_eq!(format_duration(seconds), text);
            assert_eq!(parse_duration(text).expect(text), seconds);
        }
        assert_eq!(format_duration(0), "0s");
    }
}
