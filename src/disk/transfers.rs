//! The operations of a lane's queue on real devices: which wait, which are under way, and how far each has come.
//!
//! Whoever does the transfers (a ring, threads) takes one after the other with [`Transfers::begin_next`] and gives each
//! result to [`Transfers::end`]. Short transfers and interruptions go on by themselves: they wait again.
//!
//! Invariant: from `begin_next` until `end`, the operation's loans and its device stay in the table here, and so does the
//! memory that is read or written. What is under way when the table is dropped nevertheless is leaked on purpose.

#![expect(unsafe_code, reason = "frees by hand what no transfer uses any more")]

#[cfg(test)]
mod tests;

use super::{Device, DiskCompletion, DiskOp, FileDevice, check_range};
use crate::units::{DeviceIndex, to_u64, to_usize};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// Bytes of one transfer; the kernel takes less than 2 GiB at once.
const TRANSFER_BYTES_MAX: usize = 1 << 30;
/// How often an operation that made no progress is tried again before its error is believed.
const RETRY_COUNT_MAX: u8 = 16;

// A key: 24 bits that differ between uses of a place, 24 bits of place in the table.
const USE_SHIFT: u32 = 24;
const USE_MASK: u64 = (1 << 24) - 1;
/// Operations that can be open at once move 64 GiB at least: frontends bound the bytes of their requests far below that,
/// but not how many pieces the blocks of a request lie in.
const PLACE_MASK: u64 = (1 << USE_SHIFT) - 1;
/// Bits of a key.
pub(super) const KEY_BITS: u32 = 48;

/// The operations of one lane.
#[derive(Debug)]
pub(super) struct Transfers {
    // Both leak as a whole if transfers are under way at the end: one that the kernel has not begun yet names the
    // descriptor by number, which must not be closed and given to another file.
    devices: ManuallyDrop<Vec<Arc<FileDevice>>>,
    operations: ManuallyDrop<Slab<Operation>>,
    /// Places of operations that are not under way, in the order in which they begin.
    waiting: VecDeque<usize>,
    completed: Vec<DiskCompletion>,
    use_count: u64,
}

/// What is left of an operation, as one thing to ask of the kernel.
#[derive(Debug)]
pub(super) struct Transfer<'a> {
    /// By which its result is known, in [`KEY_BITS`] bits.
    pub key: u64,
    pub index: DeviceIndex,
    pub device: &'a Arc<FileDevice>,
    pub motion: Motion,
}

/// What is moved. The memory is that of the operation's loan.
#[derive(Clone, Copy, Debug)]
pub(super) enum Motion {
    Read { memory: *mut u8, len: usize, offset_bytes: u64 },
    Write { memory: *const u8, len: usize, offset_bytes: u64 },
    Flush,
}

#[derive(Debug)]
struct Operation {
    token: u64,
    op: DiskOp,
    done_bytes: usize,
    retry_count: u8,
    /// Its part of the key, so that a result of an earlier operation in this place is noticed.
    use_number: u64,
    is_under_way: bool,
}

impl Transfers {
    /// Operations on `devices`, addressed by their position.
    pub(super) fn new(devices: Vec<Arc<FileDevice>>) -> Self {
        Self {
            devices: ManuallyDrop::new(devices),
            operations: ManuallyDrop::new(Slab::new()),
            waiting: VecDeque::new(),
            completed: Vec::new(),
            use_count: 0,
        }
    }

