//! Watermarks: shares of used blocks at which a pool's space counts as low, and as critical.
//!
//! Looked at by each checkpoint, since only there the used blocks change. Each crossing is logged once: a level is left
//! only when the share is some percent below its mark.

use crate::error::{Error, ErrorKind, Result};
use crate::pool::Pool;

/// So many percent below a mark its level is left.
const HYSTERESIS_PERCENT: u8 = 2;
/// The lowest mark.
const PERCENT_MIN: u8 = 5;

/// How much space is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpaceLevel {
    /// Below the marks.
    #[default]
    Enough,
    /// Some of it: time to add space, or to free some.
    Low,
    /// Hardly any: soon writes find none.
    Critical,
}

/// At which shares of used blocks, in percent, space is low and critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    low: u8,
    critical: u8,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { low: 80, critical: 95 }
    }
}

impl Watermarks {
    /// Watermarks in percent of used blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] unless 5 <= `low` < `critical` <= 100.
    pub fn new(low: u8, critical: u8) -> Result<Self> {
        if low < PERCENT_MIN || low >= critical || critical > 100 {
            let message = format!("Space cannot be low from {low} % and critical from {critical} % on");
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("Use percent of used space from 5 to 100, low below critical"));
        }
        Ok(Self { low, critical })
    }

    /// From so many percent of used blocks on space is low.
    #[must_use]
    pub const fn low_percent(self) -> u8 {
        self.low
    }

    /// From so many percent of used blocks on space is critical.
    #[must_use]
    pub const fn critical_percent(self) -> u8 {
        self.critical
    }

    /// The level at `used` of `capacity` blocks, behind the level `before`.
    fn level(self, used: u64, capacity: u64, before: SpaceLevel) -> SpaceLevel {
        let is_reached = |mark: u8, level: SpaceLevel| {
            let percent = if before >= level { mark - HYSTERESIS_PERCENT } else { mark };
            u128::from(used) * 100 >= u128::from(capacity) * u128::from(percent)
        };
        if is_reached(self.critical, SpaceLevel::Critical) {
            SpaceLevel::Critical
        } else if is_reached(self.low, SpaceLevel::Low) {
            SpaceLevel::Low
        } else {
            SpaceLevel::Enough
        }
    }
}

impl Pool {
    /// How much space is left, as of the last checkpoint.
    #[must_use]
    pub fn space_level(&self) -> SpaceLevel {
        *self.space_level.lock()
    }

    /// Looks at the watermarks and logs a crossing.
    pub(super) fn watch_space(&self) {
        let used = self.stored.lock().used_count;
        let capacity = self.space.lock().block_count();
        let percent = u128::from(used) * 100 / u128::from(capacity.max(1));
        let mut level = self.space_level.lock();
        let before = *level;
        *level = self.limits.watermarks.level(used, capacity, before);
        match *level {
            now if now == before => {}
            SpaceLevel::Critical => {
                tracing::warn!(percent, "the pool's space is critical: grow the pool, add a device, or free some");
            }
            SpaceLevel::Low if before < SpaceLevel::Low => {
                tracing::warn!(percent, "the pool's space is low: grow the pool, add a device, or free some");
            }
            SpaceLevel::Low => tracing::info!(percent, "the pool's space is low, and critical no more"),
            SpaceLevel::Enough => tracing::info!(percent, "the pool has enough space again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::Place;
    use std::io::{Read as _, Seek as _};

    #[test]
    fn levels_begin_at_their_marks_and_end_below_them() {
        let marks = Watermarks::new(80, 95).expect("they make sense");
        let mut level = SpaceLevel::Enough;
        let mut levels = Vec::new();
        for percent in [79, 80, 79, 78, 77, 80, 94, 95, 94, 93, 92, 96, 77] {
            level = marks.level(percent, 100, level);
            levels.push(level);
        }
        use SpaceLevel::{Critical, Enough, Low};
        let wanted = [Enough, Low, Low, Low, Enough, Low, Low, Critical, Critical, Critical, Low, Critical, Enough];
        assert_eq!(levels, wanted);
    }

    #[test]
    fn marks_that_make_no_sense_are_refused() {
        for (low, critical) in [(4, 95), (95, 95), (96, 95), (80, 101)] {
            assert_eq!(Watermarks::new(low, critical).expect_err("no sense").kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn a_crossing_is_logged_once_with_the_percent_of_blocks_that_are_used() {
        let pool = Place::new().open();
        let capacity = pool.space.lock().block_count();
        let use_percent = |percent: u64| {
            pool.stored.lock().used_count = capacity * percent / 100;
            pool.watch_space();
        };
        // First unheard: whether anybody wants an event is found out when it first comes, be it on another thread.
        [85, 0].into_iter().for_each(use_percent);
        let mut log = tempfile::tempfile().expect("the temporary folder is writable");
        let writer = log.try_clone().expect("it is open");
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();

        tracing::subscriber::with_default(subscriber, || [85, 86].into_iter().for_each(use_percent));

        let mut text = String::new();
        log.rewind().and_then(|()| log.read_to_string(&mut text)).expect("it is text");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("space is low") && text.contains("percent=85"), "{text}");
    }
}
