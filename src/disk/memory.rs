//! A device in memory, and a lane's queue on it: to measure everything else where the device costs next to nothing.
//!
//! Nothing outlives the process, and a flush does nothing. Operations are done when they are submitted. The memory is
//! in chunks with a lock each, so that lanes that touch different places do not wait for each other.

use super::{Device, Disk, DiskCompletion, DiskOp, check_range};
use crate::units::{BLOCK_SIZE_U64, to_usize};
use parking_lot::RwLock;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Bytes behind one lock.
const CHUNK_BYTES: usize = 1 << 20;

/// Memory that acts as a device.
#[derive(Debug)]
pub struct MemoryDevice {
    name: String,
    size_bytes: u64,
    /// One without bytes is full of zeros.
    chunks: Vec<RwLock<Vec<u8>>>,
}

impl MemoryDevice {
    /// A device full of zeros. All of its memory is taken at once, so that no later write pays for a page.
    ///
    /// # Panics
    /// If the size is not a multiple of the block size.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64) -> Self {
        assert!(size_bytes.is_multiple_of(BLOCK_SIZE_U64), "a device has whole blocks");
        let chunk_count = to_usize(size_bytes).div_ceil(CHUNK_BYTES);
        let chunk = || {
            // Zeros that were never written have no page yet. The compiler must not see that these will be zeros: it would
            // ask the allocator for them.
            let mut bytes = std::hint::black_box(vec![u8::MAX; CHUNK_BYTES]);
            bytes.fill(0);
            RwLock::new(bytes)
        };
        let chunks = (0..chunk_count).map(|_| chunk()).collect();
        Self { name: name.to_owned(), size_bytes, chunks }
    }

    /// A device full of zeros that takes only the memory of what is written: the first write of each MiB pays for it.
    ///
    /// # Panics
    /// If the size is not a multiple of the block size.
    #[must_use]
    pub fn thin(name: &str, size_bytes: u64) -> Self {
        assert!(size_bytes.is_multiple_of(BLOCK_SIZE_U64), "a device has whole blocks");
        let chunk_count = to_usize(size_bytes).div_ceil(CHUNK_BYTES);
        let chunks = (0..chunk_count).map(|_| RwLock::default()).collect();
        Self { name: name.to_owned(), size_bytes, chunks }
    }
}

/// The chunks of a range: index, bytes within the chunk, bytes within the range.
fn pieces(offset_bytes: u64, len: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let offset = to_usize(offset_bytes);
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done;
        let start = at % CHUNK_BYTES;
        let count = (CHUNK_BYTES - start).min(len - done);
        let piece = (at / CHUNK_BYTES, start..start + count, done..done + count);
        done += count;
        Some(piece)
    })
}

