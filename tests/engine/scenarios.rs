//! Single situations, each written down: what the seeds meet only by chance.

use crate::world::{Life, World};
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::units::BLOCK_SIZE;
use rok_blk::volume::Completion;
use uuid::Uuid;

const DEVICE_BYTES: u64 = 48 << 20;

/// A pool with volume "vol0", open.
fn world() -> (World, Life) {
    let mut world = World::new(1, DEVICE_BYTES);
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(Uuid::from_u128(1), "vol0", 8 << 20, 512, 0).expect("a new volume");
    life.handles.push(life.volumes.open("vol0").expect("the volume is there"));
    (world, life)
}

/// Writes the first block of the first volume and waits for the answer.
fn write(world: &mut World, life: &mut Life) -> Result<(), IoError> {
    let volume = life.handles[0].volume().clone();
    let completion = Completion { owner: 0, cookie: 1 };
    life.lanes[0].write(&volume, 0, IoBuffer::allocate(BLOCK_SIZE), false, completion);
    let mut done = Vec::new();
    world.drain(life, &mut done);
    done.pop().expect("the write is answered").1
}

/// The removal may be on the disk: what is acknowledged behind it may be gone after the next open.
#[test]
fn write_after_a_removal_that_failed_is_an_error() {
    let (mut world, mut life) = world();
    life.handles.clear();
    world.store.fail_commit_after(Some(1));
    life.volumes.remove("vol0").expect_err("its commit fails");
    life.handles.push(life.volumes.open("vol0").expect("as far as this process knows it is there"));

    assert_eq!(write(&mut world, &mut life), Err(IoError::Io));
}

/// Nothing was changed, so nothing has to stop.
#[test]
fn write_after_a_removal_without_space_succeeds() {
    let (mut world, mut life) = world();
    life.handles.clear();
    world.store.fill_after(Some(1));
    life.volumes.remove("vol0").expect_err("there is no space");
    life.handles.push(life.volumes.open("vol0").expect("it is there"));

    assert_eq!(write(&mut world, &mut life), Ok(()));
}
