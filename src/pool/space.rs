//! Free space: which blocks of the devices are allocated, and windows of free ones for the lanes.
//!
//! A block is allocated here when stored leaves map it, when a change or a record since the last checkpoint is
//! in it, when it waits in quarantine for a checkpoint, or when a lane has reserved it.

mod holes;
mod released;
mod taken;

use crate::format::bitmap::{STRETCH_WORDS, StretchBits, replace};
use crate::format::device_header::FRONT_BLOCKS;
use crate::units::{Address, AddressRun, DeviceIndex, STRETCH_BLOCKS, to_u64, to_usize};

pub use holes::{FreeShape, SparseStretch, Stretch};
use std::collections::BTreeSet;

/// Runs that one reservation may have: bounds the segments of a record.
pub const WINDOW_RUNS_MAX: usize = 96;

struct DeviceSpace {
    block_count: u64,
    allocated: Vec<StretchBits>,
    free_in: Vec<u16>,
    free_count: u64,
    /// Stretches that are wholly free.
    whole_count: usize,
    /// Stretch where the search for a wholly free one goes on.
    rotor: usize,
    /// Stretches that are zeros, or whose old bytes do not matter: for each, whether nothing was taken from it since.
    is_blank: Vec<bool>,
    /// For each stretch, whether something of it was taken since the pool was opened.
    is_taken_from: Vec<bool>,
    /// Blocks of each stretch that were freed since the pool was opened, modulo 2^32.
    freed_in: Vec<u32>,
    /// Whether free stretches are given back.
    is_trimmable: bool,
    /// What this device is owed of the windows: grows by its free blocks with each one, and shrinks by those of all
    /// devices when it gives one.
    credit: i64,
}

/// A stretch has this many blocks.
const STRETCH_FREE_MAX: u16 = 4096;

/// The free space of a pool.
pub struct Space {
    devices: Vec<DeviceSpace>,
    free_count: u64,
    block_count: u64,
    /// Stretches that are being emptied.
    closed: BTreeSet<Stretch>,
    /// Free stretches that were given back to what is under the devices.
    released: BTreeSet<Stretch>,
}

impl Space {
    /// All blocks of the devices are free, but for the front of each.
    #[must_use]
    pub fn new(device_blocks: &[u64]) -> Self {
        let devices: Vec<DeviceSpace> = device_blocks.iter().map(|count| DeviceSpace::new(*count)).collect();
        let free_count = devices.iter().map(|device| device.free_count).sum();
        Self { devices, free_count, block_count: free_count, closed: BTreeSet::new(), released: BTreeSet::new() }
    }

    /// Blocks that nothing holds.
    #[must_use]
    pub const fn free_count(&self) -> u64 {
        self.free_count
    }

    /// Blocks that can hold data or records.
    #[must_use]
    pub const fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Whether the address is a block of a device behind its front.
    #[must_use]
    pub fn is_valid(&self, address: Address) -> bool {
        let device = self.devices.get(address.device().as_usize());
        device.is_some_and(|device| address.block() >= FRONT_BLOCKS && address.block() < device.block_count)
    }

    /// Whether a block is allocated.
    #[must_use]
    pub fn is_allocated(&self, address: Address) -> bool {
        let device = &self.devices[address.device().as_usize()];
        let bits = &device.allocated[to_usize(address.block() / STRETCH_BLOCKS)];
        let block = address.block() % STRETCH_BLOCKS;
        bits[to_usize(block >> 6)] >> (block & 63) & 1 == 1
    }

    /// The allocated blocks of a stretch; of one that is not there, all. Neither the front of a device nor what is behind
    /// its end counts.
    #[must_use]
    pub(super) fn allocated_in(&self, device: DeviceIndex, stretch: u64) -> StretchBits {
        let Some(device) = self.devices.get(device.as_usize()) else { return [u64::MAX; STRETCH_WORDS] };
        let Some(bits) = device.allocated.get(to_usize(stretch)) else { return [u64::MAX; STRETCH_WORDS] };
        let mut bits = *bits;
        let first = stretch * STRETCH_BLOCKS;
        let is_outside = |block: &u64| *block < FRONT_BLOCKS || *block >= device.block_count;
        for block in (first..first + STRETCH_BLOCKS).filter(is_outside) {
            replace(&mut bits, block - first, false);
        }
        bits
    }

    /// Allocates one block by address; `false` if it was allocated before.
    ///
    /// # Panics
    /// If the address is not valid.
    pub fn claim(&mut self, address: Address) -> bool {
        assert!(self.is_valid(address), "an address behind the device's end was not checked: {address}");
        let was = self.set(address, true);
        !was
    }

