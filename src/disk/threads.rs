//! A lane's queue on real devices, where there is no io_uring: threads do the transfers, with calls that block.
//!
//! The threads are not made here: whoever makes them has each run [`TransferQueue::work`]. Each turn of its loop the lane
//! calls [`ThreadDisk::hand_over`] before it sleeps; when it was woken, [`ThreadDisk::collect`], then `reap`.
//!
//! Invariant: what a transfer names stays in the lane's table until the thread has returned its result and the lane has
//! collected it. Before the end the lane must turn its loop until [`ThreadDisk::in_flight_count`] is 0.

#![expect(unsafe_code, reason = "threads read and write memory that a lane has lent to them")]

#[cfg(test)]
mod tests;

use super::transfers::{Motion, Transfers};
use super::{Disk, DiskCompletion, DiskOp, FileDevice};
use crate::units::DeviceIndex;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Transfers of one lane that threads have or that wait for them, so that no lane waits behind all that another one has.
const HANDED_OVER_MAX: usize = 256;

/// Transfers that wait for a thread, those of all lanes, oldest first. Each lane bounds its own.
#[derive(Default)]
pub struct TransferQueue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    is_closing: bool,
}

/// A transfer on its way through a thread.
struct Job {
    key: u64,
    device: Arc<FileDevice>,
    motion: Motion,
    returns: Arc<Returns>,
}

// SAFETY: of its parts only the pointer in `motion` is not `Send`. It is the thread's own until the result is returned:
// the lane's table keeps the loan until then, and a loan forbids the lane whatever conflicts with the transfer.
unsafe impl Send for Job {}

/// Where a lane finds the results of its transfers.
struct Returns {
    /// Keys, and bytes or an error's number below 0.
    results: Mutex<Vec<(u64, i32)>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl TransferQueue {
    /// What each of the threads does, until the queue is closed and empty.
    pub fn work(&self) {
        while let Some(job) = self.next() {
            let result = job.attempt();
            job.returns.results.lock().push((job.key, result));
            (job.returns.wake)();
        }
    }

    /// Lets the threads end once the queue is empty.
    pub fn close(&self) {
        self.jobs.lock().is_closing = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            if jobs.is_closing {
                return None;
            }
            self.changed.wait(&mut jobs);
        }
    }
}

impl Job {
    /// One call to the kernel; its result as a ring would give it.
    fn attempt(&self) -> i32 {
        let transferred = match self.motion {
            Motion::Read { memory, len, offset_bytes } => {
                // SAFETY: the loan of the operation keeps the memory, and forbids every other access to it, until the
                // result is collected, which comes after this; it was zeroed when it was allocated.
                self.device.read_some(offset_bytes, unsafe { std::slice::from_raw_parts_mut(memory, len) })
            }
            Motion::Write { memory, len, offset_bytes } => {
                // SAFETY: the loan of the operation keeps the memory, and forbids every change of it, until the result
                // is collected, which comes after this.
                self.device.write_some(offset_bytes, unsafe { std::slice::from_raw_parts(memory, len) })
            }
            Motion::Flush => self.device.flush_once().map(|()| 0),
        };
        match transferred {
            Ok(len) => i32::try_from(len).expect("a transfer has at most 2^30 bytes"),
            Err(error) => -errno(&error),
        }
    }
}

/// One lane's queue on files and block devices.
pub struct ThreadDisk {
    transfers: Transfers,
    queue: Arc<TransferQueue>,
    returns: Arc<Returns>,
    /// Transfers that were handed over and whose results were not collected.
    handed_over_count: usize,
    /// What is being collected; empty in between.
    collected: Vec<(u64, i32)>,
}

impl ThreadDisk {
    /// A queue on `devices`, addressed by their position. Each result that comes back calls `wake`, on the thread that
    /// did the transfer.
    #[must_use]
    pub fn new(
        devices: Vec<Arc<FileDevice>>,
        queue: Arc<TransferQueue>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let returns = Arc::new(Returns { results: Mutex::default(), wake: Box::new(wake) });
        Self { transfers: Transfers::new(devices), queue, returns, handed_over_count: 0, collected: Vec::new() }
    }

    /// Gives the queue a device: one more behind the others, or another one in a place that no operation has used.
    ///
    /// # Panics
    /// If devices before it are missing.
    pub fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>) {
        self.transfers.set_device(index, device);
    }

    /// Hands what waits to the threads, as much as they may have of this lane. The rest waits for results.
    pub fn hand_over(&mut self) {
        if !self.has_unsubmitted() {
            return;
        }
        let before_count = self.handed_over_count;
        let mut jobs = self.queue.jobs.lock();
        while self.handed_over_count < HANDED_OVER_MAX
            && let Some(transfer) = self.transfers.begin_next()
        {
            let (device, returns) = (Arc::clone(transfer.device), Arc::clone(&self.returns));
            jobs.waiting.push_back(Job { key: transfer.key, device, motion: transfer.motion, returns });
            self.handed_over_count += 1;
        }
        drop(jobs);
        for _ in before_count..self.handed_over_count {
            self.queue.changed.notify_one();
        }
    }

    /// Takes the results that came back. Short transfers and interruptions go on by themselves, with the next
    /// [`Self::hand_over`]; everything else comes out of `reap`.
    pub fn collect(&mut self) {
        std::mem::swap(&mut self.collected, &mut *self.returns.results.lock());
        self.handed_over_count -= self.collected.len();
        for (key, result) in self.collected.drain(..) {
            self.transfers.end(key, result);
        }
    }

    /// Operations that were submitted and have not completed. While it is not 0, this must not be dropped.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.transfers.open_count()
    }
}

impl Disk for ThreadDisk {
    fn submit(&mut self, token: u64, op: DiskOp) {
        self.transfers.submit(token, op);
    }

    /// Whether something waits for [`ThreadDisk::hand_over`] that it would take, so that the lane must not sleep before.
    fn has_unsubmitted(&self) -> bool {
        self.transfers.has_waiting() && self.handed_over_count < HANDED_OVER_MAX
    }

    fn reap(&mut self, completions: &mut Vec<DiskCompletion>) {
        self.transfers.reap(completions);
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
