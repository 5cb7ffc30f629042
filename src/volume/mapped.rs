//! Which parts of a volume are mapped: what a client asks before it copies a volume.
//!
//! The walk lists the leaves that there are, so that its cost follows what is mapped and not the size of the volume. It
//! loads them off the lane, some at a time, and keeps them out of the cache: a copy of a whole volume would evict what
//! others use.

use crate::disk::Disk;
use crate::error::{Error, ErrorKind, IoError, Result as ControlResult};
use crate::format::key;
use crate::format::leaf::SlotSet;
use crate::map::{Lineage, StoredLeaves};
use crate::meta::{MetaRead, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use crate::units::{BLOCK_SIZE_U64, BlockIndex, LEAF_ENTRIES, LEAF_ENTRIES_U64, LeafIndex, TreeId, ViewId};
use crate::volume::Volume;
use crate::volume::engine::{Engine, finish};
use crate::volume::request::{Completion, Done};
use crate::volume::write::check_range;
use futures_channel::oneshot;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Leaves that one step of a walk looks at.
const LEAVES_PER_STEP: usize = 32;
/// Leaves that a walk looks at before it ends: a GiB, if all of it is mapped.
const LEAVES_MAX: usize = 1024;
/// Runs that a walk finds before it ends; one more leaf may add [`LEAF_ENTRIES`].
const RUNS_MAX: usize = 32_768;

/// A run of bytes that are all mapped, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRun {
    /// Its length in bytes, never 0.
    pub size_bytes: u64,
    /// Whether blocks are mapped there; what is not reads as zeros.
    pub is_mapped: bool,
}

/// Where a walk puts what it found: runs from the start of its range on, without a gap. They cover at least a part of
/// the range.
pub type MapRuns = Rc<RefCell<Vec<MapRun>>>;

/// Mapped slots of a leaf, and what counted before they were looked up.
struct FoundLeaf {
    leaf: LeafIndex,
    slots: SlotSet,
    /// The version of the cache, by which a checkpoint is noticed that stores the head's own leaf.
    version: u64,
    /// Whether stored leaves had all that does not change in the volume.
    was_settled: bool,
}

impl<D: Disk + 'static> Engine<D> {
    /// Loads the leaves of a range into the cache, so that reads of it need no task. Ends after `LEAVES_MAX` of them.
    pub fn cache(self: &Rc<Self>, volume: &Arc<Volume>, (offset_bytes, len_bytes): (u64, u64), completion: Completion) {
        self.pool.count_request(self.lane);
        let done = Done::Frontend(completion);
        if let Err(error) = check_range(volume, offset_bytes, len_bytes) {
            return finish(&mut self.state.borrow_mut(), done, Err(error));
        }
        let (engine, volume) = (Rc::clone(self), Arc::clone(volume));
        self.spawn(done, async move {
            let blocks = blocks_of(offset_bytes..offset_bytes + len_bytes);
            let mut from = blocks.start;
            let mut leaf_count = 0;
            while from < blocks.end && leaf_count < LEAVES_MAX {
                let (leaves, next) = engine.next_leaves(&volume, from..blocks.end).await?;
                for found in &leaves {
                    engine.load_entries(&volume, found.leaf.first_block().get(), 1).await?;
                }
                leaf_count += leaves.len();
                from = next;
            }
            Ok(())
        });
    }

    /// Lists what is mapped in a range, which must not be empty. It may end before the range does; then the caller asks for
    /// the rest, if it wants that.
    pub(super) async fn walk(&self, volume: &Volume, range: Range<u64>) -> Result<Vec<MapRun>, IoError> {
        let blocks = blocks_of(range.clone());
        let mut runs = Runs { range, runs: Vec::new() };
        let mut from = blocks.start;
        let mut leaf_count = 0;
        while from < blocks.end && leaf_count < LEAVES_MAX && runs.runs.len() < RUNS_MAX {
            let (leaves, next) = self.next_leaves(volume, from..blocks.end).await?;
            leaf_count += leaves.len();
            for found in leaves {
                let first = found.leaf.first_block().get();
                let slots = self.mapped_slots(volume, found).await?;
                runs.push(from..first.max(from), false);
                from = from.max(first);
                while from < (first + LEAF_ENTRIES_U64).min(next) {
                    let is_mapped = slots.contains(BlockIndex::new(from).slot());
                    runs.push(from..from + 1, is_mapped);
                    from += 1;
                }
            }
            runs.push(from..next, false);
            from = next;
        }
        Ok(runs.runs)
    }

    /// The mapped slots of a leaf with the changes over it.
    async fn mapped_slots(&self, volume: &Volume, found: FoundLeaf) -> Result<SlotSet, IoError> {
        let mut slots = found.slots;
        let first = found.leaf.first_block();
        if !is_planted(Bug::WalkWithoutChanges) {
            self.pool.changes().of_range(volume.tree, volume.seen, (first, LEAF_ENTRIES), |index, change| {
                let slot = u8::try_from(index).expect("a leaf has 256 slots");
                if change.entry.is_some() { slots.insert(slot) } else { slots.remove(slot) }
            });
        }
        // A checkpoint may have stored changes that the look at the store came too early for, and dropped them since. Where
        // these are of parents or of a snapshot, no version tells: they must have been stored before the look.
        let is_overtaken = self.pool.leaves().version(volume.view, found.leaf) != found.version;
        let is_asked_late = is_planted(Bug::WalkAsksTooLate) && volume.is_settled(&self.pool);
        if is_overtaken || !(found.was_settled || is_asked_late) {
            let entries = self.load_entries(volume, first.get(), LEAF_ENTRIES).await?;
            slots = SlotSet::default();
            (0..=u8::MAX).zip(entries).filter(|(_, entry)| entry.is_some()).for_each(|(slot, _)| slots.insert(slot));
        }
        Ok(slots)
    }

    /// The next leaves of a range of blocks that may map something, in order, and the block to go on with.
    ///
    /// Changes first, stored leaves second: a checkpoint moves a leaf's changes the same way, so none is missed.
    async fn next_leaves(&self, volume: &Volume, blocks: Range<u64>) -> Result<(Vec<FoundLeaf>, u64), IoError> {
        let mut touched = BTreeSet::new();
        let mut end = blocks.end;
        let mut from = blocks.start;
        while let Some(leaf) = self.next_touched(volume, from..blocks.end) {
            touched.insert(leaf);
            from = leaf.first_block().get() + LEAF_ENTRIES_U64;
            if touched.len() == LEAVES_PER_STEP {
                end = from.min(blocks.end);
                break;
            }
        }
        let (sender, receiver) = oneshot::channel();
        let (pool, view, lineage) = (Arc::clone(&self.pool), volume.view, volume.lineage.get(&self.pool));
        let was_settled = volume.is_settled(&self.pool);
        self.blocking.run(Box::new(move || {
            // The task may be gone; then nobody wants the leaves.
            drop(sender.send(find_leaves(&pool, (view, &lineage, was_settled), touched, blocks.start..end)));
        }));
        receiver.await.map_err(|_| IoError::ShuttingDown)?.map_err(|error| {
            tracing::error!(%error, "listing leaves failed");
            IoError::Io
        })
    }
}

