//! A leaf that is not in memory.

use crate::world::{Life, World, new_snapshot};
use rok_blk::disk::IoBuffer;
use rok_blk::pool::{Checkpoint, NewClone, SnapshotId};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, MapRun, MapRuns, NewVolume, OpenVolume, StatusWanted};
use std::sync::Arc;
use uuid::Uuid;

const READERS: u64 = 8;
const VOLUME: Uuid = Uuid::from_u128(1);
const COMPLETION: Completion = Completion { owner: 0, cookie: 0 };

#[test]
fn misses_of_the_same_leaf_load_it_once() {
    let mut world = World::new(1, &[16 << 20]);
    world.limits.map_cache_bytes = 1 << 20;
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(VOLUME, "vol", 1 << 20)).expect("a new volume");
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

/// A pool whose volume has two blocks that no checkpoint has stored; the blocks are the second and the fourth.
fn unstored() -> (World, Life, OpenVolume) {
    let mut world = World::new(1, &[16 << 20]);
    // In a smaller cache all leaves have one version, and each that a checkpoint stores counts.
    world.limits.map_cache_bytes = 32 << 20;
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(VOLUME, "vol", 1 << 20)).expect("a new volume");
    let volume = life.volumes.open("vol").expect("it is there");
    for block in [1, 3] {
        let source = IoBuffer::allocate(BLOCK_SIZE);
        life.lanes[0].write(volume.volume(), block * BLOCK_SIZE_U64, source, false, COMPLETION);
        world.drain(&mut life, &mut Vec::new());
    }
    assert_eq!(life.pool.changes().active_count(), 2, "nothing is stored");
    (world, life, volume)
}

/// Walks over a volume with these blocks while a checkpoint stores and drops all changes between the look at the store and
/// the look at changes.
fn assert_overtaken_walk_sees_them(mut world: World, mut life: Life, volume: &OpenVolume) {
    let runs = MapRuns::default();
    let wanted = StatusWanted { mapped: Some(runs.clone()), ..StatusWanted::default() };
    life.lanes[0].list_status(volume.volume(), (0, 1 << 20), wanted, COMPLETION);
    life.lanes[0].turn();
    life.run_jobs();
    Checkpoint::begin(Arc::clone(&life.pool)).run().expect("a healthy machine");
    world.drain(&mut life, &mut Vec::new());

    let run = |blocks: u64, is_mapped| MapRun { size_bytes: blocks * BLOCK_SIZE_U64, is_mapped };
    assert_eq!(*runs.borrow(), [run(1, false), run(1, true), run(1, false), run(1, true), run(252, false)]);
}

fn snapshot(life: &Life) -> SnapshotId {
    let new = new_snapshot(VOLUME);
    let made = life.volumes.snapshot(vec![new]).expect("nothing is in the way");
    (VOLUME, made[0].number)
}

#[test]
fn walk_that_a_checkpoint_overtakes_sees_what_that_stored() {
    let (world, life, volume) = unstored();

    assert_overtaken_walk_sees_them(world, life, &volume);
}

/// A checkpoint tells nobody that it stored a leaf of a snapshot. A copy would leave out what is told to be absent.
#[test]
fn walk_over_a_snapshot_that_a_checkpoint_overtakes_sees_what_that_stored() {
    let (world, life, _volume) = unstored();
    let snapshot = life.volumes.open_snapshot(snapshot(&life)).expect("it is there");

    assert_overtaken_walk_sees_them(world, life, &snapshot);
}

/// Nor does it tell the clone that it stored a leaf of its parent.
#[test]
fn walk_over_a_clone_that_a_checkpoint_overtakes_sees_what_that_stored() {
    let (world, life, _volume) = unstored();
    let new =
        NewClone { id: Uuid::from_u128(3), name: "clone".to_owned(), created_at: 0, expires_at: 0, labels: Vec::new() };
    life.volumes.clone_snapshot(snapshot(&life), vec![new]).expect("a new name");
    let clone = life.volumes.open("clone").expect("it is there");

    assert_overtaken_walk_sees_them(world, life, &clone);
}
