//! What is attached, and how, in a file of the pool's directory for each driver, so that the next daemon finds its devices or
//! makes them anew.
//!
//! Volumes are named by their ids: names do not appear in clear on the disk. A file is replaced whole, durably. Each driver has
//! its own, since numbers of devices are a driver's.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::durable_file;
use super::trash::Thing;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::DeviceAccess;

/// What this version writes, and the newest that it reads.
const VERSION: u32 = 1;

/// How something is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    /// The volume or snapshot.
    pub thing: Thing,
    /// How the device uses it.
    pub access: DeviceAccess,
    /// Queues that were asked for.
    pub queue_count: u16,
    /// Tags of each.
    pub queue_depth: u16,
    /// It is not made anew when the driver has none.
    pub is_once: bool,
}

/// By the number of the device.
pub(super) type RememberedDevices = BTreeMap<u32, Remembered>;

impl Remembered {
    /// What the driver keeps of the device, by which a later daemon knows it as its own: never 0, which devices of other
    /// programs have.
    pub(super) fn identity(&self) -> u64 {
        let (volume, number) = match self.thing {
            Thing::Volume(volume) => (volume, 0),
            Thing::Snapshot((volume, number)) => (volume, number),
        };
        let (high, low) = volume.as_u64_pair();
        // Numbers of snapshots are small, and an id's bits are random.
        (high ^ low.rotate_left(32) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1)
    }
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    attachments: BTreeMap<u32, Entry>,
}

/// One attachment.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    volume: Uuid,
    snapshot: Option<u64>,
    access: Access,
    queues: u16,
    depth: u16,
    is_once: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Access {
    ReadOnly,
    Exclusive,
    Shared,
}

impl From<Entry> for Remembered {
    fn from(entry: Entry) -> Self {
        let access = match entry.access {
            Access::ReadOnly => DeviceAccess::ReadOnly,
            Access::Exclusive => DeviceAccess::Exclusive,
            Access::Shared => DeviceAccess::Shared,
        };
        let thing = match entry.snapshot {
            Some(number) => Thing::Snapshot((entry.volume, number)),
            None => Thing::Volume(entry.volume),
        };
        Self { thing, access, queue_count: entry.queues, queue_depth: entry.depth, is_once: entry.is_once }
    }
}

impl From<&Remembered> for Entry {
    fn from(remembered: &Remembered) -> Self {
        let access = match remembered.access {
            DeviceAccess::ReadOnly => Access::ReadOnly,
            DeviceAccess::Exclusive => Access::Exclusive,
            DeviceAccess::Shared => Access::Shared,
        };
        let (volume, snapshot) = match remembered.thing {
            Thing::Volume(volume) => (volume, None),
            Thing::Snapshot((volume, number)) => (volume, Some(number)),
        };
        let Remembered { queue_count: queues, queue_depth: depth, is_once, .. } = *remembered;
        Self { volume, snapshot, access, queues, depth, is_once }
    }
}

