//! How many leaves checkpoints stored as parts since the pool was opened.

use crate::format::leaf::Level;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of parts.
#[derive(Debug, Default)]
pub struct PartCounts {
    stored: AtomicU64,
    beside: AtomicU64,
    rebased: AtomicU64,
}

impl PartCounts {
    /// Leaves that were stored as parts.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Of these, those that were put beside another part, since that was as deep as may be.
    #[must_use]
    pub fn beside(&self) -> u64 {
        self.beside.load(Ordering::Relaxed)
    }

    /// Parts whose base was merged into them.
    #[must_use]
    pub fn rebased(&self) -> u64 {
        self.rebased.load(Ordering::Relaxed)
    }

    pub(super) fn count_stored(&self, level: Level) {
        self.stored.fetch_add(1, Ordering::Relaxed);
        self.beside.fetch_add(u64::from(level.restarts > 0), Ordering::Relaxed);
    }

    pub(super) fn count_rebased(&self) {
        self.rebased.fetch_add(1, Ordering::Relaxed);
    }
}
