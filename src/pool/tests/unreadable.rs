//! Versions whose leaves cannot be read: their space does not come back, and that of everything else does.

use super::*;
use crate::format::key;

fn store(pool: &Arc<Pool>) {
    Checkpoint::begin(Arc::clone(pool)).run().expect("nothing is in the way");
}

fn lay_leaves(pool: &Pool, tree: TreeId, leaves: u64) {
    (0..leaves).for_each(|leaf| _ = lay(pool, tree, leaf * 256));
}

/// A volume of which a snapshot and the head have blocks of their own in each leaf.
fn with_a_version(pool: &Arc<Pool>, name: &str, leaves: u64) -> (TreeId, SnapshotId) {
    let tree = create_volume(pool, name);
    lay_leaves(pool, tree, leaves);
    store(pool);
    let snapshot = take_snapshot(pool, name);
    lay_leaves(pool, tree, leaves);
    store(pool);
    (tree, snapshot)
}

fn drop_snapshot(pool: &Arc<Pool>, snapshot: SnapshotId) {
    pool.change_catalog(|catalog, at| catalog.remove_snapshots(at, &[snapshot])).expect("there is space");
    (0..4).for_each(|_| store(pool));
}

fn damage(place: &Place, tree: TreeId, leaf: u64) {
    let leaf_key = key::leaf(tree, LeafIndex::new(leaf), Epoch::new(1));
    assert!(place.store.flip_bit(Table::Leaves, &leaf_key, 200), "the snapshot has it");
}

fn free_count(pool: &Pool) -> u64 {
    pool.space.lock().free_count()
}

fn assert_only_leaves_are_damaged(pool: &Pool) {
    use crate::pool::DifferenceKind::{Count, DamagedLeaf, Leaked};
    let report = pool.check().expect("memory");
    assert!(report.differences.iter().any(|found| found.kind == DamagedLeaf), "{report:?}");
    // What it maps looks lost, and is counted.
    let is_of_it = |kind| matches!(kind, Count | DamagedLeaf | Leaked);
    assert!(report.differences.iter().all(|found| is_of_it(found.kind)), "{report:?}");
}

/// The newest is merged first.
#[test]
fn version_that_cannot_be_read_keeps_no_older_one_of_another_volume() {
    let place = Place::new();
    let pool = place.open();
    let (_, other) = with_a_version(&pool, "other", 1);
    let (tree, snapshot) = with_a_version(&pool, "damaged", 1);
    damage(&place, tree, 0);
    let free = free_count(&pool);
    drop_snapshot(&pool, snapshot);
    assert_eq!((pool.unreadable.len(), free_count(&pool)), (1, free));

    drop_snapshot(&pool, other);

    assert_eq!((pool.unreadable.len(), free_count(&pool)), (1, free + 1));
    assert_only_leaves_are_damaged(&pool);
}

/// What is left of it stays as it is, with all that builds on it.
#[test]
fn merge_that_ends_half_way_at_a_damaged_leaf_keeps_nothing_of_other_volumes() {
    let place = Place::new();
    let limits = Limits { reclaimed_per_batch: 1, ..Limits::default() };
    let pool = place.open_with(limits);
    let (_, other) = with_a_version(&pool, "other", 1);
    let (tree, snapshot) = with_a_version(&pool, "damaged", 3);
    damage(&place, tree, 2);
    let free = free_count(&pool);
    drop_snapshot(&pool, snapshot);
    assert_eq!(pool.with_catalog(|catalog, _| catalog.merging().count()), 1, "it is half merged");
    assert_eq!((pool.unreadable.len(), free_count(&pool)), (1, free + 2));

    drop_snapshot(&pool, other);
    assert_eq!(free_count(&pool), free + 3);
    remove_volume(&pool, "other").expect("there is space");
    store(&pool);
    assert_eq!(free_count(&pool), free + 4);
    // Nor does the next opening, which tries it again.
    drop(pool);
    let pool = place.open_with(Limits { reclaimed_per_batch: 1, ..Limits::default() });
    let (_, third) = with_a_version(&pool, "third", 1);
    let free = free_count(&pool);
    drop_snapshot(&pool, third);
    assert_eq!((pool.unreadable.len(), free_count(&pool)), (1, free + 1));
    assert!(pool.check_writable().is_ok());
    // Its head is a volume like any other.
    lay_leaves(&pool, tree, 2);
    store(&pool);
    assert_eq!(free_count(&pool), free + 1, "what was overwritten is free");
    assert_only_leaves_are_damaged(&pool);
}

#[test]
fn what_builds_on_a_half_merged_version_waits_with_it_until_it_can_be_read() {
    let place = Place::new();
    let open = || place.open_with(Limits { reclaimed_per_batch: 1, ..Limits::default() });
    let pool = open();
    let (tree, snapshot) = with_a_version(&pool, "damaged", 3);
    let second = take_snapshot(&pool, "damaged");
    let clone = add_clone(&pool, second, "clone").expect("a new name");
    lay(&pool, clone, 0);
    store(&pool);
    damage(&place, tree, 2);
    drop_snapshot(&pool, snapshot);
    let free = free_count(&pool);

    remove_volume(&pool, "clone").expect("there is space");
    (0..4).for_each(|_| store(&pool));
    assert_eq!((free_count(&pool), pool.is_reclaiming()), (free, true));

    // As it was.
    damage(&place, tree, 2);
    drop(pool);
    let pool = open();
    (0..4).for_each(|_| store(&pool));
    assert_eq!(
        (free_count(&pool), pool.is_reclaiming()),
        (free + 2, false),
        "the clone's block, and the version's third"
    );
    let report = pool.check().expect("memory");
    assert!(report.is_clean(), "{report:?}");
}
