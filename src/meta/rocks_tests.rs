//! RocksDB against the shared behaviours, the store in memory, torn logs and rotten files.

use std::fs;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tempfile::TempDir;

use super::super::rocks_reads::prefix_end;
use super::super::{MemoryStore, behaviours};
use super::*;

/// Small, so that the tests flush and evict.
const OPTIONS: RocksOptions = RocksOptions {
    cache_size_bytes: 4 << 20,
    open_file_count_max: 64,
    background_thread_count: 1,
    reserve_bytes: 1 << 20,
};

fn open(directory: &Path) -> RocksStore {
    RocksStore::open(directory, OPTIONS).expect("nothing is in the way of the store")
}

fn entries(store: &dyn MetaStore) -> Vec<(Table, KeyValue)> {
    Table::ALL
        .into_iter()
        .flat_map(|table| {
            let all = store.scan(table, b"", b"", usize::MAX).expect("the store scans");
            all.into_iter().map(move |entry| (table, entry))
        })
        .collect()
}

/// The directory as a killed process or a lost machine would leave it.
fn copy(directory: &Path) -> TempDir {
    let target = TempDir::new().expect("a temporary directory");
    for entry in fs::read_dir(directory).expect("the store's directory").flatten() {
        fs::copy(entry.path(), target.path().join(entry.file_name())).expect("files are copied");
    }
    target
}

fn file_with_extension(directory: &Path, extension: &str) -> PathBuf {
    let files = fs::read_dir(directory).expect("the store's directory").flatten().map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .max_by_key(|path| path.metadata().expect("the file is there").len())
        .expect("there is such a file")
}

#[test]
fn rocks_store_behaves_as_every_store() {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(directory.path());

    behaviours::check_all(&store);
    store.close().expect("the store closes");
    behaviours::check_all(&open(directory.path()));
}

#[test]
fn store_opened_for_reading_shows_its_log_and_changes_no_file() {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(directory.path());
    let put = MetaOp::Put(Table::Used, b"key".to_vec(), b"in the log".to_vec());
    store.commit(&[put], Durability::Synced).expect("nothing is in the way");
    let left = copy(directory.path());
    let contents = || {
        let files = fs::read_dir(left.path()).expect("it is there").flatten().map(|entry| entry.path());
        files.map(|path| (fs::read(&path).expect("a file"), path)).collect::<std::collections::BTreeSet<_>>()
    };
    let before = contents();

    let reading = RocksStore::open_read_only(left.path(), OPTIONS).expect("it is whole");
    assert_eq!(reading.get(Table::Used, b"key").expect("it reads"), Some(b"in the log".to_vec()));
    reading.commit(&[MetaOp::Delete(Table::Used, b"key".to_vec())], Durability::Synced).expect_err("only for reading");
    drop(reading);

    let after = contents();
    let changed: Vec<&PathBuf> = after.symmetric_difference(&before).map(|(_, path)| path).collect();
    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn random_batches_give_what_the_store_in_memory_gives() {
    let directory = TempDir::new().expect("a temporary directory");
    let (mut store, model) = (open(directory.path()), MemoryStore::new());
    let mut random = SmallRng::seed_from_u64(3);
    for round in 0..400_u32 {
        let batch = behaviours::random_batch(&mut random);
        let durability = if round % 8 == 0 { Durability::Synced } else { Durability::Buffered };
        store.commit(&batch, durability).expect("nothing is in the way of a commit");
        model.commit(&batch, durability).expect("no failure is due");
        if round % 50 == 49 {
            store.close().expect("the store closes");
            store = open(directory.path());
        }

        assert_eq!(entries(&store), model.entries(), "round {round}");
    }
}

#[test]
fn killed_process_loses_nothing() {
    let directory = TempDir::new().expect("a temporary directory");
    let (store, model) = (open(directory.path()), MemoryStore::new());
    let mut random = SmallRng::seed_from_u64(4);
    for _ in 0..50 {
        let batch = behaviours::random_batch(&mut random);
        store.commit(&batch, Durability::Buffered).expect("nothing is in the way of a commit");
        model.commit(&batch, Durability::Buffered).expect("no failure is due");
    }

    let left = copy(directory.path());

    assert_eq!(entries(&open(left.path())), model.entries());
}

#[test]
fn torn_log_leaves_a_prefix_of_the_batches() {
    let directory = TempDir::new().expect("a temporary directory");
    let (store, model) = (open(directory.path()), MemoryStore::new());
    let mut random = SmallRng::seed_from_u64(5);
    let mut prefixes = vec![model.entries()];
    for _ in 0..40 {
        let batch = behaviours::random_batch(&mut random);
        store.commit(&batch, Durability::Buffered).expect("nothing is in the way of a commit");
        model.commit(&batch, Durability::Buffered).expect("no failure is due");
        prefixes.push(model.entries());
    }
    let len = file_with_extension(directory.path(), "log").metadata().expect("the log is there").len();

    let mut survivors = Vec::new();
    for part in 0..=10 {
        let left = copy(directory.path());
        let log = file_with_extension(left.path(), "log");
        fs::File::options()
            .write(true)
            .open(log)
            .and_then(|file| file.set_len(len * part / 10))
            .expect("the log is cut");
        let found = entries(&open(left.path()));
        let count = prefixes.iter().rposition(|prefix| *prefix == found);
        survivors.push(count.expect("a prefix of the batches is left"));
    }

    assert!(survivors.is_sorted());
    assert_eq!(survivors.first(), Some(&0));
    assert_eq!(survivors.last(), Some(&40));
}

/// Commits so many small batches; appends what both stores hold after each of them.
fn commit_batches(store: &RocksStore, model: &MemoryStore, count: u32, prefixes: &mut Vec<Vec<(Table, KeyValue)>>) {
    for _ in 0..count {
        let number = prefixes.len();
        let batch = [MetaOp::Put(Table::Used, number.to_be_bytes().to_vec(), vec![7; 200])];
        store.commit(&batch, Durability::Buffered).expect("nothing is in the way of a commit");
        model.commit(&batch, Durability::Buffered).expect("no failure is due");
        prefixes.push(model.entries());
    }
}

fn logs(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).expect("the store's directory").flatten().map(|entry| entry.path());
    let mut logs: Vec<_> = files.filter(|path| path.extension().is_some_and(|found| found == "log")).collect();
    logs.sort();
    logs
}

