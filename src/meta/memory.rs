//! The store in memory: for the simulation, and where RocksDB is not built in.
//!
//! It keeps what undoes each batch since the last synced one, so that [`MemoryStore::crash`] can leave any prefix of
//! them that a real store may leave. It fails and rots on command. All it does is deterministic.

use std::collections::BTreeMap;
use std::ops::Bound;

use parking_lot::Mutex;

use super::{Durability, KeyValue, MetaError, MetaOp, MetaRead, MetaStore, Table};
use crate::units::to_u64;

/// An ordered store of bytes in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

/// By the position of the table.
type Tables = [BTreeMap<Vec<u8>, Vec<u8>>; Table::ALL.len()];

#[derive(Clone, Debug, Default)]
struct State {
    tables: Tables,
    /// What undoes each batch since the last synced one, oldest first.
    unsynced: Vec<Vec<Undo>>,
    /// The batch whose commit failed last, unless one succeeded since: a crash may find it on the disk.
    limbo: Option<Vec<MetaOp>>,
    /// How many commits it is until one fails with an I/O error.
    commits_to_failure: Option<u64>,
    /// How many commits it is until space is out, and stays out.
    commits_to_full: Option<u64>,
    /// Commits that failed with an I/O error.
    failed_commits: u64,
    /// The table whose reads fail with an I/O error.
    unreadable: Option<Table>,
    /// How many reads it is until one fails with an I/O error.
    reads_to_failure: Option<u64>,
}

#[derive(Clone, Debug)]
enum Undo {
    /// The key had this value, or none.
    Restore(Table, Vec<u8>, Option<Vec<u8>>),
    /// The value had this length.
    Truncate(Table, Vec<u8>, usize),
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Another store with the same batches, durable and not, and the same failures to come: for several crashes at one point.
    #[must_use]
    pub fn image(&self) -> Self {
        Self { state: Mutex::new(self.state.lock().clone()) }
    }

    /// Loses power: `keep` gets the number of batches that are not surely durable and says how many of them survive.
    /// The newest of them is the batch of a commit that failed with an I/O error, if none succeeded since. What
    /// survives is durable from then on.
    ///
    /// # Panics
    /// If `keep` returns more than it got.
    pub fn crash(&self, keep: impl FnOnce(usize) -> usize) {
        let mut state = self.state.lock();
        let committed = state.unsynced.len();
        let count = committed + usize::from(state.limbo.is_some());
        let kept = keep(count);
        assert!(kept <= count, "no more batches can survive than there are");
        let limbo = state.limbo.take();
        if let Some(batch) = limbo.filter(|_| kept > committed) {
            batch.iter().for_each(|op| state.apply(op, &mut Vec::new()));
        }
        for batch in state.unsynced.split_off(kept.min(committed)).into_iter().rev() {
            batch.into_iter().rev().for_each(|undo| state.revert(undo));
        }
        state.unsynced.clear();
    }

    /// How many committed batches a crash may lose.
    #[must_use]
    pub fn unsynced_count(&self) -> usize {
        self.state.lock().unsynced.len()
    }

    /// Lets the `count`-th next commit (from 1) fail with an I/O error, and only that one; `None` takes it back.
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn fail_commit_after(&self, count: Option<u64>) {
        assert!(count != Some(0), "commits are counted from 1");
        self.state.lock().commits_to_failure = count;
    }

    /// Lets space run out at the `count`-th next commit (from 1) and stay out until `None` gives some back.
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn fill_after(&self, count: Option<u64>) {
        assert!(count != Some(0), "commits are counted from 1");
        self.state.lock().commits_to_full = count;
    }

    /// Whether a crash may find the batch of a commit that failed, or not.
    #[must_use]
    pub fn is_commit_in_doubt(&self) -> bool {
        self.state.lock().limbo.is_some()
    }

    /// How many commits have failed with an I/O error so far.
    #[must_use]
    pub fn failed_commit_count(&self) -> u64 {
        self.state.lock().failed_commits
    }

    /// Lets the reads of a table fail with an I/O error until `None` takes it back.
    pub fn fail_reads_of(&self, table: Option<Table>) {
        self.state.lock().unreadable = table;
    }

