//! The catalog in memory: volumes, their snapshots, trees and their frozen epochs, and their changes in the metadata store.
//!
//! Each change is planned here and committed by the pool before it is visible; see `turn`.
//! Invariants: a tree's parent is a frozen epoch that is there; so is what a snapshot names; a frozen epoch is named by one
//! snapshot at most.

mod change;
mod edit;
mod sharing;
mod snapshots;
mod store;
mod structure;
mod volumes;

pub use change::Change;
pub(super) use change::KeyChange;
pub use edit::Edit;
pub use sharing::Sharer;
pub use snapshots::{NewClone, NewSnapshot};
pub use store::CatalogStore;
pub(crate) use store::meta_error;
pub use structure::Follower;

use crate::crypto::{KeyRing, SealKind};
use crate::error::{Error, ErrorKind, Result};
use crate::format::FormatError;
use crate::format::catalog::{TreeRecord, TreeState, VolumeRecord};
use crate::format::key;
use crate::format::snapshot::{PointRecord, SnapshotRecord};
use crate::map::Lineage;
use crate::meta::MetaRead;
use crate::units::{DomainId, Epoch, Sequence, TreeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use store::{damaged, open, scan};
use uuid::Uuid;

/// A frozen epoch: tree and epoch.
pub type PointId = (TreeId, Epoch);
/// A snapshot: its volume's id and its number.
pub type SnapshotId = (Uuid, u64);

/// Volumes, snapshots and trees of an open pool.
#[derive(Clone, Default)]
pub struct Catalog {
    volumes: BTreeMap<Uuid, VolumeRecord>,
    trees: BTreeMap<TreeId, TreeRecord>,
    points: BTreeMap<PointId, PointRecord>,
    snapshots: BTreeMap<SnapshotId, SnapshotRecord>,
    next_tree: u64,
    /// Whose newest epoch is the head of which volume.
    heads: BTreeMap<TreeId, Uuid>,
    /// Which snapshot names a frozen epoch.
    named: BTreeMap<PointId, SnapshotId>,
    /// The trees whose parent a frozen epoch is.
    children: BTreeMap<PointId, BTreeSet<TreeId>>,
    /// Of frozen epochs that were made since the pool was opened, how many cuts had begun then.
    made_at: BTreeMap<PointId, u64>,
    /// For heads that somebody asked for, the sequence from which on blocks are theirs alone.
    heads_own_from: BTreeMap<TreeId, Arc<AtomicU64>>,
    /// How often a head came to own blocks that a snapshot had mapped as well.
    unshared_count: u64,
}

impl Catalog {
    /// Reads everything.
    ///
    /// # Errors
    /// The store's failure, or [`ErrorKind::Integrity`] naming the record that is damaged.
    pub fn load(store: &dyn MetaRead, keys: &KeyRing, next_tree: TreeId) -> Result<Self> {
        let mut edit = Edit::default();
        edit.next_tree = next_tree.get().max(1);
        for tree in records(store, keys, (key::TREE_PREFIX, SealKind::Tree, "tree"), TreeRecord::decode)? {
            edit.next_tree = edit.next_tree.max(tree.id.get() + 1);
            edit.put_tree(tree);
        }
        for point in records(store, keys, (key::POINT_PREFIX, SealKind::Point, "frozen epoch"), PointRecord::decode)? {
            edit.put_point(point);
        }
        for volume in records(store, keys, (key::VOLUME_PREFIX, SealKind::Volume, "volume"), VolumeRecord::decode)? {
            edit.put_volume(volume);
        }
        let kind = (key::SNAPSHOT_PREFIX, SealKind::Snapshot, "snapshot");
        for snapshot in records(store, keys, kind, SnapshotRecord::decode)? {
            edit.put_snapshot(snapshot);
        }
        let mut catalog = Self::default();
        catalog.apply(edit);
        catalog.check_references()?;
        Ok(catalog)
    }

    fn check_references(&self) -> Result<()> {
        for volume in self.volumes.values() {
            if !self.trees.contains_key(&volume.tree) {
                return Err(damaged("volume", &format!("tree {} of \"{}\" is missing", volume.tree, volume.name)));
            }
        }
        for tree in self.trees.values() {
            if let Some((parent, epoch)) = tree.parent.filter(|parent| !self.points.contains_key(parent)) {
                let message = format!("epoch {epoch} of tree {parent}, the parent of tree {}, is missing", tree.id);
                return Err(damaged("tree", &message));
            }
        }
        for (tree, epoch) in self.points.keys() {
            if !self.trees.contains_key(tree) {
                return Err(damaged("frozen epoch", &format!("tree {tree} of epoch {epoch} is missing")));
            }
        }
        for snapshot in self.snapshots.values() {
            let (tree, epoch) = snapshot.point;
            if !self.points.contains_key(&snapshot.point) || !self.volumes.contains_key(&snapshot.volume) {
                let message =
                    format!("number {}: epoch {epoch} of tree {tree} or its volume is missing", snapshot.number);
                return Err(damaged("snapshot", &message));
            }
        }
        Ok(())
    }

    /// Refuses living trees that nothing could be read from, or written to; where there is no shred key, not those of
    /// volumes with a key of their own.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] naming a tree whose domain has no key.
    pub(super) fn check_domains(&self, keys: &KeyRing, is_shred_key_there: bool) -> Result<()> {
        let is_needed = |tree: &&TreeRecord| is_shred_key_there || tree.domain.is_pool();
        let mut living = self.trees.values().filter(|tree| tree.state == TreeState::Living).filter(is_needed);
        // What was shredded and is not reclaimed yet has no key either.
        let mut missing =
            living.find(|tree| keys.newest_generation(tree.domain).is_none() && self.is_readable(tree.id));
        missing.take().map_or(Ok(()), |tree| {
            Err(damaged("tree", &format!("tree {} is of domain {}, whose key is missing", tree.id, tree.domain)))
        })
    }

    /// Whether a volume or a snapshot reads from the tree.
    fn is_readable(&self, id: TreeId) -> bool {
        self.heads.contains_key(&id)
            || self.named.range((id, Epoch::new(0))..=(id, Epoch::new(u64::MAX))).next().is_some()
    }

    /// Above every tree that was ever made.
    #[must_use]
    pub const fn next_tree(&self) -> TreeId {
        TreeId::new(self.next_tree)
    }

    /// Not below the sequence of any frozen epoch: what is written from now on must not look older than they.
    #[must_use]
    pub(super) fn sequence_floor(&self) -> Sequence {
        self.points.values().map(|point| point.sequence).max().unwrap_or_default()
    }

    /// Whether it has the same records as the other.
    #[must_use]
    pub(super) fn has_same_records(&self, other: &Self) -> bool {
        self.volumes == other.volumes
            && self.trees == other.trees
            && self.points == other.points
            && self.snapshots == other.snapshots
    }

    /// What it says of trees alone, which is little to copy.
    #[must_use]
    pub(super) fn only_trees(&self) -> Self {
        Self { trees: self.trees.clone(), next_tree: self.next_tree, ..Self::default() }
    }

    /// All trees.
    pub(super) fn trees(&self) -> impl Iterator<Item = &TreeRecord> {
        self.trees.values()
    }

    /// All frozen epochs, by tree and epoch.
    pub(super) fn points(&self) -> impl DoubleEndedIterator<Item = &PointRecord> {
        self.points.values()
    }

    /// All volumes, by id, those in the trash too.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values()
    }

    /// All snapshots, by volume and number, those in the trash too.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotRecord> {
        self.snapshots.values()
    }

    /// The snapshots of a volume, by number, those in the trash too.
    pub fn snapshots_of(&self, volume: Uuid) -> impl DoubleEndedIterator<Item = &SnapshotRecord> {
        self.snapshots.range((volume, 0)..=(volume, u64::MAX)).map(|(_, snapshot)| snapshot)
    }

    /// A snapshot.
    #[must_use]
    pub fn snapshot(&self, id: SnapshotId) -> Option<&SnapshotRecord> {
        self.snapshots.get(&id)
    }

    /// The snapshot that names a frozen epoch.
    #[must_use]
    pub fn snapshot_at(&self, at: PointId) -> Option<&SnapshotRecord> {
        self.snapshots.get(self.named.get(&at)?)
    }

    /// The volume of a name that is not in the trash.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn find(&self, name: &str) -> Result<&VolumeRecord> {
        let mut volumes = self.volumes.values().filter(|volume| !volume.lifetime.is_trashed());
        volumes.find(|volume| volume.name == name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("There is no volume \"{name}\""))
                .with_hint("`rok-blk ls` lists them")
        })
    }

    /// A volume, in the trash or not.
    #[must_use]
    pub fn volume(&self, id: Uuid) -> Option<&VolumeRecord> {
        self.volumes.get(&id)
    }

    /// The volume whose head a tree's newest epoch is.
    #[must_use]
    pub fn head_of(&self, tree: TreeId) -> Option<&VolumeRecord> {
        self.volumes.get(self.heads.get(&tree)?)
    }

    /// A tree's record, if the tree is not gone.
    #[must_use]
    pub fn tree(&self, id: TreeId) -> Option<&TreeRecord> {
        self.trees.get(&id)
    }

    /// A frozen epoch's record.
    #[must_use]
    pub fn point(&self, id: PointId) -> Option<&PointRecord> {
        self.points.get(&id)
    }

    /// The tree and epoch, then their parents, as far as a leaf has to be looked for.
    #[must_use]
    pub fn lineage(&self, newest: (TreeId, Epoch)) -> Lineage {
        let mut lineage = vec![newest];
        let mut tree = newest.0;
        while let Some(parent) = self.tree(tree).filter(|record| !record.is_whole()).and_then(|record| record.parent) {
            lineage.push(parent);
            tree = parent.0;
        }
        Lineage(lineage)
    }

    /// The tree and epoch, then all that they build on, also where no leaf has to be looked for any more: whose blocks they share.
    #[must_use]
    pub fn ancestry(&self, newest: (TreeId, Epoch)) -> Lineage {
        let parent = |(tree, _): &(TreeId, Epoch)| self.tree(*tree)?.parent;
        Lineage(std::iter::successors(Some(newest), parent).collect())
    }

    /// The tree, then all trees that it builds on.
    #[must_use]
    pub fn origins(&self, tree: TreeId) -> Vec<TreeId> {
        self.ancestry((tree, Epoch::NEWEST)).0.into_iter().map(|(tree, _)| tree).collect()
    }

    /// Whether writes to the tree count: it is there and is not being deleted.
    #[must_use]
    pub fn is_living(&self, id: TreeId) -> bool {
        self.trees.get(&id).is_some_and(|tree| tree.state == TreeState::Living)
    }

    /// A tree whose leaves are to be deleted, if there is one.
    #[must_use]
    pub fn deleting(&self) -> Option<TreeRecord> {
        self.deleting_unless(|_| false)
    }

    /// The first of these that is not to be skipped.
    pub(super) fn deleting_unless(&self, is_skipped: impl Fn(TreeId) -> bool) -> Option<TreeRecord> {
        self.trees.values().find(|tree| tree.state != TreeState::Living && !is_skipped(tree.id)).copied()
    }

    /// The domain of a volume, if it is not the pool's and nothing but the volume and its snapshots is encrypted in it.
    pub(super) fn domain_only_of(&self, volume: Uuid) -> Option<DomainId> {
        let domain = self.trees.get(&self.volumes.get(&volume)?.tree)?.domain;
        if domain.is_pool() {
            return None;
        }
        let mut living = self.trees.values().filter(|tree| tree.domain == domain && tree.state == TreeState::Living);
        let is_only = living.all(|tree| {
            let mut named = self.named.range((tree.id, Epoch::new(0))..=(tree.id, Epoch::new(u64::MAX)));
            self.heads.get(&tree.id).is_none_or(|head| *head == volume) && named.all(|(_, (of, _))| *of == volume)
        });
        is_only.then_some(domain)
    }
}

fn records<T>(
    store: &dyn MetaRead,
    keys: &KeyRing,
    (prefix, kind, what): (&[u8], SealKind, &str),
    decode: impl Fn(&[u8]) -> std::result::Result<T, FormatError>,
) -> Result<Vec<T>> {
    let decode = |(record_key, value): (Vec<u8>, Vec<u8>)| {
        let body = open(keys, kind, &record_key, &value)?;
        decode(&body).map_err(|error| damaged(what, &error.to_string()))
    };
    scan(store, prefix)?.into_iter().map(decode).collect()
}
