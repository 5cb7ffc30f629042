//! The read path: changes, then leaf; neighbouring addresses in one device read; each block verified, then decrypted.
//!
//! A read whose leaves are cached takes no task. Anything else (a missing leaf, an unaligned edge, a block that was
//! moved while it was read) is done by a task, which looks the map up again until its answer holds.

use crate::crypto::CipherCache;
use crate::disk::{Disk, DiskOp, IoBuffer};
use crate::error::IoError;
use crate::format::entry::Entry;
use crate::format::leaf::Leaf;
use crate::map::{StoredLeaf, StoredLeaves};
use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use crate::units::{
    AddressRun, BLOCK_SIZE, BLOCK_SIZE_U64, BlockIndex, Epoch, LEAF_ENTRIES_U64, LeafIndex, TreeId, blocks_to_bytes,
    to_u64, to_usize,
};
use crate::volume::Volume;
use crate::volume::engine::{Engine, finish};
use crate::volume::request::{Completion, Done, Operation, Read};
use crate::volume::write::check_range;
use futures_channel::oneshot;
use std::rc::Rc;
use std::sync::Arc;

/// Times that a read looks the map up again because its blocks were replaced meanwhile.
const LOOKUPS_MAX: u32 = 1000;

/// Blocks of one device read. A larger request becomes several, so that the first are decrypted while the device is at
/// the next.
const RUN_BLOCKS_MAX: u64 = 64;

