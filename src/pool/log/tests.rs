//! What a log takes into a batch, when it closes one, and which blocks it takes for it.

use super::*;
use crate::pool::tests::Place;
use crate::units::{Address, BlockIndex, DeviceIndex, Epoch, KeyGeneration, Sequence, TreeId};

/// Lanes of the pool, each with a mark in every record.
const MARKS: usize = 1;

/// A lane in holes: a home of `home_count` blocks, and holes of `hole_count` blocks.
fn log_in_holes(home_count: u64, hole_count: u64) -> Log {
    let home = AddressRun { start: Address::new(DeviceIndex::new(0), 1000), count: home_count };
    let mut log = Log::new(LaneIndex::new(0), Placement::Holes, home, MARKS);
    let hole = |index| AddressRun {
        start: Address::new(DeviceIndex::new(0), 2000 + (hole_count + 1) * index),
        count: hole_count,
    };
    log.window = (0..to_u64(BATCH_BLOCKS_MAX) + 1).map(hole).collect();
    log
}

/// A batch of single blocks that are nobody's neighbours.
fn scattered(block_count: usize) -> Record {
    let run = WriteRun {
        tree: TreeId::new(1),
        epoch: Epoch::new(1),
        block: BlockIndex::new(1),
        sequence: Sequence::new(1),
        count: 1,
        generation: KeyGeneration::new(1),
    };
    let empty = empty_record(Address::new(DeviceIndex::new(0), 0));
    Record { runs: vec![run; block_count], macs: vec![0; block_count], ..empty }
}

#[test]
fn record_has_the_blocks_that_its_segments_need_in_every_home() {
    for (home_count, hole_count) in (2..=6).flat_map(|home| (1..=3).map(move |hole| (home, hole))) {
        // As many as fit in a record that has the home to itself.
        let capacity = blocks_to_bytes(RECORD_BLOCKS_MAX.min(to_usize(home_count))) - RECORD_HEAD_BYTES;
        let fits = |count: &usize| body_bytes(MARKS, *count, *count, *count + 1, 0) <= capacity;
        for block_count in (1..=BATCH_BLOCKS_MAX).take_while(fits) {
            let mut log = log_in_holes(home_count, hole_count);
            let mut record = scattered(block_count);
            let (record_blocks, is_home_skipped) = log.record_blocks(&record);
            let record_run = AddressRun { start: log.home.start, count: to_u64(record_blocks) };
            log.take_segments(record_run, &mut record, is_home_skipped);
            let segments = record.segments;
            let needed = blocks_for_body(body_bytes(MARKS, block_count, block_count, segments.len(), 0));
            assert_eq!(record_blocks, needed, "{block_count} blocks, home of {home_count}, holes of {hole_count}");
            assert_eq!(segments.iter().map(|segment| segment.count).sum::<u64>(), to_u64(block_count));
            let free = log.home.count + log.window_count();
            let before = home_count + hole_count * (to_u64(BATCH_BLOCKS_MAX) + 1);
            assert_eq!(free + to_u64(record_blocks + block_count), before, "no block is lost");
        }
    }
}

fn at(block: u64) -> Address {
    Address::new(DeviceIndex::new(0), block)
}

fn free_count(pool: &Pool) -> u64 {
    pool.space.lock().free_count()
}

/// A lane with these runs of blocks, the first of which is its home.
fn log_in(runs: &[(u64, u64)]) -> Log {
    let mut runs = runs.iter().map(|(start, count)| AddressRun { start: at(*start), count: *count });
    let home = runs.next().expect("a home");
    let mut log = Log::new(LaneIndex::new(0), Placement::Runs, home, MARKS);
    log.window = runs.collect();
    log
}

/// A lane that never needs more room.
fn roomy() -> Log {
    log_in(&[(1000, 100_000)])
}

fn run_of(block: u64, count: usize) -> WriteRun {
    WriteRun {
        tree: TreeId::new(1),
        epoch: Epoch::new(1),
        block: BlockIndex::new(block),
        sequence: Sequence::new(1),
        count: u32::try_from(count).expect("a run has at most 256 blocks"),
        generation: KeyGeneration::new(1),
    }
}

fn append(log: &mut Log, count: usize) {
    log.append_run(run_of(0, count), 7, |index, block| {
        block.fill(1);
        to_u64(index)
    });
}

fn removal(block: u64) -> Removal {
    let (tree, epoch, sequence) = (TreeId::new(1), Epoch::new(1), Sequence::new(1));
    Removal { tree, epoch, block: BlockIndex::new(block), count: 1, sequence }
}

