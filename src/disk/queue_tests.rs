//! What every queue on real devices does, whoever moves the bytes: one suite for the ring and for threads.

use super::{Device, Disk, DiskCompletion, DiskOp, FileDevice, IoBuffer, ThreadDisk, TransferQueue, UringDisk};
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, DeviceIndex, to_usize};
use io_uring::IoUring;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use tempfile::TempDir;

const PREFIX: u16 = 0xD15C;
const BLOCKS: u64 = 256;
const SIZE_BYTES: u64 = BLOCKS * BLOCK_SIZE_U64;
/// Fewer than operations in flight, so that some have to wait for room.
const RING_ENTRIES: u32 = 8;
const THREADS: usize = 3;
const QUEUE_DEPTH: usize = 32;
const DEVICE: DeviceIndex = DeviceIndex::new(0);

/// A queue, and what a lane has around it.
trait Machine: Sized {
    /// `None` where the kernel refuses it; said then.
    fn on(device: &Arc<FileDevice>) -> Option<Self>;

    fn disk(&mut self) -> &mut dyn Disk;

    fn in_flight_count(&self) -> usize;

    fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>);

    /// Hands over what waits, sleeps until something has ended, and takes that.
    fn turn(&mut self);
}

struct OverRing {
    // Dropped first, as in a lane.
    disk: UringDisk,
    ring: IoUring,
}

/// The same, with the device's descriptor registered.
struct OverRegistered(OverRing);

struct OverThreads {
    disk: ThreadDisk,
    queue: Arc<TransferQueue>,
    threads: Vec<JoinHandle<()>>,
    woken: mpsc::Receiver<()>,
}

/// A ring; nothing where the kernel refuses rings (containers do).
pub(super) fn ring() -> Option<IoUring> {
    match IoUring::new(RING_ENTRIES) {
        Ok(ring) => Some(ring),
        Err(error) => {
            assert!(std::env::var_os("ROK_REQUIRE_ALL").is_none(), "io_uring is required: {error}");
            writeln!(io::stderr(), "skipped: io_uring is refused here: {error}").expect("standard error is open");
            None
        }
    }
}

impl Machine for OverRing {
    fn on(device: &Arc<FileDevice>) -> Option<Self> {
        let disk = UringDisk::new(vec![Arc::clone(device)], PREFIX, None);
        Some(Self { disk, ring: ring()? })
    }

    fn disk(&mut self) -> &mut dyn Disk {
        &mut self.disk
    }

    fn in_flight_count(&self) -> usize {
        self.disk.in_flight_count()
    }

    fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>) {
        self.disk.set_device(index, device);
    }

    fn turn(&mut self) {
        self.disk.prepare(&mut self.ring.submission());
        self.ring.submit_and_wait(1).expect("the ring works");
        for completion in self.ring.completion() {
            assert!(self.disk.owns(completion.user_data()));
            self.disk.complete(completion.user_data(), completion.result());
        }
    }
}

impl Machine for OverRegistered {
    fn on(device: &Arc<FileDevice>) -> Option<Self> {
        let ring = ring()?;
        // The first place is somebody else's.
        ring.submitter().register_files(&[-1, device.raw_fd()]).expect("the descriptor is open");
        Some(Self(OverRing { disk: UringDisk::new(vec![Arc::clone(device)], PREFIX, Some(1)), ring }))
    }

    fn disk(&mut self) -> &mut dyn Disk {
        self.0.disk()
    }

    fn in_flight_count(&self) -> usize {
        self.0.in_flight_count()
    }

    fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>) {
        self.0.set_device(index, device);
    }

    fn turn(&mut self) {
        self.0.turn();
    }
}

impl Machine for OverThreads {
    fn on(device: &Arc<FileDevice>) -> Option<Self> {
        let queue = Arc::new(TransferQueue::default());
        let threads = (0..THREADS).map(|_| Arc::clone(&queue)).map(|queue| std::thread::spawn(move || queue.work()));
        let threads = threads.collect();
        let (wake, woken) = mpsc::channel();
        let wake = move || wake.send(()).expect("the lane lives longer than its transfers");
        let disk = ThreadDisk::new(vec![Arc::clone(device)], Arc::clone(&queue), wake);
        Some(Self { disk, queue, threads, woken })
    }

