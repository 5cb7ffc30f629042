//! A leaf in `meta/` that cannot be read: what has nothing to do with it goes on.

use crate::world::{End, Life, World, new_snapshot};
use rok_blk::disk::IoBuffer;
use rok_blk::error::{ErrorKind, IoError};
use rok_blk::format::key;
use rok_blk::meta::{MetaRead as _, Table};
use rok_blk::pool::{AddressGroup, Checkpoint, DifferenceKind, NewClone, SpaceLevel, Stretch, Watermarks};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64, DeviceIndex, LEAF_ENTRIES_U64};
use rok_blk::volume::{Completion, NewVolume};
use std::sync::Arc;
use uuid::Uuid;

const DEVICE_BYTES: u64 = 48 << 20;
const COMPLETION: Completion = Completion { owner: 0, cookie: 0 };

fn block_of(byte: u8) -> IoBuffer {
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    buffer.with_bytes_mut(|bytes| bytes.fill(byte));
    buffer
}

pub fn answer(world: &mut World, life: &mut Life) -> Result<(), IoError> {
    let mut done = Vec::new();
    world.drain(life, &mut done);
    done.pop().expect("the request is answered").1
}

pub fn write(world: &mut World, life: &mut Life, name: &str, block: u64, byte: u8) -> Result<(), IoError> {
    let open = life.volumes.open(name).expect("it is there");
    life.lanes[0].write(open.volume(), block * BLOCK_SIZE_U64, block_of(byte), false, COMPLETION);
    answer(world, life)
}

pub fn read(world: &mut World, life: &mut Life, name: &str, block: u64) -> Result<u8, IoError> {
    let open = life.volumes.open(name).expect("it is there");
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    life.lanes[0].read(open.volume(), block * BLOCK_SIZE_U64, buffer.clone(), COMPLETION);
    answer(world, life).map(|()| buffer.with_bytes(|bytes| bytes[BLOCK_SIZE - 1]))
}

/// A clone of what a volume is now.
fn add_clone(life: &Life, volume: u128, (id, name): (u128, &str)) {
    let made = life.volumes.snapshot(vec![new_snapshot(Uuid::from_u128(volume))]).expect("there is space").remove(0);
    let (id, name) = (Uuid::from_u128(id), name.to_owned());
    let new = NewClone { id, name, created_at: 0, expires_at: 0, labels: Vec::new() };
    life.volumes.clone_snapshot((made.volume, made.number), vec![new]).expect("there is space");
}

fn checkpoint(life: &Life) -> Result<(), rok_blk::error::Error> {
    Checkpoint::begin(Arc::clone(&life.pool)).run()
}

/// Volumes "good" and "bad" with two blocks each, and a bit of the leaf of "bad" flipped.
pub fn world() -> (World, Life) {
    world_with(|world, life| {
        for (name, block, byte) in [("bad", 0, 1), ("bad", 1, 2), ("good", 0, 1), ("good", 1, 2)] {
            write(world, life, name, block, byte).expect("nothing is in the way");
        }
    })
}

/// The same with what is written then.
fn world_with(fill: impl FnOnce(&mut World, &mut Life)) -> (World, Life) {
    let mut world = World::new(1, &[DEVICE_BYTES]);
    world.limits.watermarks = Watermarks::new(5, 6).expect("they make sense");
    let mut life = world.open().expect("a new pool opens");
    for (id, name) in [(1, "bad"), (2, "good")] {
        life.volumes.create(&NewVolume::new(Uuid::from_u128(id), name, 8 << 20)).expect("a new volume");
    }
    fill(&mut world, &mut life);
    assert!(world.close(life, None, &mut Vec::new()), "a healthy machine");
    let leaves = world.store.scan(Table::Leaves, &[], &[u8::MAX; 64], 8).expect("a healthy machine");
    let (first_key, value) = leaves.first().expect("there are leaves");
    assert!(world.store.flip_bit(Table::Leaves, first_key, value.len() * 4), "it is there");
    let life = world.open().expect("no change belongs to it");
    (world, life)
}

