//! What the API answers about snapshots.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::failure_resource::FailureDetail;
use super::resource::{ApiVersion, Kind, Volume, time_text};
use crate::format::snapshot::SnapshotRecord;
use crate::units::to_u64;

/// Whether a snapshot is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// It can be read, cloned, rolled back to.
    Sealed,
    /// It is in the trash.
    Trashed,
}

/// Why a snapshot must stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hold {
    /// The reason, which is also its name.
    pub reason: String,
    /// Until when; null is for ever.
    pub until: Option<String>,
}

/// A small file that is kept with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetaFile {
    /// What it is called.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// An immutable point in time of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// What commands call it: `vol1@7`.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Its id.
    pub uuid: Uuid,
    /// Its volume's id.
    pub volume_uuid: Uuid,
    /// Its number in the volume, which never comes back.
    #[serde(rename = "seq")]
    pub number: u64,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it is in use.
    pub state: SnapshotState,
    /// What it builds on: the snapshot before it, or what its volume was cloned from or rolled back to; none if that is gone.
    pub parents: Vec<String>,
    /// The time that its content is of: its creation, unless its maker said otherwise.
    pub time: String,
    /// When it was made.
    pub created_at: String,
    /// Who made it: user@host.
    pub created_by: String,
    /// Why.
    pub message: String,
    /// Notes, by key.
    pub labels: BTreeMap<String, String>,
    /// Small files that are kept with it.
    pub meta_files: Vec<MetaFile>,
    /// How many bytes its users see.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// Bytes that it maps, as of the last checkpoint.
    #[serde(rename = "allocated")]
    pub allocated_bytes: u64,
    /// Bytes that were written since what it builds on, as of the last checkpoint.
    #[serde(rename = "changed")]
    pub changed_bytes: u64,
    /// Bytes that nothing else maps, which its removal alone would free, as of the last checkpoint; null unless asked for, or
    /// if it would take too long, or while the space of earlier removals is being reclaimed.
    #[serde(rename = "unique")]
    pub unique_bytes: Option<u64>,
    /// What keeps it.
    pub holds: Vec<Hold>,
    /// When it goes to the trash by itself; null is never.
    pub expires_at: Option<String>,
    /// When it was put into the trash; null if it is not there.
    pub trashed_at: Option<String>,
    /// When it leaves the trash for good; null if it is not there.
    pub delete_at: Option<String>,
}

/// What is told of a snapshot beside its record.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// The name of its volume.
    pub(super) volume: String,
    pub(super) parents: Vec<String>,
    pub(super) allocated_bytes: u64,
    pub(super) changed_bytes: u64,
}

impl Snapshot {
    /// From what the catalog has.
    pub(super) fn new(record: &SnapshotRecord, around: Surroundings) -> Self {
        let notes = &record.annotations;
        let moment = |seconds: u64| (seconds > 0).then(|| time_text(seconds));
        let file = |(name, bytes): &(String, Vec<u8>)| MetaFile { name: name.clone(), bytes: to_u64(bytes.len()) };
        Self {
            reference: format!("{}@{}", around.volume, record.number),
            uuid: record.id,
            volume_uuid: record.volume,
            number: record.number,
            tags: notes.tags.clone(),
            state: if record.lifetime.is_trashed() { SnapshotState::Trashed } else { SnapshotState::Sealed },
            parents: around.parents,
            time: millisecond_text(record.time_ms),
            created_at: millisecond_text(record.created_at_ms),
            created_by: notes.creator.clone(),
            message: notes.message.clone(),
            labels: notes.labels.iter().cloned().collect(),
            meta_files: notes.files.iter().map(file).collect(),
            size_bytes: record.size_bytes,
            allocated_bytes: around.allocated_bytes,
            changed_bytes: around.changed_bytes,
            unique_bytes: None,
            holds: notes
                .holds
                .iter()
                .map(|hold| Hold { reason: hold.reason.clone(), until: moment(hold.until) })
                .collect(),
            expires_at: moment(record.lifetime.expires_at),
            trashed_at: moment(record.lifetime.trashed_at),
            delete_at: moment(record.lifetime.delete_at),
        }
    }
}

fn millisecond_text(milliseconds: i64) -> String {
    crate::volume::time_text(crate::volume::timestamp_of(milliseconds))
}

/// One snapshot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Snapshot`.
    pub kind: Kind,
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
}

/// Snapshots of a volume, the highest number first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `SnapshotList`.
    pub kind: Kind,
    /// The snapshots.
    pub items: Vec<Snapshot>,
}

/// What a request does to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum SnapshotAction {
    Snapshot,
    Tag,
    Untag,
    Set,
    Hold,
    Release,
    Remove,
    Restore,
}

/// What a request changed of a snapshot or, as a dry run, would change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotChange {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `SnapshotChange`.
    pub kind: Kind,
    /// What was done.
    pub action: SnapshotAction,
    /// What commands call it.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// Whether `before` and `after` differ.
    pub has_changed: bool,
    /// The snapshot before; null if it was not there.
    pub before: Option<Snapshot>,
    /// The snapshot afterwards; null if it is gone. In the plan of a creation its id is zero.
    pub after: Option<Snapshot>,
    /// The job that goes on with it in the background; null if there is none.
    pub job: Option<String>,
}

impl SnapshotChange {
    /// From the states around it.
    ///
    /// # Panics
    /// If both states are absent: there is no such change.
    #[must_use]
    pub fn new(action: SnapshotAction, is_dry_run: bool, before: Option<Snapshot>, after: Option<Snapshot>) -> Self {
        let named = after.as_ref().or(before.as_ref()).expect("a change has a state before or after it");
        Self {
            api: ApiVersion::V1,
            kind: Kind::SnapshotChange,
            action,
            reference: named.reference.clone(),
            is_dry_run,
            has_changed: before != after,
            before,
            after,
            job: None,
        }
    }
}

/// What one request changed of several snapshots.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotChangeList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `SnapshotChangeList`.
    pub kind: Kind,
    /// The changes, in the order of the request's targets.
    pub items: Vec<SnapshotChange>,
}

impl SnapshotChangeList {
    /// Of these changes.
    #[must_use]
    pub const fn new(items: Vec<SnapshotChange>) -> Self {
        Self { api: ApiVersion::V1, kind: Kind::SnapshotChangeList, items }
    }
}

/// What a reference means.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Resolution {
    /// The reference as it was asked.
    pub asked: String,
    /// What commands call the snapshot; null if there is none.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// The snapshot; null if there is none.
    pub snapshot: Option<Snapshot>,
    /// Why there is none; null if there is one.
    pub error: Option<FailureDetail>,
}

/// What references mean, in the order in which they were asked.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResolutionList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `ResolutionList`.
    pub kind: Kind,
    /// What each of them means.
    pub items: Vec<Resolution>,
}

/// What a rollback did or, as a dry run, would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RollbackAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Rollback`.
    pub kind: Kind,
    /// The volume.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// The snapshot that the volume now starts as.
    pub to: String,
    /// The snapshot that keeps what was there before; null if it was not to be kept.
    pub kept: Option<String>,
    /// The volume before.
    pub before: Volume,
    /// The volume afterwards.
    pub after: Volume,
}
