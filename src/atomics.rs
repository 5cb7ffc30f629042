//! Atomics of protocols between threads, from one place, so that `tests/interleavings` can put those of its scheduler there.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
