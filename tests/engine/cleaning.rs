//! A pool that was overwritten at random until its free space was single blocks, and is cleaned.

use crate::world::{Life, World};
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::pool::{Checkpoint, Cleaner, CleanerStep, Urgency, WRITE_AMPLIFICATION_MAX};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, NewVolume, OpenVolume};
use std::sync::Arc;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Ten stretches, so that some of them can be free.
const DEVICE_BYTES: u64 = 160 * MIB;
/// Four fifths of the device.
const VOLUME_BLOCKS: u64 = 128 * MIB / BLOCK_SIZE_U64;
/// Three times the free space.
const OVERWRITES: u64 = 3 * 32 * MIB / BLOCK_SIZE_U64;
const BATCH: u64 = 64;

struct Scene {
    world: World,
    life: Life,
    volume: OpenVolume,
    /// What each block holds: the number of its last write.
    numbers: Vec<u64>,
}

impl Scene {
    /// A volume that was written from front to end.
    fn filled() -> Self {
        let mut world = World::new(11, &[DEVICE_BYTES]);
        world.limits.changes_soft_max = 4_000;
        world.limits.changes_hard_max = 100_000;
        world.limits.records_soft_max = 100_000;
        world.limits.leaves_per_batch = 256;
        world.limits.map_cache_bytes = 32 << 20;
        world.reserve = None;
        let life = world.open().expect("a new pool opens");
        let new = NewVolume::new(Uuid::from_u128(1), "aged", VOLUME_BLOCKS * BLOCK_SIZE_U64);
        life.volumes.create(&new).expect("a new volume");
        let volume = life.volumes.open("aged").expect("it is there");
        let mut scene = Self { world, life, volume, numbers: vec![0; to_usize(VOLUME_BLOCKS)] };
        for first in (0..VOLUME_BLOCKS).step_by(to_usize(BATCH)) {
            scene.write((first..first + BATCH).map(|block| (block, 1)));
        }
        scene
    }

    /// Overwrites single blocks at random.
    fn age(&mut self) {
        for number in 0..OVERWRITES / BATCH {
            let blocks: Vec<u64> = (0..BATCH).map(|_| self.world.random.random_range(0..VOLUME_BLOCKS)).collect();
            self.write(blocks.into_iter().map(|block| (block, number + 2)));
        }
    }

    fn write(&mut self, blocks: impl Iterator<Item = (u64, u64)>) {
        let mut count = 0;
        for (block, number) in blocks {
            let source = IoBuffer::allocate(BLOCK_SIZE);
            source.with_bytes_mut(|bytes| bytes.fill(0));
            source.slice(0..8).with_bytes_mut(|bytes| bytes.copy_from_slice(&number.to_le_bytes()));
            let completion = Completion { owner: 0, cookie: 0 };
            self.life.lanes[0].write(self.volume.volume(), block * BLOCK_SIZE_U64, source, false, completion);
            self.numbers[to_usize(block)] = number;
            count += 1;
        }
        assert_eq!(self.answers(), vec![Ok(()); count]);
    }

    fn answers(&mut self) -> Vec<Result<(), IoError>> {
        let mut done = Vec::new();
        self.world.drain(&mut self.life, &mut done);
        done.into_iter().map(|(_, result)| result).collect()
    }

    fn checkpoint(&mut self) {
        // One that the writes began ends first.
        self.world.finish_checkpoint(&mut self.life);
        Checkpoint::begin(Arc::clone(&self.life.pool)).run().expect("a healthy machine");
    }

    /// Cleans until there is nothing more to do, on the lane for it.
    fn clean(&mut self) {
        let lane = self.life.pool.cleaner_lane().map_or(0, |lane| lane.as_usize());
        let mut cleaner = Cleaner::new(Arc::clone(&self.life.pool));
        loop {
            match cleaner.next(Urgency::Idle) {
                CleanerStep::Move(group) => {
                    let completion = Completion { owner: 0, cookie: 0 };
                    self.life.lanes[lane].clean(&self.life.volumes, group, completion);
                    if self.answers() != [Ok(())] {
                        cleaner.refused();
                    }
                }
                CleanerStep::Checkpoint => {
                    self.checkpoint();
                    cleaner.checkpointed();
                }
                CleanerStep::Rest => return,
            }
        }
    }

    fn assert_content(&mut self) {
        for block in 0..VOLUME_BLOCKS {
            let target = IoBuffer::allocate(BLOCK_SIZE);
            let completion = Completion { owner: 0, cookie: 0 };
            self.life.lanes[0].read(self.volume.volume(), block * BLOCK_SIZE_U64, target.clone(), completion);
            assert_eq!(self.answers(), [Ok(())]);
            let number = target.with_bytes(|bytes| *bytes.first_chunk().expect("a block has eight bytes"));
            assert_eq!(u64::from_le_bytes(number), self.numbers[to_usize(block)], "block {block}");
        }
    }
}

#[test]
fn an_aged_pool_that_was_cleaned_has_long_free_runs_again() {
    let mut scene = Scene::filled();
    scene.age();
    scene.checkpoint();
    let aged = scene.life.pool.cleaning_status();
    assert!(aged.shape.whole_blocks < aged.shape.hole_blocks / 2, "it has aged: {aged:?}");

    scene.clean();

    let cleaned = scene.life.pool.cleaning_status();
    println!("aged {aged:?}, cleaned {cleaned:?}");
    let free = cleaned.shape.whole_blocks + cleaned.shape.hole_blocks;
    assert!(cleaned.shape.whole_blocks >= free / 2, "half of what is free is in long runs: {aged:?}, then {cleaned:?}");
    assert!(cleaned.moved > 0);
    assert!(cleaned.written + cleaned.moved <= cleaned.written * WRITE_AMPLIFICATION_MAX, "{cleaned:?}");
    scene.assert_content();
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("small")
}
