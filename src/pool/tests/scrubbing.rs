//! How much of the map one part of a scrub looks at, and who has what it found when the map has changed since.

use super::*;
use crate::format::scrub::{DamageKind, ScrubPlace};

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

#[test]
fn blocks_that_a_snapshot_alone_has_are_read_and_each_that_it_shares_once() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "vol");
    let mut expected = vec![lay(&pool, tree, 0), lay(&pool, tree, 1)];
    take_snapshot(&pool, "vol");
    expected.push(lay(&pool, tree, 1));
    Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");

    let part = pool.scrub_part(ScrubPlace::default(), usize::MAX).expect("memory");

    expected.sort_unstable();
    assert_eq!(part.blocks.iter().map(|block| block.entry.address()).collect::<Vec<_>>(), expected);
}

/// The interval of a removed snapshot is merged into the tree of its clone, and its own tree is gone then: nobody seemed to
/// have its blocks any more. Seed 18068 found it.
#[test]
fn what_went_into_another_tree_since_it_was_read_is_damaged_there() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "vol");
    lay(&pool, tree, 0);
    lay(&pool, tree, 1);
    let snapshot = take_snapshot(&pool, "vol");
    let clone = add_clone(&pool, snapshot, "clone").expect("there is space");
    let other = create_volume(&pool, "other");
    lay(&pool, other, 0);
    Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    let part = pool.scrub_part(ScrubPlace::default(), usize::MAX).expect("memory");
    let of_tree = part.blocks.iter().filter(|block| block.tree == tree);
    let suspects: Vec<Suspect> = of_tree.map(|block| Suspect::of_block(block, DamageKind::Content)).collect();
    assert_eq!(suspects.len(), 2);

    remove_volume(&pool, "vol").expect("there is space");
    lay(&pool, clone, 1);
    while pool.with_catalog(|catalog, _| catalog.tree(tree).is_some()) {
        Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    }

    let damages = pool.damages_of(suspects, false).expect("memory");
    let [damage] = &damages[..] else { panic!("{damages:?}") };
    let id = pool.with_catalog(|catalog, _| catalog.find("clone").expect("it is there").id);
    assert_eq!((damage.first.get(), damage.count), (0, 1), "the other one was replaced");
    let readers: Vec<_> = damage.readers.iter().map(|reader| (reader.volume, reader.is_head)).collect();
    assert_eq!(readers, [(id, true)]);
}
