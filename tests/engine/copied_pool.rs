//! A pool that is copied and runs twice: nobody can tell, since each copy is whole. Each reads what was written to it, and nothing that
//! both encrypt has the same key and nonce, by which who has both copies could tell what they have in common.

use crate::rig::stage::{Done, Stage};
use crate::rig::{Rig, Settings};
use rok_blk::crypto::{Suite, end_pairs, watch_pairs};
use rok_blk::planted::{Bug, plant};
use std::panic::{AssertUnwindSafe, catch_unwind};

const DEVICE_BYTES: u64 = 560 * 4096;
/// Lives of each copy.
const LIVES: u64 = 3;

fn begin(stage: &mut Stage) -> Done {
    stage.open()?;
    stage.create("a", 12, false)?;
    stage.create("own", 12, stage.rig.has_own_keys())?;
    stage.write("a", 0..4, false);
    stage.write("own", 0..4, false);
    stage.settle()?;
    stage.checkpoint()?;
    stage.write("a", 2..6, true);
    stage.settle()
}

/// A life of a copy. Both do the same at the same places, with other data.
fn go_on(stage: &mut Stage, life: u64) -> Done {
    stage.open()?;
    for name in ["a", "own"] {
        stage.write(name, life..life + 5, false);
    }
    stage.settle()?;
    stage.snapshot(&["a"])?;
    stage.checkpoint()?;
    for name in ["a", "own"] {
        stage.write(name, 4..6, true);
        stage.settle()?;
        stage.read(name)?;
    }
    Ok(())
}

fn end(stage: &mut Stage) {
    stage.end_life();
    stage.rig.kill(rok_blk::disk::CrashMode::Kill, &mut rand::SeedableRng::seed_from_u64(0));
    stage.oracle.lock().killed();
}

/// How many different pairs of key and nonce both copies had.
fn run_both(suite: Suite, draws_alike: bool) -> u64 {
    watch_pairs();
    let mut stage = Stage::new(Rig::new(Settings::new(suite, 2), &[DEVICE_BYTES]), 1);
    begin(&mut stage).unwrap_or_else(|error| panic!("a healthy machine: {error:?}"));
    end(&mut stage);
    let mut copies = [stage.image(1), stage.image(2)];
    // What they write from now on tells which of them it was.
    copies[1].skip_writes(1000);
    if !draws_alike {
        copies[1].rig.draw_otherwise();
    }
    for life in 0..LIVES {
        for copy in &mut copies {
            go_on(copy, life).unwrap_or_else(|error| panic!("a healthy machine: {error:?}"));
            end(copy);
        }
    }
    for copy in &mut copies {
        copy.recover().expect("each copy is whole");
    }
    end_pairs()
}

#[test]
fn copies_of_a_pool_read_what_was_written_to_each_and_share_no_key_and_nonce() {
    for suite in [Suite::XtsGmac, Suite::Plain] {
        let pair_count = run_both(suite, false);
        println!("{suite:?}: {pair_count} pairs of key and nonce, no two contents under one of them");
        assert!(pair_count > 200, "{pair_count}");
    }
}

#[test]
fn copies_whose_sessions_draw_the_same_salt_or_none_are_found_out() {
    let broken = [(true, None), (false, Some(Bug::SaltNotDrawn))];
    for (draws_alike, bug) in broken {
        crate::plant_quietly(bug);
        let found = catch_unwind(AssertUnwindSafe(|| run_both(Suite::XtsGmac, draws_alike)));
        plant(None);
        let panic = found.expect_err("two contents are under one key and nonce");
        let told = panic.downcast_ref::<String>().expect("a message");
        assert!(told.contains("two contents under the same key"), "{told}");
    }
}
