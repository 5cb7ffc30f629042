//! What requests are sent to: a volume's head, or one of its snapshots.

use crate::format::catalog::TreeRecord;
use crate::format::entry::Entry;
use crate::map::Lineage;
use crate::pool::{Catalog, Pool};
use crate::units::{DomainId, Epoch, KeyGeneration, Sequence, TreeId, ViewId};
use crate::volume::gate::Gate;
use crate::volume::pause::Pause;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use uuid::Uuid;

/// A volume, or a snapshot of one, that requests can be sent to.
pub struct Volume {
    pub(super) tree: TreeId,
    /// The newest epoch that reads see.
    pub(super) seen: Epoch,
    /// Its cached leaves.
    pub(super) view: ViewId,
    /// The tree, then its parents, as far as a leaf has to be looked for.
    pub(super) lineage: LineageCell,
    /// The tree, then all trees that it builds on.
    pub(super) origins: Vec<TreeId>,
    /// How many checkpoints must be done until stored leaves hold what its parents have; for a snapshot, what it has.
    pub(super) stored_after: u64,
    pub(super) domain: DomainId,
    pub(super) generation: KeyGeneration,
    pub(super) gate: Gate,
    /// From which sequence on blocks are the head's alone.
    pub(super) own_from: Arc<AtomicU64>,
    pub(super) id: Uuid,
    /// The snapshot's number, if it is one.
    pub(super) number: Option<u64>,
    pub(super) sector_size: u32,
    pub(super) size_bytes: AtomicU64,
    pub(super) users: AtomicU32,
    /// Whether its writes wait for space.
    pub(super) is_pausing: AtomicBool,
    /// Those that do.
    pub(super) pause: Mutex<Option<Pause>>,
}

impl Volume {
    /// The volume's id; a snapshot has that of its volume.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// The snapshot's number, if it is one.
    #[must_use]
    pub const fn snapshot_number(&self) -> Option<u64> {
        self.number
    }

    /// Whether writes are refused: it is a snapshot.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.number.is_some()
    }

    /// Whether it is the other one's volume, or a clone of it or of its clones: whether it builds on the same tree.
    #[must_use]
    pub fn builds_on(&self, other: &Self) -> bool {
        self.origins.contains(&other.tree)
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// 512 or 4096.
    #[must_use]
    pub const fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// Blocks with a lower sequence are mapped by snapshots too, or by what it is a clone of.
    pub(super) fn own_from(&self) -> Sequence {
        Sequence::new(self.own_from.load(Ordering::Acquire))
    }

    /// Whether the head alone maps all of these blocks: what overwrites them needs no space in the end.
    pub(super) fn owns_all(&self, entries: &[Option<Entry>]) -> bool {
        let own_from = self.own_from();
        entries.iter().all(|entry| entry.is_some_and(|entry| entry.sequence() >= own_from))
    }

    /// Whether its writes wait for space.
    pub(super) fn is_pausing(&self) -> bool {
        self.is_pausing.load(Ordering::Acquire)
    }

    /// One more of its writes waits for space.
    pub(super) fn pause_one(&self, now: u64) {
        let mut pause = self.pause.lock();
        if let Some(pause) = &mut *pause {
            pause.writes += 1;
        } else {
            *pause = Some(Pause { writes: 1, since: now });
            tracing::warn!(
                volume = %self.id,
                "writes of a volume wait for space: grow the pool, add a device, or free some; `rok-blk status` shows them"
            );
        }
    }

    /// A write that waited for space has ended.
    pub(super) fn resume_one(&self) {
        let mut pause = self.pause.lock();
        let writes = pause.as_ref().map_or(0, |pause| pause.writes);
        assert!(writes > 0, "what ends to wait has begun");
        *pause = pause.filter(|_| writes > 1).map(|pause| Pause { writes: writes - 1, ..pause });
        if pause.is_none() {
            tracing::info!(volume = %self.id, "no write of the volume waits for space any more");
        }
    }

    /// Whether its leaves may be cached: checkpoints have stored all that does not change in it.
    pub(super) fn is_settled(&self, pool: &Pool) -> bool {
        self.stored_after == 0 || pool.checkpoints_done() >= self.stored_after
    }
}

/// A lineage that becomes shorter when one of its trees gets the leaves of its parents.
pub(super) struct LineageCell {
    lineage: Mutex<Arc<Lineage>>,
    /// How many trees had become whole when it was looked at last.
    whole_count: AtomicU64,
}

