//! The state of an open pool: what its lanes, its checkpoint and its control share.

use crate::crypto::{KeyRing, SessionKeys};
use crate::disk::Device;
use crate::error::{Error, ErrorKind, IoError};
use crate::format::bitmap::StretchBits;
use crate::map::{Changes, LeafCache};
use crate::meta::{MetaRead, MetaStore, ReservedStore};
use crate::planted::{Bug, is_planted};
use crate::pool::checkpoint::UnreadableTrees;
use crate::pool::shred_key::ShredKeys;
use crate::pool::space_news::SpaceNews;
use crate::pool::trim::is_stock_low;
use crate::pool::turn::Turns;
use crate::pool::watermark::SpaceLevel;
use crate::pool::{Catalog, DoneBatch, Exits, Limits, Log, PartCounts, Placement, PoolDevice, RecoveryReport, Space};
use crate::units::{Address, AddressRun, ChainSequence, CheckpointId, LaneIndex, Sequence, SessionId, to_u64};
use crossbeam_utils::CachePadded;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use uuid::Uuid;

/// How the pool asks for attention. Implemented by who runs the lanes; must not block.
pub trait Signals: Send + Sync {
    /// A checkpoint should run soon.
    fn want_checkpoint(&self);
    /// Something happened that requests of any lane may wait for.
    fn wake_lanes(&self);
    /// Something arrived for one lane.
    fn wake_lane(&self, lane: LaneIndex);
    /// As [`Self::wake_lanes`], from a lane that looks at its requests again by itself.
    fn wake_other_lanes(&self, lane: LaneIndex);
    /// Blocks became free: a checkpoint is done, or an idle lane gave its window back.
    fn space_freed(&self);
    /// Lanes come to the end of the free space that is fit for use: [`Pool::restock_step`] has something to do.
    fn want_stock(&self);
    /// The time in seconds since 1970, which says since when writes wait.
    fn now_seconds(&self) -> u64;
}

/// What the other lanes and the checkpoint see of a lane.
pub struct LaneShared {
    /// The first record whose batch is not laid over the map, and where it is or will be.
    pub(super) position: Mutex<(ChainSequence, Address)>,
    /// Records of laid batches, oldest first: free once a checkpoint contains them.
    pub(super) spent: Mutex<VecDeque<(ChainSequence, AddressRun)>>,
    /// The last record whose batch, with all before it, is on the device.
    pub(super) completed: AtomicU64,
    /// The last record known durable.
    pub(super) mark: AtomicU64,
    /// The first record that the last checkpoint does not contain.
    pub(super) cut: AtomicU64,
    /// Requests that the lane was given since the pool was opened.
    pub(super) requests: AtomicU64,
    /// Blocks that it wrote since then.
    pub(super) laid_blocks: AtomicU64,
}

impl LaneShared {
    /// A lane whose first record goes to `home`.
    pub(super) const fn new(home: Address) -> Self {
        Self {
            position: Mutex::new((ChainSequence::new(1), home)),
            spent: Mutex::new(VecDeque::new()),
            completed: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            laid_blocks: AtomicU64::new(0),
        }
    }
}

/// What the stored leaves map, and what was stored last. Only a checkpoint changes it.
pub(crate) struct StoredState {
    /// Bitmaps of used blocks, by device and stretch.
    pub(super) used: Vec<Vec<StretchBits>>,
    pub(super) used_count: u64,
    pub(super) checkpoint: CheckpointId,
    /// Since the checkpoint at open. Until then what was found may contradict itself, which is damage and no bug.
    pub(super) is_trusted: bool,
}

