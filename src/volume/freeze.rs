//! Holding the writes of volumes back while a snapshot is made, or while a head changes hands.
//!
//! First the turn to change the catalog is taken: a checkpoint that commits is waited for while writes still go on, and none
//! commits meanwhile. Then the gates are closed, so that no block of these volumes enters a batch; requests wait on their lanes, with their
//! ranges locked. Then those in batches end, and for a snapshot the devices are flushed: all that was acknowledged is durable
//! before the catalog names it. The cut is closed: what was submitted after an acknowledgement is in only if that is.

use crate::error::{Error, ErrorKind, Result};
use crate::pool::{Pool, Turn};
use crate::volume::Volume;
use std::sync::Arc;

/// Volumes whose writes are held back until this is dropped, and the turn of who does.
pub struct Frozen {
    pool: Arc<Pool>,
    volumes: Vec<Arc<Volume>>,
    turn: Turn,
}

impl Frozen {
    /// Closes the gates, in the order of the volumes' ids.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody else holds one back.
    pub(super) fn close(pool: &Arc<Pool>, turn: Turn, mut volumes: Vec<Arc<Volume>>) -> Result<Self> {
        volumes.sort_by_key(|volume| volume.id());
        let mut frozen = Self { pool: Arc::clone(pool), volumes: Vec::new(), turn };
        for volume in volumes {
            if !volume.gate.close() {
                return Err(Error::new(ErrorKind::Busy, "A snapshot or rollback of the volume is under way")
                    .with_hint("Try again in a moment"));
            }
            let is_retired = volume.gate.is_retired();
            frozen.volumes.push(volume);
            if is_retired {
                return Err(Error::new(ErrorKind::Busy, "The volume was rolled back or removed meanwhile")
                    .with_hint("Try again"));
            }
        }
        Ok(frozen)
    }

    /// The volumes, by id.
    #[must_use]
    pub fn volumes(&self) -> &[Arc<Volume>] {
        &self.volumes
    }

    pub(super) const fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Whether none of their writes is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.volumes.iter().all(|volume| volume.gate.is_empty())
    }

    /// Flushes what was written; `false` while the flush of a lane runs. Call it once [`Self::is_empty`]. Never on a lane.
    ///
    /// # Errors
    /// The device's failure; then the pool has failed.
    ///
    /// # Panics
    /// If a write is under way.
    pub fn flush(&self) -> Result<bool> {
        assert!(self.is_empty(), "what is not written cannot be flushed");
        self.pool.check_healthy()?;
        self.pool.flush_devices()
    }

    /// Waits until no write is under way, and flushes if `is_flushed`. Never on a lane.
    ///
    /// # Errors
    /// As [`Self::flush`], and as soon as the pool has failed, also if writes are under way then.
    pub fn wait(&self, is_flushed: bool) -> Result<()> {
        for volume in &self.volumes {
            volume.gate.await_empty();
        }
        self.pool.check_healthy()?;
        while is_flushed && !self.flush()? {
            self.pool.await_flush_end();
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for volume in &self.volumes {
            volume.gate.open();
        }
        self.pool.wake_all_lanes();
    }
}