#[test]
fn pool_with_changes_of_a_damaged_leaf_stops_and_is_read_after_each_opening() {
    let (mut world, mut life) = world();
    assert_eq!(read(&mut world, &mut life, "bad", 0), Err(IoError::Io));
    write(&mut world, &mut life, "bad", 1, 9).expect("the leaf is not looked at");
    checkpoint(&life).expect_err("the leaf cannot be read");

    for _ in 0..2 {
        world.crash(Some(life), End::Kill);
        life = world.open().expect("all else is there");
        assert_eq!(life.pool.check_writable(), Err(IoError::Io));
        assert!(life.pool.status().failure.is_some_and(|reason| reason.contains("damaged")));
        assert_eq!(read(&mut world, &mut life, "good", 0), Ok(1));
        assert_eq!(read(&mut world, &mut life, "good", 1), Ok(2));
        assert_eq!(read(&mut world, &mut life, "bad", 0), Err(IoError::Io));
        assert_eq!(read(&mut world, &mut life, "bad", 1), Ok(9), "it is in the log");
        assert_eq!(write(&mut world, &mut life, "good", 0, 7), Err(IoError::Io));
    }
}

#[test]
fn removed_volume_with_a_damaged_leaf_keeps_its_space_and_nothing_else_from_going_on() {
    let (mut world, mut life) = world();
    life.volumes.remove("bad").expect("the leaf is not looked at");
    life.volumes.create(&NewVolume::new(Uuid::from_u128(3), "next", 8 << 20)).expect("a new volume");
    write(&mut world, &mut life, "next", 0, 5).expect("nothing is in the way");
    checkpoint(&life).expect("it goes on without the leaf");
    life.volumes.remove("next").expect("nothing is in the way");

    for byte in 3..6 {
        checkpoint(&life).expect("it goes on without the leaf");
        let waiting = life.pool.reclaim_block_count();
        assert_eq!(waiting, 2, "the space of what can be read came back");
        write(&mut world, &mut life, "good", 0, byte).expect("the pool goes on");
        world.crash(Some(life), End::Kill);
        life = world.open().expect("it goes on without the leaf");
        assert_eq!(read(&mut world, &mut life, "good", 0), Ok(byte));
    }
}

/// What was written to the clone's origin is in the log alone then, and the tree of the clone has none of it.
#[test]
fn clone_in_a_pool_that_stopped_is_what_its_origin_was() {
    let (mut world, mut life) = world();
    write(&mut world, &mut life, "good", 0, 7).expect("nothing is in the way");
    write(&mut world, &mut life, "bad", 1, 9).expect("the leaf is not looked at");
    add_clone(&life, 2, (3, "clone"));
    assert_eq!(life.pool.changes().active_count(), 2, "nothing is stored");

    world.crash(Some(life), End::Kill);
    life = world.open().expect("all else is there");

    assert_eq!(life.pool.check_writable(), Err(IoError::Io));
    assert_eq!(read(&mut world, &mut life, "good", 0), Ok(7));
    assert_eq!(read(&mut world, &mut life, "clone", 0), Ok(7), "not the 1 that was there before");
}

/// What a clone has of its own, or the log has of it, needs no leaf of its origin.
#[test]
fn clone_in_a_pool_that_stopped_is_read_over_a_damaged_leaf_of_its_origin() {
    let (mut world, mut life) = world_with(|world, life| {
        write(world, life, "bad", 0, 1).expect("nothing is in the way");
        add_clone(life, 1, (3, "clone"));
        write(world, life, "clone", 0, 5).expect("nothing is in the way");
    });
    add_clone(&life, 1, (4, "late"));
    for (name, block, byte) in [("bad", 1, 9), ("clone", 1, 6), ("late", 1, 4)] {
        write(&mut world, &mut life, name, block, byte).expect("no leaf is looked at");
    }

    world.crash(Some(life), End::Kill);
    life = world.open().expect("all else is there");

    assert_eq!(life.pool.check_writable(), Err(IoError::Io));
    for (name, block, content) in [
        ("bad", 0, Err(IoError::Io)),
        ("bad", 1, Ok(9)),
        ("clone", 0, Ok(5)),
        ("clone", 1, Ok(6)),
        ("late", 0, Err(IoError::Io)),
        ("late", 1, Ok(4)),
    ] {
        assert_eq!(read(&mut world, &mut life, name, block), content, "block {block} of {name}");
    }
    let report = life.pool.check().expect("it tells what it finds");
    let damaged = report.differences.iter().filter(|found| found.kind == DifferenceKind::DamagedLeaf).count();
    assert_eq!(damaged, 2, "that leaf, and what is the clone's own in the one over it: {report:?}");
}

