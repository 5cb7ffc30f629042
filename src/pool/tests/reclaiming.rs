//! Random histories of volumes, snapshots and clones that are stored, merged, copied down and deleted in the smallest steps:
//! whatever is under way, each volume and snapshot maps what was written to it, and in the end all space is there again.

use super::*;
use crate::pool::{NewSnapshot, SnapshotId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};

/// Leaves of a volume that are written, and blocks in each.
const LEAVES: u64 = 6;
const SLOTS: u64 = 3;
const VOLUMES_MAX: usize = 5;
const SNAPSHOTS_MAX: usize = 10;
const OPERATIONS: usize = 150;
const SEEDS: u64 = 300;
/// Checkpoints after which everything is reclaimed, however small their steps are.
const CHECKPOINTS_MAX: usize = 2_000;

/// What a volume or a snapshot maps, by block.
type View = BTreeMap<u64, Address>;

struct History {
    random: SmallRng,
    place: Place,
    limits: Limits,
    pool: Arc<Pool>,
    asked: Arc<Asked>,
    checkpoint: Option<Checkpoint>,
    volumes: BTreeMap<Uuid, View>,
    snapshots: BTreeMap<SnapshotId, View>,
    id: u128,
    free_at_first: u64,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let limits = Limits {
            // Now and then everything waits for the space of a checkpoint.
            changes_soft_max: if random.random_bool(0.5) { 3 } else { 1_000 },
            leaves_per_batch: random.random_range(1..4),
            reclaimed_per_batch: random.random_range(1..4),
            reclaimed_per_checkpoint: random.random_range(1..12),
            lineage_max: random.random_range(1..5),
            ..Limits::default()
        };
        let place = Place::new();
        let (pool, asked) = place.open_asked(limits);
        let free_at_first = pool.space.lock().free_count();
        let (volumes, snapshots) = (BTreeMap::new(), BTreeMap::new());
        Self { random, place, limits, pool, asked, checkpoint: None, volumes, snapshots, id: 10, free_at_first }
    }

    /// Not a random one: a seed must come again.
    fn new_id(&mut self) -> Uuid {
        self.id += 1;
        Uuid::from_u128(self.id)
    }

    fn pick<K: Copy + Ord, V>(random: &mut SmallRng, map: &BTreeMap<K, V>) -> Option<K> {
        (!map.is_empty()).then(|| *map.keys().nth(random.random_range(0..map.len())).expect("it is one of them"))
    }

    fn volume(&mut self) -> Option<Uuid> {
        Self::pick(&mut self.random, &self.volumes)
    }

    fn snapshot(&mut self) -> Option<SnapshotId> {
        Self::pick(&mut self.random, &self.snapshots)
    }

    fn operation(&mut self) {
        match self.random.random_range(0..100) {
            0..3 => self.create(),
            3..40 => self.write(),
            40..55 => self.take_snapshot(),
            55..62 => self.clone_snapshot(),
            62..66 => self.roll_back(),
            66..76 => self.remove_snapshot(),
            76..78 => self.remove_volume(),
            78..93 => self.step(),
            93..97 => self.settle(),
            97..99 => self.verify(),
            _ => self.reopen(),
        }
    }

    fn create(&mut self) {
        if self.volumes.len() < VOLUMES_MAX {
            let id = self.new_id();
            let record = VolumeRecord { sector_size: 4096, ..VolumeRecord::new(id, &name(id), 64 << 20) };
            self.pool.change_catalog(|catalog, at| catalog.create(at, record)).expect("there is space");
            self.volumes.insert(id, View::new());
        }
    }

    /// Writes or discards some blocks, in few leaves or in all.
    fn write(&mut self) {
        let Some(id) = self.volume() else { return };
        let tree = self.pool.with_catalog(|catalog, _| catalog.volume(id).expect("it was made").tree);
        let leaves = if self.random.random_bool(0.5) { 2 } else { LEAVES };
        for _ in 0..self.random.random_range(1..6) {
            let block = self.random.random_range(0..leaves) * 256 + self.random.random_range(0..SLOTS);
            let is_removed = self.random.random_bool(0.2);
            let view = self.volumes.get_mut(&id).expect("it was made");
            if is_removed {
                view.remove(&block);
                lay_change(&self.pool, tree, block, None);
            } else {
                view.insert(block, lay(&self.pool, tree, block));
            }
        }
    }

    fn new_snapshot(&mut self, volume: Uuid) -> NewSnapshot {
        let annotations = Annotations::default();
        NewSnapshot { id: self.new_id(), volume, created_at_ms: 0, time_ms: 0, expires_at: 0, annotations }
    }

    fn take_snapshot(&mut self) {
        let Some(id) = self.volume().filter(|_| self.snapshots.len() < SNAPSHOTS_MAX) else { return };
        let new = self.new_snapshot(id);
        let end = self.pool.end_of_writes();
        let made = self.pool.change_catalog(|catalog, at| catalog.add_snapshots(at, vec![new], end));
        let snapshot = made.expect("there is space").remove(0);
        self.snapshots.insert((id, snapshot.number), self.volumes[&id].clone());
    }

    fn clone_snapshot(&mut self) {
        let Some(source) = self.snapshot().filter(|_| self.volumes.len() < VOLUMES_MAX) else { return };
        let id = self.new_id();
        let clone = NewClone { id, name: name(id), created_at: 0, expires_at: 0, labels: Vec::new() };
        let made = self.pool.change_catalog(|catalog, at| catalog.add_clones(at, source, vec![clone]));
        made.expect("there is space");
        self.volumes.insert(id, self.snapshots[&source].clone());
    }

    fn roll_back(&mut self) {
        let Some(target) = self.snapshot() else { return };
        let keep = self.random.random_bool(0.5).then(|| self.new_snapshot(target.0));
        let end = self.pool.end_of_writes();
        let changed = self.pool.change_catalog(|catalog, at| catalog.roll_back(at, target, keep, end));
        let (_, kept) = changed.expect("there is space");
        let view = self.snapshots[&target].clone();
        let before = self.volumes.insert(target.0, view).expect("a snapshot has a volume");
        if let Some(kept) = kept {
            self.snapshots.insert((target.0, kept.number), before);
        }
    }

    fn remove_snapshot(&mut self) {
        let Some(id) = self.snapshot() else { return };
        let removed = self.pool.change_catalog(|catalog, at| catalog.remove_snapshots(at, &[id]));
        removed.expect("there is space");
        self.snapshots.remove(&id);
    }

    fn remove_volume(&mut self) {
        let Some(id) = self.volume() else { return };
        let end = self.pool.end_of_writes();
        self.pool.change_catalog(|catalog, at| catalog.remove(at, id, end)).expect("there is space");
        self.volumes.remove(&id);
        self.snapshots.retain(|(volume, _), _| *volume != id);
    }

    fn step(&mut self) {
        for _ in 0..self.random.random_range(1..8) {
            let checkpoint = self.checkpoint.get_or_insert_with(|| Checkpoint::begin(Arc::clone(&self.pool)));
            if checkpoint.step().expect("nothing is in the way") == Progress::Done {
                self.checkpoint = None;
            }
        }
    }

    /// Stores all that was written.
    fn settle(&mut self) {
        if let Some(mut checkpoint) = self.checkpoint.take() {
            checkpoint.run().expect("nothing is in the way");
        }
        Checkpoint::begin(Arc::clone(&self.pool)).run().expect("nothing is in the way");
    }

    /// Compares all that is stored with what should be there. What was removed may be half reclaimed.
    fn verify(&mut self) {
        self.settle();
        for (id, view) in &self.volumes {
            let tree = self.pool.with_catalog(|catalog, _| {
                let tree = catalog.volume(*id).expect("it was made").tree;
                (tree, catalog.tree(tree).expect("a volume has a tree").epoch)
            });
            self.compare(tree, view, &format!("volume {id}"));
        }
        for (id, view) in &self.snapshots {
            let point = self.pool.with_catalog(|catalog, _| catalog.snapshot(*id).expect("it was made").point);
            self.compare(point, view, &format!("snapshot {id:?}"));
        }
        let report = self.pool.check().expect("memory");
        assert!(report.is_clean(), "{report:?}");
    }

    fn compare(&self, at: (TreeId, Epoch), view: &View, name: &str) {
        let (lineage, mapped) = self.pool.with_catalog(|catalog, _| (catalog.lineage(at), catalog.mapped_count(at)));
        let stored = crate::map::StoredLeaves { store: self.pool.store(), keys: self.pool.keys() };
        let mut found = View::new();
        for index in 0..LEAVES {
            let leaf = stored.resolve(&lineage, LeafIndex::new(index)).expect("memory gives it");
            found.extend(leaf.iter().map(|(slot, entry)| (index * 256 + u64::from(slot), entry.address())));
        }
        assert_eq!(&found, view, "{name}");
        assert_eq!(mapped, to_u64(view.len()), "{name}");
    }

    /// Opens the pool anew. What was not stored was in no log, so all is stored before.
    fn reopen(&mut self) {
        self.settle();
        let (pool, asked) = self.place.open_asked(self.limits);
        (self.pool, self.asked) = (pool, asked);
        self.verify();
    }

    /// Runs checkpoints as long as the pool asks for them; nothing is left to do then.
    fn reclaim_all(&mut self) {
        self.settle();
        let mut count = 0;
        while self.asked.take() {
            count += 1;
            assert!(count < CHECKPOINTS_MAX, "the pool asks for ever");
            Checkpoint::begin(Arc::clone(&self.pool)).run().expect("nothing is in the way");
        }
        assert!(!self.pool.is_reclaiming(), "the pool does not ask for what is left to be done");
        self.verify();
    }

    fn end(mut self) {
        self.reclaim_all();
        // What two clones of what was removed build on stays, though they may have written over it.
        let is_all_named = self.pool.with_catalog(|catalog, _| {
            catalog.points().all(|point| catalog.snapshot_at((point.tree, point.epoch)).is_some())
        });
        let views = self.volumes.values().chain(self.snapshots.values());
        let living: BTreeSet<Address> = views.flat_map(|view| view.values().copied()).collect();
        let used = self.free_at_first - self.pool.space.lock().free_count();
        assert!(used >= to_u64(living.len()) && (used == to_u64(living.len()) || !is_all_named), "{used} blocks");
        while !self.volumes.is_empty() {
            self.remove_volume();
            if self.random.random_bool(0.5) {
                self.step();
            }
        }
        self.reclaim_all();
        assert_eq!(self.pool.space.lock().free_count(), self.free_at_first);
        let trees = self.pool.with_catalog(|catalog, _| catalog.trees().count());
        assert_eq!(trees, 0, "a tree is left");
    }
}

