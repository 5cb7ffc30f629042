//! The news that who holds writes back waits for: the last of them has ended, or none of them may ever, since the pool has
//! failed.
//!
//! A lane whose ring has failed ends nothing of what it had under way. Once for the whole pool: only gates that somebody has
//! closed tell anything, so that who waits at one rarely looks in vain.

use parking_lot::{Condvar, Mutex};

/// What is told by all gates of a pool, and by its failure.
#[derive(Default)]
pub struct Exits {
    /// Whether the pool has failed. Held by who tells, so that who waits looks before it sleeps.
    has_failed: Mutex<bool>,
    told: Condvar,
}

impl Exits {
    /// Somebody left for whom others may wait.
    pub fn tell(&self) {
        let has_failed = self.has_failed.lock();
        self.told.notify_all();
        drop(has_failed);
    }

    /// The pool has failed: nobody waits any more.
    pub(crate) fn fail(&self) {
        *self.has_failed.lock() = true;
        self.told.notify_all();
    }

    /// Waits until `is_over` says so behind what was told, or the pool has failed. Never on a lane.
    pub fn wait_until(&self, is_over: impl Fn() -> bool) {
        let mut has_failed = self.has_failed.lock();
        while !is_over() && !*has_failed {
            self.told.wait(&mut has_failed);
        }
    }
}
