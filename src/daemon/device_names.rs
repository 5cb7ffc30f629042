//! What udev is told of our disks, so that `/dev/rok/NAME` leads to them: a small file for each beside the control socket, which
//! `deploy/60-rok-blk.rules` reads. udev asks no program for it, since a daemon may be away when udev wants to know.
//!
//! A file has the number of its device in its name and, once there is a disk, the number that the kernel gave this disk
//! (`diskseq`), which no other one gets before the next boot. So what a daemon has left behind names no disk of somebody else.
//!
//! Nothing here keeps a disk from being used: what fails is logged, and the disk has its path `/dev/ublkbN` in any case.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rok_ublk::awaited_file;

/// The folder beside the control socket. The rule names it.
const DIRECTORY: &str = "devices";
/// Ends the name of a file whose device is being started: its disk has no number of the kernel yet.
const STARTING: &str = "new";
/// Where a file is written first.
const DRAFT: &str = "draft";
/// How long udev may take to let this daemon speak to it about a disk that was just made.
const PERMISSION_TIME_MAX: Duration = Duration::from_secs(1);

/// Where the kernel tells of disks.
const BLOCK_DEVICES: &str = "/sys/block";

/// The files of a daemon's disks.
#[derive(Clone, Debug)]
pub(super) struct DeviceNames {
    directory: PathBuf,
}

/// What udev is told of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceName<'a> {
    /// The volume or snapshot, like `vol1@7`.
    pub reference: &'a str,
    /// Requests that the block layer may have under way in each queue. udev sets it, since a daemon that is not root cannot.
    pub requests_max: u16,
}

impl DeviceNames {
    /// Those of the daemon with this control socket. Daemons whose sockets are in one directory share them.
    pub(super) fn beside(socket: &Path) -> Self {
        Self { directory: socket.with_file_name(DIRECTORY) }
    }

    /// Tells the name of a device that is about to be started.
    pub(super) fn announce(&self, number: u32, name: DeviceName<'_>) {
        // Its number is ours now: what is there of it is old.
        let announced = self.remove_all(number).and_then(|()| self.replace(&self.path(number, STARTING), name));
        if let Err(error) = announced {
            tracing::warn!(%error, device = number, "a disk has no link in /dev/rok: udev is not told its name");
        }
    }

    /// Keeps the name of a device that was started, for its disk only. udev may be reading it: it looks for a device that is
    /// being started first.
    pub(super) fn confirm(&self, number: u32) {
        let confirmed = disk_sequence(number)
            .and_then(|sequence| fs::rename(self.path(number, STARTING), self.path(number, &sequence)));
        if let Err(error) = confirmed {
            tracing::warn!(%error, device = number, "the link of a disk in /dev/rok does not stay");
            self.withdraw_start(number);
        }
    }

    /// Tells the name of a disk that there is already, and has udev look at it if that is new.
    pub(super) fn renew(&self, number: u32, name: DeviceName<'_>) {
        let told = disk_sequence(number).and_then(|sequence| {
            let path = self.path(number, &sequence);
            let is_known = fs::read_to_string(&path).is_ok_and(|text| text == content(name));
            if is_known { Ok(()) } else { self.replace(&path, name).and_then(|()| have_udev_look(number)) }
        });
        if let Err(error) = told {
            tracing::warn!(
                %error,
                "the link of a disk in /dev/rok is as it was until udev looks again: udevadm trigger \
                 {BLOCK_DEVICES}/ublkb{number}"
            );
        }
    }

    /// Takes the name of a device that is gone back.
    pub(super) fn withdraw(&self, number: u32) {
        if let Err(error) = self.remove_all(number) {
            tracing::warn!(%error, device = number, "the name of a disk that is gone stays in the run directory");
        }
    }

