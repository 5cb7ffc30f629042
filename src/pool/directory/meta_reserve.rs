//! The file `meta-reserve`: space that the metadata store gets when the file system has none left.

use crate::disk::{FileDevice, free_space_bytes};
use crate::error::Result;
use crate::meta::SpaceReserve;
use crate::units::BLOCK_SIZE_U64;
use parking_lot::Mutex;
use std::fs::File;
use std::path::{Path, PathBuf};

const NAME: &str = "meta-reserve";
const BYTES_MAX: u64 = 64 << 20;
/// That of the smallest device.
const BYTES_MIN: u64 = 1 << 20;
/// The part of a small device that the reserve beside it has.
const DIVISOR: u64 = 16;

/// The reserve comes back when so many times its size is free: else the next files of the store would take it again.
const FREE_SIZES_MIN: u64 = 3;

/// The store goes on with this part of the reserve: the rest is for what others took meanwhile.
const REPLACED_DIVISOR: u64 = 2;

/// The file of one pool.
pub(super) struct MetaReserve {
    path: PathBuf,
    size_bytes: u64,
    /// One thing at a time.
    changing: Mutex<()>,
}

impl MetaReserve {
    /// The reserve of the pool in `directory`, whose first device has so many bytes.
    pub(super) fn of_pool(directory: &Path, device_bytes: u64) -> Self {
        let share = device_bytes / DIVISOR;
        let size_bytes = (share - share % BLOCK_SIZE_U64).min(BYTES_MAX);
        Self { path: directory.join(NAME), size_bytes, changing: Mutex::new(()) }
    }

    /// What the store can count on. The file of a pool that has grown is smaller than one made anew.
    pub(super) fn kept_bytes(&self) -> u64 {
        let made_bytes = std::fs::metadata(&self.path).map_or(self.size_bytes, |file| file.len());
        made_bytes.clamp(BYTES_MIN, self.size_bytes.max(BYTES_MIN))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file.
    ///
    /// # Errors
    /// `NoSpace`, else the system's.
    pub(super) fn create(&self) -> Result<()> {
        // Its zeros are written: space that is only promised could be refused when it is needed.
        FileDevice::create(&self.path, self.size_bytes).map(drop)
    }
}

impl SpaceReserve for MetaReserve {
    fn is_there(&self) -> bool {
        self.path.exists()
    }

    fn give_up(&self) -> bool {
        let _guard = self.changing.lock();
        // Flushed, since file systems with a journal free the blocks of a deleted file only then.
        let given_up = std::fs::remove_file(&self.path).and_then(|()| match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        });
        match given_up {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::error!(path = %self.path.display(), %error, "the reserve could not be given up");
                }
                false
            }
        }
    }

    fn is_replaced(&self) -> bool {
        // A reserve that is being given up counts once it is free.
        let _guard = self.changing.lock();
        let Some(directory) = self.path.parent() else { return false };
        free_space_bytes(directory).is_ok_and(|free_bytes| free_bytes >= self.size_bytes / REPLACED_DIVISOR)
    }

    fn take_back(&self) -> bool {
        let _guard = self.changing.lock();
        if self.path.exists() {
            return true;
        }
        let Some(directory) = self.path.parent() else { return false };
        let is_much =
            free_space_bytes(directory).is_ok_and(|free_bytes| free_bytes >= FREE_SIZES_MIN * self.size_bytes);
        // What was made only in part is removed again.
        is_much && self.create().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE_BYTES: u64 = 32 << 20;

    #[test]
    fn reserve_is_given_up_once_and_taken_back_with_its_size() {
        let directory = tempfile::tempdir().expect("the temporary folder is writable");
        let reserve = MetaReserve::of_pool(directory.path(), DEVICE_BYTES);
        reserve.create().expect("there is space for 2 MiB");
        let size_bytes = || std::fs::metadata(reserve.path()).map(|metadata| metadata.len());
        assert_eq!(size_bytes().expect("it is there"), 2 << 20);
        assert!(reserve.is_there());

        assert!(reserve.give_up());
        assert!(!reserve.is_there());
        assert!(!reserve.give_up(), "there is nothing to give");

        assert!(reserve.take_back());
        assert_eq!(size_bytes().expect("it is back"), 2 << 20);
        assert!(reserve.take_back(), "it is there");
    }

    #[test]
    fn reserve_of_a_pool_that_has_grown_counts_as_what_it_is() {
        let directory = tempfile::tempdir().expect("the temporary folder is writable");
        MetaReserve::of_pool(directory.path(), DEVICE_BYTES).create().expect("there is space for 2 MiB");

        let reserve = MetaReserve::of_pool(directory.path(), 2 * DEVICE_BYTES);

        assert_eq!(reserve.kept_bytes(), 2 << 20);
        assert!(reserve.give_up());
        assert_eq!(reserve.kept_bytes(), 4 << 20, "it is made anew");
    }

    #[test]
    fn reserve_stays_away_while_there_is_too_little_space_for_it() {
        let directory = tempfile::tempdir().expect("the temporary folder is writable");
        let free_bytes = free_space_bytes(directory.path()).expect("it is there");
        let reserve =
            MetaReserve { size_bytes: free_bytes / 2, ..MetaReserve::of_pool(directory.path(), DEVICE_BYTES) };
        assert!(!reserve.take_back());
        assert!(!reserve.is_there());
        assert!(reserve.is_replaced(), "a quarter of what is free suffices the store");

        let reserve = MetaReserve { size_bytes: free_bytes * 3, ..reserve };
        assert!(!reserve.is_replaced());
    }
}
