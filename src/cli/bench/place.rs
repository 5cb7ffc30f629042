//! The bench's directory: pools, their key and the raw file. Removed when the bench ends; what a killed one left is
//! removed by the next one.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::cli::failure::tell;
use crate::error::{Error, ErrorKind, Result};

const PREFIX: &str = "rok-blk-bench-";
/// Behind the name of a directory that is being removed.
const REMOVED_SUFFIX: &str = ".removed";

/// A directory of this process only.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    /// Locked as long as this process lives, so that others leave the directory alone.
    _lock: File,
}

impl Place {
    /// Makes the directory in `parent`, after it has removed what killed benches left there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn create(parent: &Path) -> Result<Self> {
        let directory = parent.join(format!("{PREFIX}{}", std::process::id()));
        let failed = |error| Error::from_io("Creating", &directory, error);
        remove_leftovers(parent);
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        let lock = File::open(&directory).map_err(failed)?;
        lock.try_lock().map_err(|error| {
            let message = format!("Locking {} failed: {error}", directory.display());
            Error::new(ErrorKind::Busy, message).with_hint("Run it again")
        })?;
        Ok(Self { directory, _lock: lock })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of something in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Removes what is in it, which nobody uses any more.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub(super) fn clear(&self) -> Result<()> {
        let failed = |error| Error::from_io("Emptying", &self.directory, error);
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_directory = entry.file_type().map_err(failed)?.is_dir();
            let removed = if is_directory { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            removed.map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Removes a directory and all that is in it. Nothing can be created in it meanwhile, since it first gets another name.
pub(super) fn remove(directory: &Path) {
    let mut name = directory.as_os_str().to_owned();
    name.push(REMOVED_SUFFIX);
    let renamed = PathBuf::from(name);
    if let Err(error) = fs::rename(directory, &renamed).and_then(|()| fs::remove_dir_all(&renamed)) {
        tell(&format!("rok-blk: {} could not be removed: {error}", directory.display()));
    }
}

/// Removes the directories of benches of this user that have ended without doing so.
fn remove_leftovers(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_leftover(&entry.path()) {
            let path = entry.path();
            match fs::remove_dir_all(&path) {
                Ok(()) => tell(&format!("{} was left by a bench that was killed; it is removed", path.display())),
                Err(error) => tell(&format!("rok-blk: {} could not be removed: {error}", path.display())),
            }
        }
    }
}

/// Whether it is a directory of this user that no bench has locked.
fn is_leftover(path: &Path) -> bool {
    let is_own = |metadata: &fs::Metadata| {
        fs::metadata("/proc/self").is_ok_and(|own| own.uid() == metadata.uid()) && metadata.is_dir()
    };
    fs::symlink_metadata(path).is_ok_and(|metadata| is_own(&metadata))
        && File::open(path).is_ok_and(|directory| directory.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_it_is_gone_when_it_is_cleared() {
        let parent = tempfile::tempdir().expect("a directory");
        let place = Place::create(parent.path()).expect("it can be made");
        fs::create_dir(place.path("pool")).expect("it is new");
        fs::write(place.path("pool/data"), "data").expect("it can be written");
        fs::write(place.path("raw"), "data").expect("it can be written");

        place.clear().expect("it can be emptied");

        assert_eq!(fs::read_dir(place.directory()).expect("it stays").count(), 0);
    }

    #[test]
    fn what_a_killed_bench_left_is_removed_and_what_a_running_one_has_is_not() {
        let parent = tempfile::tempdir().expect("a directory");
        let path_of = |name: &str| parent.path().join(name);
        fs::create_dir_all(path_of("rok-blk-bench-0/pool")).expect("created");
        fs::create_dir_all(path_of("else/pool")).expect("created");
        fs::create_dir(path_of("rok-blk-bench-running")).expect("created");
        let running = File::open(path_of("rok-blk-bench-running")).expect("it is there");
        running.try_lock().expect("nobody has it");

        let place = Place::create(parent.path()).expect("a place");

        assert!(!path_of("rok-blk-bench-0").exists());
        assert!(path_of("rok-blk-bench-running").exists() && path_of("else/pool").exists());
        let own = place.directory().to_path_buf();
        assert!(own.exists());
        drop(place);
        assert!(!own.exists());
    }
}
