//! The superblock of a rig: its key slots change, and its list of devices.

use super::super::tapped::TapDevice;
use super::super::{POOL, device_id};
use super::{Done, Stage};
use rok_blk::crypto::Purpose;
use rok_blk::disk::Device as _;
use rok_blk::error::{Error, ErrorKind};
use rok_blk::format::superblock::{DeviceRecord, KeySlotRecord, Superblock};
use rok_blk::pool::SuperblockCopies;
use rok_blk::units::BLOCK_SIZE_U64;
use std::sync::Arc;

/// Slots of the kind that is a key file; what they wrap is not looked at here.
const KEY_FILE: u8 = 1;

impl Stage {
    fn superblock_file(&self) -> Arc<TapDevice> {
        let file = &self.rig.superblock;
        TapDevice::new(file.process_handle(), file.size_bytes(), &self.rig.tap)
    }

    /// The devices as they are listed.
    fn listed_devices(&self) -> Vec<DeviceRecord> {
        let record = |(index, (_, bytes)): (u64, &(rok_blk::disk::SimDevice, u64))| DeviceRecord {
            id: device_id(index),
            block_count: bytes / BLOCK_SIZE_U64,
            name: format!("data-{index}"),
        };
        (0..).zip(&self.rig.devices).map(record).collect()
    }

    /// Writes the first superblock.
    pub fn create_superblock(&mut self) -> Done {
        let slot = KeySlotRecord { index: 0, kind: KEY_FILE, salt: [1; 32], wrapped: [2; 60], parameters: [0; 16] };
        let (suite, devices) = (self.rig.settings.suite, self.listed_devices());
        let first = Superblock { pool: POOL, generation: 0, suite, devices, slots: vec![slot] };
        let mac = self.rig.master.static_mac(Purpose::Superblock);
        let created = SuperblockCopies::create(&*self.superblock_file(), &first, &mac);
        created.map_err(|error| Error::from_io("Writing", std::path::Path::new("superblock"), error))?;
        Ok(())
    }

    /// Changes the salt of the slot, and lists the devices as they are.
    pub fn change_superblock(&mut self) -> Done {
        let file = self.superblock_file();
        let copies = SuperblockCopies::read(&*file)?;
        if copies.damage().is_some() {
            copies.repair(&*file, &self.rig.master).map_err(not_written)?;
        }
        let copies = SuperblockCopies::read(&*file)?;
        let mut new = copies.superblock.clone();
        new.slots[0].salt[0] += 1;
        new.devices = self.listed_devices();
        copies.replace(&*file, &new, &self.rig.master).map_err(not_written)?;
        Ok(())
    }

    /// Takes the devices for what the superblock says of them.
    pub(super) fn take_listing(&mut self) {
        let Ok(copies) = SuperblockCopies::read(&self.rig.superblock.process_handle()) else { return };
        let listed = copies.superblock.devices;
        self.rig.devices.truncate(listed.len());
        self.rig.devices.iter_mut().zip(listed).for_each(|((_, bytes), of)| *bytes = of.block_count * BLOCK_SIZE_U64);
    }

    /// One copy rots, and whoever opens the pool writes it anew.
    pub fn repair_superblock(&mut self) -> Done {
        let file = self.superblock_file();
        // A change that was cut off may have left one copy already.
        if SuperblockCopies::read(&self.rig.superblock.process_handle())?.damage().is_none() {
            self.rig.superblock.flip_bit(100, 1);
        }
        let copies = SuperblockCopies::read(&*file)?;
        if copies.damage().is_some() {
            copies.repair(&*file, &self.rig.master).map_err(not_written)?;
        }
        Ok(())
    }

    /// Panics if the superblock cannot be read or is nobody's.
    pub fn check_superblock(&self) {
        let copies = SuperblockCopies::read(&self.rig.superblock.process_handle()).expect("one copy is whole");
        assert!(copies.is_of(&self.rig.master), "the superblock is nobody's");
        let listed: Vec<u64> = copies.superblock.devices.iter().map(|device| device.block_count).collect();
        let used: Vec<u64> = self.rig.devices.iter().map(|(_, bytes)| bytes / BLOCK_SIZE_U64).collect();
        assert!(
            used.iter().zip(&listed).all(|(used, listed)| used <= listed),
            "{used:?} is used and {listed:?} listed"
        );
    }
}

fn not_written(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Other, format!("Writing the superblock failed: {error}")).with_source(error)
}
