//! News of space, for writes that wait for it: that there may be some that was not there before.
//!
//! Invariant: who finds no space took the number of the news before it looked, and compares it again after it counted
//! itself as waiting; and the number grows behind the space, before anybody looks whether somebody waits. So either the
//! writer sees the number, or its lane is woken.

use crate::atomics::{AtomicU64, Ordering};

/// The number of the news, and how many writes wait for the next.
#[derive(Default)]
pub(crate) struct SpaceNews {
    number: AtomicU64,
    waiting_count: AtomicU64,
}

impl SpaceNews {
    /// Grows with each piece of news. To be taken before space is looked for.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }

    /// There is news. Whether somebody waits for it, who is to be woken.
    pub(crate) fn tell(&self) -> bool {
        self.number.fetch_add(1, Ordering::SeqCst);
        self.has_waiting()
    }

    /// Whether a write waits for news.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting_count.load(Ordering::SeqCst) > 0
    }

    /// A write begins to wait.
    pub(crate) fn begin_waiting(&self) {
        self.waiting_count.fetch_add(1, Ordering::SeqCst);
    }

    /// A write does not wait any more.
    pub(crate) fn end_waiting(&self) {
        self.waiting_count.fetch_sub(1, Ordering::SeqCst);
    }
}
