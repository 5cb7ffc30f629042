//! Connections that come to a lane, and those that others have it end.

use super::super::connection::Connection;
use super::super::exports::Client;
use super::super::kernel_client::{self, KernelClientId, KernelClientMessage};
use super::super::server::Permit;
use super::{Lane, slot_of};
use rok_ublk::ring;
use std::os::fd::OwnedFd;
use std::time::Instant;
use uuid::Uuid;

impl Lane {
    pub(super) fn connect(&mut self, socket: OwnedFd, permit: Permit, client: Client) {
        if self.closing.is_none() {
            let limits = self.shared.exports.limits;
            self.insert(Connection::new(socket, permit, client, limits, Instant::now()));
        }
    }

    /// Ends the connections that have a volume open.
    pub(super) fn disconnect(&mut self, volume: Uuid) {
        let having = self.connections.iter_mut().filter(|(_, connection)| connection.has_open(volume));
        let slots: Vec<usize> = having.map(|(slot, connection)| (slot, connection.break_off()).0).collect();
        slots.into_iter().filter_map(|slot| u32::try_from(slot).ok()).for_each(|slot| self.mark(slot));
    }

    /// Does what others want of connections of the kernel's client.
    pub(super) fn take_kernel_client(&mut self, message: KernelClientMessage) {
        match message {
            KernelClientMessage::Serve { socket, session, link } if self.closing.is_none() => {
                // Memory that this thread needs must never be won by writing to a disk that this thread serves.
                if let Err(error) = ring::become_io_flusher() {
                    tracing::debug!(%error, "the lane could not be marked as a server of block devices");
                }
                let limits = kernel_client::limits();
                self.insert(Connection::of_kernel(socket, session, link, limits, Instant::now()));
            }
            // Who waits sees that the channel is gone.
            KernelClientMessage::Serve { .. } => {}
            KernelClientMessage::Leave { id, done } => {
                if let Some(slot) = self.slot_of_kernel_client(id) {
                    self.engine.leave(slot);
                }
                // Who has given up waiting disconnects the device without.
                let _is_awaited = done.send(()).is_ok();
            }
            KernelClientMessage::Release { id } => {
                if let Some(slot) = self.slot_of_kernel_client(id) {
                    self.connections[slot_of(slot)].break_off();
                    self.mark(slot);
                }
            }
        }
    }

    fn slot_of_kernel_client(&self, id: KernelClientId) -> Option<u32> {
        let is_meant = |connection: &Connection| connection.kernel_link().is_some_and(|link| link.id == id);
        let (slot, _) = self.connections.iter().find(|(_, connection)| is_meant(connection))?;
        u32::try_from(slot).ok()
    }

    fn insert(&mut self, connection: Connection) {
        let slot = self.connections.insert(Box::new(connection));
        self.is_tick_wanted = true;
        self.mark(u32::try_from(slot).expect("a lane has few connections"));
    }
}
