//! Names for many volumes at once: `ci-{:03}` is `ci-000`, `ci-001` and so on.

use super::volume_rule::check_name;
use crate::error::{Error, ErrorKind, Result};

/// Most names that one template gives at once.
pub const NAME_COUNT_MAX: u32 = 10_000;
/// Most digits that a placeholder pads to: more than the largest number has.
const WIDTH_MAX: usize = 9;

/// A name with one place for a number: `{}`, or `{:03}` for at least three digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTemplate {
    before: String,
    behind: String,
    /// Zeros in front fill it up to so many digits.
    width: usize,
}

impl NameTemplate {
    /// The template in `text`.
    ///
    /// # Errors
    /// `Usage` unless there is exactly one placeholder.
    pub fn parse(text: &str) -> Result<Self> {
        let no_template = || {
            let shown: String = text.chars().take(80).collect();
            Error::new(ErrorKind::Usage, format!("{shown:?} is not a template for names"))
                .with_hint("Write {} where the number goes, or {:03} for three digits, like ci-{:03}")
        };
        let (before, rest) = text.split_once('{').ok_or_else(no_template)?;
        let (format, behind) = rest.split_once('}').ok_or_else(no_template)?;
        if behind.contains(['{', '}']) || before.contains('}') {
            return Err(no_template());
        }
        let width = width_of(format).ok_or_else(no_template)?;
        Ok(Self { before: before.to_owned(), behind: behind.to_owned(), width })
    }

    /// The first `count` names, from 0.
    ///
    /// # Errors
    /// `Usage` if they are none or more than [`NAME_COUNT_MAX`], or one of them is no name for a volume.
    pub fn names(&self, count: u32) -> Result<Vec<String>> {
        if !(1..=NAME_COUNT_MAX).contains(&count) {
            return Err(Error::new(ErrorKind::Usage, format!("{count} volumes cannot be made at once"))
                .with_hint(format!("From 1 to {NAME_COUNT_MAX} can")));
        }
        let names: Vec<String> = (0..count).map(|number| self.name(number)).collect();
        // Of all names the last one is the longest, and apart from their digits they are alike.
        check_name(names.last().expect("there is at least one"))?;
        check_name(&names[0])?;
        Ok(names)
    }

    fn name(&self, number: u32) -> String {
        let Self { before, behind, width } = self;
        format!("{before}{number:0width$}{behind}")
    }
}

/// Nothing is one digit; `:0N` is N digits, from 1 to [`WIDTH_MAX`].
fn width_of(format: &str) -> Option<usize> {
    if format.is_empty() {
        return Some(1);
    }
    let digits = format.strip_prefix(":0")?;
    let is_number = digits.len() == 1 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let width = if is_number { digits.parse().ok()? } else { return None };
    (1..=WIDTH_MAX).contains(&width).then_some(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str, count: u32) -> Vec<String> {
        NameTemplate::parse(text).expect(text).names(count).expect("good names")
    }

    #[test]
    fn numbers_take_the_place_of_the_braces() {
        assert_eq!(names("ci-{}", 3), ["ci-0", "ci-1", "ci-2"]);
        assert_eq!(names("ci-{:03}", 2), ["ci-000", "ci-001"]);
        assert_eq!(names("a{:02}b", 1), ["a00b"]);
        assert_eq!(names("ci-{:02}", 101).last().map(String::as_str), Some("ci-100"), "digits grow as needed");
    }

    #[test]
    fn other_templates_are_refused() {
        for text in [
            "",
            "ci",
            "ci-{",
            "ci-}",
            "ci-}{",
            "ci-{}{}",
            "{{}}",
            "ci-{:3}",
            "ci-{:00}",
            "ci-{:010}",
            "ci-{:0}",
            "ci-{:0x}",
            "ci-{x}",
        ] {
            assert_eq!(NameTemplate::parse(text).expect_err(text).kind(), ErrorKind::Usage, "{text}");
        }
    }

    #[test]
    fn names_that_cannot_be_are_refused_before_anything_is_made() {
        let longest = format!("a{}", "b".repeat(61));
        let template = NameTemplate::parse(&format!("{longest}{{}}")).expect("a template");
        assert_eq!(template.names(10).expect("63 characters").len(), 10);
        assert_eq!(template.names(11).expect_err("64 characters").kind(), ErrorKind::Usage);
        for text in ["{}", "1{}", "a.{}", "a{}@1"] {
            let template = NameTemplate::parse(text).expect("a template");
            assert_eq!(template.names(1).expect_err(text).kind(), ErrorKind::Usage, "{text}");
        }
    }

    #[test]
    fn counts_have_a_limit() {
        let template = NameTemplate::parse("a{}").expect("a template");

        assert_eq!(template.names(NAME_COUNT_MAX).expect("the limit").len(), 10_000);
        for count in [0, NAME_COUNT_MAX + 1, u32::MAX] {
            assert_eq!(template.names(count).expect_err("out of range").kind(), ErrorKind::Usage);
        }
    }
}
