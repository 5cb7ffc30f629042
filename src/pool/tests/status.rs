//! What the status of a pool counts, and what it says of space that was given back.

use super::*;
use crate::units::STRETCH_BLOCKS;

const BLOCK_BYTES: u64 = 4096;

#[test]
fn status_counts_blocks_as_bytes_and_changes_before_and_behind_a_cut() {
    let place = Place::with_device(4 * STRETCH_BLOCKS * BLOCK_BYTES);
    let pool = place.open();
    let tree = create_volume(&pool, "vol");
    (0..5).for_each(|block| _ = lay(&pool, tree, block));
    Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    (5..8).for_each(|block| _ = lay(&pool, tree, block));
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    checkpoint.step().expect("the cut");
    lay(&pool, tree, 9);

    let status = pool.status();

    assert_eq!((status.used_bytes, status.changes), (5 * BLOCK_BYTES, 3 + 1));
    assert_eq!(status.capacity_bytes, pool.block_count() * BLOCK_BYTES);
    let free = pool.space.lock().free_count();
    assert_eq!((status.free_bytes, status.released_bytes), (free * BLOCK_BYTES, 0));
    assert_eq!(status.quarantined_bytes, status.capacity_bytes - status.used_bytes - status.free_bytes);
    assert_eq!(status.reserve_bytes, pool.reserve_blocks() * BLOCK_BYTES);
}

#[test]
fn what_was_given_back_is_free_and_comes_again_while_it_can_be_written() {
    let place = Place::with_device(4 * STRETCH_BLOCKS * BLOCK_BYTES);
    let pool = place.open();
    let free_bytes = pool.status().free_bytes;
    assert!(!pool.is_restock_coming(), "there is nothing to come");
    pool.space.lock().distrust();
    let taken = pool.space.lock().take_stale(0).expect("it is not used");
    pool.space.lock().release(taken);

    let status = pool.status();
    assert_eq!((status.released_bytes, status.free_bytes), (STRETCH_BLOCKS * BLOCK_BYTES, free_bytes));
    assert!(pool.is_restock_coming() && !status.is_restock_failing);
    pool.is_restock_failing.store(true, Ordering::Relaxed);
    assert!(!pool.is_restock_coming() && pool.status().is_restock_failing);
    pool.is_restock_failing.store(false, Ordering::Relaxed);

    let taken = pool.space.lock().take_released().expect("it was released");
    pool.is_restocking.store(true, Ordering::Relaxed);
    assert!(pool.is_restock_coming(), "it is under way");
    pool.is_restocking.store(false, Ordering::Relaxed);
    pool.space.lock().give_back(taken);
    assert!(!pool.is_restock_coming());
}

#[test]
fn writes_that_wait_for_space_are_counted_and_news_are_numbered() {
    let pool = Place::new().open();
    let news = pool.space_news();
    assert!(!pool.has_waiting_writes());
    pool.begin_waiting();
    pool.begin_waiting();
    pool.end_waiting();
    assert!(pool.has_waiting_writes());
    pool.tell_space();
    assert_eq!(pool.space_news(), news + 1);
    pool.end_waiting();
    assert!(!pool.has_waiting_writes());
}
