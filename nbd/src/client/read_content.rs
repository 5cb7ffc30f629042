//! The guard over a structured reply to a READ: that its content chunks lie in the request, do not overlap, and cover
//! it.

use std::collections::BTreeMap;
use std::fmt;

use super::reply::Extent;
use crate::limits;
use crate::wire::request::Request;

/// What came of one READ so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadContent {
    request: Request,
    /// The ends of the runs that came, by their beginnings, in bytes from the request's offset. Neighbours are merged.
    runs: BTreeMap<u64, u64>,
    chunk_count: usize,
}

/// How a server broke the rules of content chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadContentError {
    /// A chunk reaches outside the request.
    OutOfRange(Extent),
    /// A chunk covers what another one covers.
    Overlap(Extent),
    /// A second content chunk although the request has DF, or more chunks than any honest server sends.
    TooManyChunks,
    /// The reply ended with success, but bytes are missing.
    Incomplete,
}

impl ReadContent {
    /// Nothing came yet.
    #[must_use]
    pub fn new(request: &Request) -> Self {
        Self { request: *request, runs: BTreeMap::new(), chunk_count: 0 }
    }

    /// Takes note of a content chunk; where its bytes belong, counted from the start of the request's buffer.
    ///
    /// # Errors
    /// If the chunk breaks a rule.
    pub fn accept(&mut self, extent: Extent) -> Result<usize, ReadContentError> {
        let is_second = self.request.is_unfragmented() && self.chunk_count == 1;
        if is_second || self.chunk_count >= limits::READ_CHUNK_COUNT_MAX {
            return Err(ReadContentError::TooManyChunks);
        }
        let out_of_range = ReadContentError::OutOfRange(extent);
        let begin = extent.offset.checked_sub(self.request.offset).ok_or(out_of_range)?;
        let length = self.request.length;
        let size = u64::from(extent.size_bytes);
        if begin > length || size > length - begin {
            return Err(out_of_range);
        }
        let position = usize::try_from(begin).map_err(|_| out_of_range)?;
        self.insert(begin, begin + size).ok_or(ReadContentError::Overlap(extent))?;
        self.chunk_count += 1;
        Ok(position)
    }

    /// Call when the reply ended with success.
    ///
    /// # Errors
    /// If not every byte of the request came.
    pub fn finish(&self) -> Result<(), ReadContentError> {
        let length = self.request.length;
        let is_whole = length == 0 || self.runs.get(&0) == Some(&length);
        if is_whole { Ok(()) } else { Err(ReadContentError::Incomplete) }
    }

    /// Adds a run and merges it with its neighbours; `None` if it overlaps one.
    fn insert(&mut self, begin: u64, end: u64) -> Option<()> {
        let before = self.runs.range(..=begin).next_back().map(|(begin, end)| (*begin, *end));
        let after = self.runs.range(begin..).next().map(|(begin, end)| (*begin, *end));
        if before.is_some_and(|(_, before_end)| before_end > begin) || after.is_some_and(|(start, _)| start < end) {
            return None;
        }
        let merged_begin = before.filter(|(_, before_end)| *before_end == begin).map_or(begin, |(start, _)| start);
        let merged_end = after.filter(|(start, _)| *start == end).map_or(end, |(_, after_end)| after_end);
        self.runs.remove(&end);
        self.runs.insert(merged_begin, merged_end);
        Some(())
    }
}

impl fmt::Display for ReadContentError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange(extent) => {
                write!(
                    formatter,
                    "A chunk at {} of {} bytes lies outside the request",
                    extent.offset, extent.size_bytes
                )
            }
            Self::Overlap(extent) => {
                write!(formatter, "A chunk at {} of {} bytes overlaps another", extent.offset, extent.size_bytes)
            }
            Self::TooManyChunks => formatter.write_str("The reply has more content chunks than it may"),
            Self::Incomplete => formatter.write_str("The reply ended before all bytes of the request came"),
        }
    }
}

impl std::error::Error for ReadContentError {}
