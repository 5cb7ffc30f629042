//! Tests of the simulated disk.

use super::content::SECTOR_SIZE;
use super::*;
use crate::disk::{Disk, DiskCompletion, DiskOp, IoBuffer};
use crate::units::{BLOCK_SIZE, DeviceIndex};
use rand::Rng;
use std::collections::BTreeSet;

const BLOCKS: u64 = 64;
const EIO: Option<i32> = Some(libc::EIO);
/// Enough that a behaviour of chance 1 in 8 is missed with a chance far below 1 in 10^9.
const SEEDS: u64 = 300;

fn device() -> SimDevice {
    SimDevice::new("sim-0", BLOCKS * BLOCK_SIZE_U64)
}

fn seeded(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut generator = SmallRng::seed_from_u64(seed);
    move |below| generator.random_range(0..below)
}

fn write_block(device: &SimDevice, block: u64, byte: u8) {
    device.write_at(block * BLOCK_SIZE_U64, &[byte; BLOCK_SIZE]).expect("no fault is set");
}

fn read_block(device: &SimDevice, block: u64) -> Vec<u8> {
    let mut bytes = vec![0xEE; BLOCK_SIZE];
    device.read_at(block * BLOCK_SIZE_U64, &mut bytes).expect("no fault is set");
    bytes
}

/// The different bytes of the block, each sector checked to be of one piece.
fn bytes_of(device: &SimDevice, block: u64) -> BTreeSet<u8> {
    let bytes = read_block(device, block);
    assert!(bytes.chunks_exact(SECTOR_SIZE).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
    bytes.chunks_exact(SECTOR_SIZE).map(|sector| sector[0]).collect()
}

fn write_op(block: u64, byte: u8) -> DiskOp {
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    buffer.with_bytes_mut(|bytes| bytes.fill(byte));
    let offset_bytes = block * BLOCK_SIZE_U64;
    DiskOp::Write { device: DeviceIndex::new(0), offset_bytes, source: buffer.lend_for_device() }
}

fn read_op(block: u64, buffer: &IoBuffer) -> DiskOp {
    let offset_bytes = block * BLOCK_SIZE_U64;
    DiskOp::Read { device: DeviceIndex::new(0), offset_bytes, target: buffer.lend_to_device() }
}

fn flush_op() -> DiskOp {
    DiskOp::Flush { device: DeviceIndex::new(0) }
}

fn lane(device: &SimDevice) -> SimDisk {
    SimDisk::new(vec![device.clone()])
}

fn reap(disk: &mut SimDisk) -> Vec<DiskCompletion> {
    let mut completions = Vec::new();
    disk.reap(&mut completions);
    completions
}

#[test]
fn unwritten_content_reads_as_zeros_and_written_content_reads_back() {
    let device = device();
    write_block(&device, 5, 7);
    assert_eq!(read_block(&device, 5), [7; BLOCK_SIZE]);
    assert_eq!(read_block(&device, 4), [0; BLOCK_SIZE]);
    assert_eq!(read_block(&device, 6), [0; BLOCK_SIZE]);
}

#[test]
fn a_range_behind_the_end_is_refused_by_both_doors() {
    let device = device();
    let mut two_blocks = [0; 2 * BLOCK_SIZE];
    let last = (BLOCKS - 1) * BLOCK_SIZE_U64;
    assert_eq!(device.read_at(last, &mut two_blocks).expect_err("outside").kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(device.write_at(last, &two_blocks).expect_err("outside").kind(), io::ErrorKind::InvalidInput);
    assert_eq!(device.write_at(u64::MAX - 4095, &two_blocks).expect_err("outside").kind(), io::ErrorKind::InvalidInput);

    let mut disk = lane(&device);
    disk.submit(1, write_op(BLOCKS, 1));
    disk.submit(2, read_op(BLOCKS, &IoBuffer::allocate(BLOCK_SIZE)));
    disk.complete_all(&mut seeded(0));
    assert_eq!(reap(&mut disk).iter().filter(|completion| completion.result.is_err()).count(), 2);
    assert_eq!(device.pending_count(), 0);
}

#[test]
#[should_panic(expected = "not whole blocks")]
fn a_part_of_a_block_panics() {
    device().read_at(0, &mut [0; 512]).expect("not reached");
}

#[test]
fn a_queued_write_is_visible_only_when_it_completed() {
    let device = device();
    let mut disk = lane(&device);
    disk.submit(9, write_op(3, 1));
    assert_eq!(disk.in_flight_count(), 1);
    assert!(reap(&mut disk).is_empty());
    assert_eq!(device.pending_count(), 0);

    assert_eq!(disk.complete_nth(0, &mut seeded(0)), 9);
    assert_eq!(disk.in_flight_count(), 0);
    let completions = reap(&mut disk);
    assert_eq!(completions.len(), 1);
    assert_eq!(completions[0].token, 9);
    completions[0].result.as_ref().expect("the write succeeds");
    assert!(reap(&mut disk).is_empty());
    assert_eq!(read_block(&device, 3), [1; BLOCK_SIZE]);
}

#[test]
fn operations_complete_in_the_order_that_the_scheduler_chooses() {
    let device = device();
    let mut disk = lane(&device);
    for byte in 1..=3 {
        disk.submit(u64::from(byte), write_op(0, byte));
    }
    let tokens = [2, 0, 0].map(|index| disk.complete_nth(index, &mut seeded(0)));
    assert_eq!(tokens, [3, 1, 2]);
    assert_eq!(read_block(&device, 0), [2; BLOCK_SIZE]);
}

#[test]
fn a_queued_read_sees_the_newest_write_at_its_completion() {
    let device = device();
    let mut disk = lane(&device);
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    disk.submit(1, read_op(2, &buffer));
    write_block(&device, 2, 8);
    disk.complete_nth(0, &mut seeded(0));
    assert_eq!(buffer.with_bytes(<[u8]>::to_vec), [8; BLOCK_SIZE]);
    assert!(buffer.is_unique());
}

#[test]
fn a_read_over_a_write_in_flight_sees_old_or_new_or_a_mix_of_sectors() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let device = device();
        write_block(&device, 1, 1);
        let mut disk = lane(&device);
        disk.submit(1, write_op(1, 2));
        device.reseed(seed);
        seen.insert(bytes_of(&device, 1));
    }
    assert_eq!(seen, BTreeSet::from([[1].into(), [2].into(), [1, 2].into()]));
}

