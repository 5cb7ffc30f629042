//! What the API answers: the same structs make the daemon's JSON, its OpenAPI document and the command line's input.
//!
//! Bytes are integers, times RFC 3339 in UTC. Clients ignore fields they do not know, so fields may be added.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::cleaning_resource::Cleaning;
use super::key_resource::KeySlot;
use super::on_full_resource::{OnFull, PausedVolume};
use super::scrub_resource::Scrubbing;
use super::space_resource::{HeldSpace, VolumeSpace};
use crate::crypto::Suite;
use crate::lane::IoMethod;
use crate::pool::directory::PoolDescription;
use crate::volume::VolumeInfo;

/// Which version of the API speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ApiVersion {
    /// The only one so far.
    #[default]
    #[serde(rename = "rok-blk/v1")]
    V1,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "each names the struct of this file that carries it")]
pub enum Kind {
    Volume,
    VolumeList,
    Change,
    ChangeList,
    ExportList,
    KeyList,
    KeyChange,
    DeviceChange,
    Pool,
    Space,
    Status,
    CheckReport,
    PoolLock,
    RemovalForecast,
    Job,
    JobList,
    Snapshot,
    SnapshotList,
    SnapshotChange,
    SnapshotChangeList,
    ResolutionList,
    Rollback,
    TrashList,
    TrashRestore,
    TrashEmpty,
    Diff,
    Policy,
    PolicyList,
    PolicyChange,
    PolicyRun,
    Scrub,
    AttachmentList,
    AttachmentChange,
    AttachmentChangeList,
}

/// A writable virtual disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// What commands call it: its name.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Its id, which a new name does not change.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// How many bytes users see.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// Bytes of the sectors that users see: 512 or 4096.
    pub sector_size: u32,
    /// Bytes that it takes of the pool.
    #[serde(rename = "allocated")]
    pub allocated_bytes: u64,
    /// How many connections have it open.
    pub connections: u32,
    /// Whether the listeners offer it.
    pub is_exported: bool,
    /// When it was created.
    pub created_at: String,
    /// Whether it is encrypted with a key of its own, which a removal can destroy.
    pub has_own_key: bool,
    /// What its writes do that find no space in the pool.
    pub on_full: OnFull,
    /// How many of its writes wait for space.
    pub paused_writes: u32,
    /// Since when at least one does; null if none does.
    pub paused_since: Option<String>,
}

impl Volume {
    /// From what the engine knows.
    #[must_use]
    pub fn new(info: VolumeInfo, is_exported: bool) -> Self {
        Self {
            reference: info.name.clone(),
            uuid: info.id,
            name: info.name,
            size_bytes: info.size_bytes,
            sector_size: info.sector_size,
            allocated_bytes: info.allocated_bytes,
            connections: info.connections,
            is_exported,
            created_at: time_text(info.created_at),
            has_own_key: info.has_own_key,
            on_full: info.on_full.into(),
            paused_writes: info.pause.map_or(0, |pause| pause.writes),
            paused_since: info.pause.map(|pause| time_text(pause.since)),
        }
    }
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Volume`.
    pub kind: Kind,
    /// The volume.
    #[serde(flatten)]
    pub volume: Volume,
    /// Where its space is; null unless asked for.
    pub space: Option<VolumeSpace>,
}

/// Volumes, ordered by name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `VolumeList`.
    pub kind: Kind,
    /// The volumes.
    pub items: Vec<Volume>,
}

/// What a request changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum Action {
    Create,
    Rename,
    Resize,
    Set,
    Remove,
    Export,
    Unexport,
    Clone,
}

/// What a request changed or, as a dry run, would change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Change`.
    pub kind: Kind,
    /// What was asked for.
    pub action: Action,
    /// What commands call the thing afterwards; for a removal, before.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// Whether `before` and `after` differ.
    pub has_changed: bool,
    /// The volume before; null if it was not there.
    pub before: Option<Volume>,
    /// The volume afterwards; null if it is gone. In the plan of a creation its id is zero.
    pub after: Option<Volume>,
    /// The job that goes on with it in the background; null if there is none.
    pub job: Option<String>,
    /// When what was removed leaves the trash for good; null if it is not there.
    pub delete_at: Option<String>,
}

