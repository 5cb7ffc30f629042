//! A leaf that is not in memory.

use crate::world::World;
use rok_blk::disk::IoBuffer;
use rok_blk::pool::Checkpoint;
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, MapRun, MapRuns, NewVolume, StatusWanted};
use std::sync::Arc;

const READERS: u64 = 8;

#[test]
fn misses_of_the_same_leaf_load_it_once() {
    let mut world = World::new(1, &[16 << 20]);
    world.limits.map_cache_bytes = 1 << 20;
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(uuid::Uuid::from_u128(1), "vol", 1 << 20)).expect("a new volume");
    let volume = life.volumes.open("vol").expect("it is there");
    let source = IoBuffer::allocate(1 << 20);
    source.with_bytes_mut(|bytes| bytes.fill(7));
    let completion = |cookie| Completion { owner: 0, cookie };
    life.lanes[0].write(volume.volume(), 0, source, false, completion(0));
    let mut done = Vec::new();
    world.drain(&mut life, &mut done);
    drop(volume);
    assert!(world.close(life, None, &mut done), "a healthy machine");

    let mut life = world.open().expect("it was closed cleanly");
    let volume = life.volumes.open("vol").expect("it is there");
    let targets: Vec<IoBuffer> = (0..READERS).map(|_| IoBuffer::allocate(BLOCK_SIZE)).collect();
    for (cookie, target) in (0..).zip(&targets) {
        life.lanes[0].read(volume.volume(), cookie * BLOCK_SIZE_U64, target.clone(), completion(cookie));
    }
    life.lanes[0].turn();
    assert_eq!(life.job_count(), 1);

    done.clear();
    world.drain(&mut life, &mut done);
    assert_eq!(done.len(), targets.len());
    assert!(done.iter().all(|(_, result)| result.is_ok()));
    assert!(targets.iter().all(|target| target.with_bytes(|bytes| bytes.iter().all(|byte| *byte == 7))));
}

/// The change is gone from memory when the walk looks at changes, and was not stored yet when it looked at the store.
#[test]
fn walk_that_a_checkpoint_overtakes_sees_what_that_stored() {
    let mut world = World::new(1, &[16 << 20]);
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(uuid::Uuid::from_u128(1), "vol", 1 << 20)).expect("a new volume");
    let volume = life.volumes.open("vol").expect("it is there");
    let completion = Completion { owner: 0, cookie: 0 };
    let mut done = Vec::new();
    life.lanes[0].write(volume.volume(), BLOCK_SIZE_U64, IoBuffer::allocate(BLOCK_SIZE), false, completion);
    world.drain(&mut life, &mut done);
    life.lanes[0].write(volume.volume(), 3 * BLOCK_SIZE_U64, IoBuffer::allocate(BLOCK_SIZE), false, completion);
    world.drain(&mut life, &mut done);

    let runs = MapRuns::default();
    let wanted = StatusWanted { mapped: Some(runs.clone()), ..StatusWanted::default() };
    life.lanes[0].list_status(volume.volume(), (0, 1 << 20), wanted, completion);
    life.lanes[0].turn();
    life.run_jobs();
    Checkpoint::begin(Arc::clone(&life.pool)).run().expect("a healthy machine");
    world.drain(&mut life, &mut done);

    let run = |blocks: u64, is_mapped| MapRun { size_bytes: blocks * BLOCK_SIZE_U64, is_mapped };
    assert_eq!(*runs.borrow(), [run(1, false), run(1, true), run(1, false), run(1, true), run(252, false)]);
}
