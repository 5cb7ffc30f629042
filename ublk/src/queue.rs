//! One queue of a device, served on one thread, through a ring that belongs to somebody else.
//!
//! A queue has `depth` tags. Each tag's command waits in the kernel until the block layer has a request for it; the
//! command's completion hands the request over; its answer goes back with the command that waits for the next one:
//!
//! ```text
//! waiting (fetch) -> kernel -> serving -> waiting (commit and fetch) -> kernel -> ...
//! any of them -> ended, when the device stops or a command fails; when it is quiesced, those that wait in the kernel
//! ```
//!
//! The owner of the ring, in each turn of its loop:
//! 1. calls [`Queue::submit`], which puts the waiting commands in the ring (all of them in one `io_uring_enter`),
//! 2. enters the ring and reaps completions,
//! 3. gives those with the queue's [`Prefix`] to [`Queue::on_completion`], and serves the requests that come out,
//! 4. fetches the data of a write with [`Queue::read_data`] and hands over that of a read with [`Queue::write_data`], whenever it
//!    likes before the answer, and answers each with [`Queue::complete`], in any order and at any later time,
//! 5. drops the queue when [`Queue::is_ended`].
//!
//! A request's data stays in the memory of who made it until the server copies it (`UBLK_F_USER_COPY`), to or from memory of the
//! server's choice. So a queue has no buffers, and a server that has no memory left lets requests wait without any.
//!
//! Nothing here waits, allocates after [`Queue::new`], or calls back. The prefix is all that a queue needs of
//! `user_data` (its payload is the tag), so any number of queues share a ring with whatever else it carries.
//!
//! Invariants: a tag is in exactly one state; `live_count` counts the tags not ended; `waiting` holds each waiting tag
//! once. The driver refuses to copy data of a tag that is not being served.
//!
//! The driver takes all commands of a queue from one thread only: the one whose ring carried the first of them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use libublk_rs_sys as sys;

use crate::device::Device;
use crate::mapping::{Mapping, page_bytes};
use crate::request::{Request, RequestKind, parse};
use crate::user_data::Prefix;

/// Largest error number that the kernel knows; what is above becomes `EIO`.
const ERRNO_MAX: i32 = 4095;

/// One queue of a device. Not `Send`: it lives on the thread of its ring.
#[derive(Debug)]
pub struct Queue {
    device: Arc<Device>,
    id: u16,
    prefix: Prefix,
    tags: Vec<TagState>,
    /// Tags whose command is to be put in the ring.
    waiting: VecDeque<u16>,
    live_count: usize,
    is_stopping: bool,
    is_draining: bool,
    descriptors: Mapping,
}

/// Where a tag is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TagState {
    /// Its first command is to be submitted.
    Fetch,
    /// Its answer is to be submitted.
    Commit(i32),
    /// The kernel has its command.
    Kernel,
    /// The server has its request: kind and length.
    Serving(RequestKind, u32),
    /// No command of it will be submitted any more.
    Ended,
}

/// What went wrong with a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The device has no such queue.
    #[error("Queue {queue} does not exist: device {device} has {count} queues")]
    NoSuchQueue {
        /// Number of the device.
        device: u32,
        /// Queue that was asked for.
        queue: u16,
        /// Queues of the device.
        count: u16,
    },
    /// Its descriptors could not be mapped.
    #[error("Could not map the descriptors of queue {queue} of device {device}: {source}")]
    Map {
        /// Number of the device.
        device: u32,
        /// Number of the queue.
        queue: u16,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The completion is not one of this queue's, or comes at a time when none can come.
    #[error("Completion {user_data:#x} does not belong to queue {queue} of device {device}")]
    NotOurs {
        /// Number of the device.
        device: u32,
        /// Number of the queue.
        queue: u16,
        /// What the completion carries.
        user_data: u64,
    },
    /// The tag has no request that is being served: it was answered already, or never came.
    #[error("Tag {tag} of queue {queue} of device {device} has no such request to serve")]
    NotServing {
        /// Number of the device.
        device: u32,
        /// Number of the queue.
        queue: u16,
        /// The tag.
        tag: u16,
    },
    /// The driver refused to copy a request's data. Answer it with an error.
    #[error("The ublk driver did not copy the data of tag {tag} of queue {queue} of device {device}: {source}")]
    Copy {
        /// Number of the device.
        device: u32,
        /// Number of the queue.
        queue: u16,
        /// The tag.
        tag: u16,
        /// The driver's answer.
        source: io::Error,
    },
    /// The driver refused a command. Its tag is lost; stop the device.
    #[error(
        "The ublk driver refused a command of tag {tag} of queue {queue} of device {device}: {source}; stop the device"
    )]
    Command {
        /// Number of the device.
        device: u32,
        /// Number of the queue.
        queue: u16,
        /// The tag.
        tag: u16,
        /// The driver's answer.
        source: io::Error,
    },
}

