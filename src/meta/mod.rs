//! The metadata store: ordered tables of bytes with atomic batches.
//!
//! The map's leaves, the catalog, sessions, owners and free-space bitmaps live here. Values are opaque:
//! what is secret was sealed above. Batches commit in order: after a crash the store holds all up to the last one that
//! was committed with [`Durability::Synced`], and of the later ones a prefix, but for what [`Durability::Buffered`] says.

#[cfg(test)]
mod behaviours;
mod memory;
mod operation;
mod reserved;
#[cfg(feature = "rocksdb")]
mod rocks;
#[cfg(feature = "rocksdb")]
mod rocks_options;
#[cfg(feature = "rocksdb")]
mod rocks_reads;

pub use memory::MemoryStore;
pub use operation::{Durability, MetaError, MetaOp, Table};
pub use reserved::{ReservedStore, SpaceReserve};
#[cfg(feature = "rocksdb")]
pub use rocks::RocksStore;
#[cfg(feature = "rocksdb")]
pub use rocks_options::RocksOptions;

/// A key and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// What reads an ordered store of bytes. All calls may block: never call them on a lane.
pub trait MetaRead: Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// The store's failure.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError>;

    /// The first key at or behind `from` that starts with `prefix`, and its value. `from` starts with `prefix`.
    ///
    /// # Errors
    /// The store's failure.
    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError>;

    /// What [`Self::seek`] finds at the first of several places that has something: each is a prefix and where to begin.
    ///
    /// # Errors
    /// The store's failure.
    fn seek_first(
        &self,
        table: Table,
        mut places: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<Option<KeyValue>, MetaError> {
        Iterator::find_map(&mut places, |(prefix, from)| self.seek(table, &prefix, &from).transpose()).transpose()
    }

    /// Shows `visit` the keys at or behind `from` that start with `prefix`, in order, with their values, until it returns `false`:
    /// all as they are at one moment. `from` starts with `prefix`. It must not call the store.
    ///
    /// # Errors
    /// The store's failure.
    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError>;

    /// At most `limit` keys at or behind `from` and before `end` (an empty `end` is none), in order, with values.
    ///
    /// # Errors
    /// The store's failure.
    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError>;
}

/// An ordered store of bytes. All calls may block: never call them on a lane.
pub trait MetaStore: MetaRead {
    /// Applies all of `batch` or nothing.
    ///
    /// # Errors
    /// The store's failure; then nothing of the batch is visible.
    fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError>;

    /// As [`Self::commit`] by a caller who knows that there is space again after a lack of it: waits, for a bounded time,
    /// until the store has noticed.
    ///
    /// # Errors
    /// As [`Self::commit`].
    fn commit_with_new_space(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        self.commit(batch, durability)
    }

    /// Gives `look` the store as it is when this is called. It sees no later commit, and none waits for it.
    fn view(&self, look: &mut dyn FnMut(&dyn MetaRead));

    /// Bytes that the store takes on disk, as far as it knows.
    fn size_bytes(&self) -> u64;
}
