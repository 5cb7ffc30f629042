//! How the machine ends a life.

use super::{End, Life, World};
use rand::Rng;
use rand::rngs::SmallRng;
use rok_blk::disk::{CrashMode, SimCounters, SimDevice};
use rok_blk::format::record::RecordHead;
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use std::sync::Arc;

impl World {
    /// Ends a life in the middle of whatever it does.
    pub fn crash(&mut self, life: Option<Life>, end: End) {
        if let Some(life) = &life {
            self.count_life(life);
        }
        if life.as_ref().is_some_and(|life| life.checkpoint.is_some()) {
            self.counts.crashes_in_checkpoint += 1;
        }
        let random = &mut self.random;
        let mode = match end {
            End::Kill if random.random_bool(0.5) => CrashMode::Kill,
            End::Kill => CrashMode::KillBeforeWriteback,
            End::PowerLoss => CrashMode::PowerLoss,
        };
        let spoils = end == End::PowerLoss && random.random_bool(0.2);
        for device in self.devices.iter().chain([&self.shred_key, &self.key_slots.superblock]) {
            let unflushed = device.unflushed();
            device.crash(mode, &mut |below| random.random_range(0..below));
            if spoils {
                self.counts.bad_blocks += spoil(device, &unflushed, random);
            }
        }
        // The rest of an adding that the superblock does not know.
        self.devices.truncate(self.listed.len());
        let keep = random.random::<u64>();
        let is_commit_in_doubt = self.store.is_commit_in_doubt();
        self.store.fill_after(None);
        self.store.crash(|unsynced| match end {
            // Whether a commit that failed is there nobody knows.
            End::Kill => unsynced - usize::from(is_commit_in_doubt && keep.is_multiple_of(2)),
            End::PowerLoss => usize::try_from(keep % (unsynced as u64 + 1)).expect("not above a usize"),
        });
        match end {
            End::Kill => self.counts.kills += 1,
            End::PowerLoss => self.counts.power_losses += 1,
        }
        let SimCounters { reads, writes, torn_writes, dropped_writes, .. } = self.device_counters();
        for count in [reads, writes, torn_writes, dropped_writes] {
            self.trace.update(&count.to_le_bytes());
        }
        drop(life);
    }
}

/// A sector that was being written when the power went cannot be read any more. Not one of a record: a pool whose log
/// cannot be followed is refused, and rightly so. Returns how many there are.
fn spoil(device: &SimDevice, unflushed: &[(u64, Arc<[u8]>)], random: &mut SmallRng) -> u64 {
    if unflushed.is_empty() {
        return 0;
    }
    let (offset, bytes) = &unflushed[random.random_range(0..unflushed.len())];
    let record_blocks = RecordHead::decode(bytes).map_or(0, |head| head.block_count);
    let block_count = bytes.len() / BLOCK_SIZE;
    if record_blocks >= block_count {
        return 0;
    }
    let block = random.random_range(record_blocks..block_count);
    device.bad_block(offset / BLOCK_SIZE_U64 + block as u64);
    1
}
