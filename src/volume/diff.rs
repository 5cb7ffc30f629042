//! Differences: where two snapshots or heads, of one volume or of different ones, have different blocks.
//!
//! **What is promised.** Every block whose content differs is told of. A block that is told of was written or discarded
//! since the two parted; it may have got the content again that it had before. A block that both are without is equal; so is
//! one that both map to the same place, with the same number. What is behind the end of the smaller one counts as absent. A
//! head is looked at while it is written to: of what is written meanwhile some may be told of and some not.
//!
//! **How.** The trees of both sides meet in one that they share, or nowhere. Up to where they part there, all that they see is
//! the same and never changes. So only leaves that were put since can differ: by the index of leaves by epoch these are
//! found one after the other, and with them those with changes in memory. Each is looked up for both sides, and compared.
//! That costs time by the number of such leaves, whatever the size of the volumes and what they map.
//!
//! **Why it is right while checkpoints go on.** A step takes what is in memory first, then a view of the store with the
//! catalog of the same instant: a checkpoint moves changes the same way, so none is missed, and merges move leaves between
//! trees together with the catalog's word for it. A step looks at a bounded number of leaves and begins with a new view.

use crate::error::{Error, ErrorKind, Result};
use crate::format::key;
use crate::map::{Lineage, StoredLeaves, TakenChanges};
use crate::meta::{MetaRead, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::{Catalog, Pool};
use crate::units::{BLOCK_SIZE_U64, BlockIndex, Epoch, LEAF_ENTRIES_U64, LeafIndex, TreeId};
use crate::volume::Volume;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::ops::Range;
use uuid::Uuid;

/// Bytes of a volume that a leaf maps.
const LEAF_BYTES: u64 = LEAF_ENTRIES_U64 * BLOCK_SIZE_U64;
/// Leaves of one epoch that are read from the index at once.
const PAGE: usize = 128;

/// One of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffSide {
    /// The volume.
    pub volume: Uuid,
    /// A snapshot's number; `None` is the head.
    pub snapshot: Option<u64>,
}

impl From<&Volume> for DiffSide {
    fn from(volume: &Volume) -> Self {
        Self { volume: volume.id(), snapshot: volume.snapshot_number() }
    }
}

/// How a block differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffKind {
    /// Only the second side has it.
    Added,
    /// Only the first side has it.
    Removed,
    /// Both have one, written at different times.
    Rewritten,
}

/// Bytes that differ in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffRun {
    /// Where they begin.
    pub offset_bytes: u64,
    /// How many, never 0.
    pub size_bytes: u64,
    /// In which way.
    pub kind: DiffKind,
}

/// What one step found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffStep {
    /// In order; neighbours differ in kind, or have something equal between them.
    pub runs: Vec<DiffRun>,
    /// Up to where the step came: the end of the range that was asked for, if it is done.
    pub end_bytes: u64,
    /// Leaves that were compared.
    pub leaf_count: usize,
}

/// Epochs of a tree, from one to another, of which one side alone sees what they wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    tree: TreeId,
    first: Epoch,
    last: Epoch,
    /// Whether stored leaves hold all of it, for ever.
    is_stored: bool,
}

/// Both sides as the catalog has them.
#[derive(Clone, PartialEq, Eq)]
struct Sides {
    from: Lineage,
    to: Lineage,
    segments: Vec<Segment>,
}

/// What was in memory before the view was made.
#[derive(Default)]
struct InMemory {
    /// Leaves that may differ by it.
    touched: BTreeSet<LeafIndex>,
    changes: TakenChanges,
}

/// Compares the first leaves of a range of bytes that may differ, about `leaf_count_max` of them, which must not be 0. Never
/// on a lane.
///
/// # Errors
/// [`ErrorKind::NotFound`] if a side is not there, or no more; the store's failure, or [`ErrorKind::Integrity`].
pub fn diff(
    pool: &Pool,
    (from, to): (DiffSide, DiffSide),
    range: Range<u64>,
    leaf_count_max: usize,
) -> Result<DiffStep> {
    let leaf_of = |offset_bytes: u64| LeafIndex::new(offset_bytes / LEAF_BYTES);
    loop {
        let done = pool.checkpoints_done();
        let sides = pool.with_catalog(|catalog, _| Sides::of(catalog, (from, to), done))?;
        let mut leaves = leaf_of(range.start)..leaf_of(range.end.next_multiple_of(LEAF_BYTES));
        let memory = in_memory(pool, &sides, &mut leaves, leaf_count_max);
        let same = |catalog: &Catalog| -> Result<bool> { Ok(Sides::of(catalog, (from, to), done)? == sides) };
        let found = pool.at_one_instant(same, |is_same, store| -> Result<Option<DiffStep>> {
            // A merge ended meanwhile: what was taken from memory may not be all that is needed.
            let is_same = is_same?;
            is_same.then(|| compare(pool, store, (&sides, &memory), leaves, leaf_count_max)).transpose()
        })?;
        if let Some(found) = found {
            return Ok(found.within(&range));
        }
    }
}

