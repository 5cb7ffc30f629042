//! A pool that grows while it is used: a device gets larger or one is added, step by step between everything else, so
//! that a crash may come behind each step. The list of sizes in [`World`] stands for the superblock.

use super::{Life, World, device_id};
use rand::Rng;
use rok_blk::disk::{Device, SimDevice};
use rok_blk::pool::NewBlocks;
use rok_blk::units::{BLOCK_SIZE_U64, DeviceIndex};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Devices that a pool here comes to have.
const DEVICE_COUNT_MAX: usize = 4;
/// What one change adds at most.
const ADDED_BLOCKS_MAX: u64 = 2048;
/// A front, and what makes it worth while.
const ADDED_BLOCKS_MIN: u64 = 300;

/// A device as far as it is listed, as the real ones are seen.
pub struct ListedDevice {
    device: SimDevice,
    size_bytes: AtomicU64,
}

impl ListedDevice {
    pub fn new(device: SimDevice, size_bytes: u64) -> Self {
        Self { device, size_bytes: AtomicU64::new(size_bytes) }
    }
}

impl Device for ListedDevice {
    fn name(&self) -> &str {
        self.device.name()
    }
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }
    fn read_at(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<()> {
        assert!(offset_bytes + target.len() as u64 <= self.size_bytes(), "a read behind what is listed");
        self.device.read_at(offset_bytes, target)
    }
    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()> {
        self.device.write_at(offset_bytes, source)
    }
    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        assert!(offset_bytes + len_bytes <= self.size_bytes(), "a discard behind what is listed");
        self.device.discard(offset_bytes, len_bytes)
    }
    fn is_thin(&self) -> bool {
        self.device.is_thin()
    }
    fn holes(&self) -> io::Result<Vec<Range<u64>>> {
        self.device.holes()
    }
}

/// What was done last.
#[derive(Default)]
pub enum Growth {
    #[default]
    None,
    /// A device has become larger.
    Extended(usize),
    /// There is a new device, and every lane has it.
    Handed(SimDevice),
    /// What the list is to say of a device; it says so now, or will.
    Prepared(usize, NewBlocks),
    Listed(NewBlocks),
    /// A new device failed: no more in this life.
    GivenUp,
}

impl World {
    /// Begins a change, or now and then does its next step: much happens between two of them.
    pub(super) fn growth_step(&mut self, life: &mut Life) {
        if !matches!(life.growth, Growth::None) && self.random.random_bool(0.8) {
            return;
        }
        life.growth = match std::mem::take(&mut life.growth) {
            Growth::None if std::mem::take(&mut self.wants_growth) => self.begin_growth(life),
            Growth::Extended(index) => self.prepare_growth(life, index),
            Growth::Handed(device) => self.join(life, device),
            Growth::Prepared(index, new) => {
                let size_bytes = self.devices[index].size_bytes();
                self.list(index, size_bytes);
                Growth::Listed(new)
            }
            Growth::Listed(new) => {
                life.pool.use_blocks(&new);
                self.counts.growths += 1;
                Growth::None
            }
            as_it_is => as_it_is,
        };
    }

    /// Makes a device larger or adds one, all steps at once.
    pub fn grow_now(&mut self, life: &mut Life) {
        let before = self.counts.growths;
        self.wants_growth = true;
        while self.counts.growths == before {
            self.growth_step(life);
        }
    }

    fn begin_growth(&mut self, life: &Life) -> Growth {
        let added = self.random.random_range(ADDED_BLOCKS_MIN..ADDED_BLOCKS_MAX) * BLOCK_SIZE_U64;
        let count = self.devices.len();
        if count < DEVICE_COUNT_MAX && self.random.random_bool(0.5) {
            let device = SimDevice::new(&format!("sim-{count}"), added);
            device.reseed(self.random.random());
            let process = device.process_handle();
            for lane in &life.lanes {
                lane.with_disk(|disk| disk.add_device(process.clone()));
            }
            self.devices.push(device);
            return Growth::Handed(process);
        }
        let index = self.random.random_range(0..count);
        self.devices[index].grow(self.devices[index].size_bytes() + added);
        Growth::Extended(index)
    }

    fn prepare_growth(&self, life: &Life, index: usize) -> Growth {
        let size_bytes = self.devices[index].size_bytes();
        life.listed[index].size_bytes.store(size_bytes, Ordering::Relaxed);
        let device = DeviceIndex::new(u8::try_from(index).expect("few devices"));
        Growth::Prepared(index, life.pool.prepare_growth(device, size_bytes / BLOCK_SIZE_U64))
    }

    fn join(&self, life: &mut Life, device: SimDevice) -> Growth {
        let index = self.listed.len();
        let size_bytes = device.size_bytes();
        let device = Arc::new(ListedDevice::new(device, size_bytes));
        life.listed.push(Arc::clone(&device));
        match life.pool.join(device, device_id(self.pool_id, index as u64)) {
            Ok(new) => Growth::Prepared(index, new),
            Err(_) => Growth::GivenUp,
        }
    }

    /// The change of the superblock: durable at once.
    fn list(&mut self, index: usize, size_bytes: u64) {
        match self.listed.get_mut(index) {
            Some(listed) => *listed = size_bytes,
            None => self.listed.push(size_bytes),
        }
    }
}
