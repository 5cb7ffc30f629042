//! The atomics of the standard library, made of the scheduler's. It runs them in one order: what a weaker one than
//! sequential consistency allows is not seen.

pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
