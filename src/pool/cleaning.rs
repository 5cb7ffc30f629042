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
use crate::pool::space::{FreeShape, Stretch};
use crate::units::{Address, LaneIndex, STRETCH_BLOCKS, to_usize};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Addresses of a group.
pub const GROUP_BLOCKS: u64 = 1 << OWNER_GROUP_SHIFT;
/// What is written in all for each block that users write, at most, without the records: the cleaner moves no more than
/// they have written since the pool was opened.
pub const WRITE_AMPLIFICATION_MAX: u64 = 2;
/// Sparse stretches among which the next one is chosen.
const CANDIDATES_MAX: usize = 64;
/// A stretch of a pool in use in which more than this share of the blocks is neither free nor stored is being written. In
/// an idle pool such a block stays where it is, the place of a lane's next record, and emptying the rest would gain nothing.
const BUSY_SHARE: u64 = 16;
/// A stretch that was emptied in vain is tried again when so many more of its blocks are free.
const RETRY_BLOCKS: u64 = 64;
/// It is also tried again when so many more of its blocks are in use than then: it was filled since.
const REFILLED_BLOCKS: u64 = STRETCH_BLOCKS / BUSY_SHARE;
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

/// Stretches that were emptied in vain, and how.
pub type Tried = BTreeMap<Stretch, Attempt>;

/// Blocks of a stretch that stored leaves map, a bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveBlocks(Box<[u64; STRETCH_WORDS]>);

/// How a stretch was left that was emptied in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What lived there before and still does: snapshots map it, nobody is known to own it, it is damaged, or space ran out.
    /// Nothing stays where only records and windows of lanes were in the way.
    stayed: LiveBlocks,
    free: u64,
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

    fn and(mut self, other: &Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0.iter()) {
            *word &= other;
        }
        self
    }
}

impl Attempt {
    /// Whether the next one may end better.
    fn is_out_of_date(&self, urgency: Urgency, live: LiveBlocks, free: u64) -> bool {
        let is_changed = free >= self.free + RETRY_BLOCKS || free + REFILLED_BLOCKS <= self.free;
        let (stayed, stays) = (self.stayed.count(), live.and(&self.stayed).count());
        // Of an idle pool no stretch is chosen in which records or windows are in the way.
        is_changed || urgency == Urgency::Idle && (stays == 0 || stays + RETRY_BLOCKS <= stayed)
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

    /// Chooses a stretch to empty and closes it: the sparsest that is worth it and whose blocks have room elsewhere. `None`
    /// if there is none, or nothing more may be moved.
    #[must_use]
    pub fn close_sparse_stretch(&self, urgency: Urgency, tried: &Tried) -> Option<Stretch> {
        let status = self.cleaning_status();
        let moves_left = (status.written * (WRITE_AMPLIFICATION_MAX - 1)).saturating_sub(status.moved);
        let (free_min, pinned_max) = match urgency {
            Urgency::Idle => (STRETCH_BLOCKS / 16, 0),
            Urgency::Scarce => (STRETCH_BLOCKS / 2, STRETCH_BLOCKS / BUSY_SHARE),
        };
        // Never both locks: who checks the pool holds the stored state when it looks at the free space.
        let (open_holes, room, sparsest) = {
            let space = self.space.lock();
            let room = space.free_count().saturating_sub(2 * self.reserve_blocks());
            (space.open_hole_blocks(), room, space.sparsest(free_min, CANDIDATES_MAX))
        };
        for (stretch, free) in sparsest {
            let live_blocks = self.live_blocks(stretch);
            let live = live_blocks.count();
            if live == 0 || tried.get(&stretch).is_some_and(|last| !last.is_out_of_date(urgency, live_blocks, free)) {
                continue;
            }
            let mut space = self.space.lock();
            let (free_now, capacity) = space.free_in(stretch);
            let is_busy = (capacity - free_now).saturating_sub(live) > pinned_max;
            // Moved into a whole stretch it would gain what it takes, and be the sparsest again.
            let has_holes = open_holes.saturating_sub(free) >= live;
            if !is_busy && has_holes && live <= moves_left && live + GROUP_BLOCKS <= room {
                space.close(stretch);
                return Some(stretch);
            }
        }
        None
    }

    /// How a closed stretch that was emptied of what `lived` there is left, if not all of it is free.
    #[must_use]
    pub fn attempt_on(&self, stretch: Stretch, lived: &LiveBlocks) -> Option<Attempt> {
        let stayed = self.live_blocks(stretch).and(lived);
        let (free, capacity) = self.space.lock().free_in(stretch);
        (free < capacity).then_some(Attempt { stayed, free })
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
