//! The n-th failure: a scenario that does all that a pool does on its disks is run with its first, second, third … I/O of
//! each kind failing, until it passes untouched. No panic, no wrong byte, and the error that the contract documents.

mod call_sites;
mod outcome;
mod scenario;

use crate::rig::oracle::Presence;
use crate::rig::stage::{Done, Refusal, Stage};
use crate::rig::tap::{Kind, Plan};
use call_sites::CallSite;
use outcome::{Outcome, judge};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rok_blk::disk::CrashMode;
use rok_blk::error::{ErrorKind, IoError};
use scenario::{SCENARIOS, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

/// I/Os of a kind in a scenario: far above what there are.
const NTH_MAX: u64 = 5_000;

/// What the sweep found.
#[derive(Default)]
struct Sweep {
    runs: u64,
    outcomes: BTreeMap<(Kind, Outcome), u64>,
    sites: BTreeSet<CallSite>,
    violations: Vec<String>,
}

impl Sweep {
    /// Runs a scenario with the `nth` I/O of a kind failing; whether there was one.
    fn run(&mut self, scenario: &scenario::Scenario, kind: Kind, nth: u64) -> bool {
        let mut stage = (scenario.begin)();
        stage.rig.tap.want_places();
        stage.rig.tap.plan(Some(Plan::Fail(kind, nth)));
        let mut at = "";
        let ran = catch_unwind(AssertUnwindSafe(|| follow(&mut stage, scenario.steps, kind, &mut at)));
        let outcome = ran.unwrap_or_else(|panic| Err(crate::crash_states::text_of(&*panic)));
        let has_failed = stage.rig.tap.failed_count() > 0;
        self.sites.extend(stage.rig.tap.take_place().and_then(|stack| CallSite::of_stack(&stack)));
        self.runs += u64::from(has_failed);
        let ended = catch_unwind(AssertUnwindSafe(|| end(&mut stage)));
        let ended = ended.unwrap_or_else(|panic| Err(crate::crash_states::text_of(&*panic)));
        match outcome.and_then(|outcome| ended.map(|()| outcome)) {
            Ok(Some(outcome)) => *self.outcomes.entry((kind, outcome)).or_default() += 1,
            Ok(None) => {}
            Err(error) => self.violations.push(format!("{}, {kind:?} {nth}, {at}: {error}", scenario.name)),
        }
        has_failed
    }

    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        other.outcomes.into_iter().for_each(|(outcome, count)| *self.outcomes.entry(outcome).or_default() += count);
        self.sites.extend(other.sites);
        self.violations.extend(other.violations);
    }
}

/// Does the steps, one of which meets the failure; what that came to.
fn follow(
    stage: &mut Stage,
    steps: &'static [Step],
    kind: Kind,
    at: &mut &'static str,
) -> Result<Option<Outcome>, String> {
    let mut outcome = None;
    for (name, step) in steps {
        *at = name;
        let failed_before = stage.rig.tap.failed_count();
        let done = step(stage);
        let has_failed_now = stage.rig.tap.failed_count() > failed_before;
        let is_pool_failed = stage.life.as_ref().is_some_and(|life| life.pool.check_writable().is_err());
        if has_failed_now {
            outcome = Some(judge(kind, name, &done, is_pool_failed)?);
        } else if !is_expected(&done, outcome.is_some()) && !is_pool_failed {
            return Err(format!("it fails although nothing is in the way: {done:?}"));
        }
        if is_pool_failed {
            probe_failed_pool(stage)?;
            break;
        }
        match (&done, *name) {
            (Err(_), "open" | "die and open") if stage.life.is_none() => open_again(stage, kind)?,
            (Err(_), "make a superblock") => stage.create_superblock().map_err(|error| format!("{error:?}"))?,
            (Err(_), "make a pool" | "close") => break,
            _ => {}
        }
    }
    Ok(outcome)
}

/// A machine that lives can open it again. Behind a flush that failed nobody knows what its cache still has: the power goes.
fn open_again(stage: &mut Stage, kind: Kind) -> Result<(), String> {
    if kind == Kind::Flush {
        stage.rig.lose_power(&mut SmallRng::seed_from_u64(2));
        return stage.recover();
    }
    stage.open().map_err(|error| format!("it does not open any more: {error:?}"))
}

/// After something was refused what builds on it is not there.
fn is_expected(done: &Done, is_after_failure: bool) -> bool {
    match done {
        Ok(()) => true,
        Err(Refusal::Control(error)) => {
            is_after_failure && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Exists | ErrorKind::Busy)
        }
        Err(_) => false,
    }
}

