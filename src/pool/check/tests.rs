//! The check against pools in which one thing was made wrong.

mod log;

use super::*;
use crate::crypto::{MasterKey, SealKind, Suite};
use crate::disk::SimDevice;
use crate::format::bitmap;
use crate::format::catalog::VolumeRecord;
use crate::format::entry::Entry;
use crate::format::key;
use crate::format::leaf::{Leaf, LeafChange};
use crate::format::snapshot::Annotations;
use crate::map::{Change, ChangeKey, Onto, StoredLeaves};
use crate::meta::{Durability, MemoryStore, MetaOp, MetaStore, Table};
use crate::pool::{Checkpoint, Limits, NewSnapshot};
use crate::units::{
    Address, BlockIndex, DeviceIndex, Epoch, KeyGeneration, LeafIndex, STRETCH_BLOCKS, TreeId, to_u64, to_usize,
};
use uuid::Uuid;

/// An open pool whose volume "vol1" has its blocks 0 to 9 stored.
struct Scene {
    device: SimDevice,
    store: Arc<MemoryStore>,
    pool: Arc<Pool>,
    tree: TreeId,
}

impl Scene {
    fn new() -> Self {
        Self::of_bytes(16 << 20)
    }

    fn of_bytes(device_bytes: u64) -> Self {
        let (device, store) = (SimDevice::new("sim", device_bytes), Arc::new(MemoryStore::new()));
        crate::pool::create(&parts(&device, &store), &mut |bytes| bytes.fill(5)).expect("a new pool");
        let pool = crate::pool::open(parts(&device, &store), &mut |bytes| bytes.fill(6)).expect("a new pool opens");
        let record = VolumeRecord { sector_size: 4096, ..VolumeRecord::new(Uuid::from_u128(3), "vol1", 64 << 20) };
        let tree = pool.change_catalog(|catalog, at| catalog.create(at, record)).expect("a new volume").tree;
        let scene = Self { device, store, pool, tree };
        (0..10).for_each(|block| scene.lay(block));
        Checkpoint::begin(Arc::clone(&scene.pool)).run().expect("nothing is in the way");
        scene
    }

    fn lay(&self, block: u64) {
        self.lay_in(Epoch::new(1), block);
    }

    fn lay_in(&self, epoch: Epoch, block: u64) {
        let address = self.pool.space.lock().reserve(1, 0)[0].start;
        let sequence = self.pool.take_sequences(1);
        let key = ChangeKey { tree: self.tree, block: BlockIndex::new(block), epoch };
        let entry = Entry::new(address, KeyGeneration::new(0), sequence, 1);
        self.pool.changes().lay().lay(key, Change { sequence, entry: Some(entry) });
    }

    fn commit(&self, batch: &[MetaOp]) {
        self.store.commit(batch, Durability::Synced).expect("memory");
    }

    fn leaf(&self) -> Leaf {
        let stored = StoredLeaves { store: &*self.store, keys: &self.pool.keys };
        let newest = stored.newest(self.tree, Epoch::new(1), LeafIndex::new(0)).expect("it can be read");
        newest.expect("it is stored").leaf
    }

    fn address(&self, slot: u8) -> Address {
        self.leaf().get(slot).expect("it is mapped").address()
    }

    /// What puts a whole leaf.
    fn put_leaf(&self, epoch: u64, index: u64, leaf: &Leaf) -> Vec<MetaOp> {
        let stored = StoredLeaves { store: &*self.store, keys: &self.pool.keys };
        let mut batch = Vec::new();
        let place = (self.tree, Epoch::new(epoch), LeafIndex::new(index));
        stored.store(place, Onto::Nothing, leaf, &LeafChange::default(), &mut batch);
        batch
    }

    /// Stores the leaf once more, in a tree that is not there.
    fn commit_stray_leaf(&self) {
        let stored = StoredLeaves { store: &*self.store, keys: &self.pool.keys };
        let place = (TreeId::new(77), Epoch::new(1), LeafIndex::new(0));
        let mut batch = Vec::new();
        stored.store(place, Onto::Nothing, &self.leaf(), &LeafChange::default(), &mut batch);
        self.commit(&batch);
    }

