//! Rot and tampering, one change at a time: what is read of the pool is as before, or an error, and nothing panics.
//!
//! `ROK_FLIPS=65536` makes so many changes, `ROK_FIRST_FLIP` says where they begin: a number names one change of one pool.

use crate::setting;
use crate::world::{End, Life, World};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rok_blk::disk::{IoBuffer, SimDevice};
use rok_blk::error::{ErrorKind, IoError};
use rok_blk::format::snapshot::Annotations;
use rok_blk::meta::{Durability, MetaOp, MetaRead as _, MetaStore as _, Table};
use rok_blk::pool::{NewClone, NewSnapshot};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64, to_usize};
use rok_blk::volume::{Completion, NewVolume, OpenVolume};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

const FLIPS: u64 = 2_000;
const DEVICE_BYTES: u64 = 16 << 20;
/// Two leaves and a part of a third.
const VOLUME_BLOCKS: u64 = 600;
const COMPLETION: Completion = Completion { owner: 0, cookie: 0 };
/// Pools of different settings that the changes are spread over.
const POOLS: u64 = 16;
const REFERENCES: [&str; 4] = ["vol", "vol@1", "vol@2", "clone"];

/// What a block may hold: its value, and behind it those before, back to the one that a checkpoint stored. A damaged record of
/// the last ones is taken for one that a crash tore, since nothing that was written later says that it was complete.
type Values = Vec<u8>;
/// What each reference may hold where it is not zeros.
type Content = BTreeMap<&'static str, BTreeMap<u64, Values>>;

/// A pool with what there can be in one, and how it ended.
struct Sample {
    world: World,
    content: Content,
}

impl Sample {
    fn new(number: u64) -> Self {
        let mut world = World::new(number, &[DEVICE_BYTES]);
        let mut random = SmallRng::seed_from_u64(number);
        let mut life = world.open().expect("a new pool opens");
        life.volumes.create(&NewVolume::new(Uuid::from_u128(1), "vol", VOLUME_BLOCKS * BLOCK_SIZE_U64)).expect("new");
        let mut content = Content::new();
        let mut head = BTreeMap::new();
        for snapshot in 1..=2_u64 {
            write_some(&mut world, &mut life, "vol", &mut head, &mut random);
            take_snapshot(&life, snapshot);
            content.insert(REFERENCES[to_usize(snapshot)], head.clone());
        }
        let clone =
            NewClone { id: Uuid::from_u128(9), name: "clone".into(), created_at: 0, expires_at: 0, labels: Vec::new() };
        life.volumes.clone_snapshot((Uuid::from_u128(1), 1), vec![clone]).expect("a new name");
        let mut of_clone = content["vol@1"].clone();
        // Some of it is stored, and some in the log only.
        for is_stored in [true, true, false] {
            for values in head.values_mut().chain(of_clone.values_mut()) {
                values.truncate(1);
            }
            write_some(&mut world, &mut life, "vol", &mut head, &mut random);
            write_some(&mut world, &mut life, "clone", &mut of_clone, &mut random);
            if is_stored {
                // One that has begun stores what there was then.
                world.finish_checkpoint(&mut life);
                world.checkpoint(&mut life).expect("a healthy machine");
            }
        }
        if number.is_multiple_of(4) {
            for values in head.values_mut().chain(of_clone.values_mut()) {
                values.truncate(1);
            }
        }
        content.insert("vol", head);
        content.insert("clone", of_clone);
        if number.is_multiple_of(4) {
            assert!(world.close(life, None, &mut Vec::new()), "a healthy machine");
        } else {
            world.crash(Some(life), End::Kill);
        }
        Self { world, content }
    }

    /// Compares all that can be read; returns the blocks that cannot, and those that hold an older value.
    fn compare(&mut self, life: &mut Life) -> Result<(u64, u64), String> {
        let (mut unreadable, mut older) = (0, 0);
        for (reference, wanted) in &self.content {
            let open = match life.volumes.open_reference(reference) {
                Ok(open) => open,
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(format!("{reference} is gone")),
                Err(_) => {
                    unreadable += VOLUME_BLOCKS;
                    continue;
                }
            };
            let mut compare = |block: u64, bytes: &[u8]| {
                let values = wanted.get(&block).map_or(&[0][..], Vec::as_slice);
                let found = values.iter().position(|value| bytes.iter().all(|byte| byte == value));
                let found = found
                    .ok_or_else(|| format!("block {block} of {reference} is {} and none of {values:?}", bytes[0]))?;
                older += u64::from(found > 0);
                Ok::<_, String>(())
            };
            if let Ok(bytes) = read(&mut self.world, life, &open, (0, VOLUME_BLOCKS)) {
                let mut blocks = (0..).zip(bytes.chunks(BLOCK_SIZE));
                blocks.try_for_each(|(block, bytes)| compare(block, bytes))?;
                continue;
            }
            for block in 0..VOLUME_BLOCKS {
                match read(&mut self.world, life, &open, (block, 1)) {
                    Ok(bytes) => compare(block, &bytes)?,
                    Err(_) => unreadable += 1,
                }
            }
        }
        Ok((unreadable, older))
    }
}

