//! A pool that was overwritten at random until its free space was single blocks, and is cleaned.

use crate::world::{Life, World, new_snapshot};
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::pool::{Checkpoint, Cleaner, CleanerStep, CleaningStatus, Urgency, WRITE_AMPLIFICATION_MAX};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64, STRETCH_BLOCKS};
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
/// How often a pool ages and is cleaned.
const ROUNDS: usize = 12;
/// Blocks of lanes' windows and records, at most.
const PINNED_MAX: u64 = 512;
/// In so many the blocks of a snapshot are reclaimed.
const CHECKPOINTS_MAX: usize = 200;
/// Fewer changes than what lives in a group.
const CHANGES_FEW: u64 = 150;
const VOLUME: Uuid = Uuid::from_u128(1);

struct Scene {
    world: World,
    life: Life,
    volume: OpenVolume,
    cleaner: Cleaner,
    /// Checkpoints that the cleaner asked for.
    checkpoints: usize,
    /// Groups that found no space for what lived there.
    refusals: usize,
    /// What each block holds: the number of its last write.
    numbers: Vec<u64>,
}

impl Scene {
    /// A volume that was written from front to end.
    fn filled() -> Self {
        Self::filled_up_to(VOLUME_BLOCKS)
    }

    /// A volume whose front was written.
    fn filled_up_to(end: u64) -> Self {
        Self::filled_within(end, 100_000)
    }

    /// The same where so many changes may wait for a checkpoint.
    fn filled_within(end: u64, changes_hard_max: u64) -> Self {
        let mut world = World::new(11, &[DEVICE_BYTES]);
        world.limits.changes_soft_max = 4_000;
        world.limits.changes_hard_max = changes_hard_max;
        world.limits.records_soft_max = 100_000;
        world.limits.leaves_per_batch = 256;
        world.limits.map_cache_bytes = 32 << 20;
        world.reserve = None;
        let life = world.open().expect("a new pool opens");
        let new = NewVolume::new(VOLUME, "aged", VOLUME_BLOCKS * BLOCK_SIZE_U64);
        life.volumes.create(&new).expect("a new volume");
        let volume = life.volumes.open("aged").expect("it is there");
        let cleaner = Cleaner::new(Arc::clone(&life.pool));
        let mut scene = Self {
            world,
            life,
            volume,
            cleaner,
            checkpoints: 0,
            refusals: 0,
            numbers: vec![0; to_usize(VOLUME_BLOCKS)],
        };
        for first in (0..end).step_by(to_usize(BATCH)) {
            scene.write((first..first + BATCH).map(|block| (block, 1)));
        }
        scene
    }

    /// Overwrites single blocks at random.
    fn age(&mut self) {
        for number in 0..OVERWRITES / BATCH {
            self.overwrite(number + 2);
        }
    }

    /// The same while it is cleaned as a pool in use is.
    fn age_cleaned(&mut self) {
        for number in 0..OVERWRITES / BATCH {
            self.overwrite(number + 2);
            for _ in 0..2 {
                self.clean_step(Urgency::Scarce);
            }
        }
    }

    fn overwrite(&mut self, number: u64) {
        let blocks: Vec<u64> = (0..BATCH).map(|_| self.world.random.random_range(0..VOLUME_BLOCKS)).collect();
        self.write(blocks.into_iter().map(|block| (block, number)));
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
        while self.clean_step(Urgency::Idle) {}
    }

    /// Whether there was something to do.
    fn clean_step(&mut self, urgency: Urgency) -> bool {
        let lane = self.life.pool.cleaner_lane().map_or(0, |lane| lane.as_usize());
        match self.cleaner.next(urgency) {
            CleanerStep::Move(group) => {
                let completion = Completion { owner: 0, cookie: 0 };
                self.life.lanes[lane].clean(&self.life.volumes, group, completion);
                if self.answers() != [Ok(())] {
                    self.refusals += 1;
                    self.cleaner.refused();
                }
            }
            CleanerStep::Checkpoint => {
                self.checkpoint();
                self.checkpoints += 1;
                self.cleaner.checkpointed();
            }
            CleanerStep::Rest => return false,
        }
        true
    }

