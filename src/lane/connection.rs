//! One NBD connection: what arrived, what is under way, what goes out.
//!
//! Invariants: at most one receive, one send and one wait for the peer's end are in the kernel; their memory and the socket
//! belong to the connection until their completions; a connection is dropped only when none is in the kernel and the engine
//! has answered everything ([`Connection::is_over`]). Owned by its lane.

use super::buffers::Buffers;
use super::driver::Call;
use super::exports::Client;
use super::handshake::{Negotiation, Session};
use super::kernel_client::KernelLink;
use super::limits::RECORDS_BYTES;
use super::sender::{Head, Reply, Sender, Sent};
use super::server::Permit;
use super::settings::NbdLimits;
use super::status::PendingStatus;
use super::stream::Stream;
use super::tls::TlsStream;
use crate::disk::{IoBuffer, LentToDevice};
use crate::units::to_usize;
use rok_nbd::Request;
use slab::Slab;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;
use uuid::Uuid;

/// A write whose payload is being received.
pub(super) struct Incoming {
    pub request: Request,
    pub buffer: IoBuffer,
    pub filled: usize,
}

impl Incoming {
    pub(super) fn len(&self) -> usize {
        payload_len(&self.request)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.filled == self.len()
    }
}

/// Length of the data of a READ or WRITE in bytes.
pub(super) fn payload_len(request: &Request) -> usize {
    to_usize(request.length)
}

/// A request that the engine works on.
pub(super) struct Pending {
    pub request: Request,
    pub buffer: Option<IoBuffer>,
    /// What a BLOCK_STATUS asks for.
    pub status: Option<Box<PendingStatus>>,
}

/// Where a connection stands.
pub(super) enum Phase {
    /// Choosing an export. The state machine is away while a blocking thread has it.
    Handshake { handshake: Option<Box<Negotiation>>, deadline: Instant, step: HandshakeStep },
    /// Serving requests.
    Transmission(Session),
    /// Neither any more: the connection ends.
    Over,
}

/// What a handshake does once its output is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HandshakeStep {
    Receive,
    Advance,
}

/// Where a receive goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Stream,
    Payload,
    Records,
}

/// The encryption of a connection that has an export open.
pub(super) struct Encrypted {
    pub stream: Box<TlsStream>,
    /// Where records are received.
    records: IoBuffer,
}

impl Encrypted {
    pub(super) fn new(stream: Box<TlsStream>) -> Self {
        Self { stream, records: IoBuffer::allocate(RECORDS_BYTES) }
    }
}

