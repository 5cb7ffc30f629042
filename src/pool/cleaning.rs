//! What a cleaner asks the pool: which stretch to empty, for whom its blocks were written, how much may be moved.
//!
//! A cleaner makes long free runs out of holes. It moves blocks by ordinary writes, so a crash at any moment is that of a
//! write, and the places that it empties become free as all do: in a checkpoint. Owners are hints, verified against the map
//! by who moves a block.

use crate::error::Result;
use crate::format::key::OWNER_GROUP_SHIFT;
use crate::format::owner::OwnerRun;
use crate::meta::Table;
use crate::pool::Pool;
use crate::pool::catalog::meta_error;
use crate::pool::space::{FreeShape, SparseStretch, Stretch};
use crate::units::{Address, LaneIndex, STRETCH_BLOCKS, to_usize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

/// Addresses of a group.
pub const GROUP_BLOCKS: u64 = 1 << OWNER_GROUP_SHIFT;
/// What is written in all for each block that users write, at most, without the records: the cleaner moves no more than
/// they have written since the pool was opened.
pub const WRITE_AMPLIFICATION_MAX: u64 = 2;
/// Sparse stretches that are listed in one go.
const CANDIDATES_MAX: usize = 16_384;
/// A stretch of a pool in use in which more than this share of the blocks is neither free nor stored is being written. In
/// an idle pool such a block stays where it is, the place of a lane's next record, and emptying the rest would gain nothing.
const BUSY_SHARE: u64 = 16;
/// A stretch that was emptied in vain because of records or windows of lanes is tried again when so many of its blocks were
/// freed since.
const RETRY_BLOCKS: u16 = 64;
/// Records of single blocks hold so many blocks at least.
const RECORD_SHARE: u64 = 32;
const STRETCH_WORDS: usize = to_usize(STRETCH_BLOCKS) / 64;

/// Addresses whose owners are stored together: 256 of them, the first a multiple of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressGroup {
    first: Address,
}

/// How eagerly space is cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Nobody uses the pool: what gains anything is done.
    Idle,
    /// Long runs are scarce and the pool is in use: only what costs little.
    Scarce,
}

/// Stretches that were emptied in vain, and how. Those of one pool, a few bytes each.
pub type Tried = BTreeMap<Stretch, Attempt>;

/// Blocks of a stretch that stored leaves map, a bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveBlocks(Box<[u64; STRETCH_WORDS]>);

/// How a stretch was left that was emptied in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// How many blocks lived there before and still do: snapshots map them, nobody is known to own them, or they are damaged.
    /// None where only records and windows of lanes were in the way.
    stayed: u16,
    /// Blocks of it that had been freed by then, modulo 2^32.
    freed: u32,
}

/// A pass over the sparse stretches of a pool, the sparsest first. Each is looked at once, more or less: they change
/// meanwhile.
#[derive(Debug, Default)]
pub struct Pass {
    /// Those that come next.
    listed: VecDeque<SparseStretch>,
    /// The last that was listed.
    last: Option<SparseStretch>,
}

/// What emptying a stretch may take.
struct Means {
    /// Free blocks that it has at least.
    free_min: u64,
    /// Blocks that may be moved.
    moves_left: u64,
    /// Holes of open stretches, also those of this one.
    open_holes: u64,
    /// Blocks of it that records and windows of lanes may take.
    pinned_max: u64,
}

/// How free space lies, and what was done about it since the pool was opened. In blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleaningStatus {
    /// How the free blocks lie.
    pub shape: FreeShape,
    /// Blocks that users wrote.
    pub written: u64,
    /// Blocks that the cleaner moved.
    pub moved: u64,
}

impl CleaningStatus {
    /// Blocks written for each block that users wrote, without records.
    #[must_use]
    pub fn write_amplification(&self) -> f64 {
        let as_float = |count: u64| f64::from(u32::try_from(count >> 8).unwrap_or(u32::MAX));
        if self.written < GROUP_BLOCKS { 1.0 } else { 1.0 + as_float(self.moved) / as_float(self.written) }
    }
}

