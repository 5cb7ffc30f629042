//! What a checkpoint flushes, and how it waits for a lane that flushes.

use super::*;
use crate::disk::Device as _;

#[test]
fn checkpoint_waits_for_the_flush_of_a_lane_and_then_flushes_itself() {
    let place = Place::new();
    let pool = place.open();
    let mut of_lane = FlushStart::default();
    assert!(pool.begin_flush(&mut of_lane));
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    assert_eq!(checkpoint.step().expect("the cut"), Progress::Working);
    // Nothing would change: who runs it waits for the flush to end.
    assert_eq!(checkpoint.step().expect("no failure"), Progress::Waiting);
    assert_eq!(checkpoint.step().expect("no failure"), Progress::Waiting);
    pool.end_flush(&of_lane, None);

    place.device.write_at(1 << 20, &[1; 4096]).expect("a healthy device");
    pool.is_written[0].store(true, Ordering::Release);
    assert_eq!(checkpoint.step().expect("no failure"), Progress::Working);

    assert!(place.device.unflushed().is_empty(), "what the map is to say must be durable before");
    checkpoint.run().expect("nothing is in the way");
}

#[test]
fn flush_covers_the_devices_that_were_written_and_what_was_asked_for_before_it() {
    let pool = Place::new().open();
    let mut start = FlushStart::default();
    assert!(pool.begin_flush(&mut start));
    pool.end_flush(&start, None);
    assert!(pool.begin_flush(&mut start));
    assert!(start.devices().is_empty(), "nothing was written since");
    let need = pool.flush_need();
    assert!(pool.is_flushed(need));
    pool.write_generation.fetch_add(1, Ordering::AcqRel);
    assert!(!pool.is_flushed(pool.flush_need()), "that was acknowledged later");
    pool.end_flush(&start, None);
    assert!(!pool.is_flushed(pool.flush_need()), "and the flush does not cover it");
    pool.is_written[0].store(true, Ordering::Release);
    assert!(pool.begin_flush(&mut start));
    assert_eq!(start.devices().len(), 1);
    pool.end_flush(&start, None);
    assert!(pool.is_flushed(pool.flush_need()));
}

#[test]
fn a_flush_is_under_way_from_its_begin_to_its_end() {
    let pool = Place::new().open();
    let mut start = FlushStart::default();
    assert!(!pool.is_flush_under_way());
    assert!(pool.begin_flush(&mut start));
    assert!(pool.is_flush_under_way() && !pool.begin_flush(&mut FlushStart::default()));
    pool.end_flush(&start, None);
    assert!(!pool.is_flush_under_way());
}
