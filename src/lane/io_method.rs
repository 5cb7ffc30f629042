//! How lanes do their I/O: over io_uring, or with threads and poll(2) where that is refused.

use super::limits::{RING_COMPLETION_ENTRIES, RING_SUBMISSION_ENTRIES};
use crate::error::{Error, ErrorKind, Result};
use io_uring::{IoUring, Probe, opcode};
use rok_ublk::{RingError, ring};
use std::io;

/// The ring of a lane.
pub(super) const RING: ring::Setup =
    ring::Setup { submission_entries: RING_SUBMISSION_ENTRIES, completion_entries: RING_COMPLETION_ENTRIES };

/// What allows io_uring.
const WAY_OUT: &str = "`sysctl kernel.io_uring_disabled=0`, Linux 5.6 or newer, and in a container a seccomp profile that \
                       permits io_uring_setup, io_uring_enter and io_uring_register";

/// What lanes ask of the kernel by io_uring, and since when it is there.
const OPERATIONS: &[(u8, &str)] = &[
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::Recv::CODE, "recv"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::Accept::CODE, "accept"),
    (opcode::PollAdd::CODE, "poll"),
    (opcode::Timeout::CODE, "timeout"),
    (opcode::AsyncCancel::CODE, "cancel"),
];

/// What a server is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoChoice {
    /// io_uring if the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or no server.
    IoUring,
    /// Threads, also where io_uring is allowed.
    Threads,
}

/// What a server has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoMethod {
    /// Each lane has a ring, which carries all of its I/O.
    IoUring,
    /// Threads do the transfers of all lanes; a lane does its sockets by itself. The same promises, slower.
    Threads,
}

impl IoMethod {
    /// Finds out what the kernel allows, and says once if that is not what was hoped for.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if io_uring is refused and nothing else will do; the system's if a ring fails for
    /// another reason.
    pub(super) fn choose(choice: IoChoice) -> Result<Self> {
        if choice == IoChoice::Threads {
            return Ok(Self::Threads);
        }
        match probe() {
            Ok(()) => Ok(Self::IoUring),
            Err(Refusal::Refused(why)) if choice == IoChoice::Auto => {
                tracing::warn!(
                    "This host does not let rok-blk use io_uring ({why}), so threads do the I/O: the same promises, but \
                     slower, and no ublk devices. To allow it: {WAY_OUT}"
                );
                Ok(Self::Threads)
            }
            Err(Refusal::Refused(why)) => {
                Err(Error::new(ErrorKind::Unsupported, format!("This host does not let rok-blk use io_uring: {why}"))
                    .with_hint(format!("To allow it: {WAY_OUT}. Or serve without it, slower, with --io threads")))
            }
            Err(Refusal::Failed(source)) => {
                Err(Error::new(ErrorKind::Other, format!("A ring could not be set up: {source}"))
                    .with_hint("Free some memory or open files; without a ring, slower: --io threads")
                    .with_source(source))
            }
        }
    }

    /// Whether queues of devices can be served.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without io_uring, by whose entries the driver is spoken to.
    pub(super) fn check_devices(self) -> Result<()> {
        match self {
            Self::IoUring => Ok(()),
            Self::Threads => {
                Err(Error::new(ErrorKind::Unsupported, "A ublk device needs io_uring, and this server has none")
                    .with_hint(format!(
                        "Connect over NBD, or start the server again where io_uring is allowed: {WAY_OUT}"
                    )))
            }
        }
    }
}

/// Why there is no ring.
enum Refusal {
    /// Somebody does not want us to, or the kernel is too old.
    Refused(String),
    /// It would be allowed.
    Failed(RingError),
}

/// Sets up a ring, uses it, and drops it again: a refusal is found before anything is started.
fn probe() -> std::result::Result<(), Refusal> {
    let mut ring = match ring::build(&RING) {
        Ok(ring) => ring,
        // Its own sentence names a way out too.
        Err(RingError::Refused { source }) => return Err(Refusal::Refused(format!("io_uring_setup: {source}"))),
        Err(error) => return Err(Refusal::Failed(error)),
    };
    check_operations(&ring)?;
    // A filter may let rings be made and not be used.
    ring::enter(&mut ring, 0, None).map_err(|error| Refusal::Refused(format!("io_uring_enter: {error}")))
}

fn check_operations(ring: &IoUring) -> std::result::Result<(), Refusal> {
    let mut probe = Probe::new();
    let registered = ring.submitter().register_probe(&mut probe);
    registered.map_err(|error: io::Error| Refusal::Refused(format!("io_uring_register: {error}")))?;
    match OPERATIONS.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => Err(Refusal::Refused(format!("this kernel's has no {name}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_taken_without_asking_when_they_are_wanted() {
        assert_eq!(IoMethod::choose(IoChoice::Threads).expect("nothing can fail"), IoMethod::Threads);
    }

    #[test]
    fn device_without_io_uring_is_refused_with_the_way_out() {
        IoMethod::IoUring.check_devices().expect("a ring carries the commands of devices");
        let error = IoMethod::Threads.check_devices().expect_err("there is no ring");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let hint = error.hint().expect("a way out");
        assert!(hint.contains("NBD") && hint.contains("io_uring_setup"), "{hint}");
    }
}
