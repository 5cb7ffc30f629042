//! The thread that runs checkpoints: when the pool wants one, and for changes that are a few seconds old.
//!
//! While there are no changes it sleeps without a timeout.

use super::limits::{CHECKPOINT_PERIOD, CHECKPOINT_RETRY_PERIOD};
use crate::error::{ErrorKind, Result};
use crate::pool::{Checkpoint, Pool};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Wishes {
    is_wanted: bool,
    /// When changes are to be stored that nobody asked for.
    due: Option<Instant>,
    is_closing: bool,
}

/// What the thread is told.
#[derive(Default)]
pub(super) struct Checkpoints {
    wishes: Mutex<Wishes>,
    changed: Condvar,
    /// Mirror of `due`, so that a lane need not take the lock in each of its turns.
    has_due: AtomicBool,
}

impl Checkpoints {
    /// A checkpoint should run soon.
    pub(super) fn want(&self) {
        self.wishes.lock().is_wanted = true;
        self.changed.notify_one();
    }

    /// There are changes.
    pub(super) fn note_changes(&self) {
        if self.has_due.swap(true, Ordering::AcqRel) {
            return;
        }
        self.wishes.lock().due = Some(Instant::now() + CHECKPOINT_PERIOD);
        self.changed.notify_one();
    }

    /// Lets the thread end.
    pub(super) fn close(&self) {
        self.wishes.lock().is_closing = true;
        self.changed.notify_one();
    }

    /// What the thread does.
    pub(super) fn work(&self, pool: &Arc<Pool>) {
        while self.wait_until_due() {
            if pool.check_writable().is_ok()
                && let Err(error) = self.run(pool, None)
            {
                tracing::error!(%error, "a checkpoint failed");
            }
        }
    }

    /// Runs one checkpoint to its end. While `meta/` lacks space it is tried again, until `time_max` is over or the
    /// thread is to end.
    pub(super) fn run(&self, pool: &Arc<Pool>, time_max: Option<Duration>) -> Result<()> {
        let begun = Instant::now();
        let mut checkpoint = Checkpoint::begin(Arc::clone(pool));
        loop {
            let error = match checkpoint.run() {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() != ErrorKind::NoSpace => return Err(error),
                Err(error) => error,
            };
            tracing::warn!(%error, "a checkpoint waits for space");
            let mut wishes = self.wishes.lock();
            let is_over = time_max.map_or(wishes.is_closing, |time_max| begun.elapsed() >= time_max);
            if is_over {
                return Err(error);
            }
            // A wake-up before the time is only a wish for the checkpoint that runs.
            self.changed.wait_for(&mut wishes, CHECKPOINT_RETRY_PERIOD);
        }
    }

    /// Whether to run a checkpoint now; if not, the thread ends.
    fn wait_until_due(&self) -> bool {
        let mut wishes = self.wishes.lock();
        loop {
            let now = Instant::now();
            if wishes.is_closing {
                return false;
            }
            if wishes.is_wanted || wishes.due.is_some_and(|due| due <= now) {
                wishes.is_wanted = false;
                wishes.due = None;
                // Before the cut: changes that come behind it are noted anew.
                self.has_due.store(false, Ordering::Release);
                return true;
            }
            match wishes.due {
                Some(due) => drop(self.changed.wait_until(&mut wishes, due)),
                None => self.changed.wait(&mut wishes),
            }
        }
    }
}
