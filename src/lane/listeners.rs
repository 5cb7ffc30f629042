//! The sockets on which a lane accepts connections: which of them has a call with the kernel.
//!
//! Invariant: a socket is closed only when no call of it is with the kernel.

use super::driver::Call;
use super::settings::ListenSettings;
use crate::units::to_u64;
use slab::Slab;
use std::os::fd::{AsRawFd, OwnedFd};

/// One socket.
struct Listener {
    socket: OwnedFd,
    is_tcp: bool,
    settings: ListenSettings,
    is_armed: bool,
    /// Accepts many with one call (with io_uring, Linux 5.19).
    is_many: bool,
}

/// What becomes of a listener after a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Nothing: its call goes on, or the lane ends.
    Nothing,
    /// It wants a call again.
    Arm,
    /// It is out of files or memory, or the client is gone again: it pauses for a tick.
    Pause,
}

/// The listeners of a lane, each with a slot.
#[derive(Default)]
pub(super) struct Listeners(Slab<Listener>);

impl Listeners {
    /// Takes a listening socket; it accepts once it is [armed](Self::arm).
    pub(super) fn add(&mut self, socket: OwnedFd, is_tcp: bool, settings: ListenSettings) -> usize {
        self.0.insert(Listener { socket, is_tcp, settings, is_armed: false, is_many: true })
    }

    /// The call by which a listener accepts.
    pub(super) fn arm(&mut self, slot: usize) -> Call {
        let listener = &mut self.0[slot];
        listener.is_armed = true;
        Call::Accept { listener: listener.socket.as_raw_fd(), is_many: listener.is_many }
    }

    /// Whether a listener's connections are TCP, and how it treats them.
    pub(super) fn settings(&self, slot: usize) -> (bool, ListenSettings) {
        (self.0[slot].is_tcp, self.0[slot].settings)
    }

    /// Takes the result of a listener's call, which may go on (`is_armed`).
    pub(super) fn completed(&mut self, slot: usize, result: i32, is_armed: bool, is_closing: bool) -> Next {
        let listener = &mut self.0[slot];
        listener.is_armed = is_armed;
        if is_armed {
            return Next::Nothing;
        }
        if is_closing {
            self.0.remove(slot);
            return Next::Nothing;
        }
        if result == -libc::EINVAL && listener.is_many {
            listener.is_many = false;
        } else if result < 0 {
            return Next::Pause;
        }
        Next::Arm
    }

    /// The listeners that pause.
    pub(super) fn paused(&self) -> Vec<usize> {
        self.0.iter().filter(|(_, listener)| !listener.is_armed).map(|(slot, _)| slot).collect()
    }

    /// Closes what has no call with the kernel, and returns the slots of the calls to cancel.
    pub(super) fn close(&mut self) -> Vec<u64> {
        self.0.retain(|_, listener| listener.is_armed);
        self.0.iter().map(|(slot, _)| to_u64(slot)).collect()
    }

    /// Whether none is left.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn listeners() -> (Listeners, usize) {
        let mut listeners = Listeners::default();
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let slot = listeners.add(socket.into(), true, ListenSettings::default());
        listeners.arm(slot);
        (listeners, slot)
    }

    #[test]
    fn kernel_without_multishot_is_asked_for_one_at_a_time() {
        let (mut listeners, slot) = listeners();
        assert_eq!(listeners.completed(slot, -libc::EINVAL, false, false), Next::Arm);
        // The second refusal is about something else.
        assert_eq!(listeners.completed(slot, -libc::EINVAL, false, false), Next::Pause);
    }

    #[test]
    fn listener_out_of_files_pauses_and_is_found_again() {
        let (mut listeners, slot) = listeners();
        assert_eq!(listeners.completed(slot, -libc::EMFILE, false, false), Next::Pause);
        assert_eq!(listeners.paused(), [slot]);
        listeners.arm(slot);
        assert!(listeners.paused().is_empty());
    }

    #[test]
    fn closed_listener_stays_until_its_call_is_back() {
        let (mut listeners, slot) = listeners();
        assert_eq!(listeners.close(), [to_u64(slot)]);
        assert!(!listeners.is_empty());
        assert_eq!(listeners.completed(slot, -libc::ECANCELED, false, true), Next::Nothing);
        assert!(listeners.is_empty());
    }

    #[test]
    fn paused_listener_is_closed_at_once() {
        let (mut listeners, slot) = listeners();
        assert_eq!(listeners.completed(slot, -libc::ENFILE, false, false), Next::Pause);
        assert!(listeners.close().is_empty());
        assert!(listeners.is_empty());
    }
}
