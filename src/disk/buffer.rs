//! Memory that the kernel may read or write, aligned for direct I/O.
//!
//! The kernel counts as a thread. So a buffer that is part of an operation is *lent*: the loan keeps the memory
//! alive until the completion, and the accessors assert that nothing is lent in a conflicting way. With
//! that, the accessors are safe functions. The handles are for one thread (a lane) only.
//!
//! What the device writes to is known by range: the parts of a large read arrive one by one, and each may be looked at
//! while the device still writes the others.

#![expect(unsafe_code, reason = "hands raw memory to the kernel and takes it back")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

const ALIGNMENT_BYTES: usize = 4096;

struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    /// Operations in which the device reads from the memory.
    lent_for_device: Cell<u32>,
    /// Ranges that the device may be writing to, start and end: one for each such operation, and no two overlap. Large
    /// requests for scattered blocks have thousands.
    lent_to_device: RefCell<BTreeMap<usize, usize>>,
    /// Closures that look at the memory now: -1 is one that may change it.
    borrows: Cell<i32>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let is_lent = self.lent_for_device.get() > 0 || !self.lent_to_device.borrow().is_empty();
        assert!(!is_lent, "a loan keeps the memory");
        // SAFETY: `start` came from `alloc_zeroed` with this layout, and this is the only owner: the handles
        // and the loans are counted by the `Rc` around it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A handle on a range of aligned memory. Clones and slices share the memory.
#[derive(Clone)]
pub struct IoBuffer {
    memory: Rc<Memory>,
    offset: usize,
    len: usize,
}

impl fmt::Debug for IoBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "IoBuffer({} bytes at {})", self.len, self.offset)
    }
}

impl IoBuffer {
    /// Zeroed memory of `len_bytes`, aligned to 4096 bytes.
    ///
    /// # Panics
    /// If `len_bytes` is 0 or above half of the address space. Aborts when memory is out.
    #[must_use]
    pub fn allocate(len_bytes: usize) -> Self {
        assert!(len_bytes > 0);
        let layout =
            Layout::from_size_align(len_bytes, ALIGNMENT_BYTES).expect("lengths are bounded far below this limit");
        // SAFETY: the layout has a size above zero.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        let memory = Memory {
            start,
            layout,
            lent_for_device: Cell::new(0),
            lent_to_device: RefCell::default(),
            borrows: Cell::new(0),
        };
        Self { memory: Rc::new(memory), offset: 0, len: len_bytes }
    }

    /// Bytes of the range.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the range is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this is the only handle and nothing is lent, so that the memory may be used for something else.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        Rc::strong_count(&self.memory) == 1
    }

    /// A handle on a part of the range.
    ///
    /// # Panics
    /// If the part does not lie within.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        Self { memory: Rc::clone(&self.memory), offset: self.offset + range.start, len: range.end - range.start }
    }

    /// Runs `look` on the bytes.
    ///
    /// # Panics
    /// If the device may be writing to the range, or a closure that may change the memory is running.
    pub fn with_bytes<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        assert!(!self.is_lent_to_device(), "the device may be writing to this memory");
        let borrows = self.memory.borrows.get();
        assert!(borrows >= 0, "the memory is being changed");
        self.memory.borrows.set(borrows + 1);
        let _guard = BorrowGuard { memory: &self.memory, was: borrows };
        // SAFETY: the range lies in the allocation (checked at construction); no device writes to the range and no
        // exclusive borrow exists (asserted above); handles do not leave the thread (`Rc`).
        look(unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(self.offset), self.len) })
    }

    /// Runs `change` on the bytes.
    ///
    /// # Panics
    /// If the range is lent to the device, any of the memory is lent for it, or any closure is looking at the memory.
    pub fn with_bytes_mut<R>(&self, change: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(!self.is_lent_to_device(), "the device may be writing to this memory");
        assert!(self.memory.lent_for_device.get() == 0, "the device may be reading from this memory");
        assert!(self.memory.borrows.get() == 0, "the memory is being looked at");
        self.memory.borrows.set(-1);
        let _guard = BorrowGuard { memory: &self.memory, was: 0 };
        // SAFETY: as in `with_bytes`, and no other borrow of any kind exists (asserted above).
        change(unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr().add(self.offset), self.len) })
    }

    /// Lends the range to an operation in which the device *reads* it.
    ///
    /// # Panics
    /// If a closure that may change the memory is running.
    #[must_use]
    pub fn lend_for_device(&self) -> LentForDevice {
        assert!(self.memory.borrows.get() >= 0, "the memory is being changed");
        count_up(&self.memory.lent_for_device);
        LentForDevice { buffer: self.clone() }
    }

    /// Lends the range to an operation in which the device *writes* it.
    ///
    /// # Panics
    /// If any closure is looking at the memory: what it sees must not change under it. If some of the range is lent to
    /// the device already.
    #[must_use]
    pub fn lend_to_device(&self) -> LentToDevice {
        assert!(self.memory.borrows.get() == 0, "the memory is being looked at");
        assert!(!self.is_lent_to_device(), "the device may be writing to this memory");
        if self.len > 0 {
            self.memory.lent_to_device.borrow_mut().insert(self.offset, self.offset + self.len);
        }
        LentToDevice { buffer: self.clone() }
    }

    fn is_lent_to_device(&self) -> bool {
        // The last loan that begins before the end of the range: those before it end before it begins.
        let lent = self.memory.lent_to_device.borrow();
        lent.range(..self.offset + self.len).next_back().is_some_and(|(_, end)| *end > self.offset)
    }

    fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the offset lies in the allocation (checked at construction).
        unsafe { self.memory.start.as_ptr().add(self.offset) }
    }
}

