//! A pool with two devices.

use crate::world::{Life, World};
use rok_blk::disk::IoBuffer;
use rok_blk::units::BLOCK_SIZE;
use rok_blk::volume::{Completion, NewVolume, OpenVolume};

const MIB: u64 = 1 << 20;

fn begin() -> (World, Life, OpenVolume) {
    let mut world = World::new(1, &[40 * MIB, 24 * MIB]);
    // No checkpoint comes by itself: it would flush too.
    world.limits.changes_soft_max = 100_000;
    world.limits.changes_hard_max = 200_000;
    world.limits.records_soft_max = 100_000;
    let life = world.open().expect("a new pool opens");
    life.volumes.create(&NewVolume::new(uuid::Uuid::from_u128(1), "vol", 64 * MIB)).expect("a new volume");
    let volume = life.volumes.open("vol").expect("it is there");
    (world, life, volume)
}

fn write(world: &mut World, life: &mut Life, volume: &OpenVolume, offset: u64, len: usize) {
    let completion = Completion { owner: 0, cookie: 0 };
    let source = IoBuffer::allocate(len);
    // Zeros would not be counted: the device has them from the start.
    source.with_bytes_mut(|bytes| bytes.fill(7));
    life.lanes[0].write(volume.volume(), offset, source, false, completion);
    settle(world, life);
}

fn flush(world: &mut World, life: &mut Life) {
    life.lanes[0].flush(Completion { owner: 0, cookie: 0 });
    settle(world, life);
}

fn settle(world: &mut World, life: &mut Life) {
    let mut done = Vec::new();
    world.drain(life, &mut done);
    assert!(matches!(done[..], [(_, Ok(()))]), "{done:?}");
}

/// What each device counted.
fn counts(world: &World, count: impl Fn(rok_blk::disk::SimCounters) -> u64) -> Vec<u64> {
    world.devices.iter().map(|device| count(device.counters())).collect()
}

#[test]
fn a_flush_covers_the_devices_that_were_written_and_no_other() {
    let (mut world, mut life, volume) = begin();
    // After an open every device may have something in its cache.
    write(&mut world, &mut life, &volume, 0, BLOCK_SIZE);
    flush(&mut world, &mut life);
    let (writes, flushes) = (counts(&world, |count| count.writes), counts(&world, |count| count.flushes));

    write(&mut world, &mut life, &volume, 0, BLOCK_SIZE);
    flush(&mut world, &mut life);

    let written: Vec<bool> =
        counts(&world, |count| count.writes).iter().zip(&writes).map(|(now, before)| now > before).collect();
    let flushed: Vec<bool> =
        counts(&world, |count| count.flushes).iter().zip(&flushes).map(|(now, before)| now > before).collect();
    assert_eq!(flushed, written);
    assert_eq!(flushed.iter().filter(|is_flushed| **is_flushed).count(), 1, "one small write is on one device");
    flush(&mut world, &mut life);
    assert_eq!(counts(&world, |count| count.flushes).iter().sum::<u64>(), flushes.iter().sum::<u64>() + 1);
}

#[test]
fn writes_are_spread_over_the_devices_by_their_free_space() {
    let (mut world, mut life, volume) = begin();
    let before = bytes_on_devices(&world);

    for index in 0..128 {
        write(&mut world, &mut life, &volume, index * MIB / 4, 1 << 18);
    }

    let after = bytes_on_devices(&world);
    let [first, second] = [0, 1].map(|index| after[index] - before[index]);
    assert!(first > 16 * MIB && second > 8 * MIB, "{first} and {second} of 32 MiB");
}

fn bytes_on_devices(world: &World) -> Vec<u64> {
    let used = world.devices.iter().map(|device| {
        let mut bytes = 0;
        device.scan(|_, found| bytes += found.len() as u64);
        bytes
    });
    used.collect()
}