/// The file of one driver, by its name in the pool's directory.
pub(super) struct AttachmentFile(&'static str);

impl AttachmentFile {
    /// Devices by ublk.
    pub(super) const UBLK: Self = Self("attachments.json");
    /// Devices by the kernel's NBD client.
    pub(super) const NBD: Self = Self("nbd-attachments.json");

    /// Reads what is remembered; nothing if there is no file.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if the file is damaged, [`ErrorKind::Unsupported`] if it is of a newer version, and those of
    /// reading it.
    pub(super) fn read(&self, pool: &Path) -> Result<RememberedDevices> {
        let path = pool.join(self.0);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(Error::from_io("Reading", &path, error)),
        };
        let damaged = |error: serde_json::Error| {
            Error::new(ErrorKind::Integrity, format!("{} is damaged: {error}", path.display()))
                .with_hint("Attach anew what is to be attached")
        };
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version > VERSION {
            let message = format!("{} has version {version}, and this program knows {VERSION}", path.display());
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint("Use a newer rok-blk"));
        }
        let content: Content = serde_json::from_slice(&bytes).map_err(damaged)?;
        Ok(content.attachments.into_iter().map(|(number, entry)| (number, entry.into())).collect())
    }

    /// Reads what is remembered. A file that cannot be read is kept out of the way, which is logged; then it is nothing.
    pub(super) fn read_or_set_aside(&self, pool: &Path) -> RememberedDevices {
        self.read(pool).unwrap_or_else(|error| {
            let aside = self.set_aside(pool);
            let kept = aside.map_or_else(|error| error.to_string(), |path| format!("it is kept as {}", path.display()));
            tracing::error!(%error, kept, "what was attached is not known: attach it anew with rok-blk attach");
            RememberedDevices::new()
        })
    }

    /// Keeps a file that cannot be read out of the way, and returns where it is.
    ///
    /// # Errors
    /// Those of renaming it.
    fn set_aside(&self, pool: &Path) -> Result<PathBuf> {
        let (path, unread) = (pool.join(self.0), pool.join(format!("{}.unread", self.0)));
        fs::rename(&path, &unread).map_err(|error| Error::from_io("Renaming", &path, error))?;
        Ok(unread)
    }

    /// Replaces what is remembered, durably.
    ///
    /// # Errors
    /// Those of writing; then the file is as it was.
    pub(super) fn write(&self, pool: &Path, remembered: &RememberedDevices) -> Result<()> {
        let attachments = remembered.iter().map(|(number, remembered)| (*number, remembered.into())).collect();
        let bytes = serde_json::to_vec_pretty(&Content { version: VERSION, attachments }).expect("plain data");
        let (path, draft) = (pool.join(self.0), pool.join(format!("{}.new", self.0)));
        durable_file::replace(&path, &draft, &bytes).map_err(|error| {
            let kind = if error.kind() == IoErrorKind::StorageFull { ErrorKind::NoSpace } else { ErrorKind::Other };
            Error::new(kind, format!("Writing {} failed: {error}", path.display()))
                .with_hint("See to the file system and try again")
                .with_source(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FILE: AttachmentFile = AttachmentFile::UBLK;
    const VOLUME: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_1122_3344_5566_7788);

    fn remembered() -> RememberedDevices {
        let of_volume = Remembered {
            thing: Thing::Volume(VOLUME),
            access: DeviceAccess::Exclusive,
            queue_count: 2,
            queue_depth: 128,
            is_once: false,
        };
        let of_snapshot = Remembered {
            thing: Thing::Snapshot((VOLUME, 7)),
            access: DeviceAccess::ReadOnly,
            is_once: true,
            ..of_volume
        };
        let shared = Remembered { access: DeviceAccess::Shared, queue_depth: 4096, ..of_volume };
        [(0, of_volume), (3, of_snapshot), (1_048_575, shared)].into()
    }

    #[test]
    fn what_was_written_is_read_and_nobody_else_reads_it() {
        let pool = tempfile::tempdir().expect("a directory");
        assert_eq!(FILE.read(pool.path()).expect("no file is nothing"), BTreeMap::new());
        FILE.write(pool.path(), &remembered()).expect("space");
        assert_eq!(FILE.read(pool.path()).expect("it was written"), remembered());
        let mode = fs::metadata(pool.path().join("attachments.json")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        AttachmentFile::NBD.write(pool.path(), &BTreeMap::new()).expect("space");
        assert_eq!(FILE.read(pool.path()).expect("another driver's is another file"), remembered());
        FILE.write(pool.path(), &BTreeMap::new()).expect("space");
        assert_eq!(FILE.read(pool.path()).expect("it was written"), BTreeMap::new());
        assert!(!pool.path().join("attachments.json.new").exists());
    }

    #[test]
    fn file_that_cannot_be_read_is_told_by_name_and_kept_aside() {
        let pool = tempfile::tempdir().expect("a directory");
        FILE.write(pool.path(), &remembered()).expect("space");
        let path = pool.path().join("attachments.json");
        let text = fs::read_to_string(&path).expect("it was written");
        let newer = r#"{"version": 2, "new": 1}"#.to_owned();
        for (content, kind) in [
            (text[..text.len() / 2].to_owned(), ErrorKind::Integrity),
            (text.replace("exclusive", "inclusive"), ErrorKind::Integrity),
            (text.replace("queues", "queue"), ErrorKind::Integrity),
            (newer, ErrorKind::Unsupported),
        ] {
            fs::write(&path, &content).expect("space");
            let error = FILE.read(pool.path()).expect_err("it cannot be read");
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains("attachments.json"), "{error}");
            let aside = FILE.set_aside(pool.path()).expect("it is there");
            assert_eq!(fs::read_to_string(aside).expect("it was moved"), content);
            assert_eq!(FILE.read(pool.path()).expect("there is none now"), BTreeMap::new());
        }
    }

    #[test]
    fn identity_tells_volumes_and_their_snapshots_apart() {
        let identity = |thing| Remembered { thing, ..remembered()[&0] }.identity();
        let other = Uuid::from_u128(VOLUME.as_u128() + 1);
        let identities = [
            identity(Thing::Volume(VOLUME)),
            identity(Thing::Snapshot((VOLUME, 1))),
            identity(Thing::Snapshot((VOLUME, 2))),
            identity(Thing::Volume(other)),
        ];
        let different: std::collections::BTreeSet<u64> = identities.into();
        assert_eq!(different.len(), identities.len());
        assert_eq!(identity(Thing::Volume(Uuid::nil())), 1, "0 is nobody's");
        // What a driver keeps across a restart must mean the same to the next version.
        assert_eq!(identities[0], 0x0123_4567_89ab_cdef ^ 0x5566_7788_1122_3344);
    }
}
