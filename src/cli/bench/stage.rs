//! What cases need: pools and raw files, made for those that were chosen, and gone before the next are made.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use super::case::Case;
use super::contest::{Contestant, age, fill, fill_engine, measure_round, plan_for};
use super::engine_team::{EngineTeam, PoolPlan};
use super::load::NoSide;
use super::place::Place;
use super::raw_side::{RawSide, open_file};
use super::recovery::Opener;
use super::report::Report;
use super::worker::Team;
use crate::cli::bench::arguments::{Bench, BenchGroup};
use crate::cli::output::Output;
use crate::disk::FileDevice;
use crate::error::Result;

/// The volume is this part of a fresh pool, so that long free runs are left when all of it was written once.
const VOLUME_PART: u64 = 4;
/// How full an aged pool is, in percent, and how often its free space is overwritten.
const AGED_PERCENT: u64 = 80;
const AGED_TIMES: u64 = 3;
/// More leaves than the volumes of usual benches have: leaf misses are measured by themselves.
const MAP_CACHE_BYTES: u64 = 2 << 30;
const META_CACHE_BYTES: u64 = 256 << 20;
/// With leaves that are not cached: the map's cache for each 16 GiB that are mapped, and the least that the metadata
/// store works with.
const COLD_MAP_CACHE_BYTES: u64 = 5 << 20;
const COLD_MAPPED_BYTES: u64 = 16 << 30;
const COLD_META_CACHE_BYTES: u64 = 8 << 20;
const MEMORY_POOL_BYTES: u64 = 1 << 30;
const MEMORY_LANES: u16 = 2;
/// More lanes than a server runs by itself are of no interest.
const LANES_MAX: usize = 16;
const MIB: u64 = 1 << 20;

/// What all stages use.
pub(super) struct Stages<'a> {
    pub(super) arguments: &'a Bench,
    pub(super) output: &'a Output,
    pub(super) place: &'a Place,
    pub(super) report: Report,
}

/// The volume of a fresh pool of this size.
pub(super) const fn fresh_span_bytes(pool_bytes: u64) -> u64 {
    pool_bytes / VOLUME_PART / MIB * MIB
}

