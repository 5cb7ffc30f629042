//! The thread of a lane: its loop, and who gets which completion.
//!
//! Invariant: what a call points to is kept by its owner here (connection, device, disk, alarm) until the call's end, and
//! the thread does not end before.

#![expect(unsafe_code, reason = "takes the sockets that the kernel gives")]

mod connecting;

use super::accepting::hand_out;
use super::buffers::Buffers;
use super::connection::{Connection, Encrypted, HandshakeStep, Phase};
use super::controls::{Answer, Controls};
use super::device::{Devices, is_device};
use super::driver::{Call, CallEnd, Driver, LaneDisk, Submission, Uring};
use super::handshake::{HandshakeTurn, NextStep, advance};
use super::limits::SHUTDOWN_TIME_MAX;
use super::listeners::{Listeners, Next};
use super::mailbox::{Mailbox, Message};
use super::requests::Service;
use super::server::Shared;
use super::settings::ListenSettings;
use crate::disk::{Disk, IoBuffer, LentToDevice};
use crate::error::IoError;
use crate::pool::{AddressGroup, ScrubWish};
use crate::units::{LaneIndex, to_u64, to_usize};
use crate::volume::{Completion, Engine, RemoveMode, ScrubResult, Volume};
use async_executor::LocalExecutor;
use rok_ublk::Prefix;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Pool I/O.
pub(super) const DISK: Prefix = Prefix::new(1);
/// Sockets: the payload is the connection's slot, and the lowest bit tells a send.
const SOCKET: Prefix = Prefix::new(2);
/// Listeners: the payload is the slot.
const ACCEPT: Prefix = Prefix::new(3);
const ALARM: Prefix = Prefix::new(4);
const TICK: Prefix = Prefix::new(5);
/// Waits for the ends of peers: the payload is the connection's slot.
const HANGUP: Prefix = Prefix::new(7);
/// Cancellations, whose own ends tell nothing.
const CANCEL: Prefix = Prefix::new(6);
/// Queues of devices have this prefix and those that follow.
pub(super) const DEVICE_FIRST: u16 = 0x100;

/// Rounds of tasks and answers in one turn, so that I/O gets its turn too.
const ROUNDS_PER_TURN: usize = 32;

/// What a lane is made of.
pub(super) struct LaneParts {
    pub shared: Arc<Shared>,
    pub index: LaneIndex,
    pub engine: Rc<Engine<LaneDisk>>,
    pub executor: Rc<LocalExecutor<'static>>,
}

/// A lane.
pub(super) struct Lane {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    engine: Rc<Engine<LaneDisk>>,
    executor: Rc<LocalExecutor<'static>>,
    // Boxed, since a table that grows moves its entries.
    connections: Slab<Box<Connection>>,
    /// Connections to look at in this turn.
    dirty: Vec<u32>,
    listeners: Listeners,
    devices: Devices,
    controls: Controls,
    buffers: Buffers,
    /// Calls that the kernel has not been asked for.
    submissions: VecDeque<Submission>,
    alarm_buffer: IoBuffer,
    alarm_loan: Option<LentToDevice>,
    is_tick_armed: bool,
    /// There are deadlines.
    is_tick_wanted: bool,
    /// When the lane was told to end, until when it is patient.
    closing: Option<Instant>,
    done: Vec<(Completion, Result<(), IoError>)>,
    /// Rounds are left for the next turn.
    has_more: bool,
}

impl Lane {
    pub(super) fn new(parts: LaneParts) -> Self {
        let mailbox = Arc::clone(&parts.shared.mailboxes[parts.index.as_usize()]);
        Self {
            shared: parts.shared,
            mailbox,
            engine: parts.engine,
            executor: parts.executor,
            connections: Slab::new(),
            dirty: Vec::new(),
            listeners: Listeners::default(),
            devices: Devices::default(),
            controls: Controls::default(),
            buffers: Buffers::default(),
            submissions: VecDeque::new(),
            alarm_buffer: IoBuffer::allocate(8),
            alarm_loan: None,
            is_tick_armed: false,
            is_tick_wanted: false,
            closing: None,
            done: Vec::new(),
            has_more: false,
        }
    }

    /// Runs until the lane was closed and everything has ended.
    ///
    /// # Errors
    /// The kernel refuses the ring, or to poll; then nothing more can be served.
    pub(super) fn run(&mut self, driver: &mut Driver<'_>) -> io::Result<()> {
        let mut ends = Vec::new();
        self.arm_alarm();
        while !self.is_over() {
            self.submit(driver, &mut ends)?;
            for end in ends.drain(..) {
                self.dispatch(end);
            }
            self.work();
        }
        // Its read must end before its memory goes.
        while self.alarm_loan.is_some() {
            self.mailbox.alarm.raise();
            self.submit(driver, &mut ends)?;
            if ends.drain(..).any(|end| Prefix::of(end.user_data) == ALARM) {
                self.alarm_loan = None;
            }
        }
        Ok(())
    }

