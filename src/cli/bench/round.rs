//! One round of a case: raw, engine, raw again.

use super::case::{Access, Case};
use super::engine_side::EngineSide;
use super::load::{Measured, Plan, measure, random_buffers};
use super::raw_side::RawSide;
use crate::disk::IoBuffer;
use crate::error::Result;
use std::time::Duration;

/// Both sides and what holds for all rounds.
pub(super) struct Rounds {
    pub(super) raw: RawSide,
    pub(super) engine: EngineSide,
    pub(super) plan: Plan,
}

/// What a round found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) raw: Measured,
    pub(super) engine: Measured,
    pub(super) raw_again: Measured,
}

/// Writes the span from its start to its end.
const FILL: Case = Case { access: Access::SequentialWrite, size_bytes: 1 << 20, depth: 8, target: None };
/// Reads it, so that the leaves are cached.
const WARM: Case = Case { access: Access::SequentialRead, size_bytes: 1 << 20, depth: 8, target: None };

/// As good as endless: the span ends a fill first.
const FILL_TIME_MAX: Duration = Duration::from_secs(3600);

impl Rounds {
    /// Fills both sides with random bytes, in order.
    ///
    /// # Errors
    /// If a request fails.
    pub(super) fn fill(&mut self) -> Result<()> {
        let plan = Plan { duration: FILL_TIME_MAX, ..self.plan.clone() };
        let buffers = random_buffers(&FILL);
        measure(&mut self.raw, &FILL, &plan, &buffers, 0)?;
        measure(&mut self.engine, &FILL, &plan, &buffers, 0)?;
        self.engine.store()?;
        measure(&mut self.engine, &WARM, &self.plan, &buffers, 0)?;
        Ok(())
    }

    /// Measures a round. The same `seed` makes the same requests on both sides.
    ///
    /// # Errors
    /// If a request fails.
    pub(super) fn measure(&mut self, case: &Case, seed: u64) -> Result<Round> {
        if case.access.is_write() {
            self.engine.empty()?;
        }
        let buffers = random_buffers(case);
        let first = self.measure_raw(case, &buffers, seed)?;
        let engine = measure(&mut self.engine, case, &self.plan, &buffers, seed)?;
        Ok(Round { raw: first, engine, raw_again: self.measure_raw(case, &buffers, seed)? })
    }

    /// Sequential writes go on behind the last ones, as the engine's do: a machine that keeps the file in memory below us
    /// (virtual machines often do) takes what is there already several times as fast.
    fn measure_raw(&mut self, case: &Case, buffers: &[IoBuffer], seed: u64) -> Result<Measured> {
        match case.access {
            Access::SequentialWrite => self.raw.move_on(self.plan.span_bytes),
            _ => self.raw.move_to_start(),
        }
        measure(&mut self.raw, case, &self.plan, buffers, seed)
    }
}