impl LineageCell {
    /// Of a catalog that is looked at now.
    pub(super) fn new(lineage: Lineage, pool: &Pool) -> Self {
        Self { lineage: Mutex::new(Arc::new(lineage)), whole_count: AtomicU64::new(pool.whole_count()) }
    }

    /// The trees in which a leaf has to be looked for.
    pub(super) fn get(&self, pool: &Pool) -> Arc<Lineage> {
        let whole_count = pool.whole_count();
        if self.whole_count.load(Ordering::Acquire) != whole_count {
            let mut lineage = self.lineage.lock();
            let trees = &lineage.0;
            let is_whole = |catalog: &Catalog, tree: TreeId| catalog.tree(tree).is_some_and(TreeRecord::is_whole);
            let whole = pool.with_catalog(|catalog, _| trees.iter().position(|(tree, _)| is_whole(catalog, *tree)));
            if let Some(place) = whole.filter(|place| place + 1 < trees.len()) {
                *lineage = Arc::new(Lineage(trees[..=place].to_vec()));
            }
            self.whole_count.store(whole_count, Ordering::Release);
        }
        Arc::clone(&self.lineage.lock())
    }
}

/// How many checkpoints must be done until all frozen epochs of a lineage are stored.
pub(super) fn stored_after(catalog: &Catalog, lineage: &Lineage) -> u64 {
    lineage.0.iter().map(|at| catalog.stored_after(*at)).max().unwrap_or_default()
}

/// A volume in use: it cannot be removed or shrunk until this is dropped.
pub struct OpenVolume(Arc<Volume>);

impl OpenVolume {
    /// Counts one more user.
    pub(super) fn new(volume: Arc<Volume>) -> Self {
        volume.users.fetch_add(1, Ordering::AcqRel);
        Self(volume)
    }

    /// The volume.
    #[must_use]
    pub const fn volume(&self) -> &Arc<Volume> {
        &self.0
    }
}

impl Drop for OpenVolume {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{MasterKey, Suite};
    use crate::disk::SimDevice;
    use crate::format::snapshot::Annotations;
    use crate::meta::MemoryStore;
    use crate::pool::{self, Checkpoint, Limits, NewClone, NewSnapshot, Parts};
    use crate::volume::{NewVolume, Volumes};

    /// A clone gets all leaves of what it comes from in it.
    fn open_pool() -> Arc<Pool> {
        let parts = Parts {
            id: Uuid::from_u128(1),
            suite: Suite::Plain,
            master: Arc::new(MasterKey::from_bytes([7; 32])),
            devices: vec![(Arc::new(SimDevice::new("sim", 16 << 20)), Uuid::from_u128(2))],
            store: Arc::new(MemoryStore::new()),
            reserve: None,
            shred_key: None,
            lane_count: 1,
            has_cleaner: false,
            limits: Limits { lineage_max: 1, ..Limits::default() },
        };
        pool::create(&parts, &mut |bytes| bytes.fill(5)).expect("a new pool");
        pool::open(parts, &mut |bytes| bytes.fill(6)).expect("a new pool opens")
    }

    /// It may stay open for years.
    #[test]
    fn a_clone_that_was_open_before_it_had_all_leaves_is_looked_up_in_its_tree_alone_afterwards() {
        let pool = open_pool();
        let volumes = Volumes::new(Arc::clone(&pool));
        let id = Uuid::from_u128(3);
        volumes.create(&NewVolume::new(id, "vol", 1 << 20)).expect("a new volume");
        let annotations = Annotations::default();
        let new = NewSnapshot {
            id: Uuid::from_u128(4),
            volume: id,
            created_at_ms: 0,
            time_ms: 0,
            expires_at: 0,
            annotations,
        };
        let made = volumes.snapshot(vec![new]).expect("there is space").remove(0);
        let (id, name) = (Uuid::from_u128(5), "clone".to_owned());
        let new = NewClone { id, name, created_at: 0, expires_at: 0, labels: Vec::new() };
        volumes.clone_snapshot((made.volume, made.number), vec![new]).expect("a new name");
        let clone = volumes.open("clone").expect("it is there");
        let trees = || clone.volume().lineage.get(&pool).0.iter().map(|(tree, _)| *tree).collect::<Vec<_>>();
        assert_eq!(trees().len(), 2, "its own, and its origin's");

        (0..3).for_each(|_| Checkpoint::begin(Arc::clone(&pool)).run().expect("there is space"));

        assert_eq!(pool.whole_count(), 1);
        assert_eq!(trees(), [clone.volume().tree]);
    }
}