impl<D: Disk + 'static> Engine<D> {
    /// Fills `target` from `offset_bytes` on. Absent blocks are zeros.
    pub fn read(self: &Rc<Self>, volume: &Arc<Volume>, offset_bytes: u64, target: IoBuffer, completion: Completion) {
        self.pool.count_request(self.lane);
        let done = Done::Frontend(completion);
        if let Err(error) = check_range(volume, offset_bytes, to_u64(target.len())) {
            return finish(&mut self.state.borrow_mut(), done, Err(error));
        }
        if !offset_bytes.is_multiple_of(BLOCK_SIZE_U64) || !target.len().is_multiple_of(BLOCK_SIZE) {
            let task = read_unaligned(Rc::clone(self), Arc::clone(volume), offset_bytes, target);
            return self.spawn(done, task);
        }
        let first_block = offset_bytes / BLOCK_SIZE_U64;
        let count = target.len() / BLOCK_SIZE;
        let mut entries = self.state.borrow_mut().spare_entries.pop().unwrap_or_default();
        if self.fill_cached_entries(volume, BlockIndex::new(first_block), count, &mut entries).is_none() {
            return self.read_by_task(Arc::clone(volume), first_block, target, done);
        };
        zero_holes(&entries, &target);
        let run_count = device_runs(&entries).count();
        let state = &mut *self.state.borrow_mut();
        if run_count == 0 {
            state.keep_entries(entries);
            return finish(state, done, Ok(()));
        }
        let device_reads_left = u32::try_from(run_count).expect("a request is bounded by the frontends");
        let volume = Arc::clone(volume);
        let target_of = target.clone();
        let (is_doubtful, result) = (false, Ok(()));
        let read = Read { done, volume, first_block, target, entries, device_reads_left, is_doubtful, result };
        let slot = state.reads.insert(read);
        let read = u32::try_from(slot).expect("a lane has far fewer than 2^32 reads");
        for (first, run) in device_runs(&state.reads[slot].entries) {
            let count = to_usize(run.count);
            let token = to_u64(state.operations.insert(Operation::Read { read, first, count }));
            let target = target_of.slice(blocks_to_bytes(first)..blocks_to_bytes(first + count)).lend_to_device();
            let (device, offset_bytes) = (run.start.device(), run.start.offset_bytes());
            state.disk.submit(token, DiskOp::Read { device, offset_bytes, target });
        }
    }

    fn read_by_task(self: &Rc<Self>, volume: Arc<Volume>, first_block: u64, target: IoBuffer, done: Done) {
        let engine = Rc::clone(self);
        self.spawn(done, async move { engine.read_blocks(&volume, first_block, &target).await });
    }

    /// One device read of a [`Read`] is done: its blocks are verified and decrypted, while the device may still be at
    /// the others.
    pub(super) fn device_read_done(
        self: &Rc<Self>,
        (index, first, count): (u32, usize, usize),
        result: std::io::Result<()>,
    ) {
        let state = &mut *self.state.borrow_mut();
        let slot = to_usize(u64::from(index));
        let read = &mut state.reads[slot];
        if let Err(error) = result {
            tracing::error!(%error, "reading a device failed");
            read.result = Err(IoError::Io);
        } else if read.result.is_ok() && !read.is_doubtful {
            state.decrypt_budget = state.decrypt_budget.saturating_sub(count);
            let target = read.target.slice(blocks_to_bytes(first)..blocks_to_bytes(first + count));
            let entries = &read.entries[first..first + count];
            // A block was replaced, and its place reused, while it was read; or it is damaged.
            read.is_doubtful = !open_blocks(&self.pool, &mut state.ciphers, &read.volume, entries, &target).is_empty();
        }
        read.device_reads_left -= 1;
        if read.device_reads_left > 0 {
            return;
        }
        let mut read = state.reads.remove(slot);
        state.keep_entries(std::mem::take(&mut read.entries));
        if read.is_doubtful && read.result.is_ok() {
            state.spawn_later.push((read.volume, read.first_block, read.target, read.done));
        } else {
            finish(state, read.done, read.result);
        }
    }

    /// Starts the tasks of reads that need one.
    pub(super) fn spawn_rereads(self: &Rc<Self>) {
        let later = std::mem::take(&mut self.state.borrow_mut().spawn_later);
        for (volume, first_block, target, done) in later {
            self.read_by_task(volume, first_block, target, done);
        }
    }

    /// Fills `target` with whole blocks, loading what leaves it needs.
    pub(super) async fn read_blocks(
        &self,
        volume: &Volume,
        first_block: u64,
        target: &IoBuffer,
    ) -> Result<(), IoError> {
        let count = target.len() / BLOCK_SIZE;
        let mut entries = self.load_entries(volume, first_block, count).await?;
        zero_holes(&entries, target);
        let mut wanted = entries.clone();
        for _ in 0..LOOKUPS_MAX {
            for (index, run) in device_runs(&wanted) {
                let end = index + to_usize(run.count);
                self.read_device(run, &target.slice(blocks_to_bytes(index)..blocks_to_bytes(end))).await?;
            }
            let failed = {
                let state = &mut *self.state.borrow_mut();
                open_blocks(&self.pool, &mut state.ciphers, volume, &wanted, target)
            };
            if failed.is_empty() {
                return Ok(());
            }
            let newest = self.load_entries(volume, first_block, count).await?;
            wanted = vec![None; count];
            for index in failed {
                if newest[index] == entries[index] {
                    self.report_damage(volume, first_block + to_u64(index), newest[index]);
                    return Err(IoError::Io);
                }
                let bytes = blocks_to_bytes(index)..blocks_to_bytes(index + 1);
                target.slice(bytes).with_bytes_mut(|bytes| bytes.fill(0));
                wanted[index] = newest[index];
                entries[index] = newest[index];
            }
        }
        Err(IoError::Io)
    }

    /// The entries of consecutive blocks, if every leaf that is needed is cached.
    pub(super) fn cached_entries(
        &self,
        volume: &Volume,
        first: BlockIndex,
        count: usize,
    ) -> Option<Vec<Option<Entry>>> {
        let mut entries = Vec::new();
        self.fill_cached_entries(volume, first, count, &mut entries).map(|()| entries)
    }

    /// As [`Self::cached_entries`], into a vector that is there; what it holds is replaced.
    fn fill_cached_entries(
        &self,
        volume: &Volume,
        first: BlockIndex,
        count: usize,
        entries: &mut Vec<Option<Entry>>,
    ) -> Option<()> {
        if !volume.is_settled(&self.pool) {
            return None;
        }
        entries.clear();
        entries.resize(count, None);
        for (from, leaf, blocks) in leaf_ranges(first, count) {
            let mut changed = [false; 256];
            let mut changed_count = 0;
            let visited = &mut entries[from..from + blocks];
            let start = first.plus(to_u64(from));
            self.pool.changes().of_range(volume.tree, volume.seen, (start, blocks), |index, change| {
                visited[index] = change.entry;
                changed_count += usize::from(!std::mem::replace(&mut changed[index], true));
            });
            if changed_count == blocks {
                continue;
            }
            self.pool.leaves().look(volume.view, leaf, |leaf| {
                for (index, (entry, stored)) in visited.iter_mut().zip(leaf.entries_from(start.slot())).enumerate() {
                    if !changed[index] {
                        *entry = stored;
                    }
                }
            })?;
        }
        Some(())
    }

    /// The entries of consecutive blocks; loads the leaves that are missing.
    pub(super) async fn load_entries(
        &self,
        volume: &Volume,
        first: u64,
        count: usize,
    ) -> Result<Vec<Option<Entry>>, IoError> {
        let first = BlockIndex::new(first);
        let mut entries = Vec::with_capacity(count);
        for (from, leaf, blocks) in leaf_ranges(first, count) {
            let start = first.plus(to_u64(from));
            // Bounded by other readers that evict the leaf again before it is looked at.
            entries.extend(loop {
                if let Some(found) = self.cached_entries(volume, start, blocks) {
                    break found;
                }
                if !volume.is_settled(&self.pool) {
                    break self.unsettled_entries(volume, leaf, (start, blocks)).await?;
                }
                self.load_leaf(volume, leaf).await?;
            });
        }
        Ok(entries)
    }

    /// Loads a leaf into the cache. Who misses it while it is loaded waits for that load, as long as it is on this lane.
    async fn load_leaf(&self, volume: &Volume, leaf: LeafIndex) -> Result<(), IoError> {
        let key = (volume.view, leaf);
        let running = self.state.borrow_mut().loads.get_mut(&key).map(|waiters| {
            let (sender, receiver) = oneshot::channel();
            waiters.push(sender);
            receiver
        });
        if let Some(running) = running {
            return running.await.map_err(|_| IoError::ShuttingDown)?;
        }
        self.state.borrow_mut().loads.insert(key, Vec::new());
        let result = self.load_into_cache(volume, leaf).await;
        let waiters = self.state.borrow_mut().loads.remove(&key);
        for waiter in waiters.into_iter().flatten() {
            if waiter.send(result).is_err() {
                tracing::trace!("who waited for the leaf is gone");
            }
        }
        result
    }

    /// Loads a leaf off the lane, again if a checkpoint overtook it.
    async fn load_into_cache(&self, volume: &Volume, leaf: LeafIndex) -> Result<(), IoError> {
        loop {
            let version = self.pool.leaves().version(volume.view, leaf);
            let (sender, receiver) = oneshot::channel();
            let (pool, lineage) = (Arc::clone(&self.pool), volume.lineage.get(&self.pool));
            self.blocking.run(Box::new(move || {
                let mut found = None;
                pool.view_of(&lineage, &mut |store| {
                    found = Some(StoredLeaves { store, keys: pool.keys() }.resolve(&lineage, leaf));
                });
                // The reader may be gone; then nobody wants the leaf.
                drop(found.map(|found| sender.send(found)));
            }));
            let loaded = receiver.await.map_err(|_| IoError::ShuttingDown)?;
            let loaded: Leaf = loaded.map_err(|error| {
                tracing::error!(%error, "loading a leaf failed");
                IoError::Io
            })?;
            let version = if is_planted(Bug::OvertakenLoadCached) {
                self.pool.leaves().version(volume.view, leaf)
            } else {
                version
            };
            if self.pool.leaves().insert(volume.view, leaf, &loaded, version) {
                return Ok(());
            }
        }
    }

    /// The first leaf of a range of blocks with changes: of the volume's tree, and as long as they are not stored, of parents.
    pub(super) fn next_touched(&self, volume: &Volume, blocks: std::ops::Range<u64>) -> Option<LeafIndex> {
        let lineage = volume.lineage.get(&self.pool);
        let depth = if volume.is_settled(&self.pool) { 1 } else { lineage.0.len() };
        let trees = lineage.0.iter().take(depth);
        trees.filter_map(|(tree, _)| self.pool.changes().next_touched(*tree, blocks.clone())).min()
    }

    /// The entries of blocks of one leaf while the changes of parents are not stored: tree by tree, what its changes say, and
    /// else its stored leaf if it has one. What is behind a stored leaf, or behind changes of all blocks, is not looked at: it
    /// may be damaged. Nothing of it is cached.
    async fn unsettled_entries(
        &self,
        volume: &Volume,
        leaf: LeafIndex,
        (start, blocks): (BlockIndex, usize),
    ) -> Result<Vec<Option<Entry>>, IoError> {
        // Changes first, stored leaves second: a checkpoint moves them the same way, so none is missed.
        let changes_of = |(tree, epoch): &(TreeId, Epoch)| {
            let mut changes = vec![None; blocks];
            self.pool.changes().of_range(*tree, *epoch, (start, blocks), |index, change| {
                changes[index] = Some(change.entry);
            });
            changes
        };
        let lineage = volume.lineage.get(&self.pool);
        let changes: Vec<Vec<Option<Option<Entry>>>> = lineage.0.iter().map(changes_of).collect();
        let is_known = |index: usize, levels: usize| changes[..levels].iter().any(|changes| changes[index].is_some());
        // The leaf of a level matters for what neither its changes nor those of nearer levels say.
        let level_count =
            (0..changes.len()).take_while(|level| !(0..blocks).all(|index| is_known(index, level + 1))).count();
        let (sender, receiver) = oneshot::channel();
        let pool = Arc::clone(&self.pool);
        self.blocking.run(Box::new(move || {
            let mut found = None;
            pool.view_of(&lineage, &mut |store| {
                let stored = StoredLeaves { store, keys: pool.keys() };
                found = Some(leaves_up_to_the_first(&stored, &lineage.0[..level_count], leaf));
            });
            // The reader may be gone; then nobody wants the leaves.
            drop(found.map(|found| sender.send(found)));
        }));
        let leaves = receiver.await.map_err(|_| IoError::ShuttingDown)?.map_err(|error| {
            tracing::error!(%error, "loading a leaf failed");
            IoError::Io
        })?;
        let mut entries = vec![None; blocks];
        for (index, entry) in entries.iter_mut().enumerate() {
            let slot = start.plus(to_u64(index)).slot();
            let stored_in = |level: usize| leaves.get(level)?.as_ref().map(|stored| stored.leaf.get(slot));
            let mut levels = changes.iter().enumerate();
            *entry = levels.find_map(|(level, changes)| changes[index].or_else(|| stored_in(level))).flatten();
        }
        Ok(entries)
    }

    fn report_damage(&self, volume: &Volume, block: u64, entry: Option<Entry>) {
        self.pool.count_damaged_block();
        let address = entry.map_or_else(|| "nowhere".to_owned(), |entry| entry.address().to_string());
        tracing::error!(volume = %volume.id(), block, address, "a block is damaged: its mac does not match");
    }
}