fn write_some(
    world: &mut World,
    life: &mut Life,
    name: &str,
    values: &mut BTreeMap<u64, Values>,
    random: &mut SmallRng,
) {
    let open = life.volumes.open(name).expect("it is there");
    let mut done = Vec::new();
    for _ in 0..random.random_range(3..8) {
        let count = random.random_range(1..5);
        let block = random.random_range(0..VOLUME_BLOCKS - count);
        let value = random.random_range(1..=u8::MAX);
        let buffer = IoBuffer::allocate(to_usize(count) * BLOCK_SIZE);
        buffer.with_bytes_mut(|bytes| bytes.fill(value));
        life.lanes[0].write(open.volume(), block * BLOCK_SIZE_U64, buffer, false, COMPLETION);
        for block in block..block + count {
            values.entry(block).or_insert_with(|| vec![0]).insert(0, value);
        }
        world.drain(life, &mut done);
    }
    assert!(done.iter().all(|(_, result)| result.is_ok()), "nothing is in the way");
}

fn take_snapshot(life: &Life, number: u64) {
    let new = NewSnapshot {
        id: Uuid::from_u128(100 + u128::from(number)),
        volume: Uuid::from_u128(1),
        created_at_ms: 0,
        time_ms: 0,
        expires_at: 0,
        annotations: Annotations::default(),
    };
    let made = life.volumes.snapshot(vec![new]).expect("nothing is in the way");
    assert_eq!(made[0].number, number);
}

fn read(world: &mut World, life: &mut Life, open: &OpenVolume, (block, count): (u64, u64)) -> Result<Vec<u8>, IoError> {
    let buffer = IoBuffer::allocate(to_usize(count) * BLOCK_SIZE);
    life.lanes[0].read(open.volume(), block * BLOCK_SIZE_U64, buffer.clone(), COMPLETION);
    let mut done = Vec::new();
    world.drain(life, &mut done);
    done.pop().expect("the request is answered").1.map(|()| buffer.with_bytes(<[u8]>::to_vec))
}

/// A place that something is stored at.
#[derive(Clone, Debug)]
enum Place {
    Device { offset_bytes: u64, len_bytes: usize },
    ShredKey { len_bytes: usize },
    Value { table: Table, key: Vec<u8>, len_bytes: usize },
}

/// All places, by kind: the device's headers, the rest of it, the file of the shred key, and each table.
fn places(world: &World) -> Vec<Vec<Place>> {
    let (mut headers, mut others, mut shred_key) = (Vec::new(), Vec::new(), Vec::new());
    world.devices[0].scan(|offset_bytes, bytes| {
        let is_header = offset_bytes < BLOCK_SIZE_U64 || offset_bytes / BLOCK_SIZE_U64 == 128;
        let kind = if is_header { &mut headers } else { &mut others };
        kind.push(Place::Device { offset_bytes, len_bytes: bytes.len() });
    });
    world.shred_key.scan(|_, bytes| shred_key.push(Place::ShredKey { len_bytes: bytes.len() }));
    let of_table = |table: Table| {
        let found = world.store.scan(table, &[], &[u8::MAX; 64], usize::MAX).expect("a healthy machine");
        found.into_iter().map(|(key, value)| Place::Value { table, key, len_bytes: value.len() }).collect::<Vec<_>>()
    };
    let mut kinds = vec![headers, others, shred_key];
    kinds.extend(Table::ALL.map(of_table));
    kinds.retain(|kind| !kind.is_empty());
    kinds
}

