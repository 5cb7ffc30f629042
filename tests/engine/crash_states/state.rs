//! One crash state: what a crash leaves of a machine, and whether it is what the contract allows.

use crate::rig::oracle::Oracle;
use crate::rig::tap::{Kind, Plan};
use crate::rig::{Rig, RigLife};
use rand::Rng;
use rand::rngs::SmallRng;
use rok_blk::disk::CrashMode;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A machine at a moment, and what a crash may find then.
pub struct Capture {
    pub rig: Rig,
    pub oracle: Oracle,
}

/// How the machine dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing is there that was not flushed.
    DropAll,
    /// All is there that was written.
    KeepAll,
    /// Of the writes those whose bits are set, and so many batches of the metadata.
    Subset { writes: u32, batches: usize },
    /// Each write is there, is not, or is torn at sectors.
    Torn,
    /// The process dies, not the machine.
    Kill,
    /// The process dies, and what it wrote is not durable by that.
    KillBeforeWriteback,
}

/// What comes between the crash and the recovery that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twist {
    Nothing,
    /// One I/O of a recovery fails; then the power goes.
    Failure(Kind, u64),
    /// The machine dies within a recovery.
    Death(u64),
}

/// What was checked.
#[derive(Default)]
pub struct Tally {
    pub states: u64,
    /// States that lost or tore something.
    pub lossy: u64,
    pub torn: u64,
    pub kills: u64,
    pub failures: u64,
    pub deaths: u64,
    pub failed_workloads: u64,
    pub no_space: u64,
    hashes: HashSet<Hash>,
    /// Of one workload: what was checked, with the moment of the oracle that it was compared with.
    checked: HashSet<(Hash, u64)>,
    pub violations: Vec<String>,
    /// Ends of operations at which everything was kept, which are not among the states.
    pub kept: u64,
}

/// The beginning of a hash of what is on the disks.
type Hash = [u8; 16];

/// Violations that are remembered.
const VIOLATIONS_MAX: usize = 20;

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.states += other.states;
        self.lossy += other.lossy;
        self.torn += other.torn;
        self.kills += other.kills;
        self.failures += other.failures;
        self.deaths += other.deaths;
        self.failed_workloads += other.failed_workloads;
        self.no_space += other.no_space;
        self.kept += other.kept;
        self.hashes.extend(other.hashes);
        self.violations.extend(other.violations);
    }

    pub fn summary(&self) -> String {
        let Self {
            states,
            lossy,
            torn,
            kills,
            failures,
            deaths,
            failed_workloads,
            no_space,
            hashes,
            violations,
            kept,
            checked: _,
        } = self;
        let (distinct, share) = (hashes.len(), lossy * 1000 / states.max(&1));
        format!(
            "{states} crash states, {distinct} distinct, {}.{} % lost or tore something ({torn} torn), {kills} kills, \
             {failures} with a failure in recovery, {deaths} with a crash in recovery, {failed_workloads} workloads with a \
             failure and {no_space} that met a lack of space, {} violations; beside these {kept} with everything kept",
            share / 10,
            share % 10,
            violations.len()
        )
    }

    pub fn assert_clean(&self) {
        assert!(self.violations.is_empty(), "{} violations: {:#?}", self.violations.len(), self.violations);
    }

    /// Panics if something is left out that states are for.
    pub fn assert_all_happened(&self) {
        for count in [self.torn, self.kills, self.failures, self.deaths, self.failed_workloads] {
            assert!(count > 0, "something never happened: {}", self.summary());
        }
    }

    /// Checks what is there when nothing of what was written is lost.
    pub fn check_kept(&mut self, capture: &Capture, random: &mut SmallRng, told: &str) {
        let rig = capture.rig.image();
        die(&rig, Crash::KeepAll, random);
        self.kept += 1;
        self.look_at(rig, capture, (Crash::KeepAll, Twist::Nothing), random, told);
    }

    /// Checks one state, if it was not checked a moment ago.
    pub fn check(&mut self, capture: &Capture, (crash, twist): (Crash, Twist), random: &mut SmallRng, told: &str) {
        let rig = capture.rig.image();
        let loss = die(&rig, crash, random);
        let hash = digest(&rig);
        if twist == Twist::Nothing && !self.checked.insert((hash, capture.oracle.now)) {
            return;
        }
        self.states += 1;
        self.hashes.insert(hash);
        self.torn += u64::from(loss.torn > 0);
        self.lossy += u64::from(loss.torn + loss.dropped + loss.batches > 0);
        self.kills += u64::from(matches!(crash, Crash::Kill | Crash::KillBeforeWriteback));
        self.look_at(rig, capture, (crash, twist), random, told);
    }

    fn look_at(
        &mut self,
        rig: Rig,
        capture: &Capture,
        (crash, twist): (Crash, Twist),
        random: &mut SmallRng,
        told: &str,
    ) {
        let looked = catch_unwind(AssertUnwindSafe(|| self.look(rig, capture.oracle.clone(), (crash, twist), random)));
        let looked = looked.unwrap_or_else(|panic| Err(text_of(&*panic)));
        if let Err(error) = looked
            && self.violations.len() < VIOLATIONS_MAX
        {
            self.violations.push(format!("{told}, {crash:?}, {twist:?}: {error}"));
        }
    }

    fn look(
        &mut self,
        mut rig: Rig,
        mut oracle: Oracle,
        (crash, twist): (Crash, Twist),
        random: &mut SmallRng,
    ) -> Result<(), String> {
        // What is not written back is lost if the power goes before a recovery has flushed it.
        if crash == Crash::Kill || (crash == Crash::KillBeforeWriteback && twist == Twist::Nothing) {
            oracle.killed();
        }
        self.twist(&mut rig, twist, random);
        if random.random_bool(CLOSED_CHECKS) {
            let report = rig
                .check(&std::sync::Arc::default())
                .map_err(|error| format!("the closed pool cannot be checked: {error}"))?;
            if !report.is_clean() {
                return Err(format!("the check of the closed pool: {report:#?}"));
            }
        }
        let life = open(&mut rig)?;
        life.check()?;
        let found = oracle.compare(&life, random)?;
        drop(life);
        oracle.settle(&found);
        if random.random_bool(0.5) {
            rig.lose_power(random);
        } else {
            rig.kill(CrashMode::Kill, random);
        }
        rig.settings.lane_count = random.random_range(1..=2);
        let life = open(&mut rig)?;
        let again = oracle.compare(&life, random)?;
        if again == found { Ok(()) } else { Err("what was read is not there when the pool is opened again".into()) }
    }

    fn twist(&mut self, rig: &mut Rig, twist: Twist, random: &mut SmallRng) {
        let plan = match twist {
            Twist::Nothing => return,
            Twist::Failure(kind, nth) => Plan::Fail(kind, nth),
            Twist::Death(nth) => Plan::DieAt(nth),
        };
        rig.tap.plan(Some(plan));
        drop(rig.open());
        let has_met = rig.tap.failed_count() > 0;
        rig.tap.plan(None);
        self.failures += u64::from(has_met && matches!(twist, Twist::Failure(..)));
        self.deaths += u64::from(has_met && matches!(twist, Twist::Death(_)));
        rig.lose_power(random);
    }
}

