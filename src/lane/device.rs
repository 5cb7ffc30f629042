//! Queues of ublk devices on a lane: from the driver's requests to the engine's, and from its answers back.
//!
//! Their commands are entries of the lane's own ring, beside its pool I/O and its sockets, so one
//! `io_uring_enter` carries them all.
//!
//! The data of requests waits where their maker has it, and is copied into memory of ours only when the engine is to have
//! it. So what a device takes of our memory is bounded ([`DEVICE_QUEUE_BYTES_MAX`]), however many long requests it has at once:
//! the kernel sends most of them when it is short of memory itself.
//!
//! Invariants: a tag that the engine serves keeps its buffer here until the answer; a request with data is either with the
//! engine or waits here; a queue is dropped only when the engine has answered everything ([`DeviceQueue::is_over`]). Owned by the lane.

use super::buffers::Buffers;
use super::driver::{CallEnd, LaneDisk};
use super::limits::{DEVICE_QUEUE_BYTES_MAX, DEVICE_TAGS_MAX};
use super::thread::DEVICE_FIRST;
use crate::disk::IoBuffer;
use crate::error::{self, Error, ErrorKind, IoError};
use crate::units::to_usize;
use crate::volume::{Completion, Engine, OpenVolume, RemoveMode};
use io_uring::IoUring;
use rok_ublk::{Device, Prefix, Queue, QueueError, Request, RequestKind, ring};
use slab::Slab;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, mpsc};

/// What the requests of a device are served from.
#[derive(Clone)]
pub enum DeviceTarget {
    /// Nothing: reads give zeros, and writes go nowhere. Measures a frontend without the engine behind it.
    Null,
    /// Nothing, and no data is copied: reads give what was in the driver's memory, which may be anybody's. Measures the commands
    /// alone, against other servers' null devices that leave the data out.
    Bare,
    /// A volume.
    Volume(Arc<OpenVolume>),
    /// A volume or snapshot that is only read: the block layer warns of writes to a read-only disk, and lets them through.
    ReadOnly(Arc<OpenVolume>),
}

/// What others tell a lane about its devices.
pub(super) enum DeviceMessage {
    /// Serve a queue.
    Serve(NewQueue),
    /// The device of this number is about to be stopped: none of its writes waits for space any more. Then say so.
    Leave { id: u32, done: mpsc::Sender<()> },
    /// The device of this number is about to be quiesced, or is: answer what is under way. Then say whether nothing is.
    Drain { id: u32, answer: mpsc::Sender<bool> },
    /// Serve the device of this number no more, and let its requests wait for the next server.
    Release { id: u32 },
}

/// A queue that a lane is to serve.
pub(super) struct NewQueue {
    pub device: Arc<Device>,
    pub id: u16,
    pub target: DeviceTarget,
    /// Told once whether the lane serves it.
    pub started: mpsc::Sender<error::Result<()>>,
    /// Dropped when the queue has ended.
    pub ended: mpsc::Sender<()>,
}

/// Tells the owners of requests that are queues of devices from connections.
const DEVICE_OWNER: u32 = 1 << 31;

/// Whether the owner of a request is a queue of a device.
pub(super) const fn is_device(owner: u32) -> bool {
    owner & DEVICE_OWNER != 0
}

/// The queues that a lane serves, each with a slot.
#[derive(Default)]
pub(super) struct Devices(Slab<DeviceQueue>);

impl Devices {
    /// Does what others want.
    pub(super) fn take(
        &mut self,
        message: DeviceMessage,
        is_closing: bool,
        engine: &Engine<LaneDisk>,
        buffers: &mut Buffers,
    ) {
        match message {
            DeviceMessage::Serve(queue) if !is_closing => self.start(queue, buffers),
            // Who waits sees that the channel is gone.
            DeviceMessage::Serve(_) => {}
            DeviceMessage::Leave { id, done } => {
                for (slot, device) in &self.0 {
                    if device.queue.device().id() == id {
                        engine.leave(DEVICE_OWNER | u32::try_from(slot).expect("there are fewer queues than tags"));
                    }
                }
                // Who has given up waiting stops the device without.
                let _is_awaited = done.send(()).is_ok();
            }
            DeviceMessage::Drain { id, answer } => {
                let is_drained = self.drain(id);
                // Who has given up waiting releases the device.
                let _is_awaited = answer.send(is_drained).is_ok();
            }
            DeviceMessage::Release { id } => self.release(id, engine),
        }
    }

    /// Whether no request of a device is under way.
    fn drain(&mut self, id: u32) -> bool {
        let of_device = self.0.iter_mut().filter(|(_, device)| device.queue.device().id() == id);
        // All of them, since each is told.
        of_device.fold(true, |is_drained, (_, device)| device.queue.drain() && is_drained)
    }

