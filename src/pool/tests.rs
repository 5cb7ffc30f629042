//! Tests of an open pool on a simulated device, without lanes: changes are laid by the tests themselves.

mod cleaner;
mod flushing;
mod opening;
mod reclaim_steps;
mod reclaiming;
mod removing;
mod scrubbing;
mod sharing;
mod status;
mod unreadable;
mod windows;

use super::*;
use crate::crypto::{MasterKey, Suite};
use crate::disk::SimDevice;
use crate::error::ErrorKind;
use crate::format::catalog::VolumeRecord;
use crate::format::entry::Entry;
use crate::format::key;
use crate::format::snapshot::Annotations;
use crate::map::{Change, ChangeKey};
use crate::meta::{Durability, KeyValue, MemoryStore, MetaError, MetaOp, MetaRead, MetaStore, Table};
use crate::units::{Address, BlockIndex, Epoch, KeyGeneration, LaneIndex, LeafIndex, TreeId, to_u64};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// What outlives an open pool.
pub(in crate::pool) struct Place {
    device: SimDevice,
    store: Arc<MemoryStore>,
}

impl Place {
    pub(in crate::pool) fn new() -> Self {
        Self::with_device(16 << 20)
    }

    /// With a device of so many bytes.
    fn with_device(size_bytes: u64) -> Self {
        let place = Self { device: SimDevice::new("sim", size_bytes), store: Arc::new(MemoryStore::new()) };
        create(&place.parts(), &mut |bytes| bytes.fill(5)).expect("a new pool on a healthy device");
        place
    }

    fn parts(&self) -> Parts {
        Parts {
            id: Uuid::from_u128(1),
            suite: Suite::XtsGmac,
            master: Arc::new(MasterKey::from_bytes([7; 32])),
            devices: vec![(Arc::new(self.device.clone()), Uuid::from_u128(2))],
            store: Arc::clone(&self.store) as Arc<dyn MetaStore>,
            reserve: None,
            shred_key: None,
            lane_count: 1,
            has_cleaner: false,
            limits: Limits::default(),
        }
    }

    pub(in crate::pool) fn open(&self) -> Arc<Pool> {
        self.open_with(Limits::default())
    }

    fn open_with(&self, limits: Limits) -> Arc<Pool> {
        open(Parts { limits, ..self.parts() }, &mut |bytes| bytes.fill(6)).expect("nothing is wrong with the pool")
    }

    /// Opens it with somebody who notes what it asks for.
    fn open_asked(&self, limits: Limits) -> (Arc<Pool>, Arc<Asked>) {
        let (pool, asked) = (self.open_with(limits), Arc::new(Asked::default()));
        pool.set_signals(Arc::clone(&asked) as Arc<dyn Signals>);
        (pool, asked)
    }
}

/// Notes whether the pool asks for a checkpoint, and for free space to be made fit for use.
#[derive(Default)]
struct Asked {
    checkpoint: AtomicBool,
    stock: AtomicBool,
}

impl Asked {
    /// Whether it asked for a checkpoint since this was asked last.
    fn take(&self) -> bool {
        self.checkpoint.swap(false, Ordering::Relaxed)
    }

    /// Whether it asked for free space to be made fit for use since this was asked last.
    fn take_stock(&self) -> bool {
        self.stock.swap(false, Ordering::Relaxed)
    }
}

impl Signals for Asked {
    fn want_checkpoint(&self) {
        self.checkpoint.store(true, Ordering::Relaxed);
    }
    fn wake_lanes(&self) {}
    fn wake_lane(&self, _: LaneIndex) {}
    fn wake_other_lanes(&self, _: LaneIndex) {}
    fn space_freed(&self) {}
    fn want_stock(&self) {
        self.stock.store(true, Ordering::Relaxed);
    }
    fn now_seconds(&self) -> u64 {
        0
    }
}

fn create_volume(pool: &Pool, name: &str) -> TreeId {
    let record = VolumeRecord { sector_size: 4096, ..VolumeRecord::new(Uuid::new_v4(), name, 64 << 20) };
    pool.change_catalog(|catalog, at| catalog.create(at, record)).expect("a new volume").tree
}

