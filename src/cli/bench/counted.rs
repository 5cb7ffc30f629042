//! Exactly so many requests, for tools that count: instructions (callgrind) or system calls (strace).
//!
//! What the beginning and the end cost is the same in each run. So the difference of two runs is what the requests cost
//! that the one made more than the other.

use super::case::Case;
use super::contest::fill_engine;
use super::engine_team::{EngineTeam, PoolPlan};
use super::load::{Limit, Plan};
use crate::cli::bench::arguments::{Bench, BenchGroup};
use crate::error::{Error, ErrorKind, Result};

/// Small, since under a tool that counts everything takes fifty times as long.
const SPAN_BYTES: u64 = 8 << 20;
const POOL_BYTES: u64 = 128 << 20;
const MAP_CACHE_BYTES: u64 = 64 << 20;

/// Makes `count` requests of the only case, with the engine alone, and prints nothing.
///
/// # Errors
/// `Usage` if it is not one case of the group `memory`; else if a request fails.
pub(super) fn run(cases: &[Case], arguments: &Bench, count: u64) -> Result<()> {
    let [case @ Case { group: BenchGroup::Memory, .. }] = cases else {
        return Err(Error::new(ErrorKind::Usage, "A number of requests is for one case of the group memory")
            .with_hint("Name it, like --case memory-random-write-4k-qd32"));
    };
    let plan = PoolPlan {
        name: "counted",
        size_bytes: POOL_BYTES,
        span_bytes: SPAN_BYTES,
        is_encrypted: !arguments.no_encryption,
        lane_count: 1,
        map_cache_bytes: MAP_CACHE_BYTES,
        meta_cache_bytes: 0,
    };
    let engine = match &arguments.ring_on {
        Some(directory) => EngineTeam::on_hidden_file(directory, &plan)?,
        None => EngineTeam::in_memory(&plan)?,
    };
    fill_engine(&engine, SPAN_BYTES)?;
    let plan = Plan { span_bytes: SPAN_BYTES, stride: 1, limit: Limit::Count(count), is_timed: false };
    engine.team().measure(case, &plan, (0, 1)).map(|_| ())
}
