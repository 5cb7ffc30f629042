//! Who uses a block device of ours: the kernel (a mount, swap, LVM, a loop device) or a process that has it open.
//!
//! Processes are looked for in `/proc`. A daemon that is not root may look into its own only, which is not taken for an answer:
//! then a caller who may see them all has to look. One that opens the device between the look and its end is not seen; nobody can
//! mount it meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// Processes that a message names.
const NAMED_COUNT_MAX: usize = 4;

/// What the first process runs, which is root's: who may follow this link may look into all processes.
const FIRST_PROGRAM: &str = "/proc/1/exe";

/// How users of a device are regarded before it is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// There must be none, and that must be certain.
    Full,
    /// The caller has looked into the processes.
    KernelOnly,
    /// They get errors.
    None,
}

/// Nobody else can mount the device, or claim it otherwise, while this lives.
pub(super) struct Claim(#[expect(dead_code, reason = "it is held")] File);

/// Claims a device that nobody uses; without care nothing is claimed.
///
/// # Errors
/// `Busy` naming who uses it, as far as that can be told, or if that cannot be told.
pub(super) fn claim(path: &Path, care: Care) -> Result<Option<Claim>> {
    if care == Care::None {
        return Ok(None);
    }
    let device = path.display();
    // Without O_CREAT, for a block device: fails if a file system or another part of the kernel has it, or a partition of it.
    let claimed = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path);
    let file = claimed.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => in_use(format!("{device} is in use: it is mounted, or another program claims it"))
            .with_hint(format!(
                "Unmount it first (findmnt {device} and lsblk {device} tell where it is), or take it away under its users \
                 with --force: they get errors then"
            )),
        _ => in_use(format!("Whether {device} is in use cannot be told: opening it failed: {error}"))
            .with_hint("Take it away in any case with --force"),
    })?;
    if is_unused(path)? || care == Care::KernelOnly {
        return Ok(Some(Claim(file)));
    }
    Err(in_use(format!(
        "Whether a process has {device} open cannot be told: this daemon may not look into those of other users"
    ))
    .with_hint(
        "Run rok-blk detach as root, which looks itself, or take it away in any case with --force: its users get errors then",
    ))
}

/// Whether it is certain that no process and no loop device has a device open.
///
/// # Errors
/// `Busy` naming those that have.
pub fn is_unused(path: &Path) -> Result<bool> {
    let device = path.display();
    let users = users(path);
    if users.is_empty() {
        return Ok(fs::read_link(FIRST_PROGRAM).is_ok());
    }
    let named = users.iter().take(NAMED_COUNT_MAX).cloned().collect::<Vec<_>>().join(", ");
    let more = if users.len() > NAMED_COUNT_MAX { ", and others" } else { "" };
    Err(in_use(format!("{device} is in use: {named}{more} have it open"))
        .with_hint("End them first, or take it away under them with --force: they get errors then"))
}

fn in_use(message: String) -> Error {
    Error::new(ErrorKind::Busy, message)
}

/// Loop devices over it, and processes that have it or a partition of it open.
fn users(path: &Path) -> Vec<String> {
    let numbers = numbers(path);
    let mut users = loops(path);
    let own = std::process::id().to_string();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = process.file_name();
        let id = id.to_string_lossy();
        if id.bytes().all(|byte| byte.is_ascii_digit()) && id != own && has_open(&process.path(), &numbers) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.push(format!("{} ({id})", name.trim()));
        }
    }
    users
}

/// The numbers of the device and of its partitions.
fn numbers(path: &Path) -> Vec<u64> {
    let name = path.file_name().unwrap_or_default();
    let of_system = Path::new("/sys/block").join(name);
    let parts = fs::read_dir(&of_system).into_iter().flatten().flatten().map(|part| part.path());
    let all = std::iter::once(of_system.clone()).chain(parts.filter(|part| part.join("partition").exists()));
    all.filter_map(|one| number(&fs::read_to_string(one.join("dev")).ok()?)).collect()
}

/// From the text MAJOR:MINOR.
fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn has_open(process: &Path, numbers: &[u64]) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.map(|file| file.path()).any(|file| {
        // Nothing else is looked at: a file on a dead network file system would keep us.
        let is_device = fs::read_link(&file).is_ok_and(|target| target.starts_with("/dev"));
        is_device && number_of(&file).is_ok_and(|number| numbers.contains(&number))
    })
}

fn number_of(file: &Path) -> io::Result<u64> {
    fs::metadata(file).map(|found| found.rdev())
}

fn loops(path: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let over = devices.filter(|device| {
        let below = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(below.trim_end()) == path
    });
    over.map(|device| device.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices_are_read_as_the_kernel_writes_them() {
        assert_eq!(number("259:3\n"), Some(libc::makedev(259, 3)));
        assert_eq!(number("259"), None);
    }

    #[test]
    fn process_that_has_a_device_open_is_found() {
        // Any device will do: what counts is its number.
        let file = File::open("/dev/null").expect("it is everywhere");
        let number = file.metadata().expect("it is open").rdev();
        assert!(has_open(Path::new("/proc/self"), &[number]));
        assert!(!has_open(Path::new("/proc/self"), &[number + 1]));
    }

    #[test]
    fn device_that_is_not_there_is_not_taken_for_unused() {
        let error = claim(Path::new("/dev/no-such-device"), Care::KernelOnly).err().expect("it is not there");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.hint().is_some_and(|hint| hint.contains("--force")), "{error}");
    }
}
