//! How the pool gets the attention of the lanes, and of the threads for checkpoints, cleaning and trimming.

use super::alarm::Alarm;
use super::checkpoints::Checkpoints;
use super::cleaning::Cleaning;
use super::pool_events::PoolEvents;
use super::trimming::Trimming;
use crate::pool::Signals;
use crate::units::LaneIndex;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Raises alarms; never blocks.
pub(super) struct LaneSignals {
    pub alarms: Vec<Arc<Alarm>>,
    pub checkpoints: Arc<Checkpoints>,
    pub cleaning: Arc<Cleaning>,
    pub trimming: Arc<Trimming>,
    pub events: Arc<PoolEvents>,
}

impl Signals for LaneSignals {
    fn want_checkpoint(&self) {
        self.checkpoints.want();
    }

    fn wake_lanes(&self) {
        self.alarms.iter().for_each(|alarm| alarm.raise());
        self.events.happen();
    }

    fn wake_lane(&self, lane: LaneIndex) {
        self.alarms[lane.as_usize()].raise();
    }

    fn wake_other_lanes(&self, lane: LaneIndex) {
        let others = self.alarms.iter().enumerate().filter(|(index, _)| *index != lane.as_usize());
        others.for_each(|(_, alarm)| alarm.raise());
    }

    fn space_freed(&self) {
        self.cleaning.space_freed();
        self.events.happen();
        self.trimming.look();
    }

    fn want_stock(&self) {
        self.trimming.look();
    }

    fn now_seconds(&self) -> u64 {
        // A clock before 1970 is a broken clock; zero is as good as any other time.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
    }
}
