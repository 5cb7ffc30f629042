//! What a pool's map takes, measured with the real metadata store and without data: memory when all of it is cached,
//! space on disk once compacted, the time to open a pool with 1 TiB mapped, and to tell what a removal would free. The figures
//! are printed.

use super::*;
use crate::crypto::{MasterKey, SealKind, Suite};
use crate::disk::SimDevice;
use crate::format::bitmap::{self, STRETCH_WORDS};
use crate::format::catalog::{HeldBlocks, VolumeRecord};
use crate::format::entry::Entry;
use crate::format::key;
use crate::format::leaf::{Leaf, LeafChange};
use crate::format::snapshot::Annotations;
use crate::map::{Change, ChangeKey, Onto, StoredLeaves};
use crate::meta::{Durability, MetaOp, MetaStore, RocksOptions, RocksStore, Table};
use crate::units::{
    Address, BlockIndex, DeviceIndex, Epoch, KeyGeneration, LEAF_ENTRIES_U64, LeafIndex, STRETCH_BLOCKS, Sequence,
    ViewId, to_u64,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// What is mapped; the figures grow with it in proportion.
const MAPPED_BLOCKS: u64 = GIB / 4096;
/// A record goes in front of so many blocks: a lane closes a batch with them while the device has little to do.
const BATCH_BLOCKS: usize = 64;

struct Scene {
    directory: tempfile::TempDir,
    device: SimDevice,
    store: Arc<RocksStore>,
}

impl Scene {
    fn new(device_bytes: u64) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Arc::new(open_store(&directory));
        let scene = Self { directory, device: SimDevice::new("sim", device_bytes), store };
        create(&scene.parts(), &mut |bytes| bytes.fill(5)).expect("a new pool");
        scene
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
            limits: Limits { map_cache_bytes: GIB, ..Limits::default() },
        }
    }

    fn open(&self) -> Arc<Pool> {
        open(self.parts(), &mut |bytes| bytes.fill(6)).expect("nothing is wrong with the pool")
    }
}

fn open_store(directory: &tempfile::TempDir) -> RocksStore {
    RocksStore::open(directory.path(), RocksOptions::default()).expect("nothing is in the way")
}

/// The next block of a window, as a lane takes them.
fn next_address(pool: &Pool, window: &mut std::vec::IntoIter<Address>) -> Address {
    window.next().unwrap_or_else(|| {
        let runs = pool.space.lock().reserve(STRETCH_BLOCKS, 0);
        let blocks = runs.iter().flat_map(|run| (0..run.count).map(|step| run.start.plus(step)));
        *window = blocks.collect::<Vec<_>>().into_iter();
        window.next().expect("there is space")
    })
}

