//! How much a checkpoint reclaims, in which order, and what keeps it from going on.

use super::*;
use crate::format::catalog::TreeState;
use crate::format::snapshot::MergeSide;
use crate::meta::SpaceReserve;

/// Writes a block of each of these leaves.
fn lay_slot(pool: &Pool, tree: TreeId, leaves: impl IntoIterator<Item = u64>, slot: u64) {
    for leaf in leaves {
        lay(pool, tree, leaf * 256 + slot);
    }
}

/// Writes the first block of each of so many leaves.
fn lay_leaves(pool: &Pool, tree: TreeId, leaves: u64) {
    lay_slot(pool, tree, 0..leaves, 0);
}

fn store(pool: &Arc<Pool>) {
    Checkpoint::begin(Arc::clone(pool)).run().expect("nothing is in the way");
}

fn leaf_count(place: &Place) -> usize {
    place.store.scan(Table::Leaves, &[], &[0xff; 32], usize::MAX).expect("memory").len()
}

fn with_limits(place: &Place, change: impl FnOnce(&mut Limits)) -> Arc<Pool> {
    let mut limits = Limits::default();
    change(&mut limits);
    place.open_with(limits)
}

fn drop_snapshot(pool: &Pool, id: SnapshotId) {
    pool.change_catalog(|catalog, at| catalog.remove_snapshots(at, &[id])).expect("there is space");
}

