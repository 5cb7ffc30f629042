//! A case is a contest of two: they are measured by turns, the first one again behind the second.

use std::time::Duration;

use super::case::{Access, Case};
use super::engine_team::EngineTeam;
use super::load::{Limit, Measured, Plan, requests_of};
use super::worker::Team;
use crate::cli::bench::arguments::BenchGroup;
use crate::error::Result;

/// Who is measured.
#[derive(Clone, Copy)]
pub(super) struct Contestant<'a> {
    team: &'a Team,
    worker_count: usize,
    engine: Option<&'a EngineTeam>,
    is_busy: bool,
}

/// What a round found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) first: Measured,
    pub(super) second: Measured,
    pub(super) first_again: Measured,
    /// The figure, where it is not one of the two.
    pub(super) own: Option<Own>,
}

/// A figure that was measured beside the two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) figure: f64,
    /// The same of what is usual: half of them stay below.
    pub(super) usual: Option<f64>,
    /// The same where nothing should be found.
    pub(super) control: f64,
}

impl<'a> Contestant<'a> {
    /// The raw file, or nothing at all, with so many workers.
    pub(super) const fn other(team: &'a Team, worker_count: usize) -> Self {
        Self { team, worker_count, engine: None, is_busy: false }
    }

    /// Some lanes of a pool.
    pub(super) const fn engine(engine: &'a EngineTeam, worker_count: usize) -> Self {
        Self { team: engine.team(), worker_count, engine: Some(engine), is_busy: false }
    }

    /// The same while one checkpoint follows the other, and the cleaner works without a pause.
    pub(super) const fn busy(self) -> Self {
        Self { is_busy: true, ..self }
    }

    fn measure(&self, case: &Case, plan: &Plan, seed: u64) -> Result<Measured> {
        let Some(engine) = self.engine else { return self.team.measure(case, plan, (seed, self.worker_count)) };
        match case.group {
            BenchGroup::Cleaned => engine.clean()?,
            BenchGroup::Aged | BenchGroup::Tail => engine.store()?,
            _ if case.access.is_write() => engine.empty()?,
            _ if !case.access.is_read() => engine.store()?,
            _ => {}
        }
        let seed_and_lanes = (seed, self.worker_count);
        if self.is_busy {
            engine.measure_busy(case, plan, seed_and_lanes)
        } else {
            self.team.measure(case, plan, seed_and_lanes)
        }
    }
}

/// Measures a round of a case. The same `seed` makes the same requests.
///
/// # Errors
/// If a request fails.
pub(super) fn measure_round(
    contestants: (Contestant<'_>, Contestant<'_>),
    case: &Case,
    plan: &Plan,
    seed: u64,
) -> Result<Round> {
    let (one, other) = contestants;
    let first = one.measure(case, plan, seed)?;
    let second = other.measure(case, plan, seed)?;
    Ok(Round { first, second, first_again: one.measure(case, plan, seed)?, own: None })
}

/// Writes the span from its start to its end.
const FILL: Case = Case::new(BenchGroup::Fresh, Access::SequentialWrite, 1 << 20, 8);
/// Reads it, so that the leaves are cached.
pub(super) const WARM: Case = Case::new(BenchGroup::Fresh, Access::SequentialRead, 1 << 20, 8);
/// Makes single holes in what was written in order.
pub(super) const AGE: Case = Case::new(BenchGroup::Aged, Access::RandomWrite, 4 << 10, 32);

pub(super) fn plan_of(case: &Case, span_bytes: u64, bytes: u64) -> Plan {
    Plan { span_bytes, stride: 1, limit: Limit::Count(requests_of(bytes, case)), is_timed: false }
}

/// Fills a side with random bytes, in order.
///
/// # Errors
/// If a request fails.
pub(super) fn fill(team: &Team, span_bytes: u64) -> Result<()> {
    team.measure(&FILL, &plan_of(&FILL, span_bytes, span_bytes), (0, 1)).map(|_| ())
}

/// Fills the volume of a pool, stores its map and has it cached as far as there is room.
///
/// # Errors
/// If a request or the checkpoint fails.
pub(super) fn fill_engine(engine: &EngineTeam, span_bytes: u64) -> Result<()> {
    fill(engine.team(), span_bytes)?;
    engine.store()?;
    engine.team().measure(&WARM, &plan_of(&WARM, span_bytes, span_bytes), (0, 1)).map(|_| ())
}

/// Overwrites so many bytes of the volume, block by block, in random places.
///
/// # Errors
/// If a request fails.
pub(super) fn age(engine: &EngineTeam, span_bytes: u64, bytes: u64) -> Result<()> {
    engine.team().measure(&AGE, &plan_of(&AGE, span_bytes, bytes), (u64::MAX >> 8, 1)).map(|_| ())
}

/// Samples of a tail: fifty requests are beyond it.
const TAIL_SAMPLES: u64 = 50_000;

/// How a case is measured.
pub(super) fn plan_for(case: &Case, span_bytes: u64, time: Duration) -> Plan {
    let is_timed = case.group == BenchGroup::Tail;
    let limit = if is_timed { Limit::Count(TAIL_SAMPLES) } else { Limit::Time(time) };
    Plan { span_bytes, stride: 1, limit, is_timed }
}
