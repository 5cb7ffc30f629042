//! The stages of the group `snapshots`.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::case::Case;
use super::contest::{AGE, Own, Round, WARM, fill, plan_for, plan_of};
use super::engine_team::{EngineTeam, PoolPlan};
use super::load::{Limit, Measured, Plan};
use super::snapshot_case::{
    CLONE_COUNT, Depth, FILE_BLOCKS_MAX, FORECAST_BLOCKS, Mapping, OPEN_SNAPSHOTS, SnapshotCase,
};
use super::snapshot_team::{measured, percentile_ms, stored_meta_bytes};
use super::stage::Stages;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::SnapshotId;
use crate::units::{BLOCK_SIZE_U64, to_u64};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Snapshots of a volume in a round: five hundred in five.
const TAKEN_PER_ROUND: u64 = 100;
/// Snapshots of the volume that is read, and clones between the other and its origin.
const READ_SNAPSHOTS: u64 = 1000;
const READ_DEPTH: u64 = 64;
/// Blocks that change from one to the next: few, so that most leaves are those of the first.
const READ_CHANGES: u64 = 8;
const MANY: &str = "many";
const DEEP: &str = "deep";
const PLAIN_OF_MANY: &str = "plain-of-many";
const PLAIN_OF_DEEP: &str = "plain-of-deep";
/// Blocks whose snapshot is reclaimed.
const RECLAIMED_BLOCKS: u64 = 1_000_000;
/// Volumes whose sets of snapshots make ten thousand.
const OPEN_VOLUMES: u64 = 100;
/// What a pool without much in it has.
const SMALL_POOL_BYTES: u64 = GIB;
/// A leaf or two.
const NO_MAP_CACHE_BYTES: u64 = 16 << 10;

/// A volume whose snapshots are measured.
struct Taken {
    mapping: Mapping,
    volume: Uuid,
    rounds: Vec<TakenRound>,
}

struct TakenRound {
    first: Measured,
    second: Measured,
    first_again: Measured,
    times: Vec<Duration>,
    /// Of synced writes beside the same requests.
    synced_times: Vec<Duration>,
}

