//! The thread that runs the cleaner: at full speed while nobody uses the pool, and a little where long runs are scarce.
//!
//! It is woken when blocks become free, which is when checkpoints are done and idle lanes give windows back. While there is
//! nothing to clean it sleeps without a timeout.

use super::limits::{CLEANING_PAUSE, IDLE_PERIOD};
use crate::error::IoError;
use crate::pool::{AddressGroup, Cleaner, CleanerStep, Pool, Urgency};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Long runs are scarce when fewer than this share of the pool's blocks is in them.
const SCARCE_SHARE: u64 = 32;
/// How often a checkpoint that is awaited is looked for, should the pool fail.
const CHECKPOINT_LOOK_PERIOD: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Wishes {
    is_due: bool,
    is_closing: bool,
    is_resting: bool,
}

/// What the thread is told.
#[derive(Default)]
pub(super) struct Cleaning {
    wishes: Mutex<Wishes>,
    changed: Condvar,
}

/// Since when nobody has used the pool.
struct Quiet {
    request_count: u64,
    since: Instant,
}

impl Quiet {
    fn look(&mut self, pool: &Pool) -> bool {
        let request_count = pool.request_count();
        if request_count != self.request_count {
            *self = Self { request_count, since: Instant::now() };
        }
        self.since.elapsed() >= IDLE_PERIOD
    }
}

impl Cleaning {
    /// Blocks became free: there may be something to clean.
    pub(super) fn space_freed(&self) {
        self.wishes.lock().is_due = true;
        self.changed.notify_all();
    }

    /// Lets the thread end.
    pub(super) fn close(&self) {
        self.wishes.lock().is_closing = true;
        self.changed.notify_all();
    }

    /// Whether there is nothing to clean before the next checkpoint.
    pub(super) fn is_resting(&self) -> bool {
        let wishes = self.wishes.lock();
        wishes.is_resting && !wishes.is_due
    }

    /// What the thread does. `move_group` has a lane move what lives in a group, and waits for that.
    pub(super) fn work(&self, pool: &Arc<Pool>, move_group: impl Fn(AddressGroup) -> Result<(), IoError>) {
        let mut cleaner = Cleaner::new(Arc::clone(pool));
        while self.wait_until_due() {
            if pool.check_writable().is_ok() {
                self.advance(pool, &mut cleaner, &move_group);
            }
            cleaner.stop();
        }
    }

    /// Does what there is to do, also when the pool comes into use meanwhile; or until the thread is to end.
    fn advance(&self, pool: &Pool, cleaner: &mut Cleaner, move_group: impl Fn(AddressGroup) -> Result<(), IoError>) {
        let mut quiet = Quiet { request_count: pool.request_count(), since: Instant::now() };
        loop {
            let urgency = if quiet.look(pool) {
                Urgency::Idle
            } else if is_scarce(pool) {
                Urgency::Scarce
            } else {
                cleaner.stop();
                if !cleaner.is_needed() || !self.pause(IDLE_PERIOD) {
                    return;
                }
                continue;
            };
            let pause = match cleaner.next(urgency) {
                CleanerStep::Move(group) => {
                    match move_group(group) {
                        Ok(()) => {}
                        Err(IoError::NoSpace) => cleaner.refused(),
                        // Of the pool, which says so itself; or of the group, which stays where it is.
                        Err(_) if pool.check_writable().is_err() => return,
                        Err(error) => tracing::warn!(?group, %error, "what lives there could not be moved"),
                    }
                    if urgency == Urgency::Idle { Duration::ZERO } else { CLEANING_PAUSE }
                }
                CleanerStep::Checkpoint => {
                    if !self.await_checkpoint(pool) {
                        return;
                    }
                    cleaner.checkpointed();
                    Duration::ZERO
                }
                CleanerStep::Rest if urgency == Urgency::Idle || !cleaner.is_needed() => return,
                CleanerStep::Rest => IDLE_PERIOD,
            };
            if !self.pause(pause) {
                return;
            }
        }
    }

    /// Has a checkpoint run that begins now or later; `false` if the thread is to end or the pool has failed.
    fn await_checkpoint(&self, pool: &Pool) -> bool {
        let target = pool.cuts_begun() + 1;
        pool.want_checkpoint();
        let mut wishes = self.wishes.lock();
        while pool.checkpoints_done() < target {
            if wishes.is_closing || pool.check_writable().is_err() {
                return false;
            }
            self.changed.wait_for(&mut wishes, CHECKPOINT_LOOK_PERIOD);
        }
        // What that one freed is looked at now.
        wishes.is_due = false;
        true
    }

    /// Waits; `false` if the thread is to end.
    fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut wishes = self.wishes.lock();
        while !wishes.is_closing && !time.is_zero() {
            if self.changed.wait_until(&mut wishes, until).timed_out() {
                break;
            }
        }
        !wishes.is_closing
    }

    /// Whether to look for something to clean now; if not, the thread ends.
    fn wait_until_due(&self) -> bool {
        let mut wishes = self.wishes.lock();
        while !wishes.is_due && !wishes.is_closing {
            wishes.is_resting = true;
            self.changed.wait(&mut wishes);
        }
        wishes.is_due = false;
        wishes.is_resting = false;
        !wishes.is_closing
    }
}

fn is_scarce(pool: &Pool) -> bool {
    let (shape, block_count) = (pool.cleaning_status().shape, pool.block_count());
    shape.whole_blocks < block_count / SCARCE_SHARE && shape.hole_blocks > shape.whole_blocks
}
