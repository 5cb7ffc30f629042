//! Free space given back to what is under the devices, and taken back before it is used again.
//!
//! Only wholly free stretches are given back, and only what a stock leaves over. A stretch is taken out of the free space
//! while that goes on, so no lane writes there. What was given back in a file stays out of it until it is written with zeros
//! again: so lanes never meet a file system without space, and flushes do not wait for its journal. A disk that forgets
//! ranges needs no such care. Nothing of this is stored: a file knows its holes, and old bytes are seen by a look.

use crate::disk::{Device, IoBuffer};
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use crate::pool::devices::PoolDevice;
use crate::pool::space::{Space, Stretch};
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, DeviceIndex, STRETCH_BLOCKS, to_usize};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const STRETCH_BYTES: u64 = STRETCH_BLOCKS * BLOCK_SIZE_U64;
/// One of so many parts of the pool is kept as stock, within bounds.
const STOCK_PART: u64 = 16;
const STOCK_BLOCKS_MAX: u64 = 256 * STRETCH_BLOCKS;
/// Blocks of a stretch that are looked at to tell whether it holds old bytes: one in each MiB.
const LOOK_STEP_BLOCKS: u64 = 256;
/// Bytes of one write of zeros.
const ZEROS_BYTES: usize = 1 << 20;

/// Whether a step found something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimProgress {
    /// Looked at a stretch, or prepared one.
    Worked,
    /// Gave a stretch back: who goes on at once takes the device from others.
    Trimmed,
    /// There is nothing to do before more is freed or taken.
    Rested,
}

impl Pool {
    /// Gives a free stretch back that may hold old bytes. Off the lanes; one caller at a time.
    pub fn trim_step(&self) -> TrimProgress {
        let taken = self.take_stale_stretch();
        let Some(stretch) = taken else { return TrimProgress::Rested };
        let device = self.device_of(stretch);
        if is_blank(&*device.device, stretch) {
            self.give_back(stretch);
            return TrimProgress::Worked;
        }
        let discarded = device.device.discard(stretch.index * STRETCH_BYTES, STRETCH_BYTES);
        if let Err(error) = discarded {
            self.space.lock().keep(stretch);
            let is_refused = error.kind() == std::io::ErrorKind::Unsupported;
            if !is_refused {
                tracing::warn!(device = device.device.name(), %error, "free space is no longer given back");
            }
            // A part of it may be gone, which in a file is to be written again before it is used.
            if device.device.is_thin() && !is_refused {
                self.space.lock().release(stretch)
            } else {
                self.give_back(stretch)
            }
            return TrimProgress::Worked;
        }
        if device.device.is_thin() {
            self.space.lock().release(stretch)
        } else {
            self.give_back(stretch)
        }
        TrimProgress::Trimmed
    }

    /// Makes a taken stretch free again. Who looked for space meanwhile did not find it.
    fn give_back(&self, stretch: Stretch) {
        self.space.lock().give_back(stretch);
        self.tell_space();
    }

    /// Makes a stretch fit for use again that was given back, if the stock is low. Off the lanes; one caller at a time.
    ///
    /// # Errors
    /// The device's: what is under it has no space left, or fails. Nothing is lost, and a later call tries again.
    pub fn restock_step(&self) -> Result<TrimProgress> {
        // The reserve comes first: with it gone nothing new is written, and it may be in the same file system.
        if self.is_meta_reserve_gone() {
            return Ok(TrimProgress::Rested);
        }
        let stretch = {
            let mut space = self.space.lock();
            if !is_stock_low(&space) {
                return Ok(TrimProgress::Rested);
            }
            let Some(stretch) = space.take_released() else { return Ok(TrimProgress::Rested) };
            self.is_restocking.store(true, Ordering::Release);
            stretch
        };
        let device = self.device_of(stretch);
        let result = match write_zeros(&*device.device, stretch) {
            Ok(()) => {
                self.give_back(stretch);
                self.is_restock_failing.store(false, Ordering::Release);
                self.restocked.fetch_add(1, Ordering::AcqRel);
                Ok(TrimProgress::Worked)
            }
            Err(source) if is_full(&source) => {
                self.space.lock().release(stretch);
                self.is_restock_failing.store(true, Ordering::Release);
                Err(cannot_be_taken(device.device.name(), source))
            }
            Err(source) => {
                // It stays out of use until the next opening: others may be sound.
                let name = device.device.name();
                tracing::error!(device = name, ?stretch, error = %source, "free space cannot be written, and is left out");
                Ok(TrimProgress::Worked)
            }
        };
        self.is_restocking.store(false, Ordering::Release);
        self.wake_waiting_for_stock();
        result
    }

    /// Blocks that were given back and are not counted as free by lanes.
    #[must_use]
    pub fn released_blocks(&self) -> u64 {
        self.space.lock().released_blocks()
    }

    /// Whether what was given back could not be taken back when that was tried last.
    #[must_use]
    pub fn is_restock_failing(&self) -> bool {
        self.is_restock_failing.load(Ordering::Acquire)
    }

