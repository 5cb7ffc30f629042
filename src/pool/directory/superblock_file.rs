//! The file `superblock`, which holds the two copies.

use super::super::superblock_copies::SuperblockCopies;
use crate::crypto::{MasterKey, StaticMac};
use crate::disk::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::superblock::Superblock;
use crate::units::to_usize;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Name of the file.
pub(super) const FILE_NAME: &str = "superblock";
/// Name of the file while it is written for the first time.
pub(super) const NEW_FILE_NAME: &str = "superblock.new";
/// Size of the file: each copy has 64 KiB, so that no sector or flash page holds both.
const FILE_BYTES: u64 = 131_072;

/// What the file says. The MAC is not verified yet.
pub(super) struct SuperblockFile {
    copies: SuperblockCopies,
    path: PathBuf,
}

impl SuperblockFile {
    /// Reads both copies.
    ///
    /// # Errors
    /// `NotFound` if there is no file, `Unsupported` for a newer version, `Integrity` if no copy is valid or they
    /// are of two pools, else the system's at opening it.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        let file = File::open(&path).map_err(|source| missing(directory, &path, source))?;
        Ok(Self { copies: SuperblockCopies::read(&OpenFile::new(&path, file))?, path })
    }

    /// The newest valid copy.
    pub const fn superblock(&self) -> &Superblock {
        &self.copies.superblock
    }

    /// The format version of that copy.
    pub const fn format_version(&self) -> u32 {
        self.copies.format_version
    }

    /// Checks that who knows the master key wrote the copy that counts.
    ///
    /// # Errors
    /// `Integrity` if not.
    pub fn verify(&self, master: &MasterKey) -> Result<()> {
        if self.copies.is_of(master) {
            return Ok(());
        }
        let message = format!("{} was changed by somebody without the pool's key", self.path.display());
        Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore the file from a backup"))
    }

    /// Writes the other copy anew, if it is damaged or from before an interrupted change. Call it after [`Self::verify`],
    /// with the pool's devices locked since before the read. The pool can be used also where this fails.
    ///
    /// # Errors
    /// The system's.
    pub fn repair(&self, master: &MasterKey) -> Result<()> {
        let Some(reason) = self.copies.damage() else { return Ok(()) };
        let path = self.path.display();
        self.open_for_writing().and_then(|file| self.copies.repair(&file, master)).map_err(|source| {
            let message = format!("One copy in {path} is damaged ({reason}), and cannot be written anew: {source}");
            Error::new(ErrorKind::Other, message)
                .with_hint("Repair the file system that holds the pool: the other copy is the last one")
                .with_source(source)
        })?;
        tracing::warn!(%path, reason, "one copy of the superblock was written anew");
        Ok(())
    }

    /// Puts `new`, whatever its generation, in the place of what there is, in both copies. Call it after
    /// [`Self::verify`], with the pool's devices locked since before the read.
    ///
    /// # Errors
    /// The system's. What is new may hold already, and what was there may be in one copy still.
    pub fn replace(&self, new: &Superblock, master: &MasterKey) -> Result<()> {
        self.open_for_writing()
            .and_then(|file| self.copies.replace(&file, new, master))
            .map_err(|source| Error::from_io("Writing", &self.path, source))
    }

    /// The copies of `new` as they are written, for tests that cut that off.
    #[cfg(test)]
    pub fn copies_of(&self, new: &Superblock, master: &MasterKey) -> [(u64, Vec<u8>); 2] {
        self.copies.copies_of(new, master)
    }

    fn open_for_writing(&self) -> io::Result<OpenFile> {
        Ok(OpenFile::new(&self.path, OpenOptions::new().read(true).write(true).open(&self.path)?))
    }
}

/// Writes the first two copies and gives the file its name at last: it is there whole or not at all.
///
/// # Errors
/// The system's. The caller removes what is left.
pub(super) fn create(directory: &Path, first: &Superblock, mac: &StaticMac) -> Result<()> {
    let (path, target) = (directory.join(NEW_FILE_NAME), directory.join(FILE_NAME));
    let write = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        // Written, not only set: a later write to it needs no space.
        file.write_all_at(&vec![0; to_usize(FILE_BYTES)], 0)?;
        SuperblockCopies::create(&OpenFile::new(&path, file), first, mac)?;
        fs::rename(&path, &target)?;
        super::sync_directory_of(&target)
    };
    write().map_err(|source| Error::from_io("Writing", &target, source))
}

/// The file through the page cache, as long as a change takes: the descriptor that wrote sees the failure of its flush.
struct OpenFile {
    name: String,
    file: File,
}

impl OpenFile {
    fn new(path: &Path, file: File) -> Self {
        Self { name: path.display().to_string(), file }
    }
}

impl Device for OpenFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        FILE_BYTES
    }

    fn read_at(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(target, offset_bytes)
    }

    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()> {
        self.file.write_all_at(source, offset_bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn missing(directory: &Path, path: &Path, source: io::Error) -> Error {
    if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
        return Error::from_io("Opening", path, source);
    }
    Error::new(ErrorKind::NotFound, format!("There is no pool at {}: it has no superblock", directory.display()))
        .with_hint("Make one with `rok-blk pool create`")
        .with_source(source)
}
