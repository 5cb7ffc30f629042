//! The files of the machine, and what goes wrong with them.

use super::World;
use rand::Rng;
use rok_blk::disk::{SimCounters, SimDevice};

impl World {
    /// One of the devices, at random.
    pub fn any_device(&mut self) -> &SimDevice {
        let index = self.random.random_range(0..self.devices.len());
        &self.devices[index]
    }

    /// One of the devices or the file of the shred key, at random.
    pub fn any_file(&mut self) -> &SimDevice {
        let index = self.random.random_range(0..=self.devices.len());
        self.devices.get(index).unwrap_or(&self.shred_key)
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &SimDevice> {
        self.devices.iter().chain([&self.shred_key])
    }

    /// Takes back every fault not met yet.
    pub fn clear_faults(&self) {
        self.files().for_each(SimDevice::clear_faults);
        self.store.fail_commit_after(None);
    }

    /// What happened to all devices together.
    pub fn device_counters(&self) -> SimCounters {
        self.files().map(SimDevice::counters).fold(SimCounters::default(), SimCounters::plus)
    }
}
