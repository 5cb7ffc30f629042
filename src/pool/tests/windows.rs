//! What lanes reserve, and what the pool asks for when they do.

use super::*;
use crate::units::{BLOCK_SIZE_U64, STRETCH_BLOCKS};

/// Reserves a window for a lane; how many blocks it has.
fn take_window(pool: &Pool, floor: u64) -> u64 {
    pool.reserve_window(Placement::Runs, floor).iter().map(|run| run.count).sum()
}

#[test]
fn near_the_floor_each_lane_takes_a_quarter_of_its_share_and_leaves_the_rest_to_the_others() {
    let place = Place::new();
    let parts = Parts { lane_count: 4, ..place.parts() };
    let pool = open(parts, &mut |bytes| bytes.fill(6)).expect("nothing is wrong with the pool");
    let floor = pool.space.lock().free_count() - 160;

    let windows: Vec<u64> = (0..4).map(|_| take_window(&pool, floor)).collect();

    // A share is 40 blocks, then 37, 35 and 33; a window has at least 8.
    assert_eq!(windows, [10, 9, 8, 8]);
}

/// What overwrites replaced comes back with it, so that it is in time; and it is no more often than that.
#[test]
fn a_checkpoint_is_asked_for_when_half_of_what_was_free_is_taken_and_not_before() {
    let (pool, asked) = Place::new().open_asked(Limits::default());
    let free = pool.space.lock().free_count();
    let (mut taken, mut last) = (0, 0);
    while !asked.take() {
        last = take_window(&pool, 0);
        assert!(last > 0, "all is taken, and no checkpoint was asked for");
        taken += last;
    }

    assert!(taken - last < free / 2 && taken >= free / 2, "{taken} of {free} blocks, {last} of them at last");
}

#[test]
fn what_was_given_back_is_asked_for_when_no_more_wholly_free_stretch_is_left() {
    let place = Place::with_device(4 * STRETCH_BLOCKS * BLOCK_SIZE_U64);
    let (pool, asked) = place.open_asked(Limits::default());
    assert!(take_window(&pool, 0) > 0);
    assert!(!asked.take_stock(), "nothing was given back");
    let mut space = pool.space.lock();
    space.distrust();
    while let Some(stretch) = space.take_stale(0) {
        space.release(stretch);
    }
    assert!(space.released_blocks() > 0 && space.whole_blocks() == 0);
    drop(space);

    assert!(take_window(&pool, 0) > 0, "there are parts of stretches");

    assert!(asked.take_stock());
}
