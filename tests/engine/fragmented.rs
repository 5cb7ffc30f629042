//! A pool whose free space is single blocks.

use crate::world::{Life, World};
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::pool::Checkpoint;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::{Completion, NewVolume, OpenVolume, RemoveMode};
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// A life and the results of what it did.
struct Scene {
    world: World,
    life: Life,
}

impl Scene {
    fn new() -> Self {
        let mut world = World::new(1, &[16 * MIB]);
        // A checkpoint comes only when it is asked for, or for space.
        world.limits.changes_soft_max = 100_000;
        world.limits.changes_hard_max = 200_000;
        world.limits.records_soft_max = 100_000;
        let life = world.open().expect("a new pool opens");
        Self { world, life }
    }

    fn volume(&self, number: u128) -> OpenVolume {
        let name = format!("vol{number}");
        let volumes = &self.life.volumes;
        volumes.create(&NewVolume::new(uuid::Uuid::from_u128(number), &name, 16 * MIB)).expect("a new volume");
        volumes.open(&name).expect("it is there")
    }

    fn result(&mut self) -> Result<(), IoError> {
        let mut done = Vec::new();
        self.world.drain(&mut self.life, &mut done);
        assert_eq!(done.len(), 1, "one request was made");
        done[0].1
    }

    fn write(&mut self, volume: &OpenVolume, offset: u64, len: u64) -> Result<(), IoError> {
        let source = IoBuffer::allocate(usize::try_from(len).expect("small"));
        let completion = Completion { owner: 0, cookie: 0 };
        self.life.lanes[0].write(volume.volume(), offset, source, false, completion);
        self.result()
    }

    fn discard_block(&mut self, volume: &OpenVolume, block: u64) {
        let range = (block * BLOCK_SIZE_U64, BLOCK_SIZE_U64);
        let completion = Completion { owner: 0, cookie: 0 };
        self.life.lanes[0].remove(volume.volume(), range, RemoveMode::Discard, false, completion);
        self.result().expect("a discard needs no space");
    }

    fn checkpoint(&mut self) {
        self.world.finish_checkpoint(&mut self.life);
        Checkpoint::begin(Arc::clone(&self.life.pool)).run().expect("a healthy machine");
    }
}

#[test]
fn large_write_succeeds_while_enough_single_blocks_are_free() {
    let mut scene = Scene::new();
    let full = scene.volume(1);
    let mut blocks = 0;
    while scene.write(&full, blocks * BLOCK_SIZE_U64, MIB / 4).is_ok() {
        blocks += MIB / 4 / BLOCK_SIZE_U64;
    }
    for block in (1..blocks).step_by(2) {
        scene.discard_block(&full, block);
    }
    // The first still knows the blocks as replaced; after the second they are free.
    scene.checkpoint();
    scene.checkpoint();

    let freed_bytes = blocks / 2 * BLOCK_SIZE_U64;
    assert!(freed_bytes >= 5 * MIB, "half of the pool: {freed_bytes}");
    let other = scene.volume(2);
    assert_eq!(scene.write(&other, 0, 4 * MIB), Ok(()));
}
