//! How much of the machine RocksDB may use.

use rustix::process::{Resource, getrlimit};

/// Unwritten changes may take this part of the cache, and this part of the reserve: with it all of them are flushed, and
/// as much is left for what follows.
const WRITE_BUFFER_DIVISOR: usize = 4;
const RESERVE_DIVISOR: u64 = 2;
/// One table's unwritten changes are flushed at this part of the cache, and this part of the reserve. After a lack of
/// space RocksDB goes on only when that much is free.
const FAMILY_BUFFER_DIVISOR: usize = 16;
const FAMILY_RESERVE_DIVISOR: u64 = 4;

/// How much a [`super::RocksStore`] may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Memory for blocks, indexes, filters and unwritten changes together. The page cache is not used, where the file
    /// system allows that.
    pub cache_size_bytes: usize,
    /// Files open at once, at least 64; fewer where the process may have few.
    pub open_file_count_max: u16,
    /// Threads that flush and compact, at least 1.
    pub background_thread_count: u8,
    /// Space that the store gets when the file system has none left: unwritten changes stay well below it.
    pub reserve_bytes: u64,
}

impl RocksOptions {
    /// Memory for the unwritten changes of all tables.
    pub(super) fn write_buffer_bytes(self) -> usize {
        bounded(self.cache_size_bytes / WRITE_BUFFER_DIVISOR, self.reserve_bytes / RESERVE_DIVISOR)
    }

    /// As many files as are wanted, but at most a quarter of what the process may have open, and at least 64.
    pub(super) fn open_files(self) -> u16 {
        let process_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let wanted = self.open_file_count_max;
        u16::try_from(process_max / 4).map_or(wanted, |quarter| wanted.min(quarter)).max(64)
    }

    /// Memory for those of one table.
    pub(super) fn family_buffer_bytes(self) -> usize {
        bounded(self.cache_size_bytes / FAMILY_BUFFER_DIVISOR, self.reserve_bytes / FAMILY_RESERVE_DIVISOR)
    }
}

/// The smaller of a number of bytes in memory and one on disk.
fn bounded(memory_bytes: usize, disk_bytes: u64) -> usize {
    usize::try_from(disk_bytes).map_or(memory_bytes, |disk_bytes| memory_bytes.min(disk_bytes))
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            cache_size_bytes: 256 << 20,
            open_file_count_max: 512,
            background_thread_count: 2,
            reserve_bytes: 64 << 20,
        }
    }
}
