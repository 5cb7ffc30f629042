//! How long a pool takes to open: after it was closed, and after it was killed with a full log.

use super::case::Case;
use super::contest::Round;
use super::engine_team::{EngineTeam, PoolPlan};
use super::load::{Limit, Measured, Plan};
use super::place::Place;
use crate::error::Result;
use crate::pool::Limits;

/// One that opens the same pool again and again.
pub(super) struct Opener<'a> {
    place: &'a Place,
    plan: PoolPlan,
}

impl<'a> Opener<'a> {
    /// Of a pool whose lanes have ended.
    pub(super) const fn new(place: &'a Place, plan: PoolPlan) -> Self {
        Self { place, plan }
    }

    /// Opens the closed pool, fills its log, opens it again, and closes it. The same `seed` makes the same requests.
    ///
    /// # Errors
    /// If the pool cannot be opened, or a request fails.
    pub(super) fn measure_round(&self, case: &Case, seed: u64) -> Result<Round> {
        let (engine, closed) = EngineTeam::open_files(self.place, &self.plan)?;
        // One more change could begin a checkpoint. Nothing is flushed: recovery verifies every block.
        let limit = Limit::Count(Limits::default().changes_soft_max - 1);
        let writes = Plan { span_bytes: self.plan.span_bytes, stride: 1, limit, is_timed: false };
        engine.team().measure(case, &writes, (seed, 1))?;
        drop(engine);
        let (engine, full_log) = EngineTeam::open_files(self.place, &self.plan)?;
        engine.store()?;
        drop(engine);
        let (engine, closed_again) = EngineTeam::open_files(self.place, &self.plan)?;
        engine.store()?;
        let measured = |duration| Measured::of(1, duration);
        let (first, second, first_again) = (measured(closed), measured(full_log), measured(closed_again));
        Ok(Round { first, second, first_again, own: None })
    }
}