/// Each try reports it.
#[test]
fn cleaning_tries_a_damaged_leaf_once_and_moves_what_has_nothing_to_do_with_it() {
    let (mut world, mut life) = world_with(|world, life| {
        // At once, so that they are in one group of addresses; and no neighbours, so that each has an owner of its own.
        for (name, block) in [("bad", 0), ("bad", 2), ("good", 0), ("good", 2)] {
            let open = life.volumes.open(name).expect("it is there");
            life.lanes[0].write(open.volume(), block * BLOCK_SIZE_U64, block_of(7), false, COMPLETION);
        }
        world.drain(life, &mut Vec::new());
    });
    let stretches = (0..3).map(|index| Stretch { device: DeviceIndex::new(0), index });
    let owner_count = |group: &AddressGroup| life.pool.owners_of(*group).expect("a healthy store").len();
    let owned = stretches.flat_map(AddressGroup::of_stretch).map(|group| (group, owner_count(&group)));
    let owned: Vec<(AddressGroup, usize)> = owned.filter(|(_, count)| *count > 0).collect();
    let [(group, 4)] = owned[..] else { panic!("all are in one group: {owned:?}") };
    life.lanes[0].clean(&life.volumes, group, COMPLETION);
    let mut job_count = 0;
    for _ in 0..8 {
        life.lanes[0].turn();
        job_count += life.job_count();
        life.run_jobs();
    }

    assert_eq!(job_count, 3, "the owners, and each leaf once");
    assert_eq!(answer(&mut world, &mut life), Ok(()));
    assert_eq!(life.pool.cleaning_status().moved, 2, "those of the other volume");
}

/// Where a write put a block.
fn write_and_find(world: &mut World, life: &mut Life, block: u64, byte: u8) -> u64 {
    let device = world.devices[0].clone();
    device.set_written_log(true);
    write(world, life, "vol", block, byte).expect("nothing is in the way");
    let ends = device.take_written_log().into_iter().map(|write| write.offset_bytes + write.bytes.len() as u64);
    ends.max().expect("it was written") - BLOCK_SIZE_U64
}

/// A checkpoint says that, and none comes to its end.
#[test]
fn pool_that_stops_while_it_is_opened_says_how_full_it_is() {
    let (mut world, mut life) = world_with(|world, life| {
        for name in ["bad", "good"] {
            let open = life.volumes.open(name).expect("it is there");
            life.lanes[0].write(open.volume(), 0, IoBuffer::allocate(400 * BLOCK_SIZE), false, COMPLETION);
            answer(world, life).expect("there is space");
        }
    });
    write(&mut world, &mut life, "bad", 1, 9).expect("the leaf is not looked at");
    world.crash(Some(life), End::Kill);

    let life = world.open().expect("all else is there");

    assert_eq!(life.pool.check_writable(), Err(IoError::Io));
    assert_eq!(life.pool.space_level(), SpaceLevel::Critical);
}

/// What the log has of a block may be older than what a checkpoint stored that did not end: its newer change is torn.
#[test]
fn block_that_a_cut_off_checkpoint_stored_is_nothing_older_in_a_pool_that_stopped() {
    read_behind_a_cut_off_checkpoint(flush);
}

/// The same where it is of another epoch than what the log has.
#[test]
fn block_that_was_stored_behind_a_snapshot_is_nothing_older_in_a_pool_that_stopped() {
    let (mut world, mut life) = read_behind_a_cut_off_checkpoint(take_snapshot);
    let snapshot = life.volumes.open_snapshot((Uuid::from_u128(1), 1)).expect("it is there");
    for block in [0, LEAF_ENTRIES_U64] {
        let buffer = IoBuffer::allocate(BLOCK_SIZE);
        life.lanes[0].read(snapshot.volume(), block * BLOCK_SIZE_U64, buffer.clone(), COMPLETION);
        answer(&mut world, &mut life).expect("it is in the log");
        assert_eq!(buffer.with_bytes(|bytes| bytes[0]), 5, "it is as it was");
    }
}

/// What was written while it was stored is newer than that, also where the log has older epochs of the block.
#[test]
fn block_that_was_written_behind_the_cut_of_a_cut_off_checkpoint_is_that() {
    for settle in [flush, take_snapshot] {
        let (mut world, stored, _) = cut_off(settle, |world, life, stored| {
            write(world, life, "vol", stored, 7).expect("nothing is in the way");
        });

        let mut life = world.open().expect("all else is there");

        assert_eq!(life.pool.check_writable(), Err(IoError::Io));
        assert_eq!(read(&mut world, &mut life, "vol", stored), Ok(7));
    }
}

