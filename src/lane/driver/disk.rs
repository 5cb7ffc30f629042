//! A lane's queue of pool I/O, as its driver has it.

use crate::disk::{Disk, DiskCompletion, DiskOp, FileDevice, ThreadDisk, UringDisk};
use crate::units::DeviceIndex;
use io_uring::SubmissionQueue;
use std::sync::Arc;

/// The queue on the pool's devices.
pub(in crate::lane) enum LaneDisk {
    /// Its transfers are entries of the lane's ring.
    Uring(UringDisk),
    /// Its transfers are done by threads, which raise the lane's alarm.
    Threads(ThreadDisk),
}

impl LaneDisk {
    pub(in crate::lane) fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>) {
        match self {
            Self::Uring(disk) => disk.set_device(index, device),
            Self::Threads(disk) => disk.set_device(index, device),
        }
    }

    /// Puts what waits into the ring.
    pub(in crate::lane) fn prepare(&mut self, queue: &mut SubmissionQueue<'_>) {
        match self {
            Self::Uring(disk) => {
                disk.prepare(queue);
            }
            Self::Threads(_) => unreachable!("a lane with a ring has its disk on it"),
        }
    }

    /// Hands what waits to the threads.
    pub(in crate::lane) fn hand_over(&mut self) {
        match self {
            Self::Uring(_) => unreachable!("a lane without a ring has its disk on threads"),
            Self::Threads(disk) => disk.hand_over(),
        }
    }

    /// Takes the completion of an entry of the ring.
    pub(in crate::lane) fn complete(&mut self, user_data: u64, result: i32) {
        match self {
            Self::Uring(disk) => disk.complete(user_data, result),
            Self::Threads(_) => unreachable!("threads make no entries"),
        }
    }

    /// Takes what threads have done, after the alarm was lowered.
    pub(in crate::lane) fn collect(&mut self) {
        match self {
            Self::Uring(_) => {}
            Self::Threads(disk) => disk.collect(),
        }
    }

    pub(in crate::lane) fn in_flight_count(&self) -> usize {
        match self {
            Self::Uring(disk) => disk.in_flight_count(),
            Self::Threads(disk) => disk.in_flight_count(),
        }
    }
}

impl Disk for LaneDisk {
    fn submit(&mut self, token: u64, op: DiskOp) {
        match self {
            Self::Uring(disk) => disk.submit(token, op),
            Self::Threads(disk) => disk.submit(token, op),
        }
    }

    fn has_unsubmitted(&self) -> bool {
        match self {
            Self::Uring(disk) => disk.has_unsubmitted(),
            Self::Threads(disk) => disk.has_unsubmitted(),
        }
    }

    fn reap(&mut self, completions: &mut Vec<DiskCompletion>) {
        match self {
            Self::Uring(disk) => disk.reap(completions),
            Self::Threads(disk) => disk.reap(completions),
        }
    }
}
