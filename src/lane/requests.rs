//! From the bytes of a connection to requests of the engine, and from its answers to replies.

use super::buffers::Buffers;
use super::connection::{Connection, Incoming, Pending, Phase, payload_len};
use super::driver::LaneDisk;
use super::limits::{COPIED_PAYLOAD_BYTES_MAX, STATUS_BYTES};
use super::sender::{Head, Reply};
use super::status::PendingStatus;
use super::target::ExportTarget;
use crate::disk::IoBuffer;
use crate::error::IoError;
use crate::units::{to_u64, to_usize};
use crate::volume::{Completion, Engine, RemoveMode};
use rok_nbd::server::Refusal;
use rok_nbd::{ReplyForm, ReplyTo, Request, RequestKind, WireError};
use std::rc::Rc;

/// What requests are handed to.
pub(super) struct Service<'a> {
    pub engine: &'a Rc<Engine<LaneDisk>>,
    pub buffers: &'a mut Buffers,
    /// The connection's place in the lane.
    pub owner: u32,
}

/// What one step of parsing came to.
#[derive(PartialEq, Eq)]
enum Step {
    Again,
    /// More bytes are needed.
    Starved,
    /// Other requests must be answered first.
    Blocked,
}

impl Connection {
    /// Takes as many requests as there are and may be under way.
    pub(super) fn take_requests(&mut self, service: &mut Service<'_>) {
        // What is being received is not looked at; and there was nothing left to take when the receive began.
        if self.is_receiving() {
            return;
        }
        self.is_blocked = false;
        self.take_decrypted(service.buffers);
        while !self.is_broken && !self.is_draining && matches!(self.phase, Phase::Transmission(_)) {
            let step = if self.drop_left > 0 {
                self.drop_payload()
            } else if self.incoming.is_some() {
                self.take_payload(service)
            } else {
                self.take_request(service)
            };
            match step {
                Step::Again => {}
                Step::Starved if self.take_decrypted(service.buffers) => {}
                Step::Starved => return,
                Step::Blocked => {
                    self.is_blocked = true;
                    return;
                }
            }
        }
    }

    /// Takes the engine's answer to a request.
    pub(super) fn answered(&mut self, cookie: usize, result: Result<(), IoError>, buffers: &mut Buffers) {
        let Pending { request, buffer, status } = self.pending.remove(cookie);
        let to = self.reply_to(&request);
        if let (Some(status), Ok(())) = (&status, result) {
            let head = Head::Bytes(status.reply(to));
            return self.reply(Reply { head, payload: None, held_bytes: STATUS_BYTES, is_request: true });
        }
        if status.is_some() {
            self.held_bytes -= STATUS_BYTES;
        }
        let mut held_bytes = 0;
        let mut payload = None;
        if let Some(buffer) = buffer {
            if request.kind == RequestKind::Read && result.is_ok() && !self.is_broken {
                held_bytes = payload_len(&request);
                payload = Some((buffer.slice(0..payload_len(&request)), buffer));
            } else {
                self.held_bytes -= payload_len(&request);
                buffers.give(buffer);
            }
        }
        let header = match result {
            Ok(()) if request.kind == RequestKind::Read => to.read(&request),
            Ok(()) => to.success(),
            Err(error) => {
                let error = WireError::from_errno(error.errno(), request.is_fast_zero());
                to.error(error)
            }
        };
        self.reply(Reply { head: Head::Header(header), payload, held_bytes, is_request: true });
    }

    fn reply_to(&self, request: &Request) -> ReplyTo {
        match &self.phase {
            Phase::Transmission(session) => session.rules.reply_to(request),
            // What is left to answer then has no reader.
            Phase::Handshake { .. } | Phase::Over => ReplyTo::new(ReplyForm::Simple, request),
        }
    }

    fn drop_payload(&mut self) -> Step {
        let len = self.drop_left.min(self.stream.len());
        self.stream.take(len);
        self.drop_left -= len;
        if self.drop_left > 0 { Step::Starved } else { Step::Again }
    }

    /// Goes on with a payload: what is in the stream first, the rest is received where it belongs.
    fn take_payload(&mut self, service: &mut Service<'_>) -> Step {
        let Some(mut incoming) = self.incoming.take() else { return Step::Again };
        let len = (incoming.len() - incoming.filled).min(self.stream.len());
        if len > 0 {
            let from = self.stream.buffer.slice(self.stream.start..self.stream.start + len);
            let target = incoming.buffer.slice(incoming.filled..incoming.filled + len);
            from.with_bytes(|bytes| target.with_bytes_mut(|target| target.copy_from_slice(bytes)));
            incoming.filled += len;
            self.stream.take(len);
        }
        if incoming.is_complete() {
            self.start(incoming.request, Some(incoming.buffer), service);
            return Step::Again;
        }
        self.incoming = Some(incoming);
        Step::Starved
    }

