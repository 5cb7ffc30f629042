//! Free stretches that were given back to what is under a device: the file system of a file has their blocks again.
//!
//! Invariant: the blocks of a released stretch are allocated here, so no window gets them before they were taken back.

use super::{STRETCH_FREE_MAX, Space, Stretch};
use crate::units::{Address, AddressRun, STRETCH_BLOCKS, to_u64, to_usize};

impl Space {
    /// Takes it that free stretches may hold old bytes: the devices were used before.
    pub fn distrust(&mut self) {
        self.devices.iter_mut().for_each(|device| device.is_blank.fill(false));
    }

    /// Takes a wholly free stretch that may hold old bytes, if more than `stock_blocks` are in such stretches without it.
    /// The caller gives it back, or releases it.
    pub fn take_stale(&mut self, stock_blocks: u64) -> Option<Stretch> {
        if self.whole_blocks() < stock_blocks + STRETCH_BLOCKS {
            return None;
        }
        let devices = self.devices.iter().enumerate().rev().filter(|(_, device)| device.is_trimmable);
        let stretch = devices.into_iter().find_map(|(index, device)| {
            let stretches = device.free_in.iter().zip(&device.is_blank);
            let found = stretches.rev().position(|(free, is_blank)| *free == STRETCH_FREE_MAX && !is_blank)?;
            Some(Stretch::new(index, device.free_in.len() - 1 - found))
        })?;
        self.allocate_all(stretch);
        Some(stretch)
    }

    /// Makes a taken stretch free again, which is all zeros or does not care.
    pub fn give_back(&mut self, stretch: Stretch) {
        for step in 0..STRETCH_BLOCKS {
            self.free(first_of(stretch).plus(step));
        }
        self.devices[stretch.device.as_usize()].is_blank[to_usize(stretch.index)] = true;
    }

    /// Remembers a taken stretch as released.
    pub fn release(&mut self, stretch: Stretch) {
        self.released.insert(stretch);
    }

    /// Takes a stretch that was released, the first in order. The caller gives it back when it is fit for use, or releases
    /// it again.
    pub fn take_released(&mut self) -> Option<Stretch> {
        self.released.pop_first()
    }

    /// Releases a stretch without taking it first, if it is wholly free.
    pub fn release_free(&mut self, stretch: Stretch) {
        let free = self.devices[stretch.device.as_usize()].free_in.get(to_usize(stretch.index));
        if free == Some(&STRETCH_FREE_MAX) {
            self.allocate_all(stretch);
            self.release(stretch);
        }
    }

    /// What a device holds is not given back any more.
    pub fn keep(&mut self, stretch: Stretch) {
        self.devices[stretch.device.as_usize()].is_trimmable = false;
    }

    /// Blocks of wholly free stretches.
    #[must_use]
    pub fn whole_blocks(&self) -> u64 {
        self.devices.iter().map(|device| to_u64(device.whole_count) * STRETCH_BLOCKS).sum()
    }

    /// What was released.
    #[must_use]
    pub fn released_runs(&self) -> Vec<AddressRun> {
        self.released.iter().map(|stretch| AddressRun { start: first_of(*stretch), count: STRETCH_BLOCKS }).collect()
    }

    /// Blocks that were released, which [`Self::free_count`] leaves out.
    #[must_use]
    pub fn released_blocks(&self) -> u64 {
        to_u64(self.released.len()) * STRETCH_BLOCKS
    }

    fn allocate_all(&mut self, stretch: Stretch) {
        self.devices[stretch.device.as_usize()].is_taken_from[to_usize(stretch.index)] = true;
        for step in 0..STRETCH_BLOCKS {
            self.set(first_of(stretch).plus(step), true);
        }
    }
}

