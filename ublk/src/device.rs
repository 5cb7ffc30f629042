//! The handle of a device: the open character device `/dev/ublkcN` through which its queues are served.
//!
//! The driver lets it be opened once, so all queues share one handle. While a handle, a queue or an entry of a ring's
//! table of registered files lives, the driver keeps the device's number: drop them before
//! [`crate::Control::delete`].

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Has the kernel write what it caches of a block device, and forget it (`BLKFLSBUF` of `linux/fs.h`).
const FLUSH_BUFFERS: libc::Ioctl = 0x1261;

/// An open device. Made by [`crate::Control::add`] and [`crate::Control::recover`], shared by the threads that serve its queues.
#[derive(Debug)]
pub struct Device {
    pub(crate) file: File,
    pub(crate) id: u32,
    pub(crate) queue_count: u16,
    pub(crate) queue_depth: u16,
    pub(crate) io_bytes_max: u32,
    pub(crate) is_recoverable: bool,
    pub(crate) can_quiesce: bool,
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

    /// Whether it outlives its server: its requests wait then, and those in flight are sent again to the next one.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        self.is_recoverable
    }

    /// Whether its server can answer what is in flight before it leaves (see [`crate::Control::quiesce`]).
    #[must_use]
    pub fn can_quiesce(&self) -> bool {
        self.can_quiesce
    }

    /// Path of the block device. It exists once the device is started.
    #[must_use]
    pub fn block_path(&self) -> PathBuf {
        block_path(self.id)
    }
}

/// Writes what the kernel caches of a block device: its pages, and those of the file system that is mounted from it. The
/// driver does not wait for that when it stops a device that can outlive its server.
///
/// Blocks until all is written or has failed: **never on a thread that serves the device**, nor while nobody does.
///
/// # Errors
/// What the kernel answers: `EACCES` without CAP_SYS_ADMIN.
pub fn write_back(block_device: &File) -> io::Result<()> {
    // SAFETY: the command takes no memory.
    let result = unsafe { libc::ioctl(block_device.as_raw_fd(), FLUSH_BUFFERS, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