/// How many states are also checked before they are opened.
const CLOSED_CHECKS: f64 = 0.125;

/// What a crash took.
#[derive(Default)]
struct Loss {
    torn: u64,
    dropped: u64,
    /// Batches of the metadata.
    batches: u64,
}

/// The machine dies.
fn die(rig: &Rig, crash: Crash, random: &mut SmallRng) -> Loss {
    let batches = match crash {
        Crash::DropAll => lose(rig, |_| false, |_| 0),
        Crash::KeepAll => lose(rig, |_| true, |count| count),
        Crash::Subset { writes, batches } => lose(rig, |index| writes >> index & 1 == 1, |_| batches),
        Crash::Torn => tear(rig, random),
        Crash::Kill => rig.kill(CrashMode::Kill, random),
        Crash::KillBeforeWriteback => rig.kill(CrashMode::KillBeforeWriteback, random),
    };
    let counters = rig.files().map(|file| file.counters());
    counters.fold(Loss { batches, ..Loss::default() }, |sum, of| Loss {
        torn: sum.torn + of.torn_writes,
        dropped: sum.dropped + of.dropped_writes,
        ..sum
    })
}

fn open(rig: &mut Rig) -> Result<RigLife, String> {
    rig.open().map_err(|error| format!("the pool does not open: {error}"))
}

/// How many batches of the metadata are gone.
fn lose(rig: &Rig, keeps: impl Fn(usize) -> bool, batches: impl FnOnce(usize) -> usize) -> u64 {
    let mut index = 0;
    for file in rig.files() {
        file.lose_power(&mut |sectors| {
            sectors.iter_mut().for_each(|is_alive| *is_alive &= keeps(index));
            index += 1;
        });
    }
    rig.lose_batches(batches)
}

/// Each write is kept, dropped or torn; at least one of them loses something, if there is one.
fn tear(rig: &Rig, random: &mut SmallRng) -> u64 {
    let count: usize = rig.files().map(|file| file.unflushed().len()).sum();
    let victim = random.random_range(0..count.max(1));
    let spared_of_8 = random.random_range(0..8);
    let mut index = 0;
    for file in rig.files() {
        file.lose_power(&mut |sectors| {
            if index == victim || random.random_range(0..8) >= spared_of_8 {
                let from = random.random_range(0..sectors.len());
                match random.random_range(0..4) {
                    0 => sectors.fill(false),
                    // What is there is the beginning, or the end.
                    1 => sectors[from..].fill(false),
                    2 => sectors[..=from].fill(false),
                    _ => sectors.iter_mut().for_each(|is_alive| *is_alive &= random.random_bool(0.5)),
                }
            }
            index += 1;
        });
    }
    rig.lose_batches(|count| random.random_range(0..=count))
}

/// A hash of what is on the disks.
fn digest(rig: &Rig) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for file in rig.files() {
        file.scan(|offset, bytes| {
            hasher.update(&offset.to_le_bytes());
            hasher.update(blake3::hash(bytes).as_bytes());
        });
    }
    hasher.update(&rig.store.digest());
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    short
}

/// What a panic said.
pub fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    format!("a panic: {}", text.unwrap_or_default())
}
