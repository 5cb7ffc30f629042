//! Writes and removals that begin or end inside a block.

use super::{SECTOR, Workload};
use crate::model::Value;
use crate::sector::fill;
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::RemoveMode;
use std::ops::Range;

/// Sectors of a volume that a request takes, of blocks in which nothing is in flight and just one value is possible.
struct Piece {
    volume: usize,
    sectors: Range<u64>,
    before: Vec<Value>,
}

impl Piece {
    fn offset_bytes(&self) -> u64 {
        self.sectors.start * SECTOR
    }

    fn len_bytes(&self) -> u64 {
        (self.sectors.end - self.sectors.start) * SECTOR
    }

    fn blocks(&self) -> Range<u64> {
        self.offset_bytes() / BLOCK_SIZE_U64..(self.sectors.end * SECTOR).div_ceil(BLOCK_SIZE_U64)
    }

    /// What the blocks hold when this number is in the sectors.
    fn after(&self, number: u64) -> impl Iterator<Item = (u64, Value)> {
        self.blocks().zip(&self.before).map(move |(block, before)| {
            let mut value = *before;
            for (sector, place) in (block * 8..).zip(value.iter_mut()) {
                if self.sectors.contains(&sector) {
                    *place = number;
                }
            }
            (block, value)
        })
    }

    fn has_whole(&self, block: u64) -> bool {
        self.sectors.start <= block * 8 && (block + 1) * 8 <= self.sectors.end
    }
}

impl Workload {
    pub(super) fn write_partial(&mut self) {
        let Some(piece) = self.piece(4) else { return };
        let write = self.next_write;
        self.next_write += 1;
        let source = IoBuffer::allocate(usize::try_from(piece.len_bytes()).expect("small"));
        source.with_bytes_mut(|bytes| fill(bytes, write));
        let changed: Vec<(u64, Value)> = piece.after(write).collect();
        let blocks = self.begin_exclusive(piece.volume, write, &changed);
        let is_fua = self.world.random.random_bool(0.1);
        self.send_write((piece.volume, write), piece.offset_bytes(), source, is_fua, blocks);
    }

    /// Removes what may begin or end inside a block. A discard leaves such a block as it is.
    pub(super) fn remove_partial(&mut self) {
        let Some(piece) = self.piece(16) else { return };
        let mode = self.random_mode();
        let write = self.next_write;
        self.next_write += 1;
        let is_changed = |block| mode != RemoveMode::Discard || piece.has_whole(block);
        let changed: Vec<(u64, Value)> = piece.after(0).filter(|(block, _)| is_changed(*block)).collect();
        self.world.counts.partial_zeroes += u64::from(changed.iter().any(|(block, _)| !piece.has_whole(*block)));
        let blocks = self.begin_exclusive(piece.volume, write, &changed);
        let is_fua = self.world.random.random_bool(0.1);
        self.send_removal((piece.volume, write), (piece.offset_bytes(), piece.len_bytes()), (mode, is_fua), blocks);
    }

    /// Random sectors of so many blocks at most.
    fn piece(&mut self, count_max: u64) -> Option<Piece> {
        let volume = self.random_volume();
        let (first, count) = self.random_range(volume, count_max);
        let from = self.world.random.random_range(0..count * 8);
        let len = self.world.random.random_range(1..=count * 8 - from);
        let sectors = first * 8 + from..first * 8 + from + len;
        let mut piece = Piece { volume, sectors, before: Vec::new() };
        let certain = piece.blocks().map(|block| self.models[volume].certain(block));
        piece.before = certain.collect::<Option<_>>()?;
        Some(piece)
    }

    /// Lets a request begin on blocks that no other one may meet before it ends.
    fn begin_exclusive(&mut self, volume: usize, write: u64, changed: &[(u64, Value)]) -> Vec<u64> {
        for (block, value) in changed {
            self.begin(volume, *block, write, *value);
            self.exclusive.insert((volume, *block));
        }
        changed.iter().map(|(block, _)| *block).collect()
    }
}
