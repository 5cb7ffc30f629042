//! What threads beside the lanes wait on for the pool: a checkpoint was done, space came back, or the pool failed.
//!
//! A waiter reads [`PoolEvents::count`], looks at the pool, and waits for the next event behind that count. It looks without
//! the lock here, since who reports an event may hold those of the pool.

use parking_lot::{Condvar, Mutex};
use std::time::Duration;

/// Counts what happens to the pool.
#[derive(Default)]
pub struct PoolEvents {
    count: Mutex<u64>,
    happened: Condvar,
}

impl PoolEvents {
    /// How many events there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// Something happened that somebody may wait for.
    pub fn happen(&self) {
        *self.count.lock() += 1;
        self.happened.notify_all();
    }

    /// Returns when there were more events than `seen`.
    pub fn wait_beyond(&self, seen: u64) {
        let mut count = self.count.lock();
        while *count <= seen {
            self.happened.wait(&mut count);
        }
    }

    /// As [`Self::wait_beyond`], but no longer than this.
    pub fn wait_beyond_for(&self, seen: u64, time_max: Duration) {
        let mut count = self.count.lock();
        if *count <= seen {
            self.happened.wait_for(&mut count, time_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn an_event_between_the_look_and_the_wait_is_not_missed() {
        let events = PoolEvents::default();
        let seen = events.count();

        events.happen();

        events.wait_beyond(seen);
    }

    #[test]
    fn a_waiter_is_woken_by_each_event() {
        let events = Arc::new(PoolEvents::default());
        let waiting = Arc::clone(&events);
        let waiter = std::thread::spawn(move || (0..3).for_each(|seen| waiting.wait_beyond(seen)));

        for _ in 0..3 {
            events.happen();
        }

        waiter.join().expect("three events end three waits");
    }
}
