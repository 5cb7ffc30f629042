//! Writes that wait for space, on all lanes of a pool.

use crate::pool::Pool;

impl Pool {
    /// Grows with each piece of news of space. To be taken before space is looked for.
    #[must_use]
    pub fn space_news(&self) -> u64 {
        self.space_news.number()
    }

    /// There may be space that was not there before, or waiting makes no sense any more: lanes are woken where writes wait.
    pub fn tell_space(&self) {
        if self.space_news.tell()
            && let Some(signals) = self.signals.get()
        {
            signals.wake_lanes();
        }
    }

    /// Whether a write waits for news on any lane.
    #[must_use]
    pub fn has_waiting_writes(&self) -> bool {
        self.space_news.has_waiting()
    }

    /// A write begins to wait for news.
    pub fn begin_waiting(&self) {
        self.space_news.begin_waiting();
    }

    /// A write does not wait any more.
    pub fn end_waiting(&self) {
        self.space_news.end_waiting();
    }

    /// Seconds since 1970, or 0 if nobody runs the pool.
    #[must_use]
    pub fn now_seconds(&self) -> u64 {
        self.signals.get().map_or(0, |signals| signals.now_seconds())
    }
}
