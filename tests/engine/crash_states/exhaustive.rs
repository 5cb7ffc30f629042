//! Short workloads, of which every order of actions and every subset of what was not flushed is checked.

use super::state::{Capture, Crash, Tally, Twist};
use super::workload::Preludes;
use crate::rig::stage::{Done, Stage};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rok_blk::volume::RemoveMode;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Actions of a workload at most.
const LENGTH_MAX: u32 = 3;
/// Writes whose subsets are all checked.
const WRITES_MAX: usize = 12;

const ACTIONS: [fn(&mut Stage) -> Done; 9] = [
    |stage| {
        stage.write("a", 0..2, false);
        stage.settle()
    },
    |stage| {
        stage.write("a", 1..4, true);
        stage.settle()
    },
    |stage| {
        // Two at once, on whatever lanes.
        stage.write("a", 3..5, false);
        stage.write("b", 0..2, false);
        stage.settle()
    },
    |stage| {
        stage.write_sectors("a", 12..19, false);
        stage.settle()
    },
    |stage| {
        stage.remove_blocks("a", 1..3, RemoveMode::Discard, false)?;
        stage.settle()
    },
    |stage| {
        stage.flush();
        stage.settle()
    },
    Stage::checkpoint,
    |stage| stage.snapshot(&["a", "b"]),
    |stage| stage.roll_back("a", "a@1", true),
];

/// Checks all of them.
pub fn check_all() -> Tally {
    let mut workloads: Vec<Vec<usize>> = Vec::new();
    let mut longest: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..LENGTH_MAX {
        let longer = longest.iter().flat_map(|workload| {
            (0..ACTIONS.len()).map(|action| workload.iter().copied().chain([action]).collect::<Vec<usize>>())
        });
        longest = longer.collect();
        workloads.extend(longest.clone());
    }
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    crate::in_threads(|| {
        let preludes = Preludes::default();
        while let Some(workload) = workloads.get(next.fetch_add(1, Ordering::Relaxed)) {
            let tally = check(&preludes, workload);
            sum.lock().add(tally);
        }
    });
    sum.into_inner()
}

/// Checks what the last action adds: what is before it is another workload.
fn check(preludes: &Preludes, workload: &[usize]) -> Tally {
    let (mut stage, captures) = preludes.begin(u64::from(workload.len() == 2));
    let mut tally = Tally::default();
    for action in workload {
        captures.lock().clear();
        ACTIONS[*action](&mut stage).unwrap_or_else(|error| panic!("{workload:?}: {error:?}"));
    }
    stage.rig.tap.tell_watcher();
    stage.rig.tap.watch(None);
    let captures = std::mem::take(&mut *captures.lock());
    stage.end_life();
    let random = &mut SmallRng::seed_from_u64(0);
    for (place, capture) in captures.iter().enumerate() {
        let told = format!("actions {workload:?}, moment {place}");
        if place + 1 < captures.len() {
            for crash in [Crash::DropAll, Crash::KeepAll] {
                tally.check(capture, (crash, Twist::Nothing), random, &told);
            }
        } else {
            check_subsets(&mut tally, capture, random, &told);
        }
    }
    tally
}

fn check_subsets(tally: &mut Tally, capture: &Capture, random: &mut SmallRng, told: &str) {
    let writes: usize = capture.rig.files().map(|file| file.unflushed().len()).sum();
    assert!(writes <= WRITES_MAX, "{told}: {writes} writes were not flushed");
    for subset in 0..1_u32 << writes {
        for batches in 0..=capture.rig.store.unsynced_count() {
            tally.check(capture, (Crash::Subset { writes: subset, batches }, Twist::Nothing), random, told);
        }
    }
}