impl LiveBlocks {
    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn count_in_both(&self, other: &Self) -> u64 {
        self.0.iter().zip(other.0.iter()).map(|(word, other)| u64::from((word & other).count_ones())).sum()
    }
}

impl Attempt {
    /// Whether the next one may end better, now that so many blocks were freed. What was freed and taken again counts: all
    /// that stayed can be gone only if as many were freed.
    fn is_out_of_date(self, urgency: Urgency, freed: u32) -> bool {
        let enough = if self.stayed == 0 { RETRY_BLOCKS } else { self.stayed };
        // Of an idle pool no stretch is chosen in which records or windows are in the way.
        urgency == Urgency::Idle && self.stayed == 0 || freed.wrapping_sub(self.freed) >= u32::from(enough)
    }
}

impl AddressGroup {
    /// The groups of a stretch.
    pub fn of_stretch(stretch: Stretch) -> impl Iterator<Item = Self> {
        let first = Address::new(stretch.device, stretch.index * STRETCH_BLOCKS);
        (0..STRETCH_BLOCKS / GROUP_BLOCKS).map(move |group| Self { first: first.plus(group * GROUP_BLOCKS) })
    }
}

impl Pool {
    /// The lane that fills holes, if the pool was opened with one.
    #[must_use]
    pub const fn cleaner_lane(&self) -> Option<LaneIndex> {
        self.cleaner_lane
    }

    /// Counts a request of a lane.
    pub fn count_request(&self, lane: LaneIndex) {
        self.lanes[lane.as_usize()].requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that all lanes were given since the pool was opened.
    #[must_use]
    pub fn request_count(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.requests.load(Ordering::Relaxed)).sum()
    }

    /// Counts blocks that were moved.
    pub fn count_moved(&self, blocks: u64) {
        self.moved_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    /// How free space lies, and what was done about it.
    #[must_use]
    pub fn cleaning_status(&self) -> CleaningStatus {
        let moved = self.moved_blocks.load(Ordering::Relaxed);
        let laid: u64 = self.lanes.iter().map(|lane| lane.laid_blocks.load(Ordering::Relaxed)).sum();
        CleaningStatus { shape: self.space.lock().shape(), written: laid.saturating_sub(moved), moved }
    }

    /// Chooses a stretch to empty and closes it: the next of a pass that is worth it and whose blocks have room elsewhere.
    /// `None` if there is none, which ends the pass, or nothing may be moved now.
    #[must_use]
    pub fn close_sparse_stretch(&self, urgency: Urgency, tried: &Tried, pass: &mut Pass) -> Option<Stretch> {
        // Then moves are refused.
        if self.is_change_limit_reached() || self.is_meta_reserve_gone() {
            return None;
        }
        let status = self.cleaning_status();
        let moves_left = (status.written * (WRITE_AMPLIFICATION_MAX - 1)).saturating_sub(status.moved);
        if moves_left == 0 {
            return None;
        }
        let open_holes = self.space.lock().open_hole_blocks();
        let (free_min, pinned_max) = match urgency {
            Urgency::Idle => (STRETCH_BLOCKS / 16, 0),
            Urgency::Scarce => (STRETCH_BLOCKS / 2, STRETCH_BLOCKS / BUSY_SHARE),
        };
        let means = Means { free_min, moves_left, open_holes, pinned_max };
        loop {
            while let Some(SparseStretch { stretch, freed, .. }) = pass.listed.pop_front() {
                let is_new = tried.get(&stretch).is_none_or(|last| last.is_out_of_date(urgency, freed));
                if is_new && self.close_if_worth_it(&means, stretch) {
                    return Some(stretch);
                }
            }
            pass.listed = self.space.lock().sparsest(free_min, pass.last, CANDIDATES_MAX).into();
            pass.last = pass.listed.back().copied();
            pass.last?;
        }
    }

    /// Closes a stretch, if emptying it gains anything.
    fn close_if_worth_it(&self, means: &Means, stretch: Stretch) -> bool {
        // Never both locks: who checks the pool holds the stored state when it looks at the free space.
        let live = self.live_blocks(stretch).count();
        let mut space = self.space.lock();
        let (free, capacity) = space.free_in(stretch);
        let room = space.free_count().saturating_sub(2 * self.reserve_blocks());
        let is_sparse = free >= means.free_min && live > 0;
        let is_busy = (capacity - free).saturating_sub(live) > means.pinned_max;
        // Moved into a whole stretch it would gain what it takes, and be the sparsest again. Records take room as well.
        let has_holes = means.open_holes.saturating_sub(free) >= live + live / RECORD_SHARE + GROUP_BLOCKS;
        let has_room = live <= means.moves_left && live + GROUP_BLOCKS <= room;
        let is_worth_it = is_sparse && !is_busy && has_holes && has_room;
        if is_worth_it {
            space.close(stretch);
        }
        is_worth_it
    }

    /// How a closed stretch that was emptied of what `lived` there is left, if not all of it is free.
    #[must_use]
    pub fn attempt_on(&self, stretch: Stretch, lived: &LiveBlocks) -> Option<Attempt> {
        // Before the look at what stayed: what is freed meanwhile comes into the next one.
        let freed = self.space.lock().freed_in(stretch);
        let stayed = self.live_blocks(stretch).count_in_both(lived);
        let (free, capacity) = self.space.lock().free_in(stretch);
        let stayed = u16::try_from(stayed).expect("a stretch has 4096 blocks");
        (free < capacity).then_some(Attempt { stayed, freed })
    }

    /// Uses a stretch again that was closed.
    pub fn reopen_stretch(&self, stretch: Stretch) {
        self.space.lock().reopen(stretch);
    }

    /// Blocks that can hold data or records.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.space.lock().block_count()
    }

