//! Changes of the map since the last checkpoint, in two sets.
//!
//! New changes go into the *active* set. A checkpoint makes it the *frozen* set at one instant for all lanes
//! (the cut), stores that, and drops it. A lane lays the changes of a whole batch under one
//! [`LayGuard`], so a cut never divides a batch.
//!
//! Owned by the pool, shared by the lanes; locks are striped by leaf and short.

use crate::format::entry::Entry;
use crate::units::{Address, BlockIndex, Epoch, LeafIndex, Sequence, TreeId, to_u64, to_usize};
use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicU64, Ordering};

const STRIPE_COUNT: u64 = 256;

/// What a change is about. Ordered by tree, block and epoch, so the changes of a leaf are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeKey {
    /// The tree.
    pub tree: TreeId,
    /// The block.
    pub block: BlockIndex,
    /// The epoch that the head had.
    pub epoch: Epoch,
}

/// A new entry, or a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Number of the write or of the removal.
    pub sequence: Sequence,
    /// The entry; `None` is a removal.
    pub entry: Option<Entry>,
}

#[derive(Default)]
struct ChangeSet {
    changes: BTreeMap<ChangeKey, Change>,
    /// Blocks of changes that a later change of the same set replaced.
    replaced: Vec<Address>,
}

#[derive(Default)]
struct Stripe {
    active: ChangeSet,
    frozen: ChangeSet,
}

/// Both sets of changes of a pool.
pub struct Changes {
    stripes: Box<[CachePadded<Mutex<Stripe>>]>,
    cut: CachePadded<RwLock<()>>,
    active_count: CachePadded<AtomicU64>,
    frozen_count: AtomicU64,
}

/// Keeps a cut away while a batch is laid.
pub struct LayGuard<'a> {
    changes: &'a Changes,
    /// Changes of blocks that had none; counted for all lanes at the end, since each count takes a cache line from them.
    new_count: Cell<u64>,
    _cut: RwLockReadGuard<'a, ()>,
}

/// What a dropped set leaves behind.
#[derive(Debug, Default)]
pub struct DroppedSet {
    /// Blocks that were replaced within the set: nothing maps them.
    pub replaced: Vec<Address>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            stripes: (0..STRIPE_COUNT).map(|_| CachePadded::default()).collect(),
            cut: CachePadded::default(),
            active_count: CachePadded::default(),
            frozen_count: AtomicU64::new(0),
        }
    }
}

impl Changes {
    /// The newest change of a block that an epoch sees, if a set holds one.
    #[must_use]
    pub fn get(&self, tree: TreeId, epoch: Epoch, block: BlockIndex) -> Option<Change> {
        let stripe = self.stripe(block.leaf()).lock();
        let oldest = ChangeKey { tree, block, epoch: Epoch::new(0) };
        let newest = ChangeKey { tree, block, epoch };
        [&stripe.active, &stripe.frozen]
            .into_iter()
            .find_map(|set| set.changes.range(oldest..=newest).next_back().map(|(_, change)| *change))
    }

    /// Calls `visit` with the index in the range and the change, for each change of `count` blocks of one leaf that
    /// `epoch` sees. A later call for the same index wins.
    pub fn of_range(
        &self,
        tree: TreeId,
        epoch: Epoch,
        (first, count): (BlockIndex, usize),
        mut visit: impl FnMut(usize, Change),
    ) {
        let stripe = self.stripe(first.leaf()).lock();
        let from = ChangeKey { tree, block: first, epoch: Epoch::new(0) };
        let to = ChangeKey { tree, block: first.plus(to_u64(count)), epoch: Epoch::new(0) };
        for set in [&stripe.frozen, &stripe.active] {
            for (key, change) in set.changes.range(from..to) {
                if key.epoch <= epoch {
                    visit(to_usize(key.block.get() - first.get()), *change);
                }
            }
        }
    }

