//! A lane's log: the open batch, the batches in flight, and the window that they fill.
//!
//! A batch is its record, then its data blocks. The address of the record (the *home*) was fixed by the record
//! before it, so recovery finds the chain. Batches are submitted and acknowledged in the order of the
//! chain; their device writes complete in any order. Owned by one lane, never shared.
//!
//! Invariant: the home's first block is always reserved, and a batch is closed only when its data and the next
//! home are reserved too.

mod batch;

pub use batch::{BatchWrite, DoneBatch};

use self::batch::{Flying, OpenBatch, append_batch_writes, empty_record};
use crate::disk::IoBuffer;
use crate::format::record::{
    BATCH_BLOCKS_MAX, RECORD_BLOCKS_MAX, RECORD_HEAD_BYTES, Record, RecordPlace, Removal, WriteRun, blocks_for_body,
    body_bytes,
};
use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use crate::pool::space::WINDOW_RUNS_MAX;
use crate::units::{AddressRun, BLOCK_SIZE, ChainSequence, LaneIndex, blocks_to_bytes, to_u64, to_usize};
use std::collections::VecDeque;

/// With fewer batches than this in flight the open one is closed however small it is: the device has little to do.
const FLIGHT_SMALL_MAX: usize = 2;
/// With fewer than this it is closed if it is worth a write of its own: a device does more large writes at once.
const FLIGHT_LARGE_MAX: usize = 4;
const LARGE_BATCH_BLOCKS: usize = 16;
/// Batches in flight at most; then writes wait.
pub const FLIGHT_MAX: usize = 8;
/// Blocks after which a batch is closed while the device has little to do: it begins with them while the lane encrypts
/// the next.
const EARLY_BATCH_BLOCKS: usize = 64;
/// With fewer blocks than this in flight the device has little to do.
const EARLY_FLYING_BLOCKS: usize = 192;
/// Requests (or parts of them) that one batch acknowledges at most.
const PARTS_MAX: usize = 512;
/// A record with a full batch behind it.
const FULL_BATCH_BLOCKS: u64 = (RECORD_BLOCKS_MAX + BATCH_BLOCKS_MAX) as u64;
/// Bytes of a record's body for each: see `format::record`.
const MAC_BYTES: usize = 8;
const SEGMENT_BYTES: usize = 16;
const REMOVAL_BYTES: usize = 40;

/// Which free blocks a lane takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The longest runs.
    Runs,
    /// Holes among blocks in use: for what has time.
    Holes,
}

/// Why nothing can be appended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The open batch is full, or too many are in flight: wait for one.
    Full,
    /// No block may be taken under the given floor.
    NoSpace,
    /// A snapshot of the volume is made: wait for it.
    Closed,
}

/// The log of one lane.
pub struct Log {
    lane: LaneIndex,
    placement: Placement,
    /// Number of the record that opens the open batch.
    chain: ChainSequence,
    /// Where that record goes, and the free blocks right behind.
    home: AddressRun,
    /// Further reserved runs.
    window: Vec<AddressRun>,
    open: Option<OpenBatch>,
    flying: VecDeque<Flying>,
    /// Memory of batches that are done, for the next ones.
    spare_buffers: Vec<IoBuffer>,
    spare_records: Vec<(Record, Vec<u32>)>,
    /// What a record is before it is sealed.
    scratch: Vec<u8>,
    mark_count: usize,
    /// Removals of the planted bug, by batch.
    unlogged: Vec<(ChainSequence, Vec<Removal>)>,
}

impl Log {
    /// A log whose first record goes to the start of `home`.
    #[must_use]
    pub fn new(lane: LaneIndex, placement: Placement, home: AddressRun, mark_count: usize) -> Self {
        Self {
            lane,
            placement,
            chain: ChainSequence::new(1),
            home,
            window: Vec::new(),
            open: None,
            flying: VecDeque::new(),
            spare_buffers: Vec::new(),
            spare_records: Vec::new(),
            scratch: Vec::new(),
            mark_count,
            unlogged: Vec::new(),
        }
    }

    /// Blocks that a write of `want` blocks may append now, at least 1.
    ///
    /// # Errors
    /// [`Refusal`] if not even one fits.
    pub fn room_for_blocks(&mut self, pool: &Pool, want: usize, floor: u64) -> Result<usize, Refusal> {
        self.refill(pool, floor, want);
        let (open_blocks, parts) = self.open_counts();
        let reserved = self.home.count + self.window_count();
        let for_data = to_usize(reserved).saturating_sub(self.record_blocks_max() + 1 + open_blocks);
        if for_data == 0 {
            return Err(self.out_of_room());
        }
        let batch_blocks = if self.is_device_idle() { EARLY_BATCH_BLOCKS } else { BATCH_BLOCKS_MAX };
        let most = want.min(batch_blocks.saturating_sub(open_blocks)).min(for_data);
        let room = if self.body_left(1, most) > 0 {
            most
        } else {
            // Each further block takes its mac, and at most a segment of its own.
            most.min(self.body_left(1, 0) / (MAC_BYTES + SEGMENT_BYTES))
        };
        if room == 0 || parts >= PARTS_MAX { Err(Refusal::Full) } else { Ok(room) }
    }

