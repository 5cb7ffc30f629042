//! How much of the map one part of a scrub looks at.

use super::*;
use crate::format::scrub::ScrubPlace;

/// Leaves of which one part takes 256.
const LEAVES: u64 = 300;

fn with_leaves() -> (Place, Arc<Pool>) {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "vol");
    (0..LEAVES).for_each(|leaf| _ = lay(&pool, tree, leaf * 256));
    Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    (place, pool)
}

#[test]
fn a_part_takes_so_many_leaves_and_the_next_one_the_others() {
    let (_place, pool) = with_leaves();
    let first = pool.scrub_part(ScrubPlace::default(), usize::MAX).expect("memory");
    assert_eq!((first.blocks.len(), first.suspects.len()), (256, 0));
    let next = first.next.expect("there are more");
    assert_eq!(next.leaf.get(), 256);
    let second = pool.scrub_part(next, usize::MAX).expect("memory");
    assert_eq!((second.blocks.len(), second.next), (usize::try_from(LEAVES).expect("few") - 256, None));
}

#[test]
fn leaves_that_cannot_be_read_count_as_well() {
    let (place, pool) = with_leaves();
    for (key, value) in place.store.scan(Table::Leaves, &[], &[0xff; 32], usize::MAX).expect("memory") {
        assert!(place.store.flip_bit(Table::Leaves, &key, value.len() * 4), "it is there");
    }
    let first = pool.scrub_part(ScrubPlace::default(), usize::MAX).expect("memory");
    assert_eq!((first.blocks.len(), first.suspects.len()), (0, 256));
    let second = pool.scrub_part(first.next.expect("there are more"), usize::MAX).expect("memory");
    assert_eq!((second.suspects.len(), second.next), (usize::try_from(LEAVES).expect("few") - 256, None));
}
