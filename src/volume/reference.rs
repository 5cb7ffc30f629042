//! References: what users call a volume or one of its snapshots, in commands, in the API and as the name of an export.
//!
//! ```text
//! REFERENCE = NAME [ "@" SELECTOR ]
//! SELECTOR  = NUMBER | "latest" | "-" COUNT | TIME | TAG
//! ```
//!
//! Each text means one thing: digits are a number, what begins like a time is one, and a tag may look like neither. So a
//! tag that is added later changes the meaning of no reference that worked before.

use super::valid_time::{is_like_time, parse_time, time_text};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::NAME_BYTES_MAX;
use jiff::Timestamp;
use std::fmt;
use std::str::FromStr;

/// Longest tag, in bytes.
pub const TAG_LEN_MAX: usize = 63;
/// The word for the snapshot with the highest number.
const LATEST: &str = "latest";
/// Most characters that a message shows of a text that is wrong.
const SHOWN_LEN_MAX: usize = 80;

/// A volume, or one of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    volume: String,
    selector: Option<Selector>,
}

/// Which of a volume's snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The one of this number, from 1.
    Number(u64),
    /// The one with the highest number.
    Latest,
    /// The one that is so many before the latest, from 1; removed ones do not count.
    Back(u64),
    /// The newest of those whose valid time is not later.
    Time(Timestamp),
    /// The one that carries this tag.
    Tag(String),
}

impl Reference {
    /// The volume of this name.
    ///
    /// # Errors
    /// `Usage` for what is no name.
    pub fn volume(name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self { volume: name.to_owned(), selector: None })
    }

    /// A snapshot of the same volume.
    #[must_use]
    pub fn with_selector(self, selector: Selector) -> Self {
        Self { selector: Some(selector), ..self }
    }

    /// The volume's name.
    #[must_use]
    pub fn volume_name(&self) -> &str {
        &self.volume
    }

    /// Which of its snapshots; `None` is the volume itself.
    #[must_use]
    pub const fn selector(&self) -> Option<&Selector> {
        self.selector.as_ref()
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// `Usage` for what is no name, or no selector behind the `@`.
    fn from_str(text: &str) -> Result<Self> {
        let Some((name, selector)) = text.split_once('@') else { return Self::volume(text) };
        check_name(name)?;
        Ok(Self { volume: name.to_owned(), selector: Some(selector.parse()?) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.volume)?;
        self.selector.as_ref().map_or(Ok(()), |selector| write!(formatter, "@{selector}"))
    }
}

impl FromStr for Selector {
    type Err = Error;

    /// # Errors
    /// `Usage` for what is no number, time, tag or `latest`.
    fn from_str(text: &str) -> Result<Self> {
        if text == LATEST {
            return Ok(Self::Latest);
        }
        if is_digits(text) {
            return number(text).map(Self::Number).ok_or_else(|| {
                no_selector(text)
                    .with_hint("Snapshots are numbered from 1, and a number is written without zeros in front")
            });
        }
        if let Some(count) = text.strip_prefix('-').filter(|count| is_digits(count)) {
            return number(count).map(Self::Back).ok_or_else(|| {
                no_selector(text).with_hint("@-1 is the one before the latest, and @latest is the latest")
            });
        }
        if is_like_time(text) {
            return parse_time(text).map(Self::Time);
        }
        check_tag_form(text).map_err(|_| {
            no_selector(text)
                .with_hint("Write a number (@7), @latest, @-1 for the one before, a tag, or a time (@2026-11-01T10:00)")
        })?;
        Ok(Self::Tag(text.to_owned()))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Latest => formatter.write_str(LATEST),
            Self::Back(count) => write!(formatter, "-{count}"),
            Self::Time(time) => formatter.write_str(&time_text(*time)),
            Self::Tag(tag) => formatter.write_str(tag),
        }
    }
}

/// Checks the name of a volume: a letter, then letters, digits, `_` and `-`, at most 63 in all.
///
/// # Errors
/// `Usage` for anything else.
pub fn check_name(name: &str) -> Result<()> {
    let is_valid = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if is_valid {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("{} is not a name for a volume", shown(name)))
        .with_hint("A name is a letter and up to 62 more letters, digits, - and _"))
}

/// Checks a new tag: a letter or digit, then letters, digits, `.`, `_` and `-`, at most [`TAG_LEN_MAX`] in all, and with a
/// letter somewhere; neither `latest` nor like a time.
///
/// # Errors
/// `Usage` for anything else; the hint says which rule it breaks.
pub fn check_tag(tag: &str) -> Result<()> {
    let refused =
        |hint: &str| Err(Error::new(ErrorKind::Usage, format!("{} cannot be a tag", shown(tag))).with_hint(hint));
    if tag.eq_ignore_ascii_case(LATEST) {
        return refused("@latest is always the snapshot with the highest number: choose another word");
    }
    if is_like_time(tag) {
        return refused("It would be read as a time: put a letter in front, like v2026-11-01");
    }
    if !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')) {
        return refused("It would look like a number: put a letter in front, like v7");
    }
    check_tag_form(tag)
}

/// Whether a text could be a tag, by its characters.
fn check_tag_form(tag: &str) -> Result<()> {
    let is_valid = tag.len() <= TAG_LEN_MAX
        && tag.starts_with(|first: char| first.is_ascii_alphanumeric())
        && tag.bytes().any(|byte| byte.is_ascii_alphabetic())
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && !tag.eq_ignore_ascii_case(LATEST);
    if is_valid {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("{} cannot be a tag", shown(tag))).with_hint(
        "A tag is a letter or digit and up to 62 more letters, digits, ., - and _, with a letter among them",
    ))
}

