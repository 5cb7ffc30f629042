//! Whether anybody still waits for an answer that takes long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the work asks between its steps.
#[derive(Clone, Debug)]
pub struct Attention(Arc<AtomicBool>);

/// Kept by who waits; dropped with the request when the client goes away.
#[derive(Debug)]
pub(super) struct Waiting(Arc<AtomicBool>);

impl Attention {
    /// Attention for as long as the other half is there.
    pub(super) fn new() -> (Self, Waiting) {
        let is_over = Arc::new(AtomicBool::new(false));
        (Self(Arc::clone(&is_over)), Waiting(is_over))
    }

    /// Whether nobody waits any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_over_when_the_request_is_dropped() {
        let (attention, waiting) = Attention::new();
        assert!(!attention.is_over());

        drop(waiting);

        assert!(attention.is_over());
    }
}