impl Queue {
    /// Maps a queue's descriptors. Its first commands wait for [`Queue::submit`].
    ///
    /// `prefix` must be the queue's alone on its ring.
    ///
    /// # Errors
    /// [`QueueError::NoSuchQueue`], [`QueueError::Map`].
    pub fn new(device: Arc<Device>, id: u16, prefix: Prefix) -> Result<Self, QueueError> {
        let count = device.queue_count;
        if id >= count {
            return Err(QueueError::NoSuchQueue { device: device.id, queue: id, count });
        }
        let depth = device.queue_depth;
        let map_error = |source| QueueError::Map { device: device.id, queue: id, source };
        let layout = Layout::new(id, depth).ok_or_else(|| map_error(io::ErrorKind::InvalidInput.into()))?;
        let descriptors =
            Mapping::of_device(&device.file, layout.descriptors_len, layout.descriptors_offset).map_err(map_error)?;
        Ok(Self {
            id,
            prefix,
            tags: vec![TagState::Fetch; usize::from(depth)],
            waiting: (0..depth).collect(),
            live_count: usize::from(depth),
            is_stopping: false,
            is_draining: false,
            descriptors,
            device,
        })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Number of the queue in its device.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// True for a completion that [`Queue::on_completion`] must be given.
    #[must_use]
    pub fn owns(&self, user_data: u64) -> bool {
        Prefix::of(user_data) == self.prefix
    }

    /// True when no command of the queue is in the kernel, none will be submitted, and no request is being served: the
    /// device was stopped, or is gone. The queue should be dropped.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.live_count == 0
    }

