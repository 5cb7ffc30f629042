//! Tests of what only the queue over threads does; what all queues do is in `queue_tests`. No threads are made here: a
//! test runs the queue's work itself when its time has come.

use super::*;
use crate::disk::{Device, IoBuffer};
use crate::error::ErrorKind;
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, to_u64};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

const DEVICE: DeviceIndex = DeviceIndex::new(0);
const BLOCKS: usize = HANDED_OVER_MAX + 10;

struct Bench {
    queue: Arc<TransferQueue>,
    device: Arc<FileDevice>,
    path: PathBuf,
    _folder: TempDir,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let path = folder.path().join("data-0");
    let size_bytes = to_u64(BLOCKS) * BLOCK_SIZE_U64;
    let device = Arc::new(FileDevice::create(&path, size_bytes).expect("there is space for 1 MiB"));
    Bench { queue: Arc::default(), device, path, _folder: folder }
}

impl Bench {
    /// A lane's queue, and how often it was woken.
    fn lane(&self) -> (ThreadDisk, Arc<AtomicUsize>) {
        let woken_count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken_count);
        let wake = move || {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        (ThreadDisk::new(vec![Arc::clone(&self.device)], Arc::clone(&self.queue), wake), woken_count)
    }

    /// Does all transfers that wait, on this thread.
    fn work(&self) {
        self.queue.close();
        self.queue.work();
        self.queue.jobs.lock().is_closing = false;
    }
}

fn write(block: usize) -> DiskOp {
    let source = IoBuffer::allocate(BLOCK_SIZE).lend_for_device();
    DiskOp::Write { device: DEVICE, offset_bytes: to_u64(block) * BLOCK_SIZE_U64, source }
}

fn tokens(disk: &mut ThreadDisk) -> Vec<u64> {
    let mut completions = Vec::new();
    disk.reap(&mut completions);
    assert!(completions.iter().all(|completion| completion.result.is_ok()));
    completions.iter().map(|completion| completion.token).collect()
}

#[test]
fn a_lane_hands_over_a_bounded_number_and_the_rest_when_results_are_back() {
    let bench = bench();
    let (mut disk, woken_count) = bench.lane();
    for block in 0..BLOCKS {
        disk.submit(to_u64(block), write(block));
    }
    disk.hand_over();
    assert_eq!(bench.queue.jobs.lock().waiting.len(), HANDED_OVER_MAX);
    // Else the lane would not sleep until there are results.
    assert!(!disk.has_unsubmitted());

    bench.work();
    assert!(tokens(&mut disk).is_empty(), "nothing has been collected");
    disk.collect();
    assert!(disk.has_unsubmitted());
    assert!(tokens(&mut disk).into_iter().eq(0..to_u64(HANDED_OVER_MAX)));
    disk.hand_over();
    bench.work();
    disk.collect();
    assert!(tokens(&mut disk).into_iter().eq(to_u64(HANDED_OVER_MAX)..to_u64(BLOCKS)));
    assert_eq!((disk.in_flight_count(), disk.handed_over_count), (0, 0));
    assert_eq!(woken_count.load(Ordering::Relaxed), BLOCKS, "each result wakes its lane");
}

#[test]
fn results_come_back_to_the_lane_that_asked() {
    let bench = bench();
    let mut lanes = [bench.lane(), bench.lane()];
    for (token, (disk, _)) in (7..).zip(&mut lanes) {
        disk.submit(token, write(0));
        disk.hand_over();
    }
    bench.work();
    for (token, (disk, woken_count)) in (7..).zip(&mut lanes) {
        disk.collect();
        assert_eq!(tokens(disk), [token]);
        assert_eq!(woken_count.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn threads_end_when_the_queue_is_closed_and_empty() {
    let bench = bench();
    let (mut disk, _) = bench.lane();
    let waiting = Arc::clone(&bench.queue);
    let thread = std::thread::spawn(move || waiting.work());
    disk.submit(1, write(0));
    disk.hand_over();
    bench.queue.close();
    thread.join().expect("no thread panics");
    disk.collect();
    assert_eq!(tokens(&mut disk), [1], "what was handed over is done before");
}

#[test]
fn errors_are_numbers_below_0() {
    let bench = bench();
    let returns = Arc::new(Returns { results: Mutex::default(), wake: Box::new(|| ()) });
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    let loan = buffer.lend_to_device();
    // Its sign bit is set, so no file has it.
    let offset_bytes = 1 << 63;
    let motion = Motion::Read { memory: loan.as_mut_ptr(), len: loan.len(), offset_bytes };
    let job = Job { key: 0, device: Arc::clone(&bench.device), motion, returns };
    assert_eq!(job.attempt(), -libc::EINVAL);
}

#[test]
fn a_queue_dropped_too_early_leaves_memory_and_file_to_the_threads() {
    let bench = bench();
    bench.device.write_at(0, &[4; BLOCK_SIZE]).expect("the device works");
    let (mut disk, woken_count) = bench.lane();
    let buffer = IoBuffer::allocate(BLOCK_SIZE);
    disk.submit(1, DiskOp::Read { device: DEVICE, offset_bytes: 0, target: buffer.lend_to_device() });
    disk.hand_over();
    drop(disk);
    bench.work();

    assert_eq!(woken_count.load(Ordering::Relaxed), 1, "the thread has read into it");
    assert!(!buffer.is_unique(), "the loan never ends");
    drop(bench.device);
    assert_eq!(FileDevice::open(&bench.path).expect_err("its file stays open").kind(), ErrorKind::Busy);
}
