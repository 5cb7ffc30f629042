//! Leaves that are not in memory.

use crate::world::{Life, World, new_snapshot};
use rok_blk::disk::IoBuffer;
use rok_blk::pool::{Checkpoint, Limits, NewClone, SnapshotId};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64, LEAF_ENTRIES_U64, to_u64};
use rok_blk::volume::{
    ChangedRun, ChangedRuns, Completion, DiffKind, DiffSide, MapRun, MapRuns, NewVolume, OpenVolume, StatusWanted, diff,
};
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

/// Others wait for the thread that compares, and a client for its answer.
#[test]
fn a_comparison_of_many_leaves_ends_early_and_goes_on_where_it_ended() {
    const LEAVES: u64 = 1100;
    /// As many as a list tells of.
    const LISTED: u64 = 1024;
    const LEAF_BYTES: u64 = LEAF_ENTRIES_U64 * BLOCK_SIZE_U64;
    let mut world = World::new(1, &[32 << 20]);
    world.limits = Limits::default();
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(VOLUME, "vol", LEAVES * LEAF_BYTES)).expect("a new volume");
    let before = life.volumes.open_snapshot(snapshot(&life)).expect("it is there");
    let volume = life.volumes.open("vol").expect("it is there");
    for leaf in 0..LEAVES {
        let source = IoBuffer::allocate(BLOCK_SIZE);
        life.lanes[0].write(volume.volume(), leaf * LEAF_BYTES, source, false, COMPLETION);
    }
    world.drain(&mut life, &mut Vec::new());
    world.finish_checkpoint(&mut life);
    world.checkpoint(&mut life).expect("a healthy machine");
    assert_eq!(life.pool.changes().active_count(), 0, "all is stored");

    let sides = (DiffSide::from(&**before.volume()), DiffSide::from(&**volume.volume()));
    let step = diff(&life.pool, sides, 0..LEAVES * LEAF_BYTES, 10).expect("a healthy machine");
    assert_eq!((step.runs.len(), step.leaf_count, step.end_bytes), (10, 10, 10 * LEAF_BYTES));

    let mut list = |offset_bytes: u64| {
        let runs = ChangedRuns::default();
        let changed = vec![(Arc::clone(before.volume()), ChangedRuns::clone(&runs))];
        let range = (offset_bytes, LEAVES * LEAF_BYTES - offset_bytes);
        life.lanes[0].list_status(volume.volume(), range, StatusWanted { mapped: None, changed }, COMPLETION);
        world.drain(&mut life, &mut Vec::new());
        let runs: Vec<ChangedRun> = runs.take();
        let added = runs.iter().filter(|run| run.kind == Some(DiffKind::Added)).count();
        (to_u64(added), runs.iter().map(|run| run.size_bytes).sum::<u64>())
    };
    assert_eq!(list(0), (LISTED, LISTED * LEAF_BYTES));
    assert_eq!(list(LISTED * LEAF_BYTES), (LEAVES - LISTED, (LEAVES - LISTED) * LEAF_BYTES));
}

#[test]
fn blocks_of_a_range_that_was_cached_are_read_without_a_job() {
    let (mut world, life, volume) = unstored();
    drop(volume);
    assert!(world.close(life, None, &mut Vec::new()), "a healthy machine");
    let mut life = world.open().expect("it was closed cleanly");
    let volume = life.volumes.open("vol").expect("it is there");
    let mut done = Vec::new();
    life.lanes[0].cache(volume.volume(), (0, 1 << 20), COMPLETION);
    world.drain(&mut life, &mut done);
    assert_eq!(done, [(COMPLETION, Ok(()))]);

    life.lanes[0].read(volume.volume(), BLOCK_SIZE_U64, IoBuffer::allocate(BLOCK_SIZE), COMPLETION);
    life.lanes[0].turn();

    assert_eq!(life.job_count(), 0);
    done.clear();
    world.drain(&mut life, &mut done);
    assert_eq!(done, [(COMPLETION, Ok(()))]);
}

/// Each look at the store is a job that waits for a thread.
#[test]
fn a_walk_looks_up_several_leaves_with_changes_at_once() {
    const LEAVES: u64 = 3;
    const LEAF_BYTES: u64 = LEAF_ENTRIES_U64 * BLOCK_SIZE_U64;
    let mut world = World::new(1, &[16 << 20]);
    let life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(VOLUME, "vol", LEAVES * LEAF_BYTES)).expect("a new volume");
    let volume = life.volumes.open("vol").expect("it is there");
    for leaf in 0..LEAVES {
        let source = IoBuffer::allocate(BLOCK_SIZE);
        life.lanes[0].write(volume.volume(), leaf * LEAF_BYTES, source, false, COMPLETION);
    }
    life.lanes[0].turn();
    life.lanes[0].with_disk(|disk| disk.complete_all(&mut |_| 0));
    life.lanes[0].turn();
    assert_eq!(life.pool.changes().active_count(), LEAVES, "nothing is stored");

    let runs = MapRuns::default();
    let wanted = StatusWanted { mapped: Some(runs.clone()), ..StatusWanted::default() };
    life.lanes[0].list_status(volume.volume(), (0, LEAVES * LEAF_BYTES), wanted, COMPLETION);
    life.lanes[0].turn();
    assert_eq!(life.job_count(), 1);
    life.run_jobs();
    life.lanes[0].turn();

    assert_eq!(life.job_count(), 0, "one look was enough");
    let run = |blocks: u64, is_mapped| MapRun { size_bytes: blocks * BLOCK_SIZE_U64, is_mapped };
    assert_eq!(*runs.borrow(), [run(1, true), run(255, false)].repeat(3));
}
