//! Moving blocks for the cleaner: what heads map in a group of addresses is written anew, elsewhere, by ordinary writes.
//!
//! The group is read in one go, without a lock. Under the lock of its range each block is moved only if the head still maps
//! that very address; its mac tells that what was read is what the entry is about. So nothing newer is overwritten, and what
//! only snapshots map stays.

use crate::disk::{Disk, IoBuffer};
use crate::error::IoError;
use crate::format::entry::Entry;
use crate::planted::{Bug, is_planted};
use crate::pool::AddressGroup;
use crate::units::{Address, AddressRun, BlockIndex, LEAF_ENTRIES_U64, Sequence, blocks_to_bytes, to_u64, to_usize};
use crate::volume::engine::Engine;
use crate::volume::range_lock::BlockRange;
use crate::volume::read::open_blocks;
use crate::volume::request::{Completion, Done, Part, PartKind};
use crate::volume::{Volume, Volumes};
use futures_channel::oneshot;
use std::rc::Rc;
use std::sync::Arc;

/// Consecutive addresses that were written for consecutive blocks of one leaf.
struct OwnedRun {
    volume: Arc<Volume>,
    block: BlockIndex,
    start: Address,
    count: u64,
    /// What the head mapped when it was looked at, before anything was locked or read.
    early: Vec<Option<Entry>>,
}

/// What was read of a group.
struct GroupContent {
    start: Address,
    buffer: IoBuffer,
}

/// Of which volume how many blocks are being moved, and what tells how that ended.
type Answer = (Arc<Volume>, u64, oneshot::Receiver<Result<(), IoError>>);

