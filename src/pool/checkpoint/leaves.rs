//! Storing the changes of a checkpoint: leaf by leaf, each batch with its bitmap bits and the counts of its intervals.
//!
//! What a leaf builds on is asked of the catalog before, so that nobody waits for the catalog while leaves are read. What may
//! change meanwhile does no harm: a snapshot that is made then has these changes in it, and only checkpoints, one at a time,
//! merge or delete anything.

use super::{Checkpoint, Phase};
use crate::error::{ErrorKind, Result};
use crate::format::catalog::{HeldBlocks, TreeState};
use crate::format::entry::Entry;
use crate::format::leaf::Leaf;
use crate::format::snapshot::{Merge, MergeSide, PointRecord};
use crate::map::{Lineage, Onto, StoredLeaf, StoredLeaves};
use crate::meta::MetaOp;
use crate::planted::{Bug, is_planted};
use crate::pool::catalog::Edit;
use crate::pool::leaf_work::{AppliedLeaf, LeafWork, apply_changes, leaf_work};
use crate::pool::used::BitChanges;
use crate::pool::{Catalog, PointId};
use crate::units::{Address, Epoch, LeafIndex, Sequence, TreeId, ViewId};
use std::collections::{BTreeMap, BTreeSet};

/// What an interval builds on.
struct Base {
    /// The trees whose leaves it sees where its own tree has none.
    parents: Option<Lineage>,
    /// The frozen epoch before it in its tree.
    previous: Option<Epoch>,
    /// Blocks with lower sequences are older than the interval.
    own_from: Sequence,
    /// The frozen epoch before it, in its tree or its parent, if that is being merged into it.
    merging: Option<MergingBase>,
}

/// A frozen epoch that is being merged into the interval behind it.
struct MergingBase {
    point: PointRecord,
    merge: Merge,
    /// The frozen epoch before it in its tree.
    previous: Option<Epoch>,
    /// Blocks with lower sequences are older than its interval.
    own_from: Sequence,
}

/// What storing a leaf does.
struct StoredWork {
    applied: AppliedLeaf,
    /// Replaced blocks that nothing else maps.
    dead: Vec<Address>,
    /// Of these, how many the interval that is being merged holds.
    dead_of_merging: u64,
    /// Blocks mapped now, less those mapped before.
    mapped_delta: i64,
}

/// A batch of leaves.
#[derive(Default)]
struct LeafBatch {
    ops: Vec<MetaOp>,
    bits: BitChanges,
    dead: Vec<Address>,
    replaced: Vec<(TreeId, LeafIndex, Leaf)>,
    /// Own blocks and mapped blocks, more or less, by interval.
    counts: BTreeMap<PointId, (i64, i64)>,
    stored: BTreeSet<(TreeId, LeafIndex)>,
    work_count: usize,
}