    fn disk(&mut self) -> &mut dyn Disk {
        &mut self.disk
    }

    fn in_flight_count(&self) -> usize {
        self.disk.in_flight_count()
    }

    fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>) {
        self.disk.set_device(index, device);
    }

    fn turn(&mut self) {
        self.disk.hand_over();
        assert!(!self.disk.has_unsubmitted(), "the threads take all that there is in these tests");
        self.woken.recv().expect("the disk keeps the sender");
        self.disk.collect();
    }
}

impl Drop for OverThreads {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            thread.join().expect("no thread panics");
        }
    }
}

struct Bench<M> {
    machine: M,
    device: Arc<FileDevice>,
    path: PathBuf,
    folder: TempDir,
}

fn bench<M: Machine>() -> Option<Bench<M>> {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let path = folder.path().join("data-0");
    let device = Arc::new(FileDevice::create(&path, SIZE_BYTES).expect("there is space for 1 MiB"));
    Some(Bench { machine: M::on(&device)?, device, path, folder })
}

impl<M: Machine> Bench<M> {
    fn read(&mut self, token: u64, offset_bytes: u64, buffer: &IoBuffer) {
        let target = buffer.lend_to_device();
        self.machine.disk().submit(token, DiskOp::Read { device: DEVICE, offset_bytes, target });
    }

    fn write(&mut self, token: u64, offset_bytes: u64, buffer: &IoBuffer) {
        let source = buffer.lend_for_device();
        self.machine.disk().submit(token, DiskOp::Write { device: DEVICE, offset_bytes, source });
    }

    /// Turns the loop until nothing is in flight.
    fn drain(&mut self) -> BTreeMap<u64, io::Result<()>> {
        while self.machine.in_flight_count() > 0 {
            self.machine.turn();
        }
        self.reap()
    }

