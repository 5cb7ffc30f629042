//! Tests of the table alone: the results are made up, and no kernel sees a transfer.

use super::*;
use crate::disk::IoBuffer;
use crate::error::ErrorKind;
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::TempDir;

const SIZE_BYTES: u64 = 16 * BLOCK_SIZE_U64;
const DEVICE: DeviceIndex = DeviceIndex::new(0);

struct Bench {
    transfers: Transfers,
    device: Arc<FileDevice>,
    path: PathBuf,
    _folder: TempDir,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let path = folder.path().join("data-0");
    let device = Arc::new(FileDevice::create(&path, SIZE_BYTES).expect("there is space for 64 KiB"));
    Bench { transfers: Transfers::new(vec![Arc::clone(&device)]), device, path, _folder: folder }
}

impl Bench {
    fn read(&mut self, token: u64, offset_bytes: u64, buffer: &IoBuffer) {
        let target = buffer.lend_to_device();
        self.transfers.submit(token, DiskOp::Read { device: DEVICE, offset_bytes, target });
    }

    fn write(&mut self, token: u64, offset_bytes: u64, buffer: &IoBuffer) {
        let source = buffer.lend_for_device();
        self.transfers.submit(token, DiskOp::Write { device: DEVICE, offset_bytes, source });
    }

    fn begin(&mut self) -> (u64, Motion) {
        let transfer = self.transfers.begin_next().expect("one waits");
        (transfer.key, transfer.motion)
    }

    /// Begins what waits and ends it with `result`.
    fn pretend(&mut self, result: i32) {
        let (key, _) = self.begin();
        self.transfers.end(key, result);
    }

    fn reap(&mut self) -> BTreeMap<u64, io::Result<()>> {
        let mut completions = Vec::new();
        self.transfers.reap(&mut completions);
        completions.into_iter().map(|end| (end.token, end.result)).collect()
    }
}

#[test]
fn short_transfers_go_on_where_they_ended() {
    let mut bench = bench();
    let buffer = IoBuffer::allocate(4 * BLOCK_SIZE);
    bench.read(1, BLOCK_SIZE_U64, &buffer);
    let (key, first) = bench.begin();
    let Motion::Read { memory, len, offset_bytes } = first else { panic!("{first:?}") };
    assert_eq!((len, offset_bytes), (4 * BLOCK_SIZE, BLOCK_SIZE_U64));
    bench.transfers.end(key, i32::try_from(BLOCK_SIZE).expect("4096"));
    assert!(bench.reap().is_empty());
    assert!(bench.transfers.has_waiting());

    let (key, rest) = bench.begin();
    let Motion::Read { memory: moved, len, offset_bytes } = rest else { panic!("{rest:?}") };
    assert_eq!((len, offset_bytes), (3 * BLOCK_SIZE, 2 * BLOCK_SIZE_U64));
    assert_eq!(moved.addr() - memory.addr(), BLOCK_SIZE);
    bench.transfers.end(key, i32::try_from(3 * BLOCK_SIZE).expect("12288"));
    bench.reap()[&1].as_ref().expect("all of it came");
    assert!(buffer.is_unique());
}

#[test]
fn operations_begin_in_the_order_in_which_they_came_and_a_rest_goes_behind_them() {
    let mut bench = bench();
    let buffer = IoBuffer::allocate(2 * BLOCK_SIZE);
    bench.write(1, 0, &buffer);
    bench.write(2, BLOCK_SIZE_U64, &buffer);
    bench.pretend(i32::try_from(BLOCK_SIZE).expect("4096"));
    let offsets = [bench.begin(), bench.begin()].map(|(_, motion)| match motion {
        Motion::Write { len, offset_bytes, .. } => (len, offset_bytes),
        other => panic!("{other:?}"),
    });
    assert_eq!(offsets, [(2 * BLOCK_SIZE, BLOCK_SIZE_U64), (BLOCK_SIZE, BLOCK_SIZE_U64)]);
    assert!(bench.transfers.begin_next().is_none());
}