    /// Lets the `count`-th next read (from 1) fail with an I/O error, and only that one. Whether one was still to fail before.
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn fail_read_after(&self, count: Option<u64>) -> bool {
        assert!(count != Some(0), "reads are counted from 1");
        std::mem::replace(&mut self.state.lock().reads_to_failure, count).is_some()
    }

    /// Whether nothing says when space runs out.
    #[must_use]
    pub fn has_space(&self) -> bool {
        self.state.lock().commits_to_full.is_none()
    }

    /// Inverts a bit of a value (bit 0 is the lowest of the first byte) as rot would. False if it has no such bit.
    pub fn flip_bit(&self, table: Table, key: &[u8], bit: usize) -> bool {
        let mut state = self.state.lock();
        let Some(byte) = state.table_mut(table).get_mut(key).and_then(|value| value.get_mut(bit / 8)) else {
            return false;
        };
        *byte ^= 1 << (bit % 8);
        true
    }

    /// A hash of all content: equal stores have equal digests.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let state = self.state.lock();
        let mut hasher = blake3::Hasher::new();
        for entries in &state.tables {
            hasher.update(&to_u64(entries.len()).to_le_bytes());
            for part in entries.iter().flat_map(|(key, value)| [key, value]) {
                hasher.update(&to_u64(part.len()).to_le_bytes());
                hasher.update(part);
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// Everything that is stored, ordered by table and key.
    #[must_use]
    pub fn entries(&self) -> Vec<(Table, KeyValue)> {
        let state = self.state.lock();
        let tables = Table::ALL.into_iter().zip(&state.tables);
        tables
            .flat_map(|(table, entries)| entries.iter().map(move |(key, value)| (table, (key.clone(), value.clone()))))
            .collect()
    }
}

/// The content of a store at one moment.
struct MemoryView(Tables);

impl MetaRead for MemoryStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        Ok(get(self.state.lock().readable(table)?, table, key))
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        Ok(seek(self.state.lock().readable(table)?, table, prefix, from))
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        walk(self.state.lock().readable(table)?, table, (prefix, from), visit);
        Ok(())
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        Ok(scan(self.state.lock().readable(table)?, table, from, end, limit))
    }
}

impl MetaRead for MemoryView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        Ok(get(&self.0, table, key))
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        Ok(seek(&self.0, table, prefix, from))
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        walk(&self.0, table, (prefix, from), visit);
        Ok(())
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        Ok(scan(&self.0, table, from, end, limit))
    }
}

fn input_output_error() -> MetaError {
    MetaError { is_out_of_space: false, is_damaged: false, message: "simulated: input/output error".into() }
}

fn get(tables: &Tables, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    tables[position(table)].get(key).cloned()
}

fn seek(tables: &Tables, table: Table, prefix: &[u8], from: &[u8]) -> Option<KeyValue> {
    debug_assert!(from.starts_with(prefix));
    let found = tables[position(table)].range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).next();
    found.filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone()))
}

fn walk(tables: &Tables, table: Table, (prefix, from): (&[u8], &[u8]), visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
    debug_assert!(from.starts_with(prefix));
    for (key, value) in tables[position(table)].range::<[u8], _>((Bound::Included(from), Bound::Unbounded)) {
        if !key.starts_with(prefix) || !visit(key, value) {
            return;
        }
    }
}

fn scan(tables: &Tables, table: Table, from: &[u8], end: &[u8], limit: usize) -> Vec<KeyValue> {
    if !end.is_empty() && from >= end {
        return Vec::new();
    }
    let end = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
    let entries = tables[position(table)].range::<[u8], _>((Bound::Included(from), end));
    entries.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl MetaStore for MemoryStore {
    fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        let mut state = self.state.lock();
        state.fail_if_due(batch)?;
        let mut undo = Vec::with_capacity(batch.len());
        batch.iter().for_each(|op| state.apply(op, &mut undo));
        state.limbo = None;
        match durability {
            Durability::Buffered => state.unsynced.push(undo),
            Durability::Synced => state.unsynced.clear(),
        }
        Ok(())
    }

    fn view(&self, look: &mut dyn FnMut(&dyn MetaRead)) {
        let view = MemoryView(self.state.lock().tables.clone());
        look(&view);
    }

    fn size_bytes(&self) -> u64 {
        let state = self.state.lock();
        let entries = state.tables.iter().flatten();
        entries.map(|(key, value)| to_u64(key.len() + value.len())).sum()
    }
}

