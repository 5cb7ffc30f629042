//! Locks on ranges of blocks: overlapping writes wait for each other.
//!
//! A range lies within one leaf, so it is in one stripe. Waiters are served in the order in which they came, and a
//! newcomer waits behind an overlapping waiter. A grant goes to the waiter's lane as a ticket. Who holds
//! a range never waits for a range of a lower leaf, so no circle can form.

use crate::pool::Pool;
use crate::units::{BlockIndex, LaneIndex, LeafIndex, TreeId, to_u64, to_usize};
use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use std::collections::VecDeque;

const STRIPE_COUNT: usize = 256;

/// Consecutive blocks of one leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// The tree.
    pub tree: TreeId,
    /// The first block.
    pub block: BlockIndex,
    /// How many, at least 1; all in one leaf.
    pub count: u32,
}

struct Waiter {
    range: BlockRange,
    lane: LaneIndex,
    ticket: u64,
}

#[derive(Default)]
struct Stripe {
    held: Vec<BlockRange>,
    waiting: VecDeque<Waiter>,
}

/// The locks of a pool, and a box of granted tickets for each lane.
pub struct RangeLocks {
    stripes: Box<[CachePadded<Mutex<Stripe>>]>,
    granted: Box<[CachePadded<Mutex<Vec<u64>>>]>,
}

impl BlockRange {
    /// The leaf that maps the range.
    #[must_use]
    pub const fn leaf(&self) -> LeafIndex {
        self.block.leaf()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.tree == other.tree
            && self.block.get() < other.block.get() + u64::from(other.count)
            && other.block.get() < self.block.get() + u64::from(self.count)
    }
}

impl RangeLocks {
    /// Locks for so many lanes.
    #[must_use]
    pub fn new(lane_count: usize) -> Self {
        Self {
            stripes: (0..STRIPE_COUNT).map(|_| CachePadded::default()).collect(),
            granted: (0..lane_count).map(|_| CachePadded::default()).collect(),
        }
    }

    /// Takes the range if nobody holds or awaits an overlapping one; else queues, and `ticket` is granted later.
    #[must_use]
    pub fn lock(&self, range: BlockRange, lane: LaneIndex, ticket: u64) -> bool {
        let mut stripe = self.stripe(&range).lock();
        let is_held = stripe.held.iter().any(|held| held.overlaps(&range));
        if is_held || stripe.waiting.iter().any(|waiter| waiter.range.overlaps(&range)) {
            stripe.waiting.push_back(Waiter { range, lane, ticket });
            return false;
        }
        stripe.held.push(range);
        true
    }

    /// Gives a range back; ranges that become free are granted and their lanes woken.
    ///
    /// # Panics
    /// If the range is not held.
    pub fn unlock(&self, range: BlockRange, pool: &Pool) {
        let mut stripe = self.stripe(&range).lock();
        let index = stripe.held.iter().position(|held| *held == range).expect("a range is given back once");
        stripe.held.swap_remove(index);
        let mut woken = Vec::new();
        let mut index = 0;
        while index < stripe.waiting.len() {
            let candidate = stripe.waiting[index].range;
            let is_held = stripe.held.iter().any(|held| held.overlaps(&candidate));
            let is_behind = stripe.waiting.iter().take(index).any(|earlier| earlier.range.overlaps(&candidate));
            if is_held || is_behind {
                index += 1;
                continue;
            }
            if let Some(waiter) = stripe.waiting.remove(index) {
                stripe.held.push(waiter.range);
                woken.push((waiter.lane, waiter.ticket));
            }
        }
        drop(stripe);
        for (lane, ticket) in woken {
            self.granted[lane.as_usize()].lock().push(ticket);
            pool.wake_lane(lane);
        }
    }

    /// Tickets granted to a lane since the last call.
    #[must_use]
    pub fn take_granted(&self, lane: LaneIndex) -> Vec<u64> {
        std::mem::take(&mut *self.granted[lane.as_usize()].lock())
    }

    fn stripe(&self, range: &BlockRange) -> &Mutex<Stripe> {
        let mixed = (range.leaf().get() ^ range.tree.get().rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.stripes[to_usize((mixed >> 32) % to_u64(STRIPE_COUNT))]
    }
}