#[test]
fn interruptions_are_tried_again_a_bounded_number_of_times() {
    let mut bench = bench();
    bench.write(1, 0, &IoBuffer::allocate(BLOCK_SIZE));
    for errno in [libc::EAGAIN, libc::EINTR].repeat(usize::from(RETRY_COUNT_MAX) / 2) {
        bench.pretend(-errno);
        assert!(bench.reap().is_empty());
    }
    bench.pretend(-libc::EAGAIN);
    assert_eq!(bench.reap()[&1].as_ref().expect_err("given up").raw_os_error(), Some(libc::EAGAIN));
    assert_eq!(bench.transfers.open_count(), 0);
}

#[test]
fn errors_and_writes_of_nothing_end_an_operation() {
    let mut bench = bench();
    bench.write(1, 0, &IoBuffer::allocate(BLOCK_SIZE));
    bench.pretend(-libc::EIO);
    assert_eq!(bench.reap()[&1].as_ref().expect_err("the error").raw_os_error(), Some(libc::EIO));
    bench.write(2, 0, &IoBuffer::allocate(BLOCK_SIZE));
    bench.pretend(0);
    assert_eq!(bench.reap()[&2].as_ref().expect_err("nothing written").kind(), io::ErrorKind::WriteZero);
    bench.read(3, 0, &IoBuffer::allocate(BLOCK_SIZE));
    bench.pretend(0);
    assert_eq!(bench.reap()[&3].as_ref().expect_err("nothing read").kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_flush_is_never_tried_again() {
    let mut bench = bench();
    bench.transfers.submit(1, DiskOp::Flush { device: DEVICE });
    bench.pretend(-libc::EAGAIN);
    assert_eq!(bench.reap()[&1].as_ref().expect_err("believed").raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn ranges_behind_the_end_are_refused_without_the_kernel() {
    let mut bench = bench();
    let buffer = IoBuffer::allocate(2 * BLOCK_SIZE);
    bench.write(1, SIZE_BYTES - BLOCK_SIZE_U64, &buffer);
    bench.read(2, SIZE_BYTES, &IoBuffer::allocate(BLOCK_SIZE));
    assert_eq!(bench.transfers.open_count(), 0);
    let done = bench.reap();
    assert_eq!(done[&1].as_ref().expect_err("behind the end").kind(), io::ErrorKind::InvalidInput);
    assert_eq!(done[&2].as_ref().expect_err("behind the end").kind(), io::ErrorKind::UnexpectedEof);
    assert!(buffer.is_unique());
}

#[test]
fn more_than_a_million_operations_may_be_open() {
    let mut bench = bench();
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    // 128 connections that read 64 MiB of scattered blocks each have two million.
    for token in 0..(1 << 20) + 1 {
        bench.write(token, 0, &buffer);
    }
    let keys: Vec<u64> = (0..(1 << 20) + 1).map(|_| bench.begin().0).collect();
    assert!(keys.iter().enumerate().all(|(place, key)| to_usize(key & PLACE_MASK) == place && key >> KEY_BITS == 0));
    for key in keys {
        bench.transfers.end(key, -libc::EIO);
    }
    assert_eq!(bench.reap().len(), (1 << 20) + 1);
}

#[test]
#[should_panic(expected = "a result is taken once")]
fn a_result_of_an_earlier_operation_in_the_same_place_panics() {
    let mut bench = bench();
    bench.write(1, 0, &IoBuffer::allocate(BLOCK_SIZE));
    let (first, _) = bench.begin();
    bench.transfers.end(first, -libc::EIO);
    bench.write(2, 0, &IoBuffer::allocate(BLOCK_SIZE));
    bench.begin();
    bench.transfers.end(first, -libc::EIO);
}

#[test]
fn a_table_dropped_with_transfers_under_way_frees_neither_memory_nor_file() {
    let mut bench = bench();
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    bench.read(1, 0, &buffer);
    bench.begin();
    drop(bench.transfers);
    drop(bench.device);
    assert!(!buffer.is_unique(), "the loan never ends");
    assert_eq!(FileDevice::open(&bench.path).expect_err("its file stays open").kind(), ErrorKind::Busy);
}

#[test]
fn a_table_dropped_with_operations_that_only_wait_frees_everything() {
    let mut bench = bench();
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    bench.read(1, 0, &buffer);
    drop(bench.transfers);
    drop(bench.device);
    assert!(buffer.is_unique());
    FileDevice::open(&bench.path).expect("nobody holds it");
}
