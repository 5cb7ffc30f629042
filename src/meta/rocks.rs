//! The store on RocksDB: a column family for each table, one write-ahead log for all.
//!
//! A commit is one entry of the log. Commits reach the disk in order: a table's memory is only flushed to a file after
//! the logs of what came before are synced, so that what a crash leaves is a prefix in all tables alike. After an
//! error in writing RocksDB refuses further commits; after a lack of space it tries again by itself every five seconds:
//! once the buffer of one table is free it flushes all changes in memory, and accepts commits if that succeeds. So what
//! may be in memory is bounded by the reserve. Left to itself RocksDB would let commits wait for that, without a bound;
//! here they fail, so that the pool can give up its reserve, and only the commit behind that waits.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rocksdb::properties::BACKGROUND_ERRORS;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    DEFAULT_COLUMN_FAMILY_NAME, ErrorKind, FlushOptions, LogLevel, MergeOperands, Options, SliceTransform, Snapshot,
    WriteBatch, WriteBufferManager, WriteOptions,
};

use super::rocks_options::RocksOptions;
use super::rocks_reads::{
    collect, found_by_seek, many_seeks_options, scan_options, seek_one_after_the_other, seek_options, visit_from,
};
use super::{Durability, KeyValue, MetaError, MetaOp, MetaRead, MetaStore, Table};
use crate::units::to_u64;

/// Tree and leaf index: what all keys of one leaf share.
pub(super) const LEAF_PREFIX_BYTES: usize = 16;
/// Bits of the Bloom filter for each key or prefix: one false hit in a hundred.
const BLOOM_BITS: f64 = 10.0;
/// Keys of leaves and of their index between two that are stored in full: many of them are small.
const LEAF_RESTART_INTERVAL: i32 = 64;
/// Part of a table's memory that is a Bloom filter of prefixes.
const MEMORY_BLOOM_RATIO: f64 = 0.1;
/// Files of level 0 at which commits wait. Below it nothing slows them down: they either pass or wait.
const LEVEL_0_FILE_COUNT_MAX: i32 = 36;
/// How often, and after which pauses, a commit that has to wait for flushes tries again: two minutes.
const STALL_TRY_COUNT: u32 = 60_000;
const STALL_PAUSE: Duration = Duration::from_millis(2);
/// How often, and after which pauses, a commit is tried again for which there is new space: 15 seconds, in which RocksDB
/// itself tries three times.
const NEW_SPACE_TRY_COUNT: u32 = 300;
const NEW_SPACE_PAUSE: Duration = Duration::from_millis(50);
/// The largest size of one file of RocksDB's messages; two are kept.
const MESSAGE_FILE_BYTES_MAX: usize = 1 << 20;
const MESSAGE_FILE_COUNT: usize = 2;
/// Space that a manifest takes at a time.
const MANIFEST_STEP_BYTES: usize = 64 << 10;
/// What the operating system and RocksDB say when space is out.
const OUT_OF_SPACE_WORDS: [&str; 4] =
    ["No space left on device", "Disk quota exceeded", "Space limit reached", "Max allowed space was reached"];
/// What RocksDB says of a failed sync.
const SYNC_WORDS: [&str; 3] = ["While fdatasync", "While fsync", "While sync_file_range"];