impl Sides {
    fn of(catalog: &Catalog, (from, to): (DiffSide, DiffSide), checkpoints_done: u64) -> Result<Self> {
        let (from, to) = (lineage_of(catalog, from)?, lineage_of(catalog, to)?);
        let segments = segments(&from, &to).into_iter();
        let with_state = segments.map(|segment| {
            let at = (segment.tree, segment.last);
            let is_stored = segment.last != Epoch::NEWEST && checkpoints_done >= catalog.stored_after(at);
            Segment { is_stored, ..segment }
        });
        let segments = with_state.collect();
        Ok(Self { from, to, segments })
    }

    /// Every tree of both sides with the epoch that they see, each once.
    fn levels(&self) -> BTreeSet<(TreeId, Epoch)> {
        self.from.0.iter().chain(&self.to.0).copied().collect()
    }
}

impl DiffStep {
    fn push(&mut self, block: BlockIndex, kind: DiffKind) {
        let offset_bytes = block.get() * BLOCK_SIZE_U64;
        match self.runs.last_mut() {
            Some(last) if last.kind == kind && last.offset_bytes + last.size_bytes == offset_bytes => {
                last.size_bytes += BLOCK_SIZE_U64;
            }
            _ => self.runs.push(DiffRun { offset_bytes, size_bytes: BLOCK_SIZE_U64, kind }),
        }
    }

    /// Cuts what is outside of a range of bytes.
    fn within(mut self, range: &Range<u64>) -> Self {
        self.end_bytes = self.end_bytes.min(range.end);
        self.runs.retain_mut(|run| {
            let end = (run.offset_bytes + run.size_bytes).min(range.end);
            run.offset_bytes = run.offset_bytes.max(range.start);
            run.size_bytes = end.saturating_sub(run.offset_bytes);
            run.size_bytes > 0
        });
        self
    }
}

fn lineage_of(catalog: &Catalog, side: DiffSide) -> Result<Lineage> {
    let at = match side.snapshot {
        Some(number) => catalog.snapshot_or_error((side.volume, number))?.point,
        None => {
            let gone = || Error::new(ErrorKind::NotFound, "The volume is gone").with_hint("See rok-blk ls");
            (catalog.volume(side.volume).ok_or_else(gone)?.tree, Epoch::NEWEST)
        }
    };
    Ok(catalog.lineage(at))
}

/// What only one of two lineages sees: whole trees before the first that both have, and there the epochs between.
fn segments(from: &Lineage, to: &Lineage) -> Vec<Segment> {
    let place_in_to = |tree: TreeId| to.0.iter().position(|(other, _)| *other == tree);
    let mut places = from.0.iter().enumerate();
    let met = places.find_map(|(place, (tree, _))| Some((place, place_in_to(*tree)?)));
    let (end_of_from, end_of_to) = met.unwrap_or((from.0.len(), to.0.len()));
    let whole = from.0[..end_of_from].iter().chain(&to.0[..end_of_to]);
    let segment = |tree, first, last| Segment { tree, first, last, is_stored: false };
    let mut segments: Vec<Segment> = whole.map(|(tree, epoch)| segment(*tree, Epoch::new(0), *epoch)).collect();
    if let Some((place_in_from, place_in_to)) = met {
        let ((tree, one), (_, other)) = (from.0[place_in_from], to.0[place_in_to]);
        let is_left_out = is_planted(Bug::DiffWithoutParents) && place_in_from + place_in_to > 0;
        if one != other && !is_left_out {
            segments.push(segment(tree, Epoch::new(one.min(other).get() + 1), one.max(other)));
        }
    }
    segments
}

