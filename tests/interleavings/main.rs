//! What lanes share, under the orders in which threads may come to its locks: the engine's own source, compiled once more
//! with locks at which a scheduler decides who goes on. Each model is run in some thousand orders, drawn at random, and by priorities that
//! change at few points (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS
//! 2010). Nobody going on any more is a failure too: so is a wake-up that is lost.
//!
//! Atomics are taken apart where a protocol is made of them (`src/atomics.rs`), in one order; weaker ones are not seen.
//!
//! An example, and not a test: built as one, these files would bring their own tests along, which know no scheduler.
//! Environment: `ROK_INTERLEAVINGS`, orders of each kind for each model (1000).

#![expect(clippy::print_stdout, reason = "a program that reports on its standard output")]
#![expect(dead_code, reason = "models need not use all of what they look at")]

extern crate self as parking_lot;

mod alarm_model;
mod atomics;
mod changes_model;
mod lane;
mod leaf_cache_model;
mod locks;
mod map;
mod pool;
mod range_lock_model;
mod space_model;
mod space_news_model;
mod volume;

pub use locks::{Mutex, RwLock, RwLockReadGuard};
use rok_blk::{format, units};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A model, and whether it must fail: then it is there to show that the model above it can.
type Model = (&'static str, fn(), bool);

const MODELS: [Model; 14] = [
    (
        "range_lock: overlapping ranges have one holder and all get theirs",
        range_lock_model::ranges_have_one_holder,
        false,
    ),
    ("range_lock: without waiting they have several", range_lock_model::nobody_waits, true),
    (
        "range_lock: who holds ranges of lower leaves never waits in a circle",
        range_lock_model::leaves_are_taken_in_order,
        false,
    ),
    ("range_lock: against the order of leaves they do", range_lock_model::leaves_are_taken_against_the_order, true),
    ("changes: a cut divides no batch", changes_model::cuts_divide_no_batch, false),
    ("changes: it does if each change is laid by itself", changes_model::cuts_divide_what_is_no_batch, true),
    ("cache: a load that a checkpoint overtook is not cached", leaf_cache_model::overtaken_loads_are_refused, false),
    ("cache: it is if the version is asked for behind the load", leaf_cache_model::versions_are_asked_late, true),
    ("alarm: a lane sees every message", alarm_model::every_message_is_seen, false),
    ("alarm: it does not if it lowers the alarm behind its look", alarm_model::alarms_are_lowered_late, true),
    ("space: blocks have one owner", space_model::blocks_have_one_owner, false),
    ("space: they have two if what looks free is discarded", space_model::what_looks_free_is_discarded, true),
    ("space: a write that waits misses no news", space_news_model::no_news_is_missed, false),
    ("space: it does if it asks for them behind its look", space_news_model::news_are_asked_for_late, true),
];

/// Changes of priorities in an order.
const PRIORITY_CHANGES: usize = 3;
/// Leaves are built on the stack.
const STACK_BYTES: usize = 256 << 10;

/// Runs a model in many orders; whether none failed.
fn passes(model: fn(), orders: usize) -> bool {
    let config = || {
        let mut config = Config::new();
        config.stack_size = STACK_BYTES;
        config
    };
    let by_chance = || Runner::new(RandomScheduler::new(orders), config()).run(model);
    let by_priority = || Runner::new(PctScheduler::new(PRIORITY_CHANGES, orders), config()).run(model);
    catch_unwind(AssertUnwindSafe(|| by_chance() + by_priority())).is_ok()
}

fn main() -> ExitCode {
    let orders = std::env::var("ROK_INTERLEAVINGS").map_or(1000, |text| text.parse().expect("a number"));
    let (mut passed, mut failed) = (0, 0);
    for (name, model, must_fail) in MODELS {
        let is_right = passes(model, orders) != must_fail;
        println!("test {name} ... {}", if is_right { "ok" } else { "FAILED" });
        passed += u32::from(is_right);
        failed += u32::from(!is_right);
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored; {orders} orders of each kind");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
