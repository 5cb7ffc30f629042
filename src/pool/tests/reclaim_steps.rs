//! How much a checkpoint reclaims, in which order, and what keeps it from going on.

use super::*;
use crate::format::snapshot::MergeSide;
use crate::pool::check::CheckReport;

/// Writes the first block of each of so many leaves.
fn lay_leaves(pool: &Pool, tree: TreeId, leaves: u64) {
    for leaf in 0..leaves {
        lay(pool, tree, leaf * 256);
    }
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

fn clean(pool: &Pool) -> CheckReport {
    let report = pool.check().expect("memory");
    assert!(report.is_clean(), "{report:?}");
    report
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
            if let Some(merge) = pool.with_catalog(|catalog, _| catalog.merging().and_then(|point| point.merge)) {
                break merge;
            }
        };

        assert_eq!(merge.side, side, "{of_point} and {of_follower} leaves");
        checkpoint.run().expect("nothing is in the way");
        assert!(!pool.is_reclaiming());
        assert_eq!(leaf_count(&place), usize::try_from(of_point.max(of_follower)).expect("small"));
        clean(&pool);
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
    // What comes next does the rest.
    for _ in 0..40 {
        store(&pool);
    }
    assert!(!pool.is_reclaiming());
    assert_eq!(leaf_count(&place), usize::from(write_meanwhile));
    clean(&pool);
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
    clean(&pool);
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
    clean(&pool);

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
        clean(&pool);
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
