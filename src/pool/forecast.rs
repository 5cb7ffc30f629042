//! What a removal would free: counted from the leaves of the intervals that would live no more, on a view of the store, while
//! everything goes on.
//!
//! A block belongs to the interval that it was written in. If that lives no more, at most one branch of what follows it has
//! something living; the block stays if the first that lives there maps it at the same place, and else nothing does. It is
//! exact as of the last checkpoint, once all that was removed before is reclaimed.
//!
//! It costs the reading of the leaves of these intervals, and of what their heirs have in the same places. No lock is held
//! meanwhile: the catalog is read from the view too.

use crate::error::{Error, ErrorKind, Result};
use crate::format::key;
use crate::format::snapshot::SnapshotRecord;
use crate::map::StoredLeaves;
use crate::meta::{MetaRead, Table};
use crate::pool::catalog::meta_error;
use crate::pool::loading::load_checkpoint;
use crate::pool::{Catalog, PointId, Pool, SnapshotId};
use crate::units::{Epoch, LeafIndex, to_u64};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Leaves of the index that are in memory at once, and after which it is asked whether anybody still waits.
const PAGE: usize = 512;
/// Versions that are tried to find those whose removal frees most.
const TRIED_MAX: usize = 64;

/// What is to be removed.
#[derive(Clone, Debug, Default)]
pub struct Removals {
    /// Volumes, with all of their snapshots.
    pub volumes: BTreeSet<Uuid>,
    /// Single snapshots.
    pub snapshots: BTreeSet<SnapshotId>,
}

impl Removals {
    /// Of one snapshot.
    #[must_use]
    pub fn of_snapshot(id: SnapshotId) -> Self {
        Self { snapshots: BTreeSet::from([id]), ..Self::default() }
    }

    /// Of one volume with its snapshots.
    #[must_use]
    pub fn of_volume(id: Uuid) -> Self {
        Self { volumes: BTreeSet::from([id]), ..Self::default() }
    }
}

/// How much a forecast may look at.
pub struct Effort<'a> {
    leaves_left: u64,
    is_given_up: &'a dyn Fn() -> bool,
}

impl<'a> Effort<'a> {
    /// At most so many leaves, and until `is_given_up` says that nobody waits for it any more.
    #[must_use]
    pub const fn new(leaf_count_max: u64, is_given_up: &'a dyn Fn() -> bool) -> Self {
        Self { leaves_left: leaf_count_max, is_given_up }
    }

    /// As many leaves as it takes, until `is_given_up` says that nobody waits for it any more.
    #[must_use]
    pub const fn whatever_it_takes(is_given_up: &'a dyn Fn() -> bool) -> Self {
        Self::new(u64::MAX, is_given_up)
    }

    /// Pays for some leaves; `false` if they are too many.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if nobody waits any more.
    fn spend(&mut self, leaf_count: usize) -> Result<bool> {
        if (self.is_given_up)() {
            return Err(Error::new(ErrorKind::TimedOut, "Nobody waits any more for what a removal would free"));
        }
        let left = self.leaves_left.checked_sub(to_u64(leaf_count));
        self.leaves_left = left.unwrap_or_default();
        Ok(left.is_some())
    }
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
    /// Blocks that removing all of these together would free; `None` if the effort does not reach. Never on a lane.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for what is not there; [`ErrorKind::Busy`] while removed space is still being reclaimed;
    /// [`ErrorKind::TimedOut`] if nobody waits any more; the store's failure.
    pub fn would_free(&self, removals: &Removals, effort: &mut Effort<'_>) -> Result<Option<u64>> {
        self.on_view(|view, catalog| {
            for id in &removals.snapshots {
                catalog.snapshot_or_error(*id)?;
            }
            if let Some(id) = removals.volumes.iter().find(|id| catalog.volume(**id).is_none()) {
                return Err(Error::new(ErrorKind::NotFound, format!("There is no volume {id}"))
                    .with_hint("`rok-blk ls` lists them"));
            }
            self.count_dead(view, catalog, removals, effort)
        })
    }