/// An open pool.
///
/// Locks are taken in this order: `turns`, `shred_keys`, `commits`, `catalog`, `stored`, `space`. Who has a turn is alone in
/// changing the catalog, in memory and in the store.
pub struct Pool {
    pub(super) id: Uuid,
    pub(super) session: SessionId,
    pub(super) session_keys: Arc<SessionKeys>,
    /// By index; only appended to.
    pub(super) devices: RwLock<Vec<Arc<PoolDevice>>>,
    /// Held while headers are written, and while a device joins.
    pub(super) header_writes: Mutex<()>,
    /// By index, whether a completed batch wrote the device since the last flush of it began.
    pub(super) is_written: Box<[AtomicBool]>,
    pub(super) store: Arc<ReservedStore>,
    pub(super) keys: Arc<KeyRing>,
    /// Held while the key of a volume is made or destroyed. Taken before the catalog, and in a turn.
    pub(super) shred_keys: Mutex<ShredKeys>,
    pub(super) limits: Limits,
    pub(super) changes: Changes,
    pub(super) leaves: LeafCache,
    pub(super) space: Mutex<Space>,
    pub(super) space_news: SpaceNews,
    pub(super) stored: Mutex<StoredState>,
    pub(super) catalog: Mutex<Catalog>,
    /// Of those who change the catalog.
    pub(super) turns: Arc<Turns>,
    /// Trees that became whole since the pool was opened: lineages end earlier than they did.
    pub(super) whole_count: AtomicU64,
    /// Held from the commit of a change until the catalog has it too. Who holds it sees the catalog, the bitmap and the
    /// store as they are at one instant; unlike a turn nobody keeps it while writes are held back.
    pub(super) commits: Mutex<()>,
    pub(super) lanes: Box<[CachePadded<LaneShared>]>,
    /// The lane that fills holes.
    pub(super) cleaner_lane: Option<LaneIndex>,
    /// First addresses of the lanes' chains, taken by their logs.
    pub(super) homes: Mutex<Vec<Option<AddressRun>>>,
    pub(super) next_sequence: CachePadded<AtomicU64>,
    /// Counts completed batches; what flushes compare.
    pub(super) write_generation: CachePadded<AtomicU64>,
    pub(super) flushed_generation: AtomicU64,
    /// Whether a device flush runs, and what tells that it ended.
    pub(super) is_flushing: Mutex<bool>,
    pub(super) flush_ended: Condvar,
    pub(super) cuts_begun: AtomicU64,
    /// Blocks that lanes reserved since the last cut.
    pub(super) taken_since_cut: AtomicU64,
    pub(super) checkpoints_done: AtomicU64,
    pub(super) is_failed: AtomicBool,
    pub(super) failure: RwLock<Option<String>>,
    pub(super) exits: Arc<Exits>,
    /// Batches of privileged writes that were begun, and those that ended.
    pub(super) reserve_uses: [AtomicU64; 2],
    /// As of the last checkpoint.
    pub(super) space_level: Mutex<SpaceLevel>,
    /// Trees that reclaim leaves as they are.
    pub(super) unreadable: UnreadableTrees,
    /// Blocks whose mac did not match, counted since the pool was opened.
    pub(super) damaged_blocks: AtomicU64,
    /// Stretches that were taken back, and whether the last of them could not be.
    pub(super) restocked: AtomicU64,
    pub(super) is_restock_failing: AtomicBool,
    /// One is being taken back.
    pub(super) is_restocking: AtomicBool,
    /// Blocks that the cleaner moved since then.
    pub(super) moved_blocks: AtomicU64,
    pub(super) parts: PartCounts,
    pub(super) signals: OnceLock<Arc<dyn Signals>>,
    pub(super) recovery: RecoveryReport,
    pub(super) window_blocks: AtomicU64,
    pub(super) reserve_blocks: AtomicU64,
}

impl Pool {
    /// The pool's id.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// The current session.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Keys of the current session.
    #[must_use]
    pub fn session_keys(&self) -> &SessionKeys {
        &self.session_keys
    }

    /// All keys.
    #[must_use]
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// The metadata store. Never call it on a lane.
    #[must_use]
    pub fn store(&self) -> &dyn MetaStore {
        &*self.store
    }

    /// The metadata store as it is for who reads the trees of a lineage one after the other: checkpoints move leaves from
    /// parents to children. Never call it on a lane.
    pub fn view_of(&self, lineage: &crate::map::Lineage, look: &mut dyn FnMut(&dyn MetaRead)) {
        if lineage.0.len() > 1 { self.store.view(look) } else { look(&*self.store) }
    }

    /// Changes that no checkpoint holds.
    #[must_use]
    pub const fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Leaves that were stored as parts.
    #[must_use]
    pub const fn part_counts(&self) -> &PartCounts {
        &self.parts
    }

    /// Cached leaves.
    #[must_use]
    pub const fn leaves(&self) -> &LeafCache {
        &self.leaves
    }

    /// Devices, by index.
    #[must_use]
    pub fn devices(&self) -> Vec<Arc<dyn Device>> {
        self.devices.read().iter().map(|device| Arc::clone(&device.device)).collect()
    }

    /// Lanes of this open, with the cleaner's.
    #[must_use]
    pub fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// What bounds the pool's memory and the length of recovery.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What recovery found at this open.
    #[must_use]
    pub const fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// Tells the pool whom to signal; once.
    pub fn set_signals(&self, signals: Arc<dyn Signals>) {
        assert!(self.signals.set(signals).is_ok(), "a pool is run once");
    }

    /// The log of a lane; each can be taken once.
    ///
    /// # Panics
    /// If it was taken.
    pub fn take_log(&self, lane: LaneIndex) -> Log {
        let home = self.homes.lock()[lane.as_usize()].take().expect("each lane's log is taken once");
        let placement = if self.cleaner_lane == Some(lane) { Placement::Holes } else { Placement::Runs };
        Log::new(lane, placement, home, self.lanes.len())
    }