    /// Removals that may be appended now, at least 1.
    ///
    /// # Errors
    /// [`Refusal`] if not even one fits.
    pub fn room_for_removals(&mut self, pool: &Pool, floor: u64) -> Result<usize, Refusal> {
        self.refill(pool, floor, 0);
        let (open_blocks, parts) = self.open_counts();
        let reserved = self.home.count + self.window_count();
        if reserved <= to_u64(self.record_blocks_max() + open_blocks) {
            return Err(self.out_of_room());
        }
        let room = self.body_left(0, 0) / REMOVAL_BYTES;
        if room == 0 || parts >= PARTS_MAX { Err(Refusal::Full) } else { Ok(room) }
    }

    /// The window is used up. Among short runs an open batch may be all that holds it: closing it makes room for more,
    /// which a checkpoint would not.
    const fn out_of_room(&self) -> Refusal {
        if self.open.is_some() { Refusal::Full } else { Refusal::NoSpace }
    }

    /// Appends the blocks of a run: `fill` gets each block's index in the run and its place in the batch, and
    /// returns the block's mac.
    ///
    /// # Panics
    /// If [`Self::room_for_blocks`] did not allow it.
    pub fn append_run(&mut self, run: WriteRun, part: u32, mut fill: impl FnMut(usize, &mut [u8]) -> u64) {
        let open = self.open_batch();
        let count = to_usize(u64::from(run.count));
        let first = open.record.macs.len();
        assert!(first + count <= BATCH_BLOCKS_MAX);
        let start = blocks_to_bytes(RECORD_BLOCKS_MAX + first);
        let place = open.buffer.slice(start..start + blocks_to_bytes(count));
        place.with_bytes_mut(|bytes| {
            for (index, block) in bytes.chunks_exact_mut(BLOCK_SIZE).enumerate() {
                open.record.macs.push(fill(index, block));
            }
        });
        open.record.runs.push(run);
        open.parts.push(part);
    }

    /// Appends removals, all for one part.
    pub fn append_removals(&mut self, removals: &[Removal], part: u32) {
        let open = self.open_batch();
        open.record.removals.extend_from_slice(removals);
        open.parts.push(part);
    }

    /// The planted bug: the part is acknowledged with the batch, but the log says nothing of its removals.
    pub fn append_unlogged(&mut self, removals: &[Removal], part: u32) {
        assert!(is_planted(Bug::DiscardNotLogged));
        self.unlogged.push((self.chain, removals.to_vec()));
        self.append_removals(&[], part);
    }

    /// Whether the open batch should be closed before more blocks are appended, since the device has little to do.
    #[must_use]
    pub fn is_full_for_idle_device(&self) -> bool {
        self.is_device_idle() && self.open_counts().0 >= EARLY_BATCH_BLOCKS
    }

    fn is_device_idle(&self) -> bool {
        let flying_blocks: usize = self.flying.iter().map(|flying| flying.batch.record.macs.len()).sum();
        flying_blocks < EARLY_FLYING_BLOCKS
    }