    /// Allocates blocks of a stretch that a device has; `false`, and nothing is changed, if one of them was allocated
    /// before, lies in the front or behind the device's end.
    #[must_use]
    pub(super) fn claim_stretch(&mut self, device: DeviceIndex, stretch: u64, blocks: &StretchBits) -> bool {
        let device = &mut self.devices[device.as_usize()];
        let mut allocated = device.allocated[to_usize(stretch)];
        // The front and what is behind the end are allocated from the start.
        if allocated.iter().zip(blocks).any(|(allocated, new)| allocated & new != 0) {
            return false;
        }
        allocated.iter_mut().zip(blocks).for_each(|(allocated, new)| *allocated |= new);
        let free = device.free_count;
        device.replace_stretch(to_usize(stretch), allocated);
        self.free_count -= free - device.free_count;
        true
    }

    /// Frees a block.
    ///
    /// # Panics
    /// If it is free: nothing is freed twice.
    pub fn free(&mut self, address: Address) {
        let was = self.set(address, false);
        assert!(was, "{address} is freed twice");
        let freed = &mut self.devices[address.device().as_usize()].freed_in[to_usize(address.block() / STRETCH_BLOCKS)];
        *freed = freed.wrapping_add(1);
    }

    /// Takes back blocks that were reserved and hold nothing.
    ///
    /// # Panics
    /// If one of them is free.
    pub fn unreserve(&mut self, run: AddressRun) {
        for address in (0..run.count).map(|step| run.start.plus(step)) {
            let was = self.set(address, false);
            assert!(was, "{address} is freed twice");
        }
    }

    /// Frees a run of blocks.
    ///
    /// # Panics
    /// If one of them is free.
    pub fn free_run(&mut self, run: AddressRun) {
        for step in 0..run.count {
            self.free(run.start.plus(step));
        }
    }

    /// Takes in the blocks up to `block_count` of a device, or a device with the next index: all free.
    ///
    /// # Panics
    /// If the device has more already, or devices before it are missing.
    pub fn grow(&mut self, device: DeviceIndex, block_count: u64) {
        let index = device.as_usize();
        assert!(index <= self.devices.len(), "devices are appended");
        if index == self.devices.len() {
            self.devices.push(DeviceSpace::new(block_count));
        } else {
            let device = &self.devices[index];
            self.free_count -= device.free_count;
            self.block_count -= device.block_count - FRONT_BLOCKS;
            self.devices[index].grow(block_count);
        }
        self.free_count += self.devices[index].free_count;
        self.block_count += block_count - FRONT_BLOCKS;
    }

    /// Reserves free runs of one stretch, at most `want` blocks together, so that at least `floor` blocks stay
    /// free. Takes a wholly free stretch if there is one, else the emptiest; longest runs first. Empty if
    /// nothing may be taken. Devices with wholly free stretches take turns in proportion to their free space.
    pub fn reserve(&mut self, want: u64, floor: u64) -> Vec<AddressRun> {
        let want = want.min(self.free_count.saturating_sub(floor));
        if want == 0 {
            return Vec::new();
        }
        let (device, stretch) = self.choose();
        let mut runs = self.devices[device].free_runs(stretch);
        runs.sort_by_key(|(start, count)| (std::cmp::Reverse(*count), *start));
        let mut window = Vec::new();
        self.take_runs(device, runs, want, &mut window);
        window
    }

    /// Allocates free runs of a device, given as first block and length, until `want` blocks or [`WINDOW_RUNS_MAX`] runs
    /// are in `window`; how many blocks that were.
    fn take_runs(&mut self, device: usize, runs: Vec<(u64, u64)>, want: u64, window: &mut Vec<AddressRun>) -> u64 {
        let index = device;
        let device = DeviceIndex::new(u8::try_from(device).expect("a pool has at most 32 devices"));
        let mut left = want;
        for (start, count) in runs {
            if left == 0 || window.len() == WINDOW_RUNS_MAX {
                break;
            }
            let count = count.min(left);
            left -= count;
            let run = AddressRun { start: Address::new(device, start), count };
            self.devices[index].is_taken_from[to_usize(start / STRETCH_BLOCKS)] = true;
            for step in 0..count {
                self.set(run.start.plus(step), true);
            }
            window.push(run);
        }
        want - left
    }

