//! Counts what is allocated, so that no length in the input makes a decoder take memory that the input does not fill.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that a decoder may have at once for each byte of its input: an empty text is two bytes, a `String` of it 24, and a vector
/// that grows has its old room and twice as much.
const BYTES_FOR_EACH: usize = 48;
/// Bytes beside that. One run of a part tells of 256 slots in a few bytes.
const BYTES_FIXED: usize = 32 << 10;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(size: usize) {
    let live = LIVE.fetch_add(size, Ordering::Relaxed).wrapping_add(size);
    PEAK.fetch_max(live, Ordering::Relaxed);
}

fn subtract(size: usize) {
    LIVE.fetch_sub(size, Ordering::Relaxed);
}

// SAFETY: all four pass on what they are given to the system's allocator, and what it returns; counting touches no memory of theirs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the rules, which are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the rules, which are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        subtract(layout.size());
        // SAFETY: the caller keeps the rules, which are the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size);
        subtract(layout.size());
        // SAFETY: the caller keeps the rules, which are the same.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Does the work, which must not take more memory at once than a small multiple of its input.
///
/// # Panics
/// If it does.
pub fn bounded<T>(input_len: usize, work: impl FnOnce() -> T) -> T {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    let taken = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let allowed = BYTES_FIXED + BYTES_FOR_EACH * input_len;
    assert!(taken <= allowed, "{taken} bytes of memory for {input_len} bytes of input");
    result
}
