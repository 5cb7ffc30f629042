//! Ranges of files and block devices that are given back to what is under them, and ranges of files that have nothing
//! under them.

#![expect(unsafe_code, reason = "system calls for which the standard library has no safe form")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Holes that are told of at most: far more than a pool's file has by what is punched here.
const HOLES_MAX: usize = 1 << 20;

/// `FALLOC_FL_NO_HIDE_STALE` of `linux/falloc.h`: the range may read as old bytes.
const NO_HIDE_STALE: libc::c_int = 4;

/// Gives a range back: punches a hole, or has the block device forget it. It may read as anything afterwards on a block
/// device, as zeros in a file.
///
/// # Errors
/// `Unsupported` where nothing can be given back, else the system's.
pub(super) fn punch(file: &File, offset_bytes: u64, len_bytes: u64, is_block_device: bool) -> io::Result<()> {
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let result = fallocate(file, punch, offset_bytes, len_bytes);
    // Some disks can forget a range, but not so that it reads as zeros.
    if is_block_device && result.as_ref().is_err_and(is_unsupported) {
        return fallocate(file, punch | NO_HIDE_STALE, offset_bytes, len_bytes).map_err(plain);
    }
    result.map_err(plain)
}

/// The ranges of a file below `end_bytes` that have nothing under them.
///
/// # Errors
/// The system's.
pub(super) fn holes(file: &File, end_bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut holes = Vec::new();
    let mut offset_bytes = 0;
    while offset_bytes < end_bytes && holes.len() < HOLES_MAX {
        let Some(start) = seek(file, offset_bytes, libc::SEEK_HOLE)?.filter(|start| *start < end_bytes) else { break };
        let end = seek(file, start, libc::SEEK_DATA)?.unwrap_or(end_bytes).min(end_bytes);
        holes.push(start..end);
        offset_bytes = end;
    }
    Ok(holes)
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

fn plain(error: io::Error) -> io::Error {
    if is_unsupported(&error) { io::ErrorKind::Unsupported.into() } else { error }
}

fn fallocate(file: &File, mode: libc::c_int, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let [offset, len] =
        [offset_bytes, len_bytes].map(|bytes| i64::try_from(bytes).expect("a device has less than 2^63"));
    loop {
        // SAFETY: the descriptor is open, and no memory is passed.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The next hole or data from an offset on; `None` if there is none before the end of the file.
fn seek(file: &File, offset_bytes: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset_bytes).expect("a file has less than 2^63 bytes");
    // SAFETY: the descriptor is open, and no memory is passed. Its position is used by nobody.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            // Then the file system knows of no holes.
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            error => Err(error),
        },
    }
}