/// A log that was closed and one behind it, none of them synced, no table's memory in a file; and what the store held
/// after each batch. The second number is that of the batches in the first log.
fn two_logs() -> (TempDir, Vec<Vec<(Table, KeyValue)>>, usize) {
    let directory = TempDir::new().expect("a temporary directory");
    let model = MemoryStore::new();
    let mut prefixes = vec![model.entries()];
    commit_batches(&open(directory.path()), &model, 40, &mut prefixes);
    let first_count = prefixes.len() - 1;
    let keep_logs = |mut options: Options| {
        options.get_options_from_string("avoid_flush_during_recovery=true").expect("a known option")
    };
    let directory = copy(directory.path());
    let store = RocksStore::open_with(directory.path(), OPTIONS, Access::Full, keep_logs).expect("the log is whole");
    commit_batches(&store, &model, 40, &mut prefixes);
    let left = copy(directory.path());
    assert_eq!(logs(left.path()).len(), 2);
    (left, prefixes, first_count)
}

/// How many of the batches a directory holds, if it opens.
fn prefix_left(directory: &Path, prefixes: &[Vec<(Table, KeyValue)>]) -> Option<usize> {
    let store = RocksStore::open(directory, OPTIONS).ok()?;
    let found = entries(&store);
    Some(prefixes.iter().rposition(|prefix| *prefix == found).expect("a prefix of the batches is left"))
}

/// File systems write the pages of a file in any order: one in the middle may be missing where later ones are there.
#[test]
fn missing_page_in_the_unsynced_end_of_the_log_leaves_a_prefix() {
    const PAGE_BYTES: usize = 4096;
    let directory = TempDir::new().expect("a temporary directory");
    let (store, model) = (open(directory.path()), MemoryStore::new());
    let mut prefixes = vec![model.entries()];
    commit_batches(&store, &model, 60, &mut prefixes);
    let page_count = file_with_extension(directory.path(), "log").metadata().expect("there").len() / 4096;
    assert!(page_count >= 3, "the log has pages in its middle");

    for page in 1..usize::try_from(page_count).expect("few") {
        let left = copy(directory.path());
        let log = file_with_extension(left.path(), "log");
        let mut bytes = fs::read(&log).expect("the log is read");
        bytes[page * PAGE_BYTES..][..PAGE_BYTES].fill(0);
        fs::write(&log, bytes).expect("the log is written");
        let count = prefix_left(left.path(), &prefixes).expect("what is whole opens");

        assert!(0 < count && count < 60, "{count} batches are left without page {page}");
    }
}

