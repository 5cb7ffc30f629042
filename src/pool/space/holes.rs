//! Free space in pieces: stretches that are neither full nor wholly free, what empties them and what fills them.
//!
//! Random overwrites leave single free blocks everywhere. A cleaner closes the sparsest stretches, moves what lives there
//! into the holes of the fullest ones, and reopens them when a checkpoint has freed them: long runs are there again.

use super::{DeviceSpace, STRETCH_FREE_MAX, Space, WINDOW_RUNS_MAX};
use crate::format::device_header::FRONT_BLOCKS;
use crate::units::{AddressRun, DeviceIndex, STRETCH_BLOCKS, to_u64, to_usize};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Stretches whose holes one reservation takes at most.
const HOLED_STRETCHES_MAX: usize = 16;

/// A stretch of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stretch {
    /// The device.
    pub device: DeviceIndex,
    /// Its number: the stretch begins with block `index * STRETCH_BLOCKS`.
    pub index: u64,
}

/// A stretch with holes. Those with most free blocks come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SparseStretch {
    free: Reverse<u64>,
    /// Which one.
    pub stretch: Stretch,
    /// As [`Space::freed_in`] says.
    pub freed: u32,
}

/// How the free blocks lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeShape {
    /// In stretches that are as free as they can be, also those that were given back: long runs.
    pub whole_blocks: u64,
    /// In the others: holes among blocks in use.
    pub hole_blocks: u64,
}

impl Stretch {
    pub(super) fn new(device: usize, index: usize) -> Self {
        let device = DeviceIndex::new(u8::try_from(device).expect("a pool has at most 32 devices"));
        Self { device, index: to_u64(index) }
    }
}

impl Space {
    /// Reserves holes, at most `want` blocks together, so that at least `floor` blocks stay free: those of the fullest
    /// stretches first, and none of a closed one. Where there are no holes, as [`Self::reserve`].
    pub fn reserve_holes(&mut self, want: u64, floor: u64) -> Vec<AddressRun> {
        let want = want.min(self.free_count.saturating_sub(floor));
        let mut window = Vec::new();
        let mut left = want;
        for (device, stretch) in self.fullest() {
            if left == 0 || window.len() == WINDOW_RUNS_MAX {
                break;
            }
            let runs = self.devices[device].free_runs(stretch);
            left -= self.take_runs(device, runs, left, &mut window);
        }
        if window.is_empty() { self.reserve(want, floor) } else { window }
    }

    /// How the free blocks lie.
    #[must_use]
    pub fn shape(&self) -> FreeShape {
        let mut shape = FreeShape { whole_blocks: self.released_blocks(), hole_blocks: 0 };
        for device in &self.devices {
            for (stretch, free) in device.free_in.iter().enumerate() {
                let free = u64::from(*free);
                if free == device.capacity_of(stretch) {
                    shape.whole_blocks += free;
                } else {
                    shape.hole_blocks += free;
                }
            }
        }
        shape
    }

    /// Holes that can be filled now: those of open stretches.
    #[must_use]
    pub fn open_hole_blocks(&self) -> u64 {
        let free_in_closed = self.closed.iter().map(|place| self.free_in(*place));
        let in_closed: u64 = free_in_closed.filter(|(free, capacity)| free < capacity).map(|(free, _)| free).sum();
        self.shape().hole_blocks - in_closed
    }

    /// Open stretches that have at least `free_min` free blocks and some in use, the sparsest first; at most `count_max`, of
    /// those that come behind `after` in that order.
    #[must_use]
    pub fn sparsest(&self, free_min: u64, after: Option<SparseStretch>, count_max: usize) -> Vec<SparseStretch> {
        // The sparsest so far; the least sparse of them on top, to be replaced by a sparser one.
        let mut best: BinaryHeap<SparseStretch> = BinaryHeap::new();
        for (index, device) in (0..).map(DeviceIndex::new).zip(&self.devices) {
            for (stretch, (free, freed)) in (0..).zip(device.free_in.iter().zip(&device.freed_in)) {
                let (free, place) = (u64::from(*free), Stretch { device: index, index: stretch });
                let found = SparseStretch { free: Reverse(free), stretch: place, freed: *freed };
                let is_sparse = free >= free_min && free < device.capacity_of(to_usize(stretch));
                let is_worse = || best.len() == count_max && best.peek().is_none_or(|worst| found > *worst);
                let is_behind = || after.is_none_or(|after| (found.free, place) > (after.free, after.stretch));
                if !is_sparse || is_worse() || !is_behind() || self.closed.contains(&place) {
                    continue;
                }
                if best.len() == count_max {
                    best.pop();
                }
                best.push(found);
            }
        }
        best.into_sorted_vec()
    }