    fn take_request(&mut self, service: &mut Service<'_>) -> Step {
        let Phase::Transmission(session) = &self.phase else { return Step::Starved };
        let there = self.stream.buffer.slice(self.stream.start..self.stream.end);
        let rules = session.rules;
        let is_null = matches!(session.target, ExportTarget::Null(_));
        let front = rules.request_form().size();
        let request = match there.with_bytes(|bytes| Request::parse(bytes, rules.request_form())) {
            Ok(Some(request)) => request,
            Ok(None) => return Step::Starved,
            Err(error) => {
                tracing::debug!(%error, "a connection is out of step");
                self.break_off();
                return Step::Starved;
            }
        };
        if self.open_requests >= self.limits.requests_max {
            return Step::Blocked;
        }
        if let Err(refusal) = rules.check(&request) {
            self.stream.take(front);
            self.refuse(&request, refusal);
            return Step::Again;
        }
        if request.kind == RequestKind::BlockStatus {
            return self.take_status_request(request, service);
        }
        let has_data = matches!(request.kind, RequestKind::Read | RequestKind::Write);
        let data_len = if has_data { payload_len(&request) } else { 0 };
        if self.held_bytes > 0 && self.held_bytes + data_len > self.limits.payload_bytes_max {
            return Step::Blocked;
        }
        let is_write = request.kind == RequestKind::Write && data_len > 0;
        self.stream.is_between_payloads = is_write && data_len > COPIED_PAYLOAD_BYTES_MAX;
        if is_write && data_len <= COPIED_PAYLOAD_BYTES_MAX && self.stream.len() < front + data_len {
            return Step::Starved;
        }
        self.stream.take(front);
        if request.kind == RequestKind::Disconnect {
            if let Some(link) = self.kernel_link() {
                link.say_goodbye();
            }
            self.is_draining = true;
            return Step::Starved;
        }
        self.open_requests += 1;
        self.held_bytes += data_len;
        let take = if is_null && !is_write { Buffers::zeros } else { Buffers::take };
        let buffer = (data_len > 0).then(|| take(service.buffers, data_len));
        match buffer {
            Some(buffer) if is_write => self.incoming = Some(Incoming { request, buffer, filled: 0 }),
            buffer => self.start(request, buffer, service),
        }
        Step::Again
    }

    /// Takes a BLOCK_STATUS, whose payload is short if it has one.
    fn take_status_request(&mut self, request: Request, service: &Service<'_>) -> Step {
        let Phase::Transmission(session) = &self.phase else { return Step::Starved };
        let rules = session.rules;
        let (front, payload_len) = (rules.request_form().size(), to_usize(request.payload_size_bytes()));
        if self.held_bytes > 0 && self.held_bytes + STATUS_BYTES > self.limits.payload_bytes_max {
            return Step::Blocked;
        }
        if self.stream.len() < front + payload_len {
            return Step::Starved;
        }
        let payload_start = self.stream.start + front;
        let payload = self.stream.buffer.slice(payload_start..payload_start + payload_len);
        let asked = payload.with_bytes(|payload| rules.status_request(&request, payload));
        self.stream.take(front + payload_len);
        self.open_requests += 1;
        let asked = match asked {
            Ok(asked) => asked,
            Err((error, message)) => {
                self.fail(&request, error, message);
                return Step::Again;
            }
        };
        let Phase::Transmission(session) = &self.phase else { return Step::Starved };
        let ExportTarget::Volume(open) = &session.target else {
            unreachable!("the null export has no context to ask for")
        };
        let range = (request.offset, asked.size_bytes);
        let status = PendingStatus::new(asked, &session.contexts, request.wants_one_extent());
        let wanted = status.wanted();
        self.held_bytes += STATUS_BYTES;
        let cookie = self.pending.insert(Pending { request, buffer: None, status: Some(Box::new(status)) });
        let completion = Completion { owner: service.owner, cookie: to_u64(cookie) };
        service.engine.list_status(open.volume(), range, wanted, completion);
        Step::Again
    }

    /// Hands a request to the engine.
    fn start(&mut self, request: Request, buffer: Option<IoBuffer>, service: &mut Service<'_>) {
        if request.is_fast_zero() && !request.may_punch_hole() {
            return self.fail(&request, WireError::NotSupported, "Zeroing of provisioned space is not fast here");
        }
        let Phase::Transmission(session) = &self.phase else { unreachable!("requests come in this phase only") };
        let ExportTarget::Volume(open) = &session.target else {
            let cookie = self.pending.insert(Pending { request, buffer, status: None });
            return self.answered(cookie, Ok(()), service.buffers);
        };
        // Made for a volume only: a buffer that somebody has a slice of is not kept for the next request.
        let data = buffer.as_ref().map(|buffer| buffer.slice(0..payload_len(&request)));
        let cookie = self.pending.insert(Pending { request, buffer, status: None });
        let volume = open.volume();
        let (engine, is_fua) = (service.engine, request.is_durable());
        let completion = Completion { owner: service.owner, cookie: to_u64(cookie) };
        let range = (request.offset, request.length);
        match (request.kind, data) {
            (RequestKind::Read, Some(data)) => engine.read(volume, request.offset, data, completion),
            (RequestKind::Write, Some(data)) => engine.write(volume, request.offset, data, is_fua, completion),
            (RequestKind::Flush, _) => engine.flush(completion),
            (RequestKind::Cache, _) => engine.cache(volume, range, completion),
            (RequestKind::Trim, _) => engine.remove(volume, range, RemoveMode::Discard, is_fua, completion),
            (RequestKind::WriteZeroes, _) => {
                let mode = if request.may_punch_hole() { RemoveMode::Zero } else { RemoveMode::ZeroProvisioned };
                engine.remove(volume, range, mode, is_fua, completion);
            }
            // A read or write of nothing.
            _ => self.answered(cookie, Ok(()), service.buffers),
        }
    }

    fn refuse(&mut self, request: &Request, refusal: Refusal) {
        match refusal {
            Refusal::Answer { error, message, drain_size_bytes } => {
                self.drop_left = usize::try_from(drain_size_bytes).expect("a pointer has at least 32 bits");
                self.open_requests += 1;
                self.fail(request, error, message);
            }
            // The payload is too long to be skipped: what is under way is answered, then the connection ends.
            Refusal::Close => self.is_draining = true,
        }
    }

    fn fail(&mut self, request: &Request, error: WireError, message: &str) {
        let mut bytes = Vec::new();
        self.reply_to(request).append_error(&mut bytes, error, message);
        self.reply(Reply { head: Head::Bytes(bytes), payload: None, held_bytes: 0, is_request: true });
    }
}