    /// Answers nothing of a device any more. What is with the engine is waited for; the driver sends it again to the next
    /// server, when this lane has ended.
    fn release(&mut self, id: u32, engine: &Engine<LaneDisk>) {
        let of_device = self.0.iter().filter(|(_, device)| device.queue.device().id() == id);
        let slots: Vec<usize> = of_device.map(|(slot, _)| slot).collect();
        for slot in slots {
            self.0[slot].is_abandoned = true;
            let slot = u32::try_from(slot).expect("there are fewer queues than tags");
            // Those that wait for space fail, and nobody is told.
            engine.leave(DEVICE_OWNER | slot);
            self.drop_ended(slot, engine);
        }
    }

    /// Maps a queue, tells who asked for it how that went, and serves it from now on.
    fn start(&mut self, new: NewQueue, buffers: &mut Buffers) {
        // Memory that this thread needs must never be won by writing to a device that this thread serves.
        if self.0.is_empty()
            && let Err(error) = ring::become_io_flusher()
        {
            tracing::debug!(%error, "the lane could not be marked as a server of block devices");
        }
        let tags: usize = self.0.iter().map(|(_, device)| device.data.len()).sum();
        let queue_count = self.0.len();
        let place = self.0.vacant_entry();
        let prefix = u16::try_from(place.key()).expect("there are fewer queues than tags") + DEVICE_FIRST;
        let started = new.started.clone();
        let answer = if tags + usize::from(new.device.queue_depth()) > DEVICE_TAGS_MAX {
            Err(Error::new(ErrorKind::Busy, format!("A lane serves at most {DEVICE_TAGS_MAX} tags of devices"))
                .with_hint("Detach a device, or use fewer or shallower queues"))
        } else {
            // Now, and not when the kernel is short of memory.
            buffers.reserve(
                (queue_count + 1) * 2 * DEVICE_QUEUE_BYTES_MAX,
                to_usize(u64::from(new.device.io_bytes_max())),
            );
            DeviceQueue::start(new, Prefix::new(prefix)).map(|device| {
                place.insert(device);
            })
        };
        if started.send(answer).is_err() {
            tracing::debug!("nobody waits for the start of a device's queue");
        }
    }

    /// Puts their commands in the ring; true if some found no room and wait for the next turn.
    pub(super) fn submit(&mut self, ring: &mut IoUring) -> bool {
        let mut is_waiting = false;
        // New queues while the ring is empty: their commands go all at once.
        for is_new in [true, false] {
            for (_, device) in &mut self.0 {
                if device.queue.is_new() == is_new && !device.is_abandoned {
                    is_waiting |= device.queue.submit(ring) > 0;
                }
            }
        }
        is_waiting
    }

    /// Takes the completion of a command, and hands the request that it brings to the engine.
    pub(super) fn completed(&mut self, end: CallEnd, engine: &Rc<Engine<LaneDisk>>, buffers: &mut Buffers) {
        let slot = u32::from(Prefix::of(end.user_data).value() - DEVICE_FIRST);
        // One that was abandoned may be gone before its commands are back.
        let Some(device) = self.0.get_mut(to_usize(u64::from(slot))) else { return };
        if device.is_abandoned {
            return;
        }
        let mut service = DeviceService { engine, buffers, owner: DEVICE_OWNER | slot };
        device.completed(end.user_data, end.result, &mut service);
        if device.queue.is_ended() {
            // The driver does not wait for the answers.
            engine.leave(DEVICE_OWNER | slot);
        }
        self.drop_ended(slot, engine);
    }

    /// Takes the engine's answer to a request.
    pub(super) fn answered(
        &mut self,
        completion: Completion,
        result: Result<(), IoError>,
        engine: &Rc<Engine<LaneDisk>>,
        buffers: &mut Buffers,
    ) {
        let slot = completion.owner & !DEVICE_OWNER;
        let mut service = DeviceService { engine, buffers, owner: completion.owner };
        self.0[to_usize(u64::from(slot))].answered(completion.cookie, result, &mut service);
        self.drop_ended(slot, engine);
    }

    /// Serves nothing more; what is with the engine is still waited for.
    pub(super) fn abandon(&mut self) {
        self.0.iter_mut().for_each(|(_, device)| device.abandon());
        self.0.retain(|_, device| !device.is_over());
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn drop_ended(&mut self, slot: u32, engine: &Engine<LaneDisk>) {
        let index = to_usize(u64::from(slot));
        if self.0[index].is_over() {
            self.0.remove(index);
            engine.forget_owner(DEVICE_OWNER | slot);
        }
    }
}

/// What a queue hands its requests to.
struct DeviceService<'a> {
    engine: &'a Rc<Engine<LaneDisk>>,
    buffers: &'a mut Buffers,
    /// What the engine's answers name the queue by.
    owner: u32,
}