#[test]
fn a_write_in_flight_forbids_to_change_its_memory() {
    let device = device();
    let mut disk = lane(&device);
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    let source = buffer.lend_for_device();
    disk.submit(1, DiskOp::Write { device: DeviceIndex::new(0), offset_bytes: 0, source });
    assert!(!buffer.is_unique());
    disk.complete_nth(0, &mut seeded(0));
    assert!(buffer.is_unique());
}

#[test]
fn a_flushed_write_survives_power_loss_whole() {
    for seed in 0..SEEDS {
        let device = device();
        write_block(&device, 1, 1);
        device.flush().expect("no fault is set");
        assert_eq!(device.pending_count(), 0);
        device.crash(CrashMode::PowerLoss, &mut seeded(seed));
        assert_eq!(bytes_of(&device, 1), [1].into());
    }
}

#[test]
fn power_loss_keeps_drops_and_tears_what_was_not_flushed() {
    let mut seen = BTreeSet::new();
    let mut sum = SimCounters::default();
    for seed in 0..SEEDS {
        let device = device();
        write_block(&device, 1, 1);
        device.flush().expect("no fault is set");
        write_block(&device, 1, 2);
        device.crash(CrashMode::PowerLoss, &mut seeded(seed));
        let bytes = bytes_of(&device, 1);
        let counters = device.counters();
        assert_eq!(counters.torn_writes, u64::from(bytes.len() == 2));
        assert_eq!(counters.dropped_writes, u64::from(bytes == [1].into()));
        assert_eq!(device.pending_count(), 0);
        seen.insert(bytes);
        sum = sum.plus(counters);
    }
    assert_eq!(seen, BTreeSet::from([[1].into(), [2].into(), [1, 2].into()]));
    assert_eq!(sum.crashes, SEEDS);
}

#[test]
fn an_older_write_may_survive_power_loss_where_the_newer_does_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let device = device();
        write_block(&device, 1, 1);
        write_block(&device, 1, 2);
        device.crash(CrashMode::PowerLoss, &mut seeded(seed));
        seen.insert(bytes_of(&device, 1));
    }
    assert!(seen.contains(&[1].into()));
    assert!(seen.contains(&[2].into()));
    assert!(seen.contains(&[0].into()));
}

#[test]
fn a_write_in_flight_is_kept_dropped_or_torn_by_each_kind_of_crash() {
    for mode in [CrashMode::Kill, CrashMode::KillBeforeWriteback, CrashMode::PowerLoss] {
        let mut seen = BTreeSet::new();
        for seed in 0..SEEDS {
            let device = device();
            let mut disk = lane(&device);
            disk.submit(1, write_op(1, 2));
            device.crash(mode, &mut seeded(seed));
            seen.insert(bytes_of(&device, 1));
        }
        assert_eq!(seen, BTreeSet::from([[0].into(), [2].into(), [0, 2].into()]), "{mode:?}");
    }
}

