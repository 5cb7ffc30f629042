//! What a removal would free: counted from the leaves of the intervals that would live no more, on a view of the store, while
//! everything goes on.
//!
//! A block belongs to the interval that it was written in. If that lives no more, at most one branch of what follows it has
//! something living; the block stays if the first that lives there maps it at the same place, and else nothing does. It is
//! exact as of the last checkpoint, once all that was removed before is reclaimed.

use crate::error::{Error, ErrorKind, Result};
use crate::format::key;
use crate::map::StoredLeaves;
use crate::meta::{MetaRead, Table};
use crate::pool::catalog::meta_error;
use crate::pool::{Catalog, PointId, Pool, SnapshotId};
use crate::units::{Epoch, LeafIndex, to_u64};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Leaves of the index that are in memory at once.
const PAGE: usize = 4096;

/// What is to be removed.
#[derive(Clone, Debug, Default)]
pub struct Removals {
    /// Volumes, with all of their snapshots.
    pub volumes: BTreeSet<Uuid>,
    /// Single snapshots.
    pub snapshots: BTreeSet<SnapshotId>,
}

/// The end of an interval, and what its life hangs on.
struct Node {
    followers: Vec<PointId>,
    is_needed: bool,
    /// Whether it lives.
    lives: bool,
    /// Of itself and what follows it, the first that lives on the one branch that has such; `None` if none does.
    heir: Option<PointId>,
}

impl Pool {
    /// Blocks that removing all of these together would free. Never on a lane.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for what is not there; [`ErrorKind::Busy`] while removed space is still being reclaimed; the
    /// store's failure.
    pub fn would_free(&self, removals: &Removals) -> Result<u64> {
        let guard = self.catalog.lock();
        for id in &removals.snapshots {
            guard.snapshot_or_error(*id)?;
        }
        if guard.has_dead_points() || guard.deleting().is_some() {
            return Err(Error::new(ErrorKind::Busy, "Space of earlier removals is still being reclaimed")
                .with_hint("Try again when `rok-blk status` says that it is done"));
        }
        let mut guard = Some(guard);
        let mut result = Ok(0);
        self.store().view(&mut |view| {
            // Nothing is stored between the two.
            let Some(catalog) = guard.take().map(|guard| guard.clone()) else { return };
            result = self.count_dead(view, &catalog, removals);
        });
        result
    }

    fn count_dead(&self, view: &dyn MetaRead, catalog: &Catalog, removals: &Removals) -> Result<u64> {
        let nodes = nodes_without(catalog, removals);
        let mut count = 0;
        for (at, node) in nodes.iter().filter(|(_, node)| !node.lives) {
            count += self.dead_in(view, catalog, (*at, node.heir))?;
        }
        Ok(count)
    }

    /// Blocks that an interval owns and its heir does not map.
    fn dead_in(&self, view: &dyn MetaRead, catalog: &Catalog, (at, heir): (PointId, Option<PointId>)) -> Result<u64> {
        let stored = StoredLeaves { store: view, keys: self.keys() };
        let own_from = catalog.own_from(at);
        let heir = heir.map(|heir| catalog.lineage(heir));
        let (tree, epoch) = at;
        let first = catalog.previous(at).map_or(Epoch::new(0), |previous| Epoch::new(previous.epoch.get() + 1));
        let mut from = key::epoch_leaf(tree, first, LeafIndex::new(0));
        let end = key::epoch_leaf(tree, Epoch::new(epoch.get() + 1), LeafIndex::new(0));
        let mut count = 0;
        loop {
            let page = view.scan(Table::EpochLeaves, &from, &end, PAGE);
            let page = page.map_err(|error| meta_error("Reading the index of leaves", error))?;
            for (index_key, _) in &page {
                let (_, epoch, index) = key::parse_epoch_leaf(index_key).map_err(|error| {
                    Error::new(ErrorKind::Integrity, format!("The index of leaves of tree {tree} is damaged: {error}"))
                })?;
                let Some(leaf) = stored.exactly((tree, epoch, index))? else { continue };
                let of_heir = heir.as_ref().map(|heir| stored.resolve(heir, index)).transpose()?.unwrap_or_default();
                let own = leaf.leaf.iter().filter(|(_, entry)| entry.sequence() >= own_from);
                count += to_u64(own.filter(|(slot, entry)| of_heir.get(*slot) != Some(*entry)).count());
            }
            match page.last().filter(|_| page.len() == PAGE) {
                Some((last, _)) => from = [last.as_slice(), &[0]].concat(),
                None => return Ok(count),
            }
        }
    }
}

/// All intervals, as they would be without what is removed.
fn nodes_without(catalog: &Catalog, removals: &Removals) -> BTreeMap<PointId, Node> {
    let mut nodes: BTreeMap<PointId, Node> = BTreeMap::new();
    let heads = catalog.volumes().filter_map(|volume| {
        let tree = catalog.tree(volume.tree)?;
        Some(((tree.id, tree.epoch), !removals.volumes.contains(&volume.id)))
    });
    let points = catalog.points().map(|point| ((point.tree, point.epoch), false));
    for (at, is_needed) in points.chain(heads) {
        nodes.insert(at, Node { followers: catalog.all_followers(at), is_needed, lives: false, heir: None });
    }
    for snapshot in catalog.snapshots() {
        let is_removed = removals.volumes.contains(&snapshot.volume)
            || removals.snapshots.contains(&(snapshot.volume, snapshot.number));
        if let Some(node) = nodes.get_mut(&snapshot.point) {
            node.is_needed |= !is_removed;
        }
    }
    // What follows comes later in its tree, or in a tree with a higher number.
    let order: Vec<PointId> = nodes.keys().rev().copied().collect();
    for at in order {
        let followers = &nodes[&at].followers;
        let heirs: Vec<PointId> = followers.iter().filter_map(|follower| nodes.get(follower)?.heir).collect();
        let lives = nodes[&at].is_needed || heirs.len() > 1;
        let heir = if lives { Some(at) } else { heirs.first().copied() };
        nodes.entry(at).and_modify(|node| (node.lives, node.heir) = (lives, heir));
    }
    nodes
}

impl Catalog {
    /// The ends of all intervals that build on a frozen epoch; none follows a head.
    fn all_followers(&self, at: PointId) -> Vec<PointId> {
        let of_children = self.children_of(at).filter_map(|child| Some((child, self.first_interval(child)?)));
        let interval = self.point(at).and_then(|_| self.next_interval(at)).map(|end| (at.0, end));
        interval.into_iter().chain(of_children).collect()
    }
}
