//! Writes of different sectors of one block at the same time: in whatever order they are done, none takes another one's back.

use super::{Pending, SECTOR, SECTORS, Workload};
use crate::model::Value;
use crate::sector::fill;
use rand::Rng;
use rand::seq::SliceRandom;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::RemoveMode;

/// Pieces of a block that are written at the same time, at most.
const PIECES_MAX: usize = 4;

/// Pieces of one block that are being written. Until all are answered the block may hold any of them and not the others.
pub(super) struct Pieces {
    pub(super) volume: usize,
    block: u64,
    /// Those that are not answered yet.
    left: usize,
    /// Whether all that were answered are there, and durable.
    is_done: bool,
    is_durable: bool,
    /// Writes that the model has for any of them, and not the others.
    some: Vec<u64>,
    /// The block with all of them.
    all: Value,
}

impl Workload {
    /// Writes some pieces of a block, or zeros in their place, each by a lane of its own choice.
    pub(super) fn write_side_by_side(&mut self) {
        let volume = self.random_volume();
        let (block, _) = self.random_range(volume, 1);
        let Some(before) = self.models[volume].certain(block) else { return };
        let mut cuts: Vec<usize> = (1..SECTORS).collect();
        cuts.shuffle(&mut self.world.random);
        cuts.truncate(self.world.random.random_range(1..PIECES_MAX));
        cuts.extend([0, SECTORS]);
        cuts.sort_unstable();
        let pieces: Vec<(usize, usize)> = cuts.windows(2).map(|ends| (ends[0], ends[1])).collect();
        let numbers: Vec<u64> = pieces
            .iter()
            .map(|_| {
                let number = self.next_write;
                self.next_write += 1;
                if self.world.random.random_bool(0.8) { number } else { 0 }
            })
            .collect();
        let with = |is_in: &dyn Fn(usize) -> bool| {
            let mut value = before;
            for (index, ((from, end), number)) in pieces.iter().zip(&numbers).enumerate() {
                if is_in(index) {
                    value[*from..*end].fill(*number);
                }
            }
            value
        };
        let values: Vec<Value> = (1..1_usize << pieces.len()).map(|set| with(&|index| set & 1 << index != 0)).collect();
        let all = with(&|_| true);
        let mut some = Vec::new();
        for value in values {
            self.begin(volume, block, self.next_write, value);
            some.push(self.next_write);
            self.next_write += 1;
        }
        self.exclusive.insert((volume, block));
        let group = self.next_write;
        self.next_write += 1;
        let left = pieces.len();
        self.pieces.insert(group, Pieces { volume, block, left, is_done: true, is_durable: true, some, all });
        self.world.counts.side_by_side += 1;
        for ((from, end), number) in pieces.into_iter().zip(numbers) {
            let has_it = before[from..end].iter().all(|sector| *sector == number);
            self.send_piece((volume, group), (block, from, end), (number, has_it));
        }
    }

    fn send_piece(
        &mut self,
        (volume, group): (usize, u64),
        (block, from, end): (u64, usize, usize),
        (number, has_it): (u64, bool),
    ) {
        let is_fua = self.world.random.random_bool(0.2);
        self.note(|| format!("write {number} of volume {volume}, sectors {from} to {end} of block {block}"));
        let pausing_since = self.is_pausing(volume).then_some(self.world.counts.set_to_error);
        // Zeros in place of zeros are no change to be seen.
        let sectors = (!has_it).then_some((from, end, number));
        let completion = self.completion(Pending::Piece { group, is_fua, pausing_since, sectors });
        let lane = self.lane();
        let life = self.life();
        let handle = life.handles[volume].volume().clone();
        let (offset, len) = (block * BLOCK_SIZE_U64 + from as u64 * SECTOR, (end - from) as u64 * SECTOR);
        if number == 0 {
            life.lanes[lane].remove(&handle, (offset, len), RemoveMode::Zero, is_fua, completion);
        } else {
            let source = IoBuffer::allocate(usize::try_from(len).expect("a part of a block"));
            source.with_bytes_mut(|bytes| fill(bytes, number));
            life.lanes[lane].write(&handle, offset, source, is_fua, completion);
        }
    }

    /// A piece was answered. Behind the last one the block holds all of them, if all were acknowledged.
    pub(super) fn piece_done(
        &mut self,
        group: u64,
        is_fua: bool,
        sectors: Option<(usize, usize, u64)>,
        result: Result<(), IoError>,
    ) {
        let &Pieces { volume, block, .. } = self.pieces.get(&group).expect("it is being written");
        self.check_written(volume, group, &[block], result);
        let pieces = self.pieces.get_mut(&group).expect("it is being written");
        pieces.left -= 1;
        if let (Ok(()), Some((from, end, number))) = (result, sectors) {
            self.models[volume].retire(pieces.block, self.now, |value| value[from..end].iter().any(|at| *at != number));
        }
        pieces.is_done &= result.is_ok();
        pieces.is_durable &= is_fua;
        if pieces.left > 0 {
            return;
        }
        let pieces = self.pieces.remove(&group).expect("it was just there");
        let model = &mut self.models[pieces.volume];
        if !pieces.is_done {
            pieces.some.iter().for_each(|write| model.end(pieces.block, *write, false, false, self.now));
        }
        pieces.some.iter().for_each(|write| model.give_up(pieces.block, *write, self.now));
        if pieces.is_done {
            // As if it was written behind them.
            self.now += 1;
            model.begin(pieces.block, group, pieces.all, self.now);
            model.end(pieces.block, group, true, pieces.is_durable, self.now);
        }
        self.note(|| format!("block {} of volume {} has all: {}", pieces.block, pieces.volume, pieces.is_done));
        self.exclusive.remove(&(pieces.volume, pieces.block));
    }
}
