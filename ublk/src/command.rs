//! One control command: put to the driver on a ring of its own, waited for with a bound.
//!
//! A command carries 32 bytes, so its ring has 128-byte entries (see the crate's page). The ring lives as long as the
//! command: control commands are rare, may block for long, and must not wait for each other.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use libublk_rs_sys as sys;

/// How long a command that overran its bound may take to be cancelled.
const CANCEL_TIME_MAX: Duration = Duration::from_secs(5);
const COMMAND_USER_DATA: u64 = 1;
const CANCEL_USER_DATA: u64 = 2;
/// Entries of the ring: the command and its cancellation.
const RING_ENTRIES: u32 = 2;

/// A command to the driver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Command {
    /// The driver's number of it.
    pub(crate) code: u32,
    /// Number of the device; `u32::MAX` for none or any.
    pub(crate) device_id: u32,
    /// Its inline argument.
    pub(crate) data: u64,
}

/// How a command failed.
#[derive(Debug)]
pub(crate) enum CommandFailure {
    /// No ring for commands could be set up or entered.
    Ring(io::Error),
    /// The driver's answer.
    Refused(io::Error),
    /// It took longer than allowed, and was cancelled, or left alone when that took too long, too.
    TimeOver,
}

/// What became of a command.
enum Outcome {
    Done(i32),
    Cancelled,
    /// The kernel may have it still, with its buffer.
    Abandoned(CommandFailure),
}

type ControlRing = IoUring<squeue::Entry128, cqueue::Entry>;

impl Command {
    /// Runs the command without a buffer.
    pub(crate) fn run(self, control: &File, time_max: Duration) -> Result<(), CommandFailure> {
        self.issue(control, 0, 0, time_max)?.into_result()
    }

    /// Runs the command with a buffer, which the driver reads or fills. `T` must be a structure of the driver's
    /// interface: plain numbers, valid for any content.
    pub(crate) fn run_with<T: Copy>(
        self,
        control: &File,
        buffer: Box<T>,
        time_max: Duration,
    ) -> Result<T, CommandFailure> {
        let len =
            u16::try_from(size_of::<T>()).map_err(|_| CommandFailure::Ring(io::ErrorKind::InvalidInput.into()))?;
        // The kernel reads or fills the buffer behind the compiler's back, hence the raw pointer.
        let pointer = Box::into_raw(buffer);
        let outcome = self.issue(control, pointer.expose_provenance(), len, time_max);
        if let Ok(Outcome::Abandoned(failure)) = outcome {
            // The kernel may still use the buffer: these few bytes are never given back.
            return Err(failure);
        }
        // SAFETY: the pointer came from a box, and the kernel is done with it: the command ended, or never started.
        let buffer = unsafe { Box::from_raw(pointer) };
        outcome?.into_result()?;
        Ok(*buffer)
    }

    fn issue(self, control: &File, address: usize, len: u16, time_max: Duration) -> Result<Outcome, CommandFailure> {
        let mut ring: ControlRing = IoUring::builder().build(RING_ENTRIES).map_err(CommandFailure::Ring)?;
        let entry = self.entry(control, address, len)?;
        // SAFETY: the file outlives this call, or the command is abandoned, when the kernel holds a reference of its
        // own; the buffer is kept by the caller until the command ended.
        unsafe { ring.submission().push(&entry) }
            .map_err(|_| CommandFailure::Ring(io::ErrorKind::WouldBlock.into()))?;
        match wait(&mut ring, time_max) {
            Ok(Some(result)) => return Ok(Outcome::Done(result)),
            Ok(None) => {}
            Err(error) => return Ok(Outcome::Abandoned(CommandFailure::Ring(error))),
        }
        let cancel = opcode::AsyncCancel::new(COMMAND_USER_DATA).build().user_data(CANCEL_USER_DATA);
        // SAFETY: a cancellation names no memory.
        if unsafe { ring.submission().push(&cancel.into()) }.is_err() {
            return Ok(Outcome::Abandoned(CommandFailure::TimeOver));
        }
        match wait(&mut ring, CANCEL_TIME_MAX) {
            Ok(Some(result)) if result >= 0 => Ok(Outcome::Done(result)),
            Ok(Some(_)) => Ok(Outcome::Cancelled),
            Ok(None) | Err(_) => Ok(Outcome::Abandoned(CommandFailure::TimeOver)),
        }
    }

    fn entry(self, control: &File, address: usize, len: u16) -> Result<squeue::Entry128, CommandFailure> {
        let address = u64::try_from(address).map_err(|_| CommandFailure::Ring(io::ErrorKind::InvalidInput.into()))?;
        let command = sys::ublksrv_ctrl_cmd {
            dev_id: self.device_id,
            // No command of ours is for one queue.
            queue_id: u16::MAX,
            len,
            addr: address,
            data: [self.data],
            ..Default::default()
        };
        // SAFETY: the structure is 32 bytes of numbers without padding (u32, u16, u16, u64, u64, u16, u16, u32).
        let bytes: [u8; 32] = unsafe { std::mem::transmute(command) };
        let mut area = [0; 80];
        area[..bytes.len()].copy_from_slice(&bytes);
        let entry = opcode::UringCmd80::new(Fd(control.as_raw_fd()), self.code).cmd(area).build();
        // A command may sleep, so the kernel has a thread of its own do it in any case. Asked for from the beginning, that
        // thread is made unless one is free; otherwise only if the kernel counts none as running, and Linux 6.18 was seen to
        // count one that was gone: the command then waited for ever.
        Ok(entry.flags(squeue::Flags::ASYNC).user_data(COMMAND_USER_DATA))
    }
}

impl Outcome {
    fn into_result(self) -> Result<(), CommandFailure> {
        match self {
            Self::Done(result) if result >= 0 => Ok(()),
            Self::Done(result) => Err(CommandFailure::Refused(io::Error::from_raw_os_error(result.saturating_neg()))),
            Self::Cancelled => Err(CommandFailure::TimeOver),
            Self::Abandoned(failure) => Err(failure),
        }
    }
}

/// Waits for the command's completion; `None` when the time is over.
fn wait(ring: &mut ControlRing, time_max: Duration) -> io::Result<Option<i32>> {
    let end = Instant::now() + time_max;
    loop {
        let timespec = Timespec::from(end.saturating_duration_since(Instant::now()));
        match ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec)) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
        let mut completions = ring.completion();
        if let Some(completion) = completions.find(|completion| completion.user_data() == COMMAND_USER_DATA) {
            return Ok(Some(completion.result()));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
    }
}