    /// The first leaf of a tree with a change of a block in the range. Looks into every stripe: for long ranges.
    #[must_use]
    pub fn next_touched(&self, tree: TreeId, blocks: std::ops::Range<u64>) -> Option<LeafIndex> {
        if blocks.is_empty() {
            return None;
        }
        let from = ChangeKey { tree, block: BlockIndex::new(blocks.start), epoch: Epoch::new(0) };
        let to = ChangeKey { tree, block: BlockIndex::new(blocks.end), epoch: Epoch::new(0) };
        let of_stripe = |stripe: &CachePadded<Mutex<Stripe>>| {
            let stripe = stripe.lock();
            let first = |set: &ChangeSet| set.changes.range(from..to).next().map(|(key, _)| key.block.leaf());
            [first(&stripe.active), first(&stripe.frozen)].into_iter().flatten().min()
        };
        self.stripes.iter().filter_map(of_stripe).min()
    }

    /// The first leaves of a range, at most `count_max`, in which some epochs of a tree have changes. Looks into every
    /// stripe, and there at one leaf after the other.
    #[must_use]
    pub fn touched(
        &self,
        (tree, epochs): (TreeId, RangeInclusive<Epoch>),
        leaves: Range<LeafIndex>,
        count_max: usize,
    ) -> BTreeSet<LeafIndex> {
        let mut found = BTreeSet::new();
        let at = |leaf: LeafIndex| ChangeKey { tree, block: leaf.first_block(), epoch: Epoch::new(0) };
        for stripe in &self.stripes {
            let stripe = stripe.lock();
            for set in [&stripe.active.changes, &stripe.frozen.changes] {
                let mut from = leaves.start;
                while from < leaves.end
                    && let Some((key, _)) = set.range(at(from)..at(leaves.end)).next()
                {
                    let leaf = key.block.leaf();
                    if found.len() == count_max && found.last().is_some_and(|last| *last < leaf) {
                        break;
                    }
                    from = LeafIndex::new(leaf.get() + 1);
                    if set.range(at(leaf)..at(from)).any(|(key, _)| epochs.contains(&key.epoch)) {
                        found.insert(leaf);
                    }
                    if found.len() > count_max {
                        found.pop_last();
                    }
                }
            }
        }
        found
    }

    /// Begins to lay a batch. Never hold it across an await.
    pub fn lay(&self) -> LayGuard<'_> {
        LayGuard { changes: self, new_count: Cell::new(0), _cut: self.cut.read() }
    }

    /// Makes the active set the frozen one; `at_cut` runs at that instant, while no lane lays.
    ///
    /// # Panics
    /// If the last frozen set was not dropped.
    pub fn cut<R>(&self, at_cut: impl FnOnce() -> R) -> R {
        let _cut = self.cut.write();
        for stripe in &self.stripes {
            let mut stripe = stripe.lock();
            assert!(stripe.frozen.changes.is_empty(), "one checkpoint at a time");
            stripe.frozen = std::mem::take(&mut stripe.active);
        }
        self.frozen_count.store(self.active_count.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        at_cut()
    }

    /// Stripes of the frozen set: what [`Self::frozen`] takes.
    #[must_use]
    pub fn stripe_count(&self) -> usize {
        self.stripes.len()
    }

    /// The frozen changes of a stripe, in the order of their keys.
    #[must_use]
    pub fn frozen(&self, stripe: usize) -> Vec<(ChangeKey, Change)> {
        self.stripes[stripe].lock().frozen.changes.iter().map(|(key, change)| (*key, *change)).collect()
    }

    /// Drops the frozen set, after everything in it was stored and the cached leaves were replaced.
    pub fn drop_frozen(&self) -> DroppedSet {
        let mut dropped = DroppedSet::default();
        for stripe in &self.stripes {
            let frozen = std::mem::take(&mut stripe.lock().frozen);
            dropped.replaced.extend(frozen.replaced);
        }
        self.frozen_count.store(0, Ordering::Relaxed);
        dropped
    }

    /// Blocks that the active set maps or has replaced. Not to be called while a checkpoint runs.
    #[must_use]
    pub fn held_blocks(&self) -> Vec<Address> {
        let mut blocks = Vec::new();
        for stripe in &self.stripes {
            let stripe = stripe.lock();
            blocks.extend(stripe.active.changes.values().filter_map(|change| change.entry.map(Entry::address)));
            blocks.extend(&stripe.active.replaced);
        }
        blocks
    }

    /// Changes in the active set.
    #[must_use]
    pub fn active_count(&self) -> u64 {
        self.active_count.load(Ordering::Relaxed)
    }

    /// Changes in the frozen set.
    #[must_use]
    pub fn frozen_count(&self) -> u64 {
        self.frozen_count.load(Ordering::Relaxed)
    }

    /// By the leaf alone: a checkpoint finds the changes of a leaf of a tree and of its parents in one stripe.
    fn stripe(&self, leaf: LeafIndex) -> &Mutex<Stripe> {
        &self.stripes[stripe_of(0, leaf, to_u64(self.stripes.len()))]
    }
}