    fn set(&mut self, address: Address, value: bool) -> bool {
        let was = self.devices[address.device().as_usize()].set(address.block(), value);
        match (was, value) {
            (false, true) => self.free_count -= 1,
            (true, false) => self.free_count += 1,
            _ => {}
        }
        was
    }

    /// The next wholly free stretch of the device whose turn it is, else the emptiest of all.
    fn choose(&mut self) -> (usize, usize) {
        let Some(index) = self.take_turn() else { return self.emptiest() };
        let device = &mut self.devices[index];
        let stretch = device.next_whole();
        device.rotor = stretch;
        (index, stretch)
    }

    /// The device that is owed most, among those with a wholly free stretch. That is the smooth weighted round robin of
    /// nginx: over time each device gives windows in proportion to its free blocks, and never many in a row.
    fn take_turn(&mut self) -> Option<usize> {
        let mut sum = 0;
        let mut next: Option<usize> = None;
        for index in 0..self.devices.len() {
            let device = &mut self.devices[index];
            if device.whole_count == 0 {
                device.credit = 0;
                continue;
            }
            let weight = i64::try_from(device.free_count).expect("a device has at most 2^40 blocks");
            device.credit += weight;
            sum += weight;
            if next.is_none_or(|next| self.devices[index].credit > self.devices[next].credit) {
                next = Some(index);
            }
        }
        self.devices[next?].credit -= sum;
        next
    }

    /// The emptiest stretch; a closed one only if no other has a free block.
    fn emptiest(&self) -> (usize, usize) {
        let mut best = ((false, 0), 0, 0);
        for (index, device) in self.devices.iter().enumerate() {
            for (stretch, free) in device.free_in.iter().enumerate() {
                let is_open = *free > 0 && !self.is_closed(index, stretch);
                if (is_open, *free) > best.0 {
                    best = ((is_open, *free), index, stretch);
                }
            }
        }
        (best.1, best.2)
    }
}

impl DeviceSpace {
    fn new(block_count: u64) -> Self {
        let stretches = to_usize(block_count.div_ceil(STRETCH_BLOCKS));
        let mut allocated = vec![[0; STRETCH_WORDS]; stretches];
        for block in (0..FRONT_BLOCKS).chain(block_count..to_u64(stretches) * STRETCH_BLOCKS) {
            replace(&mut allocated[to_usize(block / STRETCH_BLOCKS)], block % STRETCH_BLOCKS, true);
        }
        let free_in: Vec<u16> = allocated.iter().map(free_bits).collect();
        let free_count = free_in.iter().map(|free| u64::from(*free)).sum();
        let whole_count = free_in.iter().filter(|free| **free == STRETCH_FREE_MAX).count();
        let is_blank = vec![true; stretches];
        Self {
            block_count,
            allocated,
            free_in,
            free_count,
            whole_count,
            rotor: 0,
            is_blank,
            is_taken_from: vec![false; stretches],
            freed_in: vec![0; stretches],
            is_trimmable: true,
            credit: 0,
        }
    }

    fn grow(&mut self, block_count: u64) {
        assert!(block_count >= self.block_count, "a device only grows");
        let mut grown = Self::new(block_count);
        // The last stretch that there was ends in blocks that were behind the end.
        let whole = to_usize(self.block_count / STRETCH_BLOCKS);
        for (stretch, bits) in self.allocated.iter().enumerate() {
            if stretch < whole {
                grown.replace_stretch(stretch, *bits);
                continue;
            }
            for block in to_u64(stretch) * STRETCH_BLOCKS..self.block_count {
                if bits[to_usize((block % STRETCH_BLOCKS) >> 6)] >> (block & 63) & 1 == 1 {
                    grown.set(block, true);
                }
            }
        }
        (grown.rotor, grown.credit, grown.is_trimmable) = (self.rotor, self.credit, self.is_trimmable);
        grown.is_blank[..self.is_blank.len()].copy_from_slice(&self.is_blank);
        grown.is_taken_from[..self.is_taken_from.len()].copy_from_slice(&self.is_taken_from);
        grown.freed_in[..self.freed_in.len()].copy_from_slice(&self.freed_in);
        *self = grown;
    }

    fn replace_stretch(&mut self, stretch: usize, bits: StretchBits) {
        let free = free_bits(&bits);
        self.free_count = self.free_count + u64::from(free) - u64::from(self.free_in[stretch]);
        self.whole_count -= usize::from(self.free_in[stretch] == STRETCH_FREE_MAX);
        self.whole_count += usize::from(free == STRETCH_FREE_MAX);
        self.free_in[stretch] = free;
        self.allocated[stretch] = bits;
    }