    /// For whom the addresses of a group that stored leaves map were written, as far as that is known. Reads the store.
    ///
    /// # Errors
    /// The store's failure.
    pub fn owners_of(&self, group: AddressGroup) -> Result<Vec<(Address, OwnerRun)>> {
        let live = self.live_bits(group);
        if live.iter().all(|word| *word == 0) {
            return Ok(Vec::new());
        }
        let group_key = crate::format::key::owner_group(group.first);
        let value = self.store().get(Table::Owners, &group_key);
        let value = value.map_err(|error| meta_error("Reading owners", error))?;
        let is_live = |offset: u16| live[usize::from(offset >> 6)] >> (offset & 63) & 1 == 1;
        let mut owners = Vec::new();
        for run in self.read_owners(&group_key, value.as_deref()) {
            let mut step = 0;
            while step < run.count {
                let first = step;
                while step < run.count && is_live(u16::from(run.offset) + step) {
                    step += 1;
                }
                if step > first {
                    let offset = u8::try_from(u16::from(run.offset) + first).expect("a group has 256 addresses");
                    let block = run.block.plus(u64::from(first));
                    let address = group.first.plus(u64::from(offset));
                    owners.push((address, OwnerRun { offset, count: step - first, block, ..run }));
                }
                step += 1;
            }
        }
        Ok(owners)
    }

    /// Blocks of a stretch that stored leaves map.
    #[must_use]
    pub fn live_blocks(&self, stretch: Stretch) -> LiveBlocks {
        let stored = self.stored.lock();
        let bits = stored.used.get(stretch.device.as_usize()).and_then(|device| device.get(to_usize(stretch.index)));
        LiveBlocks(Box::new(bits.map_or([0; STRETCH_WORDS], |bits| std::array::from_fn(|index| bits[index]))))
    }

    fn live_bits(&self, group: AddressGroup) -> [u64; 4] {
        let block = group.first.block();
        let stored = self.stored.lock();
        let device = stored.used.get(group.first.device().as_usize());
        let stretch = device.and_then(|device| device.get(to_usize(block / STRETCH_BLOCKS)));
        let word = to_usize(block % STRETCH_BLOCKS / 64);
        stretch.map_or([0; 4], |bits| std::array::from_fn(|index| bits[word + index]))
    }
}

const _: () = assert!(GROUP_BLOCKS == 4 * 64);