/// Closes a batch of so many blocks, whose writes are under way from then on.
fn fly(log: &mut Log, pool: &Pool, count: usize) -> (ChainSequence, Vec<BatchWrite>) {
    append(log, count);
    let mut writes = Vec::new();
    (log.close(pool, &mut writes), writes)
}

fn land(log: &mut Log, (chain, writes): &(ChainSequence, Vec<BatchWrite>)) {
    writes.iter().for_each(|_| log.write_done(*chain));
}

#[test]
fn batch_takes_single_blocks_until_its_record_could_not_name_one_more() {
    let pool = Place::new().open();
    for (home_count, hole_count) in (2..=10).flat_map(|home| [1, 2, 5].map(move |hole| (home, hole))) {
        let mut log = log_in_holes(home_count, hole_count);
        let record_blocks = RECORD_BLOCKS_MAX.min(to_usize(home_count));
        let capacity = blocks_to_bytes(record_blocks) - RECORD_HEAD_BYTES;
        // The worst case: the record takes all that it may of the home, and each block elsewhere is alone.
        let needed = |count: usize| {
            let segments = 1 + count.saturating_sub(to_usize(home_count) - record_blocks);
            body_bytes(MARKS, count, count, segments, 0)
        };
        let mut taken = 0;
        while let Ok(room) = log.room_for_blocks(&pool, 1, 0) {
            assert_eq!(room, 1);
            append(&mut log, 1);
            taken += 1;
            assert!(needed(taken) < capacity, "{taken} blocks, home of {home_count}, holes of {hole_count}");
            // Among few blocks in flight it would be closed before.
            if taken == EARLY_BATCH_BLOCKS {
                break;
            }
        }
        assert!(taken == EARLY_BATCH_BLOCKS || needed(taken + 1) >= capacity, "{taken} blocks, home of {home_count}");
        let mut writes = Vec::new();
        log.close(&pool, &mut writes);
        assert!(log.reserved_runs().iter().all(|run| run.count > 0), "a run that is used up is none");
        let batch = &log.flying[0].batch;
        let segments = batch.record.segments.iter().map(|segment| segment.count).sum::<u64>();
        assert_eq!((batch.record.macs.len(), segments), (taken, to_u64(taken)));
    }
}

#[test]
fn room_is_what_was_wanted_as_far_as_batch_window_and_record_allow() {
    let pool = Place::new().open();
    // While the device has little to do a batch is a quarter of the largest.
    let mut log = roomy();
    assert_eq!(log.room_for_blocks(&pool, 5, 0), Ok(5));
    assert_eq!(log.room_for_blocks(&pool, 500, 0), Ok(EARLY_BATCH_BLOCKS));
    append(&mut log, 60);
    assert_eq!(log.room_for_blocks(&pool, 500, 0), Ok(EARLY_BATCH_BLOCKS - 60));
    append(&mut log, EARLY_BATCH_BLOCKS - 60);
    assert_eq!(log.room_for_blocks(&pool, 1, 0), Err(Refusal::Full));
    // With more in flight it may be the largest.
    let mut log = roomy();
    fly(&mut log, &pool, EARLY_FLYING_BLOCKS - 1);
    assert_eq!(log.room_for_blocks(&pool, 500, 0), Ok(EARLY_BATCH_BLOCKS));
    fly(&mut log, &pool, 1);
    assert_eq!(log.room_for_blocks(&pool, 500, 0), Ok(BATCH_BLOCKS_MAX));
    append(&mut log, 250);
    assert_eq!(log.room_for_blocks(&pool, 500, 0), Ok(BATCH_BLOCKS_MAX - 250));
    // A window with no runs left to reserve: the record, the data, and a block for the next record.
    let holes: Vec<(u64, u64)> = (0..=to_u64(WINDOW_RUNS_MAX)).map(|index| (1000 + 10 * index, 1)).collect();
    let mut log = log_in(&holes);
    assert_eq!(log.room_for_blocks(&pool, 500, 0), Ok(EARLY_BATCH_BLOCKS));
    fly(&mut log, &pool, 60);
    assert_eq!(log.room_for_blocks(&pool, 500, 0).map_err(|_| ()), Ok(EARLY_BATCH_BLOCKS));
    // In a record of one block many blocks have room while they are in one run.
    let mut log = roomy();
    fly(&mut log, &pool, EARLY_FLYING_BLOCKS);
    log.home = AddressRun { start: at(1000), count: 1 };
    log.window = vec![AddressRun { start: at(2000), count: 4000 }];
    assert_eq!(log.room_for_blocks(&pool, 250, 0), Ok(250));
    // Where each has a segment of its own, more are wanted than it can name.
    let holes: Vec<(u64, u64)> = (0..500).map(|index| (1000 + 10 * index, 1)).collect();
    let mut log = log_in(&holes);
    (0..4).for_each(|_| drop(fly(&mut log, &pool, EARLY_FLYING_BLOCKS / 4)));
    for taken in 0..40 {
        let left = blocks_to_bytes(1) - RECORD_HEAD_BYTES - body_bytes(MARKS, taken + 1, taken, taken + 1, 0);
        assert_eq!(log.room_for_blocks(&pool, 250, 0), Ok(left / (MAC_BYTES + SEGMENT_BYTES)), "{taken} blocks");
        append(&mut log, 1);
    }
}

