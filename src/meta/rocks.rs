//! The store on RocksDB: a column family for each table, one write-ahead log for all.
//!
//! A commit is one entry of the log. Commits reach the disk in order: a table's memory is only flushed to a file after
//! the logs of what came before are synced, so that what a crash leaves is a prefix in all tables alike. After an
//! error in writing RocksDB refuses further commits; after a lack of space it tries again by itself every few seconds
//! and accepts commits once it succeeded.

use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    FlushOptions, LogLevel, MergeOperands, Options, ReadOptions, SliceTransform, WriteBatch, WriteBufferManager,
    WriteOptions,
};

use super::{Durability, KeyValue, MetaError, MetaOp, MetaStore, Table};

/// Tree and leaf index: what all keys of one leaf share.
const LEAF_PREFIX_BYTES: usize = 16;
/// Bits of the Bloom filter for each key or prefix: one false hit in a hundred.
const BLOOM_BITS: f64 = 10.0;
/// Part of a table's memory that is a Bloom filter of prefixes.
const MEMORY_BLOOM_RATIO: f64 = 0.1;
/// Unwritten changes may take this part of the cache.
const WRITE_BUFFER_DIVISOR: usize = 4;
/// The largest size of one file of RocksDB's messages; two are kept.
const MESSAGE_FILE_BYTES_MAX: usize = 1 << 20;
const MESSAGE_FILE_COUNT: usize = 2;
/// What the operating system and RocksDB say when space is out.
const OUT_OF_SPACE_WORDS: [&str; 4] =
    ["No space left on device", "Disk quota exceeded", "Space limit reached", "Max allowed space was reached"];

/// How much a [`RocksStore`] may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Memory for blocks, indexes, filters and unwritten changes together.
    pub cache_size_bytes: usize,
    /// Files open at once, at least 64.
    pub open_file_count_max: u16,
    /// Threads that flush and compact, at least 1.
    pub background_thread_count: u8,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { cache_size_bytes: 256 << 20, open_file_count_max: 512, background_thread_count: 2 }
    }
}

/// A [`MetaStore`] in a directory of its own.
pub struct RocksStore {
    database: DB,
    path: PathBuf,
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RocksStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RocksStore {
    /// Opens the store in the directory `path`, which it creates where it is missing, and replays the log. A torn end
    /// of the log is dropped: the caller compares a number in it with one that it keeps elsewhere.
    ///
    /// # Errors
    /// If another process has it open, it is damaged, or the file system fails.
    pub fn open(path: &Path, options: RocksOptions) -> Result<Self, MetaError> {
        let cache = Cache::new_lru_cache(options.cache_size_bytes);
        let buffer_size = options.cache_size_bytes / WRITE_BUFFER_DIVISOR;
        let families = Table::ALL
            .map(|table| ColumnFamilyDescriptor::new(family_name(table), family_options(table, &cache, buffer_size)));
        let database = DB::open_cf_descriptors(&database_options(options, &cache, buffer_size), path, families)
            .map_err(|error| failure(&error))?;
        Ok(Self { database, path: path.to_path_buf() })
    }

    /// Writes all changes to their files, so that the next open replays nothing, and closes.
    ///
    /// # Errors
    /// If writing fails; the log still has what was committed.
    pub fn close(self) -> Result<(), MetaError> {
        self.database.flush_wal(true).map_err(|error| failure(&error))?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families = Table::ALL.map(|table| self.family(table));
        self.database.flush_cfs_opt(&families, &options).map_err(|error| failure(&error))?;
        self.database.cancel_all_background_work(true);
        Ok(())
    }

    fn family(&self, table: Table) -> &ColumnFamily {
        self.database.cf_handle(family_name(table)).expect("every table was opened")
    }

    fn write_batch(&self, batch: &[MetaOp]) -> WriteBatch {
        let mut writes = WriteBatch::default();
        for op in batch {
            match op {
                MetaOp::Put(table, key, value) => writes.put_cf(self.family(*table), key, value),
                MetaOp::Append(table, key, bytes) => writes.merge_cf(self.family(*table), key, bytes),
                MetaOp::Delete(table, key) => writes.delete_cf(self.family(*table), key),
                // RocksDB leaves open what a range does that ends before it starts.
                MetaOp::DeleteRange(_, from, end) if from >= end => {}
                MetaOp::DeleteRange(table, from, end) => writes.delete_range_cf(self.family(*table), from, end),
            }
        }
        writes
    }

    /// Entries from `from` on while `take` wants more.
    fn iterate(
        &self,
        table: Table,
        from: &[u8],
        options: ReadOptions,
        limit: usize,
    ) -> Result<Vec<KeyValue>, MetaError> {
        let mut found = Vec::new();
        let mut iterator = self.database.raw_iterator_cf_opt(self.family(table), options);
        iterator.seek(from);
        while found.len() < limit {
            let Some((key, value)) = iterator.item() else { break };
            found.push((key.to_vec(), value.to_vec()));
            if found.len() < limit {
                iterator.next();
            }
        }
        // The end of the entries and an error look alike until the status is read.
        iterator.status().map_err(|error| failure(&error))?;
        Ok(found)
    }
}

impl MetaStore for RocksStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.database.get_cf(self.family(table), key).map_err(|error| failure(&error))
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        debug_assert!(from.starts_with(prefix));
        let mut options = ReadOptions::default();
        // The filter knows whole prefixes only.
        let is_filtered = table == Table::Leaves && prefix.len() >= LEAF_PREFIX_BYTES;
        options.set_total_order_seek(!is_filtered);
        options.set_prefix_same_as_start(is_filtered);
        if let Some(end) = prefix_end(prefix) {
            options.set_iterate_upper_bound(end);
        }
        let found = self.iterate(table, from, options, 1)?;
        Ok(found.into_iter().next().filter(|(key, _)| key.starts_with(prefix)))
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        if !end.is_empty() && from >= end {
            return Ok(Vec::new());
        }
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        if !end.is_empty() {
            options.set_iterate_upper_bound(end);
        }
        self.iterate(table, from, options, limit)
    }

    fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        let writes = self.write_batch(batch);
        let result = if writes.is_empty() && durability == Durability::Synced {
            self.database.flush_wal(true)
        } else {
            self.database.write_opt(writes, &options)
        };
        result.map_err(|error| failure(&error))
    }

    /// The sum of the directory's files; one that vanishes meanwhile counts as nothing.
    fn size_bytes(&self) -> u64 {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return 0 };
        entries.flatten().filter_map(|entry| entry.metadata().ok()).filter(|data| data.is_file()).map(|f| f.len()).sum()
    }
}

