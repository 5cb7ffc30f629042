//! The error numbers of the transmission phase.

use std::fmt;

/// An error as it travels in a reply (specification, "Error values"). Any other number must not be sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum WireError {
    /// EPERM: the export is read-only.
    NotPermitted = 1,
    /// EIO: the device failed.
    Io = 5,
    /// ENOMEM: not enough memory. Avoid it; clients treat it as final.
    NoMemory = 12,
    /// EINVAL: the request makes no sense.
    Invalid = 22,
    /// ENOSPC: no space left, or a write past the end.
    NoSpace = 28,
    /// EOVERFLOW: the read cannot be answered without fragments, or a value does not fit.
    Overflow = 75,
    /// ENOTSUP: only for a FAST_ZERO that would not be fast.
    NotSupported = 95,
    /// ESHUTDOWN: the server is about to end.
    ShuttingDown = 108,
}

impl WireError {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The error that a received number other than 0 stands for. A number outside the specification counts as EINVAL,
    /// as the specification wants it.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::ShuttingDown,
            _ => Self::Invalid,
        }
    }

    /// The error to send for a Linux `errno` (positive). `is_fast_zero` tells that the request was a WRITE_ZEROES
    /// with FAST_ZERO, the only one that may be answered with ENOTSUP.
    #[must_use]
    pub const fn from_errno(errno: i32, is_fast_zero: bool) -> Self {
        const EROFS: i32 = 30;
        const EFBIG: i32 = 27;
        const EDQUOT: i32 = 122;
        match errno {
            1 | EROFS => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 | EFBIG | EDQUOT => Self::NoSpace,
            75 => Self::Overflow,
            95 if is_fast_zero => Self::NotSupported,
            108 => Self::ShuttingDown,
            _ => Self::Invalid,
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NotPermitted => "Operation not permitted (EPERM)",
            Self::Io => "Input/output error (EIO)",
            Self::NoMemory => "Out of memory (ENOMEM)",
            Self::Invalid => "Invalid request (EINVAL)",
            Self::NoSpace => "No space left (ENOSPC)",
            Self::Overflow => "Value too large (EOVERFLOW)",
            Self::NotSupported => "Not supported (ENOTSUP)",
            Self::ShuttingDown => "The server is shutting down (ESHUTDOWN)",
        })
    }
}

impl std::error::Error for WireError {}
