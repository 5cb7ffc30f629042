//! One atomic change of the catalog: the records that it puts and removes.

use super::{Catalog, CatalogStore, PointId, SnapshotId};
use crate::format::catalog::{TreeRecord, VolumeRecord};
use crate::format::key;
use crate::format::snapshot::{PointRecord, SnapshotRecord};
use crate::meta::{MetaOp, Table};
use crate::units::TreeId;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Records by their ids; `None` removes one.
#[derive(Default)]
pub struct Edit {
    volumes: BTreeMap<Uuid, Option<VolumeRecord>>,
    trees: BTreeMap<TreeId, Option<TreeRecord>>,
    points: BTreeMap<PointId, Option<PointRecord>>,
    snapshots: BTreeMap<SnapshotId, Option<SnapshotRecord>>,
    /// How many cuts had begun when the frozen epochs were made.
    cuts_begun: u64,
    /// Above every tree that it puts; 0 leaves that as it is.
    pub(super) next_tree: u64,
}

impl Edit {
    /// An empty one; frozen epochs that it makes have changes that no checkpoint holds until one begins behind so many.
    pub(super) fn behind(cuts_begun: u64) -> Self {
        Self { cuts_begun, ..Self::default() }
    }

    pub(super) fn put_volume(&mut self, volume: VolumeRecord) {
        self.volumes.insert(volume.id, Some(volume));
    }

    pub(super) fn remove_volume(&mut self, id: Uuid) {
        self.volumes.insert(id, None);
    }

    pub(in crate::pool) fn put_tree(&mut self, tree: TreeRecord) {
        self.trees.insert(tree.id, Some(tree));
    }

    pub(in crate::pool) fn remove_tree(&mut self, id: TreeId) {
        self.trees.insert(id, None);
    }

    pub(in crate::pool) fn put_point(&mut self, point: PointRecord) {
        self.points.insert((point.tree, point.epoch), Some(point));
    }

    pub(in crate::pool) fn remove_point(&mut self, id: PointId) {
        self.points.insert(id, None);
    }

    pub(super) fn put_snapshot(&mut self, snapshot: SnapshotRecord) {
        self.snapshots.insert((snapshot.volume, snapshot.number), Some(snapshot));
    }

    pub(super) fn remove_snapshot(&mut self, id: SnapshotId) {
        self.snapshots.insert(id, None);
    }

    /// What stores it.
    pub(in crate::pool) fn ops(&self, at: CatalogStore<'_>) -> Vec<MetaOp> {
        let delete = |record_key| MetaOp::Delete(Table::Catalog, record_key);
        let mut ops = Vec::new();
        ops.extend(self.trees.iter().map(|(id, tree)| match tree {
            Some(tree) => at.put_tree(tree),
            None => delete(key::tree(*id)),
        }));
        ops.extend(self.points.iter().map(|((tree, epoch), point)| match point {
            Some(point) => at.put_point(point),
            None => delete(key::point(*tree, *epoch)),
        }));
        ops.extend(self.volumes.iter().map(|(id, volume)| match volume {
            Some(volume) => at.put_volume(volume),
            None => delete(key::volume(*id)),
        }));
        ops.extend(self.snapshots.iter().map(|((volume, number), snapshot)| match snapshot {
            Some(snapshot) => at.put_snapshot(snapshot),
            None => delete(key::snapshot(*volume, *number)),
        }));
        ops
    }
}

impl Catalog {
    /// Takes an edit that is stored.
    pub(in crate::pool) fn apply(&mut self, edit: Edit) {
        self.next_tree = self.next_tree.max(edit.next_tree);
        let touched = edit.trees.keys().copied().chain(edit.points.keys().map(|(tree, _)| *tree)).collect();
        for (id, tree) in edit.trees {
            let old = match tree {
                Some(tree) => self.trees.insert(id, tree),
                None => self.trees.remove(&id),
            };
            let [old, new] = [old, tree].map(|tree| tree.and_then(|tree| tree.parent));
            if old == new {
                continue;
            }
            if let Some(parent) = old
                && let Some(children) = self.children.get_mut(&parent)
            {
                children.remove(&id);
                if children.is_empty() {
                    self.children.remove(&parent);
                }
            }
            if let Some(parent) = new {
                self.children.entry(parent).or_default().insert(id);
            }
        }
        for (id, point) in edit.points {
            let Some(point) = point else {
                self.points.remove(&id);
                self.made_at.remove(&id);
                continue;
            };
            if self.points.insert(id, point).is_none() && edit.cuts_begun > 0 {
                self.made_at.insert(id, edit.cuts_begun);
            }
        }
        for (id, volume) in edit.volumes {
            let tree = volume.as_ref().map(|volume| volume.tree);
            let old = match volume {
                Some(volume) => self.volumes.insert(id, volume),
                None => self.volumes.remove(&id),
            };
            if let Some(old) = old.filter(|old| Some(old.tree) != tree) {
                self.heads.remove(&old.tree);
            }
            if let Some(tree) = tree {
                self.heads.insert(tree, id);
            }
        }
        for (id, snapshot) in edit.snapshots {
            if let Some(snapshot) = snapshot {
                self.named.insert(snapshot.point, id);
                self.snapshots.insert(id, snapshot);
            } else if let Some(snapshot) = self.snapshots.remove(&id) {
                self.named.remove(&snapshot.point);
            }
        }
        self.renew_own_from(touched);
    }
}