    /// The holes that are left together must not make a stretch with room for what is pinned.
    fn assert_cleaned(&self, aged: &CleaningStatus) {
        let cleaned = self.life.pool.cleaning_status();
        println!("aged {aged:?}, cleaned {cleaned:?}");
        assert!(cleaned.shape.hole_blocks <= STRETCH_BLOCKS + PINNED_MAX, "{aged:?}, then {cleaned:?}");
        assert!(cleaned.written + cleaned.moved <= cleaned.written * WRITE_AMPLIFICATION_MAX, "{cleaned:?}");
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

    scene.assert_cleaned(&aged);
    scene.assert_content();
}

/// A stretch that could not be emptied wholly, since records or windows of lanes were there or space ran out, was left alone
/// for good, also when it had been filled and had become sparse again.
#[test]
fn a_pool_that_was_cleaned_in_use_is_cleaned_again_when_it_rests() {
    let mut scene = Scene::filled();
    for _ in 0..ROUNDS {
        scene.age_cleaned();
        scene.checkpoint();
        let aged = scene.life.pool.cleaning_status();

        scene.clean();

        scene.assert_cleaned(&aged);
    }
    scene.assert_content();
}

#[test]
fn each_stretch_that_is_emptied_is_one_more_that_is_free() {
    for sixteenths in [4, 9, 11, 13, 15] {
        let mut scene = Scene::filled_up_to(VOLUME_BLOCKS - STRETCH_BLOCKS / 16 * sixteenths);
        scene.checkpoint();
        let before = scene.life.pool.cleaning_status();

        scene.clean();

        let after = scene.life.pool.cleaning_status();
        println!("before {before:?}, after {after:?}");
        // The first stretch of a device is shorter.
        let gained = (after.shape.whole_blocks - before.shape.whole_blocks).div_ceil(STRETCH_BLOCKS);
        assert!(after.moved <= gained * STRETCH_BLOCKS, "{before:?}, then {after:?}");
        scene.checkpoint();
        scene.clean();
        assert_eq!(scene.life.pool.cleaning_status().moved, after.moved, "it was left alone");
    }
}

/// Moves wait for nothing; what was left for that reason comes behind the checkpoint.
#[test]
fn cleaning_goes_on_behind_the_checkpoint_that_moves_would_have_had_to_wait_for() {
    let mut scene = Scene::filled_within(VOLUME_BLOCKS, CHANGES_FEW);
    scene.age();
    scene.checkpoint();
    let aged = scene.life.pool.cleaning_status();

    scene.clean();

    assert!(scene.refusals > 1, "there was a limit in the way");
    scene.assert_cleaned(&aged);
    scene.assert_content();
}

#[test]
fn what_snapshots_map_is_left_alone_without_checkpoints_until_they_are_gone() {
    let mut scene = Scene::filled();
    scene.age();
    scene.checkpoint();
    let new = new_snapshot(VOLUME);
    let made = scene.life.volumes.snapshot(vec![new]).expect("nothing is in the way");
    scene.checkpoint();
    let before = scene.life.pool.cleaning_status();

    scene.clean();

    assert_eq!(scene.life.pool.cleaning_status().moved, before.moved);
    assert_eq!(scene.checkpoints, 0, "a checkpoint would have freed nothing");

    scene.life.volumes.remove_snapshots(&[(VOLUME, made[0].number)]).expect("nobody uses it");
    let is_alone = |scene: &Scene| scene.life.pool.with_catalog(|catalog, _| catalog.unshared_count()) > 0;
    for _ in 0..CHECKPOINTS_MAX {
        if !is_alone(&scene) {
            scene.checkpoint();
        }
    }
    assert!(is_alone(&scene), "the snapshot was merged");

    scene.clean();

    scene.assert_cleaned(&before);
    assert!(scene.life.pool.cleaning_status().moved > before.moved);
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("small")
}