    /// Sets the bits of blocks in the stored bitmap and in memory.
    fn mark(&self, address: Address, is_used: bool) {
        let mut stored = self.pool.stored.lock();
        let stretch = address.block() / STRETCH_BLOCKS;
        let bits = &mut stored.used[0][to_usize(stretch)];
        bitmap::replace(bits, address.block() % STRETCH_BLOCKS, is_used);
        let stretch_key = key::stretch(DeviceIndex::new(0), stretch);
        let value = self.pool.keys.seal(SealKind::Bitmap, &stretch_key, &bitmap::encode(bits));
        drop(stored);
        self.commit(&[MetaOp::Put(Table::Used, stretch_key, value)]);
    }

    /// Kinds of the differences in the open pool and, closed, offline.
    fn kinds(&self) -> (Vec<DifferenceKind>, Vec<DifferenceKind>) {
        let kinds = |report: CheckReport| {
            assert_eq!(report.difference_count, to_u64(report.differences.len()), "{report:#?}");
            report.differences.into_iter().map(|difference| difference.kind).collect()
        };
        let offline = check(&parts(&self.device, &self.store)).expect("it can be read");
        (kinds(self.pool.check().expect("it can be read")), kinds(offline))
    }
}

fn parts(device: &SimDevice, store: &Arc<MemoryStore>) -> Parts {
    Parts {
        id: Uuid::from_u128(1),
        suite: Suite::XtsGmac,
        master: Arc::new(MasterKey::from_bytes([7; 32])),
        devices: vec![(Arc::new(device.clone()), Uuid::from_u128(2))],
        store: Arc::clone(store) as Arc<dyn MetaStore>,
        reserve: None,
        shred_key: None,
        lane_count: 1,
        has_cleaner: false,
        limits: Limits::default(),
    }
}

#[test]
fn pool_as_it_should_be_has_no_difference() {
    let scene = Scene::new();
    scene.lay(3);
    scene.lay(300);

    let report = scene.pool.check().expect("it can be read");

    assert!(report.is_clean(), "{report:#?}");
    assert_eq!((report.tree_count, report.leaf_count, report.mapped_block_count), (1, 1, 10));
    assert_eq!(scene.kinds(), (vec![], vec![]));
}

#[test]
fn blocks_that_nothing_maps_are_leaked_and_told_as_runs() {
    let scene = Scene::new();
    let first = Address::new(DeviceIndex::new(0), 3000);
    (0..70).for_each(|step| scene.mark(first.plus(step), true));

    let report = check(&parts(&scene.device, &scene.store)).expect("it can be read");

    assert_eq!(report.difference_count, 1, "{report:#?}");
    let found = &report.differences[0];
    assert_eq!((found.kind, found.blocks), (DifferenceKind::Leaked, Some(AddressRun { start: first, count: 70 })));
    // In memory they are free too.
    assert!(scene.kinds().0.contains(&DifferenceKind::Leaked));
    assert!(scene.kinds().0.contains(&DifferenceKind::Memory));
}

#[test]
fn mapped_block_that_is_not_marked_is_named_with_who_maps_it() {
    let scene = Scene::new();
    let address = scene.address(4);
    scene.mark(address, false);

    let report = check(&parts(&scene.device, &scene.store)).expect("it can be read");

    assert_eq!(report.difference_count, 1, "{report:#?}");
    let found = &report.differences[0];
    assert_eq!((found.kind, found.blocks.map(|run| run.start)), (DifferenceKind::NotMarked, Some(address)));
    let place =
        Place { tree: scene.tree, volume: Some("vol1".to_owned()), epoch: Epoch::new(1), block: BlockIndex::new(4) };
    assert_eq!(found.places, [place]);
}

#[test]
fn block_that_two_places_map_is_named_with_both() {
    let scene = Scene::new();
    let mut leaf = scene.leaf();
    leaf.set(200, leaf.get(7));
    scene.commit(&scene.put_leaf(1, 0, &leaf));

    let report = scene.pool.check().expect("it can be read");

    let twice = report.differences.iter().find(|found| found.kind == DifferenceKind::MappedTwice);
    let places: Vec<u64> = twice.expect("it is found").places.iter().map(|place| place.block.get()).collect();
    assert_eq!(places, [7, 200]);
    // The tree holds and maps one block more than was counted.
    assert_eq!(scene.kinds().1, [DifferenceKind::Count, DifferenceKind::Count, DifferenceKind::MappedTwice]);
}

#[test]
fn copy_of_a_leaf_in_a_newer_epoch_is_the_same_mapping() {
    let scene = Scene::new();
    let new = NewSnapshot {
        id: Uuid::from_u128(9),
        volume: Uuid::from_u128(3),
        created_at_ms: 0,
        time_ms: 0,
        expires_at: 0,
        annotations: Annotations::default(),
    };
    let end = scene.pool.end_of_writes();
    scene.pool.change_catalog(|catalog, at| catalog.add_snapshots(at, vec![new], end)).expect("memory takes it");
    scene.commit(&scene.put_leaf(2, 0, &scene.leaf()));

    assert_eq!(scene.kinds(), (vec![], vec![]));
}

