//! The raw side: reads and writes of a file through a ring, with nothing in between.
//!
//! Invariant: the memory of a request stays in `loans` until its completion, and a side that is dropped with requests
//! under way waits for them first.

#![expect(unsafe_code, reason = "gives entries that point to memory to the kernel")]

use std::path::Path;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use rok_ublk::ring;

use super::case::{Access, Case};
use super::load::{Action, Plan, Side};
use crate::disk::{Device as _, FileDevice, IoBuffer, LentForDevice, LentToDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{to_u64, to_usize};

/// Room for the deepest case.
pub(super) const RING: ring::Setup = ring::Setup { submission_entries: 256, completion_entries: 1024 };

/// What the kernel has until a completion.
enum Loan {
    Read(LentToDevice),
    Write(LentForDevice),
    Nothing,
}

/// A file and a ring.
pub(super) struct RawSide {
    ring: IoUring,
    file: Arc<FileDevice>,
    /// Where offset 0 of the requests is.
    base_bytes: u64,
    /// By slot.
    loans: Vec<Option<Loan>>,
}

impl RawSide {
    /// On a file that is shared with others, on this thread.
    ///
    /// # Errors
    /// If io_uring is refused.
    pub(super) fn new(file: Arc<FileDevice>) -> Result<Self> {
        Ok(Self { ring: build_ring()?, file, base_bytes: 0, loans: Vec::new() })
    }
}

/// Opens the file of raw sides.
///
/// # Errors
/// If it cannot be opened, or there is no direct I/O on it.
pub(super) fn open_file(path: &Path) -> Result<Arc<FileDevice>> {
    let file = FileDevice::open(path)?;
    if !file.is_direct() {
        let message = format!("The file system of {} does not do direct I/O", path.display());
        return Err(Error::new(ErrorKind::Unsupported, message).with_hint("Name another one with --directory"));
    }
    Ok(Arc::new(file))
}

/// The ring of a side.
///
/// # Errors
/// `Unsupported` if the kernel refuses it.
pub(super) fn build_ring() -> Result<IoUring> {
    ring::build(&RING)
        .map_err(|error| Error::new(ErrorKind::Unsupported, format!("There is nothing to compare with: {error}")))
}

impl Side for RawSide {
    /// Sequential writes go on behind the last ones, as the engine's do: a machine that keeps the file in memory below us
    /// (virtual machines often do) takes what is there already several times as fast.
    fn begin(&mut self, case: &Case, plan: &Plan) {
        let is_moving = case.access == Access::SequentialWrite;
        self.base_bytes = if is_moving { self.base_bytes + plan.span_bytes } else { 0 };
        if self.base_bytes + plan.span_bytes > self.file.size_bytes() {
            self.base_bytes = 0;
        }
    }

    fn request(&mut self, action: Action, slot: usize, offset_bytes: u64, buffer: &IoBuffer) {
        let file = types::Fd(self.file.raw_fd());
        let offset_bytes = self.base_bytes + offset_bytes;
        let len = u32::try_from(buffer.len()).expect("requests have at most 1 MiB");
        let (entry, loan) = match action {
            Action::Write => {
                let loan = buffer.lend_for_device();
                (opcode::Write::new(file, loan.as_ptr(), len).offset(offset_bytes).build(), Loan::Write(loan))
            }
            Action::Read => {
                let loan = buffer.lend_to_device();
                (opcode::Read::new(file, loan.as_mut_ptr(), len).offset(offset_bytes).build(), Loan::Read(loan))
            }
            Action::Flush => (opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(), Loan::Nothing),
        };
        if self.loans.len() <= slot {
            self.loans.resize_with(slot + 1, || None);
        }
        assert!(self.loans[slot].replace(loan).is_none(), "each slot is under way once");
        // SAFETY: the loan keeps the memory, and `self` the file, until `wait` sees the completion of this slot or
        // `drop` does.
        unsafe { self.ring.submission().push(&entry.user_data(to_u64(slot))) }
            .expect("the ring has more room than the deepest case");
    }

    fn wait(&mut self, done: &mut Vec<usize>) -> Result<()> {
        let failed = |error| Error::new(ErrorKind::Other, "The ring of the raw loop failed").with_source(error);
        ring::enter(&mut self.ring, 1, None).map_err(failed)?;
        for completion in self.ring.completion() {
            let slot = to_usize(completion.user_data());
            let len = match self.loans[slot].take().expect("a completion has a request") {
                Loan::Read(loan) => loan.len(),
                Loan::Write(loan) => loan.len(),
                Loan::Nothing => 0,
            };
            let result = completion.result();
            if usize::try_from(result) != Ok(len) {
                let message = format!("A raw request of {len} bytes on {} gave {result}", self.file.name());
                return Err(Error::new(ErrorKind::Other, message));
            }
            done.push(slot);
        }
        Ok(())
    }
}

impl Drop for RawSide {
    fn drop(&mut self) {
        while self.loans.iter().any(Option::is_some) {
            // Memory that the kernel may still write to must not be freed, and nothing else tells when it is done.
            ring::enter(&mut self.ring, 1, None).expect("a ring that took requests can be waited for");
            for completion in self.ring.completion() {
                self.loans[to_usize(completion.user_data())] = None;
            }
        }
    }
}