#[test]
fn record_cut_at_the_end_of_a_closed_log_ends_the_replay() {
    let (directory, prefixes, first_count) = two_logs();
    let len = logs(directory.path())[0].metadata().expect("the log is there").len();

    for cut in [1, 100, 1000, 5000] {
        let left = copy(directory.path());
        let log = fs::File::options().write(true).open(&logs(left.path())[0]).expect("the log is there");
        log.set_len(len - cut).expect("the log is cut");
        let count = prefix_left(left.path(), &prefixes);

        assert!(count.is_none_or(|count| count < first_count), "{count:?} batches are left of a log {cut} too short");
    }
}

#[test]
fn missing_page_in_a_closed_log_ends_the_replay() {
    let (directory, prefixes, first_count) = two_logs();
    let left = copy(directory.path());
    let log = logs(left.path()).remove(0);
    let mut bytes = fs::read(&log).expect("the log is read");
    bytes[4096..8192].fill(0);
    fs::write(&log, bytes).expect("the log is written");

    let count = prefix_left(left.path(), &prefixes);

    assert!(count.is_none_or(|count| count < first_count), "{count:?} batches are left");
}

/// What RocksDB has synced when it closed a log is in its manifest: a log that became shorter is damage.
#[test]
fn closed_log_that_lost_synced_batches_is_refused() {
    let directory = TempDir::new().expect("a temporary directory");
    let (store, model) = (open(directory.path()), MemoryStore::new());
    let mut prefixes = vec![model.entries()];
    commit_batches(&store, &model, 40, &mut prefixes);
    store
        .commit(&[MetaOp::Put(Table::Leaves, vec![1; 24], vec![1])], Durability::Buffered)
        .expect("nothing in the way");
    // Closes the log, and syncs it, since the other tables' changes are in it only.
    store.database.flush_cf(store.family(Table::Leaves)).expect("there is space");
    store
        .commit(&[MetaOp::Put(Table::Leaves, vec![2; 24], vec![1])], Durability::Buffered)
        .expect("nothing in the way");
    let left = copy(directory.path());
    let log = &logs(left.path())[0];
    let len = log.metadata().expect("the log is there").len();
    fs::File::options().write(true).open(log).and_then(|file| file.set_len(len / 2)).expect("the log is cut");

    let error = RocksStore::open(left.path(), OPTIONS).expect_err("synced batches are gone");

    assert!(error.is_damaged, "{error}");
}