impl State {
    fn table(&self, table: Table) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.tables[position(table)]
    }

    fn table_mut(&mut self, table: Table) -> &mut BTreeMap<Vec<u8>, Vec<u8>> {
        &mut self.tables[position(table)]
    }

    fn readable(&mut self, table: Table) -> Result<&Tables, MetaError> {
        let count = self.reads_to_failure.take();
        if count == Some(1) {
            return Err(input_output_error());
        }
        self.reads_to_failure = count.map(|count| count - 1);
        if self.unreadable == Some(table) { Err(input_output_error()) } else { Ok(&self.tables) }
    }

    fn fail_if_due(&mut self, batch: &[MetaOp]) -> Result<(), MetaError> {
        if let Some(count) = &mut self.commits_to_full {
            *count = count.saturating_sub(1);
            if *count == 0 {
                return Err(MetaError {
                    is_out_of_space: true,
                    is_damaged: false,
                    message: "simulated: no space left".into(),
                });
            }
        }
        if let Some(count) = self.commits_to_failure {
            self.commits_to_failure = (count > 1).then(|| count - 1);
            if count == 1 {
                self.failed_commits += 1;
                self.limbo = Some(batch.to_vec());
                return Err(input_output_error());
            }
        }
        Ok(())
    }

    fn apply(&mut self, op: &MetaOp, undo: &mut Vec<Undo>) {
        match op {
            MetaOp::Put(table, key, value) => {
                let old = self.table_mut(*table).insert(key.clone(), value.clone());
                undo.push(Undo::Restore(*table, key.clone(), old));
            }
            MetaOp::Append(table, key, bytes) => self.append(*table, key, bytes, undo),
            MetaOp::Delete(table, key) => {
                let old = self.table_mut(*table).remove(key);
                undo.push(Undo::Restore(*table, key.clone(), old));
            }
            MetaOp::DeleteRange(table, from, end) => self.delete_range(*table, from, end, undo),
        }
    }

    fn append(&mut self, table: Table, key: &[u8], bytes: &[u8], undo: &mut Vec<Undo>) {
        if let Some(value) = self.table_mut(table).get_mut(key) {
            undo.push(Undo::Truncate(table, key.to_vec(), value.len()));
            value.extend_from_slice(bytes);
        } else {
            self.table_mut(table).insert(key.to_vec(), bytes.to_vec());
            undo.push(Undo::Restore(table, key.to_vec(), None));
        }
    }

    fn delete_range(&mut self, table: Table, from: &[u8], end: &[u8], undo: &mut Vec<Undo>) {
        if from >= end {
            return;
        }
        let range = (Bound::Included(from), Bound::Excluded(end));
        let keys: Vec<_> = self.table(table).range::<[u8], _>(range).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let old = self.table_mut(table).remove(&key);
            undo.push(Undo::Restore(table, key, old));
        }
    }

    fn revert(&mut self, undo: Undo) {
        match undo {
            Undo::Restore(table, key, Some(value)) => {
                self.table_mut(table).insert(key, value);
            }
            Undo::Restore(table, key, None) => {
                self.table_mut(table).remove(&key);
            }
            Undo::Truncate(table, key, len) => {
                self.table_mut(table).get_mut(&key).expect("later changes of the key are undone").truncate(len);
            }
        }
    }
}

