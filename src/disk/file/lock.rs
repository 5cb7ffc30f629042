//! The lock that keeps a second process off a device.
//!
//! It belongs to the open file description, not to the process: I/O that a killed daemon left in the kernel
//! holds the description and so the lock, and none of it can land after the next daemon began.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Processes whose open files are looked at to name the holder. Above it the message names nobody.
const PROCESS_COUNT_MAX: usize = 65_536;

/// Takes the exclusive lock on the whole file, without waiting. False if another description holds one.
///
/// # Errors
/// The system's, if the file system has no such locks.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    let request = libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).expect("the constant is 1"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("the constant is 0"),
        l_start: 0,
        // Up to the end, wherever that will be.
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the kernel only reads `request`.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// The process that holds the lock, if we may see it. The kernel does not tell for locks of this kind, so
/// the open files of all processes are searched.
pub(super) fn holder(file: &File) -> Option<u32> {
    let wanted = file.metadata().ok()?;
    let processes = fs::read_dir("/proc").ok()?.take(PROCESS_COUNT_MAX).flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid: &u32| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.flatten().any(|entry| {
            let is_same_file = fs::metadata(entry.path())
                .is_ok_and(|found| found.dev() == wanted.dev() && found.ino() == wanted.ino());
            is_same_file && has_lock(*pid, &entry.file_name().to_string_lossy())
        })
    })
}

fn has_lock(pid: u32, descriptor: &str) -> bool {
    fs::read_to_string(Path::new("/proc").join(format!("{pid}/fdinfo/{descriptor}")))
        .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:") && line.contains("OFDLCK")))
}
