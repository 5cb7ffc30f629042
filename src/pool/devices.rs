//! The pool's devices and their headers.

use crate::crypto::{Purpose, StaticMac};
use crate::disk::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::FormatError;
use crate::format::device_header::{DeviceHeader, FRONT_BLOCKS, HEADER_OFFSETS};
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, CheckpointId, DeviceIndex, SessionId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// A device of an open pool.
pub struct PoolDevice {
    pub(super) device: Arc<dyn Device>,
    id: Uuid,
    index: DeviceIndex,
    block_count: AtomicU64,
    generation: AtomicU64,
}

/// What the superblock says of a device.
#[derive(Clone, Debug)]
pub struct ExpectedDevice {
    /// The pool.
    pub pool: Uuid,
    /// The device.
    pub id: Uuid,
    /// Its position.
    pub index: DeviceIndex,
    /// Its size in blocks.
    pub block_count: u64,
}

impl PoolDevice {
    /// A device that is new to the pool.
    #[must_use]
    pub fn new(device: Arc<dyn Device>, expected: &ExpectedDevice) -> Self {
        let ExpectedDevice { id, index, block_count, .. } = *expected;
        Self { device, id, index, block_count: AtomicU64::new(block_count), generation: AtomicU64::new(0) }
    }

    /// A device whose header must match; also returns the header.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] naming what is foreign, missing, swapped, shrunk or damaged.
    pub fn open(device: Arc<dyn Device>, expected: &ExpectedDevice, mac: &StaticMac) -> Result<(Self, DeviceHeader)> {
        let header = identify(&*device, expected, mac)?;
        let opened = Self::new(device, expected);
        opened.generation.store(header.generation, Ordering::Relaxed);
        Ok((opened, header))
    }

    /// Writes the header and flushes the device.
    ///
    /// # Errors
    /// The device's failure.
    pub fn write_header(
        &self,
        pool: Uuid,
        session: SessionId,
        checkpoint: CheckpointId,
        mac: &StaticMac,
    ) -> std::io::Result<()> {
        let generation = self.generation.load(Ordering::Relaxed) + 1;
        let header = DeviceHeader {
            pool,
            device: self.id,
            index: self.index,
            block_count: self.block_count(),
            session,
            checkpoint,
            generation,
        };
        let (offset, bytes) = header.encode(mac);
        self.device.write_at(offset, &bytes)?;
        self.device.flush()?;
        self.generation.store(generation, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the next header a new size.
    pub(super) fn set_block_count(&self, block_count: u64) {
        self.block_count.store(block_count, Ordering::Release);
    }

    /// Size in blocks.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.block_count.load(Ordering::Acquire)
    }
}

/// The header of a device that is the expected one, and large enough. Looked at in this order, so that swapped devices of
/// different sizes are not called shrunk.
///
/// # Errors
/// [`ErrorKind::Integrity`] naming what is foreign, swapped, shrunk or damaged.
pub fn identify(device: &dyn Device, expected: &ExpectedDevice, mac: &StaticMac) -> Result<DeviceHeader> {
    let name = device.name();
    let shrunk = || {
        let (has, needs) = (device.size_bytes(), expected.block_count * BLOCK_SIZE_U64);
        let message = format!("Device {name} has shrunk: it has {has} bytes and the pool needs {needs}");
        Error::new(ErrorKind::Integrity, message).with_hint("Restore the device to its full size; nothing was changed")
    };
    if device.size_bytes() < FRONT_BLOCKS * BLOCK_SIZE_U64 {
        return Err(shrunk());
    }
    let header = newest_header(device, mac)?.map_err(|block| foreign(name, expected.pool, &block))?;
    if header.pool != expected.pool {
        return Err(belongs_elsewhere(name, header.pool));
    }
    if header.device != expected.id || header.index != expected.index {
        return Err(Error::new(
            ErrorKind::Integrity,
            format!("Device {name} is device {} of the pool, not device {}", header.index, expected.index),
        )
        .with_hint("The devices were swapped: put each one back under its own name in the pool's directory"));
    }
    if device.size_bytes() / BLOCK_SIZE_U64 < expected.block_count {
        return Err(shrunk());
    }
    Ok(header)
}

/// What the headers of a pool's devices are keyed with.
#[must_use]
pub fn header_mac(master: &crate::crypto::MasterKey) -> StaticMac {
    master.static_mac(Purpose::DeviceHeader)
}

/// The newer of the two copies; the first copy's block if neither is valid.
fn newest_header(device: &dyn Device, mac: &StaticMac) -> Result<std::result::Result<DeviceHeader, Vec<u8>>> {
    let mut newest: Option<DeviceHeader> = None;
    let mut first_block = Vec::new();
    let mut newer = None;
    let mut failure = None;
    for offset in HEADER_OFFSETS {
        let mut block = vec![0; BLOCK_SIZE];
        // Power that goes while a copy is written may leave it unreadable.
        if let Err(error) = device.read_at(offset, &mut block) {
            failure = Some(error);
            continue;
        }
        match DeviceHeader::decode(&block, mac) {
            Ok(header) if newest.is_none_or(|newest| newest.generation < header.generation) => newest = Some(header),
            Err(FormatError::NewerVersion(version)) => newer = Some(version),
            _ => {}
        }
        if first_block.is_empty() {
            first_block = block;
        }
    }
    if let (None, Some(error)) = (newest, failure) {
        return Err(Error::new(ErrorKind::Other, format!("Reading the header of {} failed: {error}", device.name()))
            .with_hint("Repair the device or its connection, then open the pool again; nothing was changed")
            .with_source(error));
    }
    // One copy with a flipped bit in its version must not hide the other.
    if let (None, Some(version)) = (newest, newer) {
        let message = format!("Device {} has format version {version}", device.name());
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("A newer rok-blk wrote it: open the pool with that version"));
    }
    Ok(newest.ok_or(first_block))
}

fn foreign(name: &str, pool: Uuid, block: &[u8]) -> Error {
    match DeviceHeader::peek_pool(block) {
        Some(other) if other != pool => belongs_elsewhere(name, other),
        Some(_) => Error::new(ErrorKind::Integrity, format!("Both headers of device {name} are damaged"))
            .with_hint("Restore the device from a backup"),
        None => Error::new(ErrorKind::Integrity, format!("Device {name} is no device of a pool: it has no header"))
            .with_hint("Is it the right file or device? Nothing was changed on it"),
    }
}

fn belongs_elsewhere(name: &str, pool: Uuid) -> Error {
    Error::new(ErrorKind::Integrity, format!("Device {name} belongs to another pool, {pool}"))
        .with_hint("Put this pool's own device back under that name; nothing was changed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;
    use crate::disk::SimDevice;

    #[test]
    fn a_device_that_is_shorter_than_its_front_has_shrunk_whatever_is_left_of_its_headers() {
        let mac = header_mac(&MasterKey::from_bytes([3; 32]));
        let (pool, id) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let expected = ExpectedDevice { pool, id, index: DeviceIndex::new(0), block_count: 4096 };
        let error_at = |blocks: u64| {
            let device = SimDevice::new("sim", blocks * BLOCK_SIZE_U64);
            identify(&device, &expected, &mac).expect_err("it has no header")
        };
        for blocks in [1, 2, FRONT_BLOCKS - 1] {
            let error = error_at(blocks);
            assert_eq!(error.kind(), ErrorKind::Integrity, "{blocks}: {error}");
            assert!(error.message().contains("sim has shrunk"), "{blocks}: {error}");
        }
        assert!(error_at(FRONT_BLOCKS).message().contains("no header"));
    }
}
