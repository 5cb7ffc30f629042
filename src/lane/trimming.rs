//! The thread that gives free space back to what is under the devices, and makes it fit for use again before lanes need it.
//!
//! It is woken by checkpoints, which free blocks, and by lanes that come to the end of the stock. Else it sleeps without a
//! timeout.

use super::limits::{RESTOCK_RETRY_PERIOD, TRIM_PAUSE};
use crate::pool::{Pool, TrimProgress};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Wishes {
    is_due: bool,
    is_closing: bool,
}

/// What the thread is told.
#[derive(Default)]
pub(super) struct Trimming {
    wishes: Mutex<Wishes>,
    changed: Condvar,
}

impl Trimming {
    /// Something was freed, or the stock is low.
    pub(super) fn look(&self) {
        self.wishes.lock().is_due = true;
        self.changed.notify_one();
    }

    /// Lets the thread end.
    pub(super) fn close(&self) {
        self.wishes.lock().is_closing = true;
        self.changed.notify_one();
    }

    /// What the thread does.
    pub(super) fn work(&self, pool: &Arc<Pool>) {
        let mut retry = None;
        while self.wait_until_due(retry) {
            retry = None;
            while pool.check_writable().is_ok() && !self.wishes.lock().is_closing {
                // What lanes need comes first.
                match pool.restock_step() {
                    Ok(TrimProgress::Rested) => {}
                    Ok(_) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "the pool goes on without that space");
                        retry = Some(RESTOCK_RETRY_PERIOD);
                        break;
                    }
                }
                match pool.trim_step() {
                    TrimProgress::Rested => break,
                    TrimProgress::Worked => {}
                    TrimProgress::Trimmed => self.pause(TRIM_PAUSE),
                }
            }
        }
    }

    /// Waits, but for the end, and for lanes.
    fn pause(&self, time: Duration) {
        let mut wishes = self.wishes.lock();
        if !wishes.is_closing && !wishes.is_due {
            self.changed.wait_for(&mut wishes, time);
        }
        wishes.is_due = false;
    }

    /// Waits until there may be something to do, or for that long if it is said; `false` if the thread is to end.
    fn wait_until_due(&self, time_max: Option<Duration>) -> bool {
        let until = time_max.map(|time| Instant::now() + time);
        let mut wishes = self.wishes.lock();
        while !wishes.is_closing {
            match until {
                // Lanes that come to the end of the stock wake it again and again.
                Some(until) if self.changed.wait_until(&mut wishes, until).timed_out() => break,
                Some(_) => {}
                None if wishes.is_due => break,
                None => self.changed.wait(&mut wishes),
            }
        }
        wishes.is_due = false;
        !wishes.is_closing
    }
}
