//! What the API answers about the trash, and takes.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::failure_resource::FailureDetail;
use super::resource::{ApiVersion, Kind};

/// What lies in the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrashedThing {
    /// A volume, with its snapshots.
    Volume,
    /// A snapshot of a volume that is not in the trash.
    Snapshot,
}

/// Something in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrashItem {
    /// What commands called it; several volumes of one name may be there.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Its id, by which it can always be restored.
    pub uuid: Uuid,
    /// What it is.
    pub thing: TrashedThing,
    /// How many bytes its users saw.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// Bytes that it maps, which others may map too.
    #[serde(rename = "allocated")]
    pub allocated_bytes: u64,
    /// Snapshots that go with it.
    pub snapshots: u64,
    /// When it was put there.
    pub trashed_at: String,
    /// When it leaves for good.
    pub delete_at: String,
}

/// What is in the trash, what leaves first in front.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TrashList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `TrashList`.
    pub kind: Kind,
    /// The things.
    pub items: Vec<TrashItem>,
}

/// What came back out of the trash or, as a dry run, would.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RestoreAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `TrashRestore`.
    pub kind: Kind,
    /// What commands call it now.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// What it was in the trash.
    pub before: TrashItem,
}

/// Options of emptying the trash.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EmptyOptions {
    /// Say what would go, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// Only what has been there for so many seconds.
    #[serde(default)]
    #[param(required = false)]
    pub older_than_seconds: u64,
}

/// Something that left the trash for good, or could not.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EmptiedItem {
    /// What it is.
    #[serde(flatten)]
    pub item: TrashItem,
    /// Why it is still there; null if it is gone.
    pub error: Option<FailureDetail>,
}

/// What left the trash for good or, as a dry run, would.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EmptyAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `TrashEmpty`.
    pub kind: Kind,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// The things.
    pub items: Vec<EmptiedItem>,
    /// In a plan, bytes that would be free then; null while the space of earlier removals is still being reclaimed, and where
    /// things were removed: the job tells.
    pub freed: Option<u64>,
    /// The job that watches their space come back; null if there is none.
    pub job: Option<String>,
}