    /// Takes one more device behind the others, or another one in a place that no operation has used.
    ///
    /// # Panics
    /// If devices before it are missing.
    pub(super) fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>) {
        match self.devices.get_mut(index.as_usize()) {
            Some(place) => *place = device,
            None => {
                assert_eq!(index.as_usize(), self.devices.len(), "devices are appended");
                self.devices.push(device);
            }
        }
    }

    /// Takes an operation, which waits to begin. One outside of its device is completed with the error.
    pub(super) fn submit(&mut self, token: u64, op: DiskOp) {
        if let Err(error) = self.check(&op) {
            self.completed.push(DiskCompletion { token, result: Err(error) });
            return;
        }
        self.use_count += 1;
        let use_number = self.use_count & USE_MASK;
        let operation = Operation { token, op, done_bytes: 0, retry_count: 0, use_number, is_under_way: false };
        let place = self.operations.insert(operation);
        assert!(to_u64(place) <= PLACE_MASK, "more than 2^24 operations are open");
        self.waiting.push_back(place);
    }

    /// The next one that waits, which is under way from now on: its result must come to [`Self::end`].
    pub(super) fn begin_next(&mut self) -> Option<Transfer<'_>> {
        let place = self.waiting.pop_front()?;
        let operation = &mut self.operations[place];
        operation.is_under_way = true;
        let index = device_of(&operation.op);
        let key = (operation.use_number << USE_SHIFT) | to_u64(place);
        Some(Transfer { key, index, device: &self.devices[index.as_usize()], motion: operation.motion() })
    }

    /// Whether any waits to begin.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the result of a transfer: bytes, or an error's number below 0, as the kernel gives it.
    ///
    /// # Panics
    /// If no transfer with this key is under way: the result was taken before.
    pub(super) fn end(&mut self, key: u64, result: i32) {
        let place = to_usize(key & PLACE_MASK);
        let operation = self.operations.get_mut(place).filter(|operation| operation.is_under_way);
        let operation = operation.expect("a result is of an operation under way");
        assert_eq!(operation.use_number, (key >> USE_SHIFT) & USE_MASK, "a result is taken once");
        operation.is_under_way = false;
        match operation.take_result(result) {
            Some(result) => {
                let token = self.operations.remove(place).token;
                self.completed.push(DiskCompletion { token, result });
            }
            None => self.waiting.push_back(place),
        }
    }

    /// Appends what has completed.
    pub(super) fn reap(&mut self, completions: &mut Vec<DiskCompletion>) {
        completions.append(&mut self.completed);
    }

    /// Operations that have not completed, under way or not.
    pub(super) fn open_count(&self) -> usize {
        self.operations.len()
    }

    fn check(&self, op: &DiskOp) -> io::Result<()> {
        let size_bytes = self.devices[device_of(op).as_usize()].size_bytes();
        match op {
            DiskOp::Read { offset_bytes, target, .. } => {
                check_range(size_bytes, *offset_bytes, target.len(), io::ErrorKind::UnexpectedEof)
            }
            DiskOp::Write { offset_bytes, source, .. } => {
                check_range(size_bytes, *offset_bytes, source.len(), io::ErrorKind::InvalidInput)
            }
            DiskOp::Flush { .. } => Ok(()),
        }
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        let under_way_count = self.operations.iter().filter(|(_, operation)| operation.is_under_way).count();
        if under_way_count > 0 {
            tracing::error!(under_way_count, "a disk queue ended with transfers under way; their memory is leaked");
            return;
        }
        // SAFETY: neither is used again after this, and nobody else knows anything of them: a transfer that somebody
        // has is marked so from `begin_next` until `end`.
        unsafe {
            ManuallyDrop::drop(&mut self.operations);
            ManuallyDrop::drop(&mut self.devices);
        }
    }
}

impl Operation {
    /// What is not done yet.
    fn motion(&self) -> Motion {
        let done_bytes = self.done_bytes;
        match &self.op {
            DiskOp::Read { offset_bytes, target, .. } => Motion::Read {
                memory: target.as_mut_ptr().wrapping_add(done_bytes),
                len: (target.len() - done_bytes).min(TRANSFER_BYTES_MAX),
                offset_bytes: offset_bytes + to_u64(done_bytes),
            },
            DiskOp::Write { offset_bytes, source, .. } => Motion::Write {
                memory: source.as_ptr().wrapping_add(done_bytes),
                len: (source.len() - done_bytes).min(TRANSFER_BYTES_MAX),
                offset_bytes: offset_bytes + to_u64(done_bytes),
            },
            DiskOp::Flush { .. } => Motion::Flush,
        }
    }

    /// The end of the operation, or nothing if it is to go on.
    fn take_result(&mut self, result: i32) -> Option<io::Result<()>> {
        let (len, end) = match &self.op {
            DiskOp::Read { target, .. } => (target.len(), io::ErrorKind::UnexpectedEof),
            DiskOp::Write { source, .. } => (source.len(), io::ErrorKind::WriteZero),
            // Nothing of a flush is ever tried again: what it dropped would count as durable.
            DiskOp::Flush { .. } => return Some(if result < 0 { Err(errno(result)) } else { Ok(()) }),
        };
        let Ok(transferred) = usize::try_from(result) else {
            let is_passing = matches!(-result, libc::EAGAIN | libc::EINTR) && self.retry_count < RETRY_COUNT_MAX;
            self.retry_count += 1;
            return (!is_passing).then(|| Err(errno(result)));
        };
        if transferred == 0 {
            return Some(Err(end.into()));
        }
        self.retry_count = 0;
        self.done_bytes += transferred;
        assert!(self.done_bytes <= len, "the kernel transfers what it was asked for");
        (self.done_bytes == len).then_some(Ok(()))
    }
}

const fn device_of(op: &DiskOp) -> DeviceIndex {
    match op {
        DiskOp::Read { device, .. } | DiskOp::Write { device, .. } | DiskOp::Flush { device } => *device,
    }
}

fn errno(result: i32) -> io::Error {
    io::Error::from_raw_os_error(-result)
}
