//! Crash states: a workload is run once, and at each of its I/Os the machine is copied and dies in several ways. A state counts
//! when the pool recovered, each volume and version was read in full and compared, the check was clean, and it was opened again.
//!
//! `ROK_CRASH_STATES=5000000` checks at least so many, `ROK_CRASH_FIRST` says with which workload the random ones begin.

mod exhaustive;
mod state;
mod workload;

use crate::setting;
use parking_lot::Mutex;
use rok_blk::planted::{Bug, plant};
use state::Tally;
pub use state::text_of;
use std::sync::atomic::{AtomicU64, Ordering};

const STATES: u64 = 200_000;
/// Of so many states, at least so many of a hundred must have lost or torn something.
const LOSSY_PERCENT_MIN: u64 = 90;

/// Runs workloads on all threads until there are so many states; the sum, and the number of the workload behind the last one.
fn run(first: u64, states: u64) -> (Tally, u64) {
    let (next, sum) = (AtomicU64::new(first), Mutex::new(Tally::default()));
    crate::in_threads(|| {
        let preludes = workload::Preludes::default();
        while sum.lock().states < states {
            let tally = workload::check(&preludes, next.fetch_add(1, Ordering::Relaxed), None);
            sum.lock().add(tally);
        }
    });
    (sum.into_inner(), next.into_inner())
}

#[test]
fn no_crash_state_breaks_the_contract() {
    let (first, states) = (setting("ROK_CRASH_FIRST", 0), setting("ROK_CRASH_STATES", STATES));
    let mut sum = exhaustive::check_all();
    println!("all subsets of what was not flushed: {}", sum.summary());
    let (tally, next) = run(first, states.saturating_sub(sum.states));
    sum.add(tally);
    println!("with workloads {first} to {next}: {}", sum.summary());
    sum.assert_clean();
    if states >= STATES {
        sum.assert_all_happened();
        assert!(sum.lossy * 100 >= sum.states * LOSSY_PERCENT_MIN, "{}", sum.summary());
    }
}

/// A workload whose requests ended only in the turn behind one in which nothing was in flight.
#[test]
fn requests_that_wait_for_another_lane_end_in_its_turn() {
    workload::check(&workload::Preludes::default(), 17_491, None).assert_clean();
}

/// Bugs that only a crash shows, at the latest behind a failure.
const CRASH_BUGS: [Bug; 9] = [
    Bug::SkipFlush,
    Bug::AcknowledgeBeforeWrite,
    Bug::ReuseBeforeCheckpoint,
    Bug::CutDiffersBetweenLanes,
    Bug::StaleRecordAccepted,
    Bug::SkipCheckpointFlush,
    Bug::RecoveryTrustsData,
    Bug::DiscardNotLogged,
    Bug::OwnKeyLostInRecovery,
];
/// Workloads within which each of them is found.
const BUG_WORKLOADS: u64 = 1000;

#[test]
fn bugs_that_concern_crashes_are_found_by_crash_states() {
    let mut missed = Vec::new();
    for bug in CRASH_BUGS {
        let (next, found) = (AtomicU64::new(0), Mutex::new(None));
        crate::in_threads(|| {
            let preludes = workload::Preludes::default();
            while found.lock().is_none() {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= BUG_WORKLOADS {
                    return;
                }
                let tally = workload::check(&preludes, number, Some(bug));
                if let Some(violation) = tally.violations.into_iter().next() {
                    found.lock().get_or_insert(violation);
                }
            }
            plant(None);
        });
        match found.into_inner() {
            Some(violation) => println!("{bug:?}: {}", violation.lines().next().unwrap_or_default()),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "no state of the first {BUG_WORKLOADS} workloads finds {missed:?}");
}