/// Takes what is in memory of the first leaves of a range; shortens that to where it took all.
fn in_memory(pool: &Pool, sides: &Sides, leaves: &mut Range<LeafIndex>, leaf_count_max: usize) -> InMemory {
    let mut memory = InMemory::default();
    for segment in sides.segments.iter().filter(|segment| !segment.is_stored) {
        let epochs = segment.first..=segment.last;
        let touched = pool.changes().touched((segment.tree, epochs), leaves.clone(), leaf_count_max);
        if let Some(last) = touched.last().filter(|_| touched.len() == leaf_count_max) {
            leaves.end = LeafIndex::new(last.get() + 1);
        }
        memory.touched.extend(touched);
    }
    memory.touched.retain(|leaf| *leaf < leaves.end);
    let levels = sides.levels();
    for leaf in &memory.touched {
        for level in &levels {
            memory.changes.take(pool.changes(), *leaf, *level);
        }
    }
    memory
}

/// Compares what both sides see of some leaves of a range.
fn compare(
    pool: &Pool,
    store: &dyn MetaRead,
    (sides, memory): (&Sides, &InMemory),
    range: Range<LeafIndex>,
    leaf_count_max: usize,
) -> Result<DiffStep> {
    let mut walk = IndexWalk::new(store, &sides.segments, range.clone())?;
    let mut leaves = memory.touched.clone();
    let mut end = range.end;
    let mut stored_count = 0;
    while let Some(leaf) = walk.next()? {
        leaves.insert(leaf);
        stored_count += 1;
        if stored_count == leaf_count_max {
            end = LeafIndex::new(leaf.get() + 1);
            break;
        }
    }
    let stored = StoredLeaves { store, keys: pool.keys() };
    let mut step = DiffStep { end_bytes: end.get() * LEAF_BYTES, ..DiffStep::default() };
    for leaf in leaves.range(..end) {
        let before = memory.changes.leaf_of(&stored, &sides.from, *leaf)?;
        let after = memory.changes.leaf_of(&stored, &sides.to, *leaf)?;
        step.leaf_count += 1;
        for slot in 0..=u8::MAX {
            let kind = match (before.get(slot), after.get(slot)) {
                (one, other) if one == other => continue,
                (None, _) => DiffKind::Added,
                (_, None) => DiffKind::Removed,
                _ => DiffKind::Rewritten,
            };
            step.push(leaf.first_block().plus(u64::from(slot)), kind);
        }
    }
    Ok(step)
}

/// The leaves of an epoch, from the index, some in memory.
struct EpochLeaves {
    tree: TreeId,
    epoch: Epoch,
    page: VecDeque<LeafIndex>,
    /// Where the next page begins; `None` if there is none.
    next: Option<LeafIndex>,
}

/// The leaves that some epochs put, in order, each once.
struct IndexWalk<'a> {
    store: &'a dyn MetaRead,
    end: LeafIndex,
    epochs: Vec<EpochLeaves>,
    /// The first leaf of each epoch that has one left.
    heads: BinaryHeap<Reverse<(LeafIndex, usize)>>,
}

impl<'a> IndexWalk<'a> {
    fn new(store: &'a dyn MetaRead, segments: &[Segment], range: Range<LeafIndex>) -> Result<Self> {
        let mut walk = Self { store, end: range.end, epochs: Vec::new(), heads: BinaryHeap::new() };
        for segment in segments {
            walk.add_epochs(segment, range.start)?;
        }
        Ok(walk)
    }

    /// Adds the epochs of a segment that put leaves, each by one look at the index or two.
    fn add_epochs(&mut self, segment: &Segment, start: LeafIndex) -> Result<()> {
        let tree = segment.tree;
        let end = match segment.last {
            Epoch::NEWEST => key::tree_end(tree),
            last => key::epoch_leaf(tree, Epoch::new(last.get() + 1), LeafIndex::new(0)),
        };
        let mut epoch = segment.first;
        while let Some((found, leaf)) = self.index((tree, epoch), start, (&end, 1))?.first().copied() {
            let is_in_range = leaf >= start;
            if is_in_range && leaf < self.end {
                self.epochs.push(EpochLeaves { tree, epoch: found, page: VecDeque::new(), next: Some(start) });
                self.advance(self.epochs.len() - 1)?;
            }
            // An epoch whose first leaves are before the range may have some in it: it is looked at once more.
            epoch = if is_in_range { Epoch::new(found.get() + 1) } else { found };
        }
        Ok(())
    }

    /// The next leaf.
    fn next(&mut self) -> Result<Option<LeafIndex>> {
        let Some(Reverse((leaf, _))) = self.heads.peek().copied() else { return Ok(None) };
        while let Some(Reverse((_, place))) = self.heads.peek().copied().filter(|head| head.0.0 == leaf) {
            self.heads.pop();
            self.advance(place)?;
        }
        Ok(Some(leaf))
    }

