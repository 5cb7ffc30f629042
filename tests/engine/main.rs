//! The whole engine on one thread against a simulated disk, driven by one seed, with a model as the oracle.
//!
//! `ROK_SEED=7` replays one seed, `ROK_SEEDS=100000` runs so many, `ROK_FIRST_SEED` says where they begin, and
//! `ROK_OPERATIONS` how long each is, and `ROK_LEFT_OUT=3,17` which operations are left out. Of a seed that fails the smallest
//! part that does is looked for, and its replay told. `ROK_BUG` looks for one planted bug only.
#![expect(clippy::print_stdout, reason = "a test prints what it counted")]

mod cleaning;
mod cold_leaf;
mod copied_pool;
mod counts;
mod crash_states;
mod damaged_leaf;
mod failure_sweep;
mod fill_and_free;
mod flips;
mod fragmented;
mod lost_lane;
mod merging;
mod model;
mod parts;
mod pausing;
mod recovery;
mod reserve;
mod rig;
mod scenarios;
mod scrubbing;
mod sector;
mod several_devices;
mod shredding;
mod shrinking;
mod snapshot_when_full;
mod tampering;
mod workload;
mod world;

use counts::Counts;
use rok_blk::planted::{Bug, is_planted, plant};
use shrinking::Part;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use workload::{Outcome, run};

const SEEDS: u64 = 5_000;
/// One of so many seeds is run twice, and must leave the same trace. Odd, and no multiple of 3 or 5: remainders by 3, 4, 5
/// and 11 say what a life is like.
const REPLAYED_EVERY: u64 = 7;
/// A planted bug is found by one of so many. Most are by one of the first, but what takes a failure of one write of few may take
/// hundreds, and each change of the alphabet gives every seed another life.
const BUG_SEEDS: u64 = 5_000;
/// Who found a bug after many others that did not, when all were looked at: these are looked at first. It may be wrong after
/// any change, and then they all are again.
const FINDERS: [(Bug, u64); 8] = [
    (Bug::FlushJoinsStarted, 111),
    (Bug::OvertakenLoadCached, 151),
    (Bug::PauseMissesSpace, 759),
    (Bug::MergeCursorIgnored, 176),
    (Bug::FoundVersionsSettled, 201),
    (Bug::HiddenLeafNeeded, 993),
    (Bug::SuperblockTrustsItsRead, 712),
    (Bug::ScrubResumesTooFar, 133),
];
/// How long most seeds are, and two of eleven: each has a pool of its own kind, and the long ones one that grows old.
const OPERATIONS: u64 = 100;
const LONG_OPERATIONS: u64 = 250;
const THREADS: usize = 2;
/// Seeds that fail before no more are tried.
const FAILURES_MAX: usize = 3;
/// Runs of parts of a seed that failed.
const SHRINK_TRIES_MAX: u64 = 400;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

/// Plants a bug on this thread. Panics under it are expected: one line tells of each, since their stacks would hide the one that is not.
fn plant_quietly(bug: Option<Bug>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            let planted = Bug::ALL.into_iter().chain([Bug::SaltNotDrawn]).find(|bug| is_planted(*bug));
            match (planted, panic.location()) {
                (Some(bug), Some(place)) => println!("{bug:?} makes it panic at {place}"),
                _ => print(panic),
            }
        }));
    });
    plant(bug);
}

const fn operations(seed: u64) -> u64 {
    if seed % 11 < 2 { LONG_OPERATIONS } else { OPERATIONS }
}

/// What is run of a seed.
fn part_of(seed: u64) -> Part {
    let mut part = Part::whole(setting("ROK_OPERATIONS", operations(seed)));
    part.leave_out(&std::env::var("ROK_LEFT_OUT").unwrap_or_default());
    part
}

fn run_caught(seed: u64, bug: Option<Bug>) -> Result<Outcome, String> {
    run_part(seed, &part_of(seed), bug)
}

fn run_part(seed: u64, part: &Part, bug: Option<Bug>) -> Result<Outcome, String> {
    plant_quietly(bug);
    let result = catch_unwind(AssertUnwindSafe(|| run(seed, part)));
    plant(None);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// The smallest part of a failing seed that is found to fail, and why it does.
fn shrunk(seed: u64, bug: Option<Bug>) -> (Part, String) {
    let part = shrinking::shrink(part_of(seed), SHRINK_TRIES_MAX, &mut |part| run_part(seed, part, bug).is_err());
    let error =
        run_part(seed, &part, bug).err().unwrap_or_else(|| "it fails no more: it is not deterministic".to_owned());
    (part, error)
}

fn in_threads(work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(&work);
        }
    });
}

