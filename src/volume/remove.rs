//! Discard and write-zeroes: logged removals of what is mapped, leaf by leaf, in steps of bounded length.
//!
//! A leaf that maps nothing is skipped without a look at its blocks, so the cost follows what is mapped, not
//! the length of the range.

use crate::disk::{Disk, IoBuffer};
use crate::error::IoError;
use crate::format::key;
use crate::meta::Table;
use crate::planted::{Bug, is_planted};
use crate::units::{BLOCK_SIZE_U64, BlockIndex, LEAF_ENTRIES_U64, LeafIndex, to_u64, to_usize};
use crate::volume::Volume;
use crate::volume::engine::{Engine, finish};
use crate::volume::partial::BlockChange;
use crate::volume::range_lock::BlockRange;
use crate::volume::request::{Completion, Done, Part, PartKind, RemoveMode};
use futures_channel::oneshot;
use std::rc::Rc;
use std::sync::Arc;

/// Leaves whose removals are under way at once.
const LEAVES_PER_STEP: usize = 32;
/// Zeros that one write of a provisioned range takes.
const ZEROS_BYTES: usize = 1 << 20;

impl<D: Disk + 'static> Engine<D> {
    /// Discards a range or makes it read as zeros.
    pub fn remove(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        (offset_bytes, len_bytes): (u64, u64),
        mode: RemoveMode,
        is_fua: bool,
        completion: Completion,
    ) {
        self.pool.count_request(self.lane);
        let done = Done::Frontend(completion);
        if let Err(error) = self.check(volume, offset_bytes, len_bytes) {
            return finish(&mut self.state.borrow_mut(), done, Err(error));
        }
        let (engine, volume) = (Rc::clone(self), Arc::clone(volume));
        self.spawn(done, async move {
            let range = offset_bytes..offset_bytes + len_bytes;
            match mode {
                RemoveMode::ZeroProvisioned => engine.write_zeros(&volume, range, completion).await?,
                RemoveMode::Zero => engine.zero(&volume, range, completion).await?,
                RemoveMode::Discard => engine.remove_whole_blocks(&volume, range).await?,
            }
            if is_fua { engine.flush_for_task().await } else { Ok(()) }
        });
    }

    async fn write_zeros(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        range: std::ops::Range<u64>,
        request: Completion,
    ) -> Result<(), IoError> {
        let zeros = IoBuffer::allocate(ZEROS_BYTES);
        let mut offset = range.start;
        while offset < range.end {
            let len = to_usize(range.end - offset).min(ZEROS_BYTES - to_usize(offset % BLOCK_SIZE_U64));
            let (answer, receiver) = oneshot::channel();
            let done = Done::Task { answer, request: Some(request) };
            self.write_for(volume, offset, zeros.slice(0..len), false, done);
            receiver.await.map_err(|_| IoError::ShuttingDown)??;
            offset += to_u64(len);
        }
        Ok(())
    }

    async fn zero(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        range: std::ops::Range<u64>,
        request: Completion,
    ) -> Result<(), IoError> {
        let first_whole = range.start.next_multiple_of(BLOCK_SIZE_U64).min(range.end);
        let last_whole = (range.end / BLOCK_SIZE_U64 * BLOCK_SIZE_U64).max(first_whole);
        for edge in [range.start..first_whole, last_whole..range.end] {
            let is_left = edge.is_empty() || is_planted(Bug::ZeroesLeaveEnds);
            if !is_left && self.is_mapped(volume, edge.start / BLOCK_SIZE_U64).await? {
                let (offset_bytes, len_bytes) = (edge.start, to_usize(edge.end - edge.start));
                let change = BlockChange { offset_bytes, len_bytes, request: Some(request), has_waited: false };
                let news = self.pool.space_news();
                let receiver = self.merge_block(volume, change, |bytes| bytes.fill(0)).await?;
                match receiver.await.map_err(|_| IoError::ShuttingDown)? {
                    // A discard was between the look and the lock.
                    Err(IoError::NoSpace) => {
                        self.merge_with_space(volume, change, |bytes| bytes.fill(0), news).await?;
                    }
                    answer => answer?,
                }
            }
        }
        self.remove_whole_blocks(volume, first_whole..last_whole).await
    }

    async fn is_mapped(&self, volume: &Volume, block: u64) -> Result<bool, IoError> {
        Ok(self.load_entries(volume, block, 1).await?[0].is_some())
    }

    /// Removes the blocks that lie wholly in the range.
    async fn remove_whole_blocks(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        range: std::ops::Range<u64>,
    ) -> Result<(), IoError> {
        let mut block = range.start.div_ceil(BLOCK_SIZE_U64);
        let end = range.end / BLOCK_SIZE_U64;
        while block < end {
            let (leaves, next) = self.mapped_leaves(volume, block..end).await?;
            let mut pending = Vec::new();
            for leaf in leaves {
                pending.extend(self.remove_in_leaf(volume, leaf, block..end).await?);
            }
            for receiver in pending {
                receiver.await.map_err(|_| IoError::ShuttingDown)??;
            }
            block = next;
        }
        Ok(())
    }

    /// The next leaves of the range that may map something, and the block to go on with.
    ///
    /// Changes first, stored leaves second: a checkpoint moves a leaf's changes the same way, so none is missed.
    async fn mapped_leaves(
        &self,
        volume: &Volume,
        blocks: std::ops::Range<u64>,
    ) -> Result<(Vec<LeafIndex>, u64), IoError> {
        let mut leaves = Vec::new();
        let mut touched_end = blocks.end;
        let mut from = blocks.start;
        while let Some(leaf) = self.next_touched(volume, from..blocks.end) {
            leaves.push(leaf);
            from = leaf.first_block().get() + LEAF_ENTRIES_U64;
            if leaves.len() == LEAVES_PER_STEP {
                touched_end = from.min(blocks.end);
                break;
            }
        }
        let (first, last) = (BlockIndex::new(blocks.start).leaf(), BlockIndex::new(touched_end - 1).leaf());
        let (stored, stored_end) = self.stored_leaves(volume, first, last).await?;
        leaves.extend(stored);
        leaves.sort_unstable();
        leaves.dedup();
        let end = stored_end.min(touched_end);
        leaves.retain(|leaf| leaf.first_block().get() < end);
        Ok((leaves, end))
    }

    /// Stored leaves of the volume from one to another, in order, and the block up to which the list is complete.
    async fn stored_leaves(
        &self,
        volume: &Volume,
        first: LeafIndex,
        last: LeafIndex,
    ) -> Result<(Vec<LeafIndex>, u64), IoError> {
        let (sender, receiver) = oneshot::channel();
        let (pool, lineage) = (Arc::clone(&self.pool), volume.lineage.get(&self.pool));
        self.blocking.run(Box::new(move || {
            let mut found = Ok(Vec::new());
            // One view of all trees: a merge moves leaves from one to another.
            pool.view_of(&lineage, &mut |store| {
                let scan = |tree| {
                    let from = key::leaf_prefix(tree, first);
                    let end = key::leaf_prefix(tree, LeafIndex::new(last.get() + 1));
                    store.scan(Table::Leaves, &from, &end, LEAVES_PER_STEP)
                };
                found = lineage.0.iter().map(|(tree, _)| scan(*tree)).collect::<Result<Vec<_>, _>>();
            });
            // The task may be gone; then nobody wants the list.
            drop(sender.send(found));
        }));
        let found = receiver.await.map_err(|_| IoError::ShuttingDown)?.map_err(|error| {
            tracing::error!(%error, "listing leaves failed");
            IoError::Io
        })?;
        let mut limit = u64::MAX;
        let mut leaves = Vec::new();
        for of_tree in found {
            let is_cut = of_tree.len() == LEAVES_PER_STEP;
            for (leaf_key, _) in of_tree {
                let (_, leaf, _) = key::parse_leaf(&leaf_key).map_err(|_| IoError::Io)?;
                leaves.push(leaf);
            }
            if let Some(last) = leaves.last().filter(|_| is_cut) {
                limit = limit.min(last.first_block().get() + LEAF_ENTRIES_U64);
            }
        }
        Ok((leaves, limit))
    }

    /// Removes what a leaf maps in the range; `None` if that is nothing.
    async fn remove_in_leaf(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        leaf: LeafIndex,
        blocks: std::ops::Range<u64>,
    ) -> Result<Option<oneshot::Receiver<Result<(), IoError>>>, IoError> {
        let first = leaf.first_block().get().max(blocks.start);
        let end = (leaf.first_block().get() + LEAF_ENTRIES_U64).min(blocks.end);
        let count = u32::try_from(end - first).expect("a leaf has 256 blocks");
        let range = BlockRange { tree: volume.tree, block: BlockIndex::new(first), count };
        self.lock_for_task(range).await?;
        let entries = self.load_entries(volume, first, to_usize(end - first)).await;
        let runs = entries.map(|entries| mapped_runs(entries.iter().map(Option::is_some)));
        match runs {
            Ok(runs) if !runs.is_empty() => {
                Ok(Some(self.start_part(Part::new(0, volume, range, PartKind::Remove(runs)), None)))
            }
            other => {
                self.locks.unlock(range, &self.pool);
                other.map(|_| None)
            }
        }
    }
}

/// Runs of mapped blocks: offset and count.
fn mapped_runs(mapped: impl Iterator<Item = bool>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (offset, is_mapped) in (0..).zip(mapped) {
        match runs.last_mut() {
            Some((start, count)) if is_mapped && *start + *count == offset => *count += 1,
            _ if is_mapped => runs.push((offset, 1)),
            _ => {}
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each removal takes room in the log, and the discard of a whole leaf is one.
    #[test]
    fn mapped_neighbours_are_one_removal() {
        let mapped = [false, true, true, true, false, true];

        assert_eq!(mapped_runs(mapped.into_iter()), [(1, 3), (5, 1)]);
    }
}