impl<D: Disk + 'static> Engine<D> {
    /// Moves what heads map in a group of addresses elsewhere. Blocks that were replaced or removed meanwhile, and damaged
    /// ones, stay where they are. The writes take nothing of the reserve and never wait for space: the completion says
    /// [`IoError::NoSpace`] if there was not enough.
    pub fn clean(self: &Rc<Self>, volumes: &Arc<Volumes>, group: AddressGroup, completion: Completion) {
        let (engine, volumes) = (Rc::clone(self), Arc::clone(volumes));
        self.spawn(Done::Frontend(completion), async move { engine.move_group(volumes, group).await });
    }

    async fn move_group(self: &Rc<Self>, volumes: Arc<Volumes>, group: AddressGroup) -> Result<(), IoError> {
        self.pool.check_writable()?;
        let runs = self.with_entries(self.owned_runs(volumes, group).await?).await?;
        let Some(content) = self.read_runs(&runs).await? else { return Ok(()) };
        let mut pending = Vec::new();
        let mut result = Ok(());
        for run in &runs {
            match self.move_run(run, &content, &mut pending).await {
                Ok(()) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        // All of them, also after an error: nothing may be written behind the answer.
        for (volume, count, answer) in pending {
            let moved = answer.await.unwrap_or(Err(IoError::ShuttingDown));
            self.pool.count_moved(if moved.is_ok() { count } else { 0 });
            // What was to be moved is nobody's any more: no failure.
            result = if volume.gate.is_retired() { result } else { result.and(moved) };
        }
        result
    }

    /// What volumes own in the group, in the order of their trees and blocks, which is that of the range locks.
    async fn owned_runs(&self, volumes: Arc<Volumes>, group: AddressGroup) -> Result<Vec<OwnedRun>, IoError> {
        let (sender, receiver) = oneshot::channel();
        let pool = Arc::clone(&self.pool);
        self.blocking.run(Box::new(move || {
            let found = pool.owners_of(group).map(|owners| {
                let with_volume =
                    owners.into_iter().filter_map(|(start, run)| Some((volumes.head(run.tree)?, start, run)));
                with_volume.collect::<Vec<_>>()
            });
            // The task may be gone; then nobody moves anything.
            drop(sender.send(found));
        }));
        let found = receiver.await.map_err(|_| IoError::ShuttingDown)?.map_err(|error| {
            tracing::error!(%error, "looking owners up failed");
            IoError::Io
        })?;
        let mut runs = Vec::new();
        for (volume, start, run) in found {
            let mut done = 0;
            while done < u64::from(run.count) {
                let block = run.block.plus(done);
                let in_leaf = LEAF_ENTRIES_U64 - block.get() % LEAF_ENTRIES_U64;
                let count = in_leaf.min(u64::from(run.count) - done);
                let (volume, start) = (Arc::clone(&volume), start.plus(done));
                runs.push(OwnedRun { volume, block, start, count, early: Vec::new() });
                done += count;
            }
        }
        runs.sort_by_key(|run| (run.volume.tree, run.block));
        Ok(runs)
    }

    /// The runs of which something can be moved, with their entries. Before the lock, so that nobody waits for a leaf that
    /// has to be loaded; and before the read, which is for nothing where snapshots map all there is.
    async fn with_entries(&self, runs: Vec<OwnedRun>) -> Result<Vec<OwnedRun>, IoError> {
        let mut movable = Vec::new();
        let mut unreadable = None;
        for run in runs {
            let leaf = Some((run.volume.tree, run.block.get() / LEAF_ENTRIES_U64));
            if leaf == unreadable {
                continue;
            }
            let early = match self.load_entries(&run.volume, run.block.get(), to_usize(run.count)).await {
                Ok(early) => early,
                // It was reported; the others of the group need not stay for that leaf.
                Err(IoError::Io) if self.pool.check_writable().is_ok() => {
                    unreadable = leaf;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !runs_in_place(&early, run.start, run.volume.own_from()).is_empty() {
                movable.push(OwnedRun { early, ..run });
            }
        }
        Ok(movable)
    }

    /// Reads from the first to the last address of the runs.
    async fn read_runs(&self, runs: &[OwnedRun]) -> Result<Option<GroupContent>, IoError> {
        let Some(start) = runs.iter().map(|run| run.start).min() else { return Ok(None) };
        let ends = runs.iter().map(|run| run.start.block() + run.count);
        let count = ends.max().unwrap_or_default() - start.block();
        let buffer = IoBuffer::allocate(blocks_to_bytes(to_usize(count)));
        self.read_device(AddressRun { start, count }, &buffer).await?;
        Ok(Some(GroupContent { start, buffer }))
    }

    /// Moves the parts of a run that the head maps there.
    async fn move_run(
        self: &Rc<Self>,
        run: &OwnedRun,
        content: &GroupContent,
        pending: &mut Vec<Answer>,
    ) -> Result<(), IoError> {
        for (first, count) in runs_in_place(&run.early, run.start, run.volume.own_from()) {
            let range = BlockRange { tree: run.volume.tree, block: run.block.plus(first), count };
            self.lock_for_task(range).await?;
            let early = &run.early[to_usize(first)..][..to_usize(u64::from(count))];
            match self.open_in_place(run, range, early, content).await {
                Ok(Some(blocks)) => pending.push(self.start_move(&run.volume, range, blocks)),
                other => {
                    self.locks.unlock(range, &self.pool);
                    other?;
                }
            }
        }
        Ok(())
    }

    /// The plain blocks of a locked range, if its head maps all of them in their old places and they are sound.
    async fn open_in_place(
        &self,
        run: &OwnedRun,
        range: BlockRange,
        early: &[Option<Entry>],
        content: &GroupContent,
    ) -> Result<Option<IoBuffer>, IoError> {
        let count = to_u64(early.len());
        let start = run.start.plus(range.block.get() - run.block.get());
        let mut entries = self.load_entries(&run.volume, range.block.get(), early.len()).await?;
        if is_planted(Bug::MoveTrustsEarlyLook) {
            entries = early.to_vec();
        }
        if runs_in_place(&entries, start, run.volume.own_from()) != [(0, range.count)] {
            return Ok(None);
        }
        let blocks = IoBuffer::allocate(blocks_to_bytes(early.len()));
        let from = blocks_to_bytes(to_usize(start.block() - content.start.block()));
        let source = content.buffer.slice(from..from + blocks.len());
        source.with_bytes(|source| blocks.with_bytes_mut(|target| target.copy_from_slice(source)));
        let state = &mut *self.state.borrow_mut();
        let failed = open_blocks(&self.pool, &mut state.ciphers, &run.volume, &entries, &blocks);
        if failed.is_empty() {
            return Ok(Some(blocks));
        }
        tracing::warn!(volume = %run.volume.id(), address = %start, count, "blocks to be moved do not match their macs");
        Ok(None)
    }

    /// Writes the blocks of a range, which is locked already, to another place; the part unlocks it.
    fn start_move(&self, volume: &Arc<Volume>, range: BlockRange, blocks: IoBuffer) -> Answer {
        let part = Part { is_move: true, ..Part::new(0, volume, range, PartKind::Write(blocks)) };
        (Arc::clone(volume), u64::from(range.count), self.start_part(part, None))
    }
}

/// First index and count of the blocks whose entries are where a run that starts at `start` has them, and that nothing but
/// the head maps.
fn runs_in_place(entries: &[Option<Entry>], start: Address, own_from: Sequence) -> Vec<(u64, u32)> {
    let mut runs: Vec<(u64, u32)> = Vec::new();
    for (index, entry) in (0..).zip(entries) {
        if entry.is_none_or(|entry| entry.address() != start.plus(index) || entry.sequence() < own_from) {
            continue;
        }
        match runs.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == index => *count += 1,
            _ => runs.push((index, 1)),
        }
    }
    runs
}