    /// Numbers for so many blocks or removals.
    pub fn take_sequences(&self, count: u64) -> Sequence {
        let taken = if is_planted(Bug::SequencesOverlap) { count.max(2) - 1 } else { count };
        Sequence::new(self.next_sequence.fetch_add(taken, Ordering::Relaxed))
    }

    /// Above all sequences given so far, and how many cuts have begun: what was written before this call has a lower
    /// sequence, and no checkpoint behind the next has changes of it left.
    #[must_use]
    pub fn end_of_writes(&self) -> (Sequence, u64) {
        (Sequence::new(self.next_sequence.load(Ordering::Acquire)), self.cuts_begun())
    }

    /// Appends for each lane the last record known durable.
    pub fn append_marks(&self, marks: &mut Vec<ChainSequence>) {
        marks.extend(self.lanes.iter().map(|lane| ChainSequence::new(lane.mark.load(Ordering::Acquire))));
    }

    /// Free runs for a lane to fill, leaving `floor` blocks free.
    #[must_use]
    pub fn reserve_window(&self, placement: Placement, floor: u64) -> Vec<AddressRun> {
        let mut space = self.space.lock();
        // Near the floor, small windows leave something for the other lanes.
        let scarce = space.free_count().saturating_sub(floor) / (4 * to_u64(self.lanes.len()));
        let want = self.window_blocks.load(Ordering::Relaxed).min(scarce.max(SCARCE_WINDOW_BLOCKS));
        let window = match placement {
            Placement::Runs => space.reserve(want, floor),
            Placement::Holes => space.reserve_holes(want, floor),
        };
        let free = space.free_count();
        let is_stock_low = is_stock_low(&space);
        drop(space);
        if is_stock_low {
            self.want_stock();
        }
        let taken: u64 = window.iter().map(|run| run.count).sum();
        let since_cut = self.taken_since_cut.fetch_add(taken, Ordering::Relaxed) + taken;
        // What overwrites replaced waits for a checkpoint: it comes before half of what was free is gone.
        if since_cut >= free.max(self.reserve_blocks()) {
            self.want_checkpoint();
        }
        window
    }

    /// Frees what a lane reserved and did not use.
    pub fn return_window(&self, window: &[AddressRun]) {
        if window.is_empty() {
            return;
        }
        let mut space = self.space.lock();
        window.iter().for_each(|run| space.unreserve(*run));
        drop(space);
        if !is_planted(Bug::GivenBackUntold) {
            self.tell_space();
        }
        if let Some(signals) = self.signals.get() {
            signals.space_freed();
        }
    }

    /// Whether a lane has written nothing since the last checkpoint, given its next record.
    #[must_use]
    pub fn is_quiet_since_cut(&self, lane: LaneIndex, next: ChainSequence) -> bool {
        self.lanes[lane.as_usize()].cut.load(Ordering::Acquire) == next.get()
    }

    /// Blocks that only overwrites, removals and records may take.
    #[must_use]
    pub fn reserve_blocks(&self) -> u64 {
        self.reserve_blocks.load(Ordering::Relaxed)
    }

