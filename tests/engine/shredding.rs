//! A shredding that is cut off at each of its steps, by a power loss behind a failure.

use crate::world::{End, Life, World};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rok_blk::crypto::ShredKey;
use rok_blk::disk::{IoBuffer, OpKind};
use rok_blk::error::{ErrorKind, IoError};
use rok_blk::format::shred_key::ShredKeyCopy;
use rok_blk::units::BLOCK_SIZE;
use rok_blk::volume::{Completion, NewVolume};
use std::collections::BTreeSet;
use uuid::Uuid;

const DEVICE_BYTES: u64 = 16 << 20;
const MIB: u64 = 1 << 20;
/// Of a world that is encrypted.
const SEED: u64 = 0;

/// An encrypted pool with the volumes "gone" and "kept", both with a key of their own and a block of data.
fn world() -> (World, Life) {
    let mut world = World::new(SEED, &[DEVICE_BYTES]);
    world.reserve = None;
    let mut life = world.open().expect("a new pool opens");
    for (number, name) in [(1, "gone"), (2, "kept")] {
        let new = NewVolume::new(Uuid::from_u128(number), name, MIB);
        life.volumes.create_with_own_key(&new, &mut random(number)).expect("a new volume");
        assert_eq!(access(&mut world, &mut life, name, true), Ok(0xaa));
    }
    assert!(world.close_and_keep(&mut life), "nothing fails");
    (world, life)
}

fn random(seed: u128) -> impl FnMut(&mut [u8]) {
    let mut random = SmallRng::seed_from_u64(u64::try_from(seed).expect("small"));
    move |bytes| random.fill(bytes)
}

/// Writes the first block of a volume, or reads it; its first byte.
fn access(world: &mut World, life: &mut Life, name: &str, is_write: bool) -> Result<u8, IoError> {
    let open = life.volumes.open(name).expect("the volume is there");
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    let completion = Completion { owner: 0, cookie: 1 };
    if is_write {
        buffer.with_bytes_mut(|bytes| bytes.fill(0xaa));
        life.lanes[0].write(open.volume(), 0, buffer.clone(), true, completion);
    } else {
        life.lanes[0].read(open.volume(), 0, buffer.clone(), completion);
    }
    let mut done = Vec::new();
    world.drain(life, &mut done);
    done.pop().expect("it is answered").1?;
    Ok(buffer.with_bytes(|bytes| bytes[0]))
}

/// Numbers of the shred keys that are anywhere in their file.
fn shred_keys(world: &World) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    world.shred_key.scan(|_, bytes| {
        for block in bytes.chunks(BLOCK_SIZE) {
            let Ok(copy) = ShredKeyCopy::decode(block) else { continue };
            let key = ShredKey::unwrap(&world.master, (&world.pool_id, copy.number), &copy.wrapped);
            numbers.extend(key.map(|_| copy.number));
        }
    });
    numbers
}

/// What is to fail, and whether the volume is gone behind it.
type Step = (&'static str, fn(&World), bool);

const STEPS: [Step; 5] = [
    ("the new key's write", |world| world.shred_key.fail_nth(OpKind::Write, 1), false),
    ("the new key's flush", |world| world.shred_key.fail_nth(OpKind::Flush, 1), false),
    ("the commit", |world| world.store.fill_after(Some(1)), false),
    ("the old key's write", |world| world.shred_key.fail_nth(OpKind::Write, 2), true),
    ("the old key's flush", |world| world.shred_key.fail_nth(OpKind::Flush, 2), true),
];

#[test]
fn shredding_that_is_cut_off_is_done_or_undone_at_the_next_opening() {
    for (step, fail, is_gone) in STEPS {
        let (mut world, life) = world();
        assert_eq!(shred_keys(&world), BTreeSet::from([1]));
        fail(&world);

        let error = life.volumes.shred("gone", &mut random(3)).expect_err(step);

        assert_eq!(life.volumes.find("gone").is_err(), is_gone, "{step}: {error}");
        world.store.fill_after(None);
        world.clear_faults();
        world.crash(Some(life), End::PowerLoss);
        let mut life = world.open().expect(step);
        assert_eq!(life.volumes.find("gone").is_err(), is_gone, "{step}");
        let left = if is_gone { 2 } else { 1 };
        assert_eq!(shred_keys(&world), BTreeSet::from([left]), "{step}: only the key that counts is left");
        assert_eq!(access(&mut world, &mut life, "kept", false), Ok(0xaa), "{step}");
        if !is_gone {
            assert_eq!(access(&mut world, &mut life, "gone", false), Ok(0xaa), "{step}");
        }
    }
}

/// Where the commit fails, nobody knows whether it is in the store: both keys are kept until the next opening sees.
#[test]
fn shredding_whose_commit_failed_is_decided_by_the_next_opening() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..16 {
        let (mut world, life) = world();
        world.random = SmallRng::seed_from_u64(seed);
        world.store.fail_commit_after(Some(1));

        life.volumes.shred("gone", &mut random(3)).expect_err("its commit fails");

        assert_eq!(shred_keys(&world), BTreeSet::from([1, 2]));
        let refused = life.volumes.shred("kept", &mut random(4)).expect_err("nobody knows which key counts");
        assert_eq!(refused.kind(), ErrorKind::Other);
        let refused = life.pool.scrub_shred_key().expect_err("a scrub does not know either");
        assert_eq!((refused.kind(), shred_keys(&world)), (ErrorKind::Other, BTreeSet::from([1, 2])));
        world.clear_faults();
        world.crash(Some(life), End::PowerLoss);
        let mut life = world.open().expect("one of the two keys counts");
        let is_gone = life.volumes.find("gone").is_err();
        assert_eq!(shred_keys(&world), BTreeSet::from([if is_gone { 2 } else { 1 }]));
        assert_eq!(access(&mut world, &mut life, "kept", false), Ok(0xaa));
        outcomes.insert(is_gone);
    }
    assert_eq!(outcomes.len(), 2, "both happen");
}