fn no_selector(text: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("{} names no snapshot", shown(&format!("@{text}"))))
}

/// The text escaped and cut: it may be long or hold control characters.
fn shown(text: &str) -> String {
    let beginning: String = text.chars().take(SHOWN_LEN_MAX).collect();
    format!("{beginning:?}")
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// From 1, without zeros in front, so that each snapshot has one number as text.
fn number(digits: &str) -> Option<u64> {
    if digits.starts_with('0') { None } else { digits.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn selector(text: &str) -> Selector {
        let reference: Reference = format!("vol1@{text}").parse().expect(text);
        assert_eq!(reference.volume_name(), "vol1");
        reference.selector().expect("it has one").clone()
    }

    fn refusal(text: &str) -> Error {
        let error = text.parse::<Reference>().expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Usage, "{text:?}");
        assert!(error.hint().is_some(), "{text:?} is refused without a way out");
        error
    }

    #[test]
    fn a_name_alone_is_the_volume() {
        let reference: Reference = "vol1".parse().expect("a name");

        assert_eq!((reference.volume_name(), reference.selector()), ("vol1", None));
    }

    #[test]
    fn each_form_of_selector_is_told_apart() {
        assert_eq!(selector("7"), Selector::Number(7));
        assert_eq!(selector("18446744073709551615"), Selector::Number(u64::MAX));
        assert_eq!(selector("-1"), Selector::Back(1));
        assert_eq!(selector("latest"), Selector::Latest);
        assert_eq!(selector("before-upgrade"), Selector::Tag("before-upgrade".to_owned()));
        assert_eq!(selector("4.1a"), Selector::Tag("4.1a".to_owned()));
        assert_eq!(selector("2026w44"), Selector::Tag("2026w44".to_owned()));
        let time = Selector::Time(parse_time("2026-11-01T10:00").expect("a time"));
        assert_eq!(selector("2026-11-01T10:00"), time);
        assert_eq!(selector("2026-11-01T12:00:00+02:00"), time);
    }

    #[test]
    fn selectors_that_mean_nothing_are_refused_with_a_way_out() {
        for text in
            ["", "0", "007", "-0", "-", "-x", "18446744073709551616", "1.5", "Latest", "a b", "a@1", "é", "b3:9f2c"]
        {
            refusal(&format!("vol1@{text}"));
        }
        assert!(refusal("vol1@2026-11-31").message().contains("is not a time"));
        assert!(refusal("vol1@007").hint().is_some_and(|hint| hint.contains("without zeros")));
    }

    #[test]
    fn names_of_volumes_follow_the_rule() {
        let longest = format!("a{}", "0".repeat(62));
        for name in ["a", "Z9_-", longest.as_str()] {
            check_name(name).expect(name);
        }
        for name in ["", "1a", "-a", "_a", "a.b", "a/b", "a b", "ä", "a\n", "a@1", &format!("{longest}0")] {
            assert_eq!(check_name(name).expect_err(name).kind(), ErrorKind::Usage, "{name:?}");
        }
        assert!(refusal("@7").message().contains("not a name"));
    }

    #[test]
    fn tags_do_not_look_like_a_number_a_time_or_the_latest() {
        let longest = format!("v{}", "0".repeat(62));
        for tag in ["v1", "before-upgrade", "release-1.4", "2026w44", "1e", "2026-Q3", longest.as_str()] {
            check_tag(tag).expect(tag);
        }
        let too_long = format!("{longest}0");
        for tag in [
            "",
            "7",
            "-1",
            "007",
            "1.4",
            "1_000",
            "2026-11-01",
            "2026-1",
            "2026-11-01T10:00",
            "2026-11-x",
            "latest",
            "Latest",
            "-v",
            ".v",
            "_v",
            "a b",
            "a@b",
            "a:b",
            "a/b",
            "ä",
            "v\n",
            too_long.as_str(),
        ] {
            let error = check_tag(tag).expect_err(tag);
            assert_eq!(error.kind(), ErrorKind::Usage, "{tag:?}");
            assert!(error.hint().is_some(), "{tag:?}");
        }
    }

    #[test]
    fn messages_are_bounded_and_escaped() {
        for text in ["\u{1b}".repeat(100_000), format!("vol1@{}", "\u{1b}".repeat(100_000))] {
            let error = refusal(&text);
            assert!(error.message().len() < 1024);
            assert!(!error.message().contains('\u{1b}'));
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(text in "[A-Za-z][A-Za-z0-9_-]{0,8}(@(-?[1-9][0-9]{0,9}|latest|[a-z0-9][a-z0-9._-]{0,8}|20[0-9]{2}-1[0-2]-0[1-9](T0[0-9]:1[0-9])?))?") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().expect("what is shown");
                prop_assert_eq!(again, reference);
            }
        }

        #[test]
        fn every_tag_that_is_allowed_is_read_as_that_tag(tag in "[A-Za-z0-9._@:-]{1,12}|\\PC{0,12}") {
            if check_tag(&tag).is_ok() {
                prop_assert_eq!(tag.parse::<Selector>().expect("a tag"), Selector::Tag(tag));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _is_reference = text.parse::<Reference>().is_ok();
        }
    }
}
