//! A pool that grows, gives free space back and takes it again.

use super::super::device_id;
use super::super::tapped::TapDevice;
use super::{Done, Refusal, Stage};
use rok_blk::disk::{Device as _, SimDevice};
use rok_blk::pool::{NewBlocks, TrimProgress};
use rok_blk::units::{BLOCK_SIZE_U64, DeviceIndex};

/// Steps after which nothing is left to give back: a stretch each.
const TRIM_STEPS_MAX: usize = 64;

impl Stage {
    /// A device gets larger.
    pub fn grow_device(&mut self, added_bytes: u64) -> Done {
        self.settle()?;
        let (device, listed_bytes) = self.rig.devices[0].clone();
        let size_bytes = listed_bytes + added_bytes;
        // A listing that failed may have left it as large as that.
        if device.size_bytes() < size_bytes {
            device.grow(size_bytes);
        }
        *self.life().listed[0].listed_bytes.lock() = size_bytes;
        let new = self.life().pool.prepare_growth(DeviceIndex::new(0), size_bytes / BLOCK_SIZE_U64);
        self.rig.devices[0].1 = size_bytes;
        self.list(&new)
    }

    /// A device is added.
    pub fn add_device(&mut self, size_bytes: u64) -> Done {
        self.settle()?;
        let index = self.rig.devices.len();
        let device = SimDevice::new(&format!("sim-{index}"), size_bytes);
        for lane in &self.life().lanes {
            lane.with_disk(|disk| disk.add_device(device.process_handle()));
        }
        let seen = TapDevice::new(device.process_handle(), size_bytes, &self.rig.tap);
        let new = self.life().pool.join(seen, device_id(index as u64))?;
        self.rig.devices.push((device, size_bytes));
        self.list(&new)
    }

    /// The superblock lists what is new, and then it is used.
    fn list(&mut self, new: &NewBlocks) -> Done {
        if let Err(refusal) = self.change_superblock() {
            self.take_listing();
            return Err(refusal);
        }
        self.life().pool.use_blocks(new);
        Ok(())
    }

    /// Gives back what is free, and old.
    pub fn trim(&mut self) -> Done {
        self.settle()?;
        for _ in 0..TRIM_STEPS_MAX {
            if self.life().pool.trim_step() == TrimProgress::Rested {
                return Ok(());
            }
        }
        Err(Refusal::Dead)
    }

    /// Takes back what was given back, if the stock is low; whether it was.
    pub fn restock(&mut self) -> Done {
        self.settle()?;
        while self.life().pool.restock_step()? == TrimProgress::Worked {}
        Ok(())
    }
}