#[test]
fn rotten_bit_in_a_file_is_an_error() {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(directory.path());
    let batch: Vec<_> =
        (0..2000_u32).map(|number| MetaOp::Put(Table::Used, number.to_be_bytes().to_vec(), vec![7; 32])).collect();
    store.commit(&batch, Durability::Buffered).expect("nothing is in the way of a commit");
    store.close().expect("the store closes");
    let file = file_with_extension(directory.path(), "sst");
    let mut bytes = fs::read(&file).expect("the file is read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).expect("the file is written");

    let result =
        RocksStore::open(directory.path(), OPTIONS).and_then(|store| store.scan(Table::Used, b"", b"", usize::MAX));

    assert!(!result.expect_err("the bit is detected").is_out_of_space);
}

/// RocksDB goes on after a lack of space only when a table's buffer is free: the reserve must have that.
#[test]
fn table_buffers_are_small_beside_the_reserve() {
    for (reserve_bytes, expected) in [(1_u64 << 20, 256 << 10), (4 << 20, 1 << 20), (64 << 20, 16 << 20)] {
        let directory = TempDir::new().expect("a temporary directory");
        let options = RocksOptions { reserve_bytes, ..RocksOptions::default() };
        drop(RocksStore::open(directory.path(), options).expect("nothing is in the way of the store"));
        let mut files: Vec<_> = fs::read_dir(directory.path()).expect("it is there").flatten().collect();
        files.retain(|file| file.file_name().to_string_lossy().starts_with("OPTIONS-"));
        let kept: String = files.iter().map(|file| fs::read_to_string(file.path()).expect("it is text")).collect();

        let mut sizes = kept.lines().filter_map(|line| line.trim().strip_prefix("write_buffer_size="));

        // A column family for each table, and the one that RocksDB insists on.
        assert_eq!(sizes.clone().count(), Table::ALL.len() + 1);
        assert!(sizes.all(|size| size == expected.to_string()), "{kept}");
    }
}

#[test]
fn unwritten_changes_take_half_of_the_reserve_and_a_quarter_of_the_cache() {
    let of = |cache_size_bytes, reserve_bytes| {
        RocksOptions { cache_size_bytes, reserve_bytes, ..RocksOptions::default() }.write_buffer_bytes()
    };

    assert_eq!(of(256 << 20, 4 << 20), 2 << 20);
    assert_eq!(of(256 << 20, 64 << 20), 32 << 20);
    assert_eq!(of(8 << 20, 64 << 20), 2 << 20);
}

#[test]
fn second_opener_is_refused() {
    let directory = TempDir::new().expect("a temporary directory");
    let first = open(directory.path());

    let error = RocksStore::open(directory.path(), OPTIONS).expect_err("it is open already");

    assert!(!error.is_out_of_space);
    assert!(error.message.contains("lock"), "{}", error.message);
    drop(first);
    open(directory.path());
}

#[test]
fn size_grows_with_what_is_stored() {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(directory.path());
    let before = store.size_bytes();

    let batch = [MetaOp::Put(Table::Leaves, vec![1; 24], vec![7; 1 << 20])];
    store.commit(&batch, Durability::Synced).expect("nothing is in the way of a commit");

    assert!(store.size_bytes() >= before + (1 << 20));
}

#[test]
fn empty_synced_commit_is_accepted() {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(directory.path());
    let backwards = MetaOp::DeleteRange(Table::Used, b"b".to_vec(), b"a".to_vec());

    store.commit(&[], Durability::Synced).expect("there is nothing to do");
    store.commit(std::slice::from_ref(&backwards), Durability::Synced).expect("there is nothing to do");
    store.commit(&[backwards], Durability::Buffered).expect("there is nothing to do");

    assert_eq!(entries(&store), []);
}

#[test]
fn appended_bytes_keep_their_order_in_files_and_memory() {
    let directory = TempDir::new().expect("a temporary directory");
    let key = vec![1; 24];
    let mut expected = Vec::new();
    for number in 0..70_u8 {
        let store = open(directory.path());
        let op = if number == 0 {
            MetaOp::Put(Table::Leaves, key.clone(), vec![number])
        } else {
            MetaOp::Append(Table::Leaves, key.clone(), vec![number])
        };
        store.commit(&[op], Durability::Buffered).expect("nothing is in the way of a commit");
        expected.push(number);
        if number % 7 == 0 {
            store.close().expect("the store closes");
        }
    }

    assert_eq!(open(directory.path()).get(Table::Leaves, &key).expect("the store reads"), Some(expected));
}

#[test]
fn prefix_ends_where_the_next_begins() {
    assert_eq!(prefix_end(b"a"), Some(b"b".to_vec()));
    assert_eq!(prefix_end(&[1, 0xff, 0xff]), Some(vec![2]));
    assert_eq!(prefix_end(&[0xff, 0xff]), None);
    assert_eq!(prefix_end(b""), None);
}

#[test]
fn lack_of_space_is_told_apart() {
    for (message, expected) in [
        ("IO error: No space left on device: While appending to file: /x/000004.log: No space left on device", true),
        ("IO error: Disk quota exceeded: While appending to file", true),
        ("IO error: Space limit reached", true),
        ("Corruption: block checksum mismatch", false),
        ("IO error: While fsync: a file: Input/output error", false),
        ("IO error: No space left on device: While fdatasync: /x/000004.log: No space left on device", false),
        ("IO error: No space left on device: While fsync: /x/000004.sst: No space left on device", false),
        (
            "IO error: No space left on device: While appending to file: /fsync/000004.log: No space left on device",
            true,
        ),
    ] {
        assert_eq!(is_refused_for_space(message), expected, "{message}");
    }
}

/// A leaf that a tree does not have must not cost a read in each file.
#[test]
fn seek_of_an_absent_leaf_asks_the_filter() {
    let directory = TempDir::new().expect("a temporary directory");
    let leaf = |number: u64| [1_u64.to_be_bytes(), number.to_be_bytes()].concat();
    let batch: Vec<_> = (0..1000)
        .map(|number| MetaOp::Put(Table::Leaves, [leaf(number * 2), vec![0; 8]].concat(), vec![7; 100]))
        .collect();
    let store = open(directory.path());
    store.commit(&batch, Durability::Buffered).expect("nothing is in the way of a commit");
    store.close().expect("the store closes");
    let store = open(directory.path());
    rocksdb::perf::set_perf_stats(rocksdb::perf::PerfStatsLevel::EnableCount);
    let mut counters = rocksdb::perf::PerfContext::default();
    counters.reset();

    let found: Vec<_> = (0..100)
        .filter_map(|number| store.seek(Table::Leaves, &leaf(number * 2 + 1), &leaf(number * 2 + 1)).expect("it seeks"))
        .collect();

    assert_eq!(found, []);
    // A false hit in a hundred is expected; ten are beyond chance.
    assert!(counters.metric(rocksdb::PerfMetric::BloomSstMissCount) >= 90);
}
