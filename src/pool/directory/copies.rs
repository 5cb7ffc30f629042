//! What an open pool has in two copies beside its metadata store and its devices: the superblock and the shred key.
//!
//! Each survives the damage of one copy, so that is found and mended before the other one is damaged too: when the pool is
//! opened, and here at the end of each pass of a scrub. The two headers of a device are written by turns, by each checkpoint.

use super::superblock_file::SuperblockFile;
use crate::error::Result;
use crate::pool::Pool;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The copies of an open pool.
pub struct Copies {
    directory: PathBuf,
    pool: Arc<Pool>,
    /// Whoever changes the superblock of an open pool holds it.
    exclusive: Arc<Mutex<()>>,
}

impl Copies {
    pub(crate) fn new(directory: &Path, pool: Arc<Pool>, exclusive: Arc<Mutex<()>>) -> Self {
        Self { directory: directory.to_path_buf(), pool, exclusive }
    }

    /// Reads them all, and writes anew what is damaged, which is told in the log. Never on a lane.
    ///
    /// # Errors
    /// `Integrity` if no copy of the superblock is right, else the failure of a file, which may be that a damaged copy cannot be
    /// written anew, or of the pool before.
    pub fn scrub(&self) -> Result<()> {
        self.pool.scrub_shred_key()?;
        let _exclusive = self.exclusive.lock();
        let file = SuperblockFile::read(&self.directory)?;
        let master = self.pool.keys().master();
        file.verify(master)?;
        file.repair(master)
    }
}
