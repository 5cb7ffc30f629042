//! Having a lane read a part of a scrub: the cleaner's, which gives way to those that serve users.

use super::mailbox::Message;
use super::server::Server;
use crate::error::{Error, ErrorKind, IoError, Result};
use crate::pool::{ScrubStep, ScrubWish};
use crate::units::LaneIndex;
use crate::volume::ScrubResult;
use std::sync::{Arc, mpsc};
use std::time::Duration;

impl Server {
    /// Reads and verifies a part of a scrub, and waits for that.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending or overloaded; [`ErrorKind::Integrity`] if the map cannot be read.
    pub fn scrub(&self, wish: ScrubWish) -> Result<ScrubStep> {
        let lane = self.pool().cleaner_lane().map_or(0, LaneIndex::as_usize);
        let (result, (done, answer)) = (ScrubResult::default(), mpsc::channel());
        self.shared.mailboxes[lane].send(Message::Scrub { wish, result: Arc::clone(&result), done })?;
        // A lane that ends drops its messages, and with them the channel.
        match answer.recv().unwrap_or(Err(IoError::ShuttingDown)) {
            Ok(()) => Ok(std::mem::take(&mut *result.lock())),
            Err(IoError::ShuttingDown) => Err(Error::new(ErrorKind::Busy, "The server is ending")),
            Err(error) => {
                let message = format!("The map of the pool cannot be read: {error}");
                Err(Error::new(ErrorKind::Integrity, message).with_hint("See the log of the server, and rok-blk check"))
            }
        }
    }

    /// Has a checkpoint store what was written before this call, and waits for it; whether that came within `time_max`.
    #[must_use]
    pub fn store_changes(&self, time_max: Duration) -> bool {
        self.shared.checkpoints.await_next(time_max)
    }
}