    /// The `count` snapshots among the candidates whose removal, of each alone, would free most, with the blocks that it
    /// would free, most in front; some or all of them are missing if the effort does not reach. Never on a lane.
    ///
    /// # Errors
    /// As [`Self::would_free`].
    pub fn most_freeing(
        &self,
        count: usize,
        is_candidate: &dyn Fn(&SnapshotRecord) -> bool,
        effort: &mut Effort<'_>,
    ) -> Result<Vec<(SnapshotId, u64)>> {
        self.on_view(|view, catalog| {
            let candidates = catalog.snapshots().filter(|snapshot| is_candidate(snapshot));
            let bounded =
                candidates.map(|snapshot| (catalog.freed_at_most(snapshot.point), (snapshot.volume, snapshot.number)));
            let mut bounded: Vec<(u64, SnapshotId)> = bounded.filter(|(bound, _)| *bound > 0).collect();
            bounded.sort_by_key(|(bound, id)| (Reverse(*bound), *id));
            let mut found: Vec<(SnapshotId, u64)> = Vec::new();
            for (bound, id) in bounded.into_iter().take(TRIED_MAX) {
                // Nothing behind this one can free more than the last that is wanted.
                if found.len() >= count && found[..count].last().is_none_or(|(_, freed)| *freed >= bound) {
                    break;
                }
                let Some(freed) = self.count_dead(view, catalog, &Removals::of_snapshot(id), effort)? else { break };
                let place = found.partition_point(|(_, other)| *other >= freed);
                found.insert(place, (id, freed));
            }
            found.retain(|(_, freed)| *freed > 0);
            found.truncate(count);
            Ok(found)
        })
    }

    /// Runs `look` on a view of the store and the catalog in it; no lock is held, so that nobody waits for it.
    fn on_view<T>(&self, look: impl FnOnce(&dyn MetaRead, &Catalog) -> Result<T>) -> Result<T> {
        let mut look = Some(look);
        let mut result = None;
        self.store().view(&mut |view| {
            let Some(look) = look.take() else { return };
            let catalog =
                load_checkpoint(view, &self.keys).and_then(|last| Catalog::load(view, &self.keys, last.next_tree));
            result = Some(catalog.and_then(|catalog| {
                if catalog.has_dead_points() || catalog.deleting().is_some() {
                    return Err(Error::new(ErrorKind::Busy, "Space of earlier removals is still being reclaimed")
                        .with_hint("Wait for the job that `rok-blk job ls` shows, and try again"));
                }
                look(view, &catalog)
            }));
        });
        result.expect("a store gives its view to who asks for it")
    }

    fn count_dead(
        &self,
        view: &dyn MetaRead,
        catalog: &Catalog,
        removals: &Removals,
        effort: &mut Effort<'_>,
    ) -> Result<Option<u64>> {
        let nodes = nodes_without(catalog, removals);
        let mut count = 0;
        for (at, node) in nodes.iter().filter(|(_, node)| !node.lives) {
            // What owns nothing frees nothing.
            if catalog.held(*at).is_some_and(|held| held.own_count == 0) {
                continue;
            }
            match self.dead_in(view, catalog, (*at, node.heir), effort)? {
                Some(dead) => count += dead,
                None => return Ok(None),
            }
        }
        Ok(Some(count))
    }

    /// Blocks that an interval owns and its heir does not map.
    fn dead_in(
        &self,
        view: &dyn MetaRead,
        catalog: &Catalog,
        (at, heir): (PointId, Option<PointId>),
        effort: &mut Effort<'_>,
    ) -> Result<Option<u64>> {
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
            if !effort.spend(page.len())? {
                return Ok(None);
            }
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
                None => return Ok(Some(count)),
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
        nodes.insert(at, Node { followers: catalog.ends_behind(at), is_needed, lives: false, heir: None });
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
    /// Above what removing the snapshot of a frozen epoch frees, while nothing is being reclaimed: what its interval owns,
    /// and, if nothing else keeps the nameless one before it, what that owns.
    fn freed_at_most(&self, at: PointId) -> u64 {
        let of_base = self.base(at).filter(|base| self.snapshot_at((base.tree, base.epoch)).is_none());
        let own_count = self.point(at).map_or(0, |point| point.held.own_count);
        own_count + of_base.map_or(0, |base| base.held.own_count)
    }
}