    /// Takes a batch into the pool's view, in the order of the lane's chain: runs `lay` under the guard that
    /// keeps a cut away, then moves the lane's position behind the batch.
    pub fn lay_batch(&self, lane: LaneIndex, batch: &DoneBatch, lay: impl FnOnce(&crate::map::LayGuard<'_>)) {
        let shared = &self.lanes[lane.as_usize()];
        let guard = self.changes.lay();
        // Before the batch counts as completed: a flush that covers it finds the mark, unless one that began later than
        // the batch's writes ended has taken it.
        for run in batch.record.segments.iter().chain([&batch.record_run]) {
            self.is_written[run.start.device().as_usize()].store(true, Ordering::Release);
        }
        lay(&guard);
        *shared.position.lock() = (batch.chain.next(), batch.record.next);
        shared.spent.lock().push_back((batch.chain, batch.record_run));
        shared.completed.store(batch.chain.get(), Ordering::Release);
        shared.laid_blocks.fetch_add(to_u64(batch.record.macs.len()), Ordering::Relaxed);
        self.write_generation.fetch_add(1, Ordering::AcqRel);
        drop(guard);
        let is_much = self.changes.active_count() >= self.limits.changes_soft_max
            || to_u64(shared.spent.lock().len()) >= self.limits.records_soft_max;
        if is_much {
            self.want_checkpoint();
        }
    }

    /// Whether writes must wait for the running checkpoint.
    #[must_use]
    pub fn is_change_limit_reached(&self) -> bool {
        self.changes.active_count() >= self.limits.changes_hard_max
    }

    /// Takes the reserve of `meta/` back if it is gone and there is space for it. Never on a lane.
    pub fn restore_meta_reserve(&self) {
        if !self.store.restore_reserve() {
            return;
        }
        self.tell_space();
        // The cleaner rested.
        if let Some(signals) = self.signals.get() {
            signals.space_freed();
        }
    }

    /// Whether `meta/` lives on its reserve: then nothing may be begun that needs more space.
    #[must_use]
    pub fn is_meta_reserve_gone(&self) -> bool {
        self.store.is_reserve_gone()
    }

    /// Wakes every lane.
    pub fn wake_all_lanes(&self) {
        if let Some(signals) = self.signals.get() {
            signals.wake_lanes();
        }
    }

    /// Wakes one lane.
    pub fn wake_lane(&self, lane: LaneIndex) {
        if let Some(signals) = self.signals.get() {
            signals.wake_lane(lane);
        }
    }

    /// Asks for free space to be made fit for use.
    pub fn want_stock(&self) {
        if let Some(signals) = self.signals.get() {
            signals.want_stock();
        }
    }

    /// Asks for a checkpoint.
    pub fn want_checkpoint(&self) {
        if let Some(signals) = self.signals.get() {
            signals.want_checkpoint();
        }
    }

    /// Checkpoints whose cut has begun: one that begins later has a higher number.
    #[must_use]
    pub fn cuts_begun(&self) -> u64 {
        self.cuts_begun.load(Ordering::Acquire)
    }

    /// Checkpoints that are done.
    #[must_use]
    pub fn checkpoints_done(&self) -> u64 {
        self.checkpoints_done.load(Ordering::Acquire)
    }

    /// What tells those who hold writes back that these have ended.
    #[must_use]
    pub const fn exits(&self) -> &Arc<Exits> {
        &self.exits
    }

    /// Stops writes for good: a device or `meta/` failed. Reads go on.
    pub fn fail(&self, reason: String) {
        let mut failure = self.failure.write();
        if failure.is_none() {
            tracing::error!(%reason, "the pool stops accepting writes");
            *failure = Some(reason);
        }
        drop(failure);
        self.is_failed.store(true, Ordering::Release);
        // Under the lock: who waits for a flush looks at the failure before it sleeps.
        let is_flushing = self.is_flushing.lock();
        self.flush_ended.notify_all();
        drop(is_flushing);
        self.exits.fail();
        if let Some(signals) = self.signals.get() {
            signals.wake_lanes();
        }
    }

    /// Whether writes are refused.
    ///
    /// # Errors
    /// [`IoError::Io`] after a failure.
    pub fn check_writable(&self) -> Result<(), IoError> {
        if self.is_failed.load(Ordering::Acquire) { Err(IoError::Io) } else { Ok(()) }
    }

    /// Whether changes are stored, for who tells a person.
    ///
    /// # Errors
    /// [`ErrorKind::Other`] after a failure, with the way out.
    pub fn check_healthy(&self) -> Result<(), Error> {
        self.check_writable().map_err(|_| {
            Error::new(ErrorKind::Other, "The pool has failed: nothing is stored any more")
                .with_hint("`rok-blk status` says why; restart the daemon once the device is repaired")
        })
    }

    /// Passes the result of a commit on. Any error but a lack of space leaves open what is stored, and fails the pool: by who has
    /// the turn, so that nobody who has it next builds on that.
    pub(super) fn fail_unless_stored<T>(&self, committed: Result<T, Error>) -> Result<T, Error> {
        committed.inspect_err(|error| {
            if error.kind() != ErrorKind::NoSpace {
                self.fail(error.to_string());
            }
        })
    }

    /// An overwrite or a removal, which may use the reserve, has blocks in a batch.
    pub fn begin_reserve_use(&self) {
        self.reserve_uses[0].fetch_add(1, Ordering::AcqRel);
    }

    /// A batch with such blocks is over: what they replaced comes back with a checkpoint that begins from now on.
    pub fn end_reserve_use(&self) {
        self.reserve_uses[1].fetch_add(1, Ordering::AcqRel);
    }

    /// Whether such batches are under way, and how many are over: what needs the reserve has only to wait while one is, or
    /// this number grows.
    #[must_use]
    pub fn reserve_use(&self) -> (bool, u64) {
        let ended = self.reserve_uses[1].load(Ordering::Acquire);
        (self.reserve_uses[0].load(Ordering::Acquire) > ended, ended)
    }

    /// Counts a block that is damaged on its device.
    pub fn count_damaged_block(&self) {
        self.damaged_blocks.fetch_add(1, Ordering::Relaxed);
    }

    /// Frees blocks at once: only for the planted bug.
    pub fn free_early(&self, address: Address) {
        if is_planted(Bug::ReuseBeforeCheckpoint) {
            self.space.lock().free(address);
        }
    }
}

/// A window near the floor.
const SCARCE_WINDOW_BLOCKS: u64 = 8;