impl Stages<'_> {
    /// Measures the cases of the group.
    ///
    /// # Errors
    /// If a pool cannot be made, or something fails there.
    pub(super) fn run_snapshots(&mut self, cases: &[Case]) -> Result<()> {
        let of = |is_wanted: &dyn Fn(SnapshotCase) -> bool| -> Vec<Case> {
            cases.iter().filter(|case| case.snapshot.is_some_and(is_wanted)).copied().collect()
        };
        let is_in_memory = |mapping: Mapping| mapping.block_count > FILE_BLOCKS_MAX;
        let is_take = |case| match case {
            SnapshotCase::Take(mapping) | SnapshotCase::Writes(mapping) => Some(mapping),
            _ => None,
        };
        self.run_takes(&of(&|case| {
            case == SnapshotCase::BySize || is_take(case).is_some_and(|mapping| !is_in_memory(mapping))
        }))?;
        self.run_takes(&of(&|case| is_take(case).is_some_and(is_in_memory)))?;
        self.run_deep_reads(&of(&|case| matches!(case, SnapshotCase::Reads { .. })))?;
        self.run_clones(&of(&|case| matches!(case, SnapshotCase::CloneTime | SnapshotCase::CloneBytes)))?;
        self.run_reclaim(&of(&|case| matches!(case, SnapshotCase::ReclaimRate | SnapshotCase::ReclaimHold)))?;
        self.run_forecast(&of(&|case| case == SnapshotCase::Forecast))?;
        self.run_open(&of(&|case| case == SnapshotCase::Open))
    }

    fn add_rounds(&mut self, case: &Case, rounds: impl IntoIterator<Item = Round>) {
        rounds.into_iter().for_each(|round| self.report.add(case, round));
        self.output.message(&self.report.sentence(case));
    }

    /// Snapshots of several volumes of one pool, by turns, beside writes to them.
    fn run_takes(&mut self, cases: &[Case]) -> Result<()> {
        let mappings = mappings_of(cases);
        let Some(largest) = mappings.iter().map(|mapping| mapping.block_count).max() else { return Ok(()) };
        let mapped_bytes = mappings.iter().map(|mapping| mapping.block_count).sum::<u64>() * BLOCK_SIZE_U64;
        let size_bytes = self.arguments.pool_size + mapped_bytes.next_multiple_of(1 << 20);
        let plan = self.pool_plan("taken", size_bytes, 1 << 20);
        let engine = if largest > FILE_BLOCKS_MAX {
            EngineTeam::in_thin_memory(&plan)?
        } else {
            EngineTeam::on_files(self.place, &plan)?
        };
        let synced_path = self.place.path("synced");
        let mut synced = if largest > FILE_BLOCKS_MAX {
            None
        } else {
            Some(File::create(&synced_path).map_err(|error| Error::from_io("Creating", &synced_path, error))?)
        };
        let mut all = Vec::new();
        for mapping in mappings {
            self.output.message(&format!(
                "Mapping {} blocks of a volume of {}",
                mapping.block_count,
                self.output.size(mapping.size_bytes)
            ));
            let volume = engine.create_volume(&mapping.volume_name(), mapping.size_bytes)?;
            engine.map(volume, mapping)?;
            all.push(Taken { mapping, volume, rounds: Vec::new() });
        }
        for round in 0..u64::from(self.arguments.rounds) {
            for taken in &mut all {
                if engine.is_half_full() {
                    engine.remove_snapshots()?;
                }
                let time = Duration::from_secs_f64(self.arguments.seconds);
                taken.rounds.push(taken.measure_round(&engine, (&cases[0], synced.as_mut()), round, time)?);
            }
        }
        for case in cases {
            let rounds = match case.snapshot {
                Some(SnapshotCase::BySize) => by_size(&all),
                Some(SnapshotCase::Take(mapping)) => rounds_of(&all, mapping, true),
                Some(SnapshotCase::Writes(mapping)) => rounds_of(&all, mapping, false),
                _ => Vec::new(),
            };
            self.add_rounds(case, rounds);
        }
        Ok(())
    }

    /// Reads of a volume with many snapshots, and of a clone of clones, against those of a volume that has had the same writes.
    fn run_deep_reads(&mut self, cases: &[Case]) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let size_bytes = self.arguments.pool_size;
        let span_bytes = size_bytes / 8 / (1 << 20) * (1 << 20);
        let plan = self.pool_plan("deep", size_bytes, 1 << 20);
        let engine = EngineTeam::on_files(self.place, &plan)?;
        self.output.message("Writing a volume under a thousand snapshots, a clone 64 deep, and two without either");
        write_deep_volumes(&engine, span_bytes)?;
        let is_cold = |case: &Case| matches!(case.snapshot, Some(SnapshotCase::Reads { is_cold: true, .. }));
        for case in cases.iter().filter(|case| !is_cold(case)) {
            self.read_rounds(&engine, case, span_bytes)?;
        }
        drop(engine);
        let cold: Vec<Case> = cases.iter().filter(|case| is_cold(case)).copied().collect();
        if !cold.is_empty() {
            let plan = PoolPlan { map_cache_bytes: NO_MAP_CACHE_BYTES, ..plan };
            let (engine, _) = EngineTeam::open_files(self.place, &plan)?;
            for case in &cold {
                self.read_rounds(&engine, case, span_bytes)?;
            }
        }
        Ok(())
    }

    fn read_rounds(&mut self, engine: &EngineTeam, case: &Case, span_bytes: u64) -> Result<()> {
        let (plain, other) = match case.snapshot {
            Some(SnapshotCase::Reads { depth: Depth::Clones, .. }) => (PLAIN_OF_DEEP, DEEP),
            _ => (PLAIN_OF_MANY, MANY),
        };
        let plan = plan_for(case, span_bytes, Duration::from_secs_f64(self.arguments.seconds));
        let team = engine.team();
        for name in [plain, other] {
            team.open_volume(name)?;
            team.measure(&WARM, &plan_of(&WARM, span_bytes, span_bytes), (0, 1))?;
        }
        let mut rounds = Vec::new();
        for round in 0..u64::from(self.arguments.rounds) {
            let read = |name: &str| {
                team.open_volume(name)?;
                team.measure(case, &plan, (round, 1))
            };
            rounds.push(Round { first: read(plain)?, second: read(other)?, first_again: read(plain)?, own: None });
        }
        self.add_rounds(case, rounds);
        Ok(())
    }

    /// Clones, made at once; after each round the pool is closed, and its metadata merged and counted.
    fn run_clones(&mut self, cases: &[Case]) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let plan = self.pool_plan("cloned", SMALL_POOL_BYTES, SMALL_POOL_BYTES / 4);
        let path = self.place.path(plan.name);
        let mut engine = Some(self.filled(&plan)?);
        let (mut times, mut bytes) = (Vec::new(), Vec::new());
        for round in 0..self.arguments.rounds {
            let open = match engine.take() {
                Some(engine) => engine,
                None => EngineTeam::open_files(self.place, &plan)?.0,
            };
            let (origin, _) = open.take_snapshot(open.volume_id(super::engine_side::VOLUME_NAME)?)?;
            let first = measured(&[open.clone_as(origin, vec![format!("one-{round}")])?]);
            open.store()?;
            drop(open);
            let before = stored_meta_bytes(&path)?;
            let (open, _) = EngineTeam::open_files(self.place, &plan)?;
            let names = (0..CLONE_COUNT).map(|number| format!("clone-{round}-{number}")).collect();
            let time = open.clone_as(origin, names)?;
            let second = Measured::of(u64::from(CLONE_COUNT), time);
            let first_again = measured(&[open.clone_as(origin, vec![format!("again-{round}")])?]);
            open.store()?;
            drop(open);
            let grown = stored_meta_bytes(&path)?.saturating_sub(before);
            let each = f64::from(u32::try_from(grown).unwrap_or(u32::MAX)) / f64::from(CLONE_COUNT);
            times.push(Round { first, second, first_again, own: None });
            let own = Some(Own { figure: each, usual: None, control: 0.0 });
            bytes.push(Round { first, second, first_again, own });
        }
        for case in cases {
            let rounds = if case.snapshot == Some(SnapshotCase::CloneTime) { &times } else { &bytes };
            self.add_rounds(case, rounds.clone());
        }
        Ok(())
    }

    /// Blocks that only a snapshot holds become free when it goes: how fast with nothing else to do, and how long writes to
    /// another volume take at most beside that.
    fn run_reclaim(&mut self, cases: &[Case]) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        let mapped_bytes = RECLAIMED_BLOCKS * BLOCK_SIZE_U64;
        let span_bytes = SMALL_POOL_BYTES / 4;
        let plan =
            self.pool_plan("reclaimed", SMALL_POOL_BYTES + 3 * mapped_bytes.next_multiple_of(1 << 20), span_bytes);
        let engine = EngineTeam::in_thin_memory(&plan)?;
        fill(engine.team(), span_bytes)?;
        let mapping = Mapping { size_bytes: TIB, block_count: RECLAIMED_BLOCKS, is_scattered: false };
        let volume = engine.create_volume("reclaimed", mapping.size_bytes)?;
        engine.map(volume, mapping)?;
        let time = Duration::from_secs_f64(self.arguments.seconds);
        for case in cases {
            let mut rounds = Vec::new();
            for round in 0..u64::from(self.arguments.rounds) {
                let (snapshot, _) = engine.take_snapshot(volume)?;
                engine.map(volume, mapping)?;
                let alone = || engine.measure_alone(case, (span_bytes, 1), round, time);
                let first = alone()?;
                let mut freed_in = Duration::ZERO;
                let mut free = || -> Result<bool> {
                    engine.remove_snapshot(snapshot)?;
                    freed_in = engine.reclaim()?;
                    Ok(false)
                };
                let is_rate = case.snapshot == Some(SnapshotCase::ReclaimRate);
                let second = if is_rate {
                    free().map(|_| Measured::of(RECLAIMED_BLOCKS, Duration::ZERO))?
                } else {
                    engine.measure_until(case, (span_bytes, 1), round, free)?
                };
                let second = if is_rate { Measured { duration: freed_in, ..second } } else { second };
                let rate = second.requests_per_second();
                let own = is_rate.then_some(Own { figure: rate, usual: None, control: 0.0 });
                rounds.push(Round { first, second, first_again: alone()?, own });
            }
            self.add_rounds(case, rounds);
        }
        Ok(())
    }

    /// Tells what removing a snapshot would free, of which the head has replaced all blocks: a few, many, and a few again.
    fn run_forecast(&mut self, cases: &[Case]) -> Result<()> {
        let [case] = cases else { return Ok(()) };
        let mapped_bytes = 2 * (FORECAST_BLOCKS + SMALLEST.block_count) * BLOCK_SIZE_U64;
        let size_bytes = SMALL_POOL_BYTES + mapped_bytes.next_multiple_of(1 << 20);
        let engine = EngineTeam::in_thin_memory(&self.pool_plan("forecast", size_bytes, 1 << 20))?;
        self.output.message(&format!("Mapping {FORECAST_BLOCKS} blocks twice"));
        let replaced = |mapping: Mapping| -> Result<SnapshotId> {
            let volume = engine.create_volume(&mapping.volume_name(), mapping.size_bytes)?;
            engine.map(volume, mapping)?;
            let (snapshot, _) = engine.take_snapshot(volume)?;
            engine.map(volume, mapping)?;
            Ok(snapshot)
        };
        let few = replaced(SMALLEST)?;
        let many = replaced(Mapping { size_bytes: 64 * TIB, block_count: FORECAST_BLOCKS, is_scattered: false })?;
        let mut rounds = Vec::new();
        for _ in 0..self.arguments.rounds {
            let forecast = |snapshot| engine.forecast(snapshot);
            rounds.push(Round {
                first: forecast(few)?,
                second: forecast(many)?,
                first_again: forecast(few)?,
                own: None,
            });
        }
        self.add_rounds(case, rounds);
        Ok(())
    }

    /// Opens a pool without snapshots, one with ten thousand, and the first again.
    fn run_open(&mut self, cases: &[Case]) -> Result<()> {
        let [case] = cases else { return Ok(()) };
        let plan = |name| self.pool_plan(name, SMALL_POOL_BYTES, 1 << 20);
        let (none, many) = (plan("opened-none"), plan("opened-many"));
        drop(EngineTeam::on_files(self.place, &none)?);
        let engine = EngineTeam::on_files(self.place, &many)?;
        self.output.message(&format!("Making {OPEN_SNAPSHOTS} snapshots"));
        let volumes = (0..OPEN_VOLUMES).map(|number| engine.create_volume(&format!("volume-{number}"), TIB));
        let volumes = volumes.collect::<Result<Vec<Uuid>>>()?;
        for _ in 0..OPEN_SNAPSHOTS / OPEN_VOLUMES {
            engine.take_set(&volumes)?;
        }
        engine.store()?;
        drop(engine);
        let mut rounds = Vec::new();
        for _ in 0..self.arguments.rounds {
            let open = |plan| EngineTeam::open_files(self.place, plan).map(|(_, time)| Measured::of(1, time));
            rounds.push(Round { first: open(&none)?, second: open(&many)?, first_again: open(&none)?, own: None });
        }
        self.add_rounds(case, rounds);
        Ok(())
    }
}

