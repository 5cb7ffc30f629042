//! The reserve of the simulated metadata store.

use rok_blk::meta::{MemoryStore, SpaceReserve};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Commits that the reserve of the metadata store has space for.
const RESERVE_COMMITS: u64 = 6;

/// Space for some commits that the store gets when it has none left.
pub struct SimReserve {
    store: Arc<MemoryStore>,
    is_there: AtomicBool,
    used_count: AtomicU64,
}

impl SimReserve {
    pub fn new(store: &Arc<MemoryStore>) -> Arc<Self> {
        let (is_there, used_count) = (AtomicBool::new(true), AtomicU64::new(0));
        Arc::new(Self { store: Arc::clone(store), is_there, used_count })
    }

    /// Times that it was given up.
    pub fn used_count(&self) -> u64 {
        self.used_count.load(Ordering::Relaxed)
    }
}

impl SpaceReserve for SimReserve {
    fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }

    fn give_up(&self) -> bool {
        let was_there = self.is_there.swap(false, Ordering::Relaxed);
        if was_there {
            self.store.fill_after(Some(RESERVE_COMMITS));
            self.used_count.fetch_add(1, Ordering::Relaxed);
        }
        was_there
    }

    fn is_replaced(&self) -> bool {
        self.store.has_space()
    }

    fn take_back(&self) -> bool {
        let has_space = self.store.has_space();
        self.is_there.fetch_or(has_space, Ordering::Relaxed);
        self.is_there()
    }
}
