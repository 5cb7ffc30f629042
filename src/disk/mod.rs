//! Devices and the queues that lanes put I/O on.
//!
//! Two doors to one device: [`Device`] blocks and is used off the lanes (open, recovery, checkpoint);
//! [`Disk`] is a lane's queue, never blocks and is not shared. Offsets and lengths are multiples of
//! [`BLOCK_SIZE`]. This layer knows nothing of volumes.

mod buffer;
mod file;
mod memory;
#[cfg(test)]
mod queue_tests;
mod sim;
mod threads;
mod transfers;
mod uring;

pub use buffer::{IoBuffer, LentForDevice, LentToDevice};
pub use file::{FileDevice, free_space_bytes};
pub use memory::{MemoryDevice, MemoryDisk};
pub use sim::{CrashMode, OpKind, SimCounters, SimDevice, SimDisk, WrittenRange};
pub use threads::{ThreadDisk, TransferQueue};
pub use uring::UringDisk;

use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, DeviceIndex, to_u64};
use std::io;
use std::ops::Range;

/// A device of the pool, for code that may block.
///
/// Implementations are safe to use from several threads; overlapping concurrent writes have no order.
pub trait Device: Send + Sync {
    /// What messages call the device: its path.
    fn name(&self) -> &str;

    /// Size in bytes, a multiple of the block size.
    fn size_bytes(&self) -> u64;

    /// Reads exactly `target.len()` bytes.
    ///
    /// # Errors
    /// The device's error, or `UnexpectedEof` behind its end.
    fn read_at(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<()>;

    /// Writes all of `source`. Durable only after a [`Self::flush`] that began later.
    ///
    /// # Errors
    /// The device's error; then any part may have been written.
    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()>;

    /// Makes every write that completed before this call durable.
    ///
    /// # Errors
    /// The device's error. The caller must treat the device as failed: never retry.
    fn flush(&self) -> io::Result<()>;

    /// Gives a range back to what is under the device. It reads as anything until it is written again.
    ///
    /// # Errors
    /// `Unsupported` if nothing can be given back, else the device's.
    fn discard(&self, _offset_bytes: u64, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether a range that was given back is to be written before it is used: in a file, where it may not get space
    /// again, and where each flush of new blocks is a commit of the file system.
    fn is_thin(&self) -> bool {
        false
    }

    /// Ranges in bytes that were given back and not written since; only of devices that are thin.
    ///
    /// # Errors
    /// The system's.
    fn holes(&self) -> io::Result<Vec<Range<u64>>> {
        Ok(Vec::new())
    }
}

/// One I/O of a lane. It owns what the kernel reads or writes until its completion.
#[derive(Debug)]
pub enum DiskOp {
    /// Fill `target` from the device.
    Read {
        /// Which device.
        device: DeviceIndex,
        /// Where on it.
        offset_bytes: u64,
        /// What is filled.
        target: LentToDevice,
    },
    /// Write `source` to the device.
    Write {
        /// Which device.
        device: DeviceIndex,
        /// Where on it.
        offset_bytes: u64,
        /// What is written.
        source: LentForDevice,
    },
    /// Make every write durable that completed before this was submitted, by whatever lane.
    Flush {
        /// Which device.
        device: DeviceIndex,
    },
}

/// The end of a [`DiskOp`].
#[derive(Debug)]
pub struct DiskCompletion {
    /// What the submitter named the operation.
    pub token: u64,
    /// Success means all of the bytes; a short transfer is continued by the implementation.
    pub result: io::Result<()>,
}

/// A lane's queue of I/O. Completions come in any order.
pub trait Disk {
    /// Takes an operation; it starts at the latest when the lane's loop turn ends. Never blocks and never
    /// refuses: what the ring or the threads cannot take yet waits inside.
    fn submit(&mut self, token: u64, op: DiskOp);

    /// Whether operations were handed in that are not with the device yet: they go there when the lane enters the kernel.
    fn has_unsubmitted(&self) -> bool;

    /// Appends what has completed to `completions`.
    fn reap(&mut self, completions: &mut Vec<DiskCompletion>);
}

/// What every device checks first: whole blocks, at least one, within the device.
///
/// # Errors
/// `outside` if the range does not end on the device.
///
/// # Panics
/// If the range is empty or not made of whole blocks: the engine never asks for such.
fn check_range(size_bytes: u64, offset_bytes: u64, len_bytes: usize, outside: io::ErrorKind) -> io::Result<()> {
    assert!(len_bytes > 0, "an operation has at least one block");
    assert!(len_bytes.is_multiple_of(BLOCK_SIZE), "{len_bytes} bytes are not whole blocks");
    assert!(offset_bytes.is_multiple_of(BLOCK_SIZE_U64), "offset {offset_bytes} is not on a block");
    if size_bytes.checked_sub(offset_bytes).is_none_or(|left| to_u64(len_bytes) > left) {
        let message = format!("{len_bytes} bytes at {offset_bytes} are outside of {size_bytes} bytes");
        return Err(io::Error::new(outside, message));
    }
    Ok(())
}
