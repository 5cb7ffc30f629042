//! News of free space, from the library's source, and what range locks know of a pool: how it wakes its lanes.

#[path = "../../src/pool/space_news.rs"]
pub mod space_news;

use rok_blk::units::LaneIndex;
use shuttle::sync::{Condvar, Mutex};

/// An alarm for each lane.
pub struct Pool(Vec<(Mutex<bool>, Condvar)>);

impl Pool {
    pub fn new(lane_count: usize) -> Self {
        Self((0..lane_count).map(|_| Default::default()).collect())
    }

    pub fn wake_lane(&self, lane: LaneIndex) {
        let (is_raised, woken) = &self.0[lane.as_usize()];
        *is_raised.lock().expect("nobody panics with it") = true;
        woken.notify_one();
    }

    /// Until the lane is woken, or was since it slept last.
    pub fn sleep(&self, lane: LaneIndex) {
        let (is_raised, woken) = &self.0[lane.as_usize()];
        let mut is_raised = is_raised.lock().expect("nobody panics with it");
        while !*is_raised {
            is_raised = woken.wait(is_raised).expect("nobody panics with it");
        }
        *is_raised = false;
    }
}