/// The data of a request in the engine.
struct Data {
    /// All of the memory, which goes back to the lane's free buffers.
    buffer: IoBuffer,
    len: usize,
    is_read: bool,
}

/// What the reads of a queue, or its writes, have of the lane's memory.
struct Share {
    /// Bytes of the requests that the engine has.
    bytes: usize,
    /// Requests that there is no memory for yet, in the order in which they came.
    waiting: VecDeque<Request>,
}

impl Share {
    fn new(depth: usize) -> Self {
        Self { bytes: 0, waiting: VecDeque::with_capacity(depth) }
    }

    fn has_room(&self, request: &Request) -> bool {
        self.bytes + to_usize(request.len_bytes) <= DEVICE_QUEUE_BYTES_MAX
    }

    /// Takes the first of those that wait, if it has room now.
    fn next(&mut self) -> Option<Request> {
        if self.has_room(self.waiting.front()?) { self.waiting.pop_front() } else { None }
    }
}

/// A queue of a device that a lane serves.
struct DeviceQueue {
    queue: Queue,
    target: DeviceTarget,
    /// By tag: the data of a read or write that the engine serves.
    data: Vec<Option<Data>>,
    reads: Share,
    writes: Share,
    /// Requests that the engine has not answered.
    serving_count: usize,
    /// Its commands are no concern of ours any more: requests that come are not served, answers do not go out.
    is_abandoned: bool,
    _ended: mpsc::Sender<()>,
}

impl DeviceQueue {
    /// Maps the queue.
    fn start(new: NewQueue, prefix: Prefix) -> error::Result<Self> {
        let NewQueue { device, id, target, ended, .. } = new;
        let (depth, number) = (usize::from(device.queue_depth()), device.id());
        let queue = Queue::new(device, id, prefix).map_err(|source| {
            Error::new(ErrorKind::Other, format!("Device {number} cannot be served: {source}")).with_source(source)
        })?;
        let data = (0..depth).map(|_| None).collect();
        let (reads, writes) = (Share::new(depth), Share::new(depth));
        Ok(Self { queue, target, data, reads, writes, serving_count: 0, is_abandoned: false, _ended: ended })
    }

    /// Takes the completion of one of its commands, and hands the request that it brings to the engine.
    fn completed(&mut self, user_data: u64, result: i32, service: &mut DeviceService<'_>) {
        match self.queue.on_completion(user_data, result) {
            Ok(Some(request)) => {
                let started = self.serve(&request, service);
                self.check(started);
            }
            Ok(None) => {}
            Err(error) => self.check(Err(error)),
        }
    }

    /// Takes the engine's answer to a request.
    fn answered(&mut self, cookie: u64, result: Result<(), IoError>, service: &mut DeviceService<'_>) {
        self.serving_count -= 1;
        let tag = u16::try_from(cookie).expect("a tag has 16 bits");
        let answered = self.answer(tag, result, service.buffers);
        self.check(answered);
        self.serve_waiting(service);
    }

    /// Hands requests to the engine that there is memory for now.
    fn serve_waiting(&mut self, service: &mut DeviceService<'_>) {
        for is_read in [true, false] {
            while !self.is_abandoned
                && let Some(request) = self.share(is_read).next()
            {
                let served = self.serve_with_data(&request, service);
                self.check(served);
            }
        }
    }

    fn share(&mut self, is_read: bool) -> &mut Share {
        if is_read { &mut self.reads } else { &mut self.writes }
    }

    /// Serves nothing more; what is with the engine is waited for.
    fn abandon(&mut self) {
        if !std::mem::replace(&mut self.is_abandoned, true) && !self.queue.is_ended() {
            let (device, queue) = (self.queue.device().id(), self.queue.id());
            tracing::warn!(device, queue, "a lane ends while it serves a device: stop the device first");
        }
    }

    /// Whether the driver has let it go, or nobody serves it any more, and it can be dropped.
    fn is_over(&self) -> bool {
        (self.queue.is_ended() || self.is_abandoned) && self.serving_count == 0
    }

    fn serve(&mut self, request: &Request, service: &mut DeviceService<'_>) -> Result<(), QueueError> {
        match &self.target {
            DeviceTarget::Null => return self.serve_null(request, service.buffers),
            DeviceTarget::Bare => return self.queue.complete(request.tag, Ok(())),
            DeviceTarget::ReadOnly(_) if !matches!(request.kind, RequestKind::Read | RequestKind::Flush) => {
                return self.queue.complete(request.tag, Err(IoError::ReadOnly.errno()));
            }
            DeviceTarget::Volume(_) | DeviceTarget::ReadOnly(_) => {}
        }
        if !request.kind.has_data() {
            self.hand_over(request, None, service);
            return Ok(());
        }
        let share = self.share(request.kind == RequestKind::Read);
        // Not before those that wait.
        if share.waiting.is_empty() && share.has_room(request) {
            return self.serve_with_data(request, service);
        }
        share.waiting.push_back(*request);
        Ok(())
    }

