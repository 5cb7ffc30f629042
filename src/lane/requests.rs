//! From the bytes of a connection to requests of the engine, and from its answers to replies.

use super::buffers::Buffers;
use super::connection::{Connection, Incoming, Pending, Phase, payload_len};
use super::driver::LaneDisk;
use super::limits::{COPIED_PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX, REQUESTS_MAX};
use super::sender::{Head, Reply};
use crate::disk::IoBuffer;
use crate::error::IoError;
use crate::volume::{Completion, Engine, RemoveMode};
use rok_nbd::server::{Refusal, append_error, error_header, read_header};
use rok_nbd::{ReplyHeader, Request, RequestKind, WireError};
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
        let Pending { request, buffer } = self.pending.remove(cookie);
        let has_structured_replies = self.has_structured_replies();
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
            Ok(()) if request.kind == RequestKind::Read => read_header(&request, has_structured_replies),
            Ok(()) => ReplyHeader::simple(request.cookie, None),
            Err(error) => {
                let error = WireError::from_errno(error.errno(), request.is_fast_zero());
                error_header(request.cookie, error, has_structured_replies)
            }
        };
        self.reply(Reply { head: Head::Header(header), payload, held_bytes, is_request: true });
    }

    fn has_structured_replies(&self) -> bool {
        matches!(&self.phase, Phase::Transmission(session) if session.rules.has_structured_replies())
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
        let request = match there.with_bytes(Request::parse) {
            Ok(Some(request)) => request,
            Ok(None) => return Step::Starved,
            Err(error) => {
                tracing::debug!(%error, "a connection is out of step");
                self.break_off();
                return Step::Starved;
            }
        };
        if self.open_requests >= REQUESTS_MAX {
            return Step::Blocked;
        }
        let rules = session.rules;
        if let Err(refusal) = rules.check(&request) {
            self.stream.take(Request::SIZE);
            self.refuse(&request, refusal);
            return Step::Again;
        }
        let has_data = matches!(request.kind, RequestKind::Read | RequestKind::Write);
        let data_len = if has_data { payload_len(&request) } else { 0 };
        if self.held_bytes > 0 && self.held_bytes + data_len > PAYLOAD_BYTES_MAX {
            return Step::Blocked;
        }
        let is_write = request.kind == RequestKind::Write && data_len > 0;
        if is_write && data_len <= COPIED_PAYLOAD_BYTES_MAX && self.stream.len() < Request::SIZE + data_len {
            return Step::Starved;
        }
        self.stream.take(Request::SIZE);
        if request.kind == RequestKind::Disconnect {
            self.is_draining = true;
            return Step::Starved;
        }
        self.open_requests += 1;
        self.held_bytes += data_len;
        let buffer = (data_len > 0).then(|| service.buffers.take(data_len));
        match buffer {
            Some(buffer) if is_write => self.incoming = Some(Incoming { request, buffer, filled: 0 }),
            buffer => self.start(request, buffer, service),
        }
        Step::Again
    }

    /// Hands a request to the engine.
    fn start(&mut self, request: Request, buffer: Option<IoBuffer>, service: &Service<'_>) {
        if request.is_fast_zero() && !request.may_punch_hole() {
            return self.fail(&request, WireError::NotSupported, "Zeroing of provisioned space is not fast here");
        }
        let data = buffer.as_ref().map(|buffer| buffer.slice(0..payload_len(&request)));
        let cookie = self.pending.insert(Pending { request, buffer });
        let Phase::Transmission(session) = &self.phase else { unreachable!("requests come in this phase only") };
        let volume = session.volume.volume();
        let (engine, is_fua) = (service.engine, request.is_durable());
        let completion = Completion { owner: service.owner, cookie: crate::units::to_u64(cookie) };
        let range = (request.offset, u64::from(request.length));
        match (request.kind, data) {
            (RequestKind::Read, Some(data)) => engine.read(volume, request.offset, data, completion),
            (RequestKind::Write, Some(data)) => engine.write(volume, request.offset, data, is_fua, completion),
            (RequestKind::Flush, _) => engine.flush(completion),
            (RequestKind::Trim, _) => engine.remove(volume, range, RemoveMode::Discard, is_fua, completion),
            (RequestKind::WriteZeroes, _) => {
                let mode = if request.may_punch_hole() { RemoveMode::Zero } else { RemoveMode::ZeroProvisioned };
                engine.remove(volume, range, mode, is_fua, completion);
            }
            // A read or write of nothing.
            _ => self.answered(cookie, Ok(()), &mut Buffers::default()),
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
        append_error(&mut bytes, request.cookie, error, message, self.has_structured_replies());
        self.reply(Reply { head: Head::Bytes(bytes), payload: None, held_bytes: 0, is_request: true });
    }
}
