//! Device flushes: what one covers, and that there is one at a time in the whole pool.

use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use crate::units::{ChainSequence, DeviceIndex, LaneIndex};
use std::sync::atomic::Ordering;

/// What a flush covers, taken when it starts.
#[derive(Clone, Debug, Default)]
pub struct FlushStart {
    generation: u64,
    completed: Vec<ChainSequence>,
    devices: Vec<DeviceIndex>,
}

impl FlushStart {
    /// The devices to flush: there may be none.
    #[must_use]
    pub fn devices(&self) -> &[DeviceIndex] {
        &self.devices
    }
}

impl Pool {
    /// What a flush requested now must reach: see [`Self::is_flushed`].
    #[must_use]
    pub fn flush_need(&self) -> u64 {
        self.write_generation.load(Ordering::Acquire)
    }

    /// Whether everything acknowledged before [`Self::flush_need`] gave `need` is durable.
    #[must_use]
    pub fn is_flushed(&self, need: u64) -> bool {
        self.flushed_generation.load(Ordering::Acquire) >= need
    }

    /// Begins a flush of the devices that were written since the last one, and says in `start` what it covers; false while
    /// another one runs, whose end wakes the lanes.
    ///
    /// One at a time in the whole pool: when a flush fails, what the device had cached may be gone, and a second
    /// flush beside it would succeed and promise what is lost.
    #[must_use]
    pub fn begin_flush(&self, start: &mut FlushStart) -> bool {
        let mut is_flushing = self.is_flushing.lock();
        if std::mem::replace(&mut *is_flushing, true) {
            return false;
        }
        drop(is_flushing);
        start.generation = self.write_generation.load(Ordering::Acquire);
        start.completed.clear();
        let completed = self.lanes.iter().map(|lane| ChainSequence::new(lane.completed.load(Ordering::Acquire)));
        start.completed.extend(completed);
        // Last: what is covered has left its marks by now. If the flush fails, so does the pool.
        let device_count = self.devices.read().len();
        let devices = (0..).map(DeviceIndex::new).take(device_count);
        let devices = devices.filter(|index| self.is_written[index.as_usize()].swap(false, Ordering::AcqRel));
        start.devices.clear();
        start.devices.extend(devices);
        if is_planted(Bug::FlushOneDevice) {
            start.devices.truncate(1);
        }
        true
    }

    /// The flush that began with `start` ended on its devices. If it failed, [`Self::fail`] was called before. A `lane` that
    /// ended it does not have to be woken.
    pub fn end_flush(&self, start: &FlushStart, lane: Option<LaneIndex>) {
        if self.check_writable().is_ok() {
            self.flushed_generation.fetch_max(start.generation, Ordering::AcqRel);
            for (lane, completed) in self.lanes.iter().zip(&start.completed) {
                lane.mark.fetch_max(completed.get(), Ordering::AcqRel);
            }
        }
        *self.is_flushing.lock() = false;
        self.flush_ended.notify_all();
        if let Some(signals) = self.signals.get() {
            // Waking itself costs a lane two system calls.
            match lane {
                Some(lane) => signals.wake_other_lanes(lane),
                None => signals.wake_lanes(),
            }
        }
    }

    /// Whether a flush runs.
    #[must_use]
    pub fn is_flush_under_way(&self) -> bool {
        *self.is_flushing.lock()
    }

    /// Blocks until no flush runs, or the pool has failed: the flush of a lane whose ring has failed never ends. Never on
    /// a lane.
    pub(crate) fn await_flush_end(&self) {
        let mut is_flushing = self.is_flushing.lock();
        while *is_flushing && self.check_writable().is_ok() {
            self.flush_ended.wait(&mut is_flushing);
        }
    }
}