fn assert_clean(pool: &Pool) {
    let report = pool.check().expect("memory");
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn merge_walks_the_side_with_fewer_leaves() {
    use MergeSide::{Follower, Point};
    for (of_point, of_follower, side) in [
        (5, 4, Follower),
        (5, 5, Point),
        (5, 6, Point),
        (3, 9, Point),
        (9, 3, Follower),
        (40, 39, Follower),
        (39, 40, Point),
    ] {
        let place = Place::new();
        let pool = with_limits(&place, |limits| limits.reclaimed_per_batch = 2);
        let tree = create_volume(&pool, "vol");
        lay_leaves(&pool, tree, of_point);
        let snapshot = take_snapshot(&pool, "vol");
        lay_leaves(&pool, tree, of_follower);
        store(&pool);
        drop_snapshot(&pool, snapshot);

        let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
        let merge = loop {
            assert_eq!(checkpoint.step().expect("nothing is in the way"), Progress::Working);
            if let Some(merge) = pool.with_catalog(|catalog, _| catalog.merging().next().and_then(|point| point.merge))
            {
                break merge;
            }
        };

        assert_eq!(merge.side, side, "{of_point} and {of_follower} leaves");
        checkpoint.run().expect("nothing is in the way");
        assert!(!pool.is_reclaiming());
        assert_eq!(leaf_count(&place), usize::try_from(of_point.max(of_follower)).expect("small"));
        assert_clean(&pool);
    }
}

/// A volume of 40 leaves that was removed, and leaves that are left when a checkpoint has begun and gone on.
fn left_of_40(soft_max: u64, write_meanwhile: bool) -> usize {
    let place = Place::new();
    let pool = with_limits(&place, |limits| {
        limits.reclaimed_per_batch = 4;
        limits.reclaimed_per_checkpoint = 10;
        limits.changes_soft_max = soft_max;
    });
    let (tree, other) = (create_volume(&pool, "vol"), create_volume(&pool, "other"));
    lay_leaves(&pool, tree, 40);
    store(&pool);
    remove_volume(&pool, "vol").expect("there is space");
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    checkpoint.step().expect("the cut");
    if write_meanwhile {
        lay(&pool, other, 0);
    }
    checkpoint.run().expect("nothing is in the way");
    let left = leaf_count(&place);
    // What is gone is not looked for again.
    let state = pool.with_catalog(|catalog, _| catalog.tree(tree).expect("it is not gone").state);
    assert_eq!(state, TreeState::Deleting(LeafIndex::new(to_u64(40 - left))));
    // What comes next does the rest.
    for _ in 0..40 {
        store(&pool);
    }
    assert!(!pool.is_reclaiming());
    assert_eq!(leaf_count(&place), usize::from(write_meanwhile));
    assert_clean(&pool);
    left
}

/// Of four leaves that a step reads the last one may go on, and is left for the next step.
#[test]
fn a_checkpoint_deletes_so_many_leaves_and_no_more_than_a_batch_while_writes_wait() {
    assert_eq!(left_of_40(100, false), 40 - 3 * 3);
    assert_eq!(left_of_40(100, true), 40 - 3 * 3);
    assert_eq!(left_of_40(1, false), 40 - 3 * 3);
    assert_eq!(left_of_40(1, true), 40 - 3);
}

#[test]
fn leaf_with_more_epochs_than_a_batch_is_deleted_as_a_whole() {
    let place = Place::new();
    let pool = with_limits(&place, |limits| limits.reclaimed_per_batch = 2);
    let free = pool.space.lock().free_count();
    let tree = create_volume(&pool, "vol");
    for _ in 0..9 {
        lay_leaves(&pool, tree, 2);
        take_snapshot(&pool, "vol");
        store(&pool);
    }
    assert_eq!(leaf_count(&place), 18);
    remove_volume(&pool, "vol").expect("there is space");
    store(&pool);
    assert_eq!((leaf_count(&place), pool.space.lock().free_count()), (0, free));
    assert_clean(&pool);
}

/// A volume with leaves, and a chain of clones that is one longer than leaves are looked for in.
fn with_a_deep_clone() -> (Place, Arc<Pool>) {
    let place = Place::new();
    let pool = with_limits(&place, |limits| {
        limits.lineage_max = 2;
        limits.reclaimed_per_batch = 3;
    });
    let tree = create_volume(&pool, "clone-0");
    lay_leaves(&pool, tree, 10);
    for index in 1..3 {
        let snapshot = take_snapshot(&pool, &format!("clone-{}", index - 1));
        add_clone(&pool, snapshot, &format!("clone-{index}")).expect("there is space");
    }
    store(&pool);
    (place, pool)
}

fn is_whole(pool: &Pool) -> bool {
    pool.with_catalog(|catalog, _| catalog.tree(catalog.find("clone-2").expect("made").tree).expect("it").is_whole())
}

#[test]
fn what_is_copied_for_speed_waits_while_there_is_no_space_and_stops_at_other_failures() {
    let (place, pool) = with_a_deep_clone();
    let leaves = leaf_count(&place);
    // In three steps of three leaves, and the last one.
    place.store.fill_after(Some(3));
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    let error = loop {
        match checkpoint.step() {
            Ok(progress) => assert_eq!(progress, Progress::Working),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "the checkpoint's own record");
    assert_eq!((leaf_count(&place), is_whole(&pool)), (leaves + 6, false));
    place.store.fill_after(None);
    checkpoint.run().expect("there is space");
    assert!(!is_whole(&pool), "that is for the next one");
    store(&pool);
    assert_eq!((leaf_count(&place), is_whole(&pool)), (leaves + 10, true));
    assert_eq!(pool.whole_count(), 1);
    assert_clean(&pool);

    let (place, pool) = with_a_deep_clone();
    place.store.fail_commit_after(Some(2));
    Checkpoint::begin(Arc::clone(&pool)).run().expect_err("the store has failed");
    assert!(pool.check_writable().is_err(), "the pool has failed");
}

#[test]
fn trees_are_copied_to_when_one_more_is_looked_in_than_may_be() {
    for (lineage_max, clones, whole_count) in [(1, 1, 1), (2, 1, 0), (2, 2, 1), (3, 2, 0), (1, 3, 3), (2, 4, 2)] {
        let place = Place::new();
        let pool = with_limits(&place, |limits| limits.lineage_max = lineage_max);
        let tree = create_volume(&pool, "clone-0");
        lay_leaves(&pool, tree, 3);
        for index in 1..=clones {
            let snapshot = take_snapshot(&pool, &format!("clone-{}", index - 1));
            add_clone(&pool, snapshot, &format!("clone-{index}")).expect("there is space");
        }
        (0..3).for_each(|_| store(&pool));
        assert_eq!(pool.whole_count(), whole_count, "{clones} clones, {lineage_max} trees");
        assert_clean(&pool);
    }
}

#[test]
fn what_is_stored_beside_the_catalog_is_there_and_its_failure_is_told() {
    let place = Place::new();
    let pool = place.open();
    let put = |value: u8| [MetaOp::Put(Table::Catalog, b"beside".to_vec(), vec![value])];
    pool.commit_beside(&put(1)).expect("there is space");
    assert_eq!(place.store.get(Table::Catalog, b"beside").expect("memory"), Some(vec![1]));
    place.store.fail_commit_after(Some(1));
    assert!(pool.commit_beside(&put(2)).is_err());
    assert_eq!(place.store.get(Table::Catalog, b"beside").expect("memory"), Some(vec![1]));
}

#[test]
#[should_panic(expected = "the turn is of the same pool")]
fn turn_of_another_pool_is_refused() {
    let (pool, other) = (Place::new().open(), Place::new().open());
    let turn = other.take_turn();
    let record = VolumeRecord { sector_size: 4096, ..VolumeRecord::new(Uuid::new_v4(), "vol", 64 << 20) };
    _ = pool.change_catalog_in(&turn, |catalog, at| catalog.create(at, record));
}

#[test]
fn change_that_the_store_fails_stops_the_pool_and_one_that_is_refused_does_not() {
    let place = Place::new();
    let pool = place.open();
    create_volume(&pool, "vol");
    assert_eq!(remove_volume(&pool, "none").expect_err("there is none").kind(), ErrorKind::NotFound);
    let snapshot = take_snapshot(&pool, "vol");
    place.store.fill_after(Some(1));
    assert_eq!(add_clone(&pool, snapshot, "clone").expect_err("it is full").kind(), ErrorKind::NoSpace);
    place.store.fill_after(None);
    assert!(pool.check_writable().is_ok());
    place.store.fail_commit_after(Some(1));
    add_clone(&pool, snapshot, "clone").expect_err("the store has failed");
    assert!(pool.check_writable().is_err());
}

#[test]
fn merge_of_many_leaves_takes_several_checkpoints() {
    for (of_point, of_follower) in [(500, 600), (600, 500)] {
        let place = Place::new();
        let pool = with_limits(&place, |limits| {
            limits.reclaimed_per_batch = 100;
            limits.reclaimed_per_checkpoint = 200;
        });
        let tree = create_volume(&pool, "vol");
        lay_leaves(&pool, tree, of_point);
        let snapshot = take_snapshot(&pool, "vol");
        lay_leaves(&pool, tree, of_follower);
        store(&pool);
        drop_snapshot(&pool, snapshot);
        let before = leaf_count(&place);
        for round in 1..3 {
            store(&pool);
            assert_eq!(leaf_count(&place), before - round * 200, "{of_point} and {of_follower} leaves");
        }
        store(&pool);
        assert!(!pool.is_reclaiming());
        assert_clean(&pool);
    }
}

/// Begins checkpoints until the first epoch of a tree is being merged; the one that does.
fn until_merging(pool: &Arc<Pool>, tree: TreeId) -> Checkpoint {
    let is_merging = |catalog: &mut Catalog, _: CatalogStore<'_>| {
        catalog.merging().any(|point| (point.tree, point.epoch) == (tree, Epoch::new(1)))
    };
    let mut checkpoints = (0..4).map(|_| Checkpoint::begin(Arc::clone(pool)));
    let mut checkpoint = checkpoints.next().expect("there are four");
    while !pool.with_catalog(is_merging) {
        if checkpoint.step().expect("nothing is in the way") == Progress::Done {
            checkpoint = checkpoints.next().expect("one of the first merges it");
        }
    }
    checkpoint
}

/// A volume and a clone of it that `make` makes; the volume goes, and while it is merged into the clone, after so many steps, that
/// goes as well. Then all space of the pool is free again.
fn remove_clone_while_merging(make: impl Fn(&Arc<Pool>, &Place, TreeId)) {
    for steps in 0..12 {
        let place = Place::new();
        let pool = with_limits(&place, |limits| limits.reclaimed_per_batch = 1);
        let free = pool.space.lock().free_count();
        let tree = create_volume(&pool, "vol");
        make(&pool, &place, tree);
        remove_volume(&pool, "vol").expect("there is space");
        let mut checkpoint = until_merging(&pool, tree);
        for _ in 0..steps {
            checkpoint.step().expect("nothing is in the way");
        }
        remove_volume(&pool, "clone").expect("there is space");
        checkpoint.run().expect("nothing is in the way");
        assert_clean(&pool);
        (0..3).for_each(|_| store(&pool));
        assert_eq!((leaf_count(&place), pool.space.lock().free_count()), (0, free), "after {steps} steps");
        assert_clean(&pool);
    }
}

/// Of a clone that goes while what it was made from is merged into it, every epoch's leaves are looked at.
#[test]
fn all_space_comes_back_of_a_clone_that_is_removed_while_its_origin_is_merged_into_it() {
    remove_clone_while_merging(|pool, _, tree| {
        (0..2).for_each(|slot| lay_slot(pool, tree, 0..6, slot));
        let snapshot = take_snapshot(pool, "vol");
        let clone = add_clone(pool, snapshot, "clone").expect("there is space");
        // Some leaves only the origin has. Of the others the first epoch has one block of the origin's, and the second none.
        lay_leaves(pool, clone, 3);
        take_snapshot(pool, "clone");
        lay_slot(pool, clone, 0..3, 1);
        store(pool);
    });
}

/// The same where the clone has taken over leaves before.
#[test]
fn leaves_that_a_removed_clone_took_over_are_not_lost_in_the_next_merge() {
    remove_clone_while_merging(|pool, place, tree| {
        lay_leaves(pool, tree, 6);
        let first = take_snapshot(pool, "vol");
        lay_leaves(pool, tree, 6);
        let second = take_snapshot(pool, "vol");
        add_clone(pool, second, "clone").expect("there is space");
        let end = pool.end_of_writes();
        pool.change_catalog(|catalog, at| catalog.roll_back(at, first, None, end)).expect("there is space");
        drop_snapshot(pool, second);
        (0..3).for_each(|_| store(pool));
        assert_eq!(leaf_count(place), 12, "those of the second snapshot are the clone's");
    });
}

#[test]
fn clone_is_written_while_its_origin_is_merged_into_it() {
    for own_leaves in [0, 12] {
        let place = Place::new();
        let pool = with_limits(&place, |limits| {
            limits.reclaimed_per_batch = 1;
            limits.reclaimed_per_checkpoint = 2;
        });
        let free = pool.space.lock().free_count();
        let tree = create_volume(&pool, "vol");
        (0..2).for_each(|slot| lay_slot(&pool, tree, 0..12, slot));
        let snapshot = take_snapshot(&pool, "vol");
        let clone = add_clone(&pool, snapshot, "clone").expect("there is space");
        lay_slot(&pool, clone, 0..own_leaves, 2);
        store(&pool);
        remove_volume(&pool, "vol").expect("there is space");
        until_merging(&pool, tree).run().expect("nothing is in the way");
        // Behind the cursor, at it and before it.
        for round in 0..12 {
            assert!(
                round > 4 || pool.with_catalog(|catalog, _| catalog.merging().next().is_some()),
                "it is still under way"
            );
            lay_slot(&pool, clone, (0..12).filter(|leaf| leaf % 3 == round % 3), 0);
            store(&pool);
            assert_clean(&pool);
        }
        assert!(!pool.is_reclaiming());
        let of_clone = 12 * if own_leaves > 0 { 3 } else { 2 };
        assert_eq!(pool.space.lock().free_count(), free - of_clone);
    }
}

#[test]
fn checkpoint_asks_for_the_next_one_for_what_it_could_not_reclaim_yet() {
    let place = Place::new();
    let (pool, asked) = place.open_asked(Limits::default());
    let tree = create_volume(&pool, "vol");
    store(&pool);
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    checkpoint.step().expect("the cut");
    // Not stored by this checkpoint.
    lay(&pool, tree, 0);
    let snapshot = take_snapshot(&pool, "vol");
    drop_snapshot(&pool, snapshot);
    asked.take();
    checkpoint.run().expect("nothing is in the way");
    assert!(asked.take());
    let mut rounds = 0;
    while pool.is_reclaiming() {
        store(&pool);
        rounds += 1;
        assert!(rounds < 4 && pool.is_reclaiming() == asked.take());
    }
}

#[test]
fn tree_that_cannot_be_read_is_set_aside_and_not_asked_for_again() {
    let place = Place::new();
    let (pool, asked) = place.open_asked(Limits::default());
    let free = pool.space.lock().free_count();
    for name in ["damaged", "other"] {
        let tree = create_volume(&pool, name);
        lay_leaves(&pool, tree, 2);
    }
    store(&pool);
    let (leaf_key, _) = place.store.scan(Table::Leaves, &[], &[], 1).expect("memory").remove(0);
    assert!(place.store.flip_bit(Table::Leaves, &leaf_key, 200));
    remove_volume(&pool, "damaged").expect("there is space");
    remove_volume(&pool, "other").expect("there is space");
    asked.take();

    store(&pool);

    assert!(pool.check_writable().is_ok());
    assert_eq!((pool.unreadable.len(), pool.space.lock().free_count()), (1, free - 2));
    assert!(pool.is_reclaiming() && !asked.take());
    store(&pool);
    assert!(!asked.take());
    // What comes later goes on as before.
    lay_leaves(&pool, create_volume(&pool, "third"), 1);
    store(&pool);
    remove_volume(&pool, "third").expect("there is space");
    store(&pool);
    assert_eq!((pool.unreadable.len(), pool.space.lock().free_count()), (1, free - 2));
}

#[test]
fn store_that_does_not_read_stops_the_pool_and_sets_no_tree_aside() {
    let failed = |pool: &Arc<Pool>, place: &Place| {
        place.store.fail_reads_of(Some(Table::Leaves));
        Checkpoint::begin(Arc::clone(pool)).run().expect_err("leaves cannot be read");
        assert!(pool.check_writable().is_err());
        assert_eq!(pool.unreadable.len(), 0);
    };
    let place = Place::new();
    let pool = place.open();
    assert_eq!(pool.unreadable.len(), 0);
    lay_leaves(&pool, create_volume(&pool, "vol"), 2);
    store(&pool);
    remove_volume(&pool, "vol").expect("there is space");
    failed(&pool, &place);
    // Nor where leaves are only copied.
    let (place, pool) = with_a_deep_clone();
    failed(&pool, &place);
}

/// A reserve that was given up once, and does not come back.
struct GivenUp;

impl SpaceReserve for GivenUp {
    fn is_there(&self) -> bool {
        false
    }
    fn give_up(&self) -> bool {
        false
    }
    fn is_replaced(&self) -> bool {
        false
    }
    fn take_back(&self) -> bool {
        false
    }
}

#[test]
fn nothing_is_copied_while_the_reserve_of_the_store_is_gone() {
    let (place, pool) = with_a_deep_clone();
    let limits = *pool.limits();
    drop(pool);
    let parts = Parts { limits, reserve: Some(Arc::new(GivenUp)), ..place.parts() };
    let pool = open(parts, &mut |bytes| bytes.fill(6)).expect("nothing is wrong with the pool");
    store(&pool);
    assert!(!is_whole(&pool));
    drop(pool);
    let pool = place.open_with(limits);
    store(&pool);
    assert!(is_whole(&pool));
}

#[test]
fn discarding_what_is_not_there_stores_no_leaf() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "vol");
    lay_change(&pool, tree, 5, None);
    store(&pool);
    assert_eq!(leaf_count(&place), 0);
    assert_clean(&pool);
}