impl Device for MemoryDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<()> {
        check_range(self.size_bytes, offset_bytes, target.len(), io::ErrorKind::UnexpectedEof)?;
        for (index, within, range) in pieces(offset_bytes, target.len()) {
            match &self.chunks[index].read()[..] {
                [] => target[range].fill(0),
                chunk => target[range].copy_from_slice(&chunk[within]),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()> {
        check_range(self.size_bytes, offset_bytes, source.len(), io::ErrorKind::InvalidInput)?;
        for (index, within, range) in pieces(offset_bytes, source.len()) {
            let mut chunk = self.chunks[index].write();
            if chunk.is_empty() {
                *chunk = vec![0; CHUNK_BYTES];
            }
            chunk[within].copy_from_slice(&source[range]);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// One lane's queue on devices in memory.
#[derive(Debug)]
pub struct MemoryDisk {
    devices: Vec<Arc<MemoryDevice>>,
    completed: Vec<DiskCompletion>,
}

impl MemoryDisk {
    /// A queue on `devices`, addressed by their position.
    #[must_use]
    pub const fn new(devices: Vec<Arc<MemoryDevice>>) -> Self {
        Self { devices, completed: Vec::new() }
    }

    /// Whether [`Disk::reap`] has something to give.
    #[must_use]
    pub const fn has_completed(&self) -> bool {
        !self.completed.is_empty()
    }

    fn run(&self, op: DiskOp) -> io::Result<()> {
        match op {
            DiskOp::Read { device, offset_bytes, target } => {
                target.fill_with(|bytes| self.devices[device.as_usize()].read_at(offset_bytes, bytes))
            }
            DiskOp::Write { device, offset_bytes, source } => {
                source.with_bytes(|bytes| self.devices[device.as_usize()].write_at(offset_bytes, bytes))
            }
            DiskOp::Flush { device } => self.devices[device.as_usize()].flush(),
        }
    }
}

impl Disk for MemoryDisk {
    fn submit(&mut self, token: u64, op: DiskOp) {
        let result = self.run(op);
        self.completed.push(DiskCompletion { token, result });
    }

    /// Never: what is handed in is done.
    fn has_unsubmitted(&self) -> bool {
        false
    }

    fn reap(&mut self, completions: &mut Vec<DiskCompletion>) {
        completions.append(&mut self.completed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::IoBuffer;
    use crate::units::{BLOCK_SIZE, DeviceIndex, to_u64};

    const DEVICE: DeviceIndex = DeviceIndex::new(0);
    /// Two chunks and a part of a third one.
    const SIZE_BYTES: u64 = (2 * CHUNK_BYTES + BLOCK_SIZE) as u64;

    fn device() -> Arc<MemoryDevice> {
        Arc::new(MemoryDevice::new("memory", SIZE_BYTES))
    }

    fn reaped(disk: &mut MemoryDisk) -> Vec<(u64, Option<io::ErrorKind>)> {
        let mut completions = Vec::new();
        disk.reap(&mut completions);
        completions.into_iter().map(|end| (end.token, end.result.err().map(|error| error.kind()))).collect()
    }

    #[test]
    fn what_one_lane_writes_across_chunks_another_reads() {
        let device = device();
        let (mut writer, mut reader) = (MemoryDisk::new(vec![Arc::clone(&device)]), MemoryDisk::new(vec![device]));
        let source = IoBuffer::allocate(CHUNK_BYTES + 2 * BLOCK_SIZE);
        source.with_bytes_mut(|bytes| bytes.iter_mut().zip((0..=250).cycle()).for_each(|(byte, value)| *byte = value));
        let offset_bytes = to_u64(CHUNK_BYTES - BLOCK_SIZE);
        writer.submit(1, DiskOp::Write { device: DEVICE, offset_bytes, source: source.lend_for_device() });
        assert_eq!(reaped(&mut writer), [(1, None)]);

        let target = IoBuffer::allocate(source.len());
        reader.submit(2, DiskOp::Read { device: DEVICE, offset_bytes, target: target.lend_to_device() });

        assert!(reader.has_completed());
        assert_eq!(reaped(&mut reader), [(2, None)]);
        assert!(!reader.has_completed());
        assert!(target.with_bytes(|target| source.with_bytes(|source| source == target)));
    }

    #[test]
    fn ranges_behind_the_end_are_refused() {
        let mut disk = MemoryDisk::new(vec![device()]);
        let buffer = IoBuffer::allocate(2 * BLOCK_SIZE);
        let offset_bytes = SIZE_BYTES - BLOCK_SIZE_U64;

        disk.submit(1, DiskOp::Read { device: DEVICE, offset_bytes, target: buffer.lend_to_device() });
        disk.submit(2, DiskOp::Write { device: DEVICE, offset_bytes, source: buffer.lend_for_device() });
        disk.submit(3, DiskOp::Flush { device: DEVICE });

        let kinds = [(1, Some(io::ErrorKind::UnexpectedEof)), (2, Some(io::ErrorKind::InvalidInput)), (3, None)];
        assert_eq!(reaped(&mut disk), kinds);
    }
}
