//! A structured reply to a READ in several chunks, from the front to the back.

use std::fmt;

use crate::wire::error::WireError;
use crate::wire::reply::{ReplyForm, ReplyHeader, ReplyTo};
use crate::wire::request::Request;

/// The reply to one READ on a connection with structured replies. Its chunks cover the request without gap or
/// overlap; the chunk that completes it carries DONE. With DF there is one content chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadReply {
    to: ReplyTo,
    offset: u64,
    remaining: u32,
    must_be_one_chunk: bool,
}

/// Why a chunk may not be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadReplyError {
    /// The request forbids fragments, and the chunk does not cover it whole.
    Fragmented,
    /// The chunk is empty or reaches past what is left of the request.
    OutOfRange,
}

impl ReadReply {
    /// A reply without any chunk so far. For a request of length 0 send [`ReplyTo::read`] instead.
    ///
    /// # Panics
    /// If there are no chunks, or the request is longer than any that passes [`super::RequestRules::check`].
    #[must_use]
    pub fn new(form: ReplyForm, request: &Request) -> Self {
        assert!(form != ReplyForm::Simple, "a simple reply has no chunks");
        Self {
            to: ReplyTo::new(form, request),
            offset: request.offset,
            remaining: u32::try_from(request.length).expect("a checked request has a bounded payload"),
            must_be_one_chunk: request.is_unfragmented(),
        }
    }

    /// How many bytes of the request no chunk covers yet.
    #[must_use]
    pub fn remaining_size_bytes(&self) -> u32 {
        self.remaining
    }

    /// The front of the next chunk, which `size_bytes` bytes of data must follow. They must be at hand: after the
    /// last chunk no error can be sent.
    ///
    /// # Errors
    /// If the chunk breaks a rule; the reply stays as it was.
    #[inline]
    pub fn data(&mut self, size_bytes: u32) -> Result<ReplyHeader, ReadReplyError> {
        let offset = self.cover(size_bytes)?;
        Ok(self.to.data(offset, size_bytes, self.remaining == 0))
    }

    /// The next chunk, which says that `size_bytes` bytes are zeroes.
    ///
    /// # Errors
    /// If the chunk breaks a rule; the reply stays as it was.
    #[inline]
    pub fn hole(&mut self, size_bytes: u32) -> Result<ReplyHeader, ReadReplyError> {
        let offset = self.cover(size_bytes)?;
        Ok(self.to.hole(offset, size_bytes, self.remaining == 0))
    }

    /// Appends a chunk that ends the reply with an error. Only while [`ReadReply::remaining_size_bytes`] is not 0:
    /// else the reply already ended.
    pub fn fail(self, output: &mut Vec<u8>, error: WireError, message: &str) {
        self.to.append_error(output, error, message);
    }

    fn cover(&mut self, size_bytes: u32) -> Result<u64, ReadReplyError> {
        if size_bytes == 0 || size_bytes > self.remaining {
            return Err(ReadReplyError::OutOfRange);
        }
        if self.must_be_one_chunk && size_bytes != self.remaining {
            return Err(ReadReplyError::Fragmented);
        }
        let offset = self.offset;
        self.offset = self.offset.checked_add(u64::from(size_bytes)).ok_or(ReadReplyError::OutOfRange)?;
        self.remaining -= size_bytes;
        Ok(offset)
    }
}

impl fmt::Display for ReadReplyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Fragmented => "The request forbids fragments; send one chunk",
            Self::OutOfRange => "The chunk is empty or reaches past the request",
        })
    }
}

impl std::error::Error for ReadReplyError {}