fn name(id: Uuid) -> String {
    format!("v{}", id.as_u128())
}

#[test]
fn whatever_is_reclaimed_meanwhile_each_view_stays_and_all_space_comes_back() {
    for seed in 0..SEEDS {
        let ended = std::panic::catch_unwind(|| {
            let mut history = History::new(seed);
            (0..2).for_each(|_| history.create());
            (0..OPERATIONS).for_each(|_| history.operation());
            history.end();
        });
        assert!(ended.is_ok(), "seed {seed}");
    }
}

#[test]
fn a_part_takes_over_what_its_base_holds_when_that_goes_and_is_counted() {
    let pool = Place::new().open();
    let tree = create_volume(&pool, "vol");
    let store = || Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    // All of a leaf, then a block of it in each of two versions.
    (0..256).for_each(|block| _ = lay(&pool, tree, block));
    store();
    take_snapshot(&pool, "vol");
    lay(&pool, tree, 0);
    store();
    let second = take_snapshot(&pool, "vol");
    lay(&pool, tree, 1);
    store();
    assert_eq!((pool.part_counts().stored(), pool.part_counts().rebased()), (2, 0));

    pool.change_catalog(|catalog, at| catalog.remove_snapshots(at, &[second])).expect("there is space");
    while pool.is_reclaiming() {
        store();
    }

    assert_eq!(pool.part_counts().rebased(), 1);
    let report = pool.check().expect("memory");
    assert!(report.is_clean(), "{report:?}");
}
