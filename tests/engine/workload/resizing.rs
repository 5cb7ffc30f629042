//! Volumes that get larger while they are used, and smaller once what lies behind their new end is discarded.

use super::volumes::name;
use super::{VOLUME_COUNT, Workload};
use crate::model::ZEROS;
use crate::world::End;
use rand::Rng;
use rok_blk::error::ErrorKind;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::RemoveMode;
use std::collections::BTreeSet;

/// Above the part of a volume that is written again and again.
const BLOCKS_MIN: u64 = 100;
const BLOCKS_MAX: u64 = 2000;

/// Sizes in bytes that a crash may find a volume to have instead of the one that it has.
#[derive(Default)]
pub(super) struct OtherSizes([BTreeSet<u64>; VOLUME_COUNT]);

impl OtherSizes {
    pub(super) fn may_be(&mut self, volume: usize, size_bytes: u64) {
        self.0[volume].insert(size_bytes);
    }

    pub(super) fn forget(&mut self, volume: usize) {
        self.0[volume].clear();
    }
}

impl Workload {
    /// Gives a volume another size; now and then a crash comes before that is stored.
    pub(super) fn resize(&mut self) {
        let volume = self.random_volume();
        let block_count = self.world.random.random_range(BLOCKS_MIN..BLOCKS_MAX);
        let size_bytes = block_count * BLOCK_SIZE_U64;
        self.note(|| format!("volume {volume} is to have {block_count} blocks"));
        if size_bytes < self.sizes[volume] {
            if !self.cut_off(volume, block_count) {
                return;
            }
            if self.world.random.random_bool(0.1) {
                return self.crash(if self.now.is_multiple_of(2) { End::Kill } else { End::PowerLoss });
            }
        }
        match self.life().volumes.set_size(&name(volume), size_bytes) {
            Ok(info) => {
                assert_eq!(info.size_bytes, size_bytes);
                self.world.counts.grown += u64::from(size_bytes > self.sizes[volume]);
                self.world.counts.shrunk += u64::from(size_bytes < self.sizes[volume]);
                self.sizes[volume] = size_bytes;
                self.models[volume].end_at(block_count);
            }
            Err(error) if error.kind() == ErrorKind::NoSpace => {}
            Err(_) => {
                self.other_sizes.may_be(volume, size_bytes);
                self.failed();
            }
        }
    }

    /// Discards all from a block on, durably, once nothing else is under way; whether that went well.
    fn cut_off(&mut self, volume: usize, first: u64) -> bool {
        self.await_answers(volume);
        let write = self.next_write;
        self.next_write += 1;
        let blocks: Vec<u64> = (first..self.sizes[volume] / BLOCK_SIZE_U64).collect();
        for block in &blocks {
            self.begin(volume, *block, write, ZEROS);
        }
        let range = (first * BLOCK_SIZE_U64, blocks.len() as u64 * BLOCK_SIZE_U64);
        self.send_removal((volume, write), range, (RemoveMode::Discard, true), blocks);
        self.await_answers(volume);
        self.models[volume].is_durable(first, write)
    }

    /// After an opening: the size is the one that it was, or one that may have been stored.
    pub(super) fn check_size(&mut self, volume: usize) {
        let found = self.life().volumes.find(&name(volume)).expect("the volume is there").size_bytes;
        let others = std::mem::take(&mut self.other_sizes.0[volume]);
        let is_known = found == self.sizes[volume] || others.contains(&found);
        assert!(is_known, "volume {volume} has {found} bytes, possible are {} and {others:?}", self.sizes[volume]);
        self.sizes[volume] = found;
        self.models[volume].end_at(found / BLOCK_SIZE_U64);
    }
}
