//! A lane's queue on real devices, over the io_uring ring that the lane owns.
//!
//! This neither owns the ring nor waits. Each turn of its loop the lane calls [`UringDisk::prepare`] once before it
//! submits, then [`UringDisk::complete`] for each completion that [`UringDisk::owns`], then `reap`.
//!
//! Invariant: what an entry in the ring names stays in the table of transfers until its completion. Before the
//! end the lane must turn its loop until [`UringDisk::in_flight_count`] is 0.

#![expect(unsafe_code, reason = "gives entries that point to memory to the kernel")]

#[cfg(test)]
mod tests;

use super::transfers::{KEY_BITS, Motion, Transfer, Transfers};
use super::{Disk, DiskCompletion, DiskOp, FileDevice};
use crate::units::DeviceIndex;
use io_uring::squeue::{self, SubmissionQueue};
use io_uring::{opcode, types};
use std::sync::Arc;

/// User data: 16 bits of the caller, then the transfer's key.
const KEY_MASK: u64 = (1 << KEY_BITS) - 1;

/// One lane's queue on files and block devices.
#[derive(Debug)]
pub struct UringDisk {
    transfers: Transfers,
    prefix: u16,
    fixed_base: Option<i32>,
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
        let fixed_base = fixed_base.map(|base| i32::try_from(base).expect("rings have far fewer files"));
        Self { transfers: Transfers::new(devices), prefix, fixed_base }
    }

    /// Gives the queue a device: one more behind the others, or another one in a place that no operation has used.
    ///
    /// # Panics
    /// If devices before it are missing, or with registered descriptors.
    pub fn set_device(&mut self, index: DeviceIndex, device: Arc<FileDevice>) {
        assert!(self.fixed_base.is_none(), "registered descriptors cannot be added to");
        self.transfers.set_device(index, device);
    }

    /// Puts what waits into the ring, as much as fits, and returns how many entries that were. To be called before
    /// the lane submits. The rest waits for the next call. Rings with 64 and with 128 bytes an entry are both fine.
    pub fn prepare<E: squeue::EntryMarker>(&mut self, ring: &mut SubmissionQueue<'_, E>) -> usize {
        let mut count = 0;
        while !ring.is_full()
            && let Some(transfer) = self.transfers.begin_next()
        {
            let entry = E::from(entry_of(&transfer, self.prefix, self.fixed_base));
            // SAFETY: the memory of the entry is that of the operation's loan, and the descriptor that of its device.
            // Both stay in the table until `complete` gets the completion of this very entry (checked by its user
            // data), or for ever.
            unsafe { ring.push(&entry) }.expect("the ring was not full");
            count += 1;
        }
        count
    }

    /// Whether a completion with this user data is for this queue.
    #[must_use]
    pub fn owns(&self, user_data: u64) -> bool {
        user_data >> KEY_BITS == u64::from(self.prefix)
    }

    /// Takes the user data and the result of a completion of the ring. Short transfers and interruptions go on by
    /// themselves, with the next [`Self::prepare`]; everything else comes out of `reap`.
    ///
    /// # Panics
    /// If the completion is not of an operation in the ring: it was taken twice, or is not [owned](Self::owns).
    pub fn complete(&mut self, user_data: u64, result: i32) {
        self.transfers.end(user_data & KEY_MASK, result);
    }

    /// Operations that were submitted and have not completed, in the ring or not. While it is not 0, this must not be
    /// dropped.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.transfers.open_count()
    }
}

impl Disk for UringDisk {
    fn submit(&mut self, token: u64, op: DiskOp) {
        self.transfers.submit(token, op);
    }

    /// Whether something waits for [`UringDisk::prepare`], so that the lane must not sleep before.
    fn has_unsubmitted(&self) -> bool {
        self.transfers.has_waiting()
    }

    fn reap(&mut self, completions: &mut Vec<DiskCompletion>) {
        self.transfers.reap(completions);
    }
}

fn entry_of(transfer: &Transfer<'_>, prefix: u16, fixed_base: Option<i32>) -> squeue::Entry {
    // The library's types for the two kinds of file have no common trait that could be named here; this is
    // what its type for registered files does.
    let (file, flags) = match fixed_base {
        Some(base) => (base + i32::from(transfer.index.get()), squeue::Flags::FIXED_FILE),
        None => (transfer.device.raw_fd(), squeue::Flags::empty()),
    };
    let file = types::Fd(file);
    let entry = match transfer.motion {
        Motion::Read { memory, len, offset_bytes } => {
            opcode::Read::new(file, memory, len_of(len)).offset(offset_bytes).build()
        }
        Motion::Write { memory, len, offset_bytes } => {
            opcode::Write::new(file, memory, len_of(len)).offset(offset_bytes).build()
        }
        Motion::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
    };
    entry.flags(flags).user_data(u64::from(prefix) << KEY_BITS | transfer.key)
}

fn len_of(len: usize) -> u32 {
    u32::try_from(len).expect("a transfer has at most 2^30 bytes")
}