    /// Puts the next leaf of an epoch among the heads.
    fn advance(&mut self, place: usize) -> Result<()> {
        let of = &self.epochs[place];
        if of.page.is_empty()
            && let Some(start) = of.next
        {
            let end = key::epoch_leaf(of.tree, of.epoch, self.end);
            let found = self.index((of.tree, of.epoch), start, (&end, PAGE))?;
            let next = found.last().filter(|_| found.len() == PAGE).map(|(_, leaf)| LeafIndex::new(leaf.get() + 1));
            let of = &mut self.epochs[place];
            of.page.extend(found.into_iter().map(|(_, leaf)| leaf));
            of.next = next;
        }
        if let Some(leaf) = self.epochs[place].page.pop_front() {
            self.heads.push(Reverse((leaf, place)));
        }
        Ok(())
    }

    /// What the index has from a leaf of an epoch on, up to a key, at most so many.
    fn index(
        &self,
        (tree, epoch): (TreeId, Epoch),
        start: LeafIndex,
        (end, count_max): (&[u8], usize),
    ) -> Result<Vec<(Epoch, LeafIndex)>> {
        let from = key::epoch_leaf(tree, epoch, start);
        if from.as_slice() >= end {
            return Ok(Vec::new());
        }
        let found = self.store.scan(Table::EpochLeaves, &from, end, count_max);
        let found = found
            .map_err(|error| Error::new(ErrorKind::Other, "Reading the index of leaves failed").with_source(error))?;
        let parse = |(index_key, _): (Vec<u8>, Vec<u8>)| {
            key::parse_epoch_leaf(&index_key).map(|(_, epoch, leaf)| (epoch, leaf)).map_err(|error| {
                Error::new(ErrorKind::Integrity, format!("The index of leaves of tree {tree} is damaged: {error}"))
            })
        };
        found.into_iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(levels: &[(u64, u64)]) -> Lineage {
        Lineage(levels.iter().map(|(tree, epoch)| (TreeId::new(*tree), Epoch::new(*epoch))).collect())
    }

    /// Tree, first and last epoch of each segment.
    fn found(from: &[(u64, u64)], to: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
        let segments = segments(&lineage(from), &lineage(to));
        segments.iter().map(|segment| (segment.tree.get(), segment.first.get(), segment.last.get())).collect()
    }

    #[test]
    fn epochs_of_one_tree_differ_by_what_is_between() {
        assert_eq!(found(&[(1, 3)], &[(1, 7)]), [(1, 4, 7)]);
        assert_eq!(found(&[(1, u64::MAX)], &[(1, 3)]), [(1, 4, u64::MAX)]);
        assert_eq!(found(&[(2, 5), (1, 3)], &[(2, 5), (1, 3)]), []);
    }

    #[test]
    fn a_clone_and_its_origin_differ_by_all_of_the_clone_and_what_the_origin_did_since() {
        assert_eq!(found(&[(2, 9), (1, 3)], &[(1, 5)]), [(2, 0, 9), (1, 4, 5)]);
        assert_eq!(found(&[(1, 3)], &[(2, 9), (1, 3)]), [(2, 0, 9)]);
    }

    #[test]
    fn clones_of_clones_meet_in_the_first_tree_that_both_have() {
        let one = [(5, 2), (3, 4), (1, 8)];
        assert_eq!(found(&one, &[(4, 6), (3, 2), (1, 8)]), [(5, 0, 2), (4, 0, 6), (3, 3, 4)]);
        assert_eq!(found(&one, &[(2, 6), (1, 8)]), [(5, 0, 2), (3, 0, 4), (2, 0, 6)]);
    }

    #[test]
    fn what_has_no_tree_in_common_differs_by_everything() {
        assert_eq!(found(&[(1, 2)], &[(4, 6), (3, 1)]), [(1, 0, 2), (4, 0, 6), (3, 0, 1)]);
    }

    #[test]
    fn neighbours_that_differ_in_the_same_way_are_one_run() {
        use DiffKind::{Added, Removed};
        let mut step = DiffStep::default();
        for (block, kind) in [(3, Added), (4, Added), (5, Added), (6, Removed), (8, Removed)] {
            step.push(BlockIndex::new(block), kind);
        }

        let run = |first: u64, blocks: u64, kind| DiffRun {
            offset_bytes: first * BLOCK_SIZE_U64,
            size_bytes: blocks * BLOCK_SIZE_U64,
            kind,
        };
        assert_eq!(step.runs, [run(3, 3, Added), run(6, 1, Removed), run(8, 1, Removed)]);
    }
}
