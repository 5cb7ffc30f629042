//! What the pool and its lanes ask of those who run them.

use super::Life;
use rok_blk::pool::Signals;
use rok_blk::units::LaneIndex;
use rok_blk::volume::Blocking;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the pool asks for.
#[derive(Default)]
pub struct SimSignals {
    pub wants_checkpoint: AtomicBool,
}

impl Signals for SimSignals {
    fn want_checkpoint(&self) {
        self.wants_checkpoint.store(true, Ordering::Relaxed);
    }
    fn wake_lanes(&self) {}
    fn wake_lane(&self, _lane: LaneIndex) {}
    fn wake_other_lanes(&self, _lane: LaneIndex) {}
    fn space_freed(&self) {}
    fn want_stock(&self) {}
    fn now_seconds(&self) -> u64 {
        1
    }
}

/// Jobs that wait for a blocking thread.
#[derive(Default)]
pub struct SimBlocking {
    pub jobs: RefCell<VecDeque<Box<dyn FnOnce() + Send>>>,
}

impl Blocking for SimBlocking {
    fn run(&self, job: Box<dyn FnOnce() + Send>) {
        self.jobs.borrow_mut().push_back(job);
    }
}

impl Life {
    /// Whether a checkpoint was asked for since this was asked last; then it is not wanted any more.
    pub fn take_checkpoint_wish(&self) -> bool {
        self.signals.wants_checkpoint.swap(false, Ordering::Relaxed)
    }
}
