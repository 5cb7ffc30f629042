//! New blocks of an open pool: a device that grew, or one that was added.
//!
//! Two halves with the change of the superblock between them. The first makes a device fit to be listed; the second begins
//! to use what the superblock lists. Invariant: no block is in [`Space`](super::Space) that the superblock does not list
//! durably. The caller makes one change at a time; lanes and checkpoints go on.

use crate::disk::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::STRETCH_WORDS;
use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use crate::pool::devices::{ExpectedDevice, PoolDevice, header_mac};
use crate::units::{BLOCK_SIZE_U64, DeviceIndex, STRETCH_BLOCKS, to_u64, to_usize};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Largest window of a lane.
const WINDOW_BLOCKS_MAX: u64 = STRETCH_BLOCKS;
/// Smallest window of a lane, on tiny pools.
const WINDOW_BLOCKS_MIN: u64 = 48;
/// Largest reserve for overwrites and removals.
const RESERVE_BLOCKS_MAX: u64 = 16_384;

/// Blocks that the superblock is to list next: [`Pool::use_blocks`] is for when it does.
#[derive(Debug)]
#[must_use = "what the superblock lists is to be used"]
pub struct NewBlocks {
    device: DeviceIndex,
    block_count: u64,
}

/// Blocks of a lane's window.
pub(super) fn window_blocks(block_count: u64, lane_count: usize) -> u64 {
    (block_count / (32 * to_u64(lane_count))).clamp(WINDOW_BLOCKS_MIN, WINDOW_BLOCKS_MAX)
}

/// Blocks that only overwrites, removals and records may take.
pub(super) fn reserve_blocks(block_count: u64) -> u64 {
    (block_count / 64).clamp(2 * super::HOME_RESERVE_BLOCKS, RESERVE_BLOCKS_MAX)
}

impl Pool {
    /// Says that the superblock is to list `block_count` blocks of a device, which has them, fit for use.
    ///
    /// # Panics
    /// If that is not more than it lists.
    pub fn prepare_growth(&self, device: DeviceIndex, block_count: u64) -> NewBlocks {
        let listed = self.devices.read()[device.as_usize()].block_count();
        assert!(block_count > listed, "a device only grows");
        self.prepared(NewBlocks { device, block_count })
    }

    /// Takes a device that the superblock is to list next: writes its headers; from now on checkpoints write them too, and
    /// flushes cover it. Every lane has it already.
    ///
    /// # Errors
    /// The device's failure; then the pool is as before, and so is its use.
    pub fn join(&self, device: Arc<dyn Device>, id: Uuid) -> Result<NewBlocks> {
        // Else a checkpoint could come between its header and the list, and then one more: the header would be too old.
        let _headers = self.header_writes.lock();
        let index = self.devices.read().len();
        let index = DeviceIndex::new(u8::try_from(index).expect("a pool has at most 32 devices"));
        let block_count = device.size_bytes() / BLOCK_SIZE_U64;
        let expected = ExpectedDevice { pool: self.id, id, index, block_count };
        let new = PoolDevice::new(device, &expected);
        let checkpoint = self.stored.lock().checkpoint;
        let mac = header_mac(self.keys.master());
        for _copy in 0..2 {
            new.write_header(self.id, self.session, checkpoint, &mac).map_err(|error| {
                let name = new.device.name();
                Error::new(ErrorKind::Other, format!("Writing the header of {name} failed: {error}"))
                    .with_hint("The pool goes on without the device")
                    .with_source(error)
            })?;
        }
        self.devices.write().push(Arc::new(new));
        Ok(self.prepared(NewBlocks { device: index, block_count }))
    }

    /// Begins to use blocks that the superblock lists by now, durably.
    pub fn use_blocks(&self, new: &NewBlocks) {
        let device = Arc::clone(&self.devices.read()[new.device.as_usize()]);
        // The next header has the size: never before the superblock.
        device.set_block_count(new.block_count);
        if !is_planted(Bug::UseBeforeListed) {
            self.learn(new);
        }
        self.tell_space();
        self.want_checkpoint();
        if let Some(signals) = self.signals.get() {
            signals.wake_lanes();
        }
    }

    fn prepared(&self, new: NewBlocks) -> NewBlocks {
        if is_planted(Bug::UseBeforeListed) {
            self.learn(&new);
        }
        new
    }

    /// Makes the blocks free. What lanes could take must have a place in the bitmap.
    fn learn(&self, new: &NewBlocks) {
        let stretches = to_usize(new.block_count.div_ceil(STRETCH_BLOCKS));
        {
            let mut stored = self.stored.lock();
            let device = new.device.as_usize();
            if device == stored.used.len() {
                stored.used.push(Vec::new());
            }
            stored.used[device].resize(stretches, [0; STRETCH_WORDS]);
        }
        let mut space = self.space.lock();
        space.grow(new.device, new.block_count);
        let block_count = space.block_count();
        drop(space);
        self.window_blocks.store(window_blocks(block_count, self.lanes.len()), Ordering::Relaxed);
        self.reserve_blocks.store(reserve_blocks(block_count), Ordering::Relaxed);
    }
}