fn first_of(stretch: Stretch) -> Address {
    Address::new(stretch.device, stretch.index * STRETCH_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::DeviceIndex;

    const STRETCHES: u64 = 4;

    fn place(index: u64) -> Stretch {
        Stretch { device: DeviceIndex::new(0), index }
    }

    /// A device of which every block was used once and is free again.
    fn used_and_freed() -> Space {
        let mut space = Space::new(&[STRETCHES * STRETCH_BLOCKS]);
        let mut taken = Vec::new();
        while let Some(run) = space.reserve(STRETCH_BLOCKS, 0).first() {
            taken.push(*run);
        }
        taken.into_iter().for_each(|run| space.free_run(run));
        space
    }

    #[test]
    fn only_stretches_beyond_the_stock_are_taken() {
        let mut space = used_and_freed();

        // The first stretch has the front of the device in it.
        assert_eq!(space.take_stale(STRETCH_BLOCKS), Some(place(3)));
        assert_eq!(space.take_stale(STRETCH_BLOCKS), Some(place(2)));
        assert_eq!(space.take_stale(STRETCH_BLOCKS), None);
    }

    #[test]
    fn a_stretch_is_not_taken_again_before_it_was_used() {
        let mut space = used_and_freed();
        let taken = space.take_stale(0).expect("there are three");
        space.give_back(taken);

        assert_eq!(space.take_stale(0), Some(place(2)));
        space.give_back(place(2));
        assert_eq!(space.take_stale(0), Some(place(1)));
        space.give_back(place(1));
        assert_eq!(space.take_stale(0), None);

        space.claim(first_of(place(2)));
        space.free(first_of(place(2)));
        assert_eq!(space.take_stale(0), Some(place(2)));
    }

    #[test]
    fn released_blocks_are_not_handed_out_before_they_were_taken_back() {
        let mut space = used_and_freed();
        let free = space.free_count();
        while let Some(stretch) = space.take_stale(0) {
            space.release(stretch);
        }
        assert_eq!(space.free_count(), free - 3 * STRETCH_BLOCKS);
        assert_eq!(space.released_blocks(), 3 * STRETCH_BLOCKS);
        while !space.reserve(STRETCH_BLOCKS, 0).is_empty() {}

        let stretch = space.take_released().expect("there are three");
        space.give_back(stretch);

        assert_eq!((stretch, space.released_blocks()), (place(1), 2 * STRETCH_BLOCKS));
        assert_eq!(space.reserve(STRETCH_BLOCKS, 0)[0].start, first_of(place(1)));
    }

    #[test]
    fn what_is_wholly_free_is_released_without_being_taken_and_nothing_else_is() {
        let mut space = used_and_freed();
        space.claim(first_of(place(2)));
        [place(1), place(2), place(STRETCHES)].into_iter().for_each(|stretch| space.release_free(stretch));

        assert_eq!(space.released_runs(), [AddressRun { start: first_of(place(1)), count: STRETCH_BLOCKS }]);
        assert!(space.is_allocated(first_of(place(1)).plus(STRETCH_BLOCKS - 1)));
    }

    #[test]
    fn devices_that_were_used_before_may_hold_old_bytes() {
        let mut space = Space::new(&[STRETCHES * STRETCH_BLOCKS]);
        assert_eq!(space.take_stale(0), None, "it is new");
        space.distrust();
        assert_eq!(space.take_stale(0), Some(place(3)));
    }

    #[test]
    fn what_a_device_keeps_is_never_taken() {
        let mut space = used_and_freed();
        space.keep(place(1));

        assert_eq!(space.take_stale(0), None);
    }

    #[test]
    fn released_stretches_stay_so_when_the_device_grows() {
        let mut space = used_and_freed();
        let stretch = space.take_stale(0).expect("there are three");
        space.release(stretch);

        space.grow(DeviceIndex::new(0), (STRETCHES + 1) * STRETCH_BLOCKS);

        assert_eq!(space.released_blocks(), STRETCH_BLOCKS);
        assert!(space.is_allocated(first_of(stretch)));
        assert_eq!(space.take_stale(0), Some(place(2)), "what is new is zeros");
    }
}
