//! Openings without the shred key, between two lives: what volumes with keys of their own hold is the same behind them.

use super::{End, World};
use rok_blk::crypto::Suite;
use rok_blk::disk::SimDevice;
use rok_blk::error::ErrorKind;
use rok_blk::pool::Checkpoint;
use std::sync::Arc;

/// Each so many-th crash has one behind it.
const CRASHES_EACH: u64 = 8;

impl World {
    /// Opens the pool without the shred key now and then, stores all that it found, and ends that life: what was acknowledged
    /// before is durable then, if the power goes too.
    ///
    /// It takes nothing from the seed's random numbers.
    ///
    /// # Panics
    /// If the pool is refused for another reason than that nobody can tell what is whole, or changed although it is refused.
    pub(super) fn open_without_own_keys(&mut self) {
        let crashes = self.counts.kills + self.counts.power_losses;
        if self.suite == Suite::Plain || !crashes.is_multiple_of(CRASHES_EACH) {
            return;
        }
        let random = self.random.clone();
        let before = self.digests();
        let end = if crashes.is_multiple_of(2 * CRASHES_EACH) { End::Kill } else { End::PowerLoss };
        match self.open_with(None) {
            Ok(life) => {
                self.counts.opened_without_own_keys += 1;
                // As behind any opening: a lane's first record may be where nothing could be read.
                self.files().for_each(SimDevice::heal);
                Checkpoint::begin(Arc::clone(&life.pool)).run().expect("nothing is injected");
                self.crash(Some(life), end);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Key, "nothing else is in the way: {error}");
                assert!(before == self.digests(), "a pool is changed that was refused: {error}");
                self.counts.refused_without_own_keys += 1;
            }
        }
        self.random = random;
    }

    fn digests(&self) -> Vec<[u8; 32]> {
        self.devices
            .iter()
            .map(|device| device.digest())
            .chain([self.store.digest(), self.shred_key.digest()])
            .collect()
    }
}