#[test]
fn writes_in_flight_at_a_crash_have_no_order() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let device = device();
        let mut disk = lane(&device);
        disk.submit(1, write_op(0, 1));
        disk.submit(2, write_op(0, 2));
        device.crash(CrashMode::Kill, &mut seeded(seed));
        let SimCounters { torn_writes, dropped_writes, .. } = device.counters();
        seen.insert((torn_writes + dropped_writes, bytes_of(&device, 0)));
    }
    assert!(seen.contains(&(0, [1].into())));
    assert!(seen.contains(&(0, [2].into())));
}

#[test]
fn a_kill_keeps_completed_writes_for_good() {
    for seed in 0..SEEDS {
        let device = device();
        write_block(&device, 1, 1);
        device.crash(CrashMode::Kill, &mut seeded(seed));
        assert_eq!(device.pending_count(), 0);
        device.crash(CrashMode::PowerLoss, &mut seeded(seed));
        assert_eq!(bytes_of(&device, 1), [1].into());
    }
}

#[test]
fn a_kill_before_writeback_keeps_completed_writes_visible_but_not_durable() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let device = device();
        write_block(&device, 1, 1);
        device.crash(CrashMode::KillBeforeWriteback, &mut seeded(seed));
        assert_eq!(bytes_of(&device, 1), [1].into());
        assert_eq!(device.pending_count(), 1);
        device.crash(CrashMode::PowerLoss, &mut seeded(seed + SEEDS));
        seen.insert(bytes_of(&device, 1));
    }
    assert!(seen.contains(&[0].into()));
    assert!(seen.contains(&[1].into()));
}

#[test]
fn a_flush_covers_what_completed_before_it_was_submitted_and_perhaps_more() {
    let mut survivals = BTreeSet::new();
    for seed in 0..SEEDS {
        let device = device();
        let mut random = seeded(seed);
        let mut disk = lane(&device);
        write_block(&device, 0, 1);
        disk.submit(1, flush_op());
        write_block(&device, 1, 2);
        disk.complete_nth(0, &mut random);
        let left = device.pending_count();
        device.crash(CrashMode::PowerLoss, &mut random);
        assert_eq!(bytes_of(&device, 0), [1].into());
        survivals.insert((left, bytes_of(&device, 1)));
    }
    assert!(survivals.contains(&(0, [2].into())));
    assert!(survivals.contains(&(1, [0].into())));
    assert!(!survivals.contains(&(0, [0].into())));
}

#[test]
fn a_flush_in_flight_makes_nothing_durable_before_its_completion() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let device = device();
        let mut disk = lane(&device);
        write_block(&device, 0, 1);
        disk.submit(1, flush_op());
        device.crash(CrashMode::PowerLoss, &mut seeded(seed));
        seen.insert(bytes_of(&device, 0));
    }
    assert!(seen.contains(&[0].into()));
}

#[test]
fn an_older_write_left_behind_by_a_flush_never_replaces_a_newer_durable_one() {
    let mut left_behind_count = 0;
    for seed in 0..SEEDS {
        let device = device();
        let mut random = seeded(seed);
        let mut disk = lane(&device);
        disk.submit(1, flush_op());
        write_block(&device, 0, 1);
        write_block(&device, 0, 2);
        disk.complete_nth(0, &mut random);
        left_behind_count += device.pending_count();
        device.flush().expect("no fault is set");
        device.crash(CrashMode::PowerLoss, &mut random);
        assert_eq!(bytes_of(&device, 0), [2].into());
    }
    assert!(left_behind_count > 0);
}

#[test]
fn queues_die_with_a_crash_and_new_ones_live() {
    let device = device();
    let mut disk = lane(&device);
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    disk.submit(1, read_op(0, &buffer));
    disk.submit(2, write_op(0, 3));
    disk.complete_nth(1, &mut seeded(0));
    device.crash(CrashMode::Kill, &mut seeded(0));
    assert!(disk.is_dead());
    assert_eq!(disk.in_flight_count(), 0);
    assert!(reap(&mut disk).is_empty());
    disk.submit(3, write_op(1, 4));
    disk.submit(4, flush_op());
    assert_eq!(disk.in_flight_count(), 0);
    device.crash(CrashMode::Kill, &mut seeded(0));
    assert_eq!(read_block(&device, 1), [0; BLOCK_SIZE]);

    let mut next = lane(&device);
    next.submit(5, write_op(1, 5));
    next.complete_all(&mut seeded(0));
    assert_eq!(read_block(&device, 1), [5; BLOCK_SIZE]);
    drop(disk);
    assert!(buffer.is_unique());
}