/// Bytes of memory and of metadata on disk for each mapped block, when block `i` of a volume is at `place(i)` in the order
/// in which it was written.
fn map_bytes_per_block(blocks_in_order: &[u64]) -> (f64, f64) {
    let scene = Scene::new(2 * GIB);
    let pool = scene.open();
    let record = VolumeRecord { sector_size: 4096, ..VolumeRecord::new(Uuid::from_u128(3), "vol", GIB) };
    let tree = pool.change_catalog(|catalog, at| catalog.create(at, record)).expect("a new volume").tree;
    let mut free = Vec::new().into_iter();
    for some in blocks_in_order.chunks(100_000) {
        for (index, block) in some.iter().enumerate() {
            if index.is_multiple_of(BATCH_BLOCKS) {
                next_address(&pool, &mut free);
            }
            let address = next_address(&pool, &mut free);
            let sequence = pool.take_sequences(1);
            // A mac is as random as anything.
            let mac = sequence.get().wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let key = ChangeKey { tree, block: BlockIndex::new(*block), epoch: Epoch::new(1) };
            let entry = Entry::new(address, KeyGeneration::new(0), sequence, mac);
            pool.changes().lay().lay(key, Change { sequence, entry: Some(entry) });
        }
        Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    }
    let stored = StoredLeaves { store: &*scene.store, keys: &pool.keys };
    for index in (0..MAPPED_BLOCKS / LEAF_ENTRIES_U64).map(LeafIndex::new) {
        let version = pool.leaves().version(ViewId::of_head(tree), index);
        let leaf = stored.newest(tree, Epoch::new(1), index).expect("it is whole").expect("it is there").leaf;
        assert_eq!(to_u64(leaf.len()), LEAF_ENTRIES_U64);
        assert!(pool.leaves().insert(ViewId::of_head(tree), index, &leaf, version));
    }
    let (memory, leaves) = pool.leaves().size();
    assert_eq!(leaves, MAPPED_BLOCKS / LEAF_ENTRIES_U64, "all of it is cached");
    drop(pool);
    scene.store.compact().expect("there is space");
    let on_disk = scene.store.size_bytes();
    drop(scene.directory);
    (per_block(memory), per_block(on_disk))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_block(bytes: u64) -> f64 {
    bytes as f64 / MAPPED_BLOCKS as f64
}

/// GiB for each TiB, from bytes for each block.
fn gib_per_tib(bytes_per_block: f64) -> f64 {
    // A TiB has 2^28 blocks.
    bytes_per_block / 4.0
}

#[expect(clippy::print_stdout, reason = "the figures belong to what a run shows")]
fn assert_figures(what: &str, blocks_in_order: &[u64], memory_gib_max: f64) {
    const DISK_BYTES_MAX: f64 = 64.0;
    let (memory, on_disk) = map_bytes_per_block(blocks_in_order);
    let memory = gib_per_tib(memory);
    println!(
        "{what}: the map of 1 TiB, in proportion to 1 GiB: {memory:.2} GiB of memory when all is cached, {on_disk:.1} bytes of metadata on disk for each block"
    );
    assert!(memory <= memory_gib_max, "{memory} GiB");
    assert!(on_disk <= DISK_BYTES_MAX, "{on_disk} bytes");
}

#[test]
fn map_of_randomly_written_blocks_takes_what_it_may() {
    let mut blocks: Vec<u64> = (0..MAPPED_BLOCKS).collect();
    blocks.shuffle(&mut SmallRng::seed_from_u64(1));
    assert_figures("written in random order", &blocks, 7.0);
}

#[test]
fn map_of_sequentially_written_blocks_takes_what_it_may() {
    assert_figures("written in order", &(0..MAPPED_BLOCKS).collect::<Vec<_>>(), 2.3);
}

#[test]
fn pool_with_a_tebibyte_mapped_opens() {
    let scene = Scene::new(TIB + GIB);
    let pool = scene.open();
    let stretches: Vec<u64> = (1..=TIB / 4096 / STRETCH_BLOCKS).collect();
    for some in stretches.chunks(4096) {
        let full = bitmap::encode(&[u64::MAX; STRETCH_WORDS]);
        let put = |stretch: &u64| {
            let stretch_key = key::stretch(DeviceIndex::new(0), *stretch);
            let value = pool.keys.seal(SealKind::Bitmap, &stretch_key, &full);
            MetaOp::Put(Table::Used, stretch_key, value)
        };
        scene.store.commit(&some.iter().map(put).collect::<Vec<_>>(), Durability::Synced).expect("there is space");
    }
    drop(pool);
    let Scene { directory, device, store } = scene;
    Arc::try_unwrap(store).expect("the pool is closed").close().expect("nothing is in the way");
    let begun = Instant::now();
    let scene = Scene { store: Arc::new(open_store(&directory)), directory, device };
    let store_time = begun.elapsed();
    let pool = scene.open();
    println!("a pool with 1 TiB mapped: store opened in {store_time:?}, all open after {:?}", begun.elapsed());
    assert_eq!(pool.status().used_bytes, TIB);
    let last = Address::new(DeviceIndex::new(0), TIB / 4096 + STRETCH_BLOCKS - 1);
    assert!(pool.space.lock().is_allocated(last));
}

/// Stores `leaf_count` leaves of `entry_count` blocks each for an epoch of a tree, as a checkpoint would, with their count.
fn map_blocks(scene: &Scene, pool: &Pool, (tree, epoch): PointId, leaf_count: u64, entry_count: u8) {
    let stored = StoredLeaves { store: &*scene.store, keys: &pool.keys };
    let mut next_block = STRETCH_BLOCKS;
    for first in (0..leaf_count).step_by(1024) {
        let mut batch = Vec::new();
        for index in first..leaf_count.min(first + 1024) {
            let mut leaf = Leaf::default();
            let sequence = pool.take_sequences(256);
            for slot in 0..=entry_count {
                let address = Address::new(DeviceIndex::new(0), next_block);
                let sequence = Sequence::new(sequence.get() + u64::from(slot));
                let mac = sequence.get().wrapping_mul(0x9e37_79b9_7f4a_7c15);
                leaf.set(slot, Some(Entry::new(address, KeyGeneration::new(0), sequence, mac)));
                next_block += 1;
            }
            let change = LeafChange::default();
            stored.store((tree, epoch, LeafIndex::new(index)), Onto::Nothing, &leaf, &change, &mut batch);
        }
        scene.store.commit(&batch, Durability::Buffered).expect("there is space");
    }
    let own_count = leaf_count * (u64::from(entry_count) + 1);
    pool.with_catalog(|catalog, at| {
        let mut edit = catalog::Edit::default();
        let held = HeldBlocks { own_count, mapped_delta: own_count.cast_signed() };
        catalog.put_held((tree, epoch), held, &mut edit);
        scene.store.commit(&edit.ops(at), Durability::Synced).expect("there is space");
        catalog.apply(edit);
    });
}

/// Prints how long it takes to tell what removing things frees, of which a snapshot and then the head map all leaves anew.
#[expect(clippy::print_stdout, reason = "the figures belong to what a run shows")]
fn print_forecast_time(what: &str, leaf_count: u64, entry_count: u8) {
    let scene = Scene::new(256 << 20);
    let pool = scene.open();
    let id = Uuid::from_u128(3);
    let record = VolumeRecord { sector_size: 4096, ..VolumeRecord::new(id, "vol", 1 << 50) };
    let tree = pool.change_catalog(|catalog, at| catalog.create(at, record)).expect("a new volume").tree;
    map_blocks(&scene, &pool, (tree, Epoch::new(1)), leaf_count, entry_count);
    let new = NewSnapshot {
        id: Uuid::from_u128(4),
        volume: id,
        created_at_ms: 0,
        time_ms: 0,
        expires_at: 0,
        annotations: Annotations::default(),
    };
    let end = pool.end_of_writes();
    pool.change_catalog(|catalog, at| catalog.add_snapshots(at, vec![new], end)).expect("it is stored");
    map_blocks(&scene, &pool, (tree, Epoch::new(2)), leaf_count, entry_count);
    let blocks = leaf_count * (u64::from(entry_count) + 1);
    let removals = [
        ("the snapshot, all of which the head replaced", Removals::of_snapshot((id, 1)), blocks),
        ("the volume with its snapshot", Removals::of_volume(id), 2 * blocks),
    ];
    for (of, removals, expected) in removals {
        let begun = Instant::now();
        let freed = pool.would_free(&removals, &mut Effort::whatever_it_takes(&|| false)).expect("the store is whole");
        println!("{what}: {blocks} blocks in {leaf_count} leaves; what removing {of} frees: {:?}", begun.elapsed());
        assert_eq!(freed, Some(expected));
    }
}

#[test]
fn forecast_of_ten_million_blocks_is_told_with_its_time() {
    print_forecast_time("ten million blocks, dense", 39_063, u8::MAX);
}

#[test]
fn forecast_of_scattered_blocks_is_told_with_its_time() {
    print_forecast_time("scattered blocks, one in a leaf", 100_000, 0);
}

/// A volume of full leaves that were written in order, then versions that change one block of each leaf.
#[test]
fn versions_that_change_a_block_of_each_leaf_take_few_metadata() {
    const LEAVES: u64 = 256;
    const VERSIONS: u64 = 300;
    const BYTES_MAX: f64 = 128.0;
    use rand::Rng as _;
    let scene = Scene::new(2 * GIB);
    let pool = scene.open();
    let mut versions = Versions::new(&pool);
    versions.write(&(0..LEAVES * LEAF_ENTRIES_U64).collect::<Vec<_>>());
    scene.store.compact().expect("the store works");
    let before = scene.store.size_bytes();
    let mut random = SmallRng::seed_from_u64(1);
    for _ in 0..VERSIONS {
        versions.snapshot();
        let mut leaves: Vec<u64> = (0..LEAVES).collect();
        leaves.shuffle(&mut random);
        let blocks = leaves.iter().map(|leaf| leaf * LEAF_ENTRIES_U64 + random.random_range(0..LEAF_ENTRIES_U64));
        versions.write(&blocks.collect::<Vec<_>>());
    }
    scene.store.compact().expect("the store works");
    let bytes = per_block_of(scene.store.size_bytes() - before, VERSIONS * LEAVES);
    let whole = versions.resolve(1, LEAVES);
    let newest = (VERSIONS - 50..=VERSIONS).map(|epoch| versions.resolve(epoch, LEAVES)).sum::<f64>() / 51.0;
    println!(
        "{VERSIONS} versions, each with one new block in each of {LEAVES} leaves: {bytes:.1} bytes of metadata for each; a leaf is read in {newest:.1} us, a whole one in {whole:.1}"
    );
    let report = pool.check().expect("it can be read");
    assert!(report.is_clean(), "{report:#?}");
    assert!(bytes <= BYTES_MAX, "{bytes} bytes");
}

/// A volume whose versions are laid by a test.
struct Versions<'a> {
    pool: &'a Arc<Pool>,
    tree: crate::units::TreeId,
    epoch: u64,
    free: std::vec::IntoIter<Address>,
}

