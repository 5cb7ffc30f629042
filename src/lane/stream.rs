//! What has arrived on a connection and was not taken yet.
//!
//! The memory grows with the traffic: a connection that waits has little, so that a thousand of them cost little; one whose
//! receives fill what they may gets more, and gives it back when it waits again. Both come from the lane's free buffers.
//!
//! Invariant: while a receive is in the kernel nobody calls anything here that moves the buffer.

use super::buffers::Buffers;
use super::limits::{IDLE_STREAM_BYTES, STREAM_BYTES, STREAM_BYTES_BETWEEN_PAYLOADS};
use crate::disk::IoBuffer;

/// Bytes of the stream in a buffer, from `start` to `end`.
pub(super) struct Stream {
    pub buffer: IoBuffer,
    pub start: usize,
    pub end: usize,
    /// The last receive could have been longer.
    is_growing: bool,
    /// The last request was a write whose payload was received where it belongs.
    pub is_between_payloads: bool,
}

impl Stream {
    pub(super) fn new() -> Self {
        Self {
            buffer: IoBuffer::allocate(IDLE_STREAM_BYTES),
            start: 0,
            end: 0,
            is_growing: false,
            is_between_payloads: false,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn take(&mut self, len: usize) {
        assert!(len <= self.len());
        self.start += len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Where the next receive puts what comes, once there is room.
    pub(super) fn room(&self) -> IoBuffer {
        let size_bytes = self.buffer.len();
        let end = if self.is_between_payloads {
            size_bytes.min(self.end + STREAM_BYTES_BETWEEN_PAYLOADS)
        } else {
            size_bytes
        };
        self.buffer.slice(self.end..end)
    }

    /// Takes `len` bytes that were received behind what was there.
    pub(super) fn received(&mut self, len: usize) {
        self.end += len;
        self.is_growing = self.end == self.buffer.len();
    }

    /// Makes room behind what is there. `is_idle`: nothing that was asked for is under way.
    pub(super) fn make_room(&mut self, is_idle: bool, buffers: &mut Buffers) {
        let size_bytes = self.buffer.len();
        if self.is_growing && size_bytes < STREAM_BYTES {
            self.move_to(buffers.take(STREAM_BYTES), buffers);
        } else if is_idle && self.len() == 0 && size_bytes > IDLE_STREAM_BYTES && !self.is_growing {
            self.move_to(buffers.take(IDLE_STREAM_BYTES), buffers);
        } else if self.end == size_bytes {
            let (start, end) = (self.start, self.end);
            self.buffer.with_bytes_mut(|bytes| bytes.copy_within(start..end, 0));
            (self.start, self.end) = (0, end - start);
        }
        self.is_growing = false;
    }

    fn move_to(&mut self, buffer: IoBuffer, buffers: &mut Buffers) {
        let len = self.len();
        let there = self.buffer.slice(self.start..self.end);
        if len > 0 {
            let target = buffer.slice(0..len);
            there.with_bytes(|source| target.with_bytes_mut(|target| target.copy_from_slice(source)));
        }
        drop(there);
        buffers.give(std::mem::replace(&mut self.buffer, buffer));
        (self.start, self.end) = (0, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(stream: &mut Stream, len: usize, value: u8) {
        stream.buffer.slice(stream.end..stream.end + len).with_bytes_mut(|bytes| bytes.fill(value));
        stream.received(len);
    }

    fn content(stream: &Stream) -> Vec<u8> {
        stream.buffer.slice(stream.start..stream.end).with_bytes(<[u8]>::to_vec)
    }

    #[test]
    fn receives_that_fill_the_memory_get_more_and_what_is_there_stays() {
        let (mut stream, mut buffers) = (Stream::new(), Buffers::default());
        fill(&mut stream, IDLE_STREAM_BYTES, 7);
        stream.take(100);

        stream.make_room(false, &mut buffers);

        assert_eq!(stream.buffer.len(), STREAM_BYTES);
        assert_eq!(content(&stream), vec![7; IDLE_STREAM_BYTES - 100]);
    }

    #[test]
    fn little_is_received_between_long_payloads() {
        let mut stream = Stream::new();
        fill(&mut stream, 28, 7);
        stream.is_between_payloads = true;
        assert_eq!(stream.room().len(), STREAM_BYTES_BETWEEN_PAYLOADS);
        stream.is_between_payloads = false;
        assert_eq!(stream.room().len(), IDLE_STREAM_BYTES - 28);
    }

    #[test]
    fn who_waits_gives_the_memory_back() {
        let (mut stream, mut buffers) = (Stream::new(), Buffers::default());
        fill(&mut stream, IDLE_STREAM_BYTES, 7);
        stream.make_room(false, &mut buffers);
        stream.take(stream.len());

        stream.make_room(false, &mut buffers);
        assert_eq!(stream.buffer.len(), STREAM_BYTES, "requests are under way");
        stream.make_room(true, &mut buffers);

        assert_eq!((stream.buffer.len(), stream.len()), (IDLE_STREAM_BYTES, 0));
    }

    #[test]
    fn full_memory_of_the_full_size_makes_room_in_front() {
        let (mut stream, mut buffers) = (Stream::new(), Buffers::default());
        fill(&mut stream, IDLE_STREAM_BYTES, 1);
        stream.make_room(false, &mut buffers);
        fill(&mut stream, STREAM_BYTES - IDLE_STREAM_BYTES, 2);
        stream.take(IDLE_STREAM_BYTES);

        stream.make_room(false, &mut buffers);

        assert_eq!((stream.start, stream.buffer.len()), (0, STREAM_BYTES));
        assert_eq!(content(&stream), vec![2; STREAM_BYTES - IDLE_STREAM_BYTES]);
    }
}
