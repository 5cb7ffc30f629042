//! What a user holds that opens a key slot.

use crate::crypto::Passphrase;
use std::fmt;
use std::path::PathBuf;

/// Opens key slots of its kind.
#[derive(Clone, Debug)]
pub enum Credential {
    /// The file with 32 random bytes at this path. It is read when it is needed.
    KeyFile(PathBuf),
    /// A passphrase.
    Passphrase(Passphrase),
}

/// The credential at the start of a sentence.
impl fmt::Display for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyFile(path) => write!(formatter, "The key file {}", path.display()),
            Self::Passphrase(_) => formatter.write_str("The passphrase"),
        }
    }
}