    /// True until its first commands are in a ring.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.waiting.len() == self.tags.len() && self.tags.iter().all(|state| *state == TagState::Fetch)
    }

    /// To be called before the device is quiesced ([`crate::Control::quiesce`]): from now on a command that comes back without a
    /// request ends only its tag, and answers of others still go out. Returns whether no request is under way.
    ///
    /// Commands that came back, and requests that had come before, may not be reaped yet when the device is quiesced. So once it is: two
    /// calls that say so, with a turn of the loop between them.
    pub fn drain(&mut self) -> bool {
        self.is_draining = true;
        self.tags.iter().all(|state| matches!(state, TagState::Kernel | TagState::Ended))
    }

    /// Puts waiting commands in the ring, as many as it has room for, and returns how many still wait. Does not
    /// enter the kernel. With a remainder: enter the ring, then call again.
    ///
    /// The first commands go all at once, if an empty ring can have them, and none before: drivers lose a device of which some tags
    /// had a server and others none when that dies. So queues that are new ([`Queue::is_new`]) should come first.
    pub fn submit(&mut self, ring: &mut IoUring) -> usize {
        if self.waiting.is_empty() {
            return 0;
        }
        let mut submission = ring.submission();
        let room = submission.capacity() - submission.len();
        if self.is_new() && !submission.is_empty() && self.waiting.len() > room {
            return self.waiting.len();
        }
        while let Some(&tag) = self.waiting.front() {
            let entry = self.entry(tag);
            // SAFETY: the entry names no memory. The file lives as long as the queue, and the kernel takes a reference of its own when the ring is
            // entered; a queue dropped between the two leaves an entry with a closed file, which the kernel answers
            // with an error.
            if unsafe { submission.push(&entry) }.is_err() {
                break;
            }
            self.waiting.pop_front();
            self.tags[usize::from(tag)] = TagState::Kernel;
        }
        self.waiting.len()
    }

    /// Takes the completion of one of the queue's commands (see [`Queue::owns`]), and returns the request that it
    /// brings, if it brings one.
    ///
    /// A request that no server could understand is answered here, with an error.
    ///
    /// # Errors
    /// [`QueueError::NotOurs`]; [`QueueError::Command`]: the tag is lost, and the device should be stopped.
    pub fn on_completion(&mut self, user_data: u64, result: i32) -> Result<Option<Request>, QueueError> {
        let not_ours = || QueueError::NotOurs { device: self.device.id, queue: self.id, user_data };
        let Ok(tag) = u16::try_from(Prefix::payload(user_data)) else { return Err(not_ours()) };
        if !self.owns(user_data) || self.tags.get(usize::from(tag)) != Some(&TagState::Kernel) {
            return Err(not_ours());
        }
        if result == sys::UBLK_IO_RES_ABORT {
            self.end(tag);
            if !self.is_draining {
                self.stop();
            }
            return Ok(None);
        }
        if result != 0 {
            // Data copied on request (result 1) is never asked for, so it is as wrong as an error.
            self.end(tag);
            let source = io::Error::from_raw_os_error(result.saturating_abs());
            return Err(QueueError::Command { device: self.device.id, queue: self.id, tag, source });
        }
        let parsed = parse(tag, &self.descriptor(tag), u64::from(self.device.io_bytes_max));
        match parsed {
            Ok(request) => {
                let data_len = if request.kind.has_data() { u32::try_from(request.len_bytes).unwrap_or(0) } else { 0 };
                self.tags[usize::from(tag)] = TagState::Serving(request.kind, data_len);
                Ok(Some(request))
            }
            Err(malformed) => {
                self.answer(tag, malformed.errno().saturating_neg());
                Ok(None)
            }
        }
    }

    /// Answers a request: wholly done, or failed with an error number (positive, as in `libc`). Part of a request
    /// cannot be answered, since the driver takes a short write for a whole one.
    ///
    /// The answer goes out with the next [`Queue::submit`]. After the device was stopped it goes nowhere.
    ///
    /// # Errors
    /// [`QueueError::NotServing`].
    pub fn complete(&mut self, tag: u16, outcome: Result<(), i32>) -> Result<(), QueueError> {
        let (kind, data_len) = self.serving(tag)?;
        let result = match outcome {
            Ok(()) if kind.has_data() => i32::try_from(data_len).unwrap_or(i32::MAX),
            Ok(()) => 0,
            Err(errno) if (1..=ERRNO_MAX).contains(&errno) => errno.saturating_neg(),
            Err(_) => -libc::EIO,
        };
        self.answer(tag, result);
        Ok(())
    }

    /// Copies the data of a write that is being served, from its `start` byte on, into `target`.
    ///
    /// # Errors
    /// [`QueueError::NotServing`], also if it is no write or has not as much; [`QueueError::Copy`].
    pub fn read_data(&self, tag: u16, start: usize, target: &mut [u8]) -> Result<(), QueueError> {
        let position = self.data_position(tag, RequestKind::Write, start, target.len())?;
        self.device.file.read_exact_at(target, position).map_err(|source| self.copy_error(tag, source))
    }

    /// Copies `source` to where a read that is being served wants it, from its `start` byte on. Each of its bytes must have been
    /// copied before it is answered: else it gets what its memory held.
    ///
    /// # Errors
    /// As [`Queue::read_data`], for a read.
    pub fn write_data(&self, tag: u16, start: usize, source: &[u8]) -> Result<(), QueueError> {
        let position = self.data_position(tag, RequestKind::Read, start, source.len())?;
        self.device.file.write_all_at(source, position).map_err(|source| self.copy_error(tag, source))
    }

    fn copy_error(&self, tag: u16, source: io::Error) -> QueueError {
        QueueError::Copy { device: self.device.id, queue: self.id, tag, source }
    }

    /// Where a request's data is in the device's file, in bytes.
    fn data_position(&self, tag: u16, wanted: RequestKind, start: usize, len: usize) -> Result<u64, QueueError> {
        let (kind, data_len) = self.serving(tag)?;
        let start = u64::try_from(start).ok().filter(|start| {
            let end = u64::try_from(len).ok().and_then(|len| start.checked_add(len));
            kind == wanted && end.is_some_and(|end| end <= u64::from(data_len))
        });
        let start = start.ok_or(QueueError::NotServing { device: self.device.id, queue: self.id, tag })?;
        Ok(data_start(self.id, tag) + start)
    }

    fn serving(&self, tag: u16) -> Result<(RequestKind, u32), QueueError> {
        match self.tags.get(usize::from(tag)) {
            Some(&TagState::Serving(kind, data_len)) => Ok((kind, data_len)),
            _ => Err(QueueError::NotServing { device: self.device.id, queue: self.id, tag }),
        }
    }

    /// Lets an answer wait to be submitted. In a device that stops it is dropped instead: its command would fetch
    /// again, and nothing would end that.
    fn answer(&mut self, tag: u16, result: i32) {
        if self.is_stopping {
            self.end(tag);
            return;
        }
        self.tags[usize::from(tag)] = TagState::Commit(result);
        self.waiting.push_back(tag);
    }

    fn end(&mut self, tag: u16) {
        assert!(self.tags[usize::from(tag)] != TagState::Ended, "a tag ends once");
        self.tags[usize::from(tag)] = TagState::Ended;
        self.live_count -= 1;
    }

    /// The device stops: what waits to be submitted is dropped.
    fn stop(&mut self) {
        self.is_stopping = true;
        while let Some(tag) = self.waiting.pop_front() {
            self.end(tag);
        }
    }

    fn entry(&self, tag: u16) -> squeue::Entry {
        let (code, result) = match self.tags[usize::from(tag)] {
            TagState::Commit(result) => (sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, result),
            _ => (sys::UBLK_U_IO_FETCH_REQ, 0),
        };
        let command = sys::ublksrv_io_cmd { q_id: self.id, tag, result, addr: 0 };
        entry_of(&self.device, code, command).user_data(self.prefix.pack(u64::from(tag)))
    }

    fn descriptor(&self, tag: u16) -> sys::ublksrv_io_desc {
        assert!(usize::from(tag) < self.tags.len(), "a tag is below the depth");
        let descriptors = self.descriptors.pointer().cast::<sys::ublksrv_io_desc>();
        // SAFETY: the mapping has a descriptor for each tag below the depth, aligned since it starts at a page. The
        // kernel wrote it before it posted the completion, and does not write it again before the tag is answered.
        unsafe { descriptors.add(usize::from(tag)).read_volatile() }
    }
}

