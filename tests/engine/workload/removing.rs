//! Discards and zeroes.

use super::{Pending, Workload};
use crate::model::ZEROS;
use rand::Rng;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::RemoveMode;

impl Workload {
    pub(super) fn remove(&mut self) {
        if self.world.random.random_bool(0.3) {
            return self.remove_partial();
        }
        let volume = self.random_volume();
        let count_max = *[1, 8, 300].get(self.world.random.random_range(0..3)).expect("in range");
        self.remove_up_to(volume, count_max);
    }

    /// A removal of so many blocks at most.
    pub(super) fn remove_up_to(&mut self, volume: usize, count_max: u64) {
        let (first, count) = self.random_range(volume, count_max);
        let mode = self.random_mode();
        let blocks: Vec<u64> = (first..first + count).collect();
        // Of pieces of a block that are being written the model does not know which ones a removal meets.
        if blocks.iter().any(|block| self.exclusive.contains(&(volume, *block))) {
            return;
        }
        let write = self.next_write;
        self.next_write += 1;
        for block in &blocks {
            self.begin(volume, *block, write, ZEROS);
        }
        let is_fua = self.world.random.random_bool(0.1);
        self.send_removal((volume, write), (first * BLOCK_SIZE_U64, count * BLOCK_SIZE_U64), (mode, is_fua), blocks);
    }

    pub(super) fn random_mode(&mut self) -> RemoveMode {
        match self.world.random.random_range(0..3) {
            0 => RemoveMode::Discard,
            1 => RemoveMode::Zero,
            _ => RemoveMode::ZeroProvisioned,
        }
    }

    pub(super) fn send_removal(
        &mut self,
        (volume, write): (usize, u64),
        range: (u64, u64),
        (mode, is_fua): (RemoveMode, bool),
        blocks: Vec<u64>,
    ) {
        let begin = self.now;
        self.note(|| format!("removal {write} of volume {volume}, from {} on {} bytes, {mode:?}", range.0, range.1));
        let pausing_since = self.is_pausing(volume).then_some(self.world.counts.set_to_error);
        let completion = self.completion(Pending::Write { volume, blocks, write, is_fua, begin, pausing_since });
        let lane = self.lane();
        let life = self.life();
        let handle = life.handles[volume].volume().clone();
        life.lanes[lane].remove(&handle, range, mode, is_fua, completion);
    }
}