#[test]
fn removals_have_what_the_record_has_left() {
    let pool = Place::new().open();
    for home_count in 2..=10 {
        let mut log = log_in(&[(1000, home_count), (2000, 300)]);
        let record_blocks = RECORD_BLOCKS_MAX.min(to_usize(home_count));
        let left = blocks_to_bytes(record_blocks) - RECORD_HEAD_BYTES - body_bytes(MARKS, 0, 0, 1, 0);
        assert_eq!(log.room_for_removals(&pool, 0), Ok(left / REMOVAL_BYTES), "home of {home_count}");
        log.append_removals(&[removal(1), removal(2), removal(3)], 7);
        let left = left - 3 * REMOVAL_BYTES;
        assert_eq!(log.room_for_removals(&pool, 0), Ok(left / REMOVAL_BYTES), "home of {home_count}");
        append(&mut log, 1);
        let left = blocks_to_bytes(record_blocks) - RECORD_HEAD_BYTES - body_bytes(MARKS, 1, 1, 1, 3);
        let elsewhere = usize::from(to_usize(home_count) == record_blocks);
        let left = left - elsewhere * SEGMENT_BYTES;
        assert_eq!(log.room_for_removals(&pool, 0), Ok(left / REMOVAL_BYTES), "home of {home_count}");
        // Until they do not fit.
        let room = left / REMOVAL_BYTES;
        log.append_removals(&vec![removal(9); room], 7);
        assert_eq!(log.room_for_removals(&pool, 0), Err(Refusal::Full));
        let mut writes = Vec::new();
        log.close(&pool, &mut writes);
        assert_eq!(log.flying[0].batch.record.removals.len(), room + 3);
        assert_eq!(log.flying[0].batch.record_run.count, to_u64(record_blocks));
    }
}

#[test]
fn a_batch_acknowledges_no_more_than_so_many_parts() {
    let pool = Place::new().open();
    let mut log = roomy();
    for _ in 1..PARTS_MAX {
        log.append_removals(&[], 7);
    }
    assert!(log.room_for_removals(&pool, 0).is_ok() && log.room_for_blocks(&pool, 1, 0).is_ok());
    log.append_removals(&[], 7);
    assert_eq!(log.room_for_removals(&pool, 0), Err(Refusal::Full));
    assert_eq!(log.room_for_blocks(&pool, 1, 0), Err(Refusal::Full));
}

#[test]
fn window_is_filled_up_when_the_batch_and_the_next_home_might_not_fit() {
    let pool = Place::new().open();
    let before = free_count(&pool);
    // The largest record, what is open, what is wanted, and a block for the next record.
    let enough = to_u64(RECORD_BLOCKS_MAX + 3 + 4 + 1);
    let mut log = log_in(&[(100_000, 10), (200_000, enough - 10 + 1)]);
    append(&mut log, 3);
    assert_eq!(log.room_for_blocks(&pool, 4, 0), Ok(4));
    assert_eq!(free_count(&pool), before);
    let mut log = log_in(&[(100_000, 10), (200_000, enough - 10)]);
    append(&mut log, 3);
    assert_eq!(log.room_for_blocks(&pool, 4, 0), Ok(4));
    assert!(free_count(&pool) < before && log.window.len() > 1);
    // No more than a full batch takes, whatever is wanted.
    let before = free_count(&pool);
    let mut log = log_in(&[(100_000, FULL_BATCH_BLOCKS + 1)]);
    append(&mut log, EARLY_BATCH_BLOCKS - 1);
    assert_eq!(log.room_for_blocks(&pool, 4000, 0), Ok(1));
    assert_eq!(free_count(&pool), before);
    let mut log = log_in(&[(100_000, FULL_BATCH_BLOCKS)]);
    append(&mut log, EARLY_BATCH_BLOCKS - 1);
    assert_eq!(log.room_for_blocks(&pool, 4000, 0), Ok(1));
    assert!(free_count(&pool) < before);
    // Nor more than so many runs.
    let holes = |count: usize| (0..to_u64(count) + 1).map(|index| (100_000 + 10 * index, 1)).collect::<Vec<_>>();
    let before = free_count(&pool);
    let mut log = log_in(&holes(WINDOW_RUNS_MAX));
    _ = log.room_for_blocks(&pool, 200, 0);
    assert_eq!(free_count(&pool), before);
    let mut log = log_in(&holes(WINDOW_RUNS_MAX - 1));
    _ = log.room_for_blocks(&pool, 200, 0);
    assert!(free_count(&pool) < before);
}

