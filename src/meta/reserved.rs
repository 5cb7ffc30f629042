//! A store with a reserve: space that is kept back for it, and given up when it has none left.
//!
//! The commit that finds no space gives the reserve up and is tried again, so that what frees space (deletions, discards,
//! checkpoints) goes on. While the reserve is gone, the pool takes no writes that need more space
//! ([`ReservedStore::is_reserve_gone`]); it is taken back when there is space again.

use super::{Durability, KeyValue, MetaError, MetaOp, MetaRead, MetaStore, Table};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Space beside a store that can be given to it.
pub trait SpaceReserve: Send + Sync {
    /// Whether it is there.
    fn is_there(&self) -> bool;

    /// Gives it up. False if it was not there, or could not be given up.
    fn give_up(&self) -> bool;

    /// Whether there is about as much free space beside the store as it has.
    fn is_replaced(&self) -> bool;

    /// Takes it back, if there is much more space than it needs. Whether it is there then.
    fn take_back(&self) -> bool;
}

/// A store and its reserve, if it has one.
pub struct ReservedStore {
    store: Arc<dyn MetaStore>,
    reserve: Option<Arc<dyn SpaceReserve>>,
    is_gone: AtomicBool,
    /// Held until `is_gone` says what was given up.
    giving_up: Mutex<()>,
}

impl ReservedStore {
    /// The store with its reserve, which is taken back at once if it is missing and there is space.
    #[must_use]
    pub fn new(store: Arc<dyn MetaStore>, reserve: Option<Arc<dyn SpaceReserve>>) -> Self {
        let is_gone = reserve.as_ref().is_some_and(|reserve| !reserve.is_there() && !reserve.take_back());
        Self { store, reserve, is_gone: AtomicBool::new(is_gone), giving_up: Mutex::new(()) }
    }

    /// Whether the reserve is given up: nothing may be begun that needs space.
    #[must_use]
    pub fn is_reserve_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Takes the reserve back, if it is gone and there is space. Whether it was taken back now.
    pub fn restore_reserve(&self) -> bool {
        let is_back = self.is_reserve_gone() && self.reserve.as_ref().is_some_and(|reserve| reserve.take_back());
        if is_back {
            tracing::info!("the metadata store has its reserve back");
            self.is_gone.store(false, Ordering::Release);
        }
        is_back
    }

    /// Sees to space after a commit that found none. Whether there is some now.
    fn make_space(&self, error: &MetaError) -> bool {
        let Some(reserve) = &self.reserve else { return false };
        let _guard = self.giving_up.lock();
        if reserve.give_up() {
            self.is_gone.store(true, Ordering::Release);
            tracing::warn!(%error, "the metadata store has no space: its reserve is given up");
            return true;
        }
        // Another commit gave it up a moment ago, and the store has not noticed yet.
        self.is_reserve_gone() && reserve.is_replaced()
    }
}

impl MetaRead for ReservedStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.store.get(table, key)
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        self.store.seek(table, prefix, from)
    }

    fn seek_first(
        &self,
        table: Table,
        places: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<Option<KeyValue>, MetaError> {
        self.store.seek_first(table, places)
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        self.store.walk(table, prefix, from, visit)
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        self.store.scan(table, from, end, limit)
    }
}