    /// Lets the clients see the end, when the driver has failed.
    pub(super) fn break_off(&mut self) {
        self.connections.iter_mut().for_each(|(_, connection)| connection.break_off());
        // Whoever waits for an answer sees that there will be none.
        self.controls.clear();
    }

    /// Submits what is queued; waits if there is nothing else to do.
    fn submit(&mut self, driver: &mut Driver<'_>, ends: &mut Vec<CallEnd>) -> io::Result<()> {
        match driver {
            Driver::Uring(uring) => self.submit_to_ring(uring, ends),
            Driver::Readiness(readiness) => {
                self.engine.with_disk(LaneDisk::hand_over);
                readiness.turn(&mut self.submissions, !self.has_more, ends)
            }
        }
    }

    fn submit_to_ring(&mut self, uring: &mut Uring<'_>, ends: &mut Vec<CallEnd>) -> io::Result<()> {
        let is_device_waiting = self.devices.submit(uring.ring());
        let mut queue = uring.push(&mut self.submissions);
        let is_disk_waiting = self.engine.with_disk(|disk| {
            disk.prepare(&mut queue);
            disk.has_unsubmitted()
        });
        drop(queue);
        let is_idle = self.submissions.is_empty() && !is_disk_waiting && !is_device_waiting && !self.has_more;
        uring.enter(is_idle, ends)
    }

    fn dispatch(&mut self, end: CallEnd) {
        let payload = Prefix::payload(end.user_data);
        match Prefix::of(end.user_data) {
            DISK => self.engine.with_disk(|disk| disk.complete(end.user_data, end.result)),
            SOCKET => self.socket_done(payload, end.result),
            ACCEPT => self.accepted(to_usize(payload), end.result, end.is_going_on),
            ALARM => {
                self.alarm_loan = None;
                self.mailbox.alarm.lower();
                self.engine.with_disk(LaneDisk::collect);
                self.arm_alarm();
                self.take_mail();
            }
            TICK => {
                self.is_tick_armed = false;
                self.look_at_deadlines(Instant::now());
            }
            HANGUP => self.hung_up(payload),
            CANCEL => {}
            _ => self.devices.completed(end, &self.engine, &mut self.buffers),
        }
    }

    /// Everything that can be done without the kernel.
    fn work(&mut self) {
        self.has_more = true;
        for _ in 0..ROUNDS_PER_TURN {
            self.take_requests();
            let is_yielding = self.engine.turn();
            self.engine.drain_done(&mut self.done);
            let has_done = !self.done.is_empty();
            self.deliver();
            if is_yielding {
                break;
            }
            // The turn may have woken tasks at its end.
            if !has_done && !self.executor.try_tick() {
                self.has_more = false;
                break;
            }
        }
        self.finish_turn();
        if self.engine.pool().changes().active_count() > 0 {
            self.shared.checkpoints.note_changes();
        }
    }

    fn take_requests(&mut self) {
        for index in 0..self.dirty.len() {
            let owner = self.dirty[index];
            let connection = &mut self.connections[slot_of(owner)];
            let mut service = Service { engine: &self.engine, buffers: &mut self.buffers, owner };
            connection.take_requests(&mut service);
            if connection.is_leaving() && !std::mem::replace(&mut connection.has_left, true) {
                self.engine.leave(owner);
            }
        }
    }

    /// Hands the engine's answers to who asked.
    fn deliver(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        for (completion, result) in done.drain(..) {
            if self.controls.answered(completion, result) {
                continue;
            }
            if is_device(completion.owner) {
                self.devices.answered(completion, result, &self.engine, &mut self.buffers);
                continue;
            }
            let cookie = to_usize(completion.cookie);
            self.connections[slot_of(completion.owner)].answered(cookie, result, &mut self.buffers);
            self.mark(completion.owner);
        }
        self.done = done;
    }

