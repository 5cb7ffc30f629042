//! Sizes as people write and read them.

use crate::error::{Error, ErrorKind};

/// Letters of the powers of 1024 and 1000, from the first power on.
const LETTERS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];
/// Digits behind the point that count.
const FRACTION_DIGITS_MAX: usize = 9;

/// Bytes of a size: `10G` and `10GiB` are powers of 1024, `10GB` of 1000, a bare number is bytes; `1.5G` works where
/// it comes to whole bytes.
///
/// # Errors
/// `Usage` for anything else.
pub(super) fn parse_size(text: &str) -> Result<u64, Error> {
    let no_size = || {
        Error::new(ErrorKind::Usage, format!("{text:?} is not a size"))
            .with_hint("Write it like 10G, 512MiB, 10GB or 4096")
    };
    let unit_start = text.find(|digit: char| !digit.is_ascii_digit() && digit != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let unit_bytes = parse_unit(unit.trim_start()).ok_or_else(no_size)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > FRACTION_DIGITS_MAX || fraction.contains('.') {
        return Err(no_size());
    }
    let whole: u64 = whole.parse().map_err(|_| no_size())?;
    let fraction_value: u64 = fraction.parse().map_err(|_| no_size())?;
    let scale = fraction.chars().fold(1_u128, |scale, _| scale * 10);
    let part = u128::from(fraction_value) * u128::from(unit_bytes);
    if !part.is_multiple_of(scale) {
        return Err(Error::new(ErrorKind::Usage, format!("{text} does not come to whole bytes"))
            .with_hint("Use a smaller unit"));
    }
    let bytes = u128::from(whole) * u128::from(unit_bytes) + part / scale;
    u64::try_from(bytes).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("{text} is too large")).with_hint("The largest volume has 1P")
    })
}

fn parse_unit(unit: &str) -> Option<u64> {
    if matches!(unit, "" | "B") {
        return Some(1);
    }
    let mut rest = unit.chars();
    let letter = rest.next()?;
    let position = LETTERS.iter().position(|known| *known == letter.to_ascii_uppercase())?;
    let power = u32::try_from(position).ok()? + 1;
    match (rest.as_str(), letter) {
        ("" | "iB", _) => Some(1_u64 << (10 * power)),
        // Of the powers of 1000, the first has a small letter: KB means 1024 to some and 1000 to others.
        ("B", 'k' | 'M' | 'G' | 'T' | 'P' | 'E') => Some(1000_u64.pow(power)),
        _ => None,
    }
}

/// A size for people: powers of 1024 with one decimal.
pub(super) fn format_size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut power = 0;
    // Rounded to tenths, so that 1048575 is 1.0 MiB and not 1024.0 KiB.
    while power < LETTERS.len() && tenths(bytes, power + 1) >= 10_240 {
        power += 1;
    }
    let tenths = tenths(bytes, power + 1);
    format!("{}.{} {}iB", tenths / 10, tenths % 10, LETTERS[power])
}

/// `bytes` in tenths of 1024^power, rounded half up.
fn tenths(bytes: u64, power: usize) -> u128 {
    let shift = 10 * power;
    ((u128::from(bytes) * 10) + (1_u128 << (shift - 1))) >> shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_and_decimal_units_differ() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1K", 1024),
            ("1k", 1024),
            ("1KiB", 1024),
            ("1kB", 1000),
            ("10G", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5G", 3 << 29),
            ("1P", 1 << 50),
            ("2PB", 2_000_000_000_000_000),
            ("15E", 15 << 60),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text).expect(text), bytes, "{text}");
        }
    }

    #[test]
    fn everything_else_is_usage() {
        for text in
            ["", "G", "-1", "+1G", "1X", "1KB", "1GiBs", "1.G", "1..5G", ".5G", "1.0001K", "16E", "1e9", "10 000", "٣G"]
        {
            assert_eq!(parse_size(text).expect_err(text).kind(), ErrorKind::Usage, "{text}");
        }
    }

    #[test]
    fn sizes_are_printed_with_one_decimal() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (10 << 30, "10.0 GiB"),
            (1 << 50, "1.0 PiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn a_printed_size_is_read_again() {
        assert_eq!(parse_size(&format_size(3 << 29)).expect("printed"), 3 << 29);
    }
}