/// A [`MetaStore`] in a directory of its own.
pub struct RocksStore {
    database: DB,
    path: PathBuf,
    /// Failed flushes and compactions up to the last successful commit.
    errors_seen: AtomicU64,
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
        Self::open_with(path, options, Access::Full, |database_options| database_options)
    }

    /// Opens the store in the directory `path` without a change of its files: what the log holds is in memory only.
    /// Every commit fails.
    ///
    /// # Errors
    /// As [`Self::open`], and if there is none.
    pub fn open_read_only(path: &Path, options: RocksOptions) -> Result<Self, MetaError> {
        Self::open_with(path, options, Access::Read, |database_options| database_options)
    }

    fn open_with(
        path: &Path,
        options: RocksOptions,
        access: Access,
        change: impl Fn(Options) -> Options,
    ) -> Result<Self, MetaError> {
        let direct = |mut database_options: Options| {
            // Else the page cache would hold a second copy of everything, without a bound.
            database_options.set_use_direct_reads(true);
            database_options.set_use_direct_io_for_flush_and_compaction(true);
            change(database_options)
        };
        let database = match open_database(path, options, access, &direct) {
            Err(error) if error.kind() == ErrorKind::NotSupported => {
                tracing::info!(path = %path.display(), "the file system has no direct I/O: its cache is used");
                open_database(path, options, access, &change)
            }
            opened => opened,
        };
        let database = database.map_err(|error| failure(&error))?;
        Ok(Self { database, path: path.to_path_buf(), errors_seen: AtomicU64::new(0) })
    }

    /// Writes all changes to their files, so that the next open replays nothing, and closes.
    ///
    /// # Errors
    /// If writing fails; the log still has what was committed. After an error of the log the lack of space that was its
    /// cause is not told.
    pub fn close(self) -> Result<(), MetaError> {
        self.database.flush_wal(true).map_err(|error| failure(&error))?;
        // Without space a flush would wait for some; the next open replays the log instead.
        if !self.is_stuck()? {
            let mut options = FlushOptions::default();
            options.set_wait(true);
            let families = Table::ALL.map(|table| self.family(table));
            self.database.flush_cfs_opt(&families, &options).map_err(|error| failure(&error))?;
        }
        self.database.cancel_all_background_work(true);
        Ok(())
    }

    /// Writes everything to files and merges these.
    ///
    /// # Errors
    /// If writing fails.
    pub fn compact(&self) -> Result<(), MetaError> {
        for table in Table::ALL {
            self.database.flush_cf(self.family(table)).map_err(|error| failure(&error))?;
            self.database.compact_range_cf(self.family(table), None::<&[u8]>, None::<&[u8]>);
        }
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
                MetaOp::DeleteRange(..) if is_nothing(op) => {}
                MetaOp::DeleteRange(table, from, end) => writes.delete_range_cf(self.family(*table), from, end),
            }
        }
        writes
    }

    /// Whether a flush or compaction failed since the last successful commit.
    fn is_stuck(&self) -> Result<bool, MetaError> {
        Ok(self.background_errors()? > self.errors_seen.load(Ordering::Relaxed))
    }

    fn background_errors(&self) -> Result<u64, MetaError> {
        let count = self.database.property_int_value(BACKGROUND_ERRORS).map_err(|error| failure(&error))?;
        Ok(count.unwrap_or_default())
    }

    /// Writes a batch. It waits while flushes are behind, but not for space.
    fn write(&self, batch: &[MetaOp], options: &WriteOptions) -> Result<(), MetaError> {
        for _ in 0..STALL_TRY_COUNT {
            let Err(error) = self.database.write_opt(self.write_batch(batch), options) else {
                self.errors_seen.fetch_max(self.background_errors()?, Ordering::Relaxed);
                return Ok(());
            };
            if error.kind() != ErrorKind::Incomplete {
                return Err(failure(&error));
            }
            if self.is_stuck()? {
                // RocksDB holds commits back only while it waits for space; after other errors it refuses them.
                let message = "commits wait until flushes find space".into();
                return Err(MetaError { is_out_of_space: true, is_damaged: false, message });
            }
            std::thread::sleep(STALL_PAUSE);
        }
        // A compaction without space lets commits pass for a while, then holds them back without a new error.
        let is_out_of_space = self.background_errors()? > 0;
        Err(MetaError { is_out_of_space, is_damaged: false, message: "commits are held back for too long".into() })
    }
}

impl MetaRead for RocksStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.database.get_cf(self.family(table), key).map_err(|error| failure(&error))
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        let iterator = self.database.raw_iterator_cf_opt(self.family(table), seek_options(table, prefix));
        found_by_seek(collect(iterator, from, 1), prefix)
    }

    fn seek_first(
        &self,
        table: Table,
        places: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<Option<KeyValue>, MetaError> {
        seek_one_after_the_other(
            self.database.raw_iterator_cf_opt(self.family(table), many_seeks_options(table)),
            places,
        )
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        let iterator = self.database.raw_iterator_cf_opt(self.family(table), seek_options(table, prefix));
        visit_from(iterator, (prefix, from), visit)
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        let Some(options) = scan_options(from, end, limit) else { return Ok(Vec::new()) };
        collect(self.database.raw_iterator_cf_opt(self.family(table), options), from, limit)
    }
}

/// The store at one moment.
struct RocksView<'a> {
    store: &'a RocksStore,
    snapshot: Snapshot<'a>,
}

impl MetaRead for RocksView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.snapshot.get_cf(self.store.family(table), key).map_err(|error| failure(&error))
    }

    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        let iterator = self.snapshot.raw_iterator_cf_opt(self.store.family(table), seek_options(table, prefix));
        found_by_seek(collect(iterator, from, 1), prefix)
    }

    fn seek_first(
        &self,
        table: Table,
        places: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<Option<KeyValue>, MetaError> {
        seek_one_after_the_other(
            self.snapshot.raw_iterator_cf_opt(self.store.family(table), many_seeks_options(table)),
            places,
        )
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        let options = seek_options(table, prefix);
        let iterator = self.snapshot.raw_iterator_cf_opt(self.store.family(table), options);
        visit_from(iterator, (prefix, from), visit)
    }

    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        let Some(options) = scan_options(from, end, limit) else { return Ok(Vec::new()) };
        collect(self.snapshot.raw_iterator_cf_opt(self.store.family(table), options), from, limit)
    }
}

