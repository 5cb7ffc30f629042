//! What a cleaner does next: which group of addresses to move, when to wait for a checkpoint, when to rest.
//!
//! It works in cycles: some sparse stretches are closed and emptied, then a checkpoint frees what was moved, then they are
//! reopened. It has no thread and no clock: who runs it moves the groups, and tells it how that ended.

use super::cleaning::{AddressGroup, LiveBlocks, Tried, Urgency};
use super::space::Stretch;
use crate::pool::Pool;
use std::collections::VecDeque;
use std::sync::Arc;

/// Blocks that one cycle moves, about: they take space until its checkpoint.
const CYCLE_BLOCKS: u64 = 16_384;
/// Cleaning an idle pool ends when no more than this share of the free blocks is holes.
const HOLE_SHARE: u64 = 8;
/// Stretches that were emptied in vain, at most; then all are forgotten.
const TRIED_MAX: usize = 4096;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanerStep {
    /// Move what lives in these addresses, and tell of it only if there was no space.
    Move(AddressGroup),
    /// Run a checkpoint, or await one that begins later than now; then call [`Cleaner::checkpointed`].
    Checkpoint,
    /// Nothing, before a checkpoint frees more.
    Rest,
}

/// A cleaner of a pool.
pub struct Cleaner {
    pool: Arc<Pool>,
    /// Stretches of this cycle, with what lived there when they were closed.
    closed: Vec<(Stretch, LiveBlocks)>,
    /// What is left of the last of them.
    groups: VecDeque<AddressGroup>,
    /// Blocks that were moved when the cycle began.
    moved_before: u64,
    /// There was no space: the cycle takes no further stretch.
    is_refused: bool,
    tried: Tried,
}

impl Cleaner {
    /// A cleaner that has done nothing yet.
    #[must_use]
    pub const fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            closed: Vec::new(),
            groups: VecDeque::new(),
            moved_before: 0,
            is_refused: false,
            tried: Tried::new(),
        }
    }

    /// What is to be done next.
    pub fn next(&mut self, urgency: Urgency) -> CleanerStep {
        if let Some(group) = self.groups.pop_front() {
            return CleanerStep::Move(group);
        }
        match self.take_stretch(urgency) {
            Some(stretch) => {
                self.closed.push((stretch, self.pool.live_blocks(stretch)));
                let mut groups = AddressGroup::of_stretch(stretch);
                let first = groups.next();
                self.groups.extend(groups);
                first.map_or(CleanerStep::Rest, CleanerStep::Move)
            }
            None if self.closed.is_empty() => CleanerStep::Rest,
            None => CleanerStep::Checkpoint,
        }
    }

    /// Whether so much of the free space is holes that cleaning may be worth it.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        let shape = self.pool.cleaning_status().shape;
        shape.hole_blocks * HOLE_SHARE > shape.whole_blocks + shape.hole_blocks
    }

    /// Ends the cycle before its time: the pool is in use. What was moved becomes free with any checkpoint.
    pub fn stop(&mut self) {
        self.groups.clear();
        for (stretch, _) in self.closed.drain(..) {
            self.pool.reopen_stretch(stretch);
        }
        self.is_refused = false;
        self.moved_before = self.pool.cleaning_status().moved;
    }

    /// There was no space for what the last step moved.
    pub fn refused(&mut self) {
        self.groups.clear();
        self.is_refused = true;
    }

    /// A checkpoint that began behind the last move is done.
    pub fn checkpointed(&mut self) {
        for (stretch, lived) in self.closed.drain(..) {
            let attempt = self.pool.attempt_on(stretch, &lived);
            self.pool.reopen_stretch(stretch);
            let Some(attempt) = attempt else {
                self.tried.remove(&stretch);
                continue;
            };
            if self.tried.len() == TRIED_MAX {
                self.tried.clear();
            }
            self.tried.insert(stretch, attempt);
        }
        self.is_refused = false;
        self.moved_before = self.pool.cleaning_status().moved;
    }

    fn take_stretch(&self, urgency: Urgency) -> Option<Stretch> {
        let is_cycle_full = self.pool.cleaning_status().moved - self.moved_before >= CYCLE_BLOCKS;
        if is_cycle_full || !self.is_needed() || self.is_refused {
            return None;
        }
        self.pool.close_sparse_stretch(urgency, &self.tried)
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.stop();
    }
}