impl Change {
    /// From the states around it.
    ///
    /// # Panics
    /// If both states are absent: there is no such change.
    #[must_use]
    pub fn new(action: Action, is_dry_run: bool, before: Option<Volume>, after: Option<Volume>) -> Self {
        let named = after.as_ref().or(before.as_ref()).expect("a change has a state before or after it");
        Self {
            api: ApiVersion::V1,
            kind: Kind::Change,
            action,
            reference: named.reference.clone(),
            is_dry_run,
            has_changed: before != after,
            before,
            after,
            job: None,
            delete_at: None,
        }
    }
}

/// What one command changed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangeList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `ChangeList`.
    pub kind: Kind,
    /// The changes, in the order of the command's arguments.
    pub items: Vec<Change>,
}

/// A file or block device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolDevice {
    /// Its name in the pool's directory.
    pub name: String,
    /// Its size.
    #[serde(rename = "size")]
    pub size_bytes: u64,
}

/// What a pool is made of. It is readable without a key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Pool`.
    pub kind: Kind,
    /// The pool's directory.
    pub path: String,
    /// The pool's id.
    pub uuid: Uuid,
    /// Version of the format on disk.
    pub format_version: u32,
    /// How blocks are protected: `aes-256-xts+gmac`, or `none` (checksums only).
    pub encryption: String,
    /// The devices.
    pub devices: Vec<PoolDevice>,
    /// The key slots in use.
    pub key_slots: Vec<KeySlot>,
}

impl PoolAnswer {
    /// From what the engine says about the pool in `path`.
    #[must_use]
    pub fn new(path: &Path, description: PoolDescription) -> Self {
        let device = |(name, size_bytes)| PoolDevice { name, size_bytes };
        Self {
            api: ApiVersion::V1,
            kind: Kind::Pool,
            path: path.display().to_string(),
            uuid: description.id,
            format_version: description.format_version,
            encryption: match description.suite {
                Suite::Plain => "none".to_owned(),
                Suite::XtsGmac => "aes-256-xts+gmac".to_owned(),
            },
            devices: description.devices.into_iter().map(device).collect(),
            key_slots: description.key_slots.into_iter().map(KeySlot::new).collect(),
        }
    }
}

/// How much space is left: see the watermarks of `serve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the level of that name")]
pub enum SpaceLevel {
    Enough,
    Low,
    Critical,
}

impl From<crate::pool::SpaceLevel> for SpaceLevel {
    fn from(level: crate::pool::SpaceLevel) -> Self {
        match level {
            crate::pool::SpaceLevel::Enough => Self::Enough,
            crate::pool::SpaceLevel::Low => Self::Low,
            crate::pool::SpaceLevel::Critical => Self::Critical,
        }
    }
}

/// Where the pool's space is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Space {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Space`.
    pub kind: Kind,
    /// All of the pool.
    #[serde(rename = "capacity")]
    pub capacity_bytes: u64,
    /// In use.
    #[serde(rename = "used")]
    pub used_bytes: u64,
    /// Free for writes.
    #[serde(rename = "free")]
    pub free_bytes: u64,
    /// Held by what no checkpoint has stored yet, by records of the log, and by the lanes' windows: most of it comes back
    /// with checkpoints.
    #[serde(rename = "quarantined")]
    pub quarantined_bytes: u64,
    /// The part of the free space that only overwrites, deletions and records may take.
    #[serde(rename = "reserve")]
    pub reserve_bytes: u64,
    /// How much is left, as of the last checkpoint.
    pub level: SpaceLevel,
    /// From this share of used space on, in percent, it is low.
    pub low_percent: u8,
    /// From this share of used space on, in percent, it is critical.
    pub critical_percent: u8,
    /// The metadata store beside the devices.
    #[serde(rename = "metadata")]
    pub metadata_bytes: u64,
    /// What the file system that holds it has left; null if it does not say.
    #[serde(rename = "metadata_free")]
    pub metadata_free_bytes: Option<u64>,
    /// Bytes that what is in the trash maps; what others map too is included.
    #[serde(rename = "trash")]
    pub trash_bytes: u64,
    /// Bytes of what was removed for good that checkpoints still have to look at; what others map stays.
    #[serde(rename = "reclaim")]
    pub reclaim_bytes: u64,
    /// Bytes that one volume maps as it is now, and nothing else. With `versions` and `reclaim` it is `used`.
    #[serde(rename = "unique")]
    pub unique_bytes: u64,
    /// Bytes that snapshots map, or clones of them, which volumes may map too.
    #[serde(rename = "versions")]
    pub versions_bytes: u64,
    /// Sizes of all volumes together.
    #[serde(rename = "nominal")]
    pub nominal_bytes: u64,
    /// Bytes that volumes map; what several map is counted for each.
    #[serde(rename = "allocated")]
    pub allocated_bytes: u64,
    /// Nominal by capacity; above 1 the volumes cannot all be filled.
    pub overcommit: f64,
}