impl<'a> Versions<'a> {
    const VOLUME: Uuid = Uuid::from_u128(3);

    fn new(pool: &'a Arc<Pool>) -> Self {
        let record = VolumeRecord { sector_size: 4096, ..VolumeRecord::new(Self::VOLUME, "vol", GIB) };
        let tree = pool.change_catalog(|catalog, at| catalog.create(at, record)).expect("a new volume").tree;
        // Numbers as long as in a pool that has had 64 TiB written.
        pool.take_sequences(1 << 34);
        Self { pool, tree, epoch: 1, free: Vec::new().into_iter() }
    }

    fn write(&mut self, blocks: &[u64]) {
        for (index, block) in blocks.iter().enumerate() {
            if index.is_multiple_of(BATCH_BLOCKS) {
                next_address(self.pool, &mut self.free);
            }
            let address = next_address(self.pool, &mut self.free);
            let sequence = self.pool.take_sequences(1);
            let mac = sequence.get().wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let key = ChangeKey { tree: self.tree, block: BlockIndex::new(*block), epoch: Epoch::new(self.epoch) };
            let entry = Entry::new(address, KeyGeneration::new(1), sequence, mac);
            self.pool.changes().lay().lay(key, Change { sequence, entry: Some(entry) });
        }
        Checkpoint::begin(Arc::clone(self.pool)).run().expect("nothing is in the way");
    }

    fn snapshot(&mut self) {
        let new = NewSnapshot {
            id: Uuid::from_u64_pair(4, self.epoch),
            volume: Self::VOLUME,
            created_at_ms: 0,
            time_ms: 0,
            expires_at: 0,
            annotations: Annotations::default(),
        };
        let end = self.pool.end_of_writes();
        let made = self.pool.change_catalog(|catalog, at| catalog.add_snapshots(at, vec![new], end));
        made.expect("there is space");
        self.epoch += 1;
    }

    /// Microseconds that a leaf of an epoch takes to be read from the store, on average.
    fn resolve(&self, epoch: u64, leaves: u64) -> f64 {
        let stored = StoredLeaves { store: &*self.pool.store, keys: &self.pool.keys };
        let begun = Instant::now();
        for index in (0..leaves).map(LeafIndex::new) {
            let leaf =
                stored.newest(self.tree, Epoch::new(epoch), index).expect("it is whole").expect("it is there").leaf;
            assert_eq!(to_u64(leaf.len()), LEAF_ENTRIES_U64);
        }
        begun.elapsed().as_secs_f64() * 1e6 / per_block_of(leaves, 1)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_block_of(bytes: u64, blocks: u64) -> f64 {
    bytes as f64 / blocks as f64
}
