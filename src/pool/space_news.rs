//! News of space, for writes that wait for it: that there may be some that was not there before.
//!
//! Invariant: who finds no space took the number of the news before it looked, and compares it again after it counted
//! itself as waiting; and the number grows behind the space, before anybody looks whether somebody waits. So either the
//! writer sees the number, or its lane is woken.

use crate::pool::Pool;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of the news, and how many writes wait for the next.
#[derive(Default)]
pub(super) struct SpaceNews {
    number: AtomicU64,
    waiting_count: AtomicU64,
}

impl Pool {
    /// Grows with each piece of news. To be taken before space is looked for.
    #[must_use]
    pub fn space_news(&self) -> u64 {
        self.space_news.number.load(Ordering::SeqCst)
    }

    /// There may be space that was not there before, or waiting makes no sense any more: lanes are woken where writes wait.
    pub fn tell_space(&self) {
        self.space_news.number.fetch_add(1, Ordering::SeqCst);
        if self.has_waiting_writes()
            && let Some(signals) = self.signals.get()
        {
            signals.wake_lanes();
        }
    }

    /// Whether a write waits for news on any lane.
    #[must_use]
    pub fn has_waiting_writes(&self) -> bool {
        self.space_news.waiting_count.load(Ordering::SeqCst) > 0
    }

    /// A write begins to wait for news.
    pub fn begin_waiting(&self) {
        self.space_news.waiting_count.fetch_add(1, Ordering::SeqCst);
    }

    /// A write does not wait any more.
    pub fn end_waiting(&self) {
        self.space_news.waiting_count.fetch_sub(1, Ordering::SeqCst);
    }

    /// Seconds since 1970, or 0 if nobody runs the pool.
    #[must_use]
    pub fn now_seconds(&self) -> u64 {
        self.signals.get().map_or(0, |signals| signals.now_seconds())
    }
}
