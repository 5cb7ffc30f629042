//! The ring of a thread: one io_uring that carries pool I/O, socket I/O and ublk commands alike.
//!
//! It needs no ublk driver: a server without ublk runs the same code. The ring is either kept by its owner
//! ([`build`]) or in the thread's own slot ([`init`], [`with`]). ublk ties a queue to the thread that submitted its
//! first commands, so a ring that carries them never moves to another thread afterwards.
//!
//! The kernel defers completion work to the next [`enter`] where it can do so (`DEFER_TASKRUN`, Linux 6.1). Looking at
//! the completion queue without entering the kernel may then see nothing new, for ever: a loop that
//! polls must call [`enter`] with 0.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, squeue};

/// Most submission entries that a ring may have (a limit of the kernel).
pub const SUBMISSION_ENTRIES_MAX: u32 = 32_768;
/// Most completion entries that a ring may have (a limit of the kernel).
pub const COMPLETION_ENTRIES_MAX: u32 = 2 * SUBMISSION_ENTRIES_MAX;

/// `PR_SET_IO_FLUSHER` of `linux/prctl.h`.
const SET_IO_FLUSHER: libc::c_int = 57;
/// `PR_GET_IO_FLUSHER` of it.
const GET_IO_FLUSHER: libc::c_int = 58;

thread_local! {
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

/// Sizes of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// Submission entries, 1 to [`SUBMISSION_ENTRIES_MAX`]; the kernel rounds up to a power of two. Bounds how much one
    /// [`enter`] submits.
    pub submission_entries: u32,
    /// Completion entries, at least `submission_entries`, up to [`COMPLETION_ENTRIES_MAX`]. Should be no less than the
    /// operations that can be in flight, ublk tags included: what does not fit costs the kernel an allocation.
    pub completion_entries: u32,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The sizes are out of bounds.
    #[error(
        "Ring of {submission} submission and {completion} completion entries is out of bounds; use 1 to 32768, \
         and at least as many completion entries, up to 65536"
    )]
    Size {
        /// Submission entries that were asked for.
        submission: u32,
        /// Completion entries that were asked for.
        completion: u32,
    },
    /// The kernel, or a filter of system calls, refuses io_uring altogether.
    #[error(
        "io_uring is refused here ({source}); allow it (sysctl kernel.io_uring_disabled=0, and a seccomp profile \
         that permits io_uring_setup), or use the thread pool instead"
    )]
    Refused {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The ring could not be set up for another reason.
    #[error("Could not set up an io_uring of {submission} entries: {source}")]
    Setup {
        /// Submission entries that were asked for.
        submission: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The thread's slot has a ring already.
    #[error("This thread has a ring already")]
    Exists,
    /// The thread's slot has no ring.
    #[error("This thread has no ring; call ring::init first")]
    Missing,
    /// The thread's ring is in use further up the call stack.
    #[error("This thread's ring is in use by a caller; pass the ring down instead of asking for it again")]
    InUse,
}

/// Sets up a ring. Of the kernel's ways to run completion work the best that it knows is taken.
///
/// The ring must be used by the calling thread only.
///
/// # Errors
/// [`RingError::Size`], [`RingError::Refused`], [`RingError::Setup`].
pub fn build(setup: &Setup) -> Result<IoUring, RingError> {
    let (submission, completion) = (setup.submission_entries, setup.completion_entries);
    let is_in_bounds = (1..=SUBMISSION_ENTRIES_MAX).contains(&submission)
        && (submission..=COMPLETION_ENTRIES_MAX).contains(&completion);
    if !is_in_bounds {
        return Err(RingError::Size { submission, completion });
    }
    let mut last = None;
    for mode in [TaskRun::Deferred, TaskRun::Cooperative, TaskRun::Interrupting] {
        match build_with(setup, mode) {
            Ok(ring) => return Ok(ring),
            // The kernel answers EINVAL to a flag that it does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(setup_error(submission, error)),
        }
    }
    Err(setup_error(submission, last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))))
}

