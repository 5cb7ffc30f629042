//! A device cut to the size that the superblock lists.
//!
//! A block device or file that grew behind the pool's back has more: that is used only once the superblock lists it,
//! else a later shrinking to the old size would lose blocks.

use crate::disk::{Device, FileDevice};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the pool sees of a device, which is a [`FileDevice`] but for tests.
pub(super) struct ListedDevice<D = FileDevice> {
    file: Arc<D>,
    size_bytes: AtomicU64,
}

impl<D: Device> ListedDevice<D> {
    /// The first `size_bytes` of `file`.
    ///
    /// # Panics
    /// If the file has fewer.
    pub fn new(file: Arc<D>, size_bytes: u64) -> Self {
        assert!(size_bytes <= file.size_bytes(), "the caller refuses a device that has shrunk");
        Self { file, size_bytes: AtomicU64::new(size_bytes) }
    }

    /// What is cut.
    pub const fn file(&self) -> &Arc<D> {
        &self.file
    }

    /// Lets more of the file be used. Who does that sees to it that the superblock lists it.
    ///
    /// # Panics
    /// If the file has fewer bytes.
    pub fn grow(&self, size_bytes: u64) {
        assert!(size_bytes <= self.file.size_bytes(), "the file has grown before");
        self.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
    }

    fn check(&self, offset_bytes: u64, len_bytes: usize, outside: io::ErrorKind) -> io::Result<()> {
        let len_bytes = crate::units::to_u64(len_bytes);
        match self.size_bytes().checked_sub(offset_bytes) {
            Some(left) if len_bytes <= left => Ok(()),
            _ => Err(io::Error::new(outside, format!("{len_bytes} bytes at {offset_bytes} are behind the end"))),
        }
    }
}

impl<D: Device> Device for ListedDevice<D> {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
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

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.check(offset_bytes, crate::units::to_usize(len_bytes), io::ErrorKind::InvalidInput)?;
        self.file.discard(offset_bytes, len_bytes)
    }

    fn is_thin(&self) -> bool {
        self.file.is_thin()
    }

    fn holes(&self) -> io::Result<Vec<Range<u64>>> {
        self.file.holes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDevice;

    #[test]
    fn a_flush_of_a_listed_device_is_one_of_its_file() {
        let device = SimDevice::new("sim", 1 << 20);
        let listed = ListedDevice::new(Arc::new(device.clone()), 8192);
        listed.write_at(0, &[7; 4096]).expect("a healthy device");
        assert!(!device.unflushed().is_empty());

        listed.flush().expect("a healthy device");

        assert!(device.unflushed().is_empty());
    }

    #[test]
    fn a_listed_device_is_the_front_of_its_file() {
        let directory = tempfile::tempdir().expect("the temporary folder is writable");
        let file = Arc::new(FileDevice::create(&directory.path().join("data-0"), 1 << 20).expect("there is space"));
        let listed = ListedDevice::new(Arc::clone(&file), 8192);
        assert_eq!((listed.name(), listed.size_bytes(), listed.is_thin()), (file.name(), 8192, file.is_thin()));
        let mut block = [0; 4096];
        listed.write_at(4096, &[7; 4096]).expect("it is within");
        file.read_at(4096, &mut block).expect("it is within");
        assert_eq!(block, [7; 4096]);
        assert_eq!(listed.read_at(4097, &mut block).expect_err("behind the end").kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(listed.write_at(8192, &[7]).expect_err("behind the end").kind(), io::ErrorKind::InvalidInput);
        assert_eq!(listed.discard(4096, 8192).expect_err("behind the end").kind(), io::ErrorKind::InvalidInput);

        listed.grow(12_288);

        listed.read_at(8192, &mut block).expect("it has grown");
    }
}