/// The name on disk; part of the format.
const fn family_name(table: Table) -> &'static str {
    match table {
        Table::Catalog => "catalog",
        Table::Sessions => "sessions",
        Table::Leaves => "leaves",
        Table::EpochLeaves => "epoch-leaves",
        Table::Owners => "owners",
        Table::Used => "used",
        Table::Shared => "shared",
    }
}

fn database_options(limits: RocksOptions, cache: &Cache, buffer_size: usize) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        buffer_size,
        false,
        cache.clone(),
    ));
    options.set_max_total_wal_size(buffer_size as u64);
    options.set_max_open_files(limits.open_file_count_max.max(64).into());
    options.set_max_background_jobs(limits.background_thread_count.max(1).into());
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(MESSAGE_FILE_COUNT);
    options.set_max_log_file_size(MESSAGE_FILE_BYTES_MAX);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(table: Table, cache: &Cache, buffer_size: usize) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_bloom_filter(BLOOM_BITS, false);
    let mut options = Options::default();
    if table == Table::Leaves {
        blocks.set_whole_key_filtering(false);
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(LEAF_PREFIX_BYTES));
        options.set_memtable_prefix_bloom_ratio(MEMORY_BLOOM_RATIO);
    }
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(buffer_size);
    options.set_compression_type(DBCompressionType::None);
    options.set_merge_operator_associative("append", append);
    options
}

/// The merge operator: values and what was appended to them, one behind the other.
#[expect(clippy::unnecessary_wraps, reason = "the signature of a merge operator; `None` would be a failure")]
fn append(_key: &[u8], value: Option<&[u8]>, appended: &MergeOperands) -> Option<Vec<u8>> {
    let len = value.map_or(0, <[u8]>::len) + appended.iter().map(<[u8]>::len).sum::<usize>();
    let mut merged = Vec::with_capacity(len);
    merged.extend_from_slice(value.unwrap_or_default());
    appended.iter().for_each(|bytes| merged.extend_from_slice(bytes));
    Some(merged)
}

/// The first key behind all that start with `prefix`; `None` if there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn failure(error: &rocksdb::Error) -> MetaError {
    let message = error.to_string();
    MetaError { is_out_of_space: OUT_OF_SPACE_WORDS.iter().any(|words| message.contains(words)), message }
}

#[cfg(test)]
#[path = "rocks_tests.rs"]
mod tests;
