//! What becomes of trees when a volume goes.

use super::*;
use crate::format::catalog::TreeState;

fn roll_back(pool: &Pool, target: SnapshotId) -> TreeId {
    let (end, id) = (pool.end_of_writes(), Uuid::new_v4());
    let annotations = Annotations::default();
    let kept = NewSnapshot { id, volume: target.0, created_at_ms: 0, time_ms: 0, expires_at: 0, annotations };
    pool.change_catalog(|catalog, at| catalog.roll_back(at, target, Some(kept), end)).expect("there is space").0.tree
}

/// Merging their epochs one by one would do too, and take as many checkpoints.
#[test]
fn trees_of_a_volume_without_anything_behind_them_are_deleted_as_a_whole() {
    let place = Place::new();
    let pool = place.open();
    let free = pool.space.lock().free_count();
    let first = create_volume(&pool, "vol");
    lay(&pool, first, 0);
    let snapshot = take_snapshot(&pool, "vol");
    let second = roll_back(&pool, snapshot);
    lay(&pool, second, 1);
    take_snapshot(&pool, "vol");
    let third = roll_back(&pool, snapshot);
    lay(&pool, third, 2);

    remove_volume(&pool, "vol").expect("there is space");

    let is_deleting = |tree| {
        let state = pool.with_catalog(|catalog, _| catalog.tree(tree).expect("it is not gone yet").state);
        matches!(state, TreeState::Deleting(_))
    };
    assert_eq!([first, second, third].map(is_deleting), [false, true, true], "the first has children");
    for _ in 0..9 {
        Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    }
    assert_eq!(pool.with_catalog(|catalog, _| catalog.trees().count()), 0);
    assert_eq!(pool.space.lock().free_count(), free);
}