fn remove_volume(pool: &Pool, name: &str) -> crate::error::Result<VolumeRecord> {
    let end = pool.end_of_writes();
    pool.change_catalog(|catalog, at| catalog.remove(at, catalog.find(name)?.id, end))
}

/// A store that says when a commit has come, and does not return from it until it may go on.
struct Held {
    store: Arc<MemoryStore>,
    has_come: std::sync::mpsc::SyncSender<()>,
    may_go_on: parking_lot::Mutex<()>,
}

impl MetaRead for Held {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.store.get(table, key)
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        self.store.seek(table, prefix, from)
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        self.store.walk(table, prefix, from, visit)
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        self.store.scan(table, from, end, limit)
    }
}

impl MetaStore for Held {
    fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        // Nobody listens before and behind the one that is held up.
        let committed = self.store.commit(batch, durability);
        let _is_heard = self.has_come.try_send(()).is_ok();
        let _goes_on = self.may_go_on.lock();
        committed
    }

    fn view(&self, look: &mut dyn FnMut(&dyn MetaRead)) {
        self.store.view(look);
    }

    fn size_bytes(&self) -> u64 {
        self.store.size_bytes()
    }
}

/// A snapshot waited for the catalog, with the writes of its volume held back, while a checkpoint committed leaves.
#[test]
fn nobody_waits_for_a_commit_to_look_at_the_catalog_and_changes_come_one_after_the_other() {
    let place = Place::new();
    let (has_come, comes) = std::sync::mpsc::sync_channel(1);
    let held = Arc::new(Held { store: Arc::clone(&place.store), has_come, may_go_on: parking_lot::Mutex::new(()) });
    let parts = Parts { store: Arc::clone(&held) as Arc<dyn MetaStore>, ..place.parts() };
    let pool = open(parts, &mut |bytes| bytes.fill(6)).expect("nothing is wrong with the pool");
    let tree = create_volume(&pool, "vol");
    lay(&pool, tree, 0);
    while comes.try_recv().is_ok() {}

    std::thread::scope(|scope| {
        let goes_on = held.may_go_on.lock();
        let checkpoint = scope.spawn(|| Checkpoint::begin(Arc::clone(&pool)).run());
        comes.recv().expect("a checkpoint commits");
        let other = scope.spawn(|| create_volume(&pool, "other"));
        let check = scope.spawn(|| pool.check());

        assert!(pool.with_catalog(|catalog, _| catalog.find("vol").is_ok() && catalog.find("other").is_err()));
        assert!(pool.is_turn_taken());
        assert!(pool.commits.is_locked(), "who needs both the catalog and the store does wait");
        drop(goes_on);
        checkpoint.join().expect("it ends").expect("nothing is in the way");
        other.join().expect("it ends");
        let report = check.join().expect("it ends").expect("memory");
        assert!(report.differences.is_empty(), "{report:?}");
    });
    assert!(pool.with_catalog(|catalog, _| catalog.find("other").is_ok()));
    assert!(pool.check().expect("memory").differences.is_empty());
}

/// Lays a write of a block over the map; returns where it is.
fn lay(pool: &Pool, tree: TreeId, block: u64) -> Address {
    let address = pool.space.lock().reserve(1, 0)[0].start;
    lay_change(pool, tree, block, Some(address));
    address
}

/// Lays over the map that a block is somewhere, or nowhere.
fn lay_change(pool: &Pool, tree: TreeId, block: u64, address: Option<Address>) {
    let epoch = pool.with_catalog(|catalog, _| catalog.tree(tree).expect("it was made").epoch);
    let sequence = pool.take_sequences(1);
    let entry = address.map(|address| Entry::new(address, KeyGeneration::new(0), sequence, 1));
    let key = ChangeKey { tree, block: BlockIndex::new(block), epoch };
    pool.changes().lay().lay(key, Change { sequence, entry });
}

/// Steps until `meta/`, which is full, refuses one; then there is space again.
fn step_until_full(checkpoint: &mut Checkpoint, store: &MemoryStore) {
    let error = checkpoint.run().expect_err("there is no space");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    store.fill_after(None);
}

