//! A small NBD client over a unix socket: requests go out without waiting, replies come back in any order.
//!
//! What breaks the protocol panics, so that it is never taken for the end of a killed server; only a connection that
//! ended is an `io::Error`. Every wait is bounded.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rok_nbd::client::{ChunkHeader, ExportInfo, Handshake, Outcome, ReadContent, Reply, SimpleReply};
use rok_nbd::{ChunkKind, CommandFlags, Request, RequestForm, RequestKind, WireError};

use crate::support::WAIT_MAX;

/// Received at once at most: the reply to a long read comes in few pieces.
const RECEIVE_BYTES: usize = 256 << 10;

/// A connection that has an export open.
pub struct NbdClient {
    stream: UnixStream,
    /// What came and is not understood yet.
    input: Vec<u8>,
    in_flight: HashMap<u64, InFlight>,
    next_cookie: u64,
    info: ExportInfo,
}

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// The request.
    pub request: Request,
    /// What a read gave (nothing for other requests), or the server's error.
    pub result: Result<Vec<u8>, WireError>,
}

struct InFlight {
    request: Request,
    content: ReadContent,
    data: Vec<u8>,
    error: Option<WireError>,
}

impl NbdClient {
    /// Opens `export` with structured replies.
    ///
    /// # Errors
    /// If nobody listens at `socket`, the server refuses, or the connection ends.
    ///
    /// # Panics
    /// If the server breaks the protocol.
    pub fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        stream.set_write_timeout(Some(WAIT_MAX))?;
        let mut client =
            Self { stream, input: Vec::new(), in_flight: HashMap::new(), next_cookie: 0, info: ExportInfo::default() };
        let mut handshake = Handshake::new();
        let mut output = Vec::new();
        let outcome = client.negotiate(&mut handshake, &mut output)?;
        assert_eq!(outcome, Outcome::Ready);
        handshake.request_structured_replies(&mut output);
        let outcome = client.negotiate(&mut handshake, &mut output)?;
        assert_eq!(outcome, Outcome::StructuredReplies);
        handshake.go(export, &mut output).expect("the name can be sent");
        match client.negotiate(&mut handshake, &mut output)? {
            Outcome::Transmission(info) => client.info = *info,
            other => return Err(io::Error::other(format!("The server did not open {export}: {other:?}"))),
        }
        Ok(client)
    }

    /// Size of the export in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.info.size_bytes
    }

    /// Requests without a reply yet.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends a request; its cookie. `payload` is empty unless it is a write.
    ///
    /// # Errors
    /// If the connection ended.
    pub fn submit(
        &mut self,
        kind: RequestKind,
        flags: CommandFlags,
        (offset, length): (u64, u32),
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = Request { form: RequestForm::Compact, flags, kind, cookie, offset, length: u64::from(length) };
        let payload_bytes = if kind == RequestKind::Write { to_usize(length) } else { 0 };
        assert_eq!(payload.len(), payload_bytes, "the payload is as long as the request says");
        let read_bytes = if kind == RequestKind::Read { to_usize(length) } else { 0 };
        let in_flight =
            InFlight { request, content: ReadContent::new(&request), data: vec![0; read_bytes], error: None };
        self.in_flight.insert(cookie, in_flight);
        let mut message = request.encode().to_vec();
        message.extend_from_slice(payload);
        self.stream.write_all(&message)?;
        Ok(cookie)
    }

    /// Waits for the next reply that is complete.
    ///
    /// # Errors
    /// If the connection ended.
    pub fn complete(&mut self) -> io::Result<Completion> {
        assert!(!self.in_flight.is_empty(), "nothing will be answered");
        loop {
            if let Some(completion) = self.take_reply() {
                return Ok(completion);
            }
            self.receive()?;
        }
    }

    /// Sends one request and waits for its end; nothing else may be in flight.
    ///
    /// # Errors
    /// If the connection ended.
    pub fn call(
        &mut self,
        kind: RequestKind,
        range: (u64, u32),
        payload: &[u8],
    ) -> io::Result<Result<Vec<u8>, WireError>> {
        assert!(self.in_flight.is_empty(), "the reply would be that of another request");
        self.submit(kind, CommandFlags::NONE, range, payload)?;
        Ok(self.complete()?.result)
    }

    /// Reads a range, which must succeed.
    #[track_caller]
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let result = self.call(RequestKind::Read, (offset, length), &[]).expect("the server goes on");
        result.unwrap_or_else(|error| panic!("reading {length} bytes at {offset} failed: {error:?}"))
    }

    /// Writes a range, which must succeed.
    #[track_caller]
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).expect("a payload has less than 4 GiB");
        let result = self.call(RequestKind::Write, (offset, length), data).expect("the server goes on");
        assert_eq!(result, Ok(Vec::new()), "writing {length} bytes at {offset}");
    }

    /// Trims a range, which must succeed.
    #[track_caller]
    pub fn trim(&mut self, offset: u64, length: u64) {
        let length = u32::try_from(length).expect("a request has less than 4 GiB");
        let result = self.call(RequestKind::Trim, (offset, length), &[]).expect("the server goes on");
        assert_eq!(result, Ok(Vec::new()), "trimming {length} bytes at {offset}");
    }

    /// Flushes, which must succeed.
    #[track_caller]
    pub fn flush(&mut self) {
        let result = self.call(RequestKind::Flush, (0, 0), &[]).expect("the server goes on");
        assert_eq!(result, Ok(Vec::new()), "flushing");
    }

    /// Ends the connection as a client should: the server has finished with it when this returns.
    pub fn disconnect(mut self) {
        assert!(self.in_flight.is_empty(), "replies are outstanding");
        self.submit(RequestKind::Disconnect, CommandFlags::NONE, (0, 0), &[]).expect("the server goes on");
        let rest = self.stream.read(&mut [0]).expect("the server closes");
        assert_eq!(rest, 0, "nothing follows a disconnect");
    }

    fn negotiate(&mut self, handshake: &mut Handshake, output: &mut Vec<u8>) -> io::Result<Outcome> {
        loop {
            let progress = handshake.advance(&self.input, output);
            self.input.drain(..progress.consumed);
            self.stream.write_all(output)?;
            output.clear();
            match progress.outcome {
                Outcome::NeedMore => self.receive()?,
                outcome => return Ok(outcome),
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let old_len = self.input.len();
        self.input.resize(old_len + RECEIVE_BYTES, 0);
        let result = self.stream.read(&mut self.input[old_len..]);
        self.input.truncate(old_len + result.as_ref().map_or(0, |count| *count));
        match result {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("{} requests have no reply after {WAIT_MAX:?}", self.in_flight.len())
            }
            Err(error) => Err(error),
        }
    }

    /// The next complete reply in what came. Chunks before it are taken in.
    fn take_reply(&mut self) -> Option<Completion> {
        let mut position = 0;
        let mut completion = None;
        while completion.is_none() {
            let parsed = Reply::parse(&self.input[position..]);
            let Some((reply, header_size)) = parsed.expect("the stream of replies is in step") else { break };
            let header = match reply {
                Reply::Chunk(header) => header,
                Reply::Simple(reply) => {
                    completion = Some(take_simple(&mut self.in_flight, reply));
                    position += header_size;
                    break;
                }
            };
            let begin = position + header_size;
            let end = begin + to_usize(header.payload_size_bytes);
            if end > self.input.len() {
                break;
            }
            completion = take_chunk(&mut self.in_flight, header, &self.input[begin..end]);
            position = end;
        }
        self.input.drain(..position);
        completion
    }
}

