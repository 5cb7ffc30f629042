//! The replies of a connection on their way out: all that are ready go in one vectored send.
//!
//! Invariant: from [`Sender::begin`] until [`Sender::advance`] says that the batch is sent (or [`Sender::abandon`] is
//! called, after the completion), headers, vectors, message and payloads stay where they are and unchanged. There
//! is one send at a time, so replies cannot interleave.

use super::buffers::Buffers;
use super::driver::Call;
use super::tls::TlsStream;
use crate::disk::{IoBuffer, LentForDevice};
use rok_nbd::ReplyHeader;
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// Replies that one send takes; each needs at most two vectors, and the kernel takes 1024.
const REPLIES_PER_SEND: usize = 256;

/// One reply.
pub(super) struct Reply {
    pub head: Head,
    /// What follows the head, and the whole buffer that it lies in.
    pub payload: Option<(IoBuffer, IoBuffer)>,
    /// What the request counts for in its connection's bound, in bytes.
    pub held_bytes: usize,
    /// Whether it answers a request.
    pub is_request: bool,
}

/// What a reply begins with.
pub(super) enum Head {
    Header(ReplyHeader),
    Bytes(Vec<u8>),
    /// Goes out as it is, also where everything else is encrypted: a handshake has encrypted it.
    Raw(Vec<u8>),
}

/// What a sent batch gives back.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub requests: usize,
    pub held_bytes: usize,
}

/// The sending side of a connection.
#[derive(Default)]
pub(super) struct Sender {
    waiting: VecDeque<Reply>,
    pieces: Vec<Piece>,
    heads: Vec<u8>,
    /// Whole buffers of the payloads under way.
    buffers: Vec<IoBuffer>,
    loans: Vec<LentForDevice>,
    vectors: Vec<libc::iovec>,
    /// Vectors that are wholly sent.
    vectors_done: usize,
    message: Option<Box<libc::msghdr>>,
    sent: Sent,
    is_busy: bool,
}

/// A piece of the stream, before it has an address.
enum Piece {
    Heads(usize),
    Payload,
}

impl Sender {
    pub(super) fn push(&mut self, reply: Reply) {
        self.waiting.push_back(reply);
    }

    /// Whether nothing waits or is under way.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_busy && self.waiting.is_empty()
    }

    /// Whether a send is in the kernel.
    pub(super) const fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Puts what waits into the next send; `None` if that is nothing or a send is under way.
    pub(super) fn begin(&mut self, socket: RawFd, tls: Option<&mut TlsStream>) -> Option<Call> {
        let is_due = !self.waiting.is_empty() || tls.as_ref().is_some_and(|tls| tls.has_output());
        if self.is_busy || !is_due {
            return None;
        }
        if let Some(tls) = tls {
            self.encrypt(tls);
            self.is_busy = true;
            return Some(self.call(socket));
        }
        for reply in self.waiting.drain(..self.waiting.len().min(REPLIES_PER_SEND)) {
            let start = self.heads.len();
            match &reply.head {
                Head::Header(header) => self.heads.extend_from_slice(header.as_bytes()),
                Head::Bytes(bytes) | Head::Raw(bytes) => self.heads.extend_from_slice(bytes),
            }
            let added = self.heads.len() - start;
            match self.pieces.last_mut() {
                Some(Piece::Heads(len)) => *len += added,
                _ => self.pieces.push(Piece::Heads(added)),
            }
            if let Some((payload, buffer)) = reply.payload {
                self.loans.push(payload.lend_for_device());
                self.buffers.push(buffer);
                self.pieces.push(Piece::Payload);
            }
            self.sent.requests += usize::from(reply.is_request);
            self.sent.held_bytes += reply.held_bytes;
        }
        self.address();
        self.is_busy = true;
        Some(self.call(socket))
    }

    /// Makes records of what waits, which are the one piece of the next send.
    fn encrypt(&mut self, tls: &mut TlsStream) {
        for reply in self.waiting.drain(..self.waiting.len().min(REPLIES_PER_SEND)) {
            match &reply.head {
                Head::Header(header) => tls.send(header.as_bytes()),
                Head::Bytes(bytes) => tls.send(bytes),
                Head::Raw(bytes) => {
                    tls.take_output(&mut self.heads);
                    self.heads.extend_from_slice(bytes);
                }
            }
            if let Some((payload, buffer)) = reply.payload {
                payload.with_bytes(|bytes| tls.send(bytes));
                drop(payload);
                self.buffers.push(buffer);
            }
            self.sent.requests += usize::from(reply.is_request);
            self.sent.held_bytes += reply.held_bytes;
        }
        tls.take_output(&mut self.heads);
        self.pieces.push(Piece::Heads(self.heads.len()));
        self.address();
    }

    /// Takes the result of a send: what the batch gives back if it is all sent, else the send of the rest.
    pub(super) fn advance(&mut self, mut sent_bytes: usize, socket: RawFd) -> Result<Sent, Call> {
        while let Some(vector) = self.vectors.get_mut(self.vectors_done) {
            if sent_bytes < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(sent_bytes);
                vector.iov_len -= sent_bytes;
                return Err(self.call(socket));
            }
            sent_bytes -= vector.iov_len;
            self.vectors_done += 1;
        }
        Ok(self.end())
    }

    /// Ends a send that failed; what waits is dropped.
    pub(super) fn abandon(&mut self) {
        self.end();
        self.waiting.clear();
    }

    /// Gives back the buffers of sends that ended.
    pub(super) fn recycle(&mut self, buffers: &mut Buffers) {
        if !self.is_busy {
            self.buffers.drain(..).for_each(|buffer| buffers.give(buffer));
        }
    }

    fn end(&mut self) -> Sent {
        self.is_busy = false;
        self.heads.clear();
        self.loans.clear();
        self.vectors.clear();
        self.vectors_done = 0;
        std::mem::take(&mut self.sent)
    }

    /// Gives each piece its address. The heads do not move any more.
    fn address(&mut self) {
        let mut head = 0;
        let mut loans = self.loans.iter();
        for piece in self.pieces.drain(..) {
            let (start, len) = match piece {
                Piece::Heads(len) => {
                    let start = self.heads[head..].as_ptr();
                    head += len;
                    (start, len)
                }
                Piece::Payload => {
                    let loan = loans.next().expect("each payload is lent");
                    (loan.as_ptr(), loan.len())
                }
            };
            self.vectors.push(libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len });
        }
    }

    fn call(&mut self, socket: RawFd) -> Call {
        let rest = &mut self.vectors[self.vectors_done..];
        let message = self.message.get_or_insert_with(|| Box::new(empty_message()));
        message.msg_iov = rest.as_mut_ptr();
        message.msg_iovlen = rest.len();
        Call::Send { socket, message: &raw const **message }
    }
}

fn empty_message() -> libc::msghdr {
    libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: std::ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}
