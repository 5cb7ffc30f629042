//! What is asked of a metadata store: tables, changes of their keys, what a commit promises, and why it failed.

use std::fmt;

/// A table of the store. Keys of different tables never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Volumes, trees, domains, the checkpoint.
    Catalog,
    /// Sessions of the pool.
    Sessions,
    /// Map leaves by (tree, leaf index, !epoch). The only table with merges.
    Leaves,
    /// Leaves by (tree, epoch, leaf index), without values.
    EpochLeaves,
    /// Whom an address was written for. With merges.
    Owners,
    /// Which blocks the stored leaves map.
    Used,
    /// Which blocks more than one place maps.
    Shared,
}

impl Table {
    /// All tables, in a fixed order.
    pub const ALL: [Self; 7] =
        [Self::Catalog, Self::Sessions, Self::Leaves, Self::EpochLeaves, Self::Owners, Self::Used, Self::Shared];
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaOp {
    /// Replaces the value, merges included.
    Put(Table, Vec<u8>, Vec<u8>),
    /// Appends the bytes to the value; to an empty one if there is none.
    Append(Table, Vec<u8>, Vec<u8>),
    /// Removes the key; no error if there is none.
    Delete(Table, Vec<u8>),
    /// Removes the keys from the first (included) to the second (excluded).
    DeleteRange(Table, Vec<u8>, Vec<u8>),
}

/// What a commit promises about power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// May be lost, together with every later batch. Only for hints: RocksDB begins a new log now and then, and does not
    /// notice at open if the end of the one before it is missing from exactly between two batches that nothing synced.
    Buffered,
    /// This batch and every earlier one survive.
    Synced,
}

/// Why the store failed.
#[derive(Debug)]
pub struct MetaError {
    /// Whether space ran out, which is no damage.
    pub is_out_of_space: bool,
    /// Whether what it read is damaged, so that trying again is no use.
    pub is_damaged: bool,
    /// The store's own words.
    pub message: String,
}

impl fmt::Display for MetaError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "metadata store: {}", self.message)
    }
}

impl std::error::Error for MetaError {}
