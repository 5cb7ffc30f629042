//! A lane's queue on real devices, over the io_uring ring that the lane owns.
//!
//! This neither owns the ring nor waits. Each turn of its loop the lane calls [`UringDisk::prepare`] once before it
//! submits, then [`UringDisk::complete`] for each completion that [`UringDisk::owns`], then `reap`.
//!
//! Invariant: from the moment an entry is in the ring until its completion, the operation's loans and its device
//! stay in the table here, and so does the memory that the kernel reads or writes. Before the
//! end the lane must turn its loop until [`UringDisk::in_flight_count`] is 0; what is in the ring when this is dropped
//! nevertheless is leaked on purpose.

#![expect(unsafe_code, reason = "gives entries that point to memory to the kernel")]

#[cfg(test)]
mod tests;

use super::{Device, Disk, DiskCompletion, DiskOp, FileDevice, check_range};
use crate::units::{DeviceIndex, to_u64, to_usize};
use io_uring::squeue::{self, SubmissionQueue};
use io_uring::{cqueue, opcode, types};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// Bytes that one entry asks for; the kernel takes less than 2 GiB at once.
const TRANSFER_BYTES_MAX: usize = 1 << 30;
/// How often an operation that made no progress is tried again before its error is believed.
const RETRY_COUNT_MAX: u8 = 16;

// User data: 16 bits of the caller, 24 bits that differ between uses of a place, 24 bits of place in the table.
const PREFIX_SHIFT: u32 = 48;
const USE_SHIFT: u32 = 24;
const USE_MASK: u64 = (1 << 24) - 1;
/// Operations that can be open at once move 64 GiB at least: frontends bound the bytes of their requests far below that,
/// but not how many pieces the blocks of a request lie in.
const PLACE_MASK: u64 = (1 << USE_SHIFT) - 1;

/// One lane's queue on files and block devices.
#[derive(Debug)]
pub struct UringDisk {
    // Both leak as a whole if operations are in the ring at the end: an entry that the kernel has not
    // taken yet names the descriptor by number, which must not be closed and given to another file.
    devices: ManuallyDrop<Vec<Arc<FileDevice>>>,
    operations: ManuallyDrop<Slab<Operation>>,
    /// Places of operations that are not in the ring, in the order in which they go there.
    waiting: VecDeque<usize>,
    completed: Vec<DiskCompletion>,
    prefix: u16,
    fixed_base: Option<i32>,
    use_count: u64,
}

#[derive(Debug)]
struct Operation {
    token: u64,
    op: DiskOp,
    done_bytes: usize,
    retry_count: u8,
    /// Its part of the user data, so that a completion of an earlier operation in this place is noticed.
    use_number: u64,
    is_in_ring: bool,
}

impl UringDisk {
    /// A queue on `devices`, addressed by their position.
    ///
    /// The user data of its ring entries has `prefix` as its upper 16 bits; no other user of the ring may have them.
    /// With `fixed_base` the devices' descriptors are registered with the ring, in order, from that index on.
    ///
    /// # Panics
    /// If `fixed_base` is above what a ring can have.
    #[must_use]
    pub fn new(devices: Vec<Arc<FileDevice>>, prefix: u16, fixed_base: Option<u32>) -> Self {
        Self {
            devices: ManuallyDrop::new(devices),
            operations: ManuallyDrop::new(Slab::new()),
            waiting: VecDeque::new(),
            completed: Vec::new(),
            prefix,
            fixed_base: fixed_base.map(|base| i32::try_from(base).expect("rings have far fewer files")),
            use_count: 0,
        }
    }