impl Checkpoint {
    /// Stores one batch of leaves, with their bitmap bits.
    pub(super) fn store_leaves(&mut self, mut stripe: usize) -> Result<Phase> {
        let leaf_count_max = self.pool.limits.leaves_per_batch;
        while self.pending.len() < leaf_count_max && stripe < self.pool.changes.stripe_count() {
            self.pending.extend(leaf_work(self.pool.changes.frozen(stripe)));
            stripe += 1;
            // At once: a step without space comes again, and what it stores then must not be taken a second time.
            self.phase = Phase::Leaves(stripe);
        }
        if self.pending.is_empty() {
            return Ok(Phase::Reclaim);
        }
        let mut batch = LeafBatch::default();
        for work in self.pending.iter().take(leaf_count_max) {
            match self.take_work(work, &mut batch) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.has_met_damage = error.kind() == ErrorKind::Integrity;
                    return Err(error);
                }
            }
        }
        let LeafBatch { ops, bits, dead, replaced, counts, work_count, .. } = batch;
        let turn = self.pool.take_turn();
        let edit = self.pool.with_catalog(|catalog, _| edit_of(catalog, &counts));
        self.pool.commit_with_bits(&turn, (ops, edit), &bits, "Storing leaves")?;
        drop(turn);
        for (tree, leaf, new) in replaced {
            self.pool.leaves.replace(ViewId::of_head(tree), leaf, &new);
        }
        for work in self.pending.drain(..work_count) {
            for (key, change) in work.changes {
                if let Some(entry) = change.entry {
                    self.owners.insert(entry.address(), (key.tree, key.epoch, key.block));
                }
            }
        }
        self.dead.extend(dead);
        Ok(Phase::Leaves(stripe))
    }

    /// Adds a leaf to a batch; `false` if it must wait for the next, since it builds on a leaf of this one.
    fn take_work(&self, work: &LeafWork, batch: &mut LeafBatch) -> Result<bool> {
        let Some(base) = self.pool.with_catalog(|catalog, _| base_of(catalog, work)) else {
            // The tree is gone or going.
            batch.dead.extend(work.changes.iter().filter_map(|(_, change)| change.entry.map(Entry::address)));
            batch.work_count += 1;
            return Ok(true);
        };
        let parents = base.parents.iter().flat_map(|parents| &parents.0).map(|(tree, _)| *tree);
        if parents.chain([work.tree]).any(|tree| batch.stored.contains(&(tree, work.leaf))) {
            return Ok(false);
        }
        let before_len = batch.ops.len();
        let mut stored = self.apply(work, &base, &mut batch.ops)?;
        batch.work_count += 1;
        if is_planted(Bug::ReplacedStaysUsed) {
            stored.dead.clear();
        }
        batch.dead.extend(&stored.applied.obsolete);
        if batch.ops.len() == before_len {
            return Ok(true);
        }
        let at = (work.tree, work.epoch);
        let own = batch.counts.entry(at).or_default();
        own.0 += signed(stored.applied.mapped.len()) - signed(stored.dead.len()) + stored.dead_of_merging.cast_signed();
        own.1 += stored.mapped_delta;
        if let Some(merging) = base.merging.filter(|_| stored.dead_of_merging > 0) {
            let at = (merging.point.tree, merging.point.epoch);
            batch.counts.entry(at).or_default().0 -= stored.dead_of_merging.cast_signed();
        }
        batch.bits.set.extend(&stored.applied.mapped);
        batch.bits.clear.extend(&stored.dead);
        batch.dead.extend(stored.dead);
        batch.stored.insert((work.tree, work.leaf));
        batch.replaced.push((work.tree, work.leaf, stored.applied.leaf));
        Ok(true)
    }

    /// Applies the changes of a leaf and appends what stores it, which is nothing if nothing changes.
    fn apply(&self, work: &LeafWork, base: &Base, ops: &mut Vec<MetaOp>) -> Result<StoredWork> {
        let stored = StoredLeaves { store: &*self.pool.store, keys: &self.pool.keys };
        let mut before = stored.newest(work.tree, work.epoch, work.leaf)?;
        let (is_own, dead_from) = self.own_and_dead_from(work, base, before.as_ref(), &stored)?;
        let leaf = match (&mut before, &base.parents) {
            (Some(before), _) => std::mem::take(&mut before.leaf),
            (None, Some(parents)) => stored.resolve(parents, work.leaf)?,
            (None, None) => Leaf::default(),
        };
        let mapped_before = leaf.len();
        let applied = apply_changes(leaf, &work.changes);
        let mapped_delta = signed(applied.leaf.len()) - signed(mapped_before);
        if applied.change.is_empty() || is_planted(Bug::EmptyLeafNotPut) && applied.leaf.is_empty() {
            let dead = Vec::new();
            return Ok(StoredWork { applied, dead, dead_of_merging: 0, mapped_delta: 0 });
        }
        let onto = match &before {
            None => Onto::Nothing,
            Some(own) if is_own => Onto::Own(own),
            Some(older) => Onto::Older(older),
        };
        let place = (work.tree, work.epoch, work.leaf);
        let level = stored.store(place, onto, &applied.leaf, &applied.change, ops);
        level.into_iter().for_each(|level| self.pool.parts.count_stored(level));
        // A leaf of the interval's own that only older epochs of it see: nothing sees it any more.
        if let Some(hidden) = before.filter(|before| is_own && before.epoch != work.epoch) {
            ops.extend(StoredLeaves::delete((work.tree, hidden.epoch, work.leaf)));
        }
        let dead_from = if is_planted(Bug::SnapshotBlocksFreed) { Sequence::default() } else { dead_from };
        let dead_entries = applied.unmapped.iter().filter(|entry| entry.sequence() >= dead_from);
        let of_merging = dead_entries.clone().filter(|entry| entry.sequence() < base.own_from).count();
        let dead = dead_entries.map(|entry| entry.address()).collect();
        let dead_of_merging = crate::units::to_u64(of_merging);
        Ok(StoredWork { applied, dead, dead_of_merging, mapped_delta })
    }

    /// Whether the leaf that a change is applied to belongs to its interval, and the sequence from which on the blocks that
    /// it replaces are nobody else's.
    fn own_and_dead_from(
        &self,
        work: &LeafWork,
        base: &Base,
        before: Option<&StoredLeaf>,
        stored: &StoredLeaves<'_>,
    ) -> Result<(bool, Sequence)> {
        let is_own = before.is_some_and(|before| base.previous.is_none_or(|previous| before.epoch > previous));
        let Some(merging) = &base.merging else { return Ok((is_own, base.own_from)) };
        // What is left of the frozen epoch's leaf, if it has one of its own.
        let point = &merging.point;
        let left = stored.newest_epoch(point.tree, point.epoch, work.leaf)?;
        let left = left.filter(|left| merging.previous.is_none_or(|previous| *left > previous));
        let Some(left) = left else {
            // Nothing: it was merged, or there was none, and no block of that interval either.
            return Ok((is_own, merging.own_from));
        };
        let is_behind = match merging.merge.side {
            MergeSide::Point => (left, work.leaf) < merging.merge.cursor,
            MergeSide::Follower => (work.epoch, work.leaf) < merging.merge.cursor,
        };
        // Behind the cursor a leaf that is left is the follower's now, which had none.
        if !is_own && is_behind && point.tree == work.tree && !is_planted(Bug::MergeCursorIgnored) {
            return Ok((true, merging.own_from));
        }
        Ok((is_own, base.own_from))
    }
}

