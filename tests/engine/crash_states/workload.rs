//! Random workloads, and where and how they are cut off.

use super::state::{Capture, Crash, Tally, Twist, text_of};
use crate::rig::stage::{Done, Stage};
use crate::rig::tap::{Kind, Plan};
use crate::rig::{Rig, Settings};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rok_blk::crypto::Suite;
use rok_blk::planted::{Bug, plant};
use rok_blk::volume::RemoveMode;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A front, the reserve, windows of one lane or two, and room for some writes.
const DEVICE_BYTES: [u64; 2] = [500 * 4096, 560 * 4096];
/// Blocks of the first volume; of one pool it reaches into a second leaf.
const BLOCKS: [u64; 8] = [12, 14, 260, 12, 10, 12, 12, 11];
/// Each so many-th workload has the cleaner move all that it can, or a scrub, between its actions.
const CLEANED_EACH: u64 = 5;
const SCRUBBED_EACH: u64 = 7;
/// The prelude that has two devices.
const TWO_DEVICES: usize = 6;
const SECOND_DEVICE_BYTES: u64 = 400 * 4096;
const ACTIONS_MAX: u32 = 14;
/// States at a moment at which something can be lost, of each workload.
const STATES_PER_CAPTURE: u32 = 8;
/// Volumes and versions of a pool at once.
const THINGS_MAX: usize = 6;

/// Pools that workloads begin with.
pub struct Preludes(Vec<Stage>);

impl Default for Preludes {
    /// With volumes that have content in leaves and in the log, versions, and a clone.
    fn default() -> Self {
        plant(None);
        Self((0..BLOCKS.len()).map(prelude).collect())
    }
}

fn prelude(number: usize) -> Stage {
    let suite = if number.is_multiple_of(2) { Suite::XtsGmac } else { Suite::Plain };
    let lane_count = if number.is_multiple_of(3) { 2 } else { 1 };
    let mut device_bytes = vec![DEVICE_BYTES[usize::from(lane_count) - 1]];
    // A batch may have its record on one and its data on the other.
    device_bytes.extend((number == TWO_DEVICES).then_some(SECOND_DEVICE_BYTES));
    let mut stage = Stage::new(Rig::new(Settings::new(suite, lane_count), &device_bytes), 1);
    let made = (|| {
        stage.open()?;
        stage.create("a", BLOCKS[number], false)?;
        stage.create("b", 6, stage.rig.has_own_keys())?;
        stage.write("a", 0..4, false);
        stage.write("b", 1..3, false);
        stage.snapshot(&["a"])?;
        stage.write("a", 2..6, false);
        stage.checkpoint()?;
        stage.clone_version("a@1", &["c"])?;
        stage.write("c", 1..2, false);
        stage.settle()?;
        stage.checkpoint()?;
        stage.write("a", 7..9, true);
        stage.settle()
    })();
    made.unwrap_or_else(|error| panic!("a healthy machine: {error:?}"));
    stage.end_life();
    stage.rig.kill(rok_blk::disk::CrashMode::Kill, &mut SmallRng::seed_from_u64(0));
    stage.oracle.lock().killed();
    stage
}

impl Preludes {
    /// A pool to begin with, open, and its captures from now on.
    pub fn begin(&self, number: u64) -> (Stage, Arc<Mutex<Vec<Capture>>>) {
        let place = usize::try_from(number % self.0.len() as u64).expect("few");
        let mut stage = self.0[place].image(number);
        stage.open().unwrap_or_else(|error| panic!("the pool opens: {error:?}"));
        let captures = Arc::new(Mutex::new(Vec::new()));
        let (into, rig, oracle) = (Arc::clone(&captures), stage.rig.handle(), Arc::clone(&stage.oracle));
        stage.rig.tap.watch(Some(Box::new(move || {
            into.lock().push(Capture { rig: rig.image(), oracle: oracle.lock().clone() });
        })));
        (stage, captures)
    }
}

