//! Writes that begin or end inside a block.

use super::{SECTOR, Workload};
use crate::model::Value;
use crate::sector::fill;
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::units::BLOCK_SIZE_U64;

impl Workload {
    pub(super) fn write_partial(&mut self) {
        let volume = self.random_volume();
        let (first, count) = self.random_range(volume, 4);
        let sectors = count * 8;
        let from = self.world.random.random_range(0..sectors);
        let len = self.world.random.random_range(1..=sectors - from);
        let offset = first * BLOCK_SIZE_U64 + from * SECTOR;
        let touched = offset / BLOCK_SIZE_U64..(offset + len * SECTOR).div_ceil(BLOCK_SIZE_U64);
        let Some(before) = self.certain(volume, touched.clone()) else { return };
        let write = self.next_write;
        self.next_write += 1;
        let source = IoBuffer::allocate(usize::try_from(len * SECTOR).expect("small"));
        source.with_bytes_mut(|bytes| fill(bytes, write));
        for (block, mut value) in touched.clone().zip(before) {
            for (sector, place) in (block * 8..).zip(value.iter_mut()) {
                if sector * SECTOR >= offset && sector * SECTOR < offset + len * SECTOR {
                    *place = write;
                }
            }
            self.begin(volume, block, write, value);
        }
        self.exclusive.extend(touched.clone().map(|block| (volume, block)));
        let is_fua = self.world.random.random_bool(0.1);
        self.send_write((volume, write), offset, source, is_fua, touched.collect());
    }

    /// The values of blocks of which nothing is in flight and just one value is possible.
    fn certain(&self, volume: usize, blocks: std::ops::Range<u64>) -> Option<Vec<Value>> {
        blocks.map(|block| self.models[volume].certain(block)).collect()
    }
}