#[test]
fn leaves_that_found_no_space_are_applied_once() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "gone");
    let address = lay(&pool, tree, 0);
    remove_volume(&pool, "gone").expect("there is space yet");
    place.store.fill_after(Some(1));
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    step_until_full(&mut checkpoint, &place.store);

    // Its changes die with the tree. Taken twice they would be freed twice, which panics.
    checkpoint.run().expect("there is space");

    assert!(!pool.space.lock().is_allocated(address));
}

#[test]
fn owners_that_found_no_space_are_stored_later() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "kept");
    lay(&pool, tree, 0);
    // The first commit is the leaf's, the second the owners'.
    place.store.fill_after(Some(2));
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    step_until_full(&mut checkpoint, &place.store);

    checkpoint.run().expect("there is space");

    let owners = place.store.scan(Table::Owners, &[], &[], 9).expect("memory");
    assert_eq!(owners.len(), 1);
}

/// What a store that lost a batch in the middle would look like.
#[test]
fn meta_that_contradicts_itself_is_named_at_open() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "gone");
    let address = lay(&pool, tree, 0);
    Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    remove_volume(&pool, "gone").expect("nothing is in the way");
    drop(pool);
    let stretch = MetaOp::Delete(Table::Used, key::stretch(address.device(), 0));
    place.store.commit(&[stretch], Durability::Synced).expect("memory");

    let error = open(place.parts(), &mut |bytes| bytes.fill(6)).err().expect("a mapped block is not in the bitmap");

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains(&address.to_string()), "{error}");
}

#[test]
fn few_leaves_of_many_stripes_are_one_batch() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "kept");
    // Each in a leaf of its own, as random writes are.
    for leaf in 0..200 {
        lay(&pool, tree, leaf * 256);
    }
    place.store.commit(&[], Durability::Synced).expect("memory");
    // The leaves, the owners, the last batch: the fourth commit does not come.
    place.store.fill_after(Some(4));

    Checkpoint::begin(Arc::clone(&pool)).run().expect("three commits suffice");
}

#[test]
fn number_of_a_deleted_tree_does_not_come_back() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "gone");
    remove_volume(&pool, "gone").expect("nothing is in the way");
    // A crash between the batch that deletes the tree and the last one of the checkpoint.
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    while pool.with_catalog(|catalog, _| catalog.tree(tree).is_some()) {
        checkpoint.step().expect("nothing is in the way");
    }
    drop((checkpoint, pool));

    let next = create_volume(&place.open(), "new");

    assert!(next > tree, "tree {next} is there again");
}

#[test]
fn blocks_that_only_a_removed_snapshot_shared_are_the_heads_alone_again() {
    let pool = Place::new().open();
    let tree = create_volume(&pool, "vol");
    lay(&pool, tree, 0);
    let own_from = pool.with_catalog(|catalog, _| catalog.own_from_of_head(tree));
    let end = pool.end_of_writes();
    let snapshot = take_snapshot(&pool, "vol");
    assert_eq!(own_from.load(Ordering::Relaxed), end.0.get());

    pool.change_catalog(|catalog, at| catalog.remove_snapshots(at, &[snapshot])).expect("there is space");
    while pool.is_reclaiming() {
        Checkpoint::begin(Arc::clone(&pool)).run().expect("there is space");
    }

    assert_eq!(own_from.load(Ordering::Relaxed), 0);
}

/// Makes a snapshot of a volume.
fn take_snapshot(pool: &Pool, name: &str) -> SnapshotId {
    let end = pool.end_of_writes();
    let made = pool.change_catalog(|catalog, at| {
        let new = NewSnapshot {
            id: Uuid::new_v4(),
            volume: catalog.find(name)?.id,
            created_at_ms: 0,
            time_ms: 0,
            expires_at: 0,
            annotations: Annotations::default(),
        };
        catalog.add_snapshots(at, vec![new], end)
    });
    let snapshot = made.expect("there is space").remove(0);
    (snapshot.volume, snapshot.number)
}