    /// Takes the name of a device back that a daemon was starting when it was killed: whoever gets the number would have it.
    pub(super) fn withdraw_start(&self, number: u32) {
        match fs::remove_file(self.path(number, STARTING)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, device = number, "the name of a disk that was not started stays");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn path(&self, number: u32, end: &str) -> PathBuf {
        self.directory.join(format!("ublkb{number}.{end}"))
    }

    /// Whole or not at all. Not durably: the next boot has no use for it.
    fn replace(&self, path: &Path, name: DeviceName<'_>) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let draft = path.with_extension(DRAFT);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(content(name).as_bytes())?;
        fs::rename(draft, path)
    }

    fn remove_all(&self, number: u32) -> io::Result<()> {
        let files = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            files => files?,
        };
        let start = format!("ublkb{number}.");
        for file in files {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with(&start) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }
}

/// As udev reads it: a property a line.
fn content(name: DeviceName<'_>) -> String {
    format!("ROK_NAME={}\nROK_REQUESTS={}\n", plain(name.reference), name.requests_max)
}

/// A reference with nothing in it that means something to udev. Names of volumes have letters, digits, `-` and `_` only; should
/// that change, udev takes what is written so for a part of a name, and makes no other character of it.
fn plain(reference: &str) -> String {
    let mut text = String::with_capacity(reference.len());
    for byte in reference.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "\\x{byte:02x}").expect("memory takes any text");
        }
    }
    text
}

/// The number that the kernel gave the disk of a device, as text.
fn disk_sequence(number: u32) -> io::Result<String> {
    let text = fs::read_to_string(format!("{BLOCK_DEVICES}/ublkb{number}/diskseq"))?;
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("diskseq is {text:?}")));
    }
    Ok(text.to_owned())
}

/// Has udev apply its rules to a disk and its partitions.
fn have_udev_look(number: u32) -> io::Result<()> {
    let disk = Path::new(BLOCK_DEVICES).join(format!("ublkb{number}"));
    let parts = fs::read_dir(&disk)?.flatten().map(|part| part.path()).filter(|part| part.join("partition").exists());
    // udev looks at the disk first, whose name its partitions take.
    for device in std::iter::once(disk.clone()).chain(parts) {
        let mut options = OpenOptions::new();
        let mut file = awaited_file::open(&device.join("uevent"), options.write(true), PERMISSION_TIME_MAX)?;
        file.write_all(b"change")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .expect("it is there")
            .map(|file| file.expect("it is read").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn name_is_there_while_a_device_is_started_and_goes_with_it() {
        let run = tempfile::tempdir().expect("a directory");
        let names = DeviceNames::beside(&run.path().join("control.sock"));
        let name = DeviceName { reference: "vol1@1", requests_max: 127 };
        // None of them is there.
        names.withdraw(3);
        names.withdraw_start(3);
        names.announce(3, name);
        names.announce(31, name);
        let directory = run.path().join("devices");
        assert_eq!(files(&directory), ["ublkb3.new", "ublkb31.new"]);
        let text = fs::read_to_string(directory.join("ublkb3.new")).expect("it is there");
        assert_eq!(text, "ROK_NAME=vol1@1\nROK_REQUESTS=127\n");
        fs::write(directory.join("ublkb3.12"), "old").expect("space");
        names.withdraw(3);
        assert_eq!(files(&directory), ["ublkb31.new"]);
    }

    #[test]
    fn name_of_a_disk_that_is_not_there_is_not_kept() {
        let run = tempfile::tempdir().expect("a directory");
        let names = DeviceNames::beside(&run.path().join("control.sock"));
        // Beyond the last number.
        let number = 1 << 20;
        names.announce(number, DeviceName { reference: "vol1", requests_max: 127 });
        names.confirm(number);
        assert_eq!(files(&run.path().join("devices")), [""; 0]);
    }

    #[test]
    fn unusual_characters_mean_nothing_to_udev() {
        assert_eq!(plain("vol-1_a@17"), "vol-1_a@17");
        assert_eq!(plain("../sda\nX=1 $%\"~"), "\\x2e\\x2e\\x2fsda\\x0aX\\x3d1\\x20\\x24\\x25\\x22\\x7e");
    }
}