/// Verifies and decrypts what was read; the indexes of blocks whose mac does not match.
pub(super) fn open_blocks(
    pool: &Pool,
    ciphers: &mut CipherCache,
    volume: &Volume,
    entries: &[Option<Entry>],
    target: &IoBuffer,
) -> Vec<usize> {
    let mut failed = Vec::new();
    target.with_bytes_mut(|bytes| {
        for ((index, entry), block) in entries.iter().enumerate().zip(bytes.chunks_exact_mut(BLOCK_SIZE)) {
            let Some(entry) = entry else { continue };
            let cipher = ciphers.get(pool.keys(), volume.domain, entry.generation(), entry.sequence());
            let is_open = cipher.is_some_and(|cipher| {
                if is_planted(Bug::IgnoreMac) {
                    cipher.decrypt_in_place(entry.sequence(), block);
                    return true;
                }
                cipher.decrypt_verified(entry.sequence(), block, entry.mac())
            });
            if !is_open {
                failed.push(index);
            }
        }
    });
    failed
}

/// A leaf of each of these trees, up to the first that has it.
fn leaves_up_to_the_first(
    stored: &StoredLeaves<'_>,
    levels: &[(TreeId, Epoch)],
    leaf: LeafIndex,
) -> crate::error::Result<Vec<Option<StoredLeaf>>> {
    let mut leaves = Vec::with_capacity(levels.len());
    for (tree, epoch) in levels {
        let newest = stored.newest(*tree, *epoch, leaf)?;
        let is_found = newest.is_some() && !is_planted(Bug::HiddenLeafNeeded);
        leaves.push(newest);
        if is_found {
            break;
        }
    }
    Ok(leaves)
}