    /// Gives the queue a device: one more behind the others, or another one in a place that no operation has used.
    ///
    /// # Panics
    /// If devices before it are missing, or with registered descriptors.
    pub fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>) {
        assert!(self.fixed_base.is_none(), "registered descriptors cannot be added to");
        match self.devices.get_mut(index.as_usize()) {
            Some(place) => *place = device,
            None => {
                assert_eq!(index.as_usize(), self.devices.len(), "devices are appended");
                self.devices.push(device);
            }
        }
    }

    /// Puts what waits into the ring, as much as fits, and returns how many entries that were. To be called before
    /// the lane submits. The rest waits for the next call. Rings with 64 and with 128 bytes an entry are both fine.
    pub fn prepare<E: squeue::EntryMarker>(&mut self, ring: &mut SubmissionQueue<'_, E>) -> usize {
        let mut count = 0;
        while let Some(place) = self.waiting.front().copied()
            && !ring.is_full()
        {
            let entry = E::from(self.entry(place));
            // SAFETY: the memory of the entry is that of the operation's loan. It stays in the table until `complete`
            // gets the completion of this very entry (checked by its user data), or for ever.
            unsafe { ring.push(&entry) }.expect("the ring was not full");
            self.operations[place].is_in_ring = true;
            self.waiting.pop_front();
            count += 1;
        }
        count
    }

    /// Whether a completion is for this queue.
    #[must_use]
    pub fn owns(&self, completion: &cqueue::Entry) -> bool {
        completion.user_data() >> PREFIX_SHIFT == u64::from(self.prefix)
    }

    /// Takes a completion of the ring. Short transfers and interruptions go on by themselves, with the next
    /// [`Self::prepare`]; everything else comes out of `reap`.
    ///
    /// # Panics
    /// If the completion is not of an operation in the ring: it was taken twice, or is not [owned](Self::owns).
    pub fn complete(&mut self, completion: &cqueue::Entry) {
        self.advance(completion.user_data(), completion.result());
    }

    /// Operations that were submitted and have not completed, in the ring or not. While it is not 0, this must not be
    /// dropped.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.operations.len()
    }

    fn entry(&self, place: usize) -> squeue::Entry {
        let operation = &self.operations[place];
        let device = device_of(&operation.op);
        // The library's types for the two kinds of file have no common trait that could be named here; this is
        // what its type for registered files does.
        let (file, flags) = match self.fixed_base {
            Some(base) => (base + i32::from(device.get()), squeue::Flags::FIXED_FILE),
            None => (self.devices[device.as_usize()].raw_fd(), squeue::Flags::empty()),
        };
        operation.entry(types::Fd(file)).flags(flags).user_data(self.user_data(place))
    }

    fn user_data(&self, place: usize) -> u64 {
        let use_number = self.operations[place].use_number;
        (u64::from(self.prefix) << PREFIX_SHIFT) | (use_number << USE_SHIFT) | to_u64(place)
    }

    fn advance(&mut self, user_data: u64, result: i32) {
        let place = to_usize(user_data & PLACE_MASK);
        let operation = self.operations.get_mut(place).filter(|operation| operation.is_in_ring);
        let operation = operation.expect("a completion has an operation in the ring");
        assert_eq!(operation.use_number, (user_data >> USE_SHIFT) & USE_MASK, "a completion is taken once");
        operation.is_in_ring = false;
        match operation.take_result(result) {
            Some(result) => {
                let token = self.operations.remove(place).token;
                self.completed.push(DiskCompletion { token, result });
            }
            None => self.waiting.push_back(place),
        }
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

impl Disk for UringDisk {
    fn submit(&mut self, token: u64, op: DiskOp) {
        if let Err(error) = self.check(&op) {
            self.completed.push(DiskCompletion { token, result: Err(error) });
            return;
        }
        self.use_count += 1;
        let use_number = self.use_count & USE_MASK;
        let operation = Operation { token, op, done_bytes: 0, retry_count: 0, use_number, is_in_ring: false };
        let place = self.operations.insert(operation);
        assert!(to_u64(place) <= PLACE_MASK, "more than 2^24 operations are open");
        self.waiting.push_back(place);
    }

    /// Whether something waits for [`UringDisk::prepare`], so that the lane must not sleep before.
    fn has_unsubmitted(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn reap(&mut self, completions: &mut Vec<DiskCompletion>) {
        completions.append(&mut self.completed);
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        let in_ring_count = self.operations.iter().filter(|(_, operation)| operation.is_in_ring).count();
        if in_ring_count > 0 {
            tracing::error!(in_ring_count, "a disk queue ended with operations in the ring; their memory is leaked");
            return;
        }
        // SAFETY: neither is used again after this, and nothing of them is known to the kernel: an entry in the
        // ring has its operation marked so from `prepare` until its completion.
        unsafe {
            ManuallyDrop::drop(&mut self.operations);
            ManuallyDrop::drop(&mut self.devices);
        }
    }
}

impl Operation {
    /// The entry for what is not done yet.
    fn entry(&self, file: types::Fd) -> squeue::Entry {
        match &self.op {
            DiskOp::Read { offset_bytes, target, .. } => {
                let memory = target.as_mut_ptr().wrapping_add(self.done_bytes);
                opcode::Read::new(file, memory, self.left(target.len())).offset(self.start(*offset_bytes)).build()
            }
            DiskOp::Write { offset_bytes, source, .. } => {
                let memory = source.as_ptr().wrapping_add(self.done_bytes);
                opcode::Write::new(file, memory, self.left(source.len())).offset(self.start(*offset_bytes)).build()
            }
            DiskOp::Flush { .. } => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    fn start(&self, offset_bytes: u64) -> u64 {
        offset_bytes + to_u64(self.done_bytes)
    }

    fn left(&self, len: usize) -> u32 {
        u32::try_from((len - self.done_bytes).min(TRANSFER_BYTES_MAX)).expect("at most 2^30")
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