/// What a leaf's interval builds on; `None` if the tree is gone or going.
fn base_of(catalog: &Catalog, work: &LeafWork) -> Option<Base> {
    let at = (work.tree, work.epoch);
    let tree = catalog.tree(work.tree).filter(|tree| tree.state == TreeState::Living)?;
    let previous = catalog.previous(at).map(|point| point.epoch);
    let parents = tree.parent.map(|parent| catalog.lineage(parent));
    let merging = catalog.base(at).and_then(|point| {
        let at = (point.tree, point.epoch);
        let previous = catalog.previous(at).map(|point| point.epoch);
        Some(MergingBase { point: *point, merge: point.merge?, previous, own_from: catalog.own_from(at) })
    });
    Some(Base { parents, previous, own_from: catalog.own_from(at), merging })
}

/// What intervals hold once a batch is stored.
pub(super) fn edit_of(catalog: &Catalog, counts: &BTreeMap<PointId, (i64, i64)>) -> Edit {
    let mut changed: BTreeMap<PointId, HeldBlocks> = BTreeMap::new();
    for (at, (own, mapped)) in counts {
        // Of a tree that began to go meanwhile the intervals are one.
        let at = catalog.interval_of(at.0, at.1);
        let Some(held) = changed.get(&at).copied().or_else(|| catalog.held(at)) else { continue };
        let own_count = held.own_count.checked_add_signed(*own).expect("an interval holds no less than nothing");
        changed.insert(at, HeldBlocks { own_count, mapped_delta: held.mapped_delta + mapped });
    }
    let mut edit = Edit::default();
    changed.into_iter().for_each(|(at, held)| catalog.put_held(at, held, &mut edit));
    edit
}

pub(super) fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("a batch has few blocks")
}