impl LayGuard<'_> {
    /// Lays a change over the map.
    ///
    /// # Panics
    /// As [`Self::lay_in_leaf`].
    pub fn lay(&self, key: ChangeKey, change: Change) {
        self.lay_in_leaf((key.tree, key.block.leaf()), std::iter::once((key, change)));
    }

    /// Lays changes of blocks of one leaf over the map, under one lock. `changes` must not look at the map.
    ///
    /// # Panics
    /// If a change of the same block with a higher sequence is there: the range lock forbids it. If a block is not of
    /// the leaf.
    pub fn lay_in_leaf(&self, place: (TreeId, LeafIndex), changes: impl Iterator<Item = (ChangeKey, Change)>) {
        let mut stripe = self.changes.stripe(place.1).lock();
        let mut new_count = 0;
        for (key, change) in changes {
            assert!((key.tree, key.block.leaf()) == place, "a change belongs to the stripe that is locked");
            let Some(before) = stripe.active.changes.insert(key, change) else {
                new_count += 1;
                continue;
            };
            assert!(before.sequence < change.sequence, "changes of a block are laid in the order of their sequences");
            stripe.active.replaced.extend(before.entry.map(Entry::address));
        }
        self.new_count.set(self.new_count.get() + new_count);
    }
}

impl Drop for LayGuard<'_> {
    fn drop(&mut self) {
        // Before a cut may come.
        self.changes.active_count.fetch_add(self.new_count.get(), Ordering::Relaxed);
    }
}

/// A fixed hash: the same stripe in each run, so that simulations repeat.
pub(super) fn stripe_of(salt: u64, leaf: LeafIndex, stripe_count: u64) -> usize {
    let mixed = (leaf.get() ^ salt.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    to_usize((mixed >> 40) % stripe_count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_leaves_are_the_first_ones_of_both_sets_in_these_epochs() {
        let changes = Changes::default();
        let tree = TreeId::new(1);
        let lay = |leaf: u64, epoch: u64, sequence: u64| {
            let key = ChangeKey {
                tree,
                block: LeafIndex::new(leaf).first_block().plus(leaf % 256),
                epoch: Epoch::new(epoch),
            };
            changes.lay().lay(key, Change { sequence: Sequence::new(sequence), entry: None });
        };
        (0..400).for_each(|leaf| lay(leaf, 1 + leaf % 2, leaf));
        changes.cut(|| ());
        (300..600).for_each(|leaf| lay(leaf, 1 + leaf % 2, 1000 + leaf));
        let touched = |epochs: RangeInclusive<u64>, leaves: Range<u64>, count_max| {
            let epochs = Epoch::new(*epochs.start())..=Epoch::new(*epochs.end());
            let leaves = LeafIndex::new(leaves.start)..LeafIndex::new(leaves.end);
            changes.touched((tree, epochs), leaves, count_max).into_iter().map(LeafIndex::get).collect::<Vec<_>>()
        };

        assert_eq!(touched(0..=9, 0..u64::from(u32::MAX), usize::MAX), (0..600).collect::<Vec<_>>());
        assert_eq!(touched(2..=2, 298..1000, 4), [299, 301, 303, 305]);
        assert!(touched(1..=1, 599..1000, 4).is_empty());
        assert!(touched(3..=9, 0..1000, 4).is_empty());
    }
}
