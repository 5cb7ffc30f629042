//! Tests of the queue over a real ring.

use super::*;
use crate::disk::{Device, IoBuffer};
use crate::error::ErrorKind;
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, to_u64, to_usize};
use io_uring::IoUring;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use tempfile::TempDir;

const PREFIX: u16 = 0xD15C;
const BLOCKS: u64 = 256;
const SIZE_BYTES: u64 = BLOCKS * BLOCK_SIZE_U64;
/// Fewer than operations in flight, so that some have to wait for room.
const RING_ENTRIES: u32 = 8;
const QUEUE_DEPTH: usize = 32;
const DEVICE: DeviceIndex = DeviceIndex::new(0);

struct Bench {
    // Dropped first, as in a lane.
    disk: UringDisk,
    ring: IoUring,
    device: Arc<FileDevice>,
    path: PathBuf,
    _folder: TempDir,
}

/// A ring, a device and a queue; nothing where the kernel refuses rings (containers do).
fn bench(is_registered: bool) -> Option<Bench> {
    let ring = match IoUring::new(RING_ENTRIES) {
        Ok(ring) => ring,
        Err(error) => {
            assert!(std::env::var_os("ROK_REQUIRE_ALL").is_none(), "io_uring is required: {error}");
            writeln!(io::stderr(), "skipped: io_uring is refused here: {error}").expect("standard error is open");
            return None;
        }
    };
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let path = folder.path().join("data-0");
    let device = Arc::new(FileDevice::create(&path, SIZE_BYTES).expect("there is space for 1 MiB"));
    if is_registered {
        // The first place is somebody else's.
        ring.submitter().register_files(&[-1, device.raw_fd()]).expect("the descriptor is open");
    }
    let disk = UringDisk::new(vec![Arc::clone(&device)], PREFIX, is_registered.then_some(1));
    Some(Bench { disk, ring, device, path, _folder: folder })
}

impl Bench {
    fn turn(&mut self) {
        self.disk.prepare(&mut self.ring.submission());
        self.ring.submit_and_wait(1).expect("the ring works");
        for completion in self.ring.completion() {
            assert!(self.disk.owns(completion.user_data()));
            self.disk.complete(completion.user_data(), completion.result());
        }
    }

    /// Turns the loop until nothing is in flight.
    fn drain(&mut self) -> BTreeMap<u64, io::Result<()>> {
        while self.disk.in_flight_count() > 0 {
            self.turn();
        }
        self.reap()
    }

    fn reap(&mut self) -> BTreeMap<u64, io::Result<()>> {
        let mut completions = Vec::new();
        self.disk.reap(&mut completions);
        let count = completions.len();
        let results: BTreeMap<_, _> = completions.into_iter().map(|end| (end.token, end.result)).collect();
        assert_eq!(results.len(), count, "an operation completes once");
        results
    }
}

fn read(offset_bytes: u64, buffer: &IoBuffer) -> DiskOp {
    DiskOp::Read { device: DEVICE, offset_bytes, target: buffer.lend_to_device() }
}

fn write(offset_bytes: u64, buffer: &IoBuffer) -> DiskOp {
    DiskOp::Write { device: DEVICE, offset_bytes, source: buffer.lend_for_device() }
}

fn filled(len: usize, byte: u8) -> IoBuffer {
    let buffer = IoBuffer::allocate(len);
    buffer.with_bytes_mut(|bytes| bytes.fill(byte));
    buffer
}

fn byte_of(block: u64) -> u8 {
    u8::try_from(1 + block % 251).expect("below 252")
}

/// Writes every block, in an order that jumps, flushes, and reads all back by both doors.
fn write_flush_and_read_back(mut bench: Bench) {
    let mut next = 0;
    let mut done = BTreeMap::new();
    while done.len() < to_usize(BLOCKS) {
        while next < BLOCKS && bench.disk.in_flight_count() < QUEUE_DEPTH {
            // 97 has no factor in common with the number of blocks.
            let block = next * 97 % BLOCKS;
            bench.disk.submit(block, write(block * BLOCK_SIZE_U64, &filled(BLOCK_SIZE, byte_of(block))));
            next += 1;
        }
        bench.turn();
        done.append(&mut bench.reap());
    }
    assert!(done.values().all(Result::is_ok));

    bench.disk.submit(1, DiskOp::Flush { device: DEVICE });
    assert!(bench.drain()[&1].is_ok());

    let buffers: Vec<IoBuffer> = (0..BLOCKS).map(|_| IoBuffer::allocate(BLOCK_SIZE)).collect();
    for (block, buffer) in (0..).zip(&buffers) {
        bench.disk.submit(block, read(block * BLOCK_SIZE_U64, buffer));
    }
    let done = bench.drain();
    assert_eq!(done.len(), buffers.len());
    assert!(done.values().all(Result::is_ok));
    let mut all = vec![0; to_usize(SIZE_BYTES)];
    bench.device.read_at(0, &mut all).expect("the device works");
    for ((block, buffer), stored) in (0..).zip(&buffers).zip(all.chunks_exact(BLOCK_SIZE)) {
        assert_eq!(buffer.with_bytes(<[u8]>::to_vec), [byte_of(block); BLOCK_SIZE]);
        assert_eq!(stored, [byte_of(block); BLOCK_SIZE]);
        assert!(buffer.is_unique());
    }
}

