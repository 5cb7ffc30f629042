//! Reads of volumes, and what they may show.

use super::{Pending, SECTOR, SECTORS, Workload};
use crate::model::{Value, ZEROS};
use crate::sector::parse;
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::units::BLOCK_SIZE_U64;
use std::collections::BTreeMap;

impl Workload {
    pub(super) fn read(&mut self) {
        let volume = self.random_volume();
        let (first, count) = self.random_range(volume, 32);
        let (offset, len) = if self.world.random.random_bool(0.8) {
            (first * BLOCK_SIZE_U64, count * BLOCK_SIZE_U64)
        } else {
            let from = self.world.random.random_range(0..count * 8);
            let len = self.world.random.random_range(1..=count * 8 - from);
            (first * BLOCK_SIZE_U64 + from * SECTOR, len * SECTOR)
        };
        self.note(|| format!("read {} of volume {volume} from {first}, {count} blocks", self.next_cookie + 1));
        let target = IoBuffer::allocate(usize::try_from(len).expect("small"));
        target.with_bytes_mut(|bytes| bytes.fill(0xa5));
        let touched = offset / BLOCK_SIZE_U64..(offset + len).div_ceil(BLOCK_SIZE_U64);
        let allowed = touched.map(|block| (block, self.models[volume].visible_values(block))).collect();
        let faults_before = self.faults_met();
        let begin = self.now;
        let pending = Pending::Read { volume, offset, target: target.clone(), allowed, faults_before, begin };
        let completion = self.completion(pending);
        let lane = self.lane();
        let life = self.life();
        let handle = life.handles[volume].volume().clone();
        life.lanes[lane].read(&handle, offset, target, completion);
    }

    pub(super) fn read_done(
        &mut self,
        volume: usize,
        (offset, begin): (u64, u64),
        target: &IoBuffer,
        allowed: BTreeMap<u64, Vec<Value>>,
    ) {
        let bytes = target.with_bytes(<[u8]>::to_vec);
        let mut seen: BTreeMap<u64, Vec<(usize, u64)>> = BTreeMap::new();
        for (sector, content) in (offset / SECTOR..).zip(bytes.chunks_exact(512)) {
            let number = parse(content)
                .unwrap_or_else(|| panic!("sector {sector} of volume {volume} holds bytes that nobody wrote"));
            let place = usize::try_from(sector % 8).expect("below 8");
            seen.entry(sector / 8).or_default().push((place, number));
        }
        self.world.counts.reads_verified += 1;
        for (block, sectors) in seen {
            let mut values = allowed[&block].clone();
            values.extend(self.models[volume].visible_values(block));
            let is_allowed = values.iter().any(|value| sectors.iter().all(|(place, number)| value[*place] == *number));
            assert!(is_allowed, "block {block} of volume {volume} reads {sectors:?}, allowed are {values:?}");
            if sectors.len() == SECTORS {
                let mut value = ZEROS;
                sectors.iter().for_each(|(place, number)| value[*place] = *number);
                self.models[volume].observed(block, value, begin);
            }
        }
    }

    pub(super) fn read_block(&mut self, volume: usize, block: u64) -> Result<Value, IoError> {
        let handle = self.life().handles.remove(volume);
        let content = self.read_through(&handle, block);
        self.life().handles.insert(volume, handle);
        Ok(content?.with_bytes(|bytes| value_of(volume, block, bytes)))
    }
}

/// What the bytes of a block say.
pub(super) fn value_of(volume: usize, block: u64, content: &[u8]) -> Value {
    let mut value = ZEROS;
    for (place, content) in value.iter_mut().zip(content.chunks_exact(512)) {
        *place =
            parse(content).unwrap_or_else(|| panic!("block {block} of volume {volume} holds bytes that nobody wrote"));
    }
    value
}
