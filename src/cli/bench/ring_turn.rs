//! The end of a lane's turn: where its disk operations go, and where it sleeps.
//!
//! Invariant: the memory of the alarm's read stays lent until its completion, which the end waits for.

#![expect(unsafe_code, reason = "gives an entry that points to memory to the kernel")]

use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use rok_ublk::{Prefix, ring};

use super::background::Waker;
use super::raw_side::build_ring;
use crate::disk::{Disk, IoBuffer, LentToDevice, MemoryDisk, UringDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::lane::Alarm;
use crate::volume::Engine;

/// Pool I/O.
pub(super) const DISK: Prefix = Prefix::new(1);
const ALARM: Prefix = Prefix::new(2);

/// How the turn of a lane ends, by the kind of its queue.
pub(super) trait Turn {
    type Queue: Disk + 'static;

    /// Submits what there is and takes what has completed; sleeps before if `is_idle`.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn end(&mut self, engine: &Engine<Self::Queue>, is_idle: bool) -> Result<()>;
}

/// With a ring.
pub(super) struct RingTurn {
    ring: IoUring,
    alarm: Arc<Alarm>,
    buffer: IoBuffer,
    loan: Option<LentToDevice>,
}

impl RingTurn {
    /// With a ring of this thread.
    ///
    /// # Errors
    /// `Unsupported` if io_uring is refused.
    pub(super) fn new(alarm: Arc<Alarm>) -> Result<Self> {
        Ok(Self { ring: build_ring()?, alarm, buffer: IoBuffer::allocate(8), loan: None })
    }

    fn arm(&mut self) {
        if self.loan.is_none() {
            let loan = self.buffer.lend_to_device();
            let read = opcode::Read::new(types::Fd(self.alarm.raw_fd()), loan.as_mut_ptr(), 8).build();
            // SAFETY: the loan keeps the memory, and this the eventfd, until the completion, which `drop` waits for.
            let pushed = unsafe { self.ring.submission().push(&read.user_data(ALARM.pack(0))) };
            self.loan = pushed.is_ok().then_some(loan);
        }
    }

    fn enter(&mut self, completion_count: usize) -> Result<()> {
        ring::enter(&mut self.ring, completion_count, None)
            .map_err(|error| Error::new(ErrorKind::Other, "The ring of the lane failed").with_source(error))
    }
}

impl Turn for RingTurn {
    type Queue = UringDisk;

    fn end(&mut self, engine: &Engine<UringDisk>, is_idle: bool) -> Result<()> {
        self.arm();
        let has_unsubmitted = engine.with_disk(|disk| {
            disk.prepare(&mut self.ring.submission());
            disk.has_unsubmitted()
        });
        self.enter(usize::from(is_idle && !has_unsubmitted))?;
        for completion in self.ring.completion() {
            if Prefix::of(completion.user_data()) == ALARM {
                self.loan = None;
                self.alarm.lower();
            } else {
                engine.with_disk(|disk| disk.complete(completion.user_data(), completion.result()));
            }
        }
        Ok(())
    }
}

impl Drop for RingTurn {
    fn drop(&mut self) {
        while self.loan.is_some() {
            self.alarm.raise();
            // Memory that the kernel may still write to must not be freed, and nothing else tells when it is done.
            self.enter(1).expect("a ring that took requests can be waited for");
            if self.ring.completion().any(|completion| Prefix::of(completion.user_data()) == ALARM) {
                self.loan = None;
            }
        }
    }
}

/// In memory, where everything submitted is done.
pub(super) struct MemoryTurn;

impl MemoryTurn {
    /// On this thread, which `waker` wakes from now on.
    pub(super) fn new(waker: &Waker) -> Self {
        if let Waker::Parked(thread) = waker {
            *thread.lock() = Some(std::thread::current());
        }
        Self
    }
}

impl Turn for MemoryTurn {
    type Queue = MemoryDisk;

    fn end(&mut self, engine: &Engine<MemoryDisk>, is_idle: bool) -> Result<()> {
        if is_idle && !engine.with_disk(|disk| disk.has_completed()) {
            std::thread::park();
        }
        Ok(())
    }
}
