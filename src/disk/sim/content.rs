//! Sparse bytes of a simulated device, and writes that are not durable yet.
//!
//! Invariant: an absent block reads as zeros. Blocks are shared between contents until one of them changes.

use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, to_u64, to_usize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What a device writes whole or not at all.
pub(super) const SECTOR_SIZE: usize = 512;
const SECTOR_SIZE_U64: u64 = 512;

type Block = [u8; BLOCK_SIZE];
const ZEROS: Block = [0; BLOCK_SIZE];

/// All bytes of a device.
#[derive(Clone, Default)]
pub(super) struct Content {
    blocks: BTreeMap<u64, Arc<Block>>,
}

impl Content {
    /// Copies bytes out. Offset and length are whole blocks.
    pub(super) fn read(&self, offset_bytes: u64, target: &mut [u8]) {
        for (index, chunk) in block_numbers(offset_bytes).zip(target.chunks_exact_mut(BLOCK_SIZE)) {
            chunk.copy_from_slice(self.blocks.get(&index).map_or(ZEROS.as_slice(), |block| block.as_slice()));
        }
    }

    /// Copies bytes in. Offset and length are whole blocks.
    pub(super) fn write(&mut self, offset_bytes: u64, source: &[u8]) {
        for (index, chunk) in block_numbers(offset_bytes).zip(source.chunks_exact(BLOCK_SIZE)) {
            if chunk == ZEROS {
                self.blocks.remove(&index);
            } else {
                Arc::make_mut(self.blocks.entry(index).or_insert_with(|| Arc::new(ZEROS))).copy_from_slice(chunk);
            }
        }
    }

    /// Puts one byte everywhere into a range of blocks.
    pub(super) fn fill(&mut self, blocks: Range<u64>, byte: u8) {
        if byte == 0 {
            let present: Vec<u64> = self.blocks.range(blocks).map(|(block, _)| *block).collect();
            present.iter().for_each(|block| _ = self.blocks.remove(block));
            return;
        }
        let filled = Arc::new([byte; BLOCK_SIZE]);
        self.blocks.extend(blocks.map(|block| (block, Arc::clone(&filled))));
    }

    /// Copies in those sectors of a write that are still alive.
    pub(super) fn apply(&mut self, write: &Write) {
        if write.is_alive.iter().all(|is_alive| *is_alive) {
            return self.write(write.offset_bytes, &write.bytes);
        }
        for (index, sector) in write.alive_sectors() {
            let offset_bytes = write.offset_bytes + to_u64(index * SECTOR_SIZE);
            let start = to_usize(offset_bytes % BLOCK_SIZE_U64);
            let block = self.blocks.entry(offset_bytes / BLOCK_SIZE_U64).or_insert_with(|| Arc::new(ZEROS));
            Arc::make_mut(block)[start..start + SECTOR_SIZE].copy_from_slice(sector);
        }
    }

    /// Inverts one bit.
    pub(super) fn flip_bit(&mut self, offset_bytes: u64, bit: u8) {
        let block = self.blocks.entry(offset_bytes / BLOCK_SIZE_U64).or_insert_with(|| Arc::new(ZEROS));
        Arc::make_mut(block)[to_usize(offset_bytes % BLOCK_SIZE_U64)] ^= 1 << bit;
    }

    /// Blocks that are not all zeros, in order.
    pub(super) fn nonzero_blocks(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.blocks.iter().map(|(index, block)| (*index, block.as_ref())).filter(|(_, block)| **block != ZEROS)
    }

    /// A block that is not all zeros.
    pub(super) fn nonzero_block(&self, index: u64) -> Option<&Block> {
        self.blocks.get(&index).map(Arc::as_ref).filter(|block| **block != ZEROS)
    }

    /// Whether both have the same bytes in a block.
    pub(super) fn has_same_block(&self, other: &Self, index: u64) -> bool {
        match (self.blocks.get(&index), other.blocks.get(&index)) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs) || ours == theirs,
            (ours, theirs) => ours.or(theirs).is_none_or(|block| **block == ZEROS),
        }
    }
}