/// Runs the workload of a number, and checks states of each of its moments.
pub fn check(preludes: &Preludes, number: u64, bug: Option<Bug>) -> Tally {
    let mut random = SmallRng::seed_from_u64(number);
    let mut tally = Tally::default();
    let (mut stage, captures) = preludes.begin(number);
    crate::plant_quietly(bug);
    if random.random_ratio(1, 8) {
        let kinds = [Kind::Read, Kind::Write, Kind::Flush, Kind::Commit, Kind::MetaGet, Kind::MetaScan];
        let (kind, nth) = (kinds[random.random_range(0..kinds.len())], random.random_range(1..7));
        stage.rig.tap.plan(Some(Plan::Fail(kind, nth)));
    }
    let actions = random.random_range(2..=ACTIONS_MAX);
    let ran = catch_unwind(AssertUnwindSafe(|| run(&mut stage, number, actions, &mut random)));
    match ran {
        Ok(met_no_space) => tally.no_space += u64::from(met_no_space),
        Err(panic) => tally.violations.push(format!("workload {number}: {}", text_of(&*panic))),
    }
    let has_failed = stage.rig.tap.failed_count() > 0;
    tally.failed_workloads += u64::from(has_failed);
    stage.rig.tap.watch(None);
    stage.end_life();
    for (place, capture) in captures.lock().iter().enumerate() {
        let told = format!("workload {number}, moment {place}");
        check_moment(&mut tally, capture, has_failed, &mut random, &told);
    }
    plant(None);
    tally
}

fn check_moment(tally: &mut Tally, capture: &Capture, has_failed: bool, random: &mut SmallRng, told: &str) {
    let writes: usize = capture.rig.files().map(|file| file.unflushed().len()).sum();
    if writes == 0 && capture.rig.store.unsynced_count() == 0 {
        if random.random_ratio(1, 16) {
            tally.check(capture, (Crash::KeepAll, twist(random)), random, told);
        }
        return;
    }
    tally.check_kept(capture, random, told);
    for number in 0..STATES_PER_CAPTURE {
        let crash = match (number, random.random_range(0..16)) {
            (0, _) => Crash::DropAll,
            (1, 0..2) => Crash::KeepAll,
            // A flush that failed may have dropped what was acknowledged: nothing is promised then but what was flushed.
            (1, 2..5) if !has_failed => Crash::Kill,
            (1, 5..7) if !has_failed => Crash::KillBeforeWriteback,
            _ => Crash::Torn,
        };
        tally.check(capture, (crash, twist(random)), random, told);
    }
}

fn twist(random: &mut SmallRng) -> Twist {
    let kinds = [Kind::Read, Kind::Write, Kind::Flush, Kind::Commit, Kind::MetaGet, Kind::MetaScan];
    match random.random_range(0..8) {
        0 => Twist::Failure(kinds[random.random_range(0..kinds.len())], random.random_range(1..10)),
        1 => Twist::Death(random.random_range(1..12)),
        _ => Twist::Nothing,
    }
}

/// Does so many actions; whether one of them met a lack of space.
fn run(stage: &mut Stage, number: u64, actions: u32, random: &mut SmallRng) -> bool {
    let mut met_no_space = false;
    for action in 0..actions {
        let steps = random.random_range(0..4);
        let beside = match action {
            2 if number.is_multiple_of(CLEANED_EACH) => stage.clean(),
            4 if number.is_multiple_of(SCRUBBED_EACH) => stage.scrub(),
            _ => Ok(()),
        };
        for done in [beside, act(stage, random), stage.progress(steps)] {
            let is_full = done.as_ref().is_err_and(|refusal| refusal.is_no_space());
            assert!(done.is_ok() || is_full || stage.rig.tap.failed_count() > 0, "nothing is in the way: {done:?}");
            met_no_space |= is_full;
        }
    }
    drop(stage.settle());
    stage.rig.tap.tell_watcher();
    met_no_space
}

