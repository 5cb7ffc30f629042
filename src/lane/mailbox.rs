//! What other threads hand to a lane.

use super::alarm::Alarm;
use super::device::DeviceMessage;
use super::exports::Client;
use super::handshake::HandshakeTurn;
use super::kernel_client::KernelClientMessage;
use super::limits::MESSAGES_MAX;
use super::server::Permit;
use super::settings::ListenSettings;
use crate::disk::FileDevice;
use crate::error::{Error, ErrorKind, IoError, Result};
use crate::pool::{AddressGroup, ScrubWish};
use crate::units::DeviceIndex;
use crate::volume::{ScrubResult, Volume};
use parking_lot::Mutex;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use uuid::Uuid;

/// A message to a lane.
pub(super) enum Message {
    /// Serve a connection.
    Connect { socket: OwnedFd, permit: Permit, client: Client },
    /// Accept connections.
    Listen { listener: OwnedFd, is_tcp: bool, settings: ListenSettings },
    /// Something about connections of the kernel's client.
    KernelClient(KernelClientMessage),
    /// Something about the queues of devices.
    Device(DeviceMessage),
    /// Discard a range of a volume, durably.
    Discard { volume: Arc<Volume>, range: (u64, u64), done: mpsc::Sender<std::result::Result<(), IoError>> },
    /// End the connections that have a volume open, then say so.
    Disconnect { volume: Uuid, done: mpsc::Sender<()> },
    /// Move what heads map in these addresses elsewhere.
    Clean { group: AddressGroup, done: mpsc::Sender<std::result::Result<(), IoError>> },
    /// Read and verify a part of a scrub.
    Scrub { wish: ScrubWish, result: ScrubResult, done: mpsc::Sender<std::result::Result<(), IoError>> },
    /// Have a device at this index, which nobody uses yet, then say so.
    SetDevice { index: DeviceIndex, device: Arc<FileDevice>, done: mpsc::Sender<()> },
    /// End: accept nothing more, finish what is under way.
    Close,
}

/// The mailbox of one lane.
pub(super) struct Mailbox {
    pub alarm: Arc<Alarm>,
    /// `None` once the lane has ended.
    messages: Mutex<Option<Vec<Message>>>,
    /// Handshakes that come back from the blocking threads; at most one for each connection.
    handshakes: Mutex<Vec<(u32, HandshakeTurn)>>,
}

impl Mailbox {
    pub(super) fn new() -> std::io::Result<Self> {
        let (messages, handshakes) = (Mutex::new(Some(Vec::new())), Mutex::default());
        Ok(Self { alarm: Arc::new(Alarm::new()?), messages, handshakes })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if too many wait, or the lane has ended; the message is dropped.
    pub(super) fn send(&self, message: Message) -> Result<()> {
        let mut guard = self.messages.lock();
        let Some(messages) = guard.as_mut() else {
            return Err(Error::new(ErrorKind::Busy, "The server is ending").with_hint("Start it again"));
        };
        // The end must get through.
        if messages.len() >= MESSAGES_MAX && !matches!(message, Message::Close) {
            return Err(Error::new(ErrorKind::Busy, "The server is overloaded").with_hint("Try again later"));
        }
        messages.push(message);
        drop(guard);
        self.alarm.raise();
        Ok(())
    }

    pub(super) fn return_handshake(&self, slot: u32, turn: HandshakeTurn) {
        self.handshakes.lock().push((slot, turn));
        self.alarm.raise();
    }

    pub(super) fn take(&self) -> Vec<Message> {
        self.messages.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes nothing more, and drops what is there: the lane has ended.
    pub(super) fn close(&self) {
        let unread = self.messages.lock().take();
        drop(unread);
    }

    pub(super) fn take_handshakes(&self) -> Vec<(u32, HandshakeTurn)> {
        std::mem::take(&mut *self.handshakes.lock())
    }
}