    /// Serves a read or write, for which there is memory.
    fn serve_with_data(&mut self, request: &Request, service: &mut DeviceService<'_>) -> Result<(), QueueError> {
        let (tag, len, is_read) = (request.tag, to_usize(request.len_bytes), request.kind == RequestKind::Read);
        let buffer = service.buffers.take_reserved(len);
        let data = buffer.slice(0..len);
        if !is_read && let Err(error) = data.with_bytes_mut(|target| self.queue.read_data(tag, 0, target)) {
            drop(data);
            service.buffers.give(buffer);
            self.queue.complete(tag, Err(libc::EIO))?;
            return Err(error);
        }
        self.share(is_read).bytes += len;
        self.data[usize::from(tag)] = Some(Data { buffer, len, is_read });
        self.hand_over(request, Some(data), service);
        Ok(())
    }

    fn hand_over(&mut self, request: &Request, data: Option<IoBuffer>, service: &DeviceService<'_>) {
        let (DeviceTarget::Volume(open) | DeviceTarget::ReadOnly(open)) = &self.target else { return };
        self.serving_count += 1;
        let (volume, engine, is_fua) = (open.volume(), service.engine, request.is_fua);
        let (offset_bytes, range) = (request.offset_bytes, (request.offset_bytes, request.len_bytes));
        let completion = Completion { owner: service.owner, cookie: u64::from(request.tag) };
        match (request.kind, data) {
            (RequestKind::Read, Some(data)) => engine.read(volume, offset_bytes, data, completion),
            (RequestKind::Write, Some(data)) => engine.write(volume, offset_bytes, data, is_fua, completion),
            (RequestKind::Discard, _) => engine.remove(volume, range, RemoveMode::Discard, is_fua, completion),
            (RequestKind::WriteZeroes, _) => {
                let mode = if request.is_nounmap { RemoveMode::ZeroProvisioned } else { RemoveMode::Zero };
                engine.remove(volume, range, mode, is_fua, completion);
            }
            // A read or write has data, so this is a flush.
            _ => engine.flush(completion),
        }
    }

    fn serve_null(&mut self, request: &Request, buffers: &mut Buffers) -> Result<(), QueueError> {
        if request.kind == RequestKind::Read {
            let len = to_usize(request.len_bytes);
            let zeros = buffers.zeros(len).slice(0..len);
            if let Err(error) = zeros.with_bytes(|zeros| self.queue.write_data(request.tag, 0, zeros)) {
                self.queue.complete(request.tag, Err(libc::EIO))?;
                return Err(error);
            }
        }
        self.queue.complete(request.tag, Ok(()))
    }

    fn answer(&mut self, tag: u16, result: Result<(), IoError>, buffers: &mut Buffers) -> Result<(), QueueError> {
        let mut copied = Ok(());
        if let Some(Data { buffer, len, is_read }) = self.data[usize::from(tag)].take() {
            self.share(is_read).bytes -= len;
            if is_read && result.is_ok() {
                copied = buffer.slice(0..len).with_bytes(|source| self.queue.write_data(tag, 0, source));
            }
            buffers.give(buffer);
        }
        let outcome = if copied.is_err() { Err(libc::EIO) } else { result.map_err(IoError::errno) };
        self.queue.complete(tag, outcome)?;
        copied
    }

    /// An error of the driver loses a tag: the device is of no use any more, and its owner finds it in the log.
    fn check(&self, result: Result<(), QueueError>) {
        if let Err(error) = result {
            tracing::error!(%error, "a device's queue has failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(len_bytes: usize) -> Request {
        let len_bytes = u64::try_from(len_bytes).expect("small");
        Request { tag: 0, kind: RequestKind::Read, offset_bytes: 0, len_bytes, is_fua: false, is_nounmap: false }
    }

    #[test]
    fn requests_beyond_the_share_wait_in_their_order() {
        let mut share = Share::new(4);
        share.bytes = DEVICE_QUEUE_BYTES_MAX - 8192;
        assert!(share.has_room(&read(8192)) && !share.has_room(&read(8704)));
        share.waiting.extend([read(16_384), read(512)]);
        assert!(share.next().is_none(), "the first one has no room, and the second one waits behind it");
        share.bytes -= 8192;
        assert_eq!(share.next().map(|request| request.len_bytes), Some(16_384));
        share.bytes += 16_384;
        assert!(share.next().is_none());
    }
}