fn flush(world: &mut World, life: &mut Life) {
    life.lanes[0].flush(COMPLETION);
    answer(world, life).expect("nothing is in the way");
}

fn take_snapshot(_: &mut World, life: &mut Life) {
    life.volumes.snapshot(vec![new_snapshot(Uuid::from_u128(1))]).expect("there is space");
}

/// What was stored of it is not to be left out because the store could not be read just then.
#[test]
fn pool_that_stops_is_not_opened_where_it_cannot_be_read_what_is_stored() {
    let mut refused = 0;
    for nth in 1..1000 {
        let (mut world, stored, _) = cut_off(flush, |_, _, _| {});
        world.store.fail_read_after(Some(nth));
        let opened = world.open();
        if world.store.fail_read_after(None) {
            assert!(refused > 10, "each read of the opening failed once, {refused} times it was refused");
            return;
        }
        match opened {
            Ok(mut life) => {
                let content = read(&mut world, &mut life, "vol", stored);
                assert_eq!(content, Err(IoError::Io), "read {nth} failed, not the 5 that was there before");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Other, "read {nth}: {error}");
                refused += 1;
            }
        }
    }
    panic!("an opening has not so many reads");
}

fn read_behind_a_cut_off_checkpoint(settle: impl FnOnce(&mut World, &mut Life)) -> (World, Life) {
    let (mut world, stored, other) = cut_off(settle, |_, _, _| {});

    let mut life = world.open().expect("all else is there");

    assert_eq!(life.pool.check_writable(), Err(IoError::Io));
    assert_eq!(read(&mut world, &mut life, "vol", stored), Err(IoError::Io), "not the 5 that was there before");
    assert_eq!(read(&mut world, &mut life, "vol", other), Ok(6));
    (world, life)
}

/// Two blocks hold 5, durably, and then 6. A checkpoint stores the 6 of one of them, the first that is returned, and is cut off;
/// that block rots, and the leaf of the other one.
fn cut_off(
    settle: impl FnOnce(&mut World, &mut Life),
    meanwhile: impl FnOnce(&mut World, &mut Life, u64),
) -> (World, u64, u64) {
    let mut world = World::new(1, &[DEVICE_BYTES]);
    world.limits.leaves_per_batch = 1;
    let mut life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(Uuid::from_u128(1), "vol", 8 << 20)).expect("a new volume");
    let blocks = [0, LEAF_ENTRIES_U64];
    for block in blocks {
        write(&mut world, &mut life, "vol", block, 4).expect("nothing is in the way");
    }
    assert!(world.close(life, None, &mut Vec::new()), "a healthy machine");
    life = world.open().expect("nothing is wrong with it");
    for block in blocks {
        write(&mut world, &mut life, "vol", block, 5).expect("nothing is in the way");
    }
    settle(&mut world, &mut life);
    let places = blocks.map(|block| write_and_find(&mut world, &mut life, block, 6));
    let newest =
        life.pool.with_catalog(|catalog, _| catalog.find("vol").map(|volume| volume.tree)).expect("it is there");
    let newest = life.pool.with_catalog(|catalog, _| catalog.tree(newest).expect("it has one").epoch);
    let leaves = |world: &World| world.store.scan(Table::Leaves, &[], &[u8::MAX; 64], 8).expect("a healthy machine");
    let before = leaves(&world);
    let mut cut_off = Checkpoint::begin(Arc::clone(&life.pool));
    let stored = loop {
        cut_off.step().expect("nothing is in the way");
        let changed = leaves(&world).into_iter().filter(|found| !before.contains(found));
        let mut of_epoch = changed.map(|(key, _)| key::parse_leaf(&key).expect("the key of a leaf"));
        if let Some((_, leaf, _)) = of_epoch.find(|(_, _, epoch)| *epoch == newest) {
            break usize::try_from(leaf.get()).expect("there are two");
        }
    };
    let other = 1 - stored;
    meanwhile(&mut world, &mut life, blocks[stored]);
    world.crash(Some(life), End::Kill);
    world.devices[0].flip_bit(places[stored], 0);
    let is_of_other = |key: &[u8]| key::parse_leaf(key).is_ok_and(|(_, leaf, _)| leaf.get() == other as u64);
    let (key, value) = leaves(&world).into_iter().find(|(key, _)| is_of_other(key)).expect("it was stored long ago");
    assert!(world.store.flip_bit(Table::Leaves, &key, value.len() * 4), "it is there");
    (world, blocks[stored], blocks[other])
}