impl Taken {
    /// Writes alone, beside snapshots that follow each other, and alone; then beside synced writes to a file of the same disk,
    /// since the least that a snapshot does is one of them.
    fn measure_round(
        &self,
        engine: &EngineTeam,
        (case, synced): (&Case, Option<&mut File>),
        round: u64,
        time: Duration,
    ) -> Result<TakenRound> {
        engine.team().open_volume(&self.mapping.volume_name())?;
        let places = (self.mapping.block_count * BLOCK_SIZE_U64, self.mapping.stride());
        let first = engine.measure_alone(case, places, 2 * round, time)?;
        let mut times = Vec::new();
        let second = engine.measure_until(case, places, 2 * round + 1, || {
            times.push(engine.take_snapshot(self.volume)?.1);
            Ok(to_u64(times.len()) < TAKEN_PER_ROUND)
        })?;
        let first_again = engine.measure_alone(case, places, 2 * round, time)?;
        let mut synced_times = Vec::new();
        if let Some(file) = synced {
            engine.measure_until(case, places, 2 * round + 1, || {
                let begun = Instant::now();
                let written = file.write_all(&[7; 4096]).and_then(|()| file.sync_data());
                written.map_err(|error| Error::new(ErrorKind::Other, "A synced write failed").with_source(error))?;
                synced_times.push(begun.elapsed());
                Ok(to_u64(synced_times.len()) < TAKEN_PER_ROUND)
            })?;
        }
        Ok(TakenRound { first, second, first_again, times, synced_times })
    }
}

