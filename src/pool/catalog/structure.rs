//! How trees and their frozen epochs hang together: what comes before an epoch, what follows it, and what may be merged.
//!
//! Epochs of a tree that end with a frozen one, or with the newest, are an *interval*. Its leaves hold what was written in
//! it. What comes before the first interval is the parent's.

use super::{Catalog, PointId};
use crate::format::catalog::HeldBlocks;
use crate::format::snapshot::PointRecord;
use crate::planted::{Bug, is_planted};
use crate::pool::catalog::Edit;
use crate::units::{Epoch, Sequence, TreeId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What builds on a frozen epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follower {
    /// The interval of the same tree that ends with this epoch.
    Interval(Epoch),
    /// A tree whose parent it is.
    Child(TreeId),
}

impl Catalog {
    /// The frozen epoch before an epoch in its tree.
    #[must_use]
    pub fn previous(&self, (tree, epoch): PointId) -> Option<&PointRecord> {
        self.points.range((tree, Epoch::new(0))..(tree, epoch)).next_back().map(|(_, point)| point)
    }

    /// What an epoch builds on: the frozen epoch before it, else its tree's parent.
    #[must_use]
    pub fn base(&self, at: PointId) -> Option<&PointRecord> {
        let parent = || self.points.get(&self.trees.get(&at.0)?.parent?);
        self.previous(at).or_else(parent)
    }

    /// The sequence from which on blocks are an interval's own.
    #[must_use]
    pub fn own_from(&self, at: PointId) -> Sequence {
        self.base(at).map_or_else(Sequence::default, |base| base.sequence)
    }

    /// As [`Self::own_from`], of a tree's head, kept up to date: a snapshot raises it, and the merge of the last one before
    /// the head lowers it.
    pub fn own_from_of_head(&mut self, tree: TreeId) -> Arc<AtomicU64> {
        let own_from =
            self.trees.get(&tree).map_or_else(Sequence::default, |record| self.own_from((tree, record.epoch)));
        let cell = self.heads_own_from.entry(tree).or_default();
        cell.store(own_from.get(), Ordering::Release);
        Arc::clone(cell)
    }

    /// How often the merge of a snapshot gave a head blocks of its own, since the pool was opened. Of the heads that somebody
    /// asked for.
    #[must_use]
    pub const fn unshared_count(&self) -> u64 {
        self.unshared_count
    }

    /// Brings what [`Self::own_from_of_head`] gave up to date for trees that have changed.
    pub(super) fn renew_own_from(&mut self, trees: BTreeSet<TreeId>) {
        for tree in trees {
            if !self.trees.contains_key(&tree) {
                self.heads_own_from.remove(&tree);
            } else if let Some(cell) = self.heads_own_from.get(&tree) {
                let before = cell.load(Ordering::Acquire);
                if self.own_from_of_head(tree).load(Ordering::Acquire) < before {
                    self.unshared_count += 1;
                }
            }
        }
    }

    /// The end of the next interval in the tree: a frozen epoch, or the newest if that is a head.
    #[must_use]
    pub fn next_interval(&self, (tree, epoch): PointId) -> Option<Epoch> {
        let behind = (tree, Epoch::new(epoch.get() + 1))..=(tree, Epoch::new(u64::MAX));
        let next = self.points.range(behind).next().map(|((_, epoch), _)| *epoch);
        next.or_else(|| self.heads.contains_key(&tree).then(|| self.trees[&tree].epoch))
    }

    /// The interval that an epoch of a tree is in, by its end.
    #[must_use]
    pub fn interval_of(&self, tree: TreeId, epoch: Epoch) -> PointId {
        let end = self.points.range((tree, epoch)..=(tree, Epoch::new(u64::MAX))).next();
        let newest = || self.trees.get(&tree).map_or(epoch, |tree| tree.epoch);
        (tree, end.map_or_else(newest, |((_, end), _)| *end))
    }

    /// The interval in which a block that a tree maps was written: of the tree, or of its parents.
    #[must_use]
    pub fn owner_of(&self, tree: TreeId, sequence: Sequence) -> PointId {
        let mut at = (tree, self.trees.get(&tree).map_or(Epoch::NEWEST, |tree| tree.epoch));
        while let Some(base) = self.base(at).filter(|base| sequence < base.sequence) {
            at = (base.tree, base.epoch);
        }
        at
    }

    /// The end of a tree's first interval: a frozen epoch, or the newest.
    #[must_use]
    pub fn first_interval(&self, tree: TreeId) -> Option<Epoch> {
        let first = self.points.range((tree, Epoch::new(0))..=(tree, Epoch::new(u64::MAX))).next();
        first.map(|((_, epoch), _)| *epoch).or_else(|| self.trees.get(&tree).map(|tree| tree.epoch))
    }

    /// What builds on a frozen epoch, at most two of it.
    #[must_use]
    pub fn followers(&self, at: PointId) -> Vec<Follower> {
        let interval = self.next_interval(at).map(Follower::Interval);
        let children = self.children.get(&at).into_iter().flatten().map(|tree| Follower::Child(*tree));
        interval.into_iter().chain(children).take(2).collect()
    }

    /// Trees whose parent a frozen epoch is.
    pub(in crate::pool) fn children_of(&self, at: PointId) -> impl Iterator<Item = TreeId> {
        self.children.get(&at).into_iter().flatten().copied()
    }

    /// Whether no checkpoint has changes of the epoch left to store, given how many are done: else recovery might bring
    /// some back.
    #[must_use]
    pub fn is_stored(&self, at: PointId, checkpoints_done: u64) -> bool {
        checkpoints_done > self.made_at.get(&at).copied().unwrap_or_default()
    }

    /// How many checkpoints must be done until everything that a frozen epoch sees is stored; 0 for what is not frozen. What the
    /// log had of an epoch that was there when the pool was opened is stored by the checkpoint of that opening, which may fail.
    #[must_use]
    pub fn stored_after(&self, at: PointId) -> u64 {
        if !self.points.contains_key(&at) || is_planted(Bug::FoundVersionsSettled) && !self.made_at.contains_key(&at) {
            return 0;
        }
        self.made_at.get(&at).copied().unwrap_or_default() + 1
    }

    /// The frozen epoch that is being merged, else one that lives no more, the newest first, so that a row of them is
    /// merged leaf by leaf once; and what follows it. None of a tree that is held back.
    #[must_use]
    pub fn mergeable(
        &self,
        checkpoints_done: u64,
        is_held_back: impl Fn(TreeId) -> bool,
    ) -> Option<(PointRecord, Option<Follower>)> {
        if let Some(point) = self.merging().find(|point| !is_held_back(point.tree)) {
            return Some((*point, self.followers((point.tree, point.epoch)).first().copied()));
        }
        self.points.iter().rev().find_map(|(at, point)| {
            if self.named.contains_key(at) || !self.is_stored(*at, checkpoints_done) {
                return None;
            }
            let followers = self.followers(*at);
            let is_going = |follower: &Follower| matches!(follower, Follower::Child(tree) if !self.is_living(*tree));
            let is_free = followers.len() < 2 && !followers.iter().any(is_going);
            (is_free && !is_held_back(at.0)).then(|| (*point, followers.first().copied()))
        })
    }

    /// The frozen epochs whose merge has begun: one, and those whose merge ended at something that cannot be read.
    pub fn merging(&self) -> impl Iterator<Item = &PointRecord> {
        self.points.values().filter(|point| point.merge.is_some())
    }

    /// The first of a tree's parents; the tree itself if it has none.
    #[must_use]
    pub fn origin(&self, tree: TreeId) -> TreeId {
        self.origins(tree).last().copied().unwrap_or(tree)
    }

    /// Frozen epochs that live no more.
    pub(in crate::pool) fn dead_points(&self) -> impl Iterator<Item = &PointRecord> {
        let is_dead = |at: &PointId| !self.named.contains_key(at) && self.followers(*at).len() < 2;
        self.points.iter().filter(move |(at, _)| is_dead(at)).map(|(_, point)| point)
    }

    /// Whether there are frozen epochs that live no more.
    #[must_use]
    pub fn has_dead_points(&self) -> bool {
        self.dead_points().next().is_some()
    }

    /// Blocks that an epoch maps: what stored leaves hold, up to it.
    #[must_use]
    pub fn mapped_count(&self, at: PointId) -> u64 {
        let mut sum = 0_i64;
        let mut next = Some(at);
        while let Some((tree, epoch)) = next {
            let Some(record) = self.trees.get(&tree) else { break };
            if epoch >= record.epoch && !self.points.contains_key(&(tree, record.epoch)) {
                sum += record.held.mapped_delta;
            }
            let of_points = self.points.range((tree, Epoch::new(0))..=(tree, epoch));
            sum += of_points.map(|(_, point)| point.held.mapped_delta).sum::<i64>();
            next = record.parent;
        }
        u64::try_from(sum).unwrap_or_default()
    }

    /// What the stored leaves of an interval hold.
    #[must_use]
    pub fn held(&self, at: PointId) -> Option<HeldBlocks> {
        let of_point = self.points.get(&at).map(|point| point.held);
        of_point.or_else(|| self.trees.get(&at.0).filter(|tree| tree.epoch == at.1).map(|tree| tree.held))
    }

    /// Puts what an interval holds into an edit, on top of what that has for it already.
    pub(in crate::pool) fn put_held(&self, at: PointId, held: HeldBlocks, edit: &mut Edit) {
        if let Some(point) = self.points.get(&at) {
            edit.put_point(PointRecord { held, ..*point });
        } else if let Some(tree) = self.trees.get(&at.0) {
            edit.put_tree(crate::format::catalog::TreeRecord { held, ..*tree });
        }
    }
}