#[test]
fn a_process_handle_fails_after_a_crash_and_changes_nothing() {
    let device = device();
    let process = device.process_handle();
    write_block(&process, 0, 1);
    device.crash(CrashMode::Kill, &mut seeded(0));
    process.write_at(0, &[2; BLOCK_SIZE]).expect_err("the process is dead");
    process.flush().expect_err("the process is dead");
    process.read_at(0, &mut [0; BLOCK_SIZE]).expect_err("the process is dead");
    assert_eq!(read_block(&device.process_handle(), 0), [1; BLOCK_SIZE]);
}

#[test]
fn the_nth_operation_of_a_kind_fails_once() {
    let device = device();
    device.fail_nth(OpKind::Read, 2);
    let results: Vec<bool> = (0..4).map(|_| device.read_at(0, &mut [0; BLOCK_SIZE]).is_ok()).collect();
    assert_eq!(results, [true, false, true, true]);

    device.fail_nth(OpKind::Write, 1);
    let mut disk = lane(&device);
    disk.submit(1, write_op(0, 1));
    disk.submit(2, write_op(1, 1));
    disk.complete_nth(1, &mut seeded(0));
    disk.complete_nth(0, &mut seeded(0));
    let completions = reap(&mut disk);
    assert_eq!(completions[0].result.as_ref().expect_err("the fault").raw_os_error(), EIO);
    completions[1].result.as_ref().expect("the fault is used up");

    device.fail_nth(OpKind::Flush, 1);
    device.clear_faults();
    device.flush().expect("the fault was taken back");
    assert_eq!(
        device.counters(),
        SimCounters { reads: 4, writes: 2, flushes: 1, injected_errors: 2, ..SimCounters::default() }
    );
}

#[test]
fn a_failed_write_leaves_a_random_subset_of_sectors() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let device = device();
        device.reseed(seed);
        device.fail_nth(OpKind::Write, 1);
        let error = device.write_at(0, &[1; BLOCK_SIZE]).expect_err("the fault");
        assert_eq!(error.raw_os_error(), EIO);
        let bytes = bytes_of(&device, 0);
        device.flush().expect("the fault is used up");
        device.crash(CrashMode::PowerLoss, &mut seeded(seed));
        assert_eq!(bytes_of(&device, 0), bytes);
        seen.insert(bytes);
    }
    assert_eq!(seen, BTreeSet::from([[0].into(), [1].into(), [0, 1].into()]));
}

#[test]
fn a_failed_flush_loses_writes_that_reads_still_see_until_a_crash() {
    let mut lost_count = 0;
    for seed in 0..SEEDS {
        let device = device();
        device.reseed(seed);
        write_block(&device, 0, 1);
        device.fail_nth(OpKind::Flush, 1);
        assert_eq!(device.flush().expect_err("the fault").raw_os_error(), EIO);
        device.flush().expect("the fault is used up, and the success is a lie");
        assert_eq!(bytes_of(&device, 0), [1].into());
        let dropped_count = device.counters().dropped_writes;
        device.crash(CrashMode::PowerLoss, &mut seeded(seed));
        assert_eq!(bytes_of(&device, 0) == [0].into(), dropped_count == 1);
        lost_count += dropped_count;
    }
    assert!(0 < lost_count && lost_count < SEEDS);
}

#[test]
fn a_flipped_bit_stays_through_flush_and_crash() {
    let device = device();
    write_block(&device, 0, 0);
    write_block(&device, 1, 0xFF);
    device.flip_bit(7, 3);
    device.flip_bit(BLOCK_SIZE_U64, 0);
    device.flip_bit(2 * BLOCK_SIZE_U64, 1);
    let check = |device: &SimDevice| {
        assert_eq!(read_block(device, 0)[6..9], [0, 8, 0]);
        assert_eq!(read_block(device, 1)[0..2], [0xFE, 0xFF]);
        assert_eq!(read_block(device, 2)[0..2], [2, 0]);
    };
    check(&device);
    device.flush().expect("no fault is set");
    device.crash(CrashMode::PowerLoss, &mut seeded(0));
    check(&device);
}

