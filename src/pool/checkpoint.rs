//! The checkpoint: moves the changes up to a cut into the metadata store, then frees blocks.
//!
//! One at a time, off the lanes, in bounded steps while foreground I/O goes on. Only here do blocks become
//! free. The order of the phases is the crash rule; see `DESIGN` in `ARCHITECTURE.md`:
//! cut, flush, leaves (each batch with its bitmap bits), deletions, owners, the synced last batch, headers, release.

use crate::crypto::SealKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{ChainStart, CheckpointRecord, TreeRecord, TreeState};
use crate::format::entry::Entry;
use crate::format::leaf::Leaf;
use crate::format::{key, leaf};
use crate::map::StoredLeaves;
use crate::meta::{Durability, MetaOp, MetaRead, MetaStore, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::catalog::meta_error;
use crate::pool::devices::header_mac;
use crate::pool::leaf_work::{AppliedLeaf, LeafWork, apply_changes, leaf_work};
use crate::pool::open::load_checkpoint;
use crate::pool::owners::Owners;
use crate::pool::used::BitChanges;
use crate::pool::{Catalog, CatalogStore, Pool};
use crate::units::{Address, AddressRun, ChainSequence, CheckpointId, LaneIndex, LeafIndex, Sequence, TreeId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Leaves that one synced batch deletes: at most 3 MiB are read for it.
const DELETIONS_PER_BATCH: usize = 512;
/// Leaves that one checkpoint deletes of a tree that goes.
const DELETIONS_PER_CHECKPOINT: usize = 65_536;
/// Owner groups that one batch holds.
const OWNER_GROUPS_PER_BATCH: usize = 256;

/// Whether a checkpoint has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call [`Checkpoint::step`] again.
    Working,
    /// The same, but nothing changes before the flush that a lane has begun ends.
    Waiting,
    /// The checkpoint is complete.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Cut,
    Flush,
    /// The next stripe of the changes.
    Leaves(usize),
    Deletions,
    Owners,
    Last,
    Headers,
    Release,
    Done,
}

/// A running checkpoint.
pub struct Checkpoint {
    pool: Arc<Pool>,
    phase: Phase,
    id: CheckpointId,
    /// Per lane where its chain starts behind the frozen set.
    positions: Vec<(ChainSequence, Address)>,
    next_sequence: Sequence,
    /// Frozen changes of the stripes that were loaded, by leaf, still to be stored.
    pending: VecDeque<LeafWork>,
    /// Blocks that nothing will map once the last batch is stored.
    dead: Vec<Address>,
    owners: Owners,
    deletions_left: usize,
}

impl Checkpoint {
    /// A checkpoint that begins with its first step. The caller runs one at a time.
    #[must_use]
    pub fn begin(pool: Arc<Pool>) -> Self {
        let id = CheckpointId::new(pool.stored.lock().checkpoint.get() + 1);
        Self {
            pool,
            phase: Phase::Cut,
            id,
            positions: Vec::new(),
            next_sequence: Sequence::new(0),
            pending: VecDeque::new(),
            dead: Vec::new(),
            owners: Owners::new(),
            deletions_left: DELETIONS_PER_CHECKPOINT,
        }
    }

    /// Runs all steps.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn run(&mut self) -> Result<()> {
        loop {
            match self.step()? {
                Progress::Working => {}
                Progress::Waiting => self.pool.await_flush_end(),
                Progress::Done => return Ok(()),
            }
        }
    }

    /// Does a bounded piece of work. After an error the pool has failed and the checkpoint is over, but for lack
    /// of space in `meta/`: then the same step may be called again later.
    ///
    /// # Errors
    /// The failure of a device or of the metadata store.
    pub fn step(&mut self) -> Result<Progress> {
        if self.pool.check_writable().is_err() {
            return Err(Error::new(ErrorKind::Other, "The pool has failed: nothing is stored any more")
                .with_hint("`rok-blk status` says why; restart the daemon once the device is repaired"));
        }
        let before = self.phase;
        let result = match self.phase {
            Phase::Cut => {
                self.cut();
                Ok(Phase::Flush)
            }
            Phase::Flush => self.flush(),
            Phase::Leaves(stripe) => self.store_leaves(stripe),
            Phase::Deletions => self.delete_leaves(),
            Phase::Owners => self.store_owners(),
            Phase::Last => self.store_last(),
            Phase::Headers => self.write_headers(),
            Phase::Release => {
                self.release();
                self.pool.restore_meta_reserve();
                self.pool.watch_space();
                tracing::debug!(checkpoint = %self.id, "checkpoint done");
                Ok(Phase::Done)
            }
            Phase::Done => Ok(Phase::Done),
        };
        match result {
            Ok(phase) => self.phase = phase,
            Err(error) => {
                if error.kind() != ErrorKind::NoSpace {
                    self.pool.fail(error.to_string());
                }
                return Err(error);
            }
        }
        Ok(match self.phase {
            Phase::Done => Progress::Done,
            Phase::Flush | Phase::Headers if before == self.phase => Progress::Waiting,
            _ => Progress::Working,
        })
    }

    fn cut(&mut self) {
        let pool = &self.pool;
        tracing::debug!(checkpoint = %self.id, changes = pool.changes.active_count(), "checkpoint begins");
        pool.cuts_begun.fetch_add(1, Ordering::AcqRel);
        pool.taken_since_cut.store(0, Ordering::Relaxed);
        self.positions = pool.changes.cut(|| pool.positions());
        for (lane, (chain, _)) in pool.lanes.iter().zip(&self.positions) {
            lane.cut.store(chain.get(), Ordering::Release);
        }
        if let Some(signals) = pool.signals.get() {
            signals.wake_lanes();
        }
        self.next_sequence = Sequence::new(pool.next_sequence.load(Ordering::Acquire));
    }

    fn flush(&mut self) -> Result<Phase> {
        if is_planted(Bug::CutDiffersBetweenLanes) {
            self.positions = self.pool.positions();
        }
        let is_done = is_planted(Bug::SkipCheckpointFlush) || self.pool.flush_devices()?;
        Ok(if is_done { Phase::Leaves(0) } else { Phase::Flush })
    }

    /// Stores one batch of leaves, with their bitmap bits.
    fn store_leaves(&mut self, mut stripe: usize) -> Result<Phase> {
        let leaf_count_max = self.pool.limits.leaves_per_batch;
        while self.pending.len() < leaf_count_max && stripe < self.pool.changes.stripe_count() {
            self.pending.extend(leaf_work(self.pool.changes.frozen(stripe)));
            stripe += 1;
            // At once: a step without space comes again, and what it stores then must not be taken a second time.
            self.phase = Phase::Leaves(stripe);
        }
        if self.pending.is_empty() {
            return Ok(Phase::Deletions);
        }
        let leaf_count = self.pending.len().min(leaf_count_max);
        // Held until the batch is committed: a removal of a volume must not come between.
        let mut catalog = self.pool.catalog.lock();
        let mut deltas: BTreeMap<TreeId, i64> = BTreeMap::new();
        let mut batch = Vec::new();
        let mut replaced = Vec::new();
        let mut bits = BitChanges::default();
        let mut dead = Vec::new();
        for work in self.pending.iter().take(leaf_count) {
            let Some((mut applied, skip)) = self.apply(work, &catalog, &mut batch)? else {
                dead.extend(work.changes.iter().filter_map(|(_, change)| change.entry.map(Entry::address)));
                continue;
            };
            if is_planted(Bug::ReplacedStaysUsed) {
                applied.unmapped.clear();
            }
            if skip {
                dead.extend(&applied.obsolete);
                continue;
            }
            *deltas.entry(work.tree).or_default() += signed(applied.mapped.len()) - signed(applied.unmapped.len());
            bits.set.extend(&applied.mapped);
            bits.clear.extend(&applied.unmapped);
            dead.extend(applied.unmapped.iter().chain(&applied.obsolete));
            replaced.push((work.tree, work.leaf, applied.leaf));
        }
        let at = CatalogStore { store: &*self.pool.store, keys: &self.pool.keys };
        let records: Vec<TreeRecord> =
            deltas.iter().filter_map(|(tree, delta)| catalog.with_mapped(*tree, *delta)).collect();
        batch.extend(records.iter().map(|record| at.put_tree(record)));
        self.pool.commit_with_bits(batch, &bits, "Storing leaves")?;
        catalog.count_mapped(records);
        drop(catalog);
        for (tree, leaf, new) in replaced {
            self.pool.leaves.replace(tree, leaf, &new);
        }
        for work in self.pending.drain(..leaf_count) {
            for (key, change) in work.changes {
                if let Some(entry) = change.entry {
                    self.owners.insert(entry.address(), (key.tree, key.epoch, key.block));
                }
            }
        }
        self.dead.extend(dead);
        Ok(Phase::Leaves(stripe))
    }

    /// Applies the changes of a leaf and appends what stores it; `None` if the tree is gone or going. The flag
    /// says that nothing is to be stored.
    fn apply(
        &self,
        work: &LeafWork,
        catalog: &Catalog,
        batch: &mut Vec<MetaOp>,
    ) -> Result<Option<(AppliedLeaf, bool)>> {
        let tree = catalog.tree(work.tree).copied();
        let Some(tree) = tree.filter(|tree| tree.state == TreeState::Living) else { return Ok(None) };
        let stored = StoredLeaves { store: &*self.pool.store, keys: &self.pool.keys };
        let before = stored.newest(work.tree, work.epoch, work.leaf)?;
        let base = match (&before, tree.parent) {
            (Some(before), _) => before.leaf.clone(),
            (None, Some(parent)) => stored.resolve(&catalog.lineage(parent), work.leaf)?,
            (None, None) => Leaf::default(),
        };
        let applied = apply_changes(base, &work.changes);
        if applied.change.is_empty() || is_planted(Bug::EmptyLeafNotPut) && applied.leaf.is_empty() {
            return Ok(Some((applied, true)));
        }
        let place = (work.tree, work.epoch, work.leaf);
        stored.store(place, before.as_ref(), &applied.leaf, &applied.change, batch);
        Ok(Some((applied, false)))
    }

    /// Deletes a bounded number of leaves of a tree that goes.
    fn delete_leaves(&mut self) -> Result<Phase> {
        let Some(tree) = self.pool.catalog.lock().deleting() else { return Ok(Phase::Owners) };
        let TreeState::Deleting(cursor) = tree.state else { return Ok(Phase::Owners) };
        if self.deletions_left == 0 {
            return Ok(Phase::Owners);
        }
        let from = key::leaf_prefix(tree.id, cursor);
        let end = key::tree_end(tree.id);
        let found = self.pool.store.scan(Table::Leaves, &from, &end, DELETIONS_PER_BATCH);
        let found = found.map_err(|error| meta_error("Reading leaves", error))?;
        let stored = StoredLeaves { store: &*self.pool.store, keys: &self.pool.keys };
        let mut bits = BitChanges::default();
        let mut next = cursor;
        for (leaf_key, value) in &found {
            let damaged = |reason: String| {
                Error::new(ErrorKind::Integrity, format!("A leaf of tree {} is damaged: {reason}", tree.id))
            };
            let (_, index, epoch) = key::parse_leaf(leaf_key).map_err(|error| damaged(error.to_string()))?;
            let opened = stored.open(leaf_key, epoch, value).map_err(damaged)?;
            bits.clear.extend(leaf::addresses(&opened.leaf));
            next = LeafIndex::new(index.get() + 1);
        }
        let mut catalog = self.pool.catalog.lock();
        let at = CatalogStore { store: &*self.pool.store, keys: &self.pool.keys };
        let mut batch = Vec::new();
        let record = if found.len() < DELETIONS_PER_BATCH {
            let (start, end) = (key::tree_start(tree.id), key::tree_end(tree.id));
            batch.push(MetaOp::DeleteRange(Table::Leaves, start.clone(), end.clone()));
            batch.push(MetaOp::DeleteRange(Table::EpochLeaves, start, end));
            batch.push(MetaOp::Delete(Table::Catalog, key::tree(tree.id)));
            batch.push(self.put_next_tree(catalog.next_tree())?);
            None
        } else {
            batch.push(MetaOp::DeleteRange(Table::Leaves, from, key::leaf_prefix(tree.id, next)));
            let left = tree.mapped_block_count.saturating_sub(crate::units::to_u64(bits.clear.len()));
            let record = TreeRecord { state: TreeState::Deleting(next), mapped_block_count: left, ..tree };
            batch.push(at.put_tree(&record));
            Some(record)
        };
        self.pool.commit_with_bits(batch, &bits, "Deleting leaves")?;
        self.dead.extend(bits.clear);
        self.deletions_left = self.deletions_left.saturating_sub(found.len());
        catalog.deletion_advanced(tree.id, record);
        Ok(Phase::Deletions)
    }

    /// Stores the number behind the last tree with the last checkpoint's record: from the batch that deletes a tree's own
    /// record on, nothing else says that the number was used.
    fn put_next_tree(&self, next_tree: TreeId) -> Result<MetaOp> {
        let record = CheckpointRecord { next_tree, ..load_checkpoint(&*self.pool.store, &self.pool.keys)? };
        Ok(self.put_checkpoint(&record))
    }

    fn put_checkpoint(&self, record: &CheckpointRecord) -> MetaOp {
        let value = self.pool.keys.seal(SealKind::Checkpoint, key::CHECKPOINT, &record.encode());
        MetaOp::Put(Table::Catalog, key::CHECKPOINT.to_vec(), value)
    }

    /// Stores whom the new blocks were written for, a bounded number of groups a step.
    fn store_owners(&mut self) -> Result<Phase> {
        let mut groups = Vec::new();
        while groups.len() < OWNER_GROUPS_PER_BATCH {
            let Some((first, _)) = self.owners.first_key_value() else { break };
            let group = first.block() >> key::OWNER_GROUP_SHIFT;
            let group_key = key::owner_group(*first);
            let end = Address::new(first.device(), (group + 1) << key::OWNER_GROUP_SHIFT);
            let later = self.owners.split_off(&end);
            groups.push((group_key, std::mem::replace(&mut self.owners, later)));
        }
        if let Err(error) = self.pool.store_owners(&groups) {
            // A step without space comes again.
            self.owners.extend(groups.into_iter().flat_map(|(_, group)| group));
            return Err(error);
        }
        Ok(if self.owners.is_empty() { Phase::Last } else { Phase::Owners })
    }

    /// The synced batch that makes the checkpoint the one that recovery starts from.
    fn store_last(&mut self) -> Result<Phase> {
        let chains = self.positions.iter().zip(0..).map(|((chain, address), lane)| ChainStart {
            session: self.pool.session,
            lane: LaneIndex::new(lane),
            chain: *chain,
            address: *address,
        });
        let record = CheckpointRecord {
            id: self.id,
            next_tree: self.pool.catalog.lock().next_tree(),
            next_sequence: self.next_sequence,
            chains: chains.collect(),
        };
        let committed = self.pool.store.commit(&[self.put_checkpoint(&record)], Durability::Synced);
        committed.map_err(|error| meta_error("Storing the checkpoint", error))?;
        let mut stored = self.pool.stored.lock();
        stored.checkpoint = self.id;
        stored.is_trusted = true;
        Ok(Phase::Headers)
    }

    /// Writes the headers, whose flush is one of the pool: it waits for a lane's, and counts as one.
    fn write_headers(&mut self) -> Result<Phase> {
        let pool = &self.pool;
        let _headers = pool.header_writes.lock();
        let Some(start) = pool.begin_flush() else { return Ok(Phase::Headers) };
        let mac = header_mac(pool.keys.master());
        // Copied, so that nobody waits for I/O under the lock.
        let devices = pool.devices.read().clone();
        let written = devices.iter().try_for_each(|device| {
            device.write_header(pool.id, pool.session, self.id, &mac).map_err(|error| {
                let name = device.device.name();
                Error::new(ErrorKind::Other, format!("Writing the header of {name} failed: {error}")).with_source(error)
            })
        });
        if let Err(error) = &written {
            pool.fail(error.to_string());
        }
        pool.end_flush(&start, None);
        written.map(|()| Phase::Release)
    }

    fn release(&mut self) {
        let pool = &self.pool;
        let dropped = pool.changes.drop_frozen();
        let spent = pool.take_spent(&self.positions);
        let mut space = pool.space.lock();
        let replaced = if is_planted(Bug::ReuseBeforeCheckpoint) { Vec::new() } else { dropped.replaced };
        for address in self.dead.drain(..).chain(replaced) {
            space.free(address);
        }
        for run in spent {
            space.free_run(run);
        }
        drop(space);
        pool.checkpoints_done.fetch_add(1, Ordering::AcqRel);
        pool.tell_space();
        if let Some(signals) = pool.signals.get() {
            signals.wake_lanes();
            signals.space_freed();
        }
        if pool.catalog.lock().deleting().is_some() {
            pool.want_checkpoint();
        }
    }
}