#[test]
fn what_has_no_room_waits_for_the_open_batch_and_then_for_space() {
    let pool = Place::new().open();
    let no_more = free_count(&pool);
    // A record, a block and the next home are three.
    let mut log = log_in(&[(1000, 1), (2000, 1)]);
    assert_eq!(log.room_for_blocks(&pool, 1, no_more), Err(Refusal::NoSpace));
    assert_eq!(log.room_for_removals(&pool, no_more).map(|room| room > 0), Ok(true));
    log.append_removals(&[removal(1)], 7);
    assert_eq!(log.room_for_blocks(&pool, 1, no_more), Err(Refusal::Full));
    let mut log = log_in(&[(1000, 1), (2000, 1), (3000, 1)]);
    assert_eq!(log.room_for_blocks(&pool, 9, no_more), Ok(1));
    append(&mut log, 1);
    assert_eq!(log.room_for_blocks(&pool, 1, no_more), Err(Refusal::Full));
    assert_eq!(log.room_for_removals(&pool, no_more).map(|room| room > 0), Ok(true));
    // Without a block for the next record there is no room even for removals.
    let mut log = log_in(&[(1000, 1)]);
    assert_eq!(log.room_for_removals(&pool, no_more), Err(Refusal::NoSpace));
    append(&mut log, 1);
    assert_eq!(log.room_for_removals(&pool, no_more), Err(Refusal::Full));
}

#[test]
fn batches_are_closed_early_while_the_device_has_little_to_do() {
    let pool = Place::new().open();
    let mut log = roomy();
    assert!(!log.is_due() && !log.has_open() && log.is_idle());
    let mut due = Vec::new();
    for flying in 0..FLIGHT_LARGE_MAX + 2 {
        assert_eq!(log.flying_count(), flying);
        append(&mut log, LARGE_BATCH_BLOCKS - 1);
        let is_small_due = log.is_due();
        append(&mut log, 1);
        due.push((is_small_due, log.is_due()));
        log.close(&pool, &mut Vec::new());
        assert!(!log.is_due() && !log.has_open() && !log.is_idle());
    }
    let [both, large, none] = [(true, true), (false, true), (false, false)];
    assert_eq!(due, [both, both, large, large, none, none]);

    // So many blocks are enough for an idle device, and none for a busy one.
    let mut log = roomy();
    append(&mut log, EARLY_BATCH_BLOCKS - 1);
    assert!(!log.is_full_for_idle_device());
    append(&mut log, 1);
    assert!(log.is_full_for_idle_device());
    log.close(&pool, &mut Vec::new());
    fly(&mut log, &pool, EARLY_FLYING_BLOCKS - EARLY_BATCH_BLOCKS - 1);
    append(&mut log, EARLY_BATCH_BLOCKS);
    assert!(log.is_full_for_idle_device());
    log.close(&pool, &mut Vec::new());
    append(&mut log, EARLY_BATCH_BLOCKS);
    assert!(!log.is_full_for_idle_device());
}