/// Sets up the ring of this thread, in its slot.
///
/// # Errors
/// As [`build`], and [`RingError::Exists`], [`RingError::InUse`].
pub fn init(setup: &Setup) -> Result<(), RingError> {
    RING.with(|slot| {
        let mut slot = slot.try_borrow_mut().map_err(|_| RingError::InUse)?;
        if slot.is_some() {
            return Err(RingError::Exists);
        }
        *slot = Some(build(setup)?);
        Ok(())
    })
}

/// Calls `action` with the ring of this thread.
///
/// # Errors
/// [`RingError::Missing`] before [`init`]; [`RingError::InUse`] inside another call of `with`.
pub fn with<R>(action: impl FnOnce(&mut IoUring) -> R) -> Result<R, RingError> {
    RING.with(|slot| {
        let mut slot = slot.try_borrow_mut().map_err(|_| RingError::InUse)?;
        slot.as_mut().map(action).ok_or(RingError::Missing)
    })
}

/// Takes the ring out of this thread's slot, to be dropped: until then it holds the files that it has registered.
///
/// # Errors
/// [`RingError::Missing`] when there is none; [`RingError::InUse`] inside [`with`].
pub fn take() -> Result<IoUring, RingError> {
    RING.with(|slot| slot.try_borrow_mut().map_err(|_| RingError::InUse)?.take().ok_or(RingError::Missing))
}

/// Puts an entry in the submission queue; when that is full, submits it to the kernel first.
///
/// # Errors
/// The kernel's answer to `io_uring_enter`, when the queue was full and could not be submitted. `EBUSY` means that the
/// completion queue is full too: reap, then try again. The entry was not taken.
///
/// # Safety
/// All memory and files that the entry names must stay valid until its completion was reaped.
pub unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: the caller keeps what the entry names valid.
    if unsafe { ring.submission().push(entry) }.is_ok() {
        return Ok(());
    }
    ring.submit()?;
    // SAFETY: as above; the first attempt did not take the entry.
    unsafe { ring.submission().push(entry) }.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))
}

/// Submits everything queued, runs deferred completion work, and waits until at least `completion_count` completions
/// are there or `time_max` is over (`None`: no bound).
///
/// Being interrupted, the time being over and a full completion queue are no errors: the caller looks at the
/// completion queue in any case.
///
/// # Errors
/// What else the kernel answers to `io_uring_enter`.
pub fn enter(ring: &mut IoUring, completion_count: usize, time_max: Option<Duration>) -> io::Result<()> {
    let entered = match time_max {
        None => ring.submit_and_wait(completion_count),
        Some(time_max) => {
            let timespec = Timespec::from(time_max);
            let arguments = SubmitArgs::new().timespec(&timespec);
            ring.submitter().submit_with_args(completion_count, &arguments)
        }
    };
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
            _ => Err(error),
        },
    }
}

/// Tells the kernel that this thread serves a block device: memory that the thread needs is then never won by
/// writing to that device, which would wait for this very thread. Threads that it starts from now on are so from their beginning.
///
/// # Errors
/// `EPERM` without the capability `CAP_SYS_RESOURCE`; `EINVAL` before Linux 5.6.
pub fn become_io_flusher() -> io::Result<()> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: PR_SET_IO_FLUSHER takes numbers only.
    let result = unsafe { libc::prctl(SET_IO_FLUSHER, on, unused, unused, unused) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this thread is one that [`become_io_flusher`] has marked.
///
/// # Errors
/// As [`become_io_flusher`].
pub fn is_io_flusher() -> io::Result<bool> {
    let unused: libc::c_ulong = 0;
    // SAFETY: PR_GET_IO_FLUSHER takes numbers only.
    let result = unsafe { libc::prctl(GET_IO_FLUSHER, unused, unused, unused, unused) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result == 1) }
}

