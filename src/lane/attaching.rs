//! What a server does for ublk devices: opens what they are made of, has lanes serve their queues, and lets go of them.
//!
//! The order of a device's life: opened here, added to the driver, [`Server::attach`], started, ...,
//! [`Server::leave_device`], stopped, [`AttachedDevice::wait_ended`], deleted. One that is to outlive the server ends with
//! [`Server::release_device`] and [`AttachedDevice::wait_ended`] instead. The driver's part is the caller's.

use super::device::{DeviceMessage, DeviceTarget, NewQueue};
use super::mailbox::{Mailbox, Message};
use super::server::Server;
use super::users::{DeviceAccess, DevicePlace};
use crate::error::{Error, ErrorKind, Result};
use crate::volume::OpenVolume;
use rok_ublk::Device;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A volume or snapshot that a device is made of: it cannot be removed until this is dropped, and others cannot write what
/// the device has for itself.
pub struct DeviceVolume {
    open: Arc<OpenVolume>,
    place: DevicePlace,
}

impl DeviceVolume {
    /// What was opened.
    #[must_use]
    pub fn open(&self) -> &OpenVolume {
        &self.open
    }

    pub(super) const fn shared_open(&self) -> &Arc<OpenVolume> {
        &self.open
    }

    /// How the device uses it. A snapshot is only read.
    #[must_use]
    pub const fn access(&self) -> DeviceAccess {
        self.place.access()
    }

    /// What lanes serve the device's requests from.
    #[must_use]
    pub fn target(&self) -> DeviceTarget {
        let open = Arc::clone(&self.open);
        if self.access() == DeviceAccess::ReadOnly { DeviceTarget::ReadOnly(open) } else { DeviceTarget::Volume(open) }
    }
}

/// A device that lanes serve.
pub struct AttachedDevice {
    ends: mpsc::Receiver<()>,
}

impl AttachedDevice {
    /// Waits until no lane serves a queue of it any more, which follows when the device was stopped.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`].
    pub fn wait_ended(&self, time_max: Duration) -> Result<()> {
        match self.ends.recv_timeout(time_max) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(Error::new(ErrorKind::TimedOut, "The queues of the device are still served")
                    .with_hint("Stop the device first"))
            }
            // Nobody sends: each queue drops its end of the channel.
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

impl Server {
    /// Opens what a reference names for a device. A snapshot is only read, whatever was asked for.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Usage`] for what is no reference; [`ErrorKind::Busy`] if others write what the
    /// device is to have for itself, or the volume is being resized.
    pub fn open_for_device(&self, reference: &str, access: DeviceAccess) -> Result<DeviceVolume> {
        let exports = &self.shared.exports;
        let open = exports.volumes.open_reference(reference)?;
        let id = open.volume().id();
        // Asked after the opening: who closes the volume looks for users after it did.
        if exports.is_closed(id) {
            return Err(Error::new(ErrorKind::Busy, format!("{reference} is being resized")).with_hint("Try again"));
        }
        let access = if open.volume().is_read_only() { DeviceAccess::ReadOnly } else { access };
        let place = exports.users.attach(id, access).ok_or_else(|| {
            Error::new(ErrorKind::Busy, format!("{reference} has a writer: NBD clients or a device have it open"))
                .with_hint(
                    "Two file systems on one disk destroy each other. Disconnect its clients (rok-blk unexport --force \
                     ends their connections), attach it with --read-only, or with --shared if its users agree among \
                     themselves who writes what",
                )
        })?;
        Ok(DeviceVolume { open: Arc::new(open), place })
    }

    /// Serves the queues of a device, each on the lane whose turn it is. The device is not started, since the driver
    /// waits until every queue is served: the caller does that next, and stops the device before it ends the server.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending or the lanes have too much to serve; [`ErrorKind::Other`] if a queue
    /// could not be mapped; [`ErrorKind::Unsupported`] without io_uring. The device has to be stopped and deleted then.
    pub fn attach(&self, device: &Arc<Device>, target: &DeviceTarget) -> Result<AttachedDevice> {
        self.check_devices()?;
        let (started, answers) = mpsc::channel();
        let (ended, ends) = mpsc::channel();
        for id in 0..device.queue_count() {
            let queue = NewQueue {
                device: Arc::clone(device),
                id,
                target: target.clone(),
                started: started.clone(),
                ended: ended.clone(),
            };
            self.shared.next_mailbox().send(Message::Device(DeviceMessage::Serve(queue)))?;
        }
        drop((started, ended));
        for _ in 0..device.queue_count() {
            // A lane that ends drops its messages, and with them the channel.
            let answer = answers.recv().map_err(|_| Error::new(ErrorKind::Busy, "The server is ending"))?;
            answer?;
        }
        Ok(AttachedDevice { ends })
    }

    /// No write of the device's queues waits for space any more: to be called before the device is stopped, which waits for
    /// the answers to its requests.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending, or overloaded.
    pub fn leave_device(&self, id: u32) -> Result<()> {
        self.ask_lanes(|done| DeviceMessage::Leave { id, done })?;
        Ok(())
    }

    /// Whether no request of a device is under way. To be called before the device is quiesced, so that its queues know, and until it
    /// says so twice afterwards: what a lane has not seen yet of that it sees between two calls.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending, or overloaded.
    pub fn drain_device(&self, id: u32) -> Result<bool> {
        let answers = self.ask_lanes(|answer| DeviceMessage::Drain { id, answer })?;
        Ok(answers.into_iter().all(|is_drained| is_drained))
    }

    /// What each lane that serves users answers to a message.
    fn ask_lanes<A>(&self, message: impl Fn(mpsc::Sender<A>) -> DeviceMessage) -> Result<Vec<A>> {
        let (sender, answers) = mpsc::channel();
        let mailboxes = self.shared.serving_mailboxes();
        for mailbox in mailboxes {
            mailbox.send(Message::Device(message(sender.clone())))?;
        }
        drop(sender);
        // A lane that ends drops its messages, and with them the channel.
        let answer = |_| answers.recv().map_err(|_| Error::new(ErrorKind::Busy, "The server is ending"));
        mailboxes.iter().map(answer).collect()
    }

    /// Has lanes serve a device no more, which has to be one that outlives its server: its requests wait in the driver, those
    /// that are not answered are sent again to the next server. Nothing can be attached afterwards: to be called before
    /// the end of the server.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending, or overloaded.
    pub fn release_device(&self, id: u32) -> Result<()> {
        let release = |mailbox: &Arc<Mailbox>| mailbox.send(Message::Device(DeviceMessage::Release { id }));
        self.shared.serving_mailboxes().iter().try_for_each(release)
    }

    /// Whether it can serve devices.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without io_uring.
    pub fn check_devices(&self) -> Result<()> {
        self.shared.io_method.check_devices()
    }

    /// Lanes that serve users.
    #[must_use]
    pub fn lane_count(&self) -> usize {
        self.shared.serving_mailboxes().len()
    }
}