/// How the open pool does.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolState {
    /// The pool's id.
    pub uuid: Uuid,
    /// Its directory.
    pub path: String,
    /// Whether blocks are encrypted.
    pub is_encrypted: bool,
    /// Number of this session.
    pub session: u64,
    /// Number of the last checkpoint.
    pub checkpoint: u64,
    /// Changes that no checkpoint holds yet.
    pub changes: u64,
    /// Records of the log that this session's recovery applied.
    pub recovered_records: u64,
    /// Blocks of the last batches before the crash that it lost or tore. None of them was acknowledged as flushed.
    pub lost_blocks: u64,
    /// How long it took to open the pool, recovery included.
    pub open_ms: u64,
    /// Damaged blocks that reads met in this session, one that is read again counted again.
    pub damaged_blocks: u64,
    /// Whether the metadata store found no space and lives on its reserve.
    pub is_meta_reserve_gone: bool,
    /// Memory that cached leaves of the map take, in bytes.
    #[serde(rename = "map_cache")]
    pub map_cache_bytes: u64,
    /// Most that they may take, in bytes.
    #[serde(rename = "map_cache_max")]
    pub map_cache_bytes_max: u64,
    /// How its free space lies.
    pub cleaning: Cleaning,
    /// How lanes do their I/O.
    pub io: Io,
    /// Why the pool takes no writes any more; null while it does.
    pub failure: Option<String>,
    /// Its scrub, and what that has found.
    pub scrub: Scrubbing,
}

/// Now.
pub(super) fn seconds_since_1970() -> u64 {
    // A clock before 1970 is a broken clock; zero is as good as any other time.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Now, more finely.
pub(super) fn milliseconds_since_1970() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis());
    i64::try_from(elapsed).unwrap_or(i64::MAX)
}

/// How lanes do their I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Io {
    /// Over io_uring.
    IoUring,
    /// With threads, which is slower: io_uring is refused, or was not wanted.
    Threads,
}

impl From<IoMethod> for Io {
    fn from(method: IoMethod) -> Self {
        match method {
            IoMethod::IoUring => Self::IoUring,
            IoMethod::Threads => Self::Threads,
        }
    }
}

/// How the daemon does.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Status`.
    pub kind: Kind,
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// When it started.
    pub started_at: String,
    /// The pool's directory.
    pub path: String,
    /// Whether the pool is closed and its keys are forgotten, until somebody unlocks it.
    pub is_locked: bool,
    /// The pool; null while it is locked.
    pub pool: Option<PoolState>,
    /// Its space; null while it is locked.
    pub space: Option<Space>,
    /// How many volumes there are.
    pub volumes: u64,
    /// How many connections have a volume open.
    pub connections: u64,
    /// Where NBD clients connect.
    pub listeners: Vec<String>,
    /// Volumes whose writes wait for space, ordered by name.
    pub paused: Vec<PausedVolume>,
    /// While space is low, the snapshots whose removal would free most; looked up at most once a minute.
    pub freeable: Vec<HeldSpace>,
    /// What needs somebody's attention, in sentences.
    pub warnings: Vec<String>,
}

impl PoolState {
    /// How often reads met damage, as a sentence without its end.
    #[must_use]
    pub fn damage_text(&self) -> String {
        match self.damaged_blocks {
            0 => "No read has met a damaged block since the pool was opened".to_owned(),
            1 => "1 read has met a damaged block since the pool was opened".to_owned(),
            count => format!("{count} reads have met damaged blocks since the pool was opened"),
        }
    }
}

/// `seconds` after 1970 as RFC 3339.
#[must_use]
pub fn time_text(seconds: u64) -> String {
    // The year 9999 is the last that RFC 3339 can write. jiff leaves its last day out, for whoever lives to the west.
    const SECONDS_MAX: i64 = 253_402_207_200;
    let seconds = i64::try_from(seconds).unwrap_or(SECONDS_MAX).min(SECONDS_MAX);
    crate::volume::time_text(Timestamp::from_second(seconds).expect("it is before the last time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc_up_to_the_last_year() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(1_793_527_200), "2026-11-01T10:00:00Z");
        assert_eq!(time_text(u64::MAX), "9999-12-30T22:00:00Z");
    }
}