/// Makes a volume that starts as a snapshot.
fn add_clone(pool: &Pool, source: SnapshotId, name: &str) -> crate::error::Result<TreeId> {
    let (id, name) = (Uuid::new_v4(), name.to_owned());
    let clone = NewClone { id, name, created_at: 0, expires_at: 0, labels: Vec::new() };
    Ok(pool.change_catalog(|catalog, at| catalog.add_clones(at, source, vec![clone]))?[0].tree)
}

/// Nobody knows whether the store has the change that failed: one that follows might need what is gone.
#[test]
fn a_failed_pool_changes_nothing_more() {
    let place = Place::new();
    let pool = place.open();
    create_volume(&pool, "vol");
    let source = take_snapshot(&pool, "vol");
    pool.fail("the disk is broken".to_owned());

    let error = add_clone(&pool, source, "clone").expect_err("the pool has failed");

    assert!(error.to_string().contains("has failed") && error.hint().is_some(), "{error}");
    assert_eq!(remove_volume(&pool, "none").expect_err("there is none").kind(), ErrorKind::NotFound);
    drop(pool);
    let found = place.open().with_catalog(|catalog, _| catalog.find("clone").is_ok());
    assert!(!found, "a change was stored");
}

/// A clone of a clone was looked up in as many trees as there were clones.
#[test]
fn a_leaf_is_looked_for_in_few_trees_however_often_a_clone_was_cloned() {
    const DEPTH: usize = 40;
    let place = Place::new();
    let pool = place.open();
    let root = create_volume(&pool, "clone-0");
    // In leaves of their own, but for the last one.
    for index in 0..DEPTH {
        lay(&pool, root, to_u64(index) * 256);
    }
    let mut trees = vec![root];
    for index in 1..=DEPTH {
        let source = take_snapshot(&pool, &format!("clone-{}", index - 1));
        let tree = add_clone(&pool, source, &format!("clone-{index}")).expect("there is space");
        lay(&pool, tree, to_u64(index) * 256);
        trees.push(tree);
    }
    let seen = |tree: TreeId| {
        let lineage = pool.with_catalog(|catalog, _| catalog.lineage((tree, Epoch::NEWEST)));
        let stored = crate::map::StoredLeaves { store: pool.store(), keys: pool.keys() };
        let leaf = |index| stored.resolve(&lineage, LeafIndex::new(to_u64(index))).expect("memory gives it");
        (lineage.0.len(), (0..=DEPTH).map(leaf).collect::<Vec<_>>())
    };
    Checkpoint::begin(Arc::clone(&pool)).run().expect("there is space");
    let before: Vec<_> = trees.iter().map(|tree| seen(*tree)).collect();
    assert_eq!(before[DEPTH].0, DEPTH + 1, "nothing is copied before it is stored");

    Checkpoint::begin(Arc::clone(&pool)).run().expect("there is space");

    for (tree, (depth, leaves)) in trees.iter().zip(before) {
        let (depth_now, leaves_now) = seen(*tree);
        assert_eq!(leaves_now, leaves, "tree {tree}");
        assert!(depth_now <= depth.min(pool.limits().lineage_max), "tree {tree} is looked up in {depth_now} trees");
    }
    assert_eq!(pool.whole_count(), 2, "of 41 trees the 17th and the 33rd");
    assert!(pool.check().expect("memory").is_clean());
}

/// The flush of a lane whose ring has failed never ends; the checkpoint must, or the server does not.
#[test]
fn nobody_waits_for_the_flush_of_a_failed_pool() {
    // Nothing here takes longer than some milliseconds.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
    const BRIEFLY: std::time::Duration = std::time::Duration::from_millis(50);
    let place = Place::new();
    let pool = place.open();
    assert!(pool.begin_flush(&mut FlushStart::default()), "no flush runs");
    let (ended, end) = std::sync::mpsc::channel();
    let waiting = Arc::clone(&pool);
    std::thread::spawn(move || {
        waiting.await_flush_end();
        ended.send(()).expect("the test waits");
    });

    assert!(end.recv_timeout(BRIEFLY).is_err(), "a flush is under way");
    pool.fail("A ring failed".to_owned());

    assert_eq!(end.recv_timeout(PATIENCE), Ok(()));
}
