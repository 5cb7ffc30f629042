//! Copying down: a tree that builds on many others gets leaves of its own for all that these have, so that a leaf is looked
//! for in few trees, however often a clone was cloned. Leaves are copied, no data.
//!
//! In bounded steps, each one synced batch with the cursor behind it; nothing is copied while a merge is under way, but for one
//! that cannot go on and has no origin in common (`unreadable`). A copy is
//! what a merge would leave: a leaf that the tree took over from its parent, with epoch 0. What it maps is older than the tree
//! and stays its owner's, so that nothing is freed with it; and what the owner's merge finds in it is not freed. A step copies
//! a leaf only where nothing in the tree's first interval has it, so that every epoch of the tree sees one of its own from
//! then on. That stays so: a leaf goes only where a newer one hides it from all that lives.
//!
//! Once all are there the tree is *whole*, and lineages end with it. It is begun only when a checkpoint has stored all that
//! the parents have, and they never change.

use super::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{TreeRecord, TreeState};
use crate::format::key;
use crate::format::leaf::LeafChange;
use crate::map::{Lineage, Onto, StoredLeaves};
use crate::meta::{MetaOp, MetaRead, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::Catalog;
use crate::pool::catalog::{Edit, meta_error};
use crate::pool::used::BitChanges;
use crate::units::{Epoch, LeafIndex, TreeId};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// A tree that gets the leaves of its parents.
pub(super) struct CopyWork {
    tree: TreeId,
    own_before: LeafIndex,
    parents: Lineage,
    /// The end of its first interval.
    first: Epoch,
}

/// Leaves to be stored.
struct Copies {
    ops: Vec<MetaOp>,
    /// The tree's cursor behind them.
    own_before: LeafIndex,
    leaf_count: usize,
}

impl Checkpoint {
    /// Copies a bounded number of leaves.
    pub(super) fn copy_down(&mut self, work: &CopyWork) -> Result<()> {
        let Some(Copies { ops, own_before, leaf_count }) = self.unless_damaged(work.tree, self.read_copies(work))?
        else {
            return Ok(());
        };
        let turn = self.pool.take_turn();
        let tree = self.pool.with_catalog(|catalog, _| catalog.tree(work.tree).copied());
        // Else it began to go meanwhile.
        if let Some(tree) = tree.filter(|tree| tree.state == TreeState::Living) {
            let mut edit = Edit::default();
            edit.put_tree(TreeRecord { own_before, ..tree });
            self.pool.commit_with_bits(&turn, (ops, edit), &BitChanges::default(), "Copying leaves down")?;
            if own_before == TreeRecord::WHOLE {
                self.pool.whole_count.fetch_add(1, Ordering::AcqRel);
            }
        }
        drop(turn);
        self.charge(leaf_count);
        Ok(())
    }

    fn read_copies(&self, work: &CopyWork) -> Result<Copies> {
        let leaf_count_max = self.pool.limits.reclaimed_per_batch;
        let stored = StoredLeaves { store: &*self.pool.store, keys: &self.pool.keys };
        let mut parents = ParentLeaves::new(stored.store, &work.parents, work.own_before)?;
        let mut ops = Vec::new();
        let mut own_before = TreeRecord::WHOLE;
        let mut leaf_count = 0;
        while let Some(leaf) = parents.next()? {
            if leaf_count == leaf_count_max {
                own_before = if is_planted(Bug::CopyEndsEarly) { TreeRecord::WHOLE } else { leaf };
                break;
            }
            leaf_count += 1;
            self.copy_leaf(work, leaf, &stored, &mut ops)?;
        }
        Ok(Copies { ops, own_before, leaf_count })
    }

    fn copy_leaf(
        &self,
        work: &CopyWork,
        leaf: LeafIndex,
        stored: &StoredLeaves<'_>,
        ops: &mut Vec<MetaOp>,
    ) -> Result<()> {
        if stored.newest_epoch(work.tree, work.first, leaf)?.is_some() {
            return Ok(());
        }
        let of_parents = stored.resolve(&work.parents, leaf)?;
        if !of_parents.is_empty() {
            stored.store((work.tree, Epoch::new(0), leaf), Onto::Nothing, &of_parents, &LeafChange::default(), ops);
        }
        Ok(())
    }
}

/// The leaves that some trees have, in order, each once.
pub(in crate::pool) struct ParentLeaves<'a> {
    store: &'a dyn MetaRead,
    /// The next leaf of each tree that has one left.
    next: BTreeMap<TreeId, LeafIndex>,
}

impl<'a> ParentLeaves<'a> {
    pub(in crate::pool) fn new(store: &'a dyn MetaRead, lineage: &Lineage, from: LeafIndex) -> Result<Self> {
        let mut leaves = Self { store, next: BTreeMap::new() };
        lineage.0.iter().try_for_each(|(tree, _)| leaves.look(*tree, from))?;
        Ok(leaves)
    }

    pub(in crate::pool) fn next(&mut self) -> Result<Option<LeafIndex>> {
        let Some(leaf) = self.next.values().min().copied() else { return Ok(None) };
        let with_it: Vec<TreeId> = self.next.iter().filter(|(_, next)| **next == leaf).map(|(tree, _)| *tree).collect();
        with_it.into_iter().try_for_each(|tree| self.look(tree, LeafIndex::new(leaf.get() + 1)))?;
        Ok(Some(leaf))
    }

    /// Finds the first leaf of a tree from one on, of whichever epoch.
    fn look(&mut self, tree: TreeId, from: LeafIndex) -> Result<()> {
        let found = self.store.seek(Table::Leaves, &key::tree_start(tree), &key::leaf_prefix(tree, from));
        let found = found.map_err(|error| meta_error("Reading leaves", error))?;
        self.next.remove(&tree);
        if let Some((leaf_key, _)) = found {
            let (_, leaf, _) = key::parse_leaf(&leaf_key).map_err(|error| {
                Error::new(ErrorKind::Integrity, format!("The key of a leaf of tree {tree} is damaged: {error}"))
            })?;
            self.next.insert(tree, leaf);
        }
        Ok(())
    }
}

impl Catalog {
    /// The first tree that builds on so many others that leaves are to be copied down, if all that these have is stored.
    pub(super) fn too_deep(
        &self,
        lineage_max: usize,
        checkpoints_done: u64,
        is_skipped: impl Fn(TreeId) -> bool,
    ) -> Option<CopyWork> {
        let mut depths: BTreeMap<TreeId, usize> = BTreeMap::new();
        // A parent has a lower number than its children.
        for tree in self.trees() {
            let parent = tree.parent.filter(|_| !tree.is_whole());
            let depth = parent.map_or(1, |(parent, _)| 1 + depths.get(&parent).copied().unwrap_or_default());
            depths.insert(tree.id, depth);
            if depth > lineage_max && self.is_living(tree.id) && !is_skipped(tree.id) {
                let parents = self.lineage(parent?);
                let is_stored = parents.0.iter().all(|at| self.is_stored(*at, checkpoints_done));
                let first = self.first_interval(tree.id)?;
                return is_stored.then_some(CopyWork { tree: tree.id, own_before: tree.own_before, parents, first });
            }
        }
        None
    }
}
