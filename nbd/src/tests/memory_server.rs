//! A whole NBD server over one vector, written as an owner of this crate would write it, and a client on the other
//! end of a pipe of bytes.

use super::catalog::{Catalog, catalog};
use crate::client;
use crate::client::{ExportInfo, ReadContent, Reply, StatusChunk};
use crate::server::{self, Negotiated, ReadReply, Refusal, RequestRules};
use crate::{CommandFlags, ReplyForm, ReplyTo, Request, RequestForm, RequestKind, StatusExtent, WireError};

/// The server's side of one connection.
pub(super) struct MemoryServer {
    handshake: server::Handshake,
    catalog: Catalog,
    state: Option<(Negotiated, RequestRules)>,
    pub(super) data: Vec<u8>,
    /// Bytes that came and were not dealt with.
    input: Vec<u8>,
    drain_size_bytes: usize,
    is_closed: bool,
    /// Answer READ in pieces of this size, those that are zeroes as holes.
    pub(super) piece_size_bytes: Option<u32>,
}

impl MemoryServer {
    fn new() -> Self {
        let catalog = catalog();
        let size = usize::try_from(catalog.exports[0].size_bytes).expect("fits");
        Self {
            handshake: server::Handshake::default(),
            catalog,
            state: None,
            data: vec![0; size],
            input: Vec::new(),
            drain_size_bytes: 0,
            is_closed: false,
            piece_size_bytes: None,
        }
    }

    /// Deals with `input`, and appends the replies.
    fn receive(&mut self, input: &[u8], output: &mut Vec<u8>) {
        self.input.extend_from_slice(input);
        if self.state.is_none() {
            self.negotiate(output);
        }
        while self.state.is_some() && !self.is_closed && self.serve_one(output) {}
    }

    fn negotiate(&mut self, output: &mut Vec<u8>) {
        let progress = self.handshake.advance(&self.input, output, &self.catalog);
        self.input.drain(..progress.consumed);
        match progress.outcome {
            server::Outcome::Transmission(negotiated) => {
                let rules = negotiated.rules();
                self.state = Some((*negotiated, rules));
            }
            server::Outcome::Close(_) => self.is_closed = true,
            server::Outcome::NeedMore | server::Outcome::StartTls => {}
            server::Outcome::SendFirst => panic!("the test's output stays below the bound"),
        }
    }

    /// Whether there was a whole request.
    fn serve_one(&mut self, output: &mut Vec<u8>) -> bool {
        let dropped = self.drain_size_bytes.min(self.input.len());
        self.input.drain(..dropped);
        self.drain_size_bytes -= dropped;
        let rules = self.state.as_ref().expect("negotiated").1;
        let front = rules.request_form().size();
        let Ok(Some(request)) = Request::parse(&self.input, rules.request_form()) else { return false };
        match rules.check(&request) {
            Err(Refusal::Close) => self.is_closed = true,
            Err(Refusal::Answer { error, message, drain_size_bytes }) => {
                self.input.drain(..front);
                self.drain_size_bytes = usize::try_from(drain_size_bytes).expect("fits");
                rules.reply_to(&request).append_error(output, error, message);
            }
            Ok(()) => {
                let payload_size = usize::try_from(request.payload_size_bytes()).expect("fits");
                if self.input.len() < front + payload_size {
                    return false;
                }
                let message: Vec<u8> = self.input.drain(..front + payload_size).collect();
                self.execute(&request, &message[front..], rules, output);
            }
        }
        true
    }

    fn execute(&mut self, request: &Request, payload: &[u8], rules: RequestRules, output: &mut Vec<u8>) {
        let begin = usize::try_from(request.offset).unwrap_or(0);
        let length = if request.kind == RequestKind::BlockStatus { 0 } else { request.length };
        let range = begin..begin + usize::try_from(length).expect("fits");
        match request.kind {
            RequestKind::Disconnect => {
                self.is_closed = true;
                return;
            }
            RequestKind::Read => return self.read(request, rules, output),
            RequestKind::BlockStatus => return self.tell_status(request, payload, rules, output),
            RequestKind::Write => self.data[range].copy_from_slice(payload),
            RequestKind::Trim | RequestKind::WriteZeroes => self.data[range].fill(0),
            RequestKind::Flush | RequestKind::Cache => {}
            RequestKind::Unknown(number) => panic!("unknown command {number} passed the check"),
        }
        output.extend_from_slice(rules.reply_to(request).success().as_bytes());
    }

