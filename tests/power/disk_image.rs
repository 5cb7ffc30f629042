//! A disk as a sparse file.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::slice;

use crate::recording::{Event, Recording, SECTOR_BYTES};
use crate::{Context as _, Result, recovery};

/// A disk that is built of a recording.
pub(crate) struct DiskImage {
    file: File,
    path: PathBuf,
}

impl DiskImage {
    /// A disk of zeros.
    pub(crate) fn new(path: PathBuf, size_bytes: u64) -> Result<Self> {
        let file = File::create(&path).context(path.display())?;
        file.set_len(size_bytes).context(path.display())?;
        Ok(Self { file, path })
    }

    /// One that holds the same, in another file.
    pub(crate) fn copy(&self, path: &Path) -> Result<Self> {
        let options = ["--sparse=always", "--reflink=auto"].map(OsStr::new);
        recovery::run("cp", options.into_iter().chain([self.path.as_os_str(), path.as_os_str()]))?.success()?;
        let file = File::options().write(true).open(path).context(path.display())?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Does what the event did, to these sectors of it only.
    pub(crate) fn apply(&self, recording: &Recording, event: &Event, sectors: &[Range<u64>]) -> Result<()> {
        let content = recording.content_of(event)?;
        for range in sectors {
            let bytes = range.start * SECTOR_BYTES..range.end * SECTOR_BYTES;
            let index = |number: u64| usize::try_from(number).context("an offset");
            let piece = &content[index(bytes.start)?..index(bytes.end)?];
            self.file.write_all_at(piece, event.offset_bytes + bytes.start).context(self.path.display())?;
        }
        Ok(())
    }

    /// All of it.
    pub(crate) fn apply_whole(&self, recording: &Recording, event: &Event) -> Result<()> {
        self.apply(recording, event, slice::from_ref(&(0..event.len_bytes / SECTOR_BYTES)))
    }
}
