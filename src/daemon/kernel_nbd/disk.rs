//! What the kernel tells of `/dev/nbdN` in files, without a command of the driver.

use std::fs;
use std::path::{Path, PathBuf};

use crate::daemon::attachment_resource::AttachmentState;
use crate::daemon::attachment_store::Remembered;
use crate::daemon::trash::Thing;

/// What the driver has under a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holder {
    /// No disk.
    Nobody,
    /// One that was made of what is asked for, by us.
    Ours,
    /// One of something else, or of another program.
    Other,
}

impl Holder {
    /// Of the disk with a number, where ours has been told this by us.
    pub(super) fn of(number: u32, backend: &str) -> Self {
        Self::in_directory(Path::new("/sys/block"), number, backend)
    }

    fn in_directory(directory: &Path, number: u32, backend: &str) -> Self {
        let disk = directory.join(format!("nbd{number}"));
        match fs::read_to_string(disk.join("backend")) {
            Ok(told) if told.trim_end() == backend => Self::Ours,
            Ok(_) => Self::Other,
            // One that was connected by ioctl, or before Linux 5.14, has this file only.
            Err(_) if disk.join("pid").exists() => Self::Other,
            Err(_) => Self::Nobody,
        }
    }
}

impl Remembered {
    /// What the driver is told for later daemons to know a disk by, and shows to everybody: ids, no names.
    pub(super) fn backend(&self) -> String {
        match self.thing {
            Thing::Volume(volume) => format!("rok-blk:{volume}"),
            Thing::Snapshot((volume, number)) => format!("rok-blk:{volume}@{number}"),
        }
    }
}

/// State of a disk that is remembered and not served.
pub(in crate::daemon) fn state_unserved(number: u32, remembered: &Remembered) -> AttachmentState {
    match Holder::of(number, &remembered.backend()) {
        Holder::Nobody => AttachmentState::Gone,
        Holder::Ours => AttachmentState::Quiesced,
        Holder::Other => AttachmentState::Taken,
    }
}

/// Path of the disk with a number.
pub(in crate::daemon) fn block_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::DeviceAccess;

    #[test]
    fn disk_is_ours_only_if_the_driver_was_told_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = directory.path().join("nbd3");
        fs::create_dir(&disk).expect("space");
        let holder = || Holder::in_directory(directory.path(), 3, "rok-blk:a");
        assert_eq!(holder(), Holder::Nobody);
        fs::write(disk.join("pid"), "7\n").expect("space");
        assert_eq!(holder(), Holder::Other);
        // By netlink, and without a name.
        for told in ["\n", "rok-blk:b\n", "rok-blk:a@1\n"] {
            fs::write(disk.join("backend"), told).expect("space");
            assert_eq!(holder(), Holder::Other, "{told}");
        }
        fs::write(disk.join("backend"), "rok-blk:a\n").expect("space");
        assert_eq!(holder(), Holder::Ours);
        assert_eq!(Holder::in_directory(directory.path(), 4, "rok-blk:a"), Holder::Nobody);
    }

    #[test]
    fn backend_tells_volumes_and_their_snapshots_apart() {
        let volume = uuid::Uuid::from_u128(7);
        let backend = |thing| {
            let access = DeviceAccess::ReadOnly;
            Remembered { thing, access, queue_count: 1, queue_depth: 128, is_once: false }.backend()
        };
        // What a driver keeps across a restart must mean the same to the next version.
        assert_eq!(backend(Thing::Volume(volume)), "rok-blk:00000000-0000-0000-0000-000000000007");
        assert_eq!(backend(Thing::Snapshot((volume, 12))), "rok-blk:00000000-0000-0000-0000-000000000007@12");
    }
}