    /// Whether the open batch holds anything.
    #[must_use]
    pub const fn has_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the open batch, if there is one, should be closed now although it is not full.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let is_large = self.open_counts().0 >= LARGE_BATCH_BLOCKS;
        self.has_open() && self.flying.len() < if is_large { FLIGHT_LARGE_MAX } else { FLIGHT_SMALL_MAX }
    }

    /// Batches in flight.
    #[must_use]
    pub fn flying_count(&self) -> usize {
        self.flying.len()
    }

    /// Whether nothing is open or in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open.is_none() && self.flying.is_empty()
    }

    /// What is reserved for the next records and data.
    #[must_use]
    pub fn reserved_runs(&self) -> Vec<AddressRun> {
        [self.home].into_iter().chain(self.window.iter().copied()).collect()
    }

    /// Closes the open batch; returns its number and appends the device writes that it takes.
    ///
    /// # Panics
    /// If there is no open batch.
    pub fn close(&mut self, pool: &Pool, writes: &mut Vec<BatchWrite>) -> ChainSequence {
        let OpenBatch { buffer, mut record, parts } =
            self.open.take().expect("the caller asked whether a batch is open");
        let (record_blocks, is_home_skipped) = self.record_blocks(&record);
        let record_run = AddressRun { start: self.home.start, count: to_u64(record_blocks) };
        self.take_segments(record_run, &mut record, is_home_skipped);
        record.next = self.home.start;
        pool.append_marks(&mut record.marks);
        let chain = self.chain;
        let place =
            RecordPlace { pool: pool.id(), session: pool.session(), lane: self.lane, chain, address: record_run.start };
        let head = blocks_to_bytes(RECORD_BLOCKS_MAX - record_blocks)..blocks_to_bytes(RECORD_BLOCKS_MAX);
        let keys = pool.session_keys();
        buffer.slice(head).with_bytes_mut(|target| record.encode(&place, keys, target, &mut self.scratch));
        let writes_before = writes.len();
        append_batch_writes(writes, &buffer, record_run, &record.segments);
        let batch = DoneBatch { chain, record_run, record, parts };
        self.flying.push_back(Flying { batch, buffer, writes_left: writes.len() - writes_before });
        self.chain = chain.next();
        chain
    }

    /// Counts a device write of a batch as done.
    ///
    /// # Panics
    /// If no such batch is in flight.
    pub fn write_done(&mut self, chain: ChainSequence) {
        let first = self.flying.front().expect("a write belongs to a batch in flight").batch.chain;
        let index = to_usize(chain.get() - first.get());
        self.flying[index].writes_left -= 1;
    }

    /// The oldest batch in flight, if it is done.
    pub fn pop_done(&mut self) -> Option<DoneBatch> {
        if self.flying.front()?.writes_left > 0 {
            return None;
        }
        let mut flying = self.flying.pop_front()?;
        self.unlogged.retain(|(chain, removals)| {
            let is_of_batch = *chain == flying.batch.chain;
            if is_of_batch {
                flying.batch.record.removals.extend_from_slice(removals);
            }
            !is_of_batch
        });
        if self.spare_buffers.len() < FLIGHT_MAX {
            self.spare_buffers.push(flying.buffer);
        }
        Some(flying.batch)
    }

    /// Takes back the memory of a batch that was done.
    pub fn recycle(&mut self, batch: DoneBatch) {
        let DoneBatch { mut record, mut parts, .. } = batch;
        record.marks.clear();
        record.runs.clear();
        record.macs.clear();
        record.segments.clear();
        record.removals.clear();
        parts.clear();
        if self.spare_records.len() < FLIGHT_MAX {
            self.spare_records.push((record, parts));
        }
    }

    /// Gives back what is reserved but for the place of the next record: the lane is idle, and a few blocks here and there
    /// keep whole stretches from being free.
    ///
    /// # Panics
    /// If a batch is open or in flight.
    pub fn give_back_window(&mut self, pool: &Pool) {
        assert!(self.is_idle(), "what a batch takes is not given back");
        let rest = AddressRun { start: self.home.start.plus(1), count: self.home.count - 1 };
        self.home.count = 1;
        self.window.push(rest);
        self.window.retain(|run| run.count > 0);
        pool.return_window(&std::mem::take(&mut self.window));
    }

    /// Number of the record that comes next.
    #[must_use]
    pub const fn next_chain(&self) -> ChainSequence {
        self.chain
    }

    /// All parts that wait for a batch, open or in flight: when the device has failed.
    pub fn abandon(&mut self) -> Vec<u32> {
        let flying = self.flying.iter_mut().flat_map(|flying| std::mem::take(&mut flying.batch.parts));
        flying.chain(self.open.take().into_iter().flat_map(|open| open.parts)).collect()
    }

    fn open_batch(&mut self) -> &mut OpenBatch {
        let (buffers, records, home) = (&mut self.spare_buffers, &mut self.spare_records, self.home.start);
        self.open.get_or_insert_with(|| {
            let new_buffer = || IoBuffer::allocate(blocks_to_bytes(RECORD_BLOCKS_MAX + BATCH_BLOCKS_MAX));
            let (record, parts) = records.pop().unwrap_or_else(|| (empty_record(home), Vec::new()));
            OpenBatch { buffer: buffers.pop().unwrap_or_else(new_buffer), record, parts }
        })
    }

    fn window_count(&self) -> u64 {
        self.window.iter().map(|run| run.count).sum()
    }

    fn record_blocks_max(&self) -> usize {
        RECORD_BLOCKS_MAX.min(to_usize(self.home.count))
    }

    /// Blocks and parts of the open batch.
    fn open_counts(&self) -> (usize, usize) {
        self.open.as_ref().map_or((0, 0), |open| (open.record.macs.len(), open.parts.len()))
    }

    /// Bytes that the body of the open batch's record may still grow by, behind so many more runs and blocks. Blocks that do
    /// not fit behind the record are counted with a segment each, as far as there are runs.
    fn body_left(&self, runs: usize, blocks: usize) -> usize {
        let record_blocks = self.record_blocks_max();
        let capacity = blocks_to_bytes(record_blocks) - RECORD_HEAD_BYTES;
        let (open_runs, open_removals) =
            self.open.as_ref().map_or((0, 0), |open| (open.record.runs.len(), open.record.removals.len()));
        let blocks = self.open_counts().0 + blocks;
        let elsewhere = blocks.saturating_sub(to_usize(self.home.count) - record_blocks);
        let segments = 1 + elsewhere.min(self.window.len());
        let used = body_bytes(self.mark_count, open_runs + runs, blocks, segments, open_removals);
        capacity.saturating_sub(used)
    }

    /// Reserves more runs if a full batch and the next home might not fit.
    fn refill(&mut self, pool: &Pool, floor: u64, want_blocks: usize) {
        let (open_blocks, _) = self.open_counts();
        let enough = FULL_BATCH_BLOCKS.min(to_u64(RECORD_BLOCKS_MAX + open_blocks + want_blocks + 1));
        // Two rounds: the emptiest stretch of a full pool may hold a single block.
        for _ in 0..2 {
            if self.home.count + self.window_count() > enough || self.window.len() >= WINDOW_RUNS_MAX {
                return;
            }
            self.window.extend(pool.reserve_window(self.placement, floor));
        }
    }

    /// Blocks of a batch's record, exact, since the segments are what `take_segments` will take; and whether no data goes
    /// behind the record.
    fn record_blocks(&self, record: &Record) -> (usize, bool) {
        let block_count = record.macs.len();
        let bound = |segments: usize| {
            let (runs, removals) = (record.runs.len(), record.removals.len());
            blocks_for_body(body_bytes(self.mark_count, runs, block_count, segments, removals))
        };
        let mut record_blocks = bound(0);
        // More record blocks leave fewer data blocks at home, which may take one more segment: at most a few turns.
        loop {
            let segments = self.segment_count(to_u64(record_blocks), to_u64(block_count));
            let needed = bound(segments);
            // A record that fills its home leaves no segment there, and may be shorter for it. Then a block of the home
            // is left over, which must not be taken: with its segment the record would be longer again.
            if needed <= record_blocks {
                return (needed, needed < record_blocks);
            }
            record_blocks = needed;
        }
    }

    fn segment_count(&self, record_blocks: u64, block_count: u64) -> usize {
        let at_home = (self.home.count - record_blocks).min(block_count);
        let mut left = block_count - at_home;
        let mut segments = usize::from(at_home > 0);
        for run in &self.window {
            if left == 0 {
                break;
            }
            left -= left.min(run.count);
            segments += 1;
        }
        assert!(left == 0, "room_for_blocks reserved enough");
        segments
    }

    /// Takes the data blocks behind the record, then from the window, and makes the next home.
    ///
    /// A batch may end inside the home's run only if its record's blocks and data do not use up everything:
    /// the record's length depends on its segments, so a longer record than planned never happens here.
    fn take_segments(&mut self, record_run: AddressRun, record: &mut Record, is_home_skipped: bool) {
        let segments = &mut record.segments;
        let mut left = to_u64(record.macs.len());
        let mut rest =
            AddressRun { start: self.home.start.plus(record_run.count), count: self.home.count - record_run.count };
        let mut take = |run: &mut AddressRun| {
            let count = run.count.min(left);
            if count > 0 {
                segments.push(AddressRun { start: run.start, count });
                *run = AddressRun { start: run.start.plus(count), count: run.count - count };
                left -= count;
            }
        };
        if !is_home_skipped {
            take(&mut rest);
        }
        for run in &mut self.window {
            take(run);
        }
        self.window.push(rest);
        self.window.retain(|run| run.count > 0);
        self.home = self.choose_home(rest);
    }

    /// Right behind this batch while a full batch fits there, else the longest run.
    fn choose_home(&mut self, behind: AddressRun) -> AddressRun {
        let index = if behind.count >= FULL_BATCH_BLOCKS {
            self.window.len() - 1
        } else {
            let longest = self.window.iter().enumerate().max_by_key(|(index, run)| (run.count, *index));
            longest.map(|(index, _)| index).expect("room for the next home was reserved")
        };
        self.window.swap_remove(index)
    }
}

#[cfg(test)]
mod tests;
