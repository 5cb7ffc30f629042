//! Lanes that take ranges of blocks.

use crate::pool::Pool;
use crate::volume::range_lock::{BlockRange, RangeLocks};
use rok_blk::units::{BlockIndex, LEAF_ENTRIES_U64, LaneIndex, TreeId};
use shuttle::thread;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What each lane takes, one after the other: some overlap with some.
const PLANS: [[Range<u64>; 2]; 3] = [[0..3, 2..5], [1..2, 0..6], [4..6, 2..3]];
const BLOCKS: usize = 6;

struct Machine {
    locks: RangeLocks,
    pool: Pool,
    /// How many have each block.
    holders: [AtomicU32; BLOCKS],
}

impl Machine {
    fn new() -> Arc<Self> {
        let lane_count = PLANS.len();
        Arc::new(Self { locks: RangeLocks::new(lane_count), pool: Pool::new(lane_count), holders: Default::default() })
    }

    /// Takes a range, as a lane does: what is not free comes as a ticket.
    fn take(&self, range: BlockRange, lane: LaneIndex, ticket: u64) {
        if self.locks.lock(range, lane, ticket) {
            return;
        }
        while !self.locks.take_granted(lane).contains(&ticket) {
            self.pool.sleep(lane);
        }
    }

    fn use_blocks(&self, blocks: Range<u64>) {
        let holders = || blocks.clone().map(|block| &self.holders[usize::try_from(block).expect("few")]);
        holders().for_each(|count| assert_eq!(count.fetch_add(1, Ordering::SeqCst), 0, "two have a block"));
        thread::yield_now();
        holders().for_each(|count| _ = count.fetch_sub(1, Ordering::SeqCst));
    }
}

fn range_of(leaf: u64, blocks: &Range<u64>) -> BlockRange {
    let block = BlockIndex::new(leaf * LEAF_ENTRIES_U64 + blocks.start);
    BlockRange { tree: TreeId::new(1), block, count: u32::try_from(blocks.end - blocks.start).expect("few") }
}

/// Runs a thread for each lane to its end.
fn in_lanes(work: impl Fn(&Machine, LaneIndex) + Send + Sync + 'static) {
    let (machine, work) = (Machine::new(), Arc::new(work));
    let lanes = (0..PLANS.len()).map(|lane| {
        let (machine, work) = (Arc::clone(&machine), Arc::clone(&work));
        thread::spawn(move || work(&machine, LaneIndex::new(u16::try_from(lane).expect("few"))))
    });
    for lane in lanes.collect::<Vec<_>>() {
        lane.join().expect("a lane panics only with the run");
    }
}

pub fn ranges_have_one_holder() {
    in_lanes(|machine, lane| {
        for (blocks, ticket) in PLANS[lane.as_usize()].iter().zip(0..) {
            let range = range_of(0, blocks);
            machine.take(range, lane, ticket);
            machine.use_blocks(blocks.clone());
            machine.locks.unlock(range, &machine.pool);
        }
    });
}

/// Who does not wait for a ticket uses what another one has.
pub fn nobody_waits() {
    in_lanes(|machine, lane| {
        for (blocks, ticket) in PLANS[lane.as_usize()].iter().zip(0..) {
            let range = range_of(0, blocks);
            let is_free = machine.locks.lock(range, lane, ticket);
            machine.use_blocks(blocks.clone());
            if is_free {
                machine.locks.unlock(range, &machine.pool);
            }
        }
    });
}

/// A request that spans leaves holds all of its ranges at once.
pub fn leaves_are_taken_in_order() {
    in_lanes(|machine, lane| take_two(machine, lane, [0, 1]));
}

pub fn leaves_are_taken_against_the_order() {
    in_lanes(|machine, lane| take_two(machine, lane, if lane.as_usize() == 1 { [1, 0] } else { [0, 1] }));
}

fn take_two(machine: &Machine, lane: LaneIndex, leaves: [u64; 2]) {
    let ranges = leaves.map(|leaf| range_of(leaf, &PLANS[lane.as_usize()][0]));
    for (range, ticket) in ranges.into_iter().zip(0..) {
        machine.take(range, lane, ticket);
    }
    machine.use_blocks(PLANS[lane.as_usize()][0].clone());
    for range in ranges {
        machine.locks.unlock(range, &machine.pool);
    }
}