/// The volumes that the cases need.
fn mappings_of(cases: &[Case]) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for case in cases {
        let needed = match case.snapshot {
            Some(SnapshotCase::Take(mapping) | SnapshotCase::Writes(mapping)) => vec![mapping],
            Some(SnapshotCase::BySize) => vec![SMALLEST, LARGEST],
            _ => Vec::new(),
        };
        for mapping in needed {
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
    }
    mappings
}

const SMALLEST: Mapping = Mapping { size_bytes: GIB, block_count: 1000, is_scattered: false };
const LARGEST: Mapping = Mapping { size_bytes: 64 * TIB, block_count: FILE_BLOCKS_MAX, is_scattered: true };

fn rounds_of(all: &[Taken], mapping: Mapping, is_take: bool) -> Vec<Round> {
    let taken = all.iter().filter(|taken| taken.mapping == mapping).flat_map(|taken| &taken.rounds);
    let round = |round: &TakenRound| {
        let is_synced = !round.synced_times.is_empty();
        let control = if is_synced { percentile_ms(&round.synced_times, 99) } else { 0.0 };
        let own =
            Own { figure: percentile_ms(&round.times, 99), usual: Some(percentile_ms(&round.times, 50)), control };
        let TakenRound { first, second, first_again, .. } = *round;
        Round { first, second, first_again, own: is_take.then_some(own) }
    };
    taken.map(round).collect()
}