#[test]
fn what_is_written_at_depth_32_reads_back() {
    let Some(bench) = bench(false) else { return };
    write_flush_and_read_back(bench);
}

#[test]
fn what_is_written_through_a_registered_file_reads_back() {
    let Some(bench) = bench(true) else { return };
    write_flush_and_read_back(bench);
}

#[test]
fn one_operation_covers_the_whole_device() {
    let Some(mut bench) = bench(false) else { return };
    let buffer = filled(to_usize(SIZE_BYTES), 5);
    bench.disk.submit(1, write(0, &buffer));
    bench.drain()[&1].as_ref().expect("the device works");
    let target = IoBuffer::allocate(to_usize(SIZE_BYTES));
    bench.disk.submit(2, read(0, &target));
    bench.drain()[&2].as_ref().expect("the device works");
    assert!(target.with_bytes(|bytes| bytes.iter().all(|byte| *byte == 5)));
}

#[test]
fn rings_with_128_bytes_an_entry_work_too() {
    let Some(bench) = bench(false) else { return };
    let mut wide: IoUring<squeue::Entry128> = IoUring::builder().build(RING_ENTRIES).expect("Linux 5.19 has them");
    let mut disk = UringDisk::new(vec![Arc::clone(&bench.device)], PREFIX, None);
    disk.submit(3, write(0, &filled(BLOCK_SIZE, 6)));
    assert_eq!(disk.prepare(&mut wide.submission()), 1);
    wide.submit_and_wait(1).expect("the ring works");
    let completion = wide.completion().next().expect("it was waited for");
    disk.complete(completion.user_data(), completion.result());
    let mut completions = Vec::new();
    disk.reap(&mut completions);
    completions[0].result.as_ref().expect("the device works");
    let mut stored = [0; BLOCK_SIZE];
    bench.device.read_at(0, &mut stored).expect("the device works");
    assert_eq!(stored, [6; BLOCK_SIZE]);
}

#[test]
fn a_full_ring_makes_operations_wait_in_order() {
    let Some(mut bench) = bench(false) else { return };
    for token in 0..to_u64(QUEUE_DEPTH) {
        bench.disk.submit(token, write(token * BLOCK_SIZE_U64, &filled(BLOCK_SIZE, 1)));
    }
    let capacity = bench.ring.submission().capacity();
    assert_eq!(bench.disk.prepare(&mut bench.ring.submission()), capacity);
    assert_eq!(bench.disk.prepare(&mut bench.ring.submission()), 0);
    assert!(bench.disk.has_unsubmitted());
    assert_eq!(bench.disk.in_flight_count(), QUEUE_DEPTH);
    bench.ring.submit_and_wait(capacity).expect("the ring works");
    for completion in bench.ring.completion() {
        bench.disk.complete(completion.user_data(), completion.result());
    }
    assert!(bench.reap().into_keys().eq(0..to_u64(capacity)));
    assert_eq!(bench.drain().len(), QUEUE_DEPTH - capacity);
    assert!(!bench.disk.has_unsubmitted());
}

#[test]
fn a_read_of_a_file_that_became_shorter_is_continued_and_then_ends() {
    let Some(mut bench) = bench(false) else { return };
    let file = OpenOptions::new().write(true).open(&bench.path).expect("the lock is advisory");
    file.set_len(BLOCK_SIZE_U64).expect("the file is ours");
    let buffer = IoBuffer::allocate(2 * BLOCK_SIZE);
    bench.disk.submit(1, read(0, &buffer));
    bench.turn();
    assert!(bench.reap().is_empty(), "the first block came, the rest is asked for");
    assert!(bench.disk.has_unsubmitted());
    let done = bench.drain();
    assert_eq!(done[&1].as_ref().expect_err("behind the end").kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_queue_dropped_too_early_leaves_memory_and_file_to_the_kernel() {
    let Some(bench) = bench(false) else { return };
    let Bench { mut disk, mut ring, device, path, _folder } = bench;
    device.write_at(0, &[4; BLOCK_SIZE]).expect("the device works");
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    disk.submit(1, read(0, &buffer));
    disk.prepare(&mut ring.submission());
    drop(disk);
    drop(device);

    assert!(!buffer.is_unique(), "the loan never ends");
    assert_eq!(FileDevice::open(&path).expect_err("its file stays open").kind(), ErrorKind::Busy);
    ring.submit_and_wait(1).expect("the ring works");
    let completion = ring.completion().next().expect("it was waited for");
    assert_eq!(usize::try_from(completion.result()).expect("no error"), BLOCK_SIZE);
}
