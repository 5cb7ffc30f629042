//! The way to the driver: one netlink message for each command, which it has done when it answers.
//!
//! Commands of all programs go one after the other in the kernel. None of them waits for requests of a disk but by the
//! server that reads them, so none may be sent from a lane.

use std::io;
use std::os::fd::BorrowedFd;

use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::err::{RouterError, SocketError};
use neli::nl::NlPayload;
use neli::router::synchronous::NlRouter;
use neli::utils::Groups;
use thiserror::Error;

use super::message::{Attributes, Command, FAMILY, Message};

/// How long a request may be with us, in seconds; it is sent again then, over another connection. Requests that were with
/// a daemon when it was killed wait for that too, since the driver looks at nothing else: so a stall of a disk whose
/// daemon is restarted lasts about as long. Shorter would cost connections whenever a device below is slow for a moment.
const REQUEST_TIME_MAX_S: u64 = 10;
/// How long requests wait while there is no connection, in seconds: 30 days. For the driver 0 is not for ever, but not at all.
const NO_CONNECTION_TIME_MAX_S: u64 = 30 * 24 * 3600;

/// Why a command was not done.
#[derive(Debug, Error)]
pub(super) enum DriverError {
    /// The kernel has no such family: the driver is not loaded.
    #[error("the kernel has no netlink family {FAMILY}")]
    Missing,
    /// The driver does not tell by what its owners know a disk.
    #[error("the driver keeps no name of a disk's owner")]
    TooOld,
    /// No netlink here.
    #[error("netlink is refused: {0}")]
    Netlink(String),
    /// The number is in use.
    #[error("device {0} is in use")]
    Taken(u32),
    /// The driver has not seen yet that the connection before has ended.
    #[error("device {0} has a connection still")]
    HasConnection(u32),
    /// The driver says no.
    #[error("the driver did not {action} device {number}: {source}")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// Of which disk.
        number: u32,
        /// Its answer.
        source: io::Error,
    },
}

/// A disk as the driver is to make it.
pub(super) struct DiskParameters<'a> {
    pub number: u32,
    pub size_bytes: u64,
    pub sector_size: u32,
    /// As a handshake tells them.
    pub flags: u16,
    pub backend: &'a str,
}

/// The driver.
pub(super) struct Driver {
    router: NlRouter,
    family: u16,
}

/// Whether the kernel has the driver.
pub(in crate::daemon) fn is_available() -> bool {
    Driver::open().is_ok()
}

impl Driver {
    /// Finds it.
    ///
    /// # Errors
    /// `Missing`, `Netlink`.
    pub(super) fn open() -> Result<Self, DriverError> {
        let netlink = |error: &dyn std::fmt::Display| DriverError::Netlink(error.to_string());
        let (router, _nothing_comes_unasked) =
            NlRouter::connect(NlFamily::Generic, None, Groups::empty()).map_err(|error| netlink(&error))?;
        let family = router.resolve_genl_family(FAMILY).map_err(|error| match errno_of(&error) {
            Some(libc::ENOENT) => DriverError::Missing,
            _ => netlink(&error),
        })?;
        Ok(Self { router, family })
    }

    /// Makes a disk, which is served over `socket`. It takes requests from then on.
    ///
    /// # Errors
    /// `Taken`, `Refused`.
    pub(super) fn connect(&self, disk: &DiskParameters<'_>, socket: BorrowedFd<'_>) -> Result<(), DriverError> {
        let attributes = Attributes::of(disk.number)
            .size(disk.size_bytes)
            .sector_size(disk.sector_size)
            .time_max(REQUEST_TIME_MAX_S, NO_CONNECTION_TIME_MAX_S)
            .server_flags(disk.flags)
            .backend(disk.backend)
            .socket(socket);
        self.send(Command::Connect, "make", disk.number, attributes).map_err(|error| match error {
            DriverError::Refused { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                DriverError::Taken(disk.number)
            }
            error => error,
        })
    }

    /// Gives a disk of ours another connection in the place of the one that has ended, and its size. It says yes also if
    /// it does not take the connection, since it has not noticed that end; then it lets go of the socket.
    ///
    /// # Errors
    /// `Refused`, also if the disk is not ours.
    pub(super) fn reconfigure(
        &self,
        number: u32,
        size_bytes: u64,
        backend: &str,
        socket: BorrowedFd<'_>,
    ) -> Result<(), DriverError> {
        let attributes = Attributes::of(number)
            .size(size_bytes)
            .time_max(REQUEST_TIME_MAX_S, NO_CONNECTION_TIME_MAX_S)
            .backend(backend)
            .socket(socket);
        self.send(Command::Reconfigure, "reconnect", number, attributes)
    }

    /// Gives a disk of ours another size, while it is used.
    ///
    /// # Errors
    /// `Refused`.
    pub(super) fn set_size(&self, number: u32, size_bytes: u64, backend: &str) -> Result<(), DriverError> {
        self.send(Command::Reconfigure, "resize", number, Attributes::of(number).size(size_bytes).backend(backend))
    }

    /// Takes a disk away: requests that are under way, and those to come, fail. Whoever has it open keeps its number from
    /// being free. The driver asks nobody whose disk it is.
    ///
    /// # Errors
    /// `Refused`.
    pub(super) fn disconnect(&self, number: u32) -> Result<(), DriverError> {
        self.send(Command::Disconnect, "disconnect", number, Attributes::of(number))
    }

    fn send(
        &self,
        command: Command,
        action: &'static str,
        number: u32,
        attributes: Attributes,
    ) -> Result<(), DriverError> {
        let refused = |error: RouterError<u16, Message>| {
            let errno = errno_of(&error);
            let source = errno.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
            DriverError::Refused { action, number, source }
        };
        let payload = NlPayload::Payload(attributes.message(command));
        let answers = self.router.send(self.family, NlmF::ACK, payload).map_err(refused)?;
        // To a connection it tells the number too, which we know.
        for answer in answers {
            let _known = answer.map_err(refused)?;
        }
        Ok(())
    }
}

fn errno_of<T, P>(error: &RouterError<T, P>) -> Option<i32> {
    match error {
        RouterError::Nlmsgerr(refusal) => Some(-*refusal.error()),
        RouterError::Socket(SocketError::Io(error)) => error.raw_os_error(),
        _ => None,
    }
}
