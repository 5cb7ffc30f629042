//! A bit for each block, and runs of them.

use crate::format::bitmap::{self, STRETCH_WORDS, StretchBits};
use crate::units::{Address, AddressRun, DeviceIndex, STRETCH_BLOCKS, to_usize};

/// A bit for each block of the devices.
#[derive(Clone)]
pub(super) struct BlockMap(pub(super) Vec<Vec<StretchBits>>);

impl BlockMap {
    pub(super) fn empty(block_counts: &[u64]) -> Self {
        let stretches = |count: &u64| vec![[0; STRETCH_WORDS]; to_usize(count.div_ceil(STRETCH_BLOCKS))];
        Self(block_counts.iter().map(stretches).collect())
    }

    pub(super) fn of(used: &[Vec<StretchBits>]) -> Self {
        Self(used.to_vec())
    }

    pub(super) fn stretch(&self, device: DeviceIndex, stretch: u64) -> Option<&StretchBits> {
        self.0.get(device.as_usize())?.get(to_usize(stretch))
    }

    pub(super) fn is_marked(&self, address: Address) -> bool {
        let bits = self.stretch(address.device(), address.block() / STRETCH_BLOCKS);
        let block = address.block() % STRETCH_BLOCKS;
        bits.is_some_and(|bits| bits[to_usize(block >> 6)] >> (block & 63) & 1 == 1)
    }

    /// Marks a block that a device has; `false` if it was marked before.
    pub(super) fn mark(&mut self, address: Address) -> bool {
        let stretch = &mut self.0[address.device().as_usize()][to_usize(address.block() / STRETCH_BLOCKS)];
        !bitmap::replace(stretch, address.block() % STRETCH_BLOCKS, true)
    }

    pub(super) fn change_stretches(&mut self, mut change: impl FnMut(DeviceIndex, u64, &mut StretchBits)) {
        for (device, stretches) in (0..).map(DeviceIndex::new).zip(&mut self.0) {
            for (stretch, bits) in (0..).zip(stretches) {
                change(device, stretch, bits);
            }
        }
    }
}

/// Calls `visit` with each run of marked blocks.
pub(super) fn for_each_run(map: &BlockMap, mut visit: impl FnMut(AddressRun)) {
    let mut runs = Runs::default();
    for (device, stretches) in (0..).map(DeviceIndex::new).zip(&map.0) {
        for (stretch, bits) in (0..).zip(stretches) {
            for (index, word) in (0..).zip(bits).filter(|(_, word)| **word != 0) {
                runs.take(device, stretch * STRETCH_BLOCKS + index * 64, *word, &mut visit);
            }
        }
    }
    runs.last.into_iter().for_each(visit);
}

/// Joins marked blocks to runs.
#[derive(Default)]
pub(super) struct Runs {
    pub(super) last: Option<AddressRun>,
}

impl Runs {
    /// Takes 64 blocks from `first` on; `visit` gets the runs that they end.
    pub(super) fn take(&mut self, device: DeviceIndex, first: u64, word: u64, visit: &mut impl FnMut(AddressRun)) {
        for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
            let address = Address::new(device, first + bit);
            match &mut self.last {
                Some(run) if run.start.device() == device && run.start.block() + run.count == address.block() => {
                    run.count += 1;
                }
                last => last.replace(AddressRun { start: address, count: 1 }).into_iter().for_each(&mut *visit),
            }
        }
    }
}
