//! The file `shred-key`: what the pool overwrites to destroy the key of a volume.

use super::sync_directory_of;
use crate::disk::{Device, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::format::shred_key::FILE_BYTES;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const NAME: &str = "shred-key";
/// Its name while it is made.
const NEW_NAME: &str = "shred-key.new";

/// Makes the file in `directory`, full of zeros; its path.
///
/// # Errors
/// `NoSpace`, else the system's.
pub(super) fn create(directory: &Path) -> Result<PathBuf> {
    let (new, path) = (directory.join(NEW_NAME), directory.join(NAME));
    match fs::remove_file(&new) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::from_io("Removing", &new, source));
        }
        _ => {}
    }
    drop(FileDevice::create(&new, FILE_BYTES)?);
    let named = fs::rename(&new, &path).and_then(|()| sync_directory_of(&path));
    named.map_err(|source| Error::from_io("Naming", &path, source))?;
    Ok(path)
}

/// Opens the file, and makes it first where it is missing: a pool of before has none. Without space for that the pool can
/// be used but for volumes with a key of their own. Says also whether it was made.
///
/// # Errors
/// As [`open`].
pub(super) fn open_or_create(directory: &Path) -> Result<(Option<Arc<dyn Device>>, bool)> {
    let path = directory.join(NAME);
    let is_missing = match fs::symlink_metadata(&path) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(source) => return Err(Error::from_io("Opening", &path, source)),
    };
    let mut is_new = false;
    if is_missing {
        match create(directory) {
            Ok(_) => is_new = true,
            Err(error) => {
                tracing::warn!(%error, "no volume can have a key of its own: the file shred-key cannot be made");
            }
        }
    }
    Ok((open(directory)?, is_new))
}

/// Removes the file that [`open_or_create`] made, for a pool that turned out to need the one that is missing.
pub(super) fn remove_new(directory: &Path) {
    if let Err(error) = fs::remove_file(directory.join(NAME)) {
        tracing::warn!(%error, "an empty shred-key that was made just now could not be removed");
    }
}

/// Opens the file, if it is there.
///
/// # Errors
/// Those of opening it; `Integrity` if it is too short.
pub(super) fn open(directory: &Path) -> Result<Option<Arc<dyn Device>>> {
    let path = directory.join(NAME);
    if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let device = FileDevice::open(&path)?;
    if device.size_bytes() < FILE_BYTES {
        let message = format!("{} has {} bytes instead of {FILE_BYTES}", path.display(), device.size_bytes());
        return Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore it from a backup"));
    }
    Ok(Some(Arc::new(device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_made_and_one_that_is_there_is_taken() {
        let directory = tempfile::tempdir().expect("the temporary folder is writable");
        assert!(open(directory.path()).expect("it is missing, which is no error").is_none());

        let (made, is_new) = open_or_create(directory.path()).expect("there is space");
        assert_eq!((made.map(|device| device.size_bytes()), is_new), (Some(FILE_BYTES), true));

        let (found, is_new) = open_or_create(directory.path()).expect("it is there");
        assert_eq!((found.map(|device| device.size_bytes()), is_new), (Some(FILE_BYTES), false));
    }
}