#[test]
fn leaf_that_a_newer_one_of_its_interval_hides_is_named() {
    let scene = Scene::new();
    scene.commit(&scene.put_leaf(2, 0, &scene.leaf()));

    assert_eq!(scene.kinds().1, [DifferenceKind::StrayLeaf]);
}

#[test]
fn address_that_no_device_has_is_out_of_range() {
    let scene = Scene::new();
    let mut leaf = scene.leaf();
    let outside = Address::new(DeviceIndex::new(0), (16 << 20) / 4096);
    let old = leaf.get(0).expect("it is mapped");
    leaf.set(0, Some(Entry::new(outside, KeyGeneration::new(0), old.sequence(), 1)));
    scene.commit(&scene.put_leaf(1, 0, &leaf));

    assert_eq!(scene.kinds().1, [DifferenceKind::OutOfRange, DifferenceKind::Leaked]);
}

#[test]
fn leaves_that_cannot_be_or_cannot_be_read_are_named() {
    let scene = Scene::new();
    let mut batch = scene.put_leaf(1, 9, &Leaf::default());
    batch.truncate(1);
    scene.commit(&batch);
    assert_eq!(scene.kinds().1, [DifferenceKind::Index, DifferenceKind::Count], "it is not in the index");

    let damaged = key::leaf(scene.tree, LeafIndex::new(0), Epoch::new(1));
    assert!(scene.store.flip_bit(Table::Leaves, &damaged, 400));
    let kinds = scene.kinds().1;
    assert!(kinds.contains(&DifferenceKind::DamagedLeaf) && kinds.contains(&DifferenceKind::Leaked), "{kinds:?}");
}

/// A pool whose leaf is stored as a whole, then as parts in the epochs 2 and 3 over it.
fn scene_with_parts() -> Scene {
    let scene = Scene::new();
    for epoch in [2, 3] {
        let new = NewSnapshot {
            id: Uuid::from_u64_pair(4, epoch),
            volume: Uuid::from_u128(3),
            created_at_ms: 0,
            time_ms: 0,
            expires_at: 0,
            annotations: Annotations::default(),
        };
        let end = scene.pool.end_of_writes();
        scene.pool.change_catalog(|catalog, at| catalog.add_snapshots(at, vec![new], end)).expect("memory takes it");
        scene.lay_in(Epoch::new(epoch), epoch);
        Checkpoint::begin(Arc::clone(&scene.pool)).run().expect("nothing is in the way");
    }
    assert_eq!(scene.pool.part_counts().stored(), 2);
    assert_eq!(scene.kinds(), (vec![], vec![]));
    scene
}

#[test]
fn parts_without_what_they_build_on_are_named_and_nothing_is_repaired() {
    for missing in [1, 2] {
        let scene = scene_with_parts();
        scene.pool.leak_block(&mut drop).expect("memory takes it");
        let used = scene.pool.status().used_bytes;
        scene.commit(&StoredLeaves::delete((scene.tree, Epoch::new(missing), LeafIndex::new(0))));

        let report = scene.pool.check().expect("it can be read");

        let damaged = report.differences.iter().filter(|found| found.kind == DifferenceKind::DamagedLeaf);
        let damaged: Vec<Epoch> = damaged.map(|found| found.places[0].epoch).collect();
        let expected: Vec<Epoch> = (missing + 1..=3).rev().map(Epoch::new).collect();
        assert_eq!(damaged, expected, "{report:#?}");
        let (found, repaired, _) = repair(&scene);
        assert!(!found.is_whole(), "{:#?}", found.report());
        assert_eq!((repaired, scene.pool.status().used_bytes), (0, used));
    }
}

