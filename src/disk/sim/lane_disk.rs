//! A lane's queue on simulated devices: nothing completes by itself.
//!
//! Owned by the simulation's scheduler together with the lane that submits to it.

use super::SimDevice;
use super::state::Random;
use crate::disk::{Device, Disk, DiskCompletion, DiskOp, LentForDevice, LentToDevice, check_range};
use crate::units::{DeviceIndex, to_u64};
use std::io;

/// One lane's queue. Operations complete when [`Self::complete_nth`] says so.
///
/// A crash of any of its devices kills the queue: its operations never complete and new ones are ignored.
#[derive(Debug)]
pub struct SimDisk {
    devices: Vec<SimDevice>,
    generations: Vec<u64>,
    in_flight: Vec<InFlight>,
    completed: Vec<DiskCompletion>,
}

#[derive(Debug)]
struct InFlight {
    token: u64,
    device: DeviceIndex,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Read { offset_bytes: u64, target: LentToDevice },
    // The loan is held as the kernel would: whoever changes the bytes before the completion panics.
    Write { id: u64, _source: LentForDevice },
    Flush { mark: u64 },
    Refused(io::Error),
}

impl SimDisk {
    /// A queue on `devices`, addressed by their position.
    #[must_use]
    pub fn new(devices: Vec<SimDevice>) -> Self {
        let generations = devices.iter().map(SimDevice::generation).collect();
        Self { devices, generations, in_flight: Vec::new(), completed: Vec::new() }
    }

    /// Adds a device behind the others.
    pub fn add_device(&mut self, device: SimDevice) {
        self.generations.push(device.generation());
        self.devices.push(device);
    }

    /// Whether a device crashed since the queue was made.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        !self.devices.iter().map(SimDevice::generation).eq(self.generations.iter().copied())
    }

    /// Operations that could complete now: none if the queue is dead.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        if self.is_dead() { 0 } else { self.in_flight.len() }
    }

    /// Whose operation it is that is at `index` in submission order.
    ///
    /// # Panics
    /// If `index` is not below [`Self::in_flight_count`].
    #[must_use]
    pub fn device_of(&self, index: usize) -> DeviceIndex {
        self.in_flight[index].device
    }

    /// Completes the operation at `index` in submission order and returns its token. `random` gives a number
    /// below its argument; it must not touch the devices.
    ///
    /// # Panics
    /// If `index` is not below [`Self::in_flight_count`].
    pub fn complete_nth(&mut self, index: usize, random: &mut dyn FnMut(u64) -> u64) -> u64 {
        assert!(index < self.in_flight_count(), "no operation {index} is in flight");
        let InFlight { token, device, action } = self.in_flight.remove(index);
        let result = self.finish(device, action, random);
        self.completed.push(DiskCompletion { token, result });
        token
    }

    fn finish(&self, device: DeviceIndex, action: Action, random: Random<'_>) -> io::Result<()> {
        let mut state = self.devices[device.as_usize()].lock();
        match action {
            Action::Read { offset_bytes, target } => target.fill_with(|bytes| state.read(offset_bytes, bytes, random)),
            Action::Write { id, .. } => state.complete_write(id, random),
            Action::Flush { mark } => state.flush(mark, random),
            Action::Refused(error) => Err(error),
        }
    }

    fn start(&self, op: DiskOp) -> (DeviceIndex, Action) {
        match op {
            DiskOp::Read { device, offset_bytes, target } => {
                let size_bytes = self.devices[device.as_usize()].size_bytes();
                match check_range(size_bytes, offset_bytes, target.len(), io::ErrorKind::UnexpectedEof) {
                    Ok(()) => (device, Action::Read { offset_bytes, target }),
                    Err(error) => (device, Action::Refused(error)),
                }
            }
            DiskOp::Write { device, offset_bytes, source } => {
                let handle = &self.devices[device.as_usize()];
                match check_range(handle.size_bytes(), offset_bytes, source.len(), io::ErrorKind::InvalidInput) {
                    Ok(()) => {
                        let id = handle.lock().submit_write(offset_bytes, source.to_vec().into());
                        (device, Action::Write { id, _source: source })
                    }
                    Err(error) => (device, Action::Refused(error)),
                }
            }
            DiskOp::Flush { device } => {
                (device, Action::Flush { mark: self.devices[device.as_usize()].lock().flush_mark() })
            }
        }
    }

    /// Completes everything in flight, in random order, also what becomes possible only by that.
    pub fn complete_all(&mut self, random: &mut dyn FnMut(u64) -> u64) {
        while self.in_flight_count() > 0 {
            let index = random(to_u64(self.in_flight_count()));
            self.complete_nth(crate::units::to_usize(index), random);
        }
    }
}

impl Disk for SimDisk {
    fn submit(&mut self, token: u64, op: DiskOp) {
        if self.is_dead() {
            return;
        }
        let (device, action) = self.start(op);
        self.in_flight.push(InFlight { token, device, action });
    }

    /// Never: what is handed in is in flight.
    fn has_unsubmitted(&self) -> bool {
        false
    }

    fn reap(&mut self, completions: &mut Vec<DiskCompletion>) {
        if self.is_dead() {
            return;
        }
        completions.append(&mut self.completed);
    }
}