impl Pool {
    /// Flushes every device that was written, and moves the marks; `false` while a lane's flush runs.
    ///
    /// # Errors
    /// The device's failure; then the pool has failed.
    fn flush_devices(&self) -> Result<bool> {
        let Some(start) = self.begin_flush() else { return Ok(false) };
        let devices = self.devices();
        let flushed = start.devices().iter().map(|index| &devices[index.as_usize()]).try_for_each(|device| {
            device.flush().map_err(|error| {
                Error::new(ErrorKind::Other, format!("Flushing {} failed: {error}", device.name())).with_source(error)
            })
        });
        if let Err(error) = &flushed {
            self.fail(error.to_string());
        }
        self.end_flush(&start, None);
        flushed.map(|()| true)
    }

    pub(super) fn positions(&self) -> Vec<(ChainSequence, Address)> {
        self.lanes.iter().map(|lane| *lane.position.lock()).collect()
    }

    /// Records that the checkpoint contains: their blocks are free.
    fn take_spent(&self, positions: &[(ChainSequence, Address)]) -> Vec<AddressRun> {
        let mut runs = Vec::new();
        for (lane, (start, _)) in self.lanes.iter().zip(positions) {
            let mut spent = lane.spent.lock();
            while spent.front().is_some_and(|(chain, _)| chain < start) {
                runs.extend(spent.pop_front().map(|(_, run)| run));
            }
        }
        runs
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("a batch has few blocks")
}