fn block_numbers(offset_bytes: u64) -> std::ops::RangeFrom<u64> {
    offset_bytes / BLOCK_SIZE_U64..
}

/// A write on its way to the medium.
#[derive(Clone)]
pub(super) struct Write {
    pub(super) offset_bytes: u64,
    pub(super) bytes: Arc<[u8]>,
    /// For each sector, whether it may still reach the medium.
    pub(super) is_alive: Vec<bool>,
}

impl Write {
    pub(super) fn new(offset_bytes: u64, bytes: Arc<[u8]>) -> Self {
        let is_alive = vec![true; bytes.len() / SECTOR_SIZE];
        Self { offset_bytes, bytes, is_alive }
    }

    /// The sectors that are alive, with their index in the write.
    pub(super) fn alive_sectors(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let sectors = self.bytes.chunks_exact(SECTOR_SIZE).enumerate();
        sectors.zip(&self.is_alive).filter(|(_, is_alive)| **is_alive).map(|(sector, _)| sector)
    }

    /// How many sectors may still reach the medium.
    pub(super) fn alive_count(&self) -> usize {
        self.is_alive.iter().filter(|is_alive| **is_alive).count()
    }

    /// Takes the sectors out of this write that a newer one has made durable.
    pub(super) fn supersede(&mut self, newer: &Self) {
        let our_first = self.offset_bytes / SECTOR_SIZE_U64;
        let their_first = newer.offset_bytes / SECTOR_SIZE_U64;
        for (position, is_alive) in self.is_alive.iter_mut().enumerate() {
            let theirs = (our_first + to_u64(position)).checked_sub(their_first).map(to_usize);
            if theirs.and_then(|theirs| newer.is_alive.get(theirs)) == Some(&true) {
                *is_alive = false;
            }
        }
    }

    /// Takes the sectors of a range out of this write.
    pub(super) fn forget(&mut self, offset_bytes: u64, len_bytes: u64) {
        let forgotten = offset_bytes..offset_bytes + len_bytes;
        for (position, is_alive) in self.is_alive.iter_mut().enumerate() {
            *is_alive &= !forgotten.contains(&(self.offset_bytes + to_u64(position * SECTOR_SIZE)));
        }
    }

    /// Copies what a read of `target` at `offset_bytes` sees of this write, if `is_seen` says so for the sector.
    pub(super) fn overlay(&self, offset_bytes: u64, target: &mut [u8], mut is_seen: impl FnMut() -> bool) {
        for (index, sector) in self.alive_sectors() {
            let at = self.offset_bytes + to_u64(index * SECTOR_SIZE);
            let Some(start) = at.checked_sub(offset_bytes).map(to_usize) else { continue };
            let Some(place) = target.get_mut(start..start.saturating_add(SECTOR_SIZE)) else { continue };
            if is_seen() {
                place.copy_from_slice(sector);
            }
        }
    }

    /// Whether this write and a range have bytes in common.
    pub(super) fn overlaps(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        offset_bytes < self.offset_bytes + to_u64(self.bytes.len()) && self.offset_bytes < offset_bytes + len_bytes
    }

    /// A block that lies in this write whole.
    pub(super) fn block(&self, index: u64) -> Option<&[u8]> {
        let start = (index * BLOCK_SIZE_U64).checked_sub(self.offset_bytes).map(to_usize)?;
        self.bytes.get(start..start + BLOCK_SIZE)
    }

    /// Inverts one bit, if the byte is in this write.
    pub(super) fn flip_bit(&mut self, offset_bytes: u64, bit: u8) {
        if self.overlaps(offset_bytes, 1) {
            let mut bytes = self.bytes.to_vec();
            bytes[to_usize(offset_bytes - self.offset_bytes)] ^= 1 << bit;
            self.bytes = bytes.into();
        }
    }
}