    /// Marks a block; says whether it was allocated.
    fn set(&mut self, block: u64, value: bool) -> bool {
        let stretch = to_usize(block / STRETCH_BLOCKS);
        let was = replace(&mut self.allocated[stretch], block % STRETCH_BLOCKS, value);
        let free_in = &mut self.free_in[stretch];
        match (was, value) {
            (false, true) => {
                self.whole_count -= usize::from(*free_in == STRETCH_FREE_MAX);
                *free_in -= 1;
                self.free_count -= 1;
                self.is_blank[stretch] = false;
            }
            (true, false) => {
                *free_in += 1;
                self.free_count += 1;
                self.whole_count += usize::from(*free_in == STRETCH_FREE_MAX);
            }
            _ => {}
        }
        was
    }

    /// The first wholly free stretch from the rotor on, round the end.
    fn next_whole(&self) -> usize {
        let count = self.free_in.len();
        let mut stretches = (self.rotor..count).chain(0..self.rotor);
        stretches.find(|stretch| self.free_in[*stretch] == STRETCH_FREE_MAX).expect("the caller saw that there is one")
    }

    /// First block and length of each free run of a stretch.
    fn free_runs(&self, stretch: usize) -> Vec<(u64, u64)> {
        let bits = &self.allocated[stretch];
        let base = to_u64(stretch) * STRETCH_BLOCKS;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut block = 0;
        while block < STRETCH_BLOCKS {
            let word = bits[to_usize(block >> 6)] >> (block & 63);
            if word & 1 == 1 {
                block += u64::from(word.trailing_ones());
                continue;
            }
            let count = u64::from(word.trailing_zeros()).min(64 - (block & 63));
            match runs.last_mut() {
                Some((start, len)) if *start + *len == base + block => *len += count,
                _ => runs.push((base + block, count)),
            }
            block += count;
        }
        runs
    }
}