    /// Blocks of a stretch that were freed since the pool was opened, modulo 2^32: also those that were taken again, but not
    /// what lanes gave back of their windows.
    #[must_use]
    pub fn freed_in(&self, stretch: Stretch) -> u32 {
        self.devices[stretch.device.as_usize()].freed_in[to_usize(stretch.index)]
    }

    /// Free blocks of a stretch, and how many it could have.
    #[must_use]
    pub fn free_in(&self, stretch: Stretch) -> (u64, u64) {
        let (device, index) = (&self.devices[stretch.device.as_usize()], to_usize(stretch.index));
        (u64::from(device.free_in[index]), device.capacity_of(index))
    }

    /// Takes nothing more from a stretch before it is wholly free, while there is free space elsewhere.
    pub fn close(&mut self, stretch: Stretch) {
        self.closed.insert(stretch);
    }

    /// Ends what [`Self::close`] began.
    pub fn reopen(&mut self, stretch: Stretch) {
        self.closed.remove(&stretch);
    }

    /// Open stretches with holes, the fullest first.
    fn fullest(&self) -> Vec<(usize, usize)> {
        // The fullest so far; the least full of them on top, to be replaced by a fuller one.
        let mut best: BinaryHeap<(u16, usize, usize)> = BinaryHeap::new();
        for (device, space) in self.devices.iter().enumerate() {
            for (stretch, free) in space.free_in.iter().enumerate() {
                let is_worse = best.len() == HOLED_STRETCHES_MAX && best.peek().is_some_and(|worst| *free >= worst.0);
                if *free == 0 || is_worse || u64::from(*free) == space.capacity_of(stretch) {
                    continue;
                }
                if self.is_closed(device, stretch) {
                    continue;
                }
                if best.len() == HOLED_STRETCHES_MAX {
                    best.pop();
                }
                best.push((*free, device, stretch));
            }
        }
        best.into_sorted_vec().into_iter().map(|(_, device, stretch)| (device, stretch)).collect()
    }

    pub(super) fn is_closed(&self, device: usize, stretch: usize) -> bool {
        !self.closed.is_empty() && self.closed.contains(&Stretch::new(device, stretch))
    }
}