    fn reap(&mut self) -> BTreeMap<u64, io::Result<()>> {
        let mut completions: Vec<DiskCompletion> = Vec::new();
        self.machine.disk().reap(&mut completions);
        let count = completions.len();
        let results: BTreeMap<_, _> = completions.into_iter().map(|end| (end.token, end.result)).collect();
        assert_eq!(results.len(), count, "an operation completes once");
        results
    }
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
fn what_is_written_at_depth_32_reads_back<M: Machine>() {
    let Some(mut bench) = bench::<M>() else { return };
    let mut next = 0;
    let mut done = BTreeMap::new();
    while done.len() < to_usize(BLOCKS) {
        while next < BLOCKS && bench.machine.in_flight_count() < QUEUE_DEPTH {
            // 97 has no factor in common with the number of blocks.
            let block = next * 97 % BLOCKS;
            bench.write(block, block * BLOCK_SIZE_U64, &filled(BLOCK_SIZE, byte_of(block)));
            next += 1;
        }
        bench.machine.turn();
        done.append(&mut bench.reap());
    }
    assert!(done.values().all(Result::is_ok));

    bench.machine.disk().submit(1, DiskOp::Flush { device: DEVICE });
    assert!(bench.drain()[&1].is_ok());

    let buffers: Vec<IoBuffer> = (0..BLOCKS).map(|_| IoBuffer::allocate(BLOCK_SIZE)).collect();
    for (block, buffer) in (0..).zip(&buffers) {
        bench.read(block, block * BLOCK_SIZE_U64, buffer);
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

fn one_operation_covers_the_whole_device<M: Machine>() {
    let Some(mut bench) = bench::<M>() else { return };
    bench.write(1, 0, &filled(to_usize(SIZE_BYTES), 5));
    bench.drain()[&1].as_ref().expect("the device works");
    let target = IoBuffer::allocate(to_usize(SIZE_BYTES));
    bench.read(2, 0, &target);
    bench.drain()[&2].as_ref().expect("the device works");
    assert!(target.with_bytes(|bytes| bytes.iter().all(|byte| *byte == 5)));
}

fn a_read_of_a_file_that_became_shorter_is_continued_and_then_ends<M: Machine>() {
    let Some(mut bench) = bench::<M>() else { return };
    let file = OpenOptions::new().write(true).open(&bench.path).expect("the lock is advisory");
    file.set_len(BLOCK_SIZE_U64).expect("the file is ours");
    let buffer = IoBuffer::allocate(2 * BLOCK_SIZE);
    bench.read(1, 0, &buffer);
    bench.machine.turn();
    assert!(bench.reap().is_empty(), "the first block came, the rest is asked for");
    assert!(bench.machine.disk().has_unsubmitted());
    let done = bench.drain();
    assert_eq!(done[&1].as_ref().expect_err("behind the end").kind(), io::ErrorKind::UnexpectedEof);
}

fn ranges_behind_the_end_complete_without_the_device<M: Machine>() {
    let Some(mut bench) = bench::<M>() else { return };
    bench.write(1, SIZE_BYTES - BLOCK_SIZE_U64, &IoBuffer::allocate(2 * BLOCK_SIZE));
    bench.read(2, SIZE_BYTES, &IoBuffer::allocate(BLOCK_SIZE));
    assert_eq!(bench.machine.in_flight_count(), 0);
    let done = bench.reap();
    assert_eq!(done[&1].as_ref().expect_err("behind the end").kind(), io::ErrorKind::InvalidInput);
    assert_eq!(done[&2].as_ref().expect_err("behind the end").kind(), io::ErrorKind::UnexpectedEof);
}

/// Direct I/O of memory that is not aligned is what a kernel refuses by itself.
fn errors_of_the_device_keep_their_number<M: Machine>() {
    let Some(mut bench) = bench::<M>() else { return };
    let unaligned = IoBuffer::allocate(2 * BLOCK_SIZE).slice(1..1 + BLOCK_SIZE);
    bench.read(1, 0, &unaligned);
    let done = bench.drain();
    // Where the file system takes any memory (tmpfs does), the read succeeds.
    match done[&1].as_ref() {
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
        Ok(()) => assert!(unaligned.with_bytes(|bytes| bytes.iter().all(|byte| *byte == 0))),
    }
    assert_eq!(bench.machine.in_flight_count(), 0);
}

fn a_device_that_is_given_later_is_used<M: Machine>() {
    let Some(mut bench) = bench::<M>() else { return };
    let path = bench.folder.path().join("data-1");
    let second = Arc::new(FileDevice::create(&path, SIZE_BYTES).expect("there is space for 1 MiB"));
    let index = DeviceIndex::new(1);
    bench.machine.set_device(index, Arc::clone(&second));
    let source = filled(BLOCK_SIZE, 9).lend_for_device();
    bench.machine.disk().submit(1, DiskOp::Write { device: index, offset_bytes: BLOCK_SIZE_U64, source });
    bench.drain()[&1].as_ref().expect("the device works");
    let mut stored = [0; BLOCK_SIZE];
    second.read_at(BLOCK_SIZE_U64, &mut stored).expect("the device works");
    assert_eq!(stored, [9; BLOCK_SIZE]);
}

/// Each of the tests for a machine.
macro_rules! suite {
    ($module:ident, $machine:ident: $($name:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    super::$name::<super::$machine>();
                }
            )*
        }
    };
}

suite!(ring, OverRing:
    what_is_written_at_depth_32_reads_back
    one_operation_covers_the_whole_device
    a_read_of_a_file_that_became_shorter_is_continued_and_then_ends
    ranges_behind_the_end_complete_without_the_device
    errors_of_the_device_keep_their_number
    a_device_that_is_given_later_is_used
);
suite!(registered, OverRegistered:
    what_is_written_at_depth_32_reads_back
);
suite!(threads, OverThreads:
    what_is_written_at_depth_32_reads_back
    one_operation_covers_the_whole_device
    a_read_of_a_file_that_became_shorter_is_continued_and_then_ends
    ranges_behind_the_end_complete_without_the_device
    errors_of_the_device_keep_their_number
    a_device_that_is_given_later_is_used
);