#[test]
fn the_digest_depends_on_durable_and_waiting_content() {
    let (one, other) = (device(), device());
    assert_eq!(one.digest(), other.digest());
    write_block(&one, 0, 1);
    assert_ne!(one.digest(), other.digest());
    write_block(&other, 0, 1);
    assert_eq!(one.digest(), other.digest());
    other.flush().expect("no fault is set");
    assert_ne!(one.digest(), other.digest());
    one.flush().expect("no fault is set");
    assert_eq!(one.digest(), other.digest());
    assert_eq!(one.duplicate("copy").digest(), one.digest());

    for device in [&one, &other] {
        write_block(device, 1, 1);
        device.flush().expect("no fault is set");
        write_block(device, 1, 2);
    }
    assert_eq!(one.digest(), other.digest());
    write_block(&other, 1, 3);
    assert_ne!(one.digest(), other.digest(), "what is visible differs");
    for device in [&one, &other] {
        device.discard(BLOCK_SIZE_U64, BLOCK_SIZE_U64).expect("no fault is set");
    }
    assert_eq!(one.digest(), other.digest(), "nothing of it waits any more");
    other.discard(2 * BLOCK_SIZE_U64, BLOCK_SIZE_U64).expect("no fault is set");
    assert_ne!(one.digest(), other.digest(), "not the same is discarded");
}

#[test]
fn the_scan_shows_what_is_durable_overwritten_waiting_and_in_flight() {
    let device = device();
    write_block(&device, 0, 1);
    write_block(&device, 1, 2);
    device.flush().expect("no fault is set");
    write_block(&device, 1, 3);
    write_block(&device, 1, 4);
    let mut disk = lane(&device);
    disk.submit(1, write_op(9, 5));
    let mut seen = BTreeSet::new();
    let mut longest = 0;
    device.scan(|offset_bytes, bytes| {
        longest = longest.max(bytes.len());
        seen.extend(
            bytes.chunks_exact(BLOCK_SIZE).zip(offset_bytes / BLOCK_SIZE_U64..).map(|(chunk, block)| (block, chunk[0])),
        );
    });
    assert_eq!(seen, BTreeSet::from([(0, 1), (1, 2), (1, 3), (1, 4), (9, 5)]));
    assert_eq!(longest, 2 * BLOCK_SIZE, "neighbours come as one run");
    let contents = |block: u64| device.contents_of(block * BLOCK_SIZE_U64);
    let firsts = |block| contents(block).iter().map(|content| content[0]).collect::<Vec<u8>>();
    assert_eq!([0, 1, 8, 9].map(firsts), [vec![1], vec![2, 4, 3], vec![], vec![5]]);
}

#[test]
fn a_bad_block_is_unreadable_until_it_is_written_also_after_a_crash() {
    let device = device();
    write_block(&device, 3, 1);
    device.flush().expect("no fault is set");
    device.bad_block(3);
    device.crash(CrashMode::PowerLoss, &mut seeded(1));
    let mut two_blocks = [0; 2 * BLOCK_SIZE];

    assert!(device.read_at(2 * BLOCK_SIZE_U64, &mut two_blocks).is_err());
    assert!(device.read_at(3 * BLOCK_SIZE_U64, &mut two_blocks).is_err());
    device.read_at(4 * BLOCK_SIZE_U64, &mut two_blocks).expect("the block is not in the range");
    device.read_at(BLOCK_SIZE_U64, &mut two_blocks).expect("the block is not in the range");
    assert_eq!(device.counters().bad_block_reads, 2);
    write_block(&device, 3, 2);
    device.read_at(3 * BLOCK_SIZE_U64, &mut two_blocks).expect("the block was written");
    assert_eq!(two_blocks[0], 2);
}

#[test]
fn the_written_log_remembers_only_while_it_is_on() {
    let device = device();
    write_block(&device, 0, 1);
    assert!(device.take_written_log().is_empty());
    device.set_written_log(true);
    write_block(&device, 3, 2);
    let log = device.take_written_log();
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].offset_bytes, log[0].bytes[0]), (3 * BLOCK_SIZE_U64, 2));
    assert!(device.take_written_log().is_empty());
}

#[test]
fn equal_seeds_give_equal_devices() {
    let run = |seed| {
        let device = device();
        let mut random = seeded(seed);
        let mut hasher = blake3::Hasher::new();
        for round in 0..6 {
            let mut disk = lane(&device);
            for token in 0..40 {
                let byte = u8::try_from(1 + round * 40 + token).expect("at most 240");
                let op = if random(8) == 0 { flush_op() } else { write_op(random(8), byte) };
                disk.submit(token, op);
                let count = u64::try_from(disk.in_flight_count()).expect("small");
                let index = usize::try_from(random(count)).expect("small");
                if random(2) == 0 {
                    disk.complete_nth(index, &mut random);
                }
            }
            device.crash(CrashMode::PowerLoss, &mut random);
            hasher.update(&device.digest());
        }
        (hasher.finalize(), device.counters())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert!(run(1).1.torn_writes > 0);
    assert!(run(1).1.dropped_writes > 0);
}
