//! Calls as entries of an io_uring: one system call a turn carries them all.

#![expect(unsafe_code, reason = "gives entries that point to memory to the kernel")]

use super::{Call, CallEnd, Submission};
use crate::lane::limits::TICK_PERIOD;
use io_uring::{IoUring, SubmissionQueue, opcode, squeue, types};
use rok_ublk::ring;
use std::collections::VecDeque;
use std::io;

/// A lane's ring.
pub(in crate::lane) struct Uring<'ring> {
    ring: &'ring mut IoUring,
    tick: Box<types::Timespec>,
}

impl<'ring> Uring<'ring> {
    pub(in crate::lane) fn new(ring: &'ring mut IoUring) -> Self {
        Self { ring, tick: Box::new(types::Timespec::from(TICK_PERIOD)) }
    }

    /// The ring, for those who make entries of their own.
    pub(in crate::lane) fn ring(&mut self) -> &mut IoUring {
        self.ring
    }

    /// Puts calls into the ring, as many as there is room for; the rest stays.
    pub(in crate::lane) fn push(&mut self, submissions: &mut VecDeque<Submission>) -> SubmissionQueue<'_> {
        let mut queue = self.ring.submission();
        while let Some(submission) = submissions.front() {
            let entry = entry_of(submission.call, &self.tick).user_data(submission.user_data);
            // SAFETY: the owner of what the entry names keeps it until its end (see the head of `driver.rs`); the tick's
            // time stays as long as the lane, which runs until nothing is in the ring.
            if unsafe { queue.push(&entry) }.is_err() {
                break;
            }
            submissions.pop_front();
        }
        queue
    }

    /// Submits what is in the ring, waits if the lane `is_idle`, and takes what has ended.
    ///
    /// # Errors
    /// The kernel refuses the ring.
    pub(in crate::lane) fn enter(&mut self, is_idle: bool, ends: &mut Vec<CallEnd>) -> io::Result<()> {
        ring::enter(self.ring, usize::from(is_idle), None)?;
        ends.extend(self.ring.completion().map(|completion| CallEnd {
            user_data: completion.user_data(),
            result: completion.result(),
            is_going_on: io_uring::cqueue::more(completion.flags()),
        }));
        Ok(())
    }
}

fn entry_of(call: Call, tick: &types::Timespec) -> squeue::Entry {
    match call {
        Call::Receive { socket, memory, len, is_whole } => {
            let len = u32::try_from(len).expect("buffers are far below 4 GiB");
            let flags = if is_whole { libc::MSG_WAITALL } else { 0 };
            opcode::Recv::new(types::Fd(socket), memory, len).flags(flags).build()
        }
        Call::Send { socket, message } => {
            let flags = u32::try_from(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).expect("flags are small");
            opcode::SendMsg::new(types::Fd(socket), message).flags(flags).build()
        }
        Call::Accept { listener, is_many: true } => {
            opcode::AcceptMulti::new(types::Fd(listener)).flags(libc::SOCK_CLOEXEC).build()
        }
        Call::Accept { listener, is_many: false } => {
            let (address, len) = (std::ptr::null_mut(), std::ptr::null_mut());
            opcode::Accept::new(types::Fd(listener), address, len).flags(libc::SOCK_CLOEXEC).build()
        }
        Call::ReadAlarm { alarm, memory } => opcode::Read::new(types::Fd(alarm), memory, 8).build(),
        Call::AwaitHangup { socket } => {
            let events = u32::try_from(libc::POLLRDHUP).expect("flags are positive");
            opcode::PollAdd::new(types::Fd(socket), events).build()
        }
        Call::Tick => opcode::Timeout::new(&raw const *tick).build(),
        Call::Cancel { user_data } => opcode::AsyncCancel::new(user_data).build(),
    }
}