    fn read(&self, request: &Request, rules: RequestRules, output: &mut Vec<u8>) {
        let begin = usize::try_from(request.offset).expect("fits");
        let data = &self.data[begin..begin + usize::try_from(request.length).expect("fits")];
        let may_divide = rules.reply_form() != ReplyForm::Simple && !request.is_unfragmented();
        let Some(piece_size) = self.piece_size_bytes.filter(|_| may_divide && request.length > 0) else {
            output.extend_from_slice(rules.reply_to(request).read(request).as_bytes());
            output.extend_from_slice(data);
            return;
        };
        let mut reply = ReadReply::new(rules.reply_form(), request);
        for piece in data.chunks(usize::try_from(piece_size).expect("fits")) {
            let size = u32::try_from(piece.len()).expect("fits");
            if piece.iter().all(|byte| *byte == 0) {
                output.extend_from_slice(reply.hole(size).expect("in order").as_bytes());
            } else {
                output.extend_from_slice(reply.data(size).expect("in order").as_bytes());
                output.extend_from_slice(piece);
            }
        }
    }

    /// Each byte is a run of its own, so that the crate has something to merge.
    fn tell_status(&self, request: &Request, payload: &[u8], rules: RequestRules, output: &mut Vec<u8>) {
        let to: ReplyTo = rules.reply_to(request);
        let asked = match rules.status_request(request, payload) {
            Ok(asked) => asked,
            Err((error, message)) => return to.append_error(output, error, message),
        };
        let begin = usize::try_from(request.offset).expect("fits");
        let bytes = &self.data[begin..begin + usize::try_from(asked.size_bytes).expect("fits")];
        for (index, id) in asked.context_ids.iter().enumerate() {
            let status = |byte: &u8| if *byte == 0 { u64::from(*id) } else { 0 };
            let extents = bytes.iter().map(|byte| StatusExtent { size_bytes: 1, status: status(byte) });
            to.append_status(output, *id, extents, index + 1 == asked.context_ids.len());
        }
    }
}

/// A client and the server it talks to.
pub(super) struct Pair {
    pub(super) server: MemoryServer,
    pub(super) client: client::Handshake,
    /// Bytes from the server that the client has not dealt with.
    inbox: Vec<u8>,
    cookie: u64,
}

impl Pair {
    /// A pair that has exchanged greetings.
    pub(super) fn new() -> Self {
        let mut pair =
            Self { server: MemoryServer::new(), client: client::Handshake::new(), inbox: Vec::new(), cookie: 0 };
        pair.deliver(&[]);
        assert_eq!(pair.settle(), client::Outcome::Ready);
        pair
    }

    /// A pair that has agreed on a form.
    pub(super) fn with_form(form: ReplyForm) -> Self {
        let mut pair = Self::new();
        match form {
            ReplyForm::Simple => {}
            ReplyForm::Structured => {
                let outcome = pair.wish(client::Handshake::request_structured_replies);
                assert_eq!(outcome, client::Outcome::StructuredReplies);
            }
            ReplyForm::Extended => {
                let outcome = pair.wish(client::Handshake::request_extended_headers);
                assert_eq!(outcome, client::Outcome::ExtendedHeaders);
            }
        }
        pair
    }

    /// A pair in the transmission phase on `vol1`.
    pub(super) fn connected(form: ReplyForm) -> Self {
        let mut pair = Self::with_form(form);
        pair.go("vol1");
        pair
    }

    pub(super) fn go(&mut self, name: &str) -> ExportInfo {
        match self.wish(|client, output| client.go(name, output).expect("a short name")) {
            client::Outcome::Transmission(info) => *info,
            other => panic!("{name} was not opened: {other:?}"),
        }
    }

    /// Sends a wish; what came of it.
    pub(super) fn wish(&mut self, wish: impl FnOnce(&mut client::Handshake, &mut Vec<u8>)) -> client::Outcome {
        let mut output = Vec::new();
        wish(&mut self.client, &mut output);
        self.deliver(&output);
        self.settle()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.server.is_closed
    }

