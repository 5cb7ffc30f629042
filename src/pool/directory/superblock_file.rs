//! The file `superblock`: two copies, of which the newest valid one counts.

use crate::crypto::{MasterKey, Purpose, StaticMac};
use crate::error::{Error, ErrorKind, Result};
use crate::format::FormatError;
use crate::format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock, verify};
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
/// Where the version is in a copy, behind the magic.
const VERSION_BYTES: std::ops::Range<usize> = 8..12;

/// What the file says. The MAC is not verified yet.
pub(super) struct SuperblockFile {
    /// The newest valid copy.
    pub superblock: Superblock,
    /// Its format version.
    pub format_version: u32,
    bytes: Vec<u8>,
    other: OtherCopy,
    path: PathBuf,
}

/// How the copy that does not count is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OtherCopy {
    /// It says the same.
    Same,
    /// It is from before a change that was interrupted.
    Behind,
    Damaged(FormatError),
}

impl SuperblockFile {
    /// Reads both copies.
    ///
    /// # Errors
    /// `NotFound` if there is no file, `Unsupported` for a newer version, `Integrity` if no copy is valid or they
    /// are of two pools, else the system's.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        let file = File::open(&path).map_err(|source| missing(directory, &path, source))?;
        let mut newest: Option<(Superblock, Vec<u8>)> = None;
        let mut other = OtherCopy::Same;
        for offset in SUPERBLOCK_OFFSETS {
            let bytes = read_copy(&file, offset).map_err(|source| Error::from_io("Reading", &path, source))?;
            let found = match Superblock::decode(&bytes) {
                Ok(found) => found,
                Err(FormatError::NewerVersion(version)) => return Err(newer(directory, version)),
                Err(error) => {
                    other = OtherCopy::Damaged(error);
                    continue;
                }
            };
            if let Some((newest, _)) = &newest {
                if newest.pool != found.pool {
                    let message = format!("The two copies in {} are of different pools", path.display());
                    return Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore it from a backup"));
                }
                if *newest != (Superblock { generation: newest.generation, ..found.clone() }) {
                    other = OtherCopy::Behind;
                }
            }
            if newest.as_ref().is_none_or(|(newest, _)| newest.generation < found.generation) {
                newest = Some((found, bytes));
            }
        }
        let Some((superblock, bytes)) = newest else {
            let reason = if let OtherCopy::Damaged(error) = other { format!(": {error}") } else { String::new() };
            let message = format!("Both copies in {} are damaged{reason}", path.display());
            return Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore the file from a backup"));
        };
        let mut version = [0; 4];
        version.copy_from_slice(&bytes[VERSION_BYTES]);
        Ok(Self { superblock, format_version: u32::from_le_bytes(version), bytes, other, path })
    }

    /// Checks that who knows the master key wrote the copy that counts.
    ///
    /// # Errors
    /// `Integrity` if not.
    pub fn verify(&self, master: &MasterKey) -> Result<()> {
        if verify(&self.bytes, &master.static_mac(Purpose::Superblock)) {
            return Ok(());
        }
        let message = format!("{} was changed by somebody without the pool's key", self.path.display());
        Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore the file from a backup"))
    }

    /// Writes the other copy anew, if it is damaged or from before an interrupted change: else a later damage of this
    /// copy would bring key slots back that were removed. The pool can be used also where this fails, so that a failure
    /// is only told in the log. Call it after [`Self::verify`], with the pool's devices locked since before the read.
    pub fn repair(&self, master: &MasterKey) {
        let reason = match self.other {
            OtherCopy::Same => return,
            OtherCopy::Behind => "it is from before a change that was interrupted".to_owned(),
            OtherCopy::Damaged(error) => error.to_string(),
        };
        // The other copy is the next generation's place.
        let (offset, bytes) =
            later(&self.superblock, self.superblock.generation + 1).encode(&master.static_mac(Purpose::Superblock));
        let path = self.path.display();
        match write_copy(&self.path, offset, &bytes) {
            Ok(()) => tracing::warn!(%path, reason, "one copy of the superblock was written anew"),
            Err(error) => tracing::warn!(%path, reason, %error, "one copy of the superblock cannot be written anew"),
        }
    }

    /// Puts `new`, whatever its generation, in the place of what there is, in both copies, one after the other, each
    /// durable before the next step: a crash leaves what was there or what is new. Afterwards no copy is of before. Call
    /// it after [`Self::verify`], with the pool's devices locked since before the read.
    ///
    /// # Errors
    /// The system's. What is new may hold already, and what was there may be in one copy still.
    pub fn replace(&self, new: &Superblock, master: &MasterKey) -> Result<()> {
        for (offset, bytes) in self.copies_of(new, master) {
            write_copy(&self.path, offset, &bytes).map_err(|source| Error::from_io("Writing", &self.path, source))?;
        }
        Ok(())
    }

    /// Place and bytes of the copies of `new`, in the order in which they are written: first the one that does not count,
    /// so that one valid copy is there at any time.
    pub(super) fn copies_of(&self, new: &Superblock, master: &MasterKey) -> [(u64, Vec<u8>); 2] {
        let mac = master.static_mac(Purpose::Superblock);
        [1, 2].map(|changes| later(new, self.superblock.generation + changes).encode(&mac))
    }
}

fn later(superblock: &Superblock, generation: u64) -> Superblock {
    Superblock { generation, ..superblock.clone() }
}

/// Writes the first two copies and gives the file its name at last: it is there whole or not at all.
///
/// # Errors
/// The system's. The caller removes what is left.
pub(super) fn create(directory: &Path, first: &Superblock, mac: &StaticMac) -> Result<()> {
    let (path, target) = (directory.join(NEW_FILE_NAME), directory.join(FILE_NAME));
    let second = Superblock { generation: first.generation + 1, ..first.clone() };
    let write = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        // Written, not only set: a later write to it needs no space.
        file.write_all_at(&vec![0; to_usize(FILE_BYTES)], 0)?;
        for copy in [first, &second] {
            let (offset, bytes) = copy.encode(mac);
            file.write_all_at(&bytes, offset)?;
        }
        file.sync_all()?;
        fs::rename(&path, &target)?;
        super::sync_directory_of(&target)
    };
    write().map_err(|source| Error::from_io("Writing", &target, source))
}

/// A copy, or what is there of it.
fn read_copy(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn write_copy(path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}

fn missing(directory: &Path, path: &Path, source: io::Error) -> Error {
    if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
        return Error::from_io("Opening", path, source);
    }
    Error::new(ErrorKind::NotFound, format!("There is no pool at {}: it has no superblock", directory.display()))
        .with_hint("Make one with `rok-blk pool create`")
        .with_source(source)
}

fn newer(directory: &Path, version: u32) -> Error {
    let known = crate::format::FORMAT_VERSION;
    let message = format!(
        "The pool at {} has format version {version}, and this rok-blk knows versions up to {known}",
        directory.display()
    );
    Error::new(ErrorKind::Unsupported, message).with_hint("Open it with the newer rok-blk; nothing was changed")
}