    /// Counts the stretches that became fit for use: who waits for one looks at it.
    #[must_use]
    pub fn restocked(&self) -> u64 {
        self.restocked.load(Ordering::Acquire)
    }

    /// Whether a write that finds no space may find some soon, without a checkpoint.
    #[must_use]
    pub fn is_restock_coming(&self) -> bool {
        let is_possible = !self.is_restock_failing() && !self.is_meta_reserve_gone();
        is_possible && (self.is_restocking.load(Ordering::Acquire) || self.released_blocks() > 0)
    }

    fn wake_waiting_for_stock(&self) {
        if let Some(signals) = self.signals.get() {
            signals.wake_lanes();
        }
    }

    fn take_stale_stretch(&self) -> Option<Stretch> {
        if is_planted(Bug::TrimTrustsStoredMap) {
            let device = DeviceIndex::new(0);
            let stretch = Stretch { device, index: 1 };
            let is_unused = self.stored.lock().used[0].get(1).is_some_and(|bits| bits.iter().all(|word| *word == 0));
            if is_unused && self.space.lock().free_in(stretch).1 == STRETCH_BLOCKS {
                // The bug: changes and records of the log are there, and only the stored map was asked.
                let _is_done = self.device_of(stretch).device.discard(STRETCH_BYTES, STRETCH_BYTES).is_ok();
                return None;
            }
        }
        let mut space = self.space.lock();
        let stock_blocks = stock_blocks(&space);
        space.take_stale(stock_blocks)
    }

    fn device_of(&self, stretch: Stretch) -> Arc<PoolDevice> {
        Arc::clone(&self.devices.read()[stretch.device.as_usize()])
    }
}

/// Takes the free stretches out of the free space that a file has holes in: at open. `kept_blocks` stay free nevertheless,
/// so that the pool can be used, as it can where the holes of a file are not known.
pub(super) fn release_holes(space: &mut Space, devices: &[Arc<PoolDevice>], kept_blocks: u64) {
    for (index, device) in (0..).map(DeviceIndex::new).zip(devices) {
        let holes = device.device.holes().unwrap_or_else(|error| {
            tracing::warn!(device = device.device.name(), %error, "its holes are not known: they are used as they are");
            Vec::new()
        });
        for hole in holes {
            for stretch in hole.start / STRETCH_BYTES..hole.end.div_ceil(STRETCH_BYTES) {
                if space.free_count() >= kept_blocks + STRETCH_BLOCKS {
                    space.release_free(Stretch { device: index, index: stretch });
                }
            }
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

fn cannot_be_taken(name: &str, source: std::io::Error) -> Error {
    let message = format!("Free space of {name} that was given back cannot be used again: {source}");
    Error::new(ErrorKind::NoSpace, message)
        .with_hint("Free some space in the file system of that file; it is tried again by itself")
        .with_source(source)
}

/// Blocks in wholly free stretches that are kept.
fn stock_blocks(space: &Space) -> u64 {
    (space.block_count() / STOCK_PART).next_multiple_of(STRETCH_BLOCKS).min(STOCK_BLOCKS_MAX)
}

/// Whether lanes come to the end of the stock: half of it is gone.
pub(super) fn is_stock_low(space: &Space) -> bool {
    space.released_blocks() > 0 && space.whole_blocks() * 2 < stock_blocks(space) + STRETCH_BLOCKS
}

/// Whether a stretch looks as if nothing was ever written there. A wrong answer costs a discard, or space under the
/// device; never data.
fn is_blank(device: &dyn Device, stretch: Stretch) -> bool {
    let block = IoBuffer::allocate(BLOCK_SIZE);
    (0..STRETCH_BLOCKS).step_by(to_usize(LOOK_STEP_BLOCKS)).all(|step| {
        let offset_bytes = stretch.index * STRETCH_BYTES + step * BLOCK_SIZE_U64;
        let read = block.with_bytes_mut(|bytes| device.read_at(offset_bytes, bytes));
        read.is_ok() && block.with_bytes(|bytes| bytes.iter().all(|byte| *byte == 0))
    })
}

fn write_zeros(device: &dyn Device, stretch: Stretch) -> std::io::Result<()> {
    let zeros = IoBuffer::allocate(ZEROS_BYTES);
    (0..STRETCH_BYTES)
        .step_by(ZEROS_BYTES)
        .try_for_each(|step| zeros.with_bytes(|bytes| device.write_at(stretch.index * STRETCH_BYTES + step, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::to_u64;

    #[test]
    fn a_sixteenth_of_the_pool_is_stock() {
        let space = Space::new(&[64 * STRETCH_BLOCKS]);

        assert_eq!(stock_blocks(&space), 4 * STRETCH_BLOCKS);
        assert!(STRETCH_BYTES.is_multiple_of(to_u64(ZEROS_BYTES)), "zeros end with the stretch");
    }
}