impl MetaStore for ReservedStore {
    fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        match self.store.commit(batch, durability) {
            Err(error) if error.is_out_of_space && self.make_space(&error) => {
                self.store.commit_with_new_space(batch, durability)
            }
            result => result,
        }
    }

    fn view(&self, look: &mut dyn FnMut(&dyn MetaRead)) {
        self.store.view(look);
    }

    fn size_bytes(&self) -> u64 {
        self.store.size_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::MemoryStore;

    const BATCH: [MetaOp; 0] = [];

    /// Gives the store so many commits, and comes back when it may.
    struct Commits {
        store: Arc<MemoryStore>,
        is_there: AtomicBool,
        is_replaced: AtomicBool,
        may_come_back: Mutex<bool>,
    }

    impl SpaceReserve for Commits {
        fn is_there(&self) -> bool {
            self.is_there.load(Ordering::Relaxed)
        }

        fn give_up(&self) -> bool {
            self.store.fill_after(Some(3));
            self.is_there.swap(false, Ordering::Relaxed)
        }

        fn is_replaced(&self) -> bool {
            self.is_replaced.load(Ordering::Relaxed)
        }

        fn take_back(&self) -> bool {
            let is_back = *self.may_come_back.lock();
            self.is_there.fetch_or(is_back, Ordering::Relaxed);
            is_back
        }
    }

    fn reserved() -> (Arc<MemoryStore>, Arc<Commits>, ReservedStore) {
        let store = Arc::new(MemoryStore::new());
        let is_there = AtomicBool::new(true);
        let is_replaced = AtomicBool::new(false);
        let reserve = Commits { store: Arc::clone(&store), is_there, is_replaced, may_come_back: Mutex::new(false) };
        let reserve = Arc::new(reserve);
        let reserved = ReservedStore::new(Arc::clone(&store) as Arc<dyn MetaStore>, Some(Arc::clone(&reserve) as _));
        (store, reserve, reserved)
    }

    #[test]
    fn commit_without_space_succeeds_from_the_reserve_once() {
        let (store, _, reserved) = reserved();
        store.fill_after(Some(1));
        assert!(!reserved.is_reserve_gone());

        for _ in 0..2 {
            reserved.commit(&BATCH, Durability::Synced).expect("from the reserve");
            assert!(reserved.is_reserve_gone());
        }
        let error = reserved.commit(&BATCH, Durability::Synced).expect_err("that is used up too");
        assert!(error.is_out_of_space);
    }

    #[test]
    fn reserve_comes_back_when_there_is_space() {
        let (store, reserve, reserved) = reserved();
        store.fill_after(Some(1));
        reserved.commit(&BATCH, Durability::Synced).expect("from the reserve");
        assert!(!reserved.restore_reserve(), "there is no space");
        assert!(reserved.is_reserve_gone());

        *reserve.may_come_back.lock() = true;
        assert!(reserved.restore_reserve());
        assert!(!reserved.is_reserve_gone());
        assert!(!reserved.restore_reserve(), "it is there already");
    }

    #[test]
    fn other_failures_leave_the_reserve() {
        let (store, reserve, reserved) = reserved();
        store.fail_commit_after(Some(1));
        assert!(!reserved.commit(&BATCH, Durability::Synced).expect_err("an I/O error").is_out_of_space);
        assert!(reserve.is_there());
    }

    #[test]
    fn store_that_begins_without_its_reserve_knows_it() {
        let (_, reserve, reserved) = reserved();
        assert!(reserve.give_up());
        drop(reserved);
        let store = Arc::new(MemoryStore::new());
        let reserved = ReservedStore::new(store, Some(reserve));
        assert!(reserved.is_reserve_gone());
    }

    /// A store that notices new space only when it is waited for.
    struct Slow(Arc<MemoryStore>);

    impl MetaRead for Slow {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
            self.0.get(table, key)
        }

        fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
            self.0.seek(table, prefix, from)
        }

        fn walk(
            &self,
            table: Table,
            prefix: &[u8],
            from: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), MetaError> {
            self.0.walk(table, prefix, from, visit)
        }

        fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
            self.0.scan(table, from, end, limit)
        }
    }

    impl MetaStore for Slow {
        fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
            self.0.commit(batch, durability)
        }

        fn commit_with_new_space(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
            self.0.fill_after(None);
            self.0.commit(batch, durability)
        }

        fn view(&self, look: &mut dyn FnMut(&dyn MetaRead)) {
            self.0.view(look);
        }

        fn size_bytes(&self) -> u64 {
            self.0.size_bytes()
        }
    }

    #[test]
    fn commit_beside_the_one_that_gave_the_reserve_up_waits_for_the_same_space() {
        let (store, reserve, _) = reserved();
        let slow = Arc::new(Slow(Arc::clone(&store)));
        let reserved = ReservedStore::new(slow, Some(Arc::clone(&reserve) as _));
        store.fill_after(Some(1));
        reserved.commit(&BATCH, Durability::Synced).expect("from the reserve");
        store.fill_after(Some(1));
        let error = reserved.commit(&BATCH, Durability::Synced).expect_err("others took the space");
        assert!(error.is_out_of_space);

        reserve.is_replaced.store(true, Ordering::Relaxed);
        reserved.commit(&BATCH, Durability::Synced).expect("the store notices the space");
    }
}
