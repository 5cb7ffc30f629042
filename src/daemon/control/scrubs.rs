//! The scrub of the pool.

use super::Control;
use crate::daemon::scrub_resource::{ScrubAnswer, ScrubOptions};
use crate::error::Result;

impl Control {
    /// How the scrub is, and what it has found.
    #[must_use]
    pub fn scrub_state(&self) -> ScrubAnswer {
        ScrubAnswer::new(self.upkeep.scrub.state(), false)
    }

    /// Begins a scrub, or goes on with one that paused.
    ///
    /// # Errors
    /// `Usage` for a rate or a share that cannot be; `Busy` if one runs; what beginning a job reports.
    pub fn begin_scrub(&self, options: ScrubOptions) -> Result<ScrubAnswer> {
        self.upkeep.scrub.begin(options)
    }

    /// Ends the scrub for now; where it `is_stop`, gives its pass up.
    ///
    /// # Errors
    /// The store's failure.
    pub fn pause_scrub(&self, is_stop: bool, is_dry_run: bool) -> Result<ScrubAnswer> {
        self.upkeep.scrub.pause(is_stop, is_dry_run)
    }
}