impl MetaStore for RocksStore {
    fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        if batch.iter().all(is_nothing) && durability == Durability::Synced {
            return self.database.flush_wal(true).map_err(|error| failure(&error));
        }
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        options.set_no_slowdown(true);
        self.write(batch, &options)
    }

    fn commit_with_new_space(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        let mut result = self.commit(batch, durability);
        for _ in 0..NEW_SPACE_TRY_COUNT {
            if !result.as_ref().is_err_and(|error| error.is_out_of_space) {
                break;
            }
            std::thread::sleep(NEW_SPACE_PAUSE);
            result = self.commit(batch, durability);
        }
        result
    }

    fn view(&self, look: &mut dyn FnMut(&dyn MetaRead)) {
        look(&RocksView { store: self, snapshot: self.database.snapshot() });
    }

    /// The sum of the directory's files; one that vanishes meanwhile counts as nothing.
    fn size_bytes(&self) -> u64 {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return 0 };
        entries.flatten().filter_map(|entry| entry.metadata().ok()).filter(|data| data.is_file()).map(|f| f.len()).sum()
    }
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Full,
    Read,
}

fn open_database(
    path: &Path,
    options: RocksOptions,
    access: Access,
    change: &impl Fn(Options) -> Options,
) -> Result<DB, rocksdb::Error> {
    let cache = Cache::new_lru_cache(options.cache_size_bytes);
    let families =
        Table::ALL.map(|table| ColumnFamilyDescriptor::new(family_name(table), family_options(table, &cache, options)));
    // RocksDB insists on this table. Nothing is in it, but its buffer counts as space that must be free.
    let unused = ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, common_family_options(options));
    let families = families.into_iter().chain([unused]);
    let options = change(database_options(options, &cache));
    match access {
        Access::Full => DB::open_cf_descriptors(&options, path, families),
        Access::Read => DB::open_cf_descriptors_read_only(&options, path, families, false),
    }
}

/// RocksDB leaves open what a range does that ends before it starts: it is not given to it.
fn is_nothing(op: &MetaOp) -> bool {
    matches!(op, MetaOp::DeleteRange(_, from, end) if from >= end)
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

fn database_options(limits: RocksOptions, cache: &Cache) -> Options {
    let buffer_size = limits.write_buffer_bytes();
    // A log that takes space before it needs it would take the last of a file system, and with it the reserve.
    let options = Options::default().get_options_from_string("allow_fallocate=false");
    let mut options = options.expect("RocksDB knows its own option");
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // A power loss may take any page of a log behind the last sync: nothing behind the first gap counts. (Tolerating a
    // torn tail instead refuses a gap in the middle, and goes on behind the torn end of a log that is not the last.)
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // What was synced when a log was closed must be there: else its loss would pass for a gap.
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        buffer_size,
        false,
        cache.clone(),
    ));
    options.set_max_total_wal_size(to_u64(buffer_size));
    options.set_max_open_files(limits.open_files().into());
    options.set_max_background_jobs(limits.background_thread_count.max(1).into());
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(MESSAGE_FILE_COUNT);
    options.set_max_log_file_size(MESSAGE_FILE_BYTES_MAX);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_manifest_preallocation_size(MANIFEST_STEP_BYTES);
    options
}

fn common_family_options(limits: RocksOptions) -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(limits.family_buffer_bytes());
    options.set_compression_type(DBCompressionType::None);
    options.set_level_zero_slowdown_writes_trigger(LEVEL_0_FILE_COUNT_MAX);
    options.set_level_zero_stop_writes_trigger(LEVEL_0_FILE_COUNT_MAX);
    options.set_soft_pending_compaction_bytes_limit(0);
    options.set_hard_pending_compaction_bytes_limit(0);
    options
}

fn family_options(table: Table, cache: &Cache, limits: RocksOptions) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Who asks for a key of the index knows that it is there.
    if table != Table::EpochLeaves {
        blocks.set_bloom_filter(BLOOM_BITS, false);
    }
    if matches!(table, Table::Leaves | Table::EpochLeaves) {
        blocks.set_block_restart_interval(LEAF_RESTART_INTERVAL);
    }
    let mut options = common_family_options(limits);
    if table == Table::Leaves {
        blocks.set_whole_key_filtering(false);
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(LEAF_PREFIX_BYTES));
        options.set_memtable_prefix_bloom_ratio(MEMORY_BLOOM_RATIO);
    }
    options.set_block_based_table_factory(&blocks);
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

pub(super) fn failure(error: &rocksdb::Error) -> MetaError {
    let message = error.to_string();
    MetaError {
        is_out_of_space: is_refused_for_space(&message),
        is_damaged: error.kind() == ErrorKind::Corruption,
        message,
    }
}

/// Whether a write found no space. A sync that finds none is a failed sync: what was to be written may be there after a
/// crash, and what it would be if it were tried again nobody knows.
fn is_refused_for_space(message: &str) -> bool {
    let has = |words: &[&str]| words.iter().any(|words| message.contains(words));
    has(&OUT_OF_SPACE_WORDS) && !has(&SYNC_WORDS)
}

#[cfg(test)]
#[path = "rocks_tests.rs"]
mod tests;
