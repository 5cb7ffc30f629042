//! What a lane asks of the kernel, in words that do not say how the kernel is asked.
//!
//! Invariant: what a call points to, and the file that it names by number, is kept by its owner (connection, listener,
//! lane) until the end of the call.

mod disk;
mod readiness;
mod uring;

pub(super) use disk::LaneDisk;
pub(super) use readiness::Readiness;
pub(super) use uring::Uring;

use std::os::fd::RawFd;

/// How a lane asks.
pub(super) enum Driver<'ring> {
    Uring(Uring<'ring>),
    Readiness(Readiness),
}

/// A call, and what its end is known by.
pub(super) struct Submission {
    pub user_data: u64,
    pub call: Call,
}

/// Something that ends some time later with a [`CallEnd`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// Receive up to `len` bytes; all of them if possible with `is_whole`.
    Receive { socket: RawFd, memory: *mut u8, len: usize, is_whole: bool },
    /// Send a message; all of it if possible.
    Send { socket: RawFd, message: *const libc::msghdr },
    /// Accept a connection, or one after the other (`is_many`) until one fails.
    Accept { listener: RawFd, is_many: bool },
    /// Read the eventfd of the lane's alarm: 8 bytes.
    ReadAlarm { alarm: RawFd, memory: *mut u8 },
    /// Wait until the peer sends nothing more, or the connection is gone.
    AwaitHangup { socket: RawFd },
    /// Let a tick's time go by.
    Tick,
    /// End the call with this user data.
    Cancel { user_data: u64 },
}

/// The end of a call, or one of the connections of an accept that goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallEnd {
    pub user_data: u64,
    /// As the kernel gives it: an error's number below 0.
    pub result: i32,
    /// More will come for the same call.
    pub is_going_on: bool,
}