/// Index of the first block, leaf and number of blocks, for each leaf of a range.
fn leaf_ranges(first: BlockIndex, count: usize) -> impl Iterator<Item = (usize, LeafIndex, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        if from == count {
            return None;
        }
        let block = first.get() + to_u64(from);
        let blocks = to_usize(LEAF_ENTRIES_U64 - block % LEAF_ENTRIES_U64).min(count - from);
        let range = (from, BlockIndex::new(block).leaf(), blocks);
        from += blocks;
        Some(range)
    })
}

/// Neighbouring addresses as runs of at most [`RUN_BLOCKS_MAX`], each with the index of its first block.
fn device_runs(entries: &[Option<Entry>]) -> impl Iterator<Item = (usize, AddressRun)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let (first, start) =
            entries.iter().enumerate().skip(next).find_map(|(index, entry)| Some((index, (*entry)?.address())))?;
        let follows =
            |(step, entry): &(u64, &Option<Entry>)| entry.is_some_and(|entry| entry.address() == start.plus(*step));
        let rest = (1..RUN_BLOCKS_MAX).zip(&entries[first + 1..]);
        let count = 1 + to_u64(rest.take_while(follows).count());
        next = first + to_usize(count);
        Some((first, AddressRun { start, count }))
    })
}

fn zero_holes(entries: &[Option<Entry>], target: &IoBuffer) {
    target.with_bytes_mut(|bytes| {
        for (entry, block) in entries.iter().zip(bytes.chunks_exact_mut(BLOCK_SIZE)) {
            if entry.is_none() {
                block.fill(0);
            }
        }
    });
}

/// Reads the whole blocks around the range and copies the part.
async fn read_unaligned<D: Disk + 'static>(
    engine: Rc<Engine<D>>,
    volume: Arc<Volume>,
    offset_bytes: u64,
    target: IoBuffer,
) -> Result<(), IoError> {
    if target.is_empty() {
        return Ok(());
    }
    let first = offset_bytes / BLOCK_SIZE_U64;
    let end = (offset_bytes + to_u64(target.len())).div_ceil(BLOCK_SIZE_U64);
    let blocks = IoBuffer::allocate(blocks_to_bytes(to_usize(end - first)));
    engine.read_blocks(&volume, first, &blocks).await?;
    let from = to_usize(offset_bytes - first * BLOCK_SIZE_U64);
    blocks
        .slice(from..from + target.len())
        .with_bytes(|bytes| target.with_bytes_mut(|target| target.copy_from_slice(bytes)));
    Ok(())
}

/// A read that a task continues: volume, first block, where to, whom to tell.
pub(super) type Reread = (Arc<Volume>, u64, IoBuffer, Done);