    /// Starts the receives and sends of the connections that were looked at, and drops those that are over.
    fn finish_turn(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            let connection = &mut self.connections[slot_of(slot)];
            connection.is_dirty = false;
            self.is_tick_wanted |= connection.has_deadline();
            if let Some(call) = connection.begin_send() {
                self.submit_call(SOCKET.pack(u64::from(slot) << 1 | 1), call);
            }
            self.advance_handshake(slot);
            let connection = &mut self.connections[slot_of(slot)];
            if let Some(call) = connection.begin_receive(&mut self.buffers) {
                self.submissions.push_back(Submission { user_data: SOCKET.pack(u64::from(slot) << 1), call });
            }
            if let Some(call) = connection.begin_watch() {
                self.submissions.push_back(Submission { user_data: HANGUP.pack(u64::from(slot)), call });
            }
            if connection.is_drained() && !connection.is_over() {
                connection.break_off();
            }
            if connection.is_over() {
                let mut connection = self.connections.remove(slot_of(slot));
                self.engine.forget_owner(slot);
                if let Some(incoming) = connection.incoming.take() {
                    self.buffers.give(incoming.buffer);
                }
            }
        }
        self.dirty = dirty;
        if self.is_tick_wanted && !self.is_tick_armed {
            self.is_tick_armed = true;
            self.submit_call(TICK.pack(0), Call::Tick);
        }
    }

    /// Gives a handshake's next turn to a blocking thread, if it is time for it.
    fn advance_handshake(&mut self, slot: u32) {
        let connection = &mut self.connections[slot_of(slot)];
        let is_ready = !connection.is_broken && !connection.is_draining && connection.sender.is_idle();
        let Phase::Handshake { handshake, step: HandshakeStep::Advance, .. } = &mut connection.phase else { return };
        if !is_ready {
            return;
        }
        let Some(handshake) = handshake.take() else { return };
        connection.has_job = true;
        let there = connection.stream.buffer.slice(connection.stream.start..connection.stream.end);
        let input = there.with_bytes(<[u8]>::to_vec);
        let (mailbox, table) = (Arc::clone(&self.mailbox), Arc::clone(&self.shared.exports));
        self.shared.handshakes.push(Box::new(move || {
            let turn = advance(handshake, &input, &table);
            drop(table);
            mailbox.return_handshake(slot, turn);
        }));
    }

    fn handshake_returned(&mut self, slot: u32, turn: HandshakeTurn) {
        let connection = &mut self.connections[slot_of(slot)];
        connection.has_job = false;
        connection.stream.take(turn.consumed);
        connection.reply_bytes(turn.output);
        match (turn.next, &mut connection.phase) {
            (NextStep::Receive, Phase::Handshake { handshake, step, .. }) => {
                (*handshake, *step) = (Some(turn.negotiation), HandshakeStep::Receive);
            }
            (NextStep::Repeat, Phase::Handshake { handshake, .. }) => *handshake = Some(turn.negotiation),
            (NextStep::Serve(session), phase) => {
                *phase = Phase::Transmission(session);
                connection.tls = turn.negotiation.tls.map(Encrypted::new);
            }
            (_, phase) => {
                *phase = Phase::Over;
                connection.is_draining = true;
            }
        }
        self.mark(slot);
    }

    fn socket_done(&mut self, payload: u64, result: i32) {
        let slot = u32::try_from(payload >> 1).expect("a lane has few connections");
        let connection = &mut self.connections[slot_of(slot)];
        if payload & 1 == 0 {
            connection.received(result);
        } else if let Some(rest) = connection.sent(result, &mut self.buffers) {
            self.submit_call(SOCKET.pack(payload), rest);
        }
        self.mark(slot);
    }

    fn hung_up(&mut self, payload: u64) {
        let slot = u32::try_from(payload).expect("a lane has few connections");
        self.connections[slot_of(slot)].hung_up();
        self.mark(slot);
    }

    fn take_mail(&mut self) {
        for (slot, turn) in self.mailbox.take_handshakes() {
            self.handshake_returned(slot, turn.judged_again(&self.shared.exports));
        }
        for message in self.mailbox.take() {
            match message {
                Message::Connect { socket, permit, client } => self.connect(socket, permit, client),
                Message::Listen { listener, is_tcp, settings } => self.listen(listener, is_tcp, settings),
                Message::Disconnect { volume, done } => {
                    self.disconnect(volume);
                    // Who has given up waiting sees the connections go.
                    let _is_awaited = done.send(()).is_ok();
                }
                Message::KernelClient(message) => self.take_kernel_client(message),
                Message::Device(message) => {
                    self.devices.take(message, self.closing.is_some(), &self.engine, &mut self.buffers);
                }
                Message::Discard { volume, range, done } => self.discard(&volume, range, done),
                Message::Clean { group, done } => self.clean(group, done),
                Message::Scrub { wish, result, done } => self.scrub(wish, &result, done),
                Message::SetDevice { index, device, done } => {
                    self.engine.with_disk(|disk| disk.set_device(index, device));
                    // Who has given up waiting does not use the device.
                    let _is_awaited = done.send(()).is_ok();
                }
                Message::Close => self.close(),
            }
        }
    }

    fn discard(&mut self, volume: &Arc<Volume>, range: (u64, u64), done: Answer) {
        if let Some(completion) = self.controls.begin(done, self.closing.is_some()) {
            self.engine.remove(volume, range, RemoveMode::Discard, true, completion);
        }
    }

    fn clean(&mut self, group: AddressGroup, done: Answer) {
        if let Some(completion) = self.controls.begin(done, self.closing.is_some()) {
            self.engine.clean(&self.shared.exports.volumes, group, completion);
        }
    }

    fn scrub(&mut self, wish: ScrubWish, result: &ScrubResult, done: Answer) {
        if let Some(completion) = self.controls.begin(done, self.closing.is_some()) {
            self.engine.scrub(wish, result, completion);
        }
    }

    fn close(&mut self) {
        self.closing = Some(Instant::now() + SHUTDOWN_TIME_MAX);
        self.engine.close();
        self.is_tick_wanted = true;
        for slot in self.listeners.close() {
            self.submit_call(CANCEL.pack(0), Call::Cancel { user_data: ACCEPT.pack(slot) });
        }
        let slots: Vec<u32> = self.connections.iter().filter_map(|(slot, _)| u32::try_from(slot).ok()).collect();
        for slot in slots {
            self.connections[slot_of(slot)].begin_end();
            self.mark(slot);
        }
    }

    fn look_at_deadlines(&mut self, now: Instant) {
        let mut is_any_left = self.closing.is_some();
        let is_impatient = self.closing.is_some_and(|until| until <= now);
        let mut late = Vec::new();
        for (slot, connection) in &mut self.connections {
            let (has_deadline, is_late) = connection.look_at_deadline(now);
            is_any_left |= has_deadline;
            if is_late || is_impatient {
                connection.break_off();
                late.extend(u32::try_from(slot));
            }
        }
        late.into_iter().for_each(|slot| self.mark(slot));
        if is_impatient {
            self.devices.abandon();
        }
        self.listeners.paused().into_iter().for_each(|slot| self.arm_listener(slot));
        self.is_tick_wanted = is_any_left;
    }

    fn listen(&mut self, socket: OwnedFd, is_tcp: bool, settings: ListenSettings) {
        if self.closing.is_none() {
            let slot = self.listeners.add(socket, is_tcp, settings);
            self.arm_listener(slot);
        }
    }

    fn arm_listener(&mut self, slot: usize) {
        let call = self.listeners.arm(slot);
        self.submit_call(ACCEPT.pack(to_u64(slot)), call);
    }

    fn accepted(&mut self, slot: usize, result: i32, is_armed: bool) {
        if result >= 0 {
            // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
            let socket = unsafe { OwnedFd::from_raw_fd(result) };
            let (is_tcp, settings) = self.listeners.settings(slot);
            hand_out(&self.shared, socket, is_tcp, settings);
        }
        match self.listeners.completed(slot, result, is_armed, self.closing.is_some()) {
            Next::Nothing => {}
            Next::Arm => self.arm_listener(slot),
            Next::Pause => {
                tracing::warn!(error = %io::Error::from_raw_os_error(-result), "a connection could not be accepted");
                self.is_tick_wanted = true;
            }
        }
    }

    fn arm_alarm(&mut self) {
        let loan = self.alarm_buffer.lend_to_device();
        let call = Call::ReadAlarm { alarm: self.mailbox.alarm.raw_fd(), memory: loan.as_mut_ptr() };
        self.submit_call(ALARM.pack(0), call);
        self.alarm_loan = Some(loan);
    }

    fn submit_call(&mut self, user_data: u64, call: Call) {
        self.submissions.push_back(Submission { user_data, call });
    }

    /// Has the connection looked at in this turn.
    fn mark(&mut self, slot: u32) {
        let connection = &mut self.connections[slot_of(slot)];
        if !std::mem::replace(&mut connection.is_dirty, true) {
            self.dirty.push(slot);
        }
    }

    fn is_over(&self) -> bool {
        self.closing.is_some()
            && self.connections.is_empty()
            && self.listeners.is_empty()
            && self.devices.is_empty()
            && self.controls.is_empty()
            && self.engine.is_idle()
            && self.engine.with_disk(|disk| disk.in_flight_count()) == 0
    }
}

fn slot_of(slot: u32) -> usize {
    to_usize(u64::from(slot))
}