/// Any volume that is surely there, and the number of its blocks.
fn any_head(stage: &Stage, random: &mut SmallRng) -> Option<(String, u64)> {
    let heads = stage.heads();
    (!heads.is_empty()).then(|| heads[random.random_range(0..heads.len())].clone())
}

fn any_range(block_count: u64, random: &mut SmallRng) -> Range<u64> {
    let count = random.random_range(1..=4.min(block_count));
    // Most at the front, and some at the border of the second leaf.
    let first = if random.random_bool(0.8) { random.random_range(0..6) } else { block_count };
    let first = first.min(block_count - count);
    first..first + count
}

fn act(stage: &mut Stage, random: &mut SmallRng) -> Done {
    let Some((name, block_count)) = any_head(stage, random) else {
        return if stage.is_surely_free("d") { stage.create("d", 5, false) } else { stage.settle() };
    };
    let range = any_range(block_count, random);
    let is_fua = random.random_bool(0.15);
    match random.random_range(0..100) {
        0..32 => stage.write(&name, range, is_fua),
        32..44 => {
            let from = range.start * 8 + random.random_range(0..4);
            let sectors = from..range.end * 8 - random.random_range(0..4);
            match random.random_range(0..6) {
                0 => return stage.zero_sectors(&name, sectors, RemoveMode::Zero, is_fua),
                1 => return stage.zero_sectors(&name, sectors, RemoveMode::ZeroProvisioned, is_fua),
                _ => stage.write_sectors(&name, sectors, is_fua),
            }
        }
        44..50 => {
            let modes = [RemoveMode::Discard, RemoveMode::Zero, RemoveMode::ZeroProvisioned];
            return stage.remove_blocks(&name, range, modes[random.random_range(0..3)], is_fua);
        }
        50..60 => stage.flush(),
        60..72 => return stage.checkpoint(),
        72..78 => return snapshot(stage, random),
        78..83 => return remove_version(stage, &name, random),
        83..88 => return clone_version(stage, &name),
        88..92 => return roll_back(stage, &name, random),
        92..95 => return remove_volume(stage, &name, random),
        _ => return stage.settle(),
    }
    Ok(())
}

fn snapshot(stage: &mut Stage, random: &mut SmallRng) -> Done {
    if stage.thing_count() >= THINGS_MAX {
        return Ok(());
    }
    let heads = stage.heads();
    let count = random.random_range(1..=heads.len().min(2));
    let names: Vec<&str> = heads.iter().take(count).map(|(name, _)| name.as_str()).collect();
    stage.snapshot(&names)
}

fn remove_version(stage: &mut Stage, name: &str, random: &mut SmallRng) -> Done {
    match stage.version_of(name, random.random_bool(0.5)) {
        Some(version) => stage.remove_version(&version),
        None => Ok(()),
    }
}

fn clone_version(stage: &mut Stage, name: &str) -> Done {
    let free: Vec<&str> = ["c", "e", "f"].into_iter().filter(|free| stage.is_surely_free(free)).collect();
    match stage.version_of(name, false) {
        Some(version) if free.len() > 1 && stage.thing_count() < THINGS_MAX => {
            stage.clone_version(&version, &free[..2])
        }
        Some(version) if !free.is_empty() => stage.clone_version(&version, &free[..1]),
        _ => Ok(()),
    }
}

fn roll_back(stage: &mut Stage, name: &str, random: &mut SmallRng) -> Done {
    match stage.version_of(name, random.random_bool(0.5)) {
        Some(version) => stage.roll_back(name, &version, random.random_bool(0.5)),
        None => Ok(()),
    }
}

fn remove_volume(stage: &mut Stage, name: &str, random: &mut SmallRng) -> Done {
    let is_shredded = stage.has_key_alone(name) && random.random_bool(0.5);
    stage.remove_volume(name, is_shredded)
}