#[test]
fn batches_are_done_in_their_order_and_their_memory_is_used_again() {
    let pool = Place::new().open();
    // Each batch has a second segment, and so a second write.
    let holes: Vec<(u64, u64)> = (0..80).map(|index| (1000 + 20 * index, 10)).collect();
    let mut log = log_in(&holes);
    let first = fly(&mut log, &pool, 12);
    assert_eq!(log.flying[0].buffer.len(), blocks_to_bytes(RECORD_BLOCKS_MAX + BATCH_BLOCKS_MAX));
    // What is to be written is appended to what others are to write.
    append(&mut log, 12);
    let mut writes =
        first.1.iter().map(|write| BatchWrite { address: write.address, source: write.source.clone() }).collect();
    let second = log.close(&pool, &mut writes);
    let second = (second, writes.split_off(first.1.len()));
    assert_eq!((first.0, second.0, first.1.len() > 1), (ChainSequence::new(1), ChainSequence::new(2), true));
    land(&mut log, &second);
    assert!(log.pop_done().is_none());
    log.write_done(first.0);
    assert!(log.pop_done().is_none());
    first.1.iter().skip(1).for_each(|_| log.write_done(first.0));
    assert_eq!(log.pop_done().map(|batch| batch.chain), Some(first.0));
    assert_eq!(log.pop_done().map(|batch| batch.chain), Some(second.0));
    assert!(log.pop_done().is_none() && log.is_idle());

    // Of no more batches than may be in flight.
    let mut log = roomy();
    let all: Vec<_> = (0..FLIGHT_MAX + 2).map(|_| fly(&mut log, &pool, 1)).collect();
    all.iter().for_each(|flying| land(&mut log, flying));
    let done: Vec<DoneBatch> = std::iter::from_fn(|| log.pop_done()).collect();
    assert_eq!((done.len(), log.spare_buffers.len(), log.spare_records.len()), (FLIGHT_MAX + 2, FLIGHT_MAX, 0));
    done.into_iter().for_each(|batch| log.recycle(batch));
    assert_eq!(log.spare_records.len(), FLIGHT_MAX);
    append(&mut log, 1);
    assert_eq!((log.spare_buffers.len(), log.spare_records.len()), (FLIGHT_MAX - 1, FLIGHT_MAX - 1));
    let open = log.open.as_ref().expect("a block was appended");
    assert_eq!((open.record.runs.len(), open.record.macs.len(), open.parts.len()), (1, 1, 1));
    assert_eq!(open.record.segments.len() + open.record.marks.len() + open.record.removals.len(), 0);
}

#[test]
fn all_that_wait_are_abandoned_in_the_order_of_their_batches() {
    let pool = Place::new().open();
    let mut log = roomy();
    assert!(log.abandon().is_empty());
    for parts in [[1, 2], [3, 4]] {
        parts.into_iter().for_each(|part| log.append_removals(&[removal(1)], part));
        log.close(&pool, &mut Vec::new());
    }
    log.append_removals(&[removal(1)], 5);
    assert_eq!(log.abandon(), [1, 2, 3, 4, 5]);
    assert!(log.abandon().is_empty());
    assert!(!log.has_open());
}

#[test]
fn idle_lane_keeps_one_block_for_its_next_record() {
    let pool = Place::new().open();
    let free = free_count(&pool);
    let mut log = log_in(&[(1000, 1)]);
    log.window.clear();
    let mut taken = pool.reserve_window(Placement::Runs, 0);
    log.home = taken.pop().expect("the pool is empty");
    log.window = taken;
    let home = log.home.start;
    log.give_back_window(&pool);
    assert_eq!(log.reserved_runs(), [AddressRun { start: home, count: 1 }]);
    assert_eq!(free_count(&pool), free - 1);
    // And once more, where there is nothing to give back.
    log.give_back_window(&pool);
    assert_eq!(log.reserved_runs(), [AddressRun { start: home, count: 1 }]);
    assert_eq!(free_count(&pool), free - 1);
}

#[test]
fn next_record_goes_right_behind_while_a_full_batch_fits_there_and_else_to_the_longest_run() {
    let pool = Place::new().open();
    let next_home = |home_count: u64| {
        let mut log = log_in(&[(1000, home_count), (10_000, 300), (20_000, 400), (30_000, 400)]);
        let (_, writes) = fly(&mut log, &pool, 3);
        assert_eq!(writes.len(), 1);
        assert!(log.reserved_runs().iter().all(|run| run.count > 0));
        assert_eq!(log.window_count() + log.home.count, home_count + 1100 - 4);
        (log.home.start.block(), log.home.count)
    };
    assert_eq!(next_home(4 + FULL_BATCH_BLOCKS), (1004, FULL_BATCH_BLOCKS));
    assert_eq!(next_home(3 + FULL_BATCH_BLOCKS), (30_000, 400));
    // Exactly used up.
    assert_eq!(next_home(4), (30_000, 400));
}
