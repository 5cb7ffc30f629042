//! Free buffers of a lane by size, so that a warm lane allocates none.

use super::limits::FREE_BUFFER_BYTES_MAX;
use crate::disk::IoBuffer;
use crate::units::BLOCK_SIZE;
use std::hint::black_box;
use std::ops::Range;

/// Free lists: the list at `n` has buffers of `BLOCK_SIZE << n` bytes.
#[derive(Default)]
pub(super) struct Buffers {
    free: Vec<Vec<IoBuffer>>,
    free_bytes: usize,
    /// Zeros that nobody writes to, as many as were asked for at once.
    zeros: Option<IoBuffer>,
}

impl Buffers {
    /// A buffer of at least `len_bytes`, with any content.
    pub(super) fn take(&mut self, len_bytes: usize) -> IoBuffer {
        let class = class(size_of(len_bytes));
        self.take_from(class..class + 1).unwrap_or_else(|| IoBuffer::allocate(size_of(len_bytes)))
    }

    /// The same, and a longer one rather than new memory: it may be a reserved one.
    pub(super) fn take_reserved(&mut self, len_bytes: usize) -> IoBuffer {
        let class = class(size_of(len_bytes));
        self.take_from(class..self.free.len()).unwrap_or_else(|| IoBuffer::allocate(size_of(len_bytes)))
    }

    fn take_from(&mut self, classes: Range<usize>) -> Option<IoBuffer> {
        let buffer = self.free.iter_mut().take(classes.end).skip(classes.start).find_map(Vec::pop)?;
        self.free_bytes -= buffer.len();
        Some(buffer)
    }

    /// Sees to it that `bytes` are in free buffers, as far as so many may be kept: if there are not, in new ones of `buffer_bytes`, in
    /// memory that the process has from now on.
    pub(super) fn reserve(&mut self, bytes: usize, buffer_bytes: usize) {
        let buffer_bytes = size_of(buffer_bytes);
        while self.free_bytes + buffer_bytes <= bytes.min(FREE_BUFFER_BYTES_MAX) {
            let buffer = IoBuffer::allocate(buffer_bytes);
            // Memory is there when it was written to; zeros in new memory might be left out.
            buffer.with_bytes_mut(|bytes| bytes.iter_mut().step_by(BLOCK_SIZE).for_each(|byte| *byte = black_box(1)));
            self.give(buffer);
        }
    }

    /// A buffer of at least `len_bytes` zeros, to be read only: others have it too.
    pub(super) fn zeros(&mut self, len_bytes: usize) -> IoBuffer {
        if self.zeros.as_ref().is_none_or(|zeros| zeros.len() < len_bytes) {
            self.zeros = Some(IoBuffer::allocate(len_bytes.max(BLOCK_SIZE).next_power_of_two()));
        }
        self.zeros.clone().expect("it was made")
    }

    /// Takes a whole buffer back. It is kept if nothing else holds it and there is room.
    pub(super) fn give(&mut self, buffer: IoBuffer) {
        if !buffer.is_unique() || self.free_bytes + buffer.len() > FREE_BUFFER_BYTES_MAX {
            return;
        }
        let class = class(buffer.len());
        if self.free.len() <= class {
            self.free.resize_with(class + 1, Vec::new);
        }
        self.free_bytes += buffer.len();
        self.free[class].push(buffer);
    }
}

/// Bytes of the buffer for so many.
fn size_of(len_bytes: usize) -> usize {
    len_bytes.max(BLOCK_SIZE).next_power_of_two()
}

fn class(size_bytes: usize) -> usize {
    let shift = size_bytes.trailing_zeros() - BLOCK_SIZE.trailing_zeros();
    usize::try_from(shift).expect("below 64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_given_back_is_taken_again() {
        let mut buffers = Buffers::default();
        let first = buffers.take(5000);
        assert_eq!(first.len(), 8192);
        first.with_bytes_mut(|bytes| bytes[0] = 7);
        buffers.give(first);
        assert_eq!(buffers.take(4097).with_bytes(|bytes| bytes[0]), 7);
        assert_eq!(buffers.free_bytes, 0);
    }

    #[test]
    fn zeros_are_shared_and_stay_zeros() {
        let mut buffers = Buffers::default();
        let (short, long) = (buffers.zeros(1), buffers.zeros(100_000));
        assert_eq!((short.len(), long.len()), (4096, 131_072));
        buffers.give(long);
        let taken = buffers.take(100_000);
        taken.with_bytes_mut(|bytes| bytes.fill(7));
        assert!(buffers.zeros(131_072).with_bytes(|bytes| bytes.iter().all(|byte| *byte == 0)));
    }

    #[test]
    fn what_was_reserved_serves_requests_of_any_length() {
        let mut buffers = Buffers::default();
        buffers.reserve(1 << 20, 256 << 10);
        buffers.reserve(1 << 20, 256 << 10);
        assert_eq!(buffers.free_bytes, 1 << 20, "it was there already");
        assert_eq!(buffers.take(4096).len(), 4096, "who did not reserve it leaves it alone");
        let taken = [4096, 200_000, 8192, 1].map(|len| buffers.take_reserved(len));
        assert!(taken.iter().all(|buffer| buffer.len() == 256 << 10));
        assert_eq!(buffers.take_reserved(1).len(), 4096, "nothing was left");
        taken.into_iter().for_each(|buffer| buffers.give(buffer));
        buffers.reserve(1 << 30, 16 << 20);
        assert!(buffers.free_bytes <= FREE_BUFFER_BYTES_MAX);
    }

    #[test]
    fn a_buffer_that_somebody_holds_is_not_kept() {
        let mut buffers = Buffers::default();
        let held = buffers.take(4096);
        buffers.give(held.clone());
        assert_eq!(buffers.free_bytes, 0);
    }
}
