//! A lane that is gone with its ring: what it has under way never ends, and with its end the pool fails. Who waits for it
//! must hear of that.

use crate::world::{Life, World, new_snapshot};
use rok_blk::disk::IoBuffer;
use rok_blk::error::{ErrorKind, IoError};
use rok_blk::units::BLOCK_SIZE;
use rok_blk::volume::{Completion, NewVolume};
use std::sync::Arc;
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_u128(1);

/// A pool with volume "vol", open.
fn world(seed: u64) -> (World, Life) {
    let mut world = World::new(seed, &[16 << 20]);
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(VOLUME, "vol", 1 << 20)).expect("a new volume");
    life.handles.push(life.volumes.open("vol").expect("it is there"));
    (world, life)
}

/// Has a lane begin to write the first block; it has no turn behind this one.
fn begin_write(life: &Life, lane: usize) {
    let completion = Completion { owner: 0, cookie: 1 };
    life.lanes[lane].write(life.handles[0].volume(), 0, IoBuffer::allocate(BLOCK_SIZE), false, completion);
    life.lanes[lane].turn();
}

/// Fails the pool while a snapshot waits for the lane; that must end, and let others have its turn.
fn assert_snapshot_ends(life: &Life) {
    let (pool, volumes) = (Arc::clone(&life.pool), Arc::clone(&life.volumes));
    std::thread::scope(|scope| {
        let snapshot = scope.spawn(|| volumes.snapshot(vec![new_snapshot(VOLUME)]));
        while !pool.is_turn_taken() {
            std::thread::yield_now();
        }
        pool.fail("A lane ended".to_owned());
        let error = snapshot.join().expect("it ends").expect_err("what was acknowledged may not be in it");
        assert_eq!(error.kind(), ErrorKind::Other);
    });
    assert!(!pool.is_turn_taken());
}

/// A server ends once its lanes have nothing under way.
#[test]
fn write_that_waits_for_blocks_of_the_lane_fails_and_leaves_its_lane_idle() {
    let (_world, life) = (1..).map(world).find(|(_, life)| life.lanes.len() > 1).expect("most have several lanes");
    begin_write(&life, 0);
    let requests = [BLOCK_SIZE, BLOCK_SIZE / 2].map(IoBuffer::allocate);
    for (source, cookie) in requests.into_iter().zip(2..) {
        life.lanes[1].write(life.handles[0].volume(), 0, source, false, Completion { owner: 0, cookie });
    }
    life.lanes[1].turn();
    assert!(!life.lanes[1].is_idle());

    life.pool.fail("A lane ended".to_owned());
    life.lanes[1].turn();

    let mut done = Vec::new();
    life.lanes[1].drain_done(&mut done);
    let failed = |cookie| (Completion { owner: 0, cookie }, Err(IoError::Io));
    assert_eq!(done, [failed(2), failed(3)]);
    assert!(life.lanes[1].is_idle());
}

/// There is one flush at a time in the pool, and the lane's never ends.
#[test]
fn flush_that_waits_for_one_of_the_lane_fails_and_leaves_its_lane_idle() {
    let (_world, life) = (1..).map(world).find(|(_, life)| life.lanes.len() > 1).expect("most have several lanes");
    begin_write(&life, 0);
    life.lanes[0].with_disk(|disk| disk.complete_all(&mut |_| 0));
    life.lanes[0].turn();
    life.lanes[0].drain_done(&mut Vec::new());
    for (lane, cookie) in [(0, 2), (1, 3)] {
        life.lanes[lane].flush(Completion { owner: 0, cookie });
        life.lanes[lane].turn();
    }
    assert!(life.pool.is_flush_under_way() && !life.lanes[1].is_idle());

    life.pool.fail("A lane ended".to_owned());
    life.lanes[1].turn();

    let mut done = Vec::new();
    life.lanes[1].drain_done(&mut done);
    assert_eq!(done, [(Completion { owner: 0, cookie: 3 }, Err(IoError::Io))]);
    assert!(life.lanes[1].is_idle());
}

#[test]
fn snapshot_that_waits_for_a_write_of_the_lane_fails() {
    let (_world, mut life) = world(1);
    begin_write(&life, 0);

    assert_snapshot_ends(&life);

    // Nor does anything wait that begins later.
    assert!(life.volumes.snapshot(vec![new_snapshot(VOLUME)]).is_err());
    life.handles.clear();
    assert!(life.volumes.remove("vol").is_err());
}

#[test]
fn snapshot_that_waits_for_what_the_lane_was_to_try_again_fails() {
    let (_world, life) = world(1);
    let frozen = life.volumes.freeze(&[VOLUME]).expect("nobody else holds it back");
    begin_write(&life, 0);
    drop(frozen);

    assert_snapshot_ends(&life);
}
