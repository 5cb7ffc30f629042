//! Who shares what a head maps, and who has how much of it.

use super::*;

/// A volume with two snapshots, a clone of the first one with a snapshot, and a clone of that.
struct Family {
    _place: Place,
    pool: Arc<Pool>,
    /// Of the volume, of the clone and of its clone.
    trees: [TreeId; 3],
    /// Both of the volume, and that of the clone.
    snapshots: [SnapshotId; 3],
}

impl Family {
    fn new() -> Self {
        let place = Place::new();
        let pool = place.open();
        let volume = create_volume(&pool, "vol");
        lay(&pool, volume, 0);
        lay(&pool, volume, 1);
        let first = take_snapshot(&pool, "vol");
        lay(&pool, volume, 1);
        let second = take_snapshot(&pool, "vol");
        lay(&pool, volume, 2);
        let clone = add_clone(&pool, first, "clone").expect("there is space");
        lay(&pool, clone, 3);
        let third = take_snapshot(&pool, "clone");
        let other = add_clone(&pool, third, "other").expect("there is space");
        Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
        Self { _place: place, pool, trees: [volume, clone, other], snapshots: [first, second, third] }
    }

    fn head(&self, index: usize) -> Sharer {
        self.pool.with_catalog(|catalog, _| Sharer::Head(catalog.head_of(self.trees[index]).expect("it is a head").id))
    }
}

#[test]
fn sharers_of_a_head_are_the_nearest_and_no_more_than_asked_for() {
    let family = Family::new();
    let [first, second, third] = family.snapshots.map(Sharer::Snapshot);
    let [volume, clone, other] = [0, 1, 2].map(|index| family.head(index));
    let expected = [
        vec![second, first, third, other, clone],
        vec![third, other, first, second, volume],
        vec![third, clone, first, second, volume],
    ];
    family.pool.with_catalog(|catalog, _| {
        for (tree, expected) in family.trees.iter().zip(expected) {
            for count_max in 0..=expected.len() {
                assert_eq!(catalog.sharers(*tree, count_max), expected[..count_max], "{tree}, {count_max} of them");
            }
            assert_eq!(catalog.sharers(*tree, usize::MAX), expected, "{tree}");
        }
    });
}

#[test]
fn what_a_head_has_is_told_with_who_shares_it() {
    let family = Family::new();
    let shares = |tree: TreeId| {
        family.pool.with_catalog(|catalog, _| {
            let id = catalog.head_of(tree).expect("it is a head").id;
            let shares = catalog.head_shares(id, 1);
            (shares.mapped_count, shares.own_count, shares.sharers)
        })
    };
    let [_, second, third] = family.snapshots.map(Sharer::Snapshot);
    assert_eq!(shares(family.trees[0]), (3, 1, vec![second]));
    assert_eq!(shares(family.trees[1]), (3, 0, vec![third]));
    assert_eq!(shares(family.trees[2]), (3, 0, vec![third]));
    let alone = create_volume(&family.pool, "alone");
    lay(&family.pool, alone, 0);
    Checkpoint::begin(Arc::clone(&family.pool)).run().expect("nothing is in the way");
    assert_eq!(shares(alone), (1, 1, Vec::new()));
}

#[test]
fn what_a_removal_would_free_is_found_in_the_leaves_of_what_goes_alone() {
    let pool = Place::new().open();
    let tree = create_volume(&pool, "vol");
    let store = || Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    (0..3).for_each(|leaf| _ = lay(&pool, tree, leaf * 256));
    store();
    take_snapshot(&pool, "vol");
    lay(&pool, tree, 0);
    store();
    let second = take_snapshot(&pool, "vol");
    lay(&pool, tree, 0);
    store();

    let freed = |leaf_count_max| {
        let freed = pool.would_free(&Removals::of_snapshot(second), &mut Effort::new(leaf_count_max, &|| false));
        freed.expect("the store is whole")
    };

    assert_eq!(freed(1), Some(1), "those of the first snapshot cost nothing");
    assert_eq!(freed(0), None, "there is one leaf to look at");
}
