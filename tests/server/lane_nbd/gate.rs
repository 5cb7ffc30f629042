//! A metadata store whose commits wait while a gate is closed: RocksDB holds them back for minutes at times.

use super::PATIENCE;
use rok_blk::meta::{Durability, KeyValue, MemoryStore, MetaError, MetaOp, MetaRead, MetaStore, Table};
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Default)]
struct Gate {
    is_closed: bool,
    waiting_count: u32,
}

/// A store in memory behind a gate, which is open at first.
#[derive(Default)]
pub struct GatedStore {
    inner: MemoryStore,
    gate: Mutex<Gate>,
    changed: Condvar,
}

impl GatedStore {
    pub fn set_closed(&self, is_closed: bool) {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).is_closed = is_closed;
        self.changed.notify_all();
    }

    /// Returns once a commit waits at the gate.
    pub fn await_commit(&self) {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(gate, PATIENCE, |gate| gate.waiting_count == 0);
        assert!(!waited.unwrap_or_else(PoisonError::into_inner).1.timed_out(), "no commit comes");
    }
}

impl MetaRead for GatedStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.inner.get(table, key)
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        self.inner.seek(table, prefix, from)
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        self.inner.walk(table, prefix, from, visit)
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        self.inner.scan(table, from, end, limit)
    }
}

impl MetaStore for GatedStore {
    fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.waiting_count += 1;
        self.changed.notify_all();
        let waited = self.changed.wait_while(gate, |gate| gate.is_closed);
        waited.unwrap_or_else(PoisonError::into_inner).waiting_count -= 1;
        self.inner.commit(batch, durability)
    }

    fn view(&self, look: &mut dyn FnMut(&dyn MetaRead)) {
        self.inner.view(look);
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
}