impl Stages<'_> {
    /// Measures the cases, stage by stage.
    ///
    /// # Errors
    /// If a pool cannot be made, or a request fails.
    pub(super) fn run(&mut self, cases: &[Case]) -> Result<()> {
        use BenchGroup::{
            Aged, AllLanes, Cleaned, ColdLeaves, Encryption, Fresh, Memory, MemoryLanes, Recovery, Snapshots, Tail,
        };
        let of = |groups: &[BenchGroup]| {
            let mut chosen: Vec<Case> = cases.iter().filter(|case| groups.contains(&case.group)).copied().collect();
            // Reads first: they find the volume as it was filled. Each write begins with an empty one.
            chosen.sort_by_key(|case| (case.access.is_write(), !case.access.is_read()));
            chosen
        };
        // Each stage makes its own files, so that what they take at most is what the largest of them does.
        self.run_fresh(&of(&[Fresh, AllLanes, Encryption]))?;
        self.place.clear()?;
        self.run_aged(&[of(&[Aged]), of(&[Tail]), of(&[Cleaned])].concat())?;
        self.place.clear()?;
        self.run_cold(&of(&[ColdLeaves]))?;
        self.place.clear()?;
        self.run_recovery(&of(&[Recovery]))?;
        self.place.clear()?;
        self.run_memory(&of(&[Memory, MemoryLanes]))?;
        self.run_snapshots(&cases.iter().filter(|case| case.group == Snapshots).copied().collect::<Vec<_>>())
    }

    fn run_fresh(&mut self, cases: &[Case]) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let lane_count = lane_count();
        let size_bytes = self.arguments.pool_size;
        let span_bytes = fresh_span_bytes(size_bytes);
        let plan = self.pool_plan("pool", size_bytes, span_bytes);
        let plan = PoolPlan { lane_count: u16::try_from(lane_count).expect("at most 16"), ..plan };
        let raw = self.raw_team("raw", size_bytes, lane_count)?;
        let engine = self.filled(&plan)?;
        let needs_plain = cases.iter().any(|case| case.group == BenchGroup::Encryption);
        let plain = PoolPlan { name: "plain-pool", is_encrypted: false, ..plan };
        let plain = if needs_plain { Some(self.filled(&plain)?) } else { None };
        fill(&raw, span_bytes)?;
        for case in cases {
            let lane = Contestant::engine(&engine, 1);
            let contestants = match (case.group, &plain) {
                (BenchGroup::AllLanes, _) => {
                    (Contestant::other(&raw, raw.count()), Contestant::engine(&engine, raw.count()))
                }
                (BenchGroup::Encryption, Some(plain)) => (Contestant::engine(plain, 1), lane),
                _ => (Contestant::other(&raw, 1), lane),
            };
            self.contest(contestants, case, span_bytes)?;
        }
        drop(engine);
        Ok(())
    }

    fn run_aged(&mut self, cases: &[Case]) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let size_bytes = self.arguments.pool_size / 2;
        let span_bytes = size_bytes * AGED_PERCENT / 100 / MIB * MIB;
        let raw = self.raw_team("aged-raw", size_bytes, 1)?;
        fill(&raw, span_bytes)?;
        let engine = self.filled(&self.pool_plan("aged-pool", size_bytes, span_bytes))?;
        let overwritten = AGED_TIMES * (size_bytes - span_bytes);
        self.output.message(&format!(
            "Overwriting {} in random places of a pool of {} that is {AGED_PERCENT} % full",
            self.output.size(overwritten),
            self.output.size(size_bytes)
        ));
        age(&engine, span_bytes, overwritten)?;
        for case in cases {
            let lane = Contestant::engine(&engine, 1);
            let first = if case.group == BenchGroup::Tail { lane } else { Contestant::other(&raw, 1) };
            let second = if case.group == BenchGroup::Tail { lane.busy() } else { lane };
            self.contest((first, second), case, span_bytes)?;
        }
        Ok(())
    }

    fn run_cold(&mut self, cases: &[Case]) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let span_bytes = self.arguments.mapped_size;
        let map_cache_bytes = COLD_MAP_CACHE_BYTES * (span_bytes / MIB) / (COLD_MAPPED_BYTES / MIB);
        self.output.message(&format!(
            "Mapping {}, with a map cache of {} and {} for the metadata store",
            self.output.size(span_bytes),
            self.output.size(map_cache_bytes),
            self.output.size(COLD_META_CACHE_BYTES)
        ));
        let raw = self.raw_team("cold-raw", span_bytes, 1)?;
        fill(&raw, span_bytes)?;
        // The rest is for records and for a checkpoint's delay.
        let plan = self.pool_plan("cold-pool", span_bytes + span_bytes / 4, span_bytes);
        let engine = self.filled(&PoolPlan { map_cache_bytes, meta_cache_bytes: COLD_META_CACHE_BYTES, ..plan })?;
        for case in cases {
            self.contest((Contestant::other(&raw, 1), Contestant::engine(&engine, 1)), case, span_bytes)?;
        }
        Ok(())
    }

    fn run_recovery(&mut self, cases: &[Case]) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let size_bytes = self.arguments.pool_size;
        let plan = self.pool_plan("recovery-pool", size_bytes, fresh_span_bytes(size_bytes));
        drop(self.filled(&plan)?);
        let opener = Opener::new(self.place, plan);
        for case in cases {
            for round in 0..self.arguments.rounds {
                self.report.add(case, opener.measure_round(case, u64::from(round))?);
            }
            self.output.message(&self.report.sentence(case));
        }
        Ok(())
    }

    fn run_memory(&mut self, cases: &[Case]) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let span_bytes = fresh_span_bytes(MEMORY_POOL_BYTES);
        let plan = self.pool_plan("memory", MEMORY_POOL_BYTES, span_bytes);
        let engine = EngineTeam::in_memory(&PoolPlan { lane_count: MEMORY_LANES, ..plan })?;
        fill_engine(&engine, span_bytes)?;
        let nothing = Team::start(vec![|| Ok(NoSide::default())])?;
        for case in cases {
            let lane = Contestant::engine(&engine, 1);
            let contestants = match case.group {
                BenchGroup::Memory => (Contestant::other(&nothing, 1), lane),
                _ => (lane, Contestant::engine(&engine, usize::from(MEMORY_LANES))),
            };
            self.contest(contestants, case, span_bytes)?;
        }
        Ok(())
    }

    fn contest(&mut self, contestants: (Contestant<'_>, Contestant<'_>), case: &Case, span_bytes: u64) -> Result<()> {
        let plan = plan_for(case, span_bytes, Duration::from_secs_f64(self.arguments.seconds));
        for round in 0..self.arguments.rounds {
            self.report.add(case, measure_round(contestants, case, &plan, u64::from(round))?);
        }
        self.output.message(&self.report.sentence(case));
        Ok(())
    }

    pub(super) fn pool_plan(&self, name: &'static str, size_bytes: u64, span_bytes: u64) -> PoolPlan {
        PoolPlan {
            name,
            size_bytes,
            span_bytes,
            is_encrypted: !self.arguments.no_encryption,
            lane_count: 1,
            map_cache_bytes: MAP_CACHE_BYTES,
            meta_cache_bytes: META_CACHE_BYTES,
        }
    }

    /// A pool with a filled volume.
    pub(super) fn filled(&self, plan: &PoolPlan) -> Result<EngineTeam> {
        let engine = EngineTeam::on_files(self.place, plan)?;
        fill_engine(&engine, plan.span_bytes)?;
        Ok(engine)
    }

    /// A raw file that was written once, and workers on it.
    fn raw_team(&self, name: &str, size_bytes: u64, worker_count: usize) -> Result<Team> {
        let path = self.place.path(name);
        drop(FileDevice::create(&path, size_bytes)?);
        let file = open_file(&path)?;
        let build = || {
            let file = Arc::clone(&file);
            move || RawSide::new(file)
        };
        Team::start((0..worker_count).map(|_| build()).collect())
    }
}

fn lane_count() -> usize {
    available_parallelism().map_or(1, |count| count.get().min(LANES_MAX))
}
