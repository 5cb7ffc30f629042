//! How other threads wake a lane that sleeps in its ring: an eventfd of which the ring always reads.

#![expect(unsafe_code, reason = "eventfd has no safe form in the standard library")]

use super::raised::Raised;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// An alarm of one lane. Raising it twice before the lane woke costs one system call.
#[derive(Debug)]
pub(crate) struct Alarm {
    event: File,
    raised: Raised,
}

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        let event = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self { event, raised: Raised::default() })
    }

    /// Wakes the lane. What it is to see must be published before.
    pub(crate) fn raise(&self) {
        if !self.raised.raise() {
            return;
        }
        // Whichever end of the number comes first, it is not 0. It cannot overflow: there is one raise a read.
        if let Err(error) = (&self.event).write_all(&1_u64.to_le_bytes()) {
            tracing::error!(%error, "a lane could not be woken");
        }
    }

    /// To be called by the lane when its read of the eventfd is done, before it looks at what it was woken for.
    pub(crate) fn lower(&self) {
        self.raised.lower();
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