fn free_bits(bits: &StretchBits) -> u16 {
    let free: u32 = bits.iter().map(|word| word.count_zeros()).sum();
    u16::try_from(free).expect("a stretch has 4096 blocks")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(block: u64) -> Address {
        Address::new(DeviceIndex::new(0), block)
    }

    #[test]
    fn a_wholly_free_stretch_is_taken_before_a_part() {
        let mut space = Space::new(&[3 * STRETCH_BLOCKS]);
        let window = space.reserve(100, 0);
        assert_eq!(window, [AddressRun { start: block(STRETCH_BLOCKS), count: 100 }]);
    }

    /// How many of so many windows each device gives.
    fn shares(space: &mut Space, windows: usize, blocks: u64) -> Vec<usize> {
        let mut shares = vec![0; space.devices.len()];
        for _ in 0..windows {
            shares[space.reserve(blocks, 0)[0].start.device().as_usize()] += 1;
        }
        shares
    }

    #[test]
    fn windows_are_spread_in_proportion_to_free_space() {
        // A front takes part of the first stretch, so that 41 and 11 stretches have 40 and 10 wholly free ones.
        let mut space = Space::new(&[41 * STRETCH_BLOCKS, 11 * STRETCH_BLOCKS]);

        let first = shares(&mut space, 5, STRETCH_BLOCKS);
        let more = shares(&mut space, 20, STRETCH_BLOCKS);

        assert_eq!(first, [4, 1]);
        assert_eq!(more, [16, 4]);
    }

    #[test]
    fn an_empty_device_beside_a_nearly_full_one_takes_most_windows() {
        let mut space = Space::new(&[3 * STRETCH_BLOCKS, 40 * STRETCH_BLOCKS]);

        let shares = shares(&mut space, 15, 16);

        assert_eq!(shares, [1, 14]);
    }

    #[test]
    fn without_a_wholly_free_stretch_the_emptiest_of_all_devices_is_taken() {
        let mut space = Space::new(&[STRETCH_BLOCKS, STRETCH_BLOCKS]);
        let second = |block| Address::new(DeviceIndex::new(1), block);
        while !space.reserve(STRETCH_BLOCKS, 0).is_empty() {}
        (300..310).for_each(|free| space.free(block(free)));
        (300..311).for_each(|free| space.free(second(free)));

        assert_eq!(space.reserve(100, 0), [AddressRun { start: second(300), count: 11 }]);
        assert_eq!(space.reserve(100, 0), [AddressRun { start: block(300), count: 10 }]);
        assert!(space.reserve(1, 0).is_empty());
    }

    #[test]
    fn longest_runs_come_first_and_runs_cross_words() {
        let mut space = Space::new(&[STRETCH_BLOCKS]);
        while !space.reserve(STRETCH_BLOCKS, 0).is_empty() {}
        for free in [300, 310, 311, 312, 1000, 1001].into_iter().chain(2000..2200) {
            space.free(block(free));
        }
        let window = space.reserve(204, 0);
        let expected =
            [(2000, 200), (310, 3), (1000, 1)].map(|(start, count)| AddressRun { start: block(start), count });
        assert_eq!(window, expected);
        assert_eq!(space.free_count(), 2);
    }

    #[test]
    fn stretch_is_claimed_whole_or_not_at_all() {
        let mut space = Space::new(&[STRETCH_BLOCKS + 100]);
        let free = space.free_count();
        let with = |block: u64| {
            let mut bits = [0; STRETCH_WORDS];
            replace(&mut bits, block, true);
            bits
        };
        let device = DeviceIndex::new(0);

        assert!(!space.claim_stretch(device, 0, &with(FRONT_BLOCKS - 1)), "in the front");
        assert!(!space.claim_stretch(device, 1, &with(100)), "behind the end");
        assert!(space.claim_stretch(device, 1, &with(99)));
        assert!(!space.claim_stretch(device, 1, &with(99)), "for the second time");
        assert!(space.is_allocated(block(STRETCH_BLOCKS + 99)));
        assert_eq!(space.free_count(), free - 1);
    }

    #[test]
    fn blocks_that_were_taken_stay_so_when_the_device_grows() {
        // The end comes in the middle of a stretch, before and after.
        let old = STRETCH_BLOCKS + 100;
        let mut space = Space::new(&[old]);
        let taken: Vec<AddressRun> = (0..3).flat_map(|_| space.reserve(1000, 0)).collect();
        let free = space.free_count();

        space.grow(DeviceIndex::new(0), 3 * STRETCH_BLOCKS + 7);

        let added = 2 * STRETCH_BLOCKS - 93;
        assert_eq!(space.free_count(), free + added);
        assert_eq!(space.block_count(), old - FRONT_BLOCKS + added);
        assert!(space.is_valid(block(3 * STRETCH_BLOCKS + 6)) && !space.is_valid(block(3 * STRETCH_BLOCKS + 7)));
        let blocks = taken.iter().flat_map(|run| (0..run.count).map(|step| run.start.plus(step)));
        assert!(blocks.clone().all(|address| space.is_allocated(address)));
        let rest: u64 = std::iter::from_fn(|| Some(space.reserve(STRETCH_BLOCKS, 0)).filter(|runs| !runs.is_empty()))
            .flatten()
            .map(|run| run.count)
            .sum();
        assert_eq!(rest, free + added);
        taken.into_iter().for_each(|run| space.free_run(run));
    }

    #[test]
    fn a_device_can_be_added() {
        let mut space = Space::new(&[STRETCH_BLOCKS]);
        while !space.reserve(STRETCH_BLOCKS, 0).is_empty() {}

        space.grow(DeviceIndex::new(1), 2 * STRETCH_BLOCKS);

        let second = Address::new(DeviceIndex::new(1), STRETCH_BLOCKS);
        assert_eq!(space.reserve(STRETCH_BLOCKS, 0), [AddressRun { start: second, count: STRETCH_BLOCKS }]);
        assert_eq!(space.free_count(), STRETCH_BLOCKS - FRONT_BLOCKS);
        assert_eq!(space.block_count(), 3 * STRETCH_BLOCKS - 2 * FRONT_BLOCKS);
    }

    #[test]
    fn the_floor_stays_free() {
        let mut space = Space::new(&[STRETCH_BLOCKS]);
        let free = space.free_count();
        let taken: u64 = space.reserve(free, 10).iter().map(|run| run.count).sum();
        assert_eq!(taken, free - 10);
        assert!(space.reserve(1, 10).is_empty());
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_panics() {
        let mut space = Space::new(&[STRETCH_BLOCKS]);
        let run = space.reserve(1, 0)[0];
        space.free_run(run);
        space.free_run(run);
    }

    #[test]
    fn blocks_behind_the_end_are_never_reserved() {
        let mut space = Space::new(&[FRONT_BLOCKS + 5]);
        let runs = space.reserve(100, 0);
        assert_eq!(runs, [AddressRun { start: block(FRONT_BLOCKS), count: 5 }]);
        assert!(!space.is_valid(block(FRONT_BLOCKS + 5)));
    }
}