/// A connection.
pub(super) struct Connection {
    socket: OwnedFd,
    pub phase: Phase,
    pub stream: Stream,
    pub incoming: Option<Incoming>,
    /// Bytes of a refused payload that are still to come.
    pub drop_left: usize,
    pub pending: Slab<Pending>,
    pub sender: Sender,
    /// Requests that are not answered: with the engine, or their reply on its way.
    pub open_requests: usize,
    /// What these hold in buffers.
    pub held_bytes: usize,
    /// The next request waits for others to be answered.
    pub is_blocked: bool,
    /// No more requests are taken; ends when all are answered.
    pub is_draining: bool,
    /// The socket is shut down; only waits for what is under way.
    pub is_broken: bool,
    /// A blocking thread works for it.
    pub has_job: bool,
    /// It is in the lane's list of connections to look at.
    pub is_dirty: bool,
    receiving: Option<(Target, LentToDevice)>,
    /// A wait for the peer's end is in the kernel.
    is_watched: bool,
    /// The peer sends nothing more.
    has_hung_up: bool,
    /// The engine was told that it leaves.
    pub has_left: bool,
    pub limits: NbdLimits,
    /// Its encryption, once an export is chosen.
    pub tls: Option<Encrypted>,
    /// Receives and sends that have ended.
    progress: u64,
    /// When the last look at deadlines found other progress than the one before, and what that was.
    last_seen: (Instant, u64),
    /// Whom its end is told, if it is one of the kernel's client.
    kernel_link: Option<KernelLink>,
    /// Clients need one; the kernel's does not.
    _permit: Option<Permit>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, permit: Permit, client: Client, limits: NbdLimits, now: Instant) -> Self {
        let handshake = Some(Box::new(Negotiation::new(client, &limits)));
        let deadline = now + limits.handshake_time_max;
        let phase = Phase::Handshake { handshake, deadline, step: HandshakeStep::Advance };
        Self { _permit: Some(permit), ..Self::begin(socket, phase, limits, now) }
    }

    /// One of the kernel's client, which begins with its requests.
    pub(super) fn of_kernel(
        socket: OwnedFd,
        session: Session,
        link: KernelLink,
        limits: NbdLimits,
        now: Instant,
    ) -> Self {
        Self { kernel_link: Some(link), ..Self::begin(socket, Phase::Transmission(session), limits, now) }
    }

    fn begin(socket: OwnedFd, phase: Phase, limits: NbdLimits, now: Instant) -> Self {
        Self {
            socket,
            phase,
            stream: Stream::new(),
            incoming: None,
            drop_left: 0,
            pending: Slab::new(),
            sender: Sender::default(),
            open_requests: 0,
            held_bytes: 0,
            is_blocked: false,
            is_draining: false,
            is_broken: false,
            has_job: false,
            is_dirty: false,
            receiving: None,
            is_watched: false,
            has_hung_up: false,
            has_left: false,
            limits,
            tls: None,
            progress: 0,
            last_seen: (now, 0),
            kernel_link: None,
            _permit: None,
        }
    }

    /// The next receive, if there is to be one.
    pub(super) fn begin_receive(&mut self, buffers: &mut Buffers) -> Option<Call> {
        if !self.wants_receive() {
            return None;
        }
        let (target, loan) = if let Some(tls) = &self.tls {
            (Target::Records, tls.records.slice(0..RECORDS_BYTES).lend_to_device())
        } else if let Some(incoming) = &self.incoming {
            (Target::Payload, incoming.buffer.slice(incoming.filled..incoming.len()).lend_to_device())
        } else {
            self.stream.make_room(self.open_requests == 0, buffers);
            (Target::Stream, self.stream.room().lend_to_device())
        };
        let is_whole = target == Target::Payload;
        let call = Call::Receive { socket: self.raw_fd(), memory: loan.as_mut_ptr(), len: loan.len(), is_whole };
        self.receiving = Some((target, loan));
        Some(call)
    }

    fn wants_receive(&self) -> bool {
        let is_for_phase = match &self.phase {
            Phase::Handshake { step, .. } => *step == HandshakeStep::Receive && !self.has_job && self.sender.is_idle(),
            Phase::Transmission(_) => {
                !self.is_blocked && self.tls.as_ref().is_none_or(|tls| tls.stream.plain.is_empty())
            }
            Phase::Over => false,
        };
        is_for_phase && !self.is_broken && !self.is_draining && self.receiving.is_none()
    }

    /// Whether a receive is in the kernel.
    pub(super) const fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    /// The wait for the peer's end, if there is to be one: while nothing is received, nobody else would see it, and requests
    /// that wait for space would wait for ever.
    pub(super) fn begin_watch(&mut self) -> Option<Call> {
        let is_due = self.is_blocked && !self.is_watched && !self.has_hung_up && !self.is_broken;
        self.is_watched |= is_due;
        is_due.then(|| Call::AwaitHangup { socket: self.raw_fd() })
    }

    /// Takes the end of that wait.
    pub(super) const fn hung_up(&mut self) {
        (self.is_watched, self.has_hung_up) = (false, true);
    }

    /// Whether nobody may be there for the answers any more: what waits for space is not to be waited for.
    pub(super) const fn is_leaving(&self) -> bool {
        self.has_hung_up || self.is_draining || self.is_broken
    }

    /// Takes the result of a receive.
    pub(super) fn received(&mut self, result: i32) {
        self.progress += 1;
        let (target, loan) = self.receiving.take().expect("a completed receive was under way");
        drop(loan);
        match usize::try_from(result) {
            // The peer ends; what it asked for before is still answered.
            Ok(0) => self.is_draining = true,
            Ok(len) => match (target, &mut self.incoming) {
                (Target::Records, _) => self.received_records(len),
                (Target::Payload, Some(incoming)) => incoming.filled += len,
                _ => self.stream.received(len),
            },
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => {}
            Err(_) => self.break_off(),
        }
        if let Phase::Handshake { step, .. } = &mut self.phase {
            *step = HandshakeStep::Advance;
        }
    }

    /// Decrypts what was received.
    fn received_records(&mut self, len: usize) {
        let tls = self.tls.as_mut().expect("records are received on encrypted connections");
        let received = tls.records.slice(0..len).with_bytes(|bytes| tls.stream.receive(bytes));
        // What it sent before is still answered.
        self.is_draining |= tls.stream.is_closed;
        if let Err(error) = received {
            tracing::debug!(%error, "a connection broke the rules of TLS");
            self.break_off();
        }
    }

    /// Puts what was decrypted where requests are looked for; whether that was anything.
    pub(super) fn take_decrypted(&mut self, buffers: &mut Buffers) -> bool {
        let Some(tls) = self.tls.as_mut().filter(|tls| !tls.stream.plain.is_empty()) else { return false };
        self.stream.make_room(false, buffers);
        let len = tls.stream.plain.len().min(self.stream.buffer.len() - self.stream.end);
        let target = self.stream.buffer.slice(self.stream.end..self.stream.end + len);
        target.with_bytes_mut(|bytes| bytes.copy_from_slice(&tls.stream.plain[..len]));
        tls.stream.plain.drain(..len);
        self.stream.received(len);
        len > 0
    }

    /// The next send, if there is something to send.
    pub(super) fn begin_send(&mut self) -> Option<Call> {
        let fd = self.raw_fd();
        if self.is_broken {
            return None;
        }
        let is_answered = self.is_answered();
        if let Some(tls) = self.tls.as_mut().filter(|_| is_answered) {
            tls.stream.say_goodbye();
        }
        self.sender.begin(fd, self.tls.as_mut().map(|tls| &mut *tls.stream))
    }

    /// Takes the result of a send; maybe there is a rest to send.
    pub(super) fn sent(&mut self, result: i32, buffers: &mut Buffers) -> Option<Call> {
        self.progress += 1;
        let fd = self.raw_fd();
        let sent_bytes = match usize::try_from(result) {
            Ok(sent_bytes) => sent_bytes,
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => 0,
            Err(_) => {
                self.sender.abandon();
                self.break_off();
                return None;
            }
        };
        match self.sender.advance(sent_bytes, fd) {
            Err(rest) if !self.is_broken => Some(rest),
            Err(_) => {
                self.sender.abandon();
                None
            }
            Ok(Sent { requests, held_bytes }) => {
                self.open_requests -= requests;
                self.held_bytes -= held_bytes;
                self.sender.recycle(buffers);
                None
            }
        }
    }

    /// Queues a reply, unless nobody is there to read it.
    pub(super) fn reply(&mut self, reply: Reply) {
        if !self.is_broken {
            self.sender.push(reply);
        }
    }

    /// Queues bytes that are no reply to a request, and are encrypted already if they have to be.
    pub(super) fn reply_bytes(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.reply(Reply { head: Head::Raw(bytes), payload: None, held_bytes: 0, is_request: false });
        }
    }

    /// Shuts the socket down, so that what the kernel has of it completes.
    pub(super) fn break_off(&mut self) {
        if self.is_broken {
            return;
        }
        self.is_broken = true;
        // An error says that the peer did so already.
        if shut_down_socket(&self.socket).is_err() {
            tracing::debug!("a connection was gone already");
        }
    }

    /// Takes no more requests, since the server ends. The kernel's client gets no answer any more: those that fail because of
    /// the end are for the next server, to which it sends all that were not answered.
    pub(super) fn begin_end(&mut self) {
        self.is_draining = true;
        if self.kernel_link.is_some() {
            self.break_off();
        }
    }

    /// Whom its end is told, if it is one of the kernel's client.
    pub(super) const fn kernel_link(&self) -> Option<&KernelLink> {
        self.kernel_link.as_ref()
    }

    /// Whether it is a client's that has the volume open.
    pub(super) fn has_open(&self, volume: Uuid) -> bool {
        let Phase::Transmission(session) = &self.phase else { return false };
        self.kernel_link.is_none() && session.target.volume().is_some_and(|open| open.volume().id() == volume)
    }

    /// Whether it has to do something within some time.
    pub(super) fn has_deadline(&self) -> bool {
        match &self.phase {
            Phase::Handshake { .. } => true,
            Phase::Transmission(_) => self.limits.idle_time_max.is_some() || self.is_midway(),
            Phase::Over => self.sender.is_busy(),
        }
    }

    /// Whether the client owes the rest of a message, or has to take replies.
    fn is_midway(&self) -> bool {
        let is_message_cut = self.incoming.is_some() || self.drop_left > 0 || self.stream.len() > 0;
        self.sender.is_busy() || (is_message_cut && !self.is_blocked)
    }

    /// Whether it has a deadline, and whether that is over. Looks at what happened since it was called last.
    pub(super) fn look_at_deadline(&mut self, now: Instant) -> (bool, bool) {
        let is_waiting_for_client = self.is_midway() || self.open_requests == 0;
        if self.last_seen.1 != self.progress || !is_waiting_for_client {
            self.last_seen = (now, self.progress);
        }
        let silence = now.saturating_duration_since(self.last_seen.0);
        let is_late = match &self.phase {
            Phase::Handshake { deadline, .. } => *deadline <= now,
            Phase::Transmission(_) | Phase::Over if self.is_midway() => silence >= self.limits.stall_time_max,
            Phase::Transmission(_) => self.limits.idle_time_max.is_some_and(|time_max| silence >= time_max),
            Phase::Over => false,
        };
        (self.has_deadline(), is_late)
    }

    /// Whether all that was asked for is answered, and nothing more will be.
    pub(super) fn is_drained(&self) -> bool {
        self.is_answered() && !self.tls.as_ref().is_some_and(|tls| tls.stream.has_output())
    }

    fn is_answered(&self) -> bool {
        // A write whose payload never came is not answered.
        let answerable = self.open_requests - usize::from(self.incoming.is_some());
        self.is_draining && answerable == 0 && !self.has_job && self.sender.is_idle()
    }

    /// Whether nothing of it is with the kernel, the engine or a thread, and it can be dropped.
    pub(super) fn is_over(&self) -> bool {
        let is_ended = self.is_broken || self.is_drained();
        let is_in_kernel = self.receiving.is_some() || self.is_watched || self.sender.is_busy();
        is_ended && !is_in_kernel && self.pending.is_empty() && !self.has_job
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Ends both directions of a socket.
fn shut_down_socket(socket: &OwnedFd) -> std::io::Result<()> {
    // A clone of a unix stream's type works for sockets of every family: the call looks at the descriptor only.
    std::os::unix::net::UnixStream::from(socket.try_clone()?).shutdown(std::net::Shutdown::Both)
}