/// The usual snapshot of the largest volume against that of the smallest; the second half of that one's against the first.
fn by_size(all: &[Taken]) -> Vec<Round> {
    let of = |mapping| all.iter().find(|taken| taken.mapping == mapping);
    let (Some(smallest), Some(largest)) = (of(SMALLEST), of(LARGEST)) else { return Vec::new() };
    let round = |(small, large): (&TakenRound, &TakenRound)| {
        let (half, other_half) = small.times.split_at(small.times.len() / 2);
        let usual = |times| percentile_ms(times, 50);
        let figure = usual(&large.times) / usual(&small.times);
        let own = Some(Own { figure, usual: None, control: usual(other_half) / usual(half) });
        Round {
            first: measured(&small.times),
            second: measured(&large.times),
            first_again: measured(&small.times),
            own,
        }
    };
    smallest.rounds.iter().zip(&largest.rounds).map(round).collect()
}

/// Makes a volume, and fills it in order.
fn create_filled(engine: &EngineTeam, name: &str, span_bytes: u64) -> Result<Uuid> {
    let volume = engine.create_volume(name, span_bytes)?;
    engine.team().open_volume(name)?;
    fill(engine.team(), span_bytes)?;
    Ok(volume)
}

/// Overwrites so many blocks in random places.
fn overwrite(engine: &EngineTeam, span_bytes: u64, count: u64, seed: u64) -> Result<()> {
    let plan = Plan { span_bytes, stride: 1, limit: Limit::Count(count), is_timed: false };
    engine.team().measure(&AGE, &plan, (seed, 1)).map(|_| ())
}

/// What is read: volumes with the same writes, with snapshots and clones between these and without.
fn write_deep_volumes(engine: &EngineTeam, span_bytes: u64) -> Result<()> {
    create_filled(engine, PLAIN_OF_MANY, span_bytes)?;
    for seed in 0..READ_SNAPSHOTS {
        overwrite(engine, span_bytes, READ_CHANGES, seed)?;
    }
    let volume = create_filled(engine, MANY, span_bytes)?;
    for seed in 0..READ_SNAPSHOTS {
        engine.take_snapshot(volume)?;
        overwrite(engine, span_bytes, READ_CHANGES, seed)?;
    }
    create_filled(engine, PLAIN_OF_DEEP, span_bytes)?;
    for seed in 0..READ_DEPTH {
        overwrite(engine, span_bytes, READ_CHANGES, seed)?;
    }
    let mut origin = create_filled(engine, "deep-0", span_bytes)?;
    for seed in 0..READ_DEPTH {
        let (snapshot, _) = engine.take_snapshot(origin)?;
        let name = if seed + 1 == READ_DEPTH { DEEP.to_owned() } else { format!("deep-{}", seed + 1) };
        engine.clone_as(snapshot, vec![name.clone()])?;
        origin = engine.volume_id(&name)?;
        engine.team().open_volume(&name)?;
        overwrite(engine, span_bytes, READ_CHANGES, seed)?;
    }
    engine.store()
}
