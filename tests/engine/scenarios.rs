//! Single situations, each written down: what the seeds meet only by chance.

use crate::world::{Life, World, new_snapshot};
use rok_blk::disk::{CrashMode, IoBuffer, OpKind};
use rok_blk::error::{ErrorKind, IoError};
use rok_blk::pool::{Checkpoint, NewClone};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, NewVolume};
use std::sync::Arc;
use uuid::Uuid;

const DEVICE_BYTES: u64 = 48 << 20;

/// A pool with volume "vol0", open.
fn world() -> (World, Life) {
    let mut world = World::new(1, &[DEVICE_BYTES]);
    world.reserve = None;
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(Uuid::from_u128(1), "vol0", 8 << 20)).expect("a new volume");
    life.handles.push(life.volumes.open("vol0").expect("the volume is there"));
    (world, life)
}

/// Writes the second block of the first volume and waits for the answer.
fn write(world: &mut World, life: &mut Life) -> Result<(), IoError> {
    let volume = life.handles[0].volume().clone();
    let completion = Completion { owner: 0, cookie: 1 };
    life.lanes[0].write(&volume, BLOCK_SIZE_U64, IoBuffer::allocate(BLOCK_SIZE), false, completion);
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

/// Blocks of the record, of the data and of the place for the next record, after a power loss that spared all of a
/// batch with one block of data.
fn batch_after_power_loss() -> (World, [u64; 3]) {
    let (mut world, mut life) = world();
    write(&mut world, &mut life).expect("nothing is in the way");
    let writes = world.devices[0].unflushed();
    let (offset, bytes) = writes.last().expect("the write was not flushed");
    assert_eq!(bytes.len(), 2 * BLOCK_SIZE, "a record and a block");
    let record = offset / BLOCK_SIZE_U64;
    drop(life);
    // The highest choice spares everything.
    world.devices[0].crash(CrashMode::PowerLoss, &mut |below| below - 1);
    (world, [record, record + 1, record + 2])
}

#[test]
fn unreadable_sector_behind_the_log_does_not_matter() {
    let (mut world, [_, _, next]) = batch_after_power_loss();
    world.devices[0].bad_block(next + 1);

    let life = world.open().expect("nothing that counts is unreadable");

    assert_eq!(life.pool.recovery().change_count, 1);
    assert!(world.device_counters().bad_block_reads > 0, "the sector was in the way");
}

#[test]
fn unreadable_block_of_a_torn_batch_is_lost_and_nothing_else() {
    let (mut world, [_, data, _]) = batch_after_power_loss();
    world.devices[0].bad_block(data);

    let life = world.open().expect("nothing that counts is unreadable");

    let report = life.pool.recovery();
    assert_eq!((report.record_count, report.change_count, report.lost_block_count), (1, 0, 1));
}

#[test]
fn block_that_is_read_at_the_second_try_is_not_lost() {
    let (mut world, [_, _, next]) = batch_after_power_loss();
    // The long read fails, so that the block is read by itself: behind two headers, the long read and the record.
    world.devices[0].bad_block(next + 1);
    world.devices[0].fail_nth(OpKind::Read, 5);

    let life = world.open().expect("nothing that counts is unreadable");

    assert_eq!(world.device_counters().injected_errors, 1);
    assert_eq!((life.pool.recovery().change_count, life.pool.recovery().lost_block_count), (1, 0));
}

/// What it says may have been flushed: without it nobody knows what is missing.
#[test]
fn unreadable_record_is_refused() {
    for place in [0, 2] {
        let (mut world, blocks) = batch_after_power_loss();
        world.devices[0].bad_block(blocks[place]);

        let error = world.open().err().expect("the log cannot be followed");

        assert_eq!(error.kind(), ErrorKind::Other, "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("nothing was changed")), "{error}");
    }
}

#[test]
fn one_unreadable_header_does_not_matter_and_two_are_named() {
    let (mut world, _) = batch_after_power_loss();
    world.devices[0].bad_block(0);
    drop(world.open().expect("the other copy is there"));

    // Opening has written one of them anew.
    world.devices[0].bad_block(0);
    world.devices[0].bad_block(128);
    let error = world.open().err().expect("no copy is there");

    assert!(error.message().contains("header"), "{error}");
}

/// Who gets an error may write again; nothing of the first request may come behind that.
#[test]
fn error_of_a_write_comes_after_all_of_its_parts() {
    let (mut world, mut life) = world();
    write(&mut world, &mut life).expect("nothing is in the way");
    let (offset, _) = world.devices[0].unflushed().pop().expect("the write was not flushed");
    world.devices[0].bad_block(offset / BLOCK_SIZE_U64 + 1);
    let volume = life.handles[0].volume().clone();
    // A whole block, and a part of the one that cannot be read.
    let source = IoBuffer::allocate(BLOCK_SIZE + 512);
    life.lanes[0].write(&volume, 0, source, false, Completion { owner: 0, cookie: 2 });
    life.lanes[0].turn();
    let complete_oldest = || life.lanes[0].with_disk(|disk| disk.complete_nth(0, &mut |_| 0));
    let mut done = Vec::new();

    // The read of the second block fails, while the first one is being written.
    complete_oldest();
    life.lanes[0].turn();
    life.lanes[0].drain_done(&mut done);
    assert!(done.is_empty(), "the write of the first block is in flight");
    assert_eq!(world.device_counters().bad_block_reads, 1);

    complete_oldest();
    life.lanes[0].turn();
    life.lanes[0].drain_done(&mut done);
    assert_eq!(done.pop().map(|(_, result)| result), Some(Err(IoError::Io)));
}

#[test]
fn a_volume_builds_on_what_it_is_a_clone_of_and_on_nothing_else() {
    let (mut world, mut life) = world();
    write(&mut world, &mut life).expect("nothing is in the way");
    let of = |life: &Life, name: &str| life.volumes.find(name).expect("it is there").id;
    for (name, clone, id) in [("vol0", "clone", 2), ("clone", "of-clone", 3)] {
        let new = new_snapshot(of(&life, name));
        let made = life.volumes.snapshot(vec![new]).expect("there is space").remove(0);
        let new = NewClone {
            id: Uuid::from_u128(id),
            name: clone.to_owned(),
            created_at: 0,
            expires_at: 0,
            labels: Vec::new(),
        };
        life.volumes.clone_snapshot((made.volume, made.number), vec![new]).expect("there is space");
    }
    life.volumes.create(&NewVolume::new(Uuid::from_u128(4), "other", 8 << 20)).expect("a new volume");
    let opened = ["vol0", "clone", "of-clone", "other"].map(|name| life.volumes.open(name).expect("it is there"));
    for (at, one) in opened.iter().enumerate() {
        for (behind, other) in opened.iter().enumerate() {
            let builds_on = at == behind || at < 3 && behind < at;
            assert_eq!(one.volume().builds_on(other.volume()), builds_on, "{at} on {behind}");
        }
    }
}

#[test]
fn a_volume_has_allocated_what_the_last_checkpoint_stored() {
    let (mut world, mut life) = world();
    let allocated = |life: &Life| life.volumes.find("vol0").expect("it is there").allocated_bytes;
    assert_eq!(allocated(&life), 0);

    write(&mut world, &mut life).expect("nothing is in the way");
    world.finish_checkpoint(&mut life);
    Checkpoint::begin(Arc::clone(&life.pool)).run().expect("a healthy machine");

    assert_eq!(allocated(&life), BLOCK_SIZE_U64);
}

/// Who uses it is counted where it is kept open.
#[test]
fn a_version_in_use_stays_so_when_another_volume_is_removed() {
    let (_world, life) = world();
    life.volumes.create(&NewVolume::new(Uuid::from_u128(4), "gone", 8 << 20)).expect("a new volume");
    let made = life.volumes.snapshot(vec![new_snapshot(Uuid::from_u128(1))]).expect("there is space").remove(0);
    let id = (made.volume, made.number);
    let open = life.volumes.open_snapshot(id).expect("it is there");

    life.volumes.remove("gone").expect("nobody has it open");

    assert_eq!(life.volumes.remove_snapshots(&[id]).expect_err("it is in use").kind(), ErrorKind::Busy);
    drop(open);
    life.volumes.remove_snapshots(&[id]).expect("nobody has it open");
}

/// `rok-blk status` shows how many.
#[test]
fn each_read_that_meets_a_damaged_block_is_counted() {
    let (mut world, mut life) = world();
    write(&mut world, &mut life).expect("nothing is in the way");
    let (record, _) = world.devices[0].unflushed().pop().expect("the write was not flushed");
    world.devices[0].flip_bit(record + BLOCK_SIZE_U64, 0);
    let volume = life.handles[0].volume().clone();
    assert_eq!(life.pool.status().damaged_blocks, 0);

    for count in 1..=2 {
        let (target, completion) = (IoBuffer::allocate(BLOCK_SIZE), Completion { owner: 0, cookie: count });
        life.lanes[0].read(&volume, BLOCK_SIZE_U64, target, completion);
        let mut done = Vec::new();
        world.drain(&mut life, &mut done);
        assert_eq!(done, [(completion, Err(IoError::Io))]);
        assert_eq!(life.pool.status().damaged_blocks, count);
    }
}