#[test]
fn last_shredding_and_last_removal_leave_no_key_behind_the_next_opening() {
    let (mut world, life) = world();
    life.volumes.shred("gone", &mut random(3)).expect("nobody has it open");
    life.volumes.remove("kept").expect("nobody has it open");

    world.crash(Some(life), End::PowerLoss);
    drop(world.open().expect("nothing is wrong"));

    assert_eq!(shred_keys(&world), BTreeSet::new());
}

#[test]
fn pool_without_its_shred_key_is_refused_and_one_damaged_copy_is_written_anew() {
    let (mut world, life) = world();
    world.crash(Some(life), End::Kill);
    for byte in [70, 65_536 + 70] {
        world.shred_key.flip_bit(byte, 0);
    }
    let error = world.open().err().expect("both copies are damaged");
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("shred-key"), "{error}");

    world.shred_key.flip_bit(70, 0);
    drop(world.open().expect("one copy is whole"));

    world.shred_key.flip_bit(70, 0);
    drop(world.open().expect("the other one was written anew"));
}

#[test]
fn copies_of_the_shred_key_that_are_damaged_while_the_pool_is_open_are_written_anew() {
    const COPIES: [u64; 2] = [70, 65_536 + 70];
    /// Of the version: with it a copy seems to be a newer program's.
    const VERSIONS: [u64; 2] = [9, 65_536 + 9];
    let (mut world, life) = world();
    assert_eq!(life.pool.scrub_shred_key().expect("both are right"), 0);
    for damaged in [&COPIES[..1], &COPIES[1..], &COPIES[..], &VERSIONS[..1], &VERSIONS[1..], &VERSIONS[..]] {
        damaged.iter().for_each(|byte| world.shred_key.flip_bit(*byte, 0));
        assert_eq!(life.pool.scrub_shred_key().expect("the key is in memory"), damaged.len());
        assert_eq!(life.pool.scrub_shred_key().expect("both are right again"), 0);
    }
    world.shred_key.flip_bit(COPIES[0], 0);
    world.shred_key.fail_nth(OpKind::Write, 1);
    life.pool.scrub_shred_key().expect_err("its write fails");
    assert_eq!(life.pool.scrub_shred_key().expect("it is written the next time"), 1);

    world.crash(Some(life), End::PowerLoss);
    world.shred_key.flip_bit(COPIES[0], 0);
    let mut life = world.open().expect("the other copy is durable");
    assert_eq!(access(&mut world, &mut life, "kept", false), Ok(0xaa));
    // Behind a shredding it is the new key that counts.
    life.volumes.shred("gone", &mut random(3)).expect("nobody has it open");
    world.shred_key.flip_bit(COPIES[1], 0);
    assert_eq!(life.pool.scrub_shred_key().expect("the key is in memory"), 1);
    assert_eq!(shred_keys(&world), BTreeSet::from([2]));

    // What seems to be a newer program's hides no other copy; where both do, one may have written them.
    world.crash(Some(life), End::PowerLoss);
    world.shred_key.flip_bit(VERSIONS[1], 0);
    drop(world.open().expect("the first copy is right"));
    VERSIONS.iter().for_each(|byte| world.shred_key.flip_bit(*byte, 0));
    let error = world.open().err().expect("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("format version 257"), "{error}");
    world.shred_key.flip_bit(VERSIONS[0], 0);
    drop(world.open().expect("the first copy is right"));
    world.shred_key.flip_bit(VERSIONS[0], 0);
    drop(world.open().expect("the second one was written anew"));
}