impl DeviceSpace {
    /// Blocks of a stretch that can be free: all but the front of the device and what lies behind its end.
    fn capacity_of(&self, stretch: usize) -> u64 {
        let start = to_u64(stretch) * STRETCH_BLOCKS;
        let end = (start + u64::from(STRETCH_FREE_MAX)).min(self.block_count);
        end.saturating_sub(start.max(FRONT_BLOCKS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Address;

    const DEVICE: DeviceIndex = DeviceIndex::new(0);

    fn block(block: u64) -> Address {
        Address::new(DEVICE, block)
    }

    /// Three full stretches, but for some blocks of each.
    fn holed() -> Space {
        let mut space = Space::new(&[3 * STRETCH_BLOCKS]);
        while !space.reserve(STRETCH_BLOCKS, 0).is_empty() {}
        let free = [(0, 300..303), (1, 5..10), (2, 7..8), (2, 9..10)];
        for (stretch, blocks) in free {
            blocks.for_each(|offset| space.free(block(stretch * STRETCH_BLOCKS + offset)));
        }
        space
    }

    fn place(index: u64) -> Stretch {
        Stretch { device: DEVICE, index }
    }

    fn starts(window: &[AddressRun]) -> Vec<(u64, u64)> {
        window.iter().map(|run| (run.start.block() / STRETCH_BLOCKS, run.count)).collect()
    }

    #[test]
    fn holes_of_the_fullest_stretch_come_first() {
        let mut space = holed();

        let window = space.reserve_holes(6, 0);

        assert_eq!(starts(&window), [(2, 1), (2, 1), (0, 3), (1, 1)]);
        assert_eq!(space.free_count(), 4);
    }

    #[test]
    fn a_closed_stretch_gives_nothing_while_others_have_free_blocks() {
        let mut space = holed();
        space.close(place(1));

        let holes = space.reserve_holes(100, 0);
        let rest = space.reserve(100, 0);

        assert_eq!(starts(&holes), [(2, 1), (2, 1), (0, 3)]);
        assert_eq!(starts(&rest), [(1, 5)], "what is left is better than nothing");
    }

    #[test]
    fn a_window_leaves_a_closed_stretch_out_although_it_is_the_emptiest() {
        let mut space = holed();
        space.close(place(1));

        let window = space.reserve(100, 0);

        assert_eq!(starts(&window), [(0, 3)]);
    }

    #[test]
    fn the_sparsest_stretches_are_those_with_most_free_blocks_but_not_the_free_ones() {
        let mut space = holed();
        let sparsest = |space: &Space, count| -> Vec<(u64, u64)> {
            space.sparsest(2, None, count).iter().map(|found| (found.stretch.index, found.free.0)).collect()
        };

        assert_eq!(sparsest(&space, 9), [(1, 5), (0, 3), (2, 2)]);
        assert_eq!(sparsest(&space, 1), [(1, 5)]);
        let all = space.sparsest(2, None, 9);
        assert_eq!(space.sparsest(2, Some(all[0]), 1), [all[1]], "the next one");
        assert_eq!(space.sparsest(2, Some(all[1]), 9), [all[2]]);
        assert_eq!(space.sparsest(2, Some(all[2]), 9), []);
        for offset in (0..5).chain(10..STRETCH_BLOCKS) {
            space.free(block(STRETCH_BLOCKS + offset));
        }
        assert_eq!(sparsest(&space, 9), [(0, 3), (2, 2)]);
        assert_eq!(space.shape(), FreeShape { whole_blocks: STRETCH_BLOCKS, hole_blocks: 5 });
        assert_eq!(space.open_hole_blocks(), 5);
        space.close(place(0));
        space.close(place(1));
        assert_eq!(sparsest(&space, 9), [(2, 2)]);
        assert_eq!(space.open_hole_blocks(), 2, "and nothing is taken off for a closed one that is wholly free");
        space.reopen(place(0));
        assert_eq!(sparsest(&space, 9), [(0, 3), (2, 2)]);
    }

    #[test]
    fn the_first_stretch_is_wholly_free_when_all_behind_the_front_is() {
        let space = Space::new(&[STRETCH_BLOCKS + 10]);

        let all = STRETCH_BLOCKS - FRONT_BLOCKS + 10;
        assert_eq!(space.shape(), FreeShape { whole_blocks: all, hole_blocks: 0 });
        assert!(space.sparsest(1, None, 9).is_empty());
    }

    #[test]
    fn what_was_freed_counts_although_it_was_taken_again_and_what_was_only_reserved_does_not() {
        let mut space = holed();
        assert_eq!([0, 1, 2].map(|index| space.freed_in(place(index))), [3, 5, 2]);

        let window = space.reserve_holes(2, 0);
        window.iter().for_each(|run| space.unreserve(*run));
        assert_eq!(space.freed_in(place(2)), 2);
        assert_eq!(space.free_in(place(2)).0, 2);

        space.reserve_holes(2, 0).into_iter().for_each(|run| space.free_run(run));
        assert_eq!(space.freed_in(place(2)), 4);
        space.grow(DEVICE, 4 * STRETCH_BLOCKS);
        assert_eq!([0, 1, 2, 3].map(|index| space.freed_in(place(index))), [3, 5, 4, 0]);
    }

    #[test]
    fn without_holes_the_floor_still_holds() {
        let mut space = Space::new(&[STRETCH_BLOCKS]);
        let free = space.free_count();

        let taken: u64 = space.reserve_holes(free, 10).iter().map(|run| run.count).sum();

        assert_eq!(taken, free - 10);
        assert!(space.reserve_holes(1, 10).is_empty());
    }
}
