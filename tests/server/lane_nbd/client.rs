//! A client that says what it means, also nonsense.

use super::*;

/// What a request came to: the bytes of a read.
pub type Answer = Result<Vec<u8>, WireError>;

/// A client that says what it means, also nonsense.
pub struct Client {
    pub stream: UnixStream,
    pub form: ReplyForm,
    next_cookie: u64,
    reads: BTreeMap<u64, u32>,
    pub size_bytes: u64,
}

impl Client {
    pub fn connect(socket: &Path, name: &str, has_structured_replies: bool) -> Self {
        Self::try_connect(socket, name, has_structured_replies)
            .expect("the server answers")
            .expect("there is an export")
    }

    /// `None` if the server refuses the export.
    pub fn try_connect(socket: &Path, name: &str, has_structured_replies: bool) -> io::Result<Option<Self>> {
        let form = if has_structured_replies { ReplyForm::Structured } else { ReplyForm::Simple };
        Self::negotiate(socket, name, form, &[])
    }

    /// The same, with a form of replies and metadata contexts.
    pub fn negotiate(socket: &Path, name: &str, form: ReplyForm, contexts: &[&str]) -> io::Result<Option<Self>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut handshake = Handshake::new();
        let mut output = Vec::new();
        let mut byte = [0];
        loop {
            stream.write_all(&output)?;
            output.clear();
            stream.read_exact(&mut byte)?;
            match handshake.advance(&byte, &mut output).outcome {
                Outcome::NeedMore => {}
                Outcome::Ready if form == ReplyForm::Structured => handshake.request_structured_replies(&mut output),
                Outcome::Ready if form == ReplyForm::Extended => handshake.request_extended_headers(&mut output),
                Outcome::StructuredReplies | Outcome::ExtendedHeaders if !contexts.is_empty() => {
                    handshake.set_contexts(name, contexts, &mut output).expect("fit names");
                }
                Outcome::Ready | Outcome::StructuredReplies | Outcome::ExtendedHeaders | Outcome::Contexts(_) => {
                    handshake.go(name, &mut output).expect("a fit name");
                }
                Outcome::Transmission(info) => {
                    let size_bytes = info.size_bytes;
                    return Ok(Some(Self { stream, form, next_cookie: 1, reads: BTreeMap::new(), size_bytes }));
                }
                Outcome::Refused(..) => return Ok(None),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends a request; returns its cookie.
    pub fn send(&mut self, kind: RequestKind, flags: CommandFlags, (offset, length): (u64, u32), data: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if kind == RequestKind::Read {
            self.reads.insert(cookie, length);
        }
        let request = Request { form: self.request_form(), flags, kind, cookie, offset, length: u64::from(length) };
        let mut bytes = request.encode();
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes).expect("the server reads");
        cookie
    }

    pub const fn request_form(&self) -> RequestForm {
        match self.form {
            ReplyForm::Extended => RequestForm::Extended,
            ReplyForm::Simple | ReplyForm::Structured => RequestForm::Compact,
        }
    }

    /// The next answer, whichever request it is for.
    pub fn receive(&mut self) -> (u64, Answer) {
        self.try_receive().expect("the server answers")
    }

    pub fn try_receive(&mut self) -> io::Result<(u64, Answer)> {
        let mut head = self.take(16)?;
        while Reply::parse(&head).expect("in step").is_none() {
            head.extend(self.take(4)?);
        }
        match Reply::parse(&head).expect("in step").expect("whole").0 {
            Reply::Simple(reply) => {
                let length = self.reads.remove(&reply.cookie);
                let data = match (reply.error, length) {
                    (None, Some(length)) => self.take(length)?,
                    _ => Vec::new(),
                };
                Ok((reply.cookie, reply.error.map_or(Ok(data), Err)))
            }
            Reply::Chunk(chunk) => {
                assert!(chunk.is_done, "each reply is one chunk");
                self.reads.remove(&chunk.cookie);
                let payload = self.take(chunk.payload_size_bytes)?;
                let answer = match chunk.kind {
                    ChunkKind::OffsetData => Ok(payload[8..].to_vec()),
                    ChunkKind::None => Ok(Vec::new()),
                    _ => Err(chunk.error(&payload).expect("an error chunk").error),
                };
                Ok((chunk.cookie, answer))
            }
        }
    }

    pub fn take(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).expect("64 bits")];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn call(&mut self, kind: RequestKind, flags: CommandFlags, range: (u64, u32), data: &[u8]) -> Answer {
        let cookie = self.send(kind, flags, range, data);
        let (answered, answer) = self.receive();
        assert_eq!(answered, cookie);
        answer
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Answer {
        self.call(RequestKind::Read, CommandFlags::NONE, (offset, length), &[])
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Answer {
        let length = u32::try_from(data.len()).expect("short");
        self.call(RequestKind::Write, CommandFlags::NONE, (offset, length), data)
    }

    pub fn flush(&mut self) -> Answer {
        self.call(RequestKind::Flush, CommandFlags::NONE, (0, 0), &[])
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}