#[test]
fn no_seed_finds_a_difference_from_the_model() {
    let only = std::env::var("ROK_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let first = only.unwrap_or_else(|| setting("ROK_FIRST_SEED", 0));
    let count = if only.is_some() { 1 } else { setting("ROK_SEEDS", SEEDS) };
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Counts::default());
    let failures = Mutex::new(Vec::new());
    in_threads(|| {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let failed = failures.lock().unwrap_or_else(PoisonError::into_inner).len();
            if seed >= first + count || failed >= FAILURES_MAX {
                return;
            }
            let outcome = run_caught(seed, None).and_then(|one| {
                let is_replayed = only.is_some() || seed.is_multiple_of(REPLAYED_EVERY);
                let has_same_trace = !is_replayed || run_caught(seed, None)?.trace == one.trace;
                has_same_trace.then_some(one.counts).ok_or_else(|| "the same seed gave two traces".to_owned())
            });
            match outcome {
                Ok(counts) => sum.lock().unwrap_or_else(PoisonError::into_inner).add(&counts),
                Err(error) => failures.lock().unwrap_or_else(PoisonError::into_inner).push((seed, error)),
            }
        }
    });
    let counts = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{count} seeds from {first}: {counts:?}");
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (seed, error) in &failures {
        println!("seed {seed}: {error}");
        let (part, error) = shrunk(*seed, None);
        let left_out: Vec<String> = part.left_out.iter().map(ToString::to_string).collect();
        println!(
            "  {} operations are enough: {error}\n  replay: ROK_SEED={seed} ROK_OPERATIONS={} ROK_LEFT_OUT={} \
             cargo test --features planted-bugs --test engine no_seed",
            part.kept().len(),
            part.operations,
            left_out.join(",")
        );
    }
    assert!(failures.is_empty(), "{} seeds failed, or more", failures.len());
    if count >= SEEDS {
        assert_all_happened(counts);
    }
}

/// Panics if the seeds left out what they are for.
fn assert_all_happened(counts: Counts) {
    // Zeros always find a place on a simulated device.
    const NEVER: [&str; 1] = ["restock_failures"];
    let missing = counts.missing();
    assert!(missing == NEVER, "something never happened: {missing:?}, {counts:?}");
}

/// Each of the operations that are left is needed.
#[test]
fn seed_that_fails_shrinks_to_the_operations_that_matter() {
    let bug = Some(Bug::SkipFlush);
    let seed = (0..BUG_SEEDS).find(|seed| run_caught(*seed, bug).is_err()).expect("some seed finds it");
    let (part, error) = shrunk(seed, bug);
    println!("seed {seed}: {} of {} operations are enough: {error}", part.kept().len(), operations(seed));
    assert!(
        part.kept().len() * 4 < part_of(seed).kept().len(),
        "{:?} of {} operations are left",
        part.kept(),
        part.operations
    );
    for index in part.kept() {
        let mut smaller = part.clone();
        smaller.left_out.insert(index);
        assert!(run_part(seed, &smaller, bug).is_ok(), "operation {index} is not needed");
    }
}

#[test]
fn each_planted_bug_is_found() {
    let mut missed = Vec::new();
    let only = std::env::var("ROK_BUG").ok();
    for bug in Bug::ALL.into_iter().filter(|bug| only.as_ref().is_none_or(|only| format!("{bug:?}") == *only)) {
        let next = AtomicU64::new(0);
        let finder = FINDERS.into_iter().find(|(of, _)| *of == bug).map(|(_, seed)| seed);
        let found = Mutex::new(finder.and_then(|seed| Some((seed, run_caught(seed, Some(bug)).err()?))));
        in_threads(|| {
            while found.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= BUG_SEEDS {
                    return;
                }
                if let Err(error) = run_caught(seed, Some(bug)) {
                    found.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((seed, error));
                }
            }
        });
        match found.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((seed, error)) => {
                println!("{bug:?}: found by seed {seed}: {}", error.lines().next().unwrap_or_default())
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "no seed below {BUG_SEEDS} finds {missed:?}");
}
