//! Reclaim: leaves of trees that go are deleted, and frozen epochs that live no more are merged into what follows them.
//!
//! In bounded steps, each one synced batch with the bits that it clears and the cursor behind it. A frozen epoch is merged only
//! after a checkpoint has stored everything it sees: what recovery brings back never reaches behind it.
//!
//! Of the leaves of an interval that is merged, those that the follower has too go, with the blocks that neither the follower
//! nor anything before the interval maps; the others are the follower's from then on. A follower in another tree takes them
//! over with epoch 0, each as a whole: parts build on leaves of their own tree only. Without a follower all go.

use super::copy_down::CopyWork;
use super::unreadable::HeldBack;
use super::{Checkpoint, Phase};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{HeldBlocks, TreeRecord, TreeState};
use crate::format::entry::Entry;
use crate::format::key;
use crate::format::leaf::{Leaf, LeafChange};
use crate::format::snapshot::{Merge, MergeSide, PointRecord};
use crate::map::{Onto, StoredLeaf, StoredLeaves};
use crate::meta::{KeyValue, MetaOp, MetaRead, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::catalog::{Edit, meta_error};
use crate::pool::used::BitChanges;
use crate::pool::{Catalog, Follower, PointId, Pool};
use crate::units::{Address, Epoch, LeafIndex, Sequence, TreeId, to_u64};
use std::collections::BTreeSet;

/// Leaves whose deletion takes about as long as a synced commit.
const LEAVES_OF_A_COMMIT: usize = 64;
/// Leaves of an interval that are counted to find the side with fewer.
const COUNTED_LEAVES_MAX: usize = 65_536;

/// What comes next.
enum Work {
    Tree(TreeRecord, Sequence),
    Merge(MergeWork),
    Copy(CopyWork),
}

/// A merge under way, or to be begun.
struct MergeWork {
    point: PointRecord,
    follower: Option<Follower>,
    /// The frozen epoch before it in its tree.
    previous: Option<Epoch>,
    /// Blocks with lower sequences are older than its interval.
    own_from: Sequence,
    /// The end of the follower's first interval, if that is another tree which lives.
    first_of_child: Option<Epoch>,
}

/// Some leaves of a tree that goes.
struct DeadLeaves {
    count: usize,
    /// The blocks that only they map.
    blocks: Vec<Address>,
    /// The leaf behind them.
    next: LeafIndex,
    /// They are the tree's last.
    is_last: bool,
}

/// What a step of a merge does.
#[derive(Default)]
struct MergeStep {
    ops: Vec<MetaOp>,
    bits: BitChanges,
    /// The cursor behind it; `None` is the end.
    next: Option<(Epoch, LeafIndex)>,
    leaf_count: usize,
}

impl Checkpoint {
    /// Does a step of what is to be reclaimed, if this checkpoint has not done enough.
    pub(super) fn reclaim(&mut self) -> Result<Phase> {
        // Writes do not wait for space to come back: the rest is for the next checkpoint, which `release` asks for.
        let is_begun = self.deletions_left < self.pool.limits.reclaimed_per_checkpoint;
        let is_urgent = self.pool.changes.active_count() >= self.pool.limits.changes_soft_max;
        if self.deletions_left == 0 || is_begun && is_urgent {
            return Ok(Phase::Owners);
        }
        match self.pool.next_work() {
            None => return Ok(Phase::Owners),
            Some(Work::Copy(work)) => match self.copy_down(&work) {
                // It is for speed only, and not worth the space that everything else waits for.
                Err(error) if error.kind() == ErrorKind::NoSpace => return Ok(Phase::Owners),
                copied => copied?,
            },
            Some(Work::Tree(tree, own_from)) => self.delete_leaves(&tree, own_from)?,
            Some(Work::Merge(work)) => self.merge(&work)?,
        }
        Ok(Phase::Reclaim)
    }

    /// Counts a step: its synced commit costs as much as some leaves.
    pub(super) fn charge(&mut self, leaf_count: usize) {
        let least = LEAVES_OF_A_COMMIT.min(self.pool.limits.reclaimed_per_batch);
        self.deletions_left = self.deletions_left.saturating_sub(leaf_count.max(least));
    }

    /// Deletes a bounded number of leaves of a tree that goes.
    fn delete_leaves(&mut self, tree: &TreeRecord, own_from: Sequence) -> Result<()> {
        let TreeState::Deleting(cursor) = tree.state else { return Ok(()) };
        let read = self.read_dead_leaves(tree.id, cursor, own_from);
        let Some(DeadLeaves { count, blocks, next, is_last }) = self.unless_damaged(tree.id, read)? else {
            return Ok(());
        };
        let bits = BitChanges { clear: blocks, ..BitChanges::default() };
        let turn = self.pool.take_turn();
        let mut edit = Edit::default();
        let mut batch = Vec::new();
        if is_last {
            let next_tree = self.pool.with_catalog(|catalog, _| catalog.next_tree());
            batch.extend(self.forget_tree(next_tree, tree.id, &mut edit)?);
        } else {
            let (from, end) = (key::leaf_prefix(tree.id, cursor), key::leaf_prefix(tree.id, next));
            batch.push(MetaOp::DeleteRange(Table::Leaves, from, end));
            let own_count = tree.held.own_count.saturating_sub(to_u64(bits.clear.len()));
            let held = HeldBlocks { own_count, ..tree.held };
            edit.put_tree(TreeRecord { state: TreeState::Deleting(next), held, ..*tree });
        }
        self.pool.commit_with_bits(&turn, (batch, edit), &bits, "Deleting leaves")?;
        drop(turn);
        self.dead.extend(bits.clear);
        self.charge(count);
        Ok(())
    }

    /// The next leaves of a tree that goes.
    fn read_dead_leaves(&self, tree: TreeId, cursor: LeafIndex, own_from: Sequence) -> Result<DeadLeaves> {
        let from = key::leaf_prefix(tree, cursor);
        let end = key::tree_end(tree);
        let (found, is_last) = self.whole_leaves(&from, &end)?;
        let stored = StoredLeaves { store: &*self.pool.store, keys: &self.pool.keys };
        let mut blocks = Vec::new();
        let mut next = cursor;
        let mut of_leaf: BTreeSet<Address> = BTreeSet::new();
        for (leaf_key, value) in &found {
            let damaged = |reason: String| {
                Error::new(ErrorKind::Integrity, format!("A leaf of tree {tree} is damaged: {reason}"))
            };
            let (_, index, epoch) = key::parse_leaf(leaf_key).map_err(|error| damaged(error.to_string()))?;
            let opened = stored.open(leaf_key, epoch, value).map_err(damaged)?;
            if next != LeafIndex::new(index.get() + 1) {
                blocks.extend(std::mem::take(&mut of_leaf));
            }
            // Several epochs of a leaf map the same blocks.
            // What a part does not have is in the leaf that it builds on, which goes too.
            let own = opened.change.entries.iter().map(|(_, entry)| entry);
            let own = own.filter(|entry| entry.sequence() >= own_from);
            of_leaf.extend(own.map(Entry::address));
            next = LeafIndex::new(index.get() + 1);
        }
        blocks.extend(of_leaf);
        Ok(DeadLeaves { count: found.len(), blocks, next, is_last })
    }

    /// Leaves from a key on with all of their epochs, and whether these are the last.
    fn whole_leaves(&self, from: &[u8], end: &[u8]) -> Result<(Vec<KeyValue>, bool)> {
        let mut limit = self.pool.limits.reclaimed_per_batch;
        loop {
            let found = self.pool.store.scan(Table::Leaves, from, end, limit);
            let mut found = found.map_err(|error| meta_error("Reading leaves", error))?;
            if found.len() < limit {
                return Ok((found, true));
            }
            // The last leaf may have more epochs: it comes with the next step.
            let last = found.last().map(|(leaf_key, _)| leaf_key[..16].to_vec()).unwrap_or_default();
            found.retain(|(leaf_key, _)| !leaf_key.starts_with(&last));
            if !found.is_empty() {
                return Ok((found, false));
            }
            limit *= 2;
        }
    }

    /// What removes a tree of which nothing is left.
    fn forget_tree(&self, next_tree: TreeId, tree: TreeId, edit: &mut Edit) -> Result<Vec<MetaOp>> {
        let (start, end) = (key::tree_start(tree), key::tree_end(tree));
        edit.remove_tree(tree);
        Ok(vec![
            MetaOp::DeleteRange(Table::Leaves, start.clone(), end.clone()),
            MetaOp::DeleteRange(Table::EpochLeaves, start, end),
            self.put_next_tree(next_tree)?,
        ])
    }

    /// Merges a bounded number of leaves of a frozen epoch into what follows it.
    fn merge(&mut self, work: &MergeWork) -> Result<()> {
        let Some((merge, mut step)) = self.unless_damaged(work.point.tree, self.read_merge(work))? else {
            return Ok(());
        };
        let at = (work.point.tree, work.point.epoch);
        let turn = self.pool.take_turn();
        let catalog = self.pool.catalog.lock();
        // Its whole tree may be going now.
        let Some(point) = catalog.point(at).copied() else { return Ok(()) };
        let own_count = point.held.own_count.checked_sub(to_u64(step.bits.clear.len()));
        let own_count = own_count.expect("an interval holds no less than nothing");
        let held = HeldBlocks { own_count, ..point.held };
        let mut edit = Edit::default();
        match step.next {
            Some(cursor) => edit.put_point(PointRecord { held, merge: Some(Merge { cursor, ..merge }), ..point }),
            None => step.ops.extend(self.end_merge(&catalog, work, held, &mut edit)?),
        }
        drop(catalog);
        self.pool.commit_with_bits(&turn, (step.ops, edit), &step.bits, "Merging leaves")?;
        drop(turn);
        self.dead.extend(step.bits.clear);
        self.charge(step.leaf_count);
        Ok(())
    }

    fn read_merge(&self, work: &MergeWork) -> Result<(Merge, MergeStep)> {
        let merge = match work.point.merge {
            Some(merge) => merge,
            None => self.choose_side(work)?,
        };
        let step = match merge.side {
            MergeSide::Point => self.step_over_point(work, merge.cursor),
            MergeSide::Follower => self.step_over_follower(work, merge.cursor),
        };
        Ok((merge, step?))
    }

    /// The side with fewer leaves, from its start.
    fn choose_side(&self, work: &MergeWork) -> Result<Merge> {
        let point = &work.point;
        let by_point = Merge { side: MergeSide::Point, cursor: (after(work.previous), LeafIndex::new(0)) };
        let Some(Follower::Interval(end)) = work.follower else { return Ok(by_point) };
        let start = (after(Some(point.epoch)), LeafIndex::new(0));
        let mut limit = self.pool.limits.reclaimed_per_batch;
        while limit <= COUNTED_LEAVES_MAX {
            let own = self.index(point.tree, by_point.cursor, point.epoch, limit)?.len();
            let of_follower = self.index(point.tree, start, end, limit)?.len();
            if of_follower < own {
                return Ok(Merge { side: MergeSide::Follower, cursor: start });
            }
            if own < limit {
                break;
            }
            limit *= 8;
        }
        Ok(by_point)
    }

    /// Epochs and leaves that the index has of a tree from a cursor on, up to and with the epoch `end`.
    fn index(
        &self,
        tree: TreeId,
        (epoch, leaf): (Epoch, LeafIndex),
        end: Epoch,
        limit: usize,
    ) -> Result<Vec<(Epoch, LeafIndex)>> {
        let from = key::epoch_leaf(tree, epoch, leaf);
        let end = key::epoch_leaf(tree, after(Some(end)), LeafIndex::new(0));
        let found = self.pool.store.scan(Table::EpochLeaves, &from, &end, limit);
        let found = found.map_err(|error| meta_error("Reading the index of leaves", error))?;
        let parse = |(index_key, _): (Vec<u8>, Vec<u8>)| {
            key::parse_epoch_leaf(&index_key).map(|(_, epoch, leaf)| (epoch, leaf)).map_err(|error| {
                Error::new(ErrorKind::Integrity, format!("The index of leaves of tree {tree} is damaged: {error}"))
            })
        };
        found.into_iter().map(parse).collect()
    }

    fn step_over_point(&self, work: &MergeWork, cursor: (Epoch, LeafIndex)) -> Result<MergeStep> {
        let point = &work.point;
        let stored = StoredLeaves { store: &*self.pool.store, keys: &self.pool.keys };
        let found = self.index(point.tree, cursor, point.epoch, self.pool.limits.reclaimed_per_batch)?;
        let mut step = MergeStep { leaf_count: found.len(), ..MergeStep::default() };
        for (epoch, index) in &found {
            match work.follower {
                None => drop(merge_leaf(work, (*epoch, *index), &[], &stored, &mut step)?),
                Some(Follower::Interval(end)) => {
                    let newest = stored.newest_epoch(point.tree, end, *index)?;
                    let Some(newest) = newest.filter(|newest| *newest > point.epoch) else { continue };
                    self.merge_into_newer(work, (*epoch, *index), newest, &stored, &mut step)?;
                }
                Some(Follower::Child(child)) => {
                    let of_child = self.leaves_of_child(work, (child, *index), &stored)?;
                    if of_child.is_empty() {
                        move_leaf(work, child, (*epoch, *index), &stored, &mut step)?;
                    } else {
                        drop(merge_leaf(work, (*epoch, *index), &of_child, &stored, &mut step)?);
                    }
                }
            }
        }
        step.next = next_cursor(&found, self.pool.limits.reclaimed_per_batch);
        Ok(step)
    }

    /// What a child tree has of a leaf: the one of its first interval; of a tree that goes, whose intervals are forgotten, all
    /// that there are, since their blocks are freed with it.
    fn leaves_of_child(
        &self,
        work: &MergeWork,
        (child, index): (TreeId, LeafIndex),
        stored: &StoredLeaves<'_>,
    ) -> Result<Vec<Leaf>> {
        let Some(first) = work.first_of_child else {
            let (from, end) =
                (key::leaf_prefix(child, index), key::leaf_prefix(child, LeafIndex::new(index.get() + 1)));
            let found = self.pool.store.scan(Table::Leaves, &from, &end, usize::MAX);
            let found = found.map_err(|error| meta_error("Reading leaves", error))?;
            let epochs = found.iter().map(|(leaf_key, _)| key::parse_leaf(leaf_key).map(|(_, _, epoch)| epoch));
            return epochs
                .filter_map(|epoch| stored.exactly((child, epoch.ok()?, index)).transpose())
                .map(|stored| stored.map(|stored| stored.leaf))
                .collect();
        };
        Ok(stored.newest(child, first, index)?.map(|stored| stored.leaf).into_iter().collect())
    }

    fn step_over_follower(&self, work: &MergeWork, cursor: (Epoch, LeafIndex)) -> Result<MergeStep> {
        let point = &work.point;
        let Some(Follower::Interval(end)) = work.follower else {
            unreachable!("a follower in the same tree stays one, frozen or not")
        };
        let stored = StoredLeaves { store: &*self.pool.store, keys: &self.pool.keys };
        let found = self.index(point.tree, cursor, end, self.pool.limits.reclaimed_per_batch)?;
        let mut step = MergeStep { leaf_count: found.len(), ..MergeStep::default() };
        for (epoch, index) in &found {
            let left = stored.newest_epoch(point.tree, point.epoch, *index)?;
            let Some(left) = left.filter(|left| work.previous.is_none_or(|previous| *left > previous)) else {
                continue;
            };
            self.merge_into_newer(work, (left, *index), *epoch, &stored, &mut step)?;
        }
        step.next = next_cursor(&found, self.pool.limits.reclaimed_per_batch);
        Ok(step)
    }

    /// Merges a leaf into the follower's, which is of the epoch `newer` in the same tree: the next newer one. If that builds on
    /// what goes, it builds on what that built on from then on.
    fn merge_into_newer(
        &self,
        work: &MergeWork,
        (epoch, index): (Epoch, LeafIndex),
        newer: Epoch,
        stored: &StoredLeaves<'_>,
        step: &mut MergeStep,
    ) -> Result<()> {
        let tree = work.point.tree;
        let Some(follower) = stored.exactly((tree, newer, index))? else { return Ok(()) };
        let of_follower = std::slice::from_ref(&follower.leaf);
        let Some(going) = merge_leaf(work, (epoch, index), of_follower, stored, step)? else { return Ok(()) };
        if stored.rebase((tree, index), (&going, &follower), &mut step.ops) {
            self.pool.parts.count_rebased();
        }
        Ok(())
    }

    /// The follower takes what is left; it builds on what the frozen epoch built on.
    fn end_merge(&self, catalog: &Catalog, work: &MergeWork, held: HeldBlocks, edit: &mut Edit) -> Result<Vec<MetaOp>> {
        let point = &work.point;
        let mut ops = Vec::new();
        edit.remove_point((point.tree, point.epoch));
        match work.follower {
            None => {}
            Some(Follower::Interval(end)) => {
                let of_follower = catalog.held((point.tree, end)).unwrap_or_default();
                catalog.put_held((point.tree, end), of_follower.plus(held), edit);
            }
            Some(Follower::Child(child)) => self.reparent(catalog, work, (child, held), edit),
        }
        let has_points = catalog.points().any(|other| other.tree == point.tree && other.epoch != point.epoch);
        if !has_points && catalog.head_of(point.tree).is_none() {
            ops.extend(self.forget_tree(catalog.next_tree(), point.tree, edit)?);
        }
        Ok(ops)
    }

    fn reparent(&self, catalog: &Catalog, work: &MergeWork, (child, held): (TreeId, HeldBlocks), edit: &mut Edit) {
        let Some(tree) = catalog.tree(child).copied() else { return };
        let of_tree = catalog.tree(work.point.tree).and_then(|tree| tree.parent);
        let parent = work.previous.map(|previous| (work.point.tree, previous)).or(of_tree);
        let first = catalog.first_interval(child).unwrap_or(tree.epoch);
        let total = catalog.held((child, first)).unwrap_or_default().plus(held);
        if let Some(point) = catalog.point((child, first)) {
            edit.put_point(PointRecord { held: total, ..*point });
            edit.put_tree(TreeRecord { parent, ..tree });
        } else {
            edit.put_tree(TreeRecord { parent, held: total, ..tree });
        }
    }
}

impl Pool {
    /// What is to be reclaimed next, else to be copied down.
    fn next_work(&self) -> Option<Work> {
        let (done, lineage_max) = (self.checkpoints_done(), self.limits.lineage_max);
        let may_copy = self.may_copy_down();
        self.with_catalog(|catalog, _| {
            let held_back = HeldBack::new(catalog, |tree| self.unreadable.contains(tree));
            next_work(catalog, done, &held_back).or_else(|| {
                let work = catalog.too_deep(lineage_max, done, |tree| held_back.contains(tree)).filter(|_| may_copy);
                work.map(Work::Copy)
            })
        })
    }

    /// Whether a further checkpoint has something to reclaim or to copy down.
    pub(super) fn has_more_work(&self) -> bool {
        if self.unreadable.len() > 0 {
            return self.next_work().is_some();
        }
        let (done, lineage_max) = (self.checkpoints_done(), self.limits.lineage_max);
        let may_copy = self.may_copy_down();
        self.with_catalog(|catalog, _| {
            let is_reclaiming = catalog.deleting().is_some() || catalog.has_dead_points();
            is_reclaiming || may_copy && catalog.too_deep(lineage_max, done, |_| false).is_some()
        })
    }

    /// Copies take space in `meta/`, which they must not take from what would free some.
    fn may_copy_down(&self) -> bool {
        !self.is_meta_reserve_gone()
    }
}

/// A merge under way is ended first: what is deleted then builds on nothing half merged.
fn next_work<F: Fn(TreeId) -> bool>(
    catalog: &Catalog,
    checkpoints_done: u64,
    held_back: &HeldBack<'_, F>,
) -> Option<Work> {
    let is_held_back = |tree| held_back.contains(tree);
    let is_merging = catalog.merging().any(|point| !is_held_back(point.tree));
    if let Some(tree) = catalog.deleting_unless(is_held_back).filter(|_| !is_merging) {
        return Some(Work::Tree(tree, catalog.own_from((tree.id, Epoch::new(1)))));
    }
    let (point, follower) = catalog.mergeable(checkpoints_done, is_held_back)?;
    let at: PointId = (point.tree, point.epoch);
    let first_of_child = match follower {
        Some(Follower::Child(child)) if catalog.is_living(child) => catalog.first_interval(child),
        _ => None,
    };
    let (previous, own_from) = (catalog.previous(at).map(|point| point.epoch), catalog.own_from(at));
    Some(Work::Merge(MergeWork { point, follower, previous, own_from, first_of_child }))
}

/// Deletes a leaf that the follower does not see, with the blocks that none of the follower's maps; returns what it was.
fn merge_leaf(
    work: &MergeWork,
    (epoch, index): (Epoch, LeafIndex),
    of_follower: &[Leaf],
    stored: &StoredLeaves<'_>,
    step: &mut MergeStep,
) -> Result<Option<StoredLeaf>> {
    let place = (work.point.tree, epoch, index);
    let Some(leaf) = stored.exactly(place)? else { return Ok(None) };
    let own_from = if is_planted(Bug::MergeFreesOlder) { Sequence::default() } else { work.own_from };
    let is_dead = |(slot, entry): &(u8, Entry)| {
        entry.sequence() >= own_from && of_follower.iter().all(|leaf| leaf.get(*slot) != Some(*entry))
    };
    step.bits.clear.extend(leaf.leaf.iter().filter(is_dead).map(|(_, entry)| entry.address()));
    step.ops.extend(StoredLeaves::delete(place));
    Ok(Some(leaf))
}

/// Gives a leaf to a tree that has none of its own there.
fn move_leaf(
    work: &MergeWork,
    child: TreeId,
    (epoch, index): (Epoch, LeafIndex),
    stored: &StoredLeaves<'_>,
    step: &mut MergeStep,
) -> Result<()> {
    let place = (work.point.tree, epoch, index);
    let Some(leaf) = stored.exactly(place)? else { return Ok(()) };
    stored.store((child, Epoch::new(0), index), Onto::Nothing, &leaf.leaf, &LeafChange::default(), &mut step.ops);
    step.ops.extend(StoredLeaves::delete(place));
    Ok(())
}

/// Behind the last leaf of a step; `None` if there are no more.
fn next_cursor(found: &[(Epoch, LeafIndex)], limit: usize) -> Option<(Epoch, LeafIndex)> {
    let (epoch, leaf) = found.last().filter(|_| found.len() == limit)?;
    Some((*epoch, LeafIndex::new(leaf.get() + 1)))
}

/// The epoch behind one, or the first of all: a tree has leaves of epoch 0 that it took over from its parent.
fn after(epoch: Option<Epoch>) -> Epoch {
    epoch.map_or(Epoch::new(0), |epoch| Epoch::new(epoch.get() + 1))
}
