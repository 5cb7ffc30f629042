//! The handle of a device: the open character device `/dev/ublkcN` through which its queues are served.
//!
//! The driver lets it be opened once, so all queues share one handle. While a handle, a queue or an entry of a ring's
//! table of registered files lives, the driver keeps the device's number: drop them before
//! [`crate::Control::delete`].

use std::fs::File;
use std::path::PathBuf;

/// An open device. Made by [`crate::Control::add`], shared by the threads that serve its queues.
#[derive(Debug)]
pub struct Device {
    pub(crate) file: File,
    pub(crate) id: u32,
    pub(crate) queue_count: u16,
    pub(crate) queue_depth: u16,
    pub(crate) io_bytes_max: u32,
}

impl Device {
    /// The device's number, N of `/dev/ublkbN`.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Number of queues, as the driver granted it: at most the number of processors.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.queue_count
    }

    /// Tags of each queue, as the driver granted it.
    #[must_use]
    pub fn queue_depth(&self) -> u16 {
        self.queue_depth
    }

    /// Bytes of each tag's buffer, and of the largest request with data.
    #[must_use]
    pub fn io_bytes_max(&self) -> u32 {
        self.io_bytes_max
    }

    /// Path of the block device. It exists once the device is started.
    #[must_use]
    pub fn block_path(&self) -> PathBuf {
        block_path(self.id)
    }
}

/// Path of the block device with a number.
#[must_use]
pub fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// Path of the character device with a number.
#[must_use]
pub fn character_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}