/// The entry of a command for a queue of a device.
pub(crate) fn entry_of(device: &Device, code: u32, command: sys::ublksrv_io_cmd) -> squeue::Entry {
    // SAFETY: the structure is 16 bytes of numbers without padding (u16, u16, i32, u64).
    let bytes: [u8; 16] = unsafe { std::mem::transmute(command) };
    opcode::UringCmd16::new(Fd(device.file.as_raw_fd()), code).cmd(bytes).build()
}

/// Where the driver has the data of a tag, in the device's file.
fn data_start(queue: u16, tag: u16) -> u64 {
    let place = u64::from(queue) << sys::UBLK_QID_OFF | u64::from(tag) << sys::UBLK_TAG_OFF;
    u64::from(sys::UBLKSRV_IO_BUF_OFFSET) + place
}

/// Where a queue's descriptors are mapped.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    descriptors_len: usize,
    descriptors_offset: libc::off_t,
}

impl Layout {
    /// `None` when a size does not fit.
    fn new(queue: u16, depth: u16) -> Option<Self> {
        let page = page_bytes();
        let descriptor_bytes = u64::try_from(size_of::<sys::ublksrv_io_desc>()).ok()?;
        let bytes_of = |count: u64| (count * descriptor_bytes).next_multiple_of(page);
        // The driver spaces queues as if each had the largest depth.
        let offset =
            u64::from(sys::UBLKSRV_CMD_BUF_OFFSET) + u64::from(queue) * bytes_of(u64::from(sys::UBLK_MAX_QUEUE_DEPTH));
        Some(Self {
            descriptors_len: usize::try_from(bytes_of(u64::from(depth))).ok()?,
            descriptors_offset: libc::off_t::try_from(offset).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{self, Setup};
    use std::fs::File;
    use std::io::Write;

    const PREFIX: Prefix = Prefix::new(0x1234);
    const DEPTH: u16 = 4;
    const IO_BYTES_MAX: u32 = 8192;

    /// A queue over a plain file that holds descriptors: all that the driver does with memory, without the driver.
    fn queue_over(descriptors: &[(u32, u32, u64)]) -> Queue {
        // SAFETY: the name is a valid C string.
        let fd = unsafe { libc::memfd_create(c"descriptors".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "a memory file can be made");
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let mut file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        for &(op_flags, nr_sectors, start_sector) in descriptors {
            let mut bytes = Vec::new();
            bytes.extend(op_flags.to_le_bytes());
            bytes.extend(nr_sectors.to_le_bytes());
            bytes.extend(start_sector.to_le_bytes());
            bytes.extend(0_u64.to_le_bytes());
            file.write_all(&bytes).expect("a memory file takes bytes");
        }
        file.set_len(4096).expect("a memory file can grow");
        let device = Device {
            file,
            id: 5,
            queue_count: 1,
            queue_depth: DEPTH,
            io_bytes_max: IO_BYTES_MAX,
            is_recoverable: false,
            can_quiesce: false,
        };
        Queue::new(Arc::new(device), 0, PREFIX).expect("a memory file can be mapped")
    }

    fn ring_of(submission_entries: u32) -> IoUring {
        ring::build(&Setup { submission_entries, completion_entries: 16 }).expect("this machine allows io_uring")
    }

    #[test]
    fn first_commands_go_out_as_the_ring_has_room() {
        let mut queue = queue_over(&[]);
        let mut ring = ring_of(2);
        assert_eq!(queue.submit(&mut ring), 2);
        ring::enter(&mut ring, 0, None).expect("the ring can be entered");
        assert_eq!(queue.submit(&mut ring), 0);
    }

    #[test]
    fn first_commands_wait_for_a_ring_that_has_room_for_all_of_them() {
        let mut queue = queue_over(&[]);
        let mut ring = ring_of(4);
        let nothing = io_uring::opcode::Nop::new().build();
        // SAFETY: the entry names no memory.
        unsafe { ring::push(&mut ring, &nothing) }.expect("it is empty");
        assert_eq!(queue.submit(&mut ring), 4, "three would have had room");
        ring::enter(&mut ring, 0, None).expect("the ring can be entered");
        assert_eq!(queue.submit(&mut ring), 0);
    }

    #[test]
    fn write_is_handed_over_with_its_buffer_and_answered_with_its_length() {
        let mut queue = queue_over(&[(1, 8, 16)]);
        queue.submit(&mut ring_of(8));
        let request = queue.on_completion(PREFIX.pack(0), 0).expect("ours").expect("a request");
        assert_eq!((request.kind, request.offset_bytes, request.len_bytes), (RequestKind::Write, 8192, 4096));
        queue.device.file.write_all_at(&[7; 4096], data_start(0, 0)).expect("a memory file can grow");
        let mut data = [0; 4096];
        queue.read_data(0, 0, &mut data).expect("it has data");
        assert_eq!(data, [7; 4096]);
        queue.read_data(0, 4095, &mut data[..1]).expect("its last byte");
        for (start, len) in [(1, 4096), (4096, 1), (usize::MAX, 1)] {
            let beyond = queue.read_data(0, start, &mut data[..len]);
            assert!(matches!(beyond, Err(QueueError::NotServing { .. })), "{start} {len}");
        }
        assert!(matches!(queue.write_data(0, 0, &data), Err(QueueError::NotServing { .. })), "it is no read");
        queue.complete(0, Ok(())).expect("it is being served");
        assert_eq!(queue.tags[0], TagState::Commit(4096));
    }

    #[test]
    fn read_is_given_its_data_where_the_driver_looks_for_it() {
        let mut queue = queue_over(&[(0, 8, 0), (0, 8, 0)]);
        queue.submit(&mut ring_of(8));
        queue.on_completion(PREFIX.pack(1), 0).expect("ours").expect("a request");
        queue.write_data(1, 512, &[9; 8]).expect("it is being served");
        let mut data = [0; 8];
        // The numbers of linux/ublk_cmd.h: tags are 32 MiB apart, from 2 GiB on.
        queue.device.file.read_exact_at(&mut data, (2 << 30) + (32 << 20) + 512).expect("it was written");
        assert_eq!(data, [9; 8]);
        assert_eq!(data_start(3, 0), (2 << 30) + (3 << 41));
    }

    #[test]
    fn data_that_the_driver_does_not_have_is_an_error_of_the_request() {
        let mut queue = queue_over(&[(1, 8, 0)]);
        queue.submit(&mut ring_of(8));
        queue.on_completion(PREFIX.pack(0), 0).expect("ours").expect("a request");
        // The file ends before.
        assert!(matches!(queue.read_data(0, 0, &mut [0; 4096]), Err(QueueError::Copy { tag: 0, .. })));
        queue.complete(0, Err(libc::EIO)).expect("it is being served");
        assert_eq!(queue.tags[0], TagState::Commit(-libc::EIO));
    }

    #[test]
    fn failure_and_requests_without_data_are_answered_as_the_driver_expects() {
        let mut queue = queue_over(&[(2, 0, 0), (0, 8, 0), (3, 8, 0), (0, 8, 0)]);
        queue.submit(&mut ring_of(8));
        for tag in 0..DEPTH {
            queue.on_completion(PREFIX.pack(u64::from(tag)), 0).expect("ours").expect("a request");
        }
        queue.complete(0, Ok(())).expect("serving");
        queue.complete(1, Err(libc::ENOSPC)).expect("serving");
        queue.complete(2, Ok(())).expect("serving");
        queue.complete(3, Err(-7)).expect("serving");
        let results = [0, -libc::ENOSPC, 0, -libc::EIO].map(TagState::Commit);
        assert_eq!(queue.tags, results);
    }

    #[test]
    fn request_is_answered_once() {
        let mut queue = queue_over(&[(0, 8, 0)]);
        queue.submit(&mut ring_of(8));
        assert!(matches!(queue.complete(0, Ok(())), Err(QueueError::NotServing { .. })));
        queue.on_completion(PREFIX.pack(0), 0).expect("ours").expect("a request");
        queue.complete(0, Ok(())).expect("serving");
        assert!(matches!(queue.complete(0, Ok(())), Err(QueueError::NotServing { .. })));
        assert!(matches!(queue.write_data(0, 0, &[0]), Err(QueueError::NotServing { .. })));
        assert!(matches!(queue.complete(DEPTH, Ok(())), Err(QueueError::NotServing { .. })));
    }

    #[test]
    fn request_that_cannot_be_understood_is_answered_by_the_queue() {
        // Operation 4 is unknown; 17 sectors are more than a request may have.
        let mut queue = queue_over(&[(4, 8, 0), (0, 17, 0)]);
        queue.submit(&mut ring_of(8));
        assert_eq!(queue.on_completion(PREFIX.pack(0), 0).expect("ours"), None);
        assert_eq!(queue.on_completion(PREFIX.pack(1), 0).expect("ours"), None);
        assert_eq!(queue.tags[..2], [-libc::EOPNOTSUPP, -libc::EIO].map(TagState::Commit));
        assert_eq!(queue.submit(&mut ring_of(8)), 0);
    }

    #[test]
    fn completions_of_others_are_refused() {
        let mut queue = queue_over(&[]);
        let foreign = [Prefix::new(1).pack(0), PREFIX.pack(u64::from(DEPTH)), PREFIX.pack(1 << 16), PREFIX.pack(0)];
        for user_data in foreign {
            // The last one is of a tag whose command is not in the kernel yet.
            assert!(matches!(queue.on_completion(user_data, 0), Err(QueueError::NotOurs { .. })), "{user_data:#x}");
        }
    }

    #[test]
    fn queue_of_a_stopped_device_ends_when_all_commands_are_back_and_all_requests_answered() {
        let mut queue = queue_over(&[(0, 8, 0), (0, 8, 0)]);
        queue.submit(&mut ring_of(8));
        queue.on_completion(PREFIX.pack(0), 0).expect("ours").expect("a request");
        queue.on_completion(PREFIX.pack(1), 0).expect("ours").expect("a request");
        queue.complete(1, Ok(())).expect("serving");
        for tag in 2..u64::from(DEPTH) {
            assert_eq!(queue.on_completion(PREFIX.pack(tag), -libc::ENODEV).expect("ours"), None);
        }
        assert!(!queue.is_ended(), "tag 0 is being served");
        queue.complete(0, Ok(())).expect("serving");
        assert!(queue.is_ended());
        assert_eq!(queue.submit(&mut ring_of(8)), 0, "nothing is fetched again");
    }

    #[test]
    fn queue_of_a_quiesced_device_answers_what_is_under_way() {
        let mut queue = queue_over(&[(0, 8, 0), (0, 8, 0)]);
        assert!(!queue.drain(), "its first commands wait");
        queue.submit(&mut ring_of(8));
        assert!(queue.drain());
        queue.on_completion(PREFIX.pack(0), 0).expect("ours").expect("a request");
        for tag in 1..u64::from(DEPTH) {
            assert_eq!(queue.on_completion(PREFIX.pack(tag), -libc::ENODEV).expect("ours"), None);
        }
        assert!(!queue.drain(), "tag 0 is being served");
        queue.complete(0, Ok(())).expect("serving");
        assert!(!queue.drain(), "its answer waits");
        let mut ring = ring_of(8);
        assert_eq!(queue.submit(&mut ring), 0);
        assert_eq!(ring.submission().len(), 1, "the answer goes out");
        assert!(queue.drain() && !queue.is_ended());
    }

    #[test]
    fn refused_command_is_an_error_and_ends_its_tag() {
        let mut queue = queue_over(&[]);
        queue.submit(&mut ring_of(8));
        let refused = queue.on_completion(PREFIX.pack(2), -libc::EINVAL).expect_err("the driver refused");
        assert!(matches!(refused, QueueError::Command { tag: 2, .. }));
        assert_eq!((queue.tags[2], queue.live_count), (TagState::Ended, 3));
    }

    #[test]
    fn queue_beyond_the_device_is_refused() {
        let queue = queue_over(&[]);
        let refused = Queue::new(Arc::clone(queue.device()), 1, PREFIX);
        assert!(matches!(refused, Err(QueueError::NoSuchQueue { queue: 1, count: 1, .. })));
    }

    #[test]
    fn descriptors_of_queues_are_spaced_by_the_largest_depth() {
        // 4096 descriptors of 24 bytes are 24 pages; 128 of them need one.
        let layout = Layout::new(3, 128).expect("fits");
        let wanted = Layout { descriptors_len: 4096, descriptors_offset: 3 * 98_304 };
        assert_eq!(layout, wanted);
    }
}
