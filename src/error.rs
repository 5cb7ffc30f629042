//! Errors of the two kinds of path.
//!
//! The data path carries [`IoError`], a `Copy` code that becomes an errno. The control path carries
//! [`Error`]: a kind (which becomes the exit code and the HTTP status), a sentence that names
//! the thing and the way out, and the source.

use std::error::Error as StdError;
use std::fmt;

/// Why a data request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoError {
    /// The device failed, or a block is damaged (EIO).
    Io,
    /// The pool is full (ENOSPC).
    NoSpace,
    /// The request lies outside of the volume or is malformed (EINVAL).
    Invalid,
    /// The volume is read-only (EPERM).
    ReadOnly,
    /// The pool closes (ESHUTDOWN).
    ShuttingDown,
}

impl IoError {
    /// The errno of Linux.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Io => libc::EIO,
            Self::NoSpace => libc::ENOSPC,
            Self::Invalid => libc::EINVAL,
            Self::ReadOnly => libc::EPERM,
            Self::ShuttingDown => libc::ESHUTDOWN,
        }
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Io => "input/output error",
            Self::NoSpace => "no space left in the pool",
            Self::Invalid => "invalid request",
            Self::ReadOnly => "the volume is read-only",
            Self::ShuttingDown => "the pool is closing",
        })
    }
}

impl StdError for IoError {}

/// What class of thing went wrong on the control path. Each has a stable exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Anything else.
    Other,
    /// Arguments that make no sense.
    Usage,
    /// No such volume, pool or file.
    NotFound,
    /// The name is taken, or the revision differs.
    Exists,
    /// Not permitted.
    Permission,
    /// Attached, exported, held or locked by another process.
    Busy,
    /// No space, quota or reserve.
    NoSpace,
    /// Damaged, foreign, missing or older data.
    Integrity,
    /// The key is missing or wrong.
    Key,
    /// The daemon cannot be reached.
    Unreachable,
    /// Timed out or canceled.
    TimedOut,
    /// The host lacks a feature.
    Unsupported,
}

impl ErrorKind {
    /// The exit code of the command line. Stable; unknown non-zero codes mean failure.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotFound => 4,
            Self::Exists => 5,
            Self::Permission => 6,
            Self::Busy => 7,
            Self::NoSpace => 8,
            Self::Integrity => 9,
            Self::Key => 10,
            Self::Unreachable => 11,
            Self::TimedOut => 12,
            Self::Unsupported => 13,
        }
    }

    /// The word that the JSON form carries as `code`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Other => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Exists => "exists",
            Self::Permission => "permission",
            Self::Busy => "busy",
            Self::NoSpace => "no-space",
            Self::Integrity => "integrity",
            Self::Key => "key",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed-out",
            Self::Unsupported => "unsupported",
        }
    }

    /// The kind that [`Self::code`] names.
    #[must_use]
    pub fn from_code(code: &str) -> Self {
        [
            Self::Usage,
            Self::NotFound,
            Self::Exists,
            Self::Permission,
            Self::Busy,
            Self::NoSpace,
            Self::Integrity,
            Self::Key,
            Self::Unreachable,
            Self::TimedOut,
            Self::Unsupported,
        ]
        .into_iter()
        .find(|kind| kind.code() == code)
        .unwrap_or(Self::Other)
    }
}

/// A failure on the control path.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result of the control path.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error whose `message` is a sentence that names the thing, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The class of the failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence, without hint and source.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do next, if there is something to do.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// An operating-system error on `path` while doing `action` ("Opening", "Writing").
    #[must_use]
    pub fn from_io(action: &str, path: &std::path::Path, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
            std::io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            _ => ErrorKind::Other,
        };
        Self::new(kind, format!("{action} {} failed: {source}", path.display())).with_source(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(formatter, ". {hint}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