/// Changes something, and says what.
fn tamper(world: &World, random: &mut SmallRng) -> String {
    let kinds = places(world);
    let kind = &kinds[random.random_range(0..kinds.len())];
    let place = kind[random.random_range(0..kind.len())].clone();
    let other = kind[random.random_range(0..kind.len())].clone();
    match (&place, &other) {
        (Place::Value { table, key, .. }, Place::Value { key: other_key, .. }) if random.random_bool(0.2) => {
            swap_values(world, *table, key, other_key);
        }
        (Place::Device { offset_bytes, .. }, Place::Device { offset_bytes: other_bytes, .. })
            if random.random_bool(0.2) =>
        {
            swap_blocks(&world.devices[0], *offset_bytes, *other_bytes);
        }
        (Place::Device { offset_bytes, len_bytes }, _) => {
            let byte = random.random_range(0..*len_bytes) as u64;
            world.devices[0].flip_bit(offset_bytes + byte, random.random_range(0..8));
            return format!("a bit of byte {byte} of {place:?}");
        }
        (Place::ShredKey { len_bytes }, _) => {
            world.shred_key.flip_bit(random.random_range(0..*len_bytes) as u64, random.random_range(0..8));
        }
        (Place::Value { table, key, len_bytes }, _) => {
            let bit = random.random_range(0..len_bytes.max(&1) * 8);
            let _has_bits = world.store.flip_bit(*table, key, bit);
            return format!("bit {bit} of {place:?}");
        }
    }
    format!("{place:?} with {other:?}")
}

fn swap_values(world: &World, table: Table, key: &[u8], other_key: &[u8]) {
    let value = |key: &[u8]| world.store.get(table, key).expect("a healthy machine").expect("it is there");
    let swapped =
        [MetaOp::Put(table, key.to_vec(), value(other_key)), MetaOp::Put(table, other_key.to_vec(), value(key))];
    world.store.commit(&swapped, Durability::Synced).expect("a healthy machine");
}

fn swap_blocks(device: &SimDevice, offset_bytes: u64, other_bytes: u64) {
    let read = |offset: u64| {
        let mut bytes = vec![0; BLOCK_SIZE];
        rok_blk::disk::Device::read_at(device, offset, &mut bytes).expect("a healthy machine");
        bytes
    };
    let (one, other) = (read(offset_bytes), read(other_bytes));
    let write = |offset, bytes: &[u8]| rok_blk::disk::Device::write_at(device, offset, bytes);
    write(offset_bytes, &other).and_then(|()| write(other_bytes, &one)).expect("a healthy machine");
    rok_blk::disk::Device::flush(device).expect("a healthy machine");
}

/// What a change came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// The pool is not opened.
    Refused,
    /// Blocks are errors.
    Unreadable,
    /// Blocks hold what they held before the last writes.
    Older,
    /// All is read as before.
    Nothing,
}

fn check(number: u64) -> Result<Found, String> {
    let mut sample = Sample::new(number % POOLS);
    let suite = sample.world.suite;
    let changed = tamper(&sample.world, &mut SmallRng::seed_from_u64(number));
    let looked = catch_unwind(AssertUnwindSafe(|| {
        let Ok(mut life) = sample.world.open() else { return Ok(Found::Refused) };
        let before = sample.compare(&mut life)?;
        // It may find the damage and stop the pool.
        let _is_stored = sample.world.checkpoint(&mut life).is_ok();
        let after = sample.compare(&mut life)?;
        Ok(match (before.0 + after.0, before.1 + after.1) {
            (0, 0) => Found::Nothing,
            (0, _) => Found::Older,
            _ => Found::Unreadable,
        })
    }));
    let told = |what: String| format!("change {number}, {suite:?}, {changed}: {what}");
    looked.map_err(|_| told("a panic".into()))?.map_err(told)
}

#[test]
fn samples_read_back_what_they_hold() {
    for number in 0..POOLS {
        let mut sample = Sample::new(number);
        let mut life = sample.world.open().expect("nothing was changed");
        assert_eq!(sample.compare(&mut life), Ok((0, 0)));
        assert!(places(&sample.world).len() >= 8, "headers, data and most tables");
    }
}

#[test]
fn no_changed_bit_or_swapped_block_gives_wrong_data() {
    let (first, count) = (setting("ROK_FIRST_FLIP", 0), setting("ROK_FLIPS", FLIPS));
    let next = AtomicU64::new(first);
    let counts = [const { AtomicU64::new(0) }; 4];
    let failures = parking_lot::Mutex::new(Vec::new());
    crate::in_threads(|| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= first + count {
                return;
            }
            match check(number) {
                Ok(found) => drop(counts[found as usize].fetch_add(1, Ordering::Relaxed)),
                Err(failure) => failures.lock().push(failure),
            }
        }
    });
    let [refused, unreadable, older, nothing] = counts.map(AtomicU64::into_inner);
    println!(
        "{count} changes from {first}: {refused} pools refused, {unreadable} with blocks that are errors, \
         {older} without the last writes, {nothing} without effect"
    );
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "{} wrong: {:#?}", failures.len(), failures.iter().take(10).collect::<Vec<_>>());
    if count >= FLIPS {
        assert!(refused > 0 && unreadable > 0 && nothing > 0, "each of these happens");
    }
}