#[test]
fn part_that_does_not_hold_all_up_to_its_base_is_named() {
    let scene = scene_with_parts();
    let stored = StoredLeaves { store: &*scene.store, keys: &scene.pool.keys };
    let index = LeafIndex::new(0);
    let whole = stored.exactly((scene.tree, Epoch::new(1), index)).expect("it can be read").expect("it is there");
    let newest = stored.exactly((scene.tree, Epoch::new(3), index)).expect("it can be read").expect("it is there");
    let mut change = LeafChange::default();
    change.entries.set(3, newest.leaf.get(3));
    let mut batch = Vec::new();
    // Beside the part of epoch 2, without what that has.
    stored.store((scene.tree, Epoch::new(3), index), Onto::Older(&whole), &newest.leaf, &change, &mut batch);
    scene.commit(&batch);

    let report = scene.pool.check().expect("it can be read");

    let damaged = report.differences.iter().find(|found| found.kind == DifferenceKind::DamagedLeaf);
    let damaged = &damaged.expect("it is noticed").places[0];
    assert_eq!(damaged.epoch, Epoch::new(3), "{report:#?}");
}

#[test]
fn leaf_and_index_of_a_tree_that_is_not_there_are_strays() {
    let scene = Scene::new();
    scene.commit_stray_leaf();

    assert_eq!(scene.kinds().1, [DifferenceKind::StrayLeaf, DifferenceKind::Index]);
}

#[test]
fn a_stray_leaf_is_none_of_the_places_of_a_block_that_is_not_marked() {
    let scene = Scene::new();
    scene.mark(scene.address(4), false);
    scene.commit_stray_leaf();

    let report = check(&parts(&scene.device, &scene.store)).expect("it can be read");

    let not_marked = report.differences.iter().find(|found| found.kind == DifferenceKind::NotMarked);
    let places = &not_marked.expect("it is found").places;
    assert_eq!(places.iter().map(|place| (place.tree, place.block.get())).collect::<Vec<_>>(), [(scene.tree, 4)]);
}

#[test]
fn catalog_that_was_changed_behind_the_back_of_an_open_pool_is_told() {
    let scene = Scene::new();
    scene.commit(&[MetaOp::Delete(Table::Catalog, key::volume(Uuid::from_u128(3)))]);

    assert_eq!(
        scene.kinds(),
        (vec![DifferenceKind::Memory, DifferenceKind::StrayTree], vec![DifferenceKind::StrayTree])
    );
}

#[test]
fn more_differences_than_are_listed_are_counted() {
    let scene = Scene::new();
    // Every second block, so that none joins another.
    let blocks: Vec<u64> = (300..4000).step_by(2).filter(|block| !is_used(&scene, *block)).collect();
    for block in &blocks {
        bitmap::replace(&mut scene.pool.stored.lock().used[0][0], *block, true);
    }
    scene.mark(Address::new(DeviceIndex::new(0), blocks[0]), true);

    let report = check(&parts(&scene.device, &scene.store)).expect("it can be read");

    assert_eq!((report.difference_count, report.differences.len()), (to_u64(blocks.len()), 1000));
}

fn is_used(scene: &Scene, block: u64) -> bool {
    (block.saturating_sub(1)..=block + 1).any(|block| {
        scene.pool.stored.lock().used[0][0][usize::try_from(block / 64).expect("small")] >> (block % 64) & 1 == 1
    })
}

#[test]
fn space_is_compared_with_what_holds_it() {
    let scene = Scene::new();
    let home = scene.pool.take_log(crate::units::LaneIndex::new(0)).reserved_runs();
    assert!(scene.pool.check_space(&home).is_clean(), "{:#?}", scene.pool.check_space(&home));

    assert!(!scene.pool.check_space(&[]).is_clean(), "nobody holds the lane's first record");
    let twice = [home.clone(), home.clone()].concat();
    assert!(!scene.pool.check_space(&twice).is_clean(), "two hold it");
    let lost = scene.pool.space.lock().reserve(1, 0);
    let report = scene.pool.check_space(&home);
    assert_eq!(report.differences.first().and_then(|found| found.blocks), Some(lost[0]));
}

/// Repairs what a check of the open pool finds; how many blocks were repaired, and how many of them are free at once.
fn repair(scene: &Scene) -> (LeakRepair, u64, u64) {
    let mut repair = scene.pool.find_leaks().expect("it can be read");
    while scene.pool.repair_leaks(&mut repair).expect("memory takes it") {}
    let (repaired, freed) = (repair.repaired_count(), repair.freed_count());
    (repair, repaired, freed)
}

/// The pool of a scene, opened anew.
fn reopened(scene: Scene) -> Scene {
    let Scene { device, store, pool, tree } = scene;
    drop(pool);
    let pool = crate::pool::open(parts(&device, &store), &mut |bytes| bytes.fill(8)).expect("nothing is wrong with it");
    Scene { device, store, pool, tree }
}