/// A pool that has failed takes no write, flush or discard, nor a change of volumes and snapshots, and reads go on.
fn probe_failed_pool(stage: &mut Stage) -> Result<(), String> {
    drop(stage.settle());
    let heads = stage.heads();
    if let Some((name, _)) = heads.first() {
        stage.write(name, 0..1, false);
        let written = stage.settle();
        let removed = stage.remove_blocks(name, 0..1, rok_blk::volume::RemoveMode::Discard, false);
        let removed = removed.and_then(|()| stage.settle());
        stage.flush();
        let flushed = stage.settle();
        for done in [written, removed, flushed] {
            if !matches!(done, Err(Refusal::Request(IoError::Io))) {
                return Err(format!("a pool that has failed answers {done:?}"));
            }
        }
    }
    for tried in stage.try_changes() {
        if !matches!(&tried, Err(error) if error.kind() == ErrorKind::Other) {
            return Err(format!("a pool that has failed answers to a change: {tried:?}"));
        }
    }
    for name in surely_there(stage) {
        stage.read(&name).map_err(|error| format!("{name} of a pool that has failed is not read: {error:?}"))?;
    }
    Ok(())
}

fn surely_there(stage: &Stage) -> Vec<String> {
    let oracle = stage.oracle.lock();
    let heads = oracle.heads.iter().map(|(name, head)| (name, head.presence));
    let things = heads.chain(oracle.versions.iter().map(|(name, version)| (name, version.presence)));
    things.filter(|(_, presence)| *presence == Presence::There).map(|(name, _)| name.clone()).collect()
}

/// The machine or the process dies, and what is found is compared.
fn end(stage: &mut Stage) -> Result<(), String> {
    let is_pool_failed = stage.life.as_ref().is_some_and(|life| life.pool.check_writable().is_err());
    stage.end_life();
    stage.rig.tap.plan(None);
    let random = &mut SmallRng::seed_from_u64(1);
    if is_pool_failed || !stage.is_closed {
        stage.rig.lose_power(random);
    } else {
        stage.rig.kill(CrashMode::Kill, random);
        stage.oracle.lock().killed();
    }
    if !stage.is_made {
        return Ok(());
    }
    let mut report = stage.rig.check(&std::sync::Arc::default()).map_err(|error| error.to_string())?;
    if report.has_only_leaks() {
        let repaired = stage.open().and_then(|()| stage.repair_leaks());
        repaired.map_err(|error| format!("what leaked is not repaired: {error:?}"))?;
        stage.end_life();
        stage.rig.lose_power(random);
        report = stage.rig.check(&std::sync::Arc::default()).map_err(|error| error.to_string())?;
    }
    if !report.is_clean() {
        return Err(format!("the check of the closed pool: {report:#?}"));
    }
    stage.recover()?;
    stage.check_superblock();
    Ok(())
}

#[test]
fn each_io_that_fails_is_an_error_and_no_wrong_byte() {
    let sum = Mutex::new(Sweep::default());
    let work: Vec<_> =
        SCENARIOS.iter().flat_map(|scenario| Kind::ALL.into_iter().map(move |kind| (scenario, kind))).collect();
    let next = AtomicUsize::new(0);
    crate::in_threads(|| {
        while let Some((scenario, kind)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut sweep = Sweep::default();
            let last = (1..=NTH_MAX).find(|nth| !sweep.run(scenario, *kind, *nth));
            assert!(last.is_some(), "{} has more than {NTH_MAX} I/Os of a kind", scenario.name);
            sum.lock().add(sweep);
        }
    });
    let Sweep { runs, outcomes, sites, violations } = sum.into_inner();
    for ((kind, outcome), count) in &outcomes {
        println!("{kind:?}: {outcome} ({count})");
    }
    let all = call_sites::all();
    let missing: Vec<String> = all.difference(&sites).map(ToString::to_string).collect();
    println!("{runs} failures, {} violations", violations.len());
    if sites.is_empty() {
        println!("call sites of I/O are not counted: this build has no line tables");
    } else {
        println!("{} of {} call sites of I/O reached", all.len() - missing.len(), all.len());
        assert!(missing.is_empty(), "no failure comes to {missing:?}");
    }
    assert!(violations.is_empty(), "{:#?}", violations.iter().take(20).collect::<Vec<_>>());
}