/// The blocks that a range of bytes touches.
fn blocks_of(range: Range<u64>) -> Range<u64> {
    range.start / BLOCK_SIZE_U64..range.end.div_ceil(BLOCK_SIZE_U64)
}

/// Adds the stored leaves of a range to those with changes, and looks all of them up, as far as a step goes; returns also
/// the block up to which the list is complete. Called off the lane.
fn find_leaves(
    pool: &Pool,
    (view, lineage, was_settled): (ViewId, &Lineage, bool),
    mut wanted: BTreeSet<LeafIndex>,
    blocks: Range<u64>,
) -> ControlResult<(Vec<FoundLeaf>, u64)> {
    // One view of all trees: a merge moves leaves from one to another.
    let mut listed = Ok(blocks.end);
    pool.view_of(lineage, &mut |store| listed = list_stored(store, lineage, &mut wanted, blocks.clone()));
    let end = listed?;
    let wanted: Vec<LeafIndex> = wanted.into_iter().filter(|leaf| leaf.first_block().get() < end).collect();
    // Before the view is made: what it does not see counts as overtaken.
    let versions: Vec<u64> = wanted.iter().map(|leaf| pool.leaves().version(view, *leaf)).collect();
    let mut leaves = Ok(Vec::new());
    pool.view_of(lineage, &mut |store| {
        let stored = StoredLeaves { store, keys: pool.keys() };
        let found = wanted.iter().zip(&versions).map(|(leaf, version)| {
            let cached = pool.leaves().look(view, *leaf, |packed| packed.present());
            let slots = cached.map_or_else(|| stored.resolve(lineage, *leaf).map(|leaf| leaf.present()), Ok)?;
            Ok(FoundLeaf { leaf: *leaf, slots, version: *version, was_settled })
        });
        leaves = found.collect::<ControlResult<Vec<FoundLeaf>>>();
    });
    Ok((leaves?, end))
}

/// Adds the stored leaves of a range; the block up to which the list is complete.
fn list_stored(
    store: &dyn MetaRead,
    lineage: &Lineage,
    wanted: &mut BTreeSet<LeafIndex>,
    blocks: Range<u64>,
) -> ControlResult<u64> {
    let last = BlockIndex::new(blocks.end - 1).leaf();
    let mut end = blocks.end;
    for (tree, _) in &lineage.0 {
        let mut leaf = BlockIndex::new(blocks.start).leaf();
        let mut count = 0;
        while let Some(found) = next_stored_leaf(store, *tree, leaf, last)? {
            wanted.insert(found);
            leaf = LeafIndex::new(found.get() + 1);
            count += 1;
            if count == LEAVES_PER_STEP {
                end = end.min(leaf.first_block().get());
                break;
            }
        }
    }
    Ok(end)
}

/// The first stored leaf of a tree from one to another, of whichever epoch.
fn next_stored_leaf(
    store: &dyn MetaRead,
    tree: TreeId,
    first: LeafIndex,
    last: LeafIndex,
) -> ControlResult<Option<LeafIndex>> {
    let found = store.seek(Table::Leaves, &key::tree_start(tree), &key::leaf_prefix(tree, first));
    let found = found.map_err(|error| Error::new(ErrorKind::Other, "Reading meta/ failed").with_source(error))?;
    let Some((found_key, _)) = found else { return Ok(None) };
    let (_, leaf, _) = key::parse_leaf(&found_key)
        .map_err(|error| Error::new(ErrorKind::Integrity, format!("A leaf's key in meta/ is damaged: {error}")))?;
    Ok((leaf <= last).then_some(leaf))
}

/// Runs under construction: blocks come in order, and are cut to the range of bytes.
struct Runs {
    range: Range<u64>,
    runs: Vec<MapRun>,
}

impl Runs {
    fn push(&mut self, blocks: Range<u64>, is_mapped: bool) {
        let start = (blocks.start * BLOCK_SIZE_U64).max(self.range.start);
        let end = (blocks.end * BLOCK_SIZE_U64).min(self.range.end);
        if start >= end {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if last.is_mapped == is_mapped => last.size_bytes += end - start,
            _ => self.runs.push(MapRun { size_bytes: end - start, is_mapped }),
        }
    }
}
