//! A device cut to the size that the superblock lists.
//!
//! A block device or file that grew behind the pool's back has more: that is used only once it was added to the pool,
//! else a later shrinking to the old size would lose blocks.

use crate::disk::{Device, FileDevice};
use std::io;
use std::sync::Arc;

/// What the pool sees of a [`FileDevice`].
pub(super) struct ListedDevice {
    file: Arc<FileDevice>,
    size_bytes: u64,
}

impl ListedDevice {
    /// The first `size_bytes` of `file`.
    ///
    /// # Panics
    /// If the file has fewer.
    pub fn new(file: Arc<FileDevice>, size_bytes: u64) -> Self {
        assert!(size_bytes <= file.size_bytes(), "the caller refuses a device that has shrunk");
        Self { file, size_bytes }
    }

    fn check(&self, offset_bytes: u64, len_bytes: usize, outside: io::ErrorKind) -> io::Result<()> {
        let len_bytes = crate::units::to_u64(len_bytes);
        match self.size_bytes.checked_sub(offset_bytes) {
            Some(left) if len_bytes <= left => Ok(()),
            _ => Err(io::Error::new(outside, format!("{len_bytes} bytes at {offset_bytes} are behind the end"))),
        }
    }
}

impl Device for ListedDevice {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<()> {
        self.check(offset_bytes, target.len(), io::ErrorKind::UnexpectedEof)?;
        self.file.read_at(offset_bytes, target)
    }

    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()> {
        self.check(offset_bytes, source.len(), io::ErrorKind::InvalidInput)?;
        self.file.write_at(offset_bytes, source)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }
}