fn position(table: Table) -> usize {
    Table::ALL.iter().position(|other| *other == table).expect("all tables are listed")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::behaviours;
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> MetaOp {
        MetaOp::Put(Table::Leaves, key.to_vec(), value.to_vec())
    }

    #[test]
    fn memory_store_behaves_as_every_store() {
        behaviours::check_all(&MemoryStore::new());
    }

    #[test]
    fn crash_leaves_exactly_each_prefix_that_is_asked_for() {
        let mut random = SmallRng::seed_from_u64(1);
        for _ in 0..200 {
            let batches: Vec<_> = (0..6).map(|_| behaviours::random_batch(&mut random)).collect();
            for kept in 0..=batches.len() {
                let (store, model) = (MemoryStore::new(), MemoryStore::new());
                let start = [put(b"a", b"0"), put(b"b", b"0")];
                store.commit(&start, Durability::Synced).expect("no failure is due");
                model.commit(&start, Durability::Synced).expect("no failure is due");
                for (index, batch) in batches.iter().enumerate() {
                    store.commit(batch, Durability::Buffered).expect("no failure is due");
                    if index < kept {
                        model.commit(batch, Durability::Synced).expect("no failure is due");
                    }
                }

                store.crash(|count| {
                    assert_eq!(count, batches.len());
                    kept
                });

                assert_eq!(store.entries(), model.entries());
                assert_eq!(store.digest(), model.digest());
                assert_eq!(store.unsynced_count(), 0);
            }
        }
    }

    #[test]
    fn synced_commit_saves_all_before_it() {
        let store = MemoryStore::new();
        store.commit(&[put(b"a", b"1")], Durability::Buffered).expect("no failure is due");
        store.commit(&[], Durability::Synced).expect("no failure is due");
        store.commit(&[put(b"b", b"2")], Durability::Buffered).expect("no failure is due");

        store.crash(|count| count - 1);

        assert_eq!(store.get(Table::Leaves, b"a").expect("memory"), Some(b"1".to_vec()));
        assert_eq!(store.get(Table::Leaves, b"b").expect("memory"), None);
    }

    #[test]
    fn failing_commit_changes_nothing_and_fails_once() {
        let store = MemoryStore::new();
        store.fail_commit_after(Some(2));
        store.commit(&[put(b"a", b"1")], Durability::Synced).expect("the second one fails");
        let before = store.digest();

        let error = store.commit(&[put(b"a", b"2")], Durability::Synced).expect_err("it is the second one");

        assert!(!error.is_out_of_space);
        assert_eq!(store.digest(), before);
        store.commit(&[put(b"a", b"3")], Durability::Synced).expect("only one fails");
        assert_ne!(store.digest(), before);
    }

    #[test]
    fn batch_of_a_failed_commit_may_survive_a_crash() {
        for (kept, expected) in [(0, None), (1, Some(b"1".to_vec())), (2, Some(b"2".to_vec()))] {
            let store = MemoryStore::new();
            store.commit(&[put(b"a", b"1")], Durability::Buffered).expect("no failure is due");
            store.fail_commit_after(Some(1));
            store.commit(&[put(b"a", b"2")], Durability::Synced).expect_err("it is due");

            store.crash(|count| {
                assert_eq!(count, 2);
                kept
            });

            assert_eq!(store.get(Table::Leaves, b"a").expect("memory"), expected);
        }
    }

    #[test]
    fn full_store_refuses_until_space_is_given_back() {
        let store = MemoryStore::new();
        store.fill_after(Some(1));

        for _ in 0..3 {
            let error = store.commit(&[put(b"a", b"1")], Durability::Buffered).expect_err("space is out");
            assert!(error.is_out_of_space);
        }
        store.fill_after(None);

        store.commit(&[put(b"a", b"1")], Durability::Buffered).expect("there is space again");
        assert_eq!(store.unsynced_count(), 1);
    }

    #[test]
    fn flipped_bit_changes_the_value_and_the_digest() {
        let store = MemoryStore::new();
        store.commit(&[put(b"a", &[0, 0])], Durability::Synced).expect("no failure is due");
        let before = store.digest();

        assert!(store.flip_bit(Table::Leaves, b"a", 9));

        assert_eq!(store.get(Table::Leaves, b"a").expect("memory"), Some(vec![0, 2]));
        assert_ne!(store.digest(), before);
        assert!(!store.flip_bit(Table::Leaves, b"a", 16));
        assert!(!store.flip_bit(Table::Catalog, b"a", 0));
    }

    #[test]
    fn digest_tells_tables_keys_and_values_apart() {
        let digest = |op: MetaOp| {
            let store = MemoryStore::new();
            store.commit(&[op], Durability::Synced).expect("no failure is due");
            store.digest()
        };
        let mut digests = vec![
            MemoryStore::new().digest(),
            digest(put(b"ab", b"c")),
            digest(put(b"a", b"bc")),
            digest(MetaOp::Put(Table::Owners, b"ab".to_vec(), b"c".to_vec())),
        ];
        digests.sort_unstable();
        digests.dedup();

        assert_eq!(digests.len(), 4);
    }
}