/// Ends a request with a simple reply, which is allowed for all but reads.
fn take_simple(in_flight: &mut HashMap<u64, InFlight>, reply: SimpleReply) -> Completion {
    let InFlight { request, .. } = in_flight.remove(&reply.cookie).expect("a reply answers a request in flight");
    assert_ne!(request.kind, RequestKind::Read, "structured replies were granted");
    Completion { request, result: reply.error.map_or(Ok(Vec::new()), Err) }
}

/// Takes in a chunk; the request's end if it was the last one.
fn take_chunk(in_flight: &mut HashMap<u64, InFlight>, header: ChunkHeader, payload: &[u8]) -> Option<Completion> {
    let request = in_flight.get_mut(&header.cookie).expect("a reply answers a request in flight");
    match header.kind {
        ChunkKind::None => {}
        ChunkKind::OffsetData | ChunkKind::OffsetHole => {
            let extent = header.extent(payload).expect("a content chunk is well-formed");
            let position = request.content.accept(extent).expect("content lies in the request, once");
            if header.kind == ChunkKind::OffsetData {
                let data = &payload[to_usize(header.prefix_size_bytes())..];
                request.data[position..position + data.len()].copy_from_slice(data);
            }
        }
        _ => request.error = Some(header.error(payload).expect("an error chunk is well-formed").error),
    }
    if !header.is_done {
        return None;
    }
    let InFlight { request, content, data, error } = in_flight.remove(&header.cookie).expect("it was found above");
    if let Some(error) = error {
        return Some(Completion { request, result: Err(error) });
    }
    if request.kind == RequestKind::Read {
        content.finish().expect("a read that succeeds is whole");
    }
    Some(Completion { request, result: Ok(data) })
}

fn to_usize(size: u32) -> usize {
    usize::try_from(size).expect("sizes of requests fit")
}