#[test]
fn leaked_blocks_are_repaired_and_free_when_the_pool_is_opened_next() {
    let scene = Scene::new();
    let mut leaked = Vec::new();
    for _ in 0..3 {
        scene.pool.leak_block(&mut |address| leaked.push(address)).expect("memory takes it");
    }
    assert_eq!(scene.pool.status().used_bytes, 13 * 4096);

    let (found, repaired, freed) = repair(&scene);

    assert!(found.is_whole() && found.report().leaked_block_count == 3, "{:#?}", found.report());
    // The scene has one stretch of data, from which its own blocks were taken.
    assert_eq!((repaired, freed, scene.pool.status().used_bytes), (3, 0, 10 * 4096));
    assert!(leaked.iter().all(|address| scene.pool.space.lock().is_allocated(*address)));
    assert_eq!(scene.kinds(), (vec![], vec![]));
    let scene = reopened(scene);
    // The new session's first record may be at one of them; nothing else is held that nobody holds.
    let home = scene.pool.take_log(crate::units::LaneIndex::new(0)).reserved_runs();
    assert!(scene.pool.check_space(&home).is_clean(), "{:#?}", scene.pool.check_space(&home));
    assert_eq!(scene.kinds(), (vec![], vec![]));
}

#[test]
fn leaked_blocks_of_a_stretch_that_nothing_was_taken_from_are_free_at_once() {
    let scene = Scene::of_bytes(64 << 20);
    // The last stretch: windows come from others first.
    let last = Address::new(DeviceIndex::new(0), 3 * 4096 + 100);
    scene.mark(last, true);
    scene.pool.stored.lock().used_count += 1;
    let scene = reopened(scene);
    assert!(scene.pool.space.lock().is_allocated(last));

    let (_, repaired, freed) = repair(&scene);

    assert_eq!((repaired, freed), (1, 1));
    assert!(!scene.pool.space.lock().is_allocated(last));
    assert_eq!(scene.kinds(), (vec![], vec![]));
}

#[test]
fn a_leak_that_fills_whole_words_of_the_bitmap_is_repaired() {
    let scene = Scene::new();
    let first = Address::new(DeviceIndex::new(0), 47 * 64);
    (0..130).for_each(|step| scene.mark(first.plus(step), true));
    scene.pool.stored.lock().used_count += 130;
    let scene = reopened(scene);

    let (found, repaired, _) = repair(&scene);

    assert!(found.is_whole(), "{:#?}", found.report());
    assert_eq!(repaired, 130);
    assert_eq!(scene.kinds(), (vec![], vec![]));
}

#[test]
fn nothing_is_repaired_where_anything_else_is_wrong() {
    let scene = Scene::new();
    scene.pool.leak_block(&mut drop).expect("memory takes it");
    // What it maps looks leaked too, and is somebody's data.
    let damaged = key::leaf(scene.tree, LeafIndex::new(0), Epoch::new(1));
    assert!(scene.store.flip_bit(Table::Leaves, &damaged, 400));
    let used = scene.pool.status().used_bytes;

    let (found, repaired, _) = repair(&scene);

    assert!(!found.is_whole() && found.report().leaked_block_count == 11, "{:#?}", found.report());
    assert_eq!((repaired, scene.pool.status().used_bytes), (0, used));
}

#[test]
fn a_leaf_that_is_lost_with_its_index_is_no_leak() {
    let scene = Scene::new();
    let place = (scene.tree, Epoch::new(1), LeafIndex::new(0));
    scene.commit(&StoredLeaves::delete(place));

    let (found, repaired, _) = repair(&scene);

    assert!(!found.is_whole() && found.report().leaked_block_count == 10, "{:#?}", found.report());
    assert_eq!(repaired, 0, "the counts tell that something was mapped there");
}

#[test]
fn a_repair_that_is_cut_off_leaves_leaks_or_none_and_is_done_again() {
    let scene = Scene::new();
    scene.pool.leak_block(&mut drop).expect("memory takes it");
    let mut repair = scene.pool.find_leaks().expect("it can be read");
    scene.store.fail_commit_after(Some(1));

    scene.pool.repair_leaks(&mut repair).expect_err("the store fails");

    assert!(scene.pool.check_writable().is_err(), "nobody knows what the store has");
    scene.store.fail_commit_after(None);
    let scene = reopened(scene);
    assert_eq!(scene.kinds().1, [DifferenceKind::Leaked]);
    assert_eq!(self::repair(&scene).1, 1);
    assert_eq!(scene.kinds(), (vec![], vec![]));
}
