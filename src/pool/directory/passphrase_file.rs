//! Passphrase files: the first line is the passphrase.

use super::key_file::check_is_private;
use crate::crypto::{PASSPHRASE_BYTES, Passphrase, PassphraseError};
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use zeroize::Zeroizing;

/// The longest passphrase and what ends its line, `\r\n` at most.
const LINE_BYTES_MAX: usize = *PASSPHRASE_BYTES.end() + 2;

/// The passphrase in a file. The file may also be a pipe.
///
/// # Errors
/// `Key` if it is missing, unreadable, of another user, open to group or others, or if its first line is no passphrase.
pub fn read_passphrase_file(path: &Path) -> Result<Passphrase> {
    let name = format!("The passphrase file {}", path.display());
    let mut file = File::open(path).map_err(|source| unreadable(&name, source))?;
    let metadata = file.metadata().map_err(|source| unreadable(&name, source))?;
    // A pipe belongs to who opened it already: others do not read it again.
    if metadata.is_file() {
        check_is_private(&name, path, &metadata)?;
    }
    read_passphrase(&mut file, &name)
}

/// The passphrase in the first line of `source`, which errors call `name`. It should have no buffer of its own, since
/// nobody would wipe that.
///
/// # Errors
/// `Key` if it cannot be read or its first line is no passphrase.
pub fn read_passphrase(source: &mut impl Read, name: &str) -> Result<Passphrase> {
    let mut buffer = Zeroizing::new([0; LINE_BYTES_MAX]);
    let mut count = 0;
    while count < buffer.len() && !buffer[..count].contains(&b'\n') {
        match source.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(name, error)),
        }
    }
    let line = buffer[..count].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Ok(text) = std::str::from_utf8(line) else {
        return Err(Error::new(ErrorKind::Key, format!("{name} does not begin with a line of text"))
            .with_hint("A file of 32 random bytes is a key file: give it with --key-file"));
    };
    passphrase(Zeroizing::new(text.to_owned()))
        .map_err(|error| Error::new(ErrorKind::Key, format!("{name} holds none: {}", error.message())))
}

/// The passphrase with this text.
///
/// # Errors
/// `Key` if it is none.
pub fn passphrase(text: Zeroizing<String>) -> Result<Passphrase> {
    Passphrase::new(text).map_err(|error: PassphraseError| Error::new(ErrorKind::Key, error.to_string()))
}

fn unreadable(name: &str, source: io::Error) -> Error {
    Error::new(ErrorKind::Key, format!("{name} cannot be read: {source}"))
        .with_hint("Give the passphrase that the pool was created with")
        .with_source(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn read(mut bytes: &[u8]) -> Result<Passphrase> {
        read_passphrase(&mut bytes, "The sample")
    }

    #[test]
    fn the_first_line_counts_and_not_what_ends_it() {
        let longest = "x".repeat(512);
        let samples: [(&[u8], &str); 6] = [
            (b"correct horse", "correct horse"),
            (b"correct horse\n", "correct horse"),
            (b"correct horse\r\n", "correct horse"),
            (b" correct horse \nbattery\n", " correct horse "),
            (longest.as_bytes(), &longest),
            (&[longest.as_bytes(), b"\r\nmore"].concat(), &longest),
        ];
        for (bytes, passphrase) in samples {
            assert_eq!(read(bytes).expect(passphrase).expose(), passphrase);
        }
    }

    #[test]
    fn what_is_no_passphrase_is_refused_without_showing_it() {
        let too_long = [b'x'; 513];
        let samples: [&[u8]; 6] = [b"", b"\n", b"secret\n", &too_long, b"a\ttabulator", &[0xff; 32]];
        for bytes in samples {
            let error = read(bytes).expect_err("no passphrase");
            assert_eq!(error.kind(), ErrorKind::Key);
            assert!(error.message().starts_with("The sample"), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    /// A pipe gives what was written to it in pieces.
    #[test]
    fn a_line_may_come_in_pieces() {
        struct Pieces<'a>(&'a [u8]);
        impl Read for Pieces<'_> {
            fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
                let count = self.0.len().min(1);
                target[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                Ok(count)
            }
        }

        let passphrase = read_passphrase(&mut Pieces(b"correct horse\nbattery"), "The sample").expect("a line");

        assert_eq!(passphrase.expose(), "correct horse");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("passphrase");
        fs::write(&path, "correct horse\n").expect("written");
        for (mode, is_taken) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            assert_eq!(read_passphrase_file(&path).is_ok(), is_taken, "{mode:o}");
        }
        let error = read_passphrase_file(&path).expect_err("others can read it");
        assert_eq!(error.hint(), Some(format!("Run: chmod 600 {}", path.display()).as_str()));

        fs::remove_file(&path).expect("ours");
        assert_eq!(read_passphrase_file(&path).expect_err("not there").kind(), ErrorKind::Key);
    }
}
