//! Connections of this host's kernel, whose NBD client makes a disk of a volume.
//!
//! They begin with their requests: what a handshake tells, the driver is told otherwise, and each of them is one end of a
//! pair of sockets rather than accepted anywhere. What they serve is open as long as its [`DeviceVolume`], which outlives
//! them: the driver is given another connection when one has ended. So neither silence nor the policy of an export ends one.
//!
//! Invariant: a disk has one connection at a time, and the next begins when nothing of the one before is with the engine. The
//! driver sends what was not answered again; a write that came twice is then not done again behind a later one.

use super::attaching::DeviceVolume;
use super::handshake::Session;
use super::limits::{KERNEL_REQUEST_BYTES_MAX, REQUESTS_MAX};
use super::mailbox::{Mailbox, Message};
use super::server::Server;
use super::settings::NbdLimits;
use super::target::ExportTarget;
use super::users::DeviceAccess;
use crate::error::{Error, ErrorKind, Result};
use rok_nbd::server::{Export, ExportFeatures, RequestRules};
use rok_nbd::{BlockSizes, ReplyForm, TransmissionFlags};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// What others tell a lane about these connections.
pub(super) enum KernelClientMessage {
    /// Serve one.
    Serve { socket: OwnedFd, session: Session, link: KernelLink },
    /// None of its writes waits for space any more. Then say so.
    Leave { id: KernelClientId, done: mpsc::Sender<()> },
    /// End it without another answer.
    Release { id: KernelClientId },
}

/// Names a connection among those of its server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelClientId(u64);

/// What a connection has for whoever asked for it. Dropped with it.
pub(super) struct KernelLink {
    pub id: KernelClientId,
    /// Told when the driver says goodbye; dropped when the connection has ended.
    end: mpsc::Sender<()>,
}

impl KernelLink {
    /// The driver was told to let go of the disk.
    pub(super) fn say_goodbye(&self) {
        // Who does not wait for the end does not ask for its reason.
        let _is_awaited = self.end.send(()).is_ok();
    }
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelClientEnd {
    /// The driver was told to let go of the disk, by whoever it was.
    Disconnected,
    /// It was lost: the driver waits for another one.
    Lost,
}

/// A connection that a lane serves.
pub struct KernelClient {
    id: KernelClientId,
    ends: mpsc::Receiver<()>,
}

impl KernelClient {
    /// Its name.
    #[must_use]
    pub const fn id(&self) -> KernelClientId {
        self.id
    }

    /// Waits until nothing of it is with a lane any more.
    #[must_use]
    pub fn wait_ended(&self) -> KernelClientEnd {
        let mut end = KernelClientEnd::Lost;
        while self.ends.recv().is_ok() {
            end = KernelClientEnd::Disconnected;
        }
        end
    }
}

impl DeviceVolume {
    /// What the driver is told that the connection can do (`NBD_FLAG_*`).
    #[must_use]
    pub fn transmission_flags(&self) -> TransmissionFlags {
        self.kernel_export().transmission_flags(ReplyForm::Simple, false)
    }

    fn kernel_export(&self) -> Export {
        let features = ExportFeatures {
            is_read_only: self.access() == DeviceAccess::ReadOnly,
            has_flush: true,
            has_fua: true,
            has_trim: true,
            has_write_zeroes: true,
            ..ExportFeatures::default()
        };
        // The driver keeps to the size of its disk, which may grow, and the engine judges by that of the volume.
        let mut export = Export::new("", u64::MAX, features);
        let sector_size = self.open().volume().sector_size();
        export.block_sizes =
            BlockSizes::new(sector_size, 4096, KERNEL_REQUEST_BYTES_MAX).expect("each is a power of 2");
        export.payload_size_bytes_max = KERNEL_REQUEST_BYTES_MAX;
        export
    }

    fn kernel_session(&self) -> Session {
        Session {
            target: ExportTarget::Volume(Arc::clone(self.shared_open())),
            is_read_only: self.access() == DeviceAccess::ReadOnly,
            // The device has one.
            _place: None,
            // The driver knows neither chunks nor extents (`linux/nbd.h`).
            rules: RequestRules::new(&self.kernel_export(), ReplyForm::Simple, 0),
            contexts: Vec::new(),
        }
    }
}

/// The bounds of these connections, whatever clients are told: the kernel is no stranger, and sleeps while memory is short.
pub(super) fn limits() -> NbdLimits {
    NbdLimits {
        idle_time_max: None,
        stall_time_max: Duration::MAX,
        request_bytes_max: KERNEL_REQUEST_BYTES_MAX,
        requests_max: REQUESTS_MAX,
        ..NbdLimits::default()
    }
}

impl Server {
    /// Has a lane serve a connection of the kernel's client to a volume. `socket` is our end, in which requests may wait
    /// already. The volume must stay until the connection has ended.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending, or overloaded; then the connection is closed.
    pub fn serve_kernel_client(&self, socket: OwnedFd, volume: &DeviceVolume) -> Result<KernelClient> {
        let (end, ends) = mpsc::channel();
        let id = KernelClientId(self.shared.next_kernel_client.fetch_add(1, Ordering::Relaxed));
        let message =
            KernelClientMessage::Serve { socket, session: volume.kernel_session(), link: KernelLink { id, end } };
        self.shared.next_mailbox().send(Message::KernelClient(message))?;
        Ok(KernelClient { id, ends })
    }

    /// No write of a connection waits for space any more: to be called before the driver is told to disconnect, which
    /// may wait for room in the connection.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending, or overloaded.
    pub fn leave_kernel_client(&self, id: KernelClientId) -> Result<()> {
        let (done, answers) = mpsc::channel();
        for mailbox in self.shared.serving_mailboxes() {
            let done = done.clone();
            mailbox.send(Message::KernelClient(KernelClientMessage::Leave { id, done }))?;
        }
        drop(done);
        for _ in self.shared.serving_mailboxes() {
            answers.recv().map_err(|_| Error::new(ErrorKind::Busy, "The server is ending"))?;
        }
        Ok(())
    }

    /// Ends a connection without another answer. The driver keeps its requests for the next one.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending, or overloaded.
    pub fn release_kernel_client(&self, id: KernelClientId) -> Result<()> {
        let release = |mailbox: &Arc<Mailbox>| mailbox.send(Message::KernelClient(KernelClientMessage::Release { id }));
        self.shared.serving_mailboxes().iter().try_for_each(release)
    }
}