    pub(super) fn deliver(&mut self, bytes: &[u8]) {
        self.server.receive(bytes, &mut self.inbox);
    }

    fn settle(&mut self) -> client::Outcome {
        let mut output = Vec::new();
        let progress = self.client.advance(&self.inbox, &mut output);
        self.inbox.drain(..progress.consumed);
        self.deliver(&output);
        progress.outcome
    }

    fn request(
        &mut self,
        kind: RequestKind,
        flags: CommandFlags,
        (offset, length): (u64, u64),
        payload: &[u8],
    ) -> Request {
        self.cookie += 1;
        let form = match self.client.reply_form() {
            ReplyForm::Extended => RequestForm::Extended,
            ReplyForm::Simple | ReplyForm::Structured => RequestForm::Compact,
        };
        let request = Request { form, flags, kind, cookie: self.cookie, offset, length };
        self.deliver(&[request.encode().as_slice(), payload].concat());
        request
    }

    /// Sends a request and checks that its reply is whole: the bytes it returned, or its error with the server's
    /// message.
    pub(super) fn call(
        &mut self,
        kind: RequestKind,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<Vec<u8>, (WireError, String)> {
        let request = self.request(kind, flags, (offset, length), payload);
        let result = self.reply_to(&request);
        assert!(self.inbox.is_empty(), "bytes behind the reply");
        result
    }

    /// Sends a BLOCK_STATUS: what each context says, or the error.
    pub(super) fn status(
        &mut self,
        flags: CommandFlags,
        range: (u64, u64),
        payload: &[u8],
    ) -> Result<Vec<StatusChunk>, WireError> {
        let request = self.request(RequestKind::BlockStatus, flags, range, payload);
        let mut chunks = Vec::new();
        loop {
            let Some((Reply::Chunk(header), size)) = Reply::parse(&self.inbox).expect("in step") else {
                panic!("no chunk");
            };
            let end = size + usize::try_from(header.payload_size_bytes).expect("fits");
            let payload: Vec<u8> = self.inbox.drain(..end).skip(size).collect();
            assert_eq!(header.cookie, request.cookie);
            assert!(header.request_offset.is_none_or(|offset| offset == request.offset));
            if header.kind.is_error() {
                return Err(header.error(&payload).expect("well formed").error);
            }
            chunks.push(header.status(&payload).expect("well formed"));
            if header.is_done {
                return Ok(chunks);
            }
        }
    }

    fn reply_to(&mut self, request: &Request) -> Result<Vec<u8>, (WireError, String)> {
        let mut content = ReadContent::new(request);
        let read_size = if request.kind == RequestKind::Read { request.length } else { 0 };
        let mut data = vec![0xaa; usize::try_from(read_size).expect("fits")];
        loop {
            let (reply, size) = Reply::parse(&self.inbox).expect("in step").expect("a whole reply");
            self.inbox.drain(..size);
            match reply {
                Reply::Simple(reply) => {
                    assert_eq!(reply.cookie, request.cookie);
                    if let Some(error) = reply.error {
                        return Err((error, String::new()));
                    }
                    return Ok(self.inbox.drain(..data.len()).collect());
                }
                Reply::Chunk(header) => {
                    assert_eq!(header.cookie, request.cookie);
                    assert!(header.request_offset.is_none_or(|offset| offset == request.offset));
                    let payload_size = usize::try_from(header.payload_size_bytes).expect("fits");
                    let payload: Vec<u8> = self.inbox.drain(..payload_size).collect();
                    if header.kind.is_error() {
                        let chunk = header.error(&payload).expect("well formed");
                        assert!(header.is_done);
                        return Err((chunk.error, chunk.message.to_owned()));
                    }
                    if let Ok(extent) = header.extent(&payload) {
                        let position = content.accept(extent).expect("in the request");
                        let end = position + usize::try_from(extent.size_bytes).expect("fits");
                        match header.prefix_size_bytes() {
                            8 => data[position..end].copy_from_slice(&payload[8..]),
                            _ => data[position..end].fill(0),
                        }
                    }
                    if header.is_done {
                        if request.kind == RequestKind::Read {
                            content.finish().expect("every byte came");
                        }
                        return Ok(data);
                    }
                }
            }
        }
    }
}
