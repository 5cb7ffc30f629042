//! What users may attach to a snapshot: labels, messages, reasons of holds. The daemon checks every request; the command
//! line asks here first. Tags are checked where references are read, since they share a place there.

use crate::error::{Error, ErrorKind, Result};

/// Longest key of a label, in bytes.
pub const LABEL_KEY_LEN_MAX: usize = 63;
/// Longest value of a label, in bytes.
pub const LABEL_VALUE_LEN_MAX: usize = 255;
/// Most labels of a snapshot.
pub const LABEL_COUNT_MAX: usize = 64;
/// Longest message, in bytes.
pub const MESSAGE_LEN_MAX: usize = 4096;
/// Longest reason of a hold, in bytes.
pub const HOLD_LEN_MAX: usize = 63;
/// Longest name of a file, in bytes.
pub const FILE_NAME_LEN_MAX: usize = 255;
/// Longest line without a rule of its own, in bytes.
pub const LINE_LEN_MAX: usize = 255;
/// Most characters that a message shows of a text that is wrong.
const SHOWN_LEN_MAX: usize = 80;

/// Key and value of a label that is written `key=value`. The value may hold further `=` and be empty.
///
/// # Errors
/// `Usage` for anything else, or what [`check_label`] reports.
pub fn parse_label(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{} is not a label", shown(text))).with_hint("Write it as KEY=VALUE")
    })?;
    check_label(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Checks a label: its key as [`check_label_key`] does, and a value of at most [`LABEL_VALUE_LEN_MAX`] bytes on one line.
///
/// # Errors
/// `Usage` for anything else.
pub fn check_label(key: &str, value: &str) -> Result<()> {
    check_label_key(key)?;
    check_line("A label's value", value, LABEL_VALUE_LEN_MAX)
}

/// Checks the key of a label: a letter, then letters, digits, `.`, `_`, `/` and `-`, at most [`LABEL_KEY_LEN_MAX`].
///
/// # Errors
/// `Usage` for anything else.
pub fn check_label_key(key: &str) -> Result<()> {
    let is_valid = key.len() <= LABEL_KEY_LEN_MAX
        && key.starts_with(|first: char| first.is_ascii_alphabetic())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'/' | b'-'));
    if is_valid {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("{} cannot be the key of a label", shown(key)))
        .with_hint("A key is a letter and up to 62 more letters, digits, ., _, / and -"))
}

/// Checks a message: at most [`MESSAGE_LEN_MAX`] bytes; lines may end, and no other control character is in it.
///
/// # Errors
/// `Usage` for anything else.
pub fn check_message(message: &str) -> Result<()> {
    check_length("A message", message, MESSAGE_LEN_MAX)?;
    check_controls("A message", message, |letter| letter == '\n')
}

/// Checks the reason of a hold: one line of 1 to [`HOLD_LEN_MAX`] bytes.
///
/// # Errors
/// `Usage` for anything else.
pub fn check_hold(reason: &str) -> Result<()> {
    if reason.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "A hold without a reason cannot be released")
            .with_hint("Name a reason, like release-1.4"));
    }
    check_line("The reason of a hold", reason, HOLD_LEN_MAX)
}

/// Checks the name of a small file that is kept with a snapshot: 1 to 255 bytes, without `/` and control characters, and
/// neither `.` nor `..`.
///
/// # Errors
/// `Usage` for anything else.
pub fn check_file_name(name: &str) -> Result<()> {
    check_line("The name of a file", name, FILE_NAME_LEN_MAX)?;
    if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
        return Err(Error::new(ErrorKind::Usage, format!("{} is no name for a file", shown(name)))
            .with_hint("Name it without folders, like vm.xml"));
    }
    Ok(())
}

/// Checks a text of one line, at most [`LINE_LEN_MAX`] bytes; `what` begins the message.
///
/// # Errors
/// `Usage` for anything else.
pub fn check_line_of(what: &str, text: &str) -> Result<()> {
    check_line(what, text, LINE_LEN_MAX)
}

fn check_line(what: &str, text: &str, len_max: usize) -> Result<()> {
    check_length(what, text, len_max)?;
    check_controls(what, text, |_| false)
}

fn check_length(what: &str, text: &str, len_max: usize) -> Result<()> {
    if text.len() <= len_max {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("{what} cannot have {} bytes", text.len()))
        .with_hint(format!("At most {len_max} are allowed")))
}

/// Control characters in a list would change the terminal of whoever reads it.
fn check_controls(what: &str, text: &str, is_allowed: impl Fn(char) -> bool) -> Result<()> {
    if text.chars().all(|letter| !letter.is_control() || is_allowed(letter)) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("{what} cannot hold control characters: {}", shown(text)))
        .with_hint("Leave them out"))
}

/// The text escaped and cut.
fn shown(text: &str) -> String {
    let beginning: String = text.chars().take(SHOWN_LEN_MAX).collect();
    format!("{beginning:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_cut_at_the_first_equals_sign() {
        let label = |text: &str| parse_label(text).expect(text);

        assert_eq!(label("git=4f2a9c1"), ("git".to_owned(), "4f2a9c1".to_owned()));
        assert_eq!(label("a=b=c"), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(label("empty="), ("empty".to_owned(), String::new()));
        assert_eq!(label("lab.org/team-1=\u{fc}ber"), ("lab.org/team-1".to_owned(), "\u{fc}ber".to_owned()));
    }

    #[test]
    fn other_labels_are_refused() {
        let (key, value) = (format!("k{}", "0".repeat(63)), "v".repeat(256));
        for text in [
            "",
            "git",
            "=v",
            "1=v",
            "a b=v",
            "\u{e4}=v",
            "a=\n",
            "a=\u{1b}[0m",
            &format!("{key}=v"),
            &format!("k={value}"),
        ] {
            let error = parse_label(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text:?}");
            assert!(error.hint().is_some(), "{text:?}");
            assert!(!error.message().contains('\u{1b}'), "{text:?}");
        }
    }

    #[test]
    fn messages_may_have_lines_and_an_end() {
        for message in ["", "before upgrade", "two\nlines", &"m".repeat(MESSAGE_LEN_MAX)] {
            check_message(message).expect(message);
        }
        for message in ["\u{7}", "a\rb", "\u{9b}", &"m".repeat(MESSAGE_LEN_MAX + 1)] {
            assert_eq!(check_message(message).expect_err(message).kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn files_have_names_without_folders() {
        for name in ["vm.xml", "..a", "\u{fc}ber"] {
            check_file_name(name).expect(name);
        }
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\n", &"f".repeat(FILE_NAME_LEN_MAX + 1)] {
            assert_eq!(check_file_name(name).expect_err(name).kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn a_hold_has_a_reason_on_one_line() {
        check_hold("release-1.4").expect("a reason");
        for reason in ["", "a\nb", &"h".repeat(HOLD_LEN_MAX + 1)] {
            assert_eq!(check_hold(reason).expect_err(reason).kind(), ErrorKind::Usage);
        }
    }
}
