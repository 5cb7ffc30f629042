//! Small files of the daemon in the pool's directory, which are replaced whole.

use std::fs::{self, File};
use std::io::{Result, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Replaces a file by one with these bytes, durably, through `draft` in the same directory. Only the owner reads it.
///
/// # Errors
/// Those of writing; then the file is as it was, or is what is new.
pub(super) fn replace(path: &Path, draft: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(draft, path)?;
    let directory = path.parent().expect("the file is in the pool's directory");
    File::open(directory)?.sync_all()
}
