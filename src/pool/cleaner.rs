//! What a cleaner does next: which group of addresses to move, when to wait for a checkpoint, when to rest.
//!
//! It works in cycles: some sparse stretches are closed and emptied, then a checkpoint frees what was moved, then they are
//! reopened. It has no thread and no clock: who runs it moves the groups, and tells it how that ended.

use super::cleaning::{AddressGroup, LiveBlocks, Pass, Tried, Urgency};
use super::space::Stretch;
use crate::pool::Pool;
use std::collections::VecDeque;
use std::sync::Arc;

/// Blocks that one cycle moves, about: they take space until its checkpoint.
const CYCLE_BLOCKS: u64 = 16_384;
/// Cleaning an idle pool ends when no more than this share of the free blocks is holes.
const HOLE_SHARE: u64 = 8;
/// Stretches that one cycle empties at most, so that what was moved out of them is not kept from others for long.
const CYCLE_STRETCHES: usize = 64;

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

/// A stretch that is being emptied, or waits for the checkpoint that frees it.
struct Closed {
    stretch: Stretch,
    /// What lived there.
    lived: LiveBlocks,
    /// Blocks that had been moved of others by then.
    moved_before: u64,
    /// There was no space for some of it: no fault of the stretch.
    is_refused: bool,
}

/// A cleaner of a pool.
pub struct Cleaner {
    pool: Arc<Pool>,
    /// Stretches of this cycle.
    closed: Vec<Closed>,
    /// What is left of the last of them.
    groups: VecDeque<AddressGroup>,
    /// Blocks that were moved when the cycle began.
    moved_before: u64,
    /// There was no space: the cycle takes no further stretch.
    is_refused: bool,
    pass: Pass,
    tried: Tried,
    /// [`Catalog::unshared_count`] when what was tried was last forgotten.
    ///
    /// [`Catalog::unshared_count`]: crate::pool::Catalog::unshared_count
    unshared_count: u64,
}

impl Cleaner {
    /// A cleaner that has done nothing yet.
    #[must_use]
    pub fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            closed: Vec::new(),
            groups: VecDeque::new(),
            moved_before: 0,
            is_refused: false,
            pass: Pass::default(),
            tried: Tried::new(),
            unshared_count: 0,
        }
    }

    /// What is to be done next.
    pub fn next(&mut self, urgency: Urgency) -> CleanerStep {
        if let Some(group) = self.groups.pop_front() {
            return CleanerStep::Move(group);
        }
        self.reopen_untouched();
        match self.take_stretch(urgency) {
            Some(stretch) => {
                let moved_before = self.pool.cleaning_status().moved;
                self.closed.push(Closed {
                    stretch,
                    lived: self.pool.live_blocks(stretch),
                    moved_before,
                    is_refused: false,
                });
                let mut groups = AddressGroup::of_stretch(stretch);
                let first = groups.next();
                self.groups.extend(groups);
                first.map_or(CleanerStep::Rest, CleanerStep::Move)
            }
            None if self.closed.is_empty() => {
                self.is_refused = false;
                CleanerStep::Rest
            }
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
        for closed in self.closed.drain(..) {
            self.pool.reopen_stretch(closed.stretch);
        }
        self.pass = Pass::default();
        self.is_refused = false;
        self.moved_before = self.pool.cleaning_status().moved;
    }

    /// There was no space for what the last step moved.
    pub fn refused(&mut self) {
        self.groups.clear();
        self.is_refused = true;
        if let Some(last) = self.closed.last_mut() {
            last.is_refused = true;
        }
    }

    /// A checkpoint that began behind the last move is done.
    pub fn checkpointed(&mut self) {
        for closed in std::mem::take(&mut self.closed) {
            self.settle(&closed);
        }
        // What that one freed made others sparse.
        self.pass = Pass::default();
        self.is_refused = false;
        self.moved_before = self.pool.cleaning_status().moved;
    }

    /// Nothing could be moved out of the last stretch: it need not wait for the checkpoint.
    fn reopen_untouched(&mut self) {
        let moved = self.pool.cleaning_status().moved;
        if let Some(closed) = self.closed.pop_if(|closed| closed.moved_before == moved) {
            self.settle(&closed);
        }
    }

    /// Reopens a stretch, and remembers it if it was emptied in vain.
    fn settle(&mut self, closed: &Closed) {
        match self.pool.attempt_on(closed.stretch, &closed.lived) {
            Some(_) if closed.is_refused => None,
            Some(attempt) => self.tried.insert(closed.stretch, attempt),
            None => self.tried.remove(&closed.stretch),
        };
        self.pool.reopen_stretch(closed.stretch);
    }

    fn take_stretch(&mut self, urgency: Urgency) -> Option<Stretch> {
        let is_cycle_full = self.pool.cleaning_status().moved - self.moved_before >= CYCLE_BLOCKS
            || self.closed.len() == CYCLE_STRETCHES;
        if is_cycle_full || !self.is_needed() || self.is_refused {
            return None;
        }
        // What a snapshot mapped may be moved now.
        let unshared_count = self.pool.with_catalog(|catalog, _| catalog.unshared_count());
        if self.unshared_count != unshared_count {
            self.unshared_count = unshared_count;
            self.tried.clear();
            self.pass = Pass::default();
        }
        self.pool.close_sparse_stretch(urgency, &self.tried, &mut self.pass)
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.stop();
    }
}