/// Counts a loan. Forgotten loans must not make the count wrap to "nothing is lent".
fn count_up(lent: &Cell<u32>) {
    lent.set(lent.get().checked_add(1).expect("below 2^32 operations share a memory"));
}

struct BorrowGuard<'a> {
    memory: &'a Memory,
    was: i32,
}

impl Drop for BorrowGuard<'_> {
    fn drop(&mut self) {
        self.memory.borrows.set(self.was);
    }
}

/// A range that the device reads until this is dropped, which must be after the completion.
#[derive(Debug)]
pub struct LentForDevice {
    buffer: IoBuffer,
}

impl LentForDevice {
    /// Where the bytes are, valid for reads of [`Self::len`] bytes while this lives.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.buffer.as_ptr().cast_const()
    }

    /// Bytes of the range.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.buffer.len
    }

    /// Whether the range is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.buffer.len == 0
    }

    /// A copy of the bytes, for disks that are not the kernel.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.with_bytes(<[u8]>::to_vec)
    }

    /// Runs `look` on the bytes, for disks that are not the kernel.
    ///
    /// # Panics
    /// As [`IoBuffer::with_bytes`].
    pub fn with_bytes<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        self.buffer.with_bytes(look)
    }
}

impl Drop for LentForDevice {
    fn drop(&mut self) {
        let lent = &self.buffer.memory.lent_for_device;
        lent.set(lent.get() - 1);
    }
}

/// A range that the device writes until this is dropped, which must be after the completion.
#[derive(Debug)]
pub struct LentToDevice {
    buffer: IoBuffer,
}

impl LentToDevice {
    /// Where the bytes go, valid for writes of [`Self::len`] bytes while this lives.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.buffer.as_ptr()
    }

    /// Bytes of the range.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.buffer.len
    }

    /// Whether the range is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.buffer.len == 0
    }

    /// Fills the range and ends the loan, for disks that are not the kernel.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn fill(self, bytes: &[u8]) {
        self.fill_with(|target| target.copy_from_slice(bytes));
    }

    /// Runs `fill` on the range and ends the loan, for disks that are not the kernel.
    pub fn fill_with<R>(self, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        // SAFETY: the range lies in the allocation; the loan forbids every other access to the range (the accessors
        // and other loans assert it), and it lives until `fill` has returned, since this owns it.
        fill(unsafe { std::slice::from_raw_parts_mut(self.buffer.as_ptr(), self.buffer.len) })
    }
}

impl Drop for LentToDevice {
    fn drop(&mut self) {
        if self.buffer.len > 0 {
            let end = self.buffer.memory.lent_to_device.borrow_mut().remove(&self.buffer.offset);
            assert_eq!(end, Some(self.buffer.offset + self.buffer.len), "a loan is listed until it ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zeroed() {
        let buffer = IoBuffer::allocate(8192);
        assert_eq!(buffer.as_ptr().addr() % ALIGNMENT_BYTES, 0);
        assert!(buffer.with_bytes(|bytes| bytes.iter().all(|byte| *byte == 0)));
    }

    #[test]
    #[should_panic(expected = "the device may be writing")]
    fn looking_at_memory_lent_to_the_device_panics() {
        let buffer = IoBuffer::allocate(4096);
        let _loan = buffer.lend_to_device();
        buffer.with_bytes(<[u8]>::len);
    }

    #[test]
    #[should_panic(expected = "the memory is being looked at")]
    fn lending_memory_to_the_device_under_a_look_panics() {
        let buffer = IoBuffer::allocate(4096);
        buffer.with_bytes(|_| buffer.slice(0..4).lend_to_device().fill(b"data"));
    }

    #[test]
    #[should_panic(expected = "the memory is being changed")]
    fn lending_memory_for_the_device_under_a_change_panics() {
        let buffer = IoBuffer::allocate(4096);
        buffer.with_bytes_mut(|_| drop(buffer.lend_for_device()));
    }

    #[test]
    fn bytes_beside_a_loan_may_be_looked_at_and_changed() {
        let buffer = IoBuffer::allocate(8192);
        let loan = buffer.slice(0..4096).lend_to_device();
        let beside = buffer.slice(4096..8192);
        beside.with_bytes_mut(|bytes| bytes[0] = 7);
        assert_eq!(beside.with_bytes(|bytes| bytes[0]), 7);
        drop(loan);
        assert_eq!(buffer.with_bytes(|bytes| bytes[4096]), 7);
    }

    #[test]
    #[should_panic(expected = "the device may be writing")]
    fn bytes_that_overlap_a_loan_by_one_panic() {
        let buffer = IoBuffer::allocate(8192);
        let _loan = buffer.slice(0..4096).lend_to_device();
        buffer.slice(4095..8192).with_bytes_mut(|bytes| bytes[0] = 7);
    }

    #[test]
    #[should_panic(expected = "the device may be writing")]
    fn lending_a_range_to_the_device_twice_panics() {
        let buffer = IoBuffer::allocate(8192);
        let _loan = buffer.slice(0..4096).lend_to_device();
        drop(buffer.lend_to_device());
    }

    #[test]
    fn a_loan_that_ended_allows_changes_again() {
        let buffer = IoBuffer::allocate(4096);
        buffer.slice(0..4).lend_to_device().fill(b"data");
        buffer.with_bytes_mut(|bytes| bytes[0] = b'D');
        assert_eq!(buffer.slice(0..4).with_bytes(<[u8]>::to_vec), b"Data");
    }
}
