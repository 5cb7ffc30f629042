//! The checkpoint: moves the changes up to a cut into the metadata store, then frees blocks.
//!
//! One at a time, off the lanes, in bounded steps while foreground I/O goes on. Only here do blocks become
//! free. The order of the phases is the crash rule; see `DESIGN` in `ARCHITECTURE.md`:
//! cut, flush, leaves (each batch with its bitmap bits), reclaim, owners, the synced last batch, headers, release.

mod copy_down;
mod leaves;
mod reclaim;
mod unreadable;

pub(in crate::pool) use copy_down::ParentLeaves;
pub(in crate::pool) use unreadable::UnreadableTrees;

use crate::crypto::SealKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{ChainStart, CheckpointRecord};
use crate::format::key;
use crate::meta::{Durability, MetaOp, MetaStore, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::catalog::meta_error;
use crate::pool::devices::header_mac;
use crate::pool::leaf_work::LeafWork;
use crate::pool::loading::load_checkpoint;
use crate::pool::owners::Owners;
use crate::pool::{FlushStart, Pool};
use crate::units::{Address, AddressRun, ChainSequence, CheckpointId, LaneIndex, Sequence, TreeId};
use parking_lot::MutexGuard;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Owner groups that one batch holds.
const OWNER_GROUPS_PER_BATCH: usize = 256;
/// Blocks that become free without letting lanes in between that reserve some: a part of a millisecond.
const FREED_AT_ONCE: usize = 1024;

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
    Reclaim,
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
    has_met_damage: bool,
}

impl Checkpoint {
    /// A checkpoint that begins with its first step. The caller runs one at a time.
    #[must_use]
    pub fn begin(pool: Arc<Pool>) -> Self {
        let id = CheckpointId::new(pool.stored.lock().checkpoint.get() + 1);
        let deletions_left = pool.limits.reclaimed_per_checkpoint;
        Self {
            pool,
            phase: Phase::Cut,
            id,
            positions: Vec::new(),
            next_sequence: Sequence::new(0),
            pending: VecDeque::new(),
            dead: Vec::new(),
            owners: Owners::new(),
            deletions_left,
            has_met_damage: false,
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

    /// Whether it ended because a leaf that changes belong to cannot be read.
    #[must_use]
    pub const fn has_met_damage(&self) -> bool {
        self.has_met_damage
    }

    /// Whether the next step may wait for a turn to change the catalog.
    #[must_use]
    pub const fn needs_turn(&self) -> bool {
        matches!(self.phase, Phase::Leaves(_) | Phase::Reclaim | Phase::Owners | Phase::Last)
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
            Phase::Reclaim => self.reclaim(),
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
        // In a turn, as all that is stored: it would be in the way of who holds writes back.
        let turn = self.pool.take_turn();
        let stored = self.pool.check_healthy().and_then(|()| self.pool.store_owners(&groups));
        let stored = self.pool.fail_unless_stored(stored);
        drop(turn);
        if let Err(error) = stored {
            // A step without space comes again.
            self.owners.extend(groups.into_iter().flat_map(|(_, group)| group));
            return Err(error);
        }
        Ok(if self.owners.is_empty() { Phase::Last } else { Phase::Owners })
    }

    /// The synced batch that makes the checkpoint the one that recovery starts from.
    fn store_last(&mut self) -> Result<Phase> {
        let turn = self.pool.take_turn();
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
        let commit = || self.pool.store.commit(&[self.put_checkpoint(&record)], Durability::Synced);
        let committed = self
            .pool
            .check_healthy()
            .and_then(|()| commit().map_err(|error| meta_error("Storing the checkpoint", error)));
        let committed = self.pool.fail_unless_stored(committed);
        drop(turn);
        committed?;
        let mut stored = self.pool.stored.lock();
        stored.checkpoint = self.id;
        stored.is_trusted = true;
        Ok(Phase::Headers)
    }

    /// Writes the headers, whose flush is one of the pool: it waits for a lane's, and counts as one.
    fn write_headers(&mut self) -> Result<Phase> {
        let pool = &self.pool;
        let _headers = pool.header_writes.lock();
        let mut start = FlushStart::default();
        if !pool.begin_flush(&mut start) {
            return Ok(Phase::Headers);
        }
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
        for (index, address) in self.dead.drain(..).chain(replaced).enumerate() {
            space.free(address);
            if index % FREED_AT_ONCE == FREED_AT_ONCE - 1 {
                MutexGuard::bump(&mut space);
            }
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
        if pool.has_more_work() {
            pool.want_checkpoint();
        }
    }
}

impl Pool {
    /// Flushes every device that was written, and moves the marks; `false` while a lane's flush runs.
    ///
    /// # Errors
    /// The device's failure; then the pool has failed.
    pub fn flush_devices(&self) -> Result<bool> {
        let mut start = FlushStart::default();
        if !self.begin_flush(&mut start) {
            return Ok(false);
        }
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