/// When the kernel runs the thread's completion work.
#[derive(Clone, Copy)]
enum TaskRun {
    /// In the next `io_uring_enter` of the only thread that submits (Linux 6.1).
    Deferred,
    /// In the next system call of any kind (Linux 5.19).
    Cooperative,
    /// At once, with an interrupt if need be.
    Interrupting,
}

fn build_with(setup: &Setup, mode: TaskRun) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(setup.completion_entries);
    match mode {
        TaskRun::Deferred => {
            // The flag makes an `enter` with 0 see that there is work.
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        TaskRun::Cooperative => {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        TaskRun::Interrupting => {}
    }
    builder.build(setup.submission_entries)
}

fn setup_error(submission: u32, source: io::Error) -> RingError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => RingError::Refused { source },
        _ => RingError::Setup { submission, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::opcode;

    const SETUP: Setup = Setup { submission_entries: 8, completion_entries: 64 };

    #[test]
    fn entries_of_a_thread_ring_complete_without_a_ublk_driver() {
        init(&SETUP).expect("this machine allows io_uring");
        let reaped = with(|ring| {
            for index in 0..20 {
                // SAFETY: a no-op names no memory.
                unsafe { push(ring, &opcode::Nop::new().build().user_data(index)) }.expect("the queue drains itself");
            }
            let mut reaped = Vec::new();
            while reaped.len() < 20 {
                enter(ring, 1, Some(Duration::from_secs(10))).expect("the ring can be entered");
                reaped.extend(ring.completion().map(|completion| completion.user_data()));
            }
            reaped
        });
        assert_eq!(reaped.expect("the thread has a ring"), (0..20).collect::<Vec<_>>());
        drop(take().expect("the thread has a ring"));
    }

    #[test]
    fn second_ring_in_a_thread_is_refused() {
        init(&SETUP).expect("this machine allows io_uring");
        assert!(matches!(init(&SETUP), Err(RingError::Exists)));
    }

    #[test]
    fn ring_is_missing_before_init_and_after_take() {
        assert!(matches!(with(|_| ()), Err(RingError::Missing)));
        init(&SETUP).expect("this machine allows io_uring");
        drop(take().expect("the thread has a ring"));
        assert!(matches!(with(|_| ()), Err(RingError::Missing)));
        assert!(matches!(take(), Err(RingError::Missing)));
    }

    #[test]
    fn nested_use_of_the_ring_is_an_error_not_a_panic() {
        init(&SETUP).expect("this machine allows io_uring");
        let inner = with(|_| with(|_| ())).expect("the outer call has the ring");
        assert!(matches!(inner, Err(RingError::InUse)));
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for (submission_entries, completion_entries) in [(0, 8), (8, 4), (32_769, 65_536), (8, 65_537)] {
            let refused = build(&Setup { submission_entries, completion_entries });
            assert!(matches!(refused, Err(RingError::Size { .. })), "{submission_entries} {completion_entries}");
        }
    }

    // Where the capability is missing both are refused.
    #[test]
    fn thread_is_an_io_flusher_as_those_that_it_starts_are_and_no_other() {
        let of_others = || std::thread::spawn(|| is_io_flusher().ok()).join().expect("it ends");
        let before = of_others();
        let (marked, own, started) = std::thread::spawn(move || {
            let marked = become_io_flusher().is_ok();
            (marked, is_io_flusher().ok(), of_others())
        })
        .join()
        .expect("it ends");
        let expected = marked.then_some(true);
        assert_eq!((own, started), (expected, expected));
        assert_eq!((before, of_others()), (marked.then_some(false), marked.then_some(false)));
    }

    #[test]
    fn enter_returns_when_the_time_is_over() {
        let mut ring = build(&SETUP).expect("this machine allows io_uring");
        enter(&mut ring, 1, Some(Duration::from_millis(1))).expect("time over is no error");
        assert_eq!(ring.completion().count(), 0);
    }
}
