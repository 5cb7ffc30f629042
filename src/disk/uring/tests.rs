//! Tests of what only the queue over a ring does; what all queues do is in `queue_tests`.

use super::*;
use crate::disk::queue_tests::ring;
use crate::disk::{Device, IoBuffer};
use crate::error::ErrorKind;
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, to_u64};
use io_uring::IoUring;
use std::path::PathBuf;
use tempfile::TempDir;

const PREFIX: u16 = 0xD15C;
const QUEUE_DEPTH: usize = 32;
const SIZE_BYTES: u64 = 32 * BLOCK_SIZE_U64;
const DEVICE: DeviceIndex = DeviceIndex::new(0);

struct Bench {
    // Dropped first, as in a lane.
    disk: UringDisk,
    ring: IoUring,
    device: Arc<FileDevice>,
    path: PathBuf,
    _folder: TempDir,
}

fn bench() -> Option<Bench> {
    let ring = ring()?;
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let path = folder.path().join("data-0");
    let device = Arc::new(FileDevice::create(&path, SIZE_BYTES).expect("there is space for 128 KiB"));
    let disk = UringDisk::new(vec![Arc::clone(&device)], PREFIX, None);
    Some(Bench { disk, ring, device, path, _folder: folder })
}

fn write(offset_bytes: u64, byte: u8) -> DiskOp {
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    buffer.with_bytes_mut(|bytes| bytes.fill(byte));
    DiskOp::Write { device: DEVICE, offset_bytes, source: buffer.lend_for_device() }
}

fn tokens(disk: &mut UringDisk) -> Vec<u64> {
    let mut completions = Vec::new();
    disk.reap(&mut completions);
    assert!(completions.iter().all(|completion| completion.result.is_ok()));
    completions.iter().map(|completion| completion.token).collect()
}

#[test]
fn rings_with_128_bytes_an_entry_work_too() {
    let Some(Bench { mut disk, device, .. }) = bench() else { return };
    let mut wide: IoUring<squeue::Entry128> = IoUring::builder().build(8).expect("Linux 5.19 has them");
    disk.submit(3, write(0, 6));
    assert_eq!(disk.prepare(&mut wide.submission()), 1);
    wide.submit_and_wait(1).expect("the ring works");
    let completion = wide.completion().next().expect("it was waited for");
    disk.complete(completion.user_data(), completion.result());
    assert_eq!(tokens(&mut disk), [3]);
    let mut stored = [0; BLOCK_SIZE];
    device.read_at(0, &mut stored).expect("the device works");
    assert_eq!(stored, [6; BLOCK_SIZE]);
}

#[test]
fn a_full_ring_makes_operations_wait_in_order() {
    let Some(Bench { mut disk, mut ring, .. }) = bench() else { return };
    for token in 0..to_u64(QUEUE_DEPTH) {
        disk.submit(token, write(token * BLOCK_SIZE_U64, 1));
    }
    let capacity = ring.submission().capacity();
    let mut done = Vec::new();
    while done.len() < QUEUE_DEPTH {
        assert!(disk.has_unsubmitted());
        assert_eq!(disk.prepare(&mut ring.submission()), capacity);
        assert_eq!(disk.prepare(&mut ring.submission()), 0, "the ring is full");
        assert_eq!(disk.in_flight_count(), QUEUE_DEPTH - done.len());
        ring.submit_and_wait(capacity).expect("the ring works");
        for completion in ring.completion() {
            disk.complete(completion.user_data(), completion.result());
        }
        let mut round = tokens(&mut disk);
        round.sort_unstable();
        done.append(&mut round);
    }
    assert!(done.into_iter().eq(0..to_u64(QUEUE_DEPTH)));
    assert!(!disk.has_unsubmitted());
}

#[test]
fn a_queue_dropped_too_early_leaves_memory_and_file_to_the_kernel() {
    let Some(Bench { mut disk, mut ring, device, path, _folder }) = bench() else { return };
    device.write_at(0, &[4; BLOCK_SIZE]).expect("the device works");
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    disk.submit(1, DiskOp::Read { device: DEVICE, offset_bytes: 0, target: buffer.lend_to_device() });
    disk.prepare(&mut ring.submission());
    drop(disk);
    drop(device);

    assert!(!buffer.is_unique(), "the loan never ends");
    assert_eq!(FileDevice::open(&path).expect_err("its file stays open").kind(), ErrorKind::Busy);
    ring.submit_and_wait(1).expect("the ring works");
    let completion = ring.completion().next().expect("it was waited for");
    assert_eq!(usize::try_from(completion.result()).expect("no error"), BLOCK_SIZE);
}
