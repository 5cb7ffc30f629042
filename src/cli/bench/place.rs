//! The bench's directory: the pool, its key and the raw file. Removed when the bench ends, however it ends but by a kill.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use crate::cli::arguments::Bench;
use crate::cli::failure::tell;
use crate::crypto::Suite;
use crate::disk::FileDevice;
use crate::error::{Error, Result};
use crate::pool::directory::{CreateOptions, Credential, DeviceSource, create, generate_key_file};

/// A directory of this process only.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    is_encrypted: bool,
    span_bytes: u64,
}

impl Place {
    /// Makes the directory, a pool as the arguments say for a volume of `span_bytes`, and a raw file as large as the
    /// pool, both written once.
    ///
    /// # Errors
    /// What creating a pool can fail with. What was made is removed.
    pub(super) fn create(arguments: &Bench, span_bytes: u64) -> Result<Self> {
        let directory = arguments.directory.join(format!("rok-blk-bench-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| Error::from_io("Creating", &directory, error))?;
        let place = Self { directory, is_encrypted: !arguments.no_encryption, span_bytes };
        if place.is_encrypted {
            generate_key_file(&place.key_file())?;
        }
        let options = CreateOptions {
            device: DeviceSource::File { size_bytes: arguments.pool_size },
            suite: if place.is_encrypted { Suite::XtsGmac } else { Suite::Plain },
            credential: place.credential(),
        };
        create(&place.pool(), &options)?;
        drop(FileDevice::create(&place.raw_file(), arguments.pool_size)?);
        Ok(place)
    }

    pub(super) const fn span_bytes(&self) -> u64 {
        self.span_bytes
    }

    pub(super) fn pool(&self) -> PathBuf {
        self.directory.join("pool")
    }

    /// `None` without encryption.
    pub(super) fn credential(&self) -> Option<Credential> {
        self.is_encrypted.then(|| Credential::KeyFile(self.key_file()))
    }

    fn key_file(&self) -> PathBuf {
        self.directory.join("pool.key")
    }

    pub(super) fn raw_file(&self) -> PathBuf {
        self.directory.join("raw")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tell(&format!("rok-blk: {} could not be removed: {error}", self.directory.display()));
        }
    }
}
