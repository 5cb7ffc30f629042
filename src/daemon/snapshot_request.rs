//! What the API takes about snapshots, clones and rollback. A field it does not know is an error.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Makes snapshots of volumes at one instant, all or none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshots {
    /// The volumes.
    pub targets: Vec<String>,
    /// Why.
    #[serde(default)]
    pub message: String,
    /// Further names for each of them.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Notes, by key.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The time that the content is of, if not now.
    #[serde(default)]
    pub time: Option<String>,
    /// After so many seconds it goes to the trash by itself.
    #[serde(default)]
    pub expires_in_seconds: Option<u64>,
    /// Only of volumes that have changed since their last snapshot.
    #[serde(default)]
    pub if_changed: bool,
    /// Small files to keep with each of them.
    #[serde(default)]
    pub files: Vec<MetaFileContent>,
    /// Who makes it, like alice@lab-a; the daemon's own user if it is left out.
    #[serde(default)]
    pub creator: Option<String>,
}

/// A small file that is kept with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetaFileContent {
    /// What it is called there.
    pub name: String,
    /// Its content in base64 (RFC 4648, with padding).
    pub content: String,
}

/// Which of a volume's snapshots to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogOptions {
    /// Only those whose time is not earlier.
    #[serde(default)]
    #[param(required = false)]
    pub since: Option<String>,
    /// Only those whose time is not later.
    #[serde(default)]
    #[param(required = false)]
    pub until: Option<String>,
    /// At most so many, the newest ones.
    #[serde(default)]
    #[param(required = false)]
    pub count: Option<u64>,
}

/// Asks which snapshots references mean.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// The references; at most 10,000.
    pub references: Vec<String>,
}

/// Gives a snapshot a tag.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddTag {
    /// The tag.
    pub tag: String,
    /// Another snapshot of the volume may have it, and loses it then.
    #[serde(default, rename = "move")]
    pub is_moved: bool,
}

/// Takes a tag from a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveTag {
    /// The tag.
    pub tag: String,
}

/// Changes the labels of a snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLabels {
    /// New values, by key.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Keys of labels that go.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// Keeps a snapshot from being removed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddHold {
    /// Why; it is also the hold's name.
    pub reason: String,
    /// Until when; for ever if it is left out.
    #[serde(default)]
    pub until: Option<String>,
}

/// Ends a hold of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveHold {
    /// Its reason.
    pub reason: String,
}

/// Makes volumes that start as a snapshot, all or none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneSnapshot {
    /// The volume's name; with a count, one with a place for its number, like `ci-{:03}`.
    pub name: String,
    /// How many, from 1 to 10,000; one without a number in its name if it is left out.
    #[serde(default)]
    pub count: Option<u32>,
    /// Notes, by key.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// After so many seconds they go to the trash by themselves.
    #[serde(default)]
    pub expires_in_seconds: Option<u64>,
}

/// Switches a volume back to one of its snapshots.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Which: what stands behind the `@` of a reference.
    pub to: String,
    /// Give up what was written since the last snapshot, instead of keeping it as one.
    #[serde(default)]
    pub no_safety: bool,
    /// Who does it; the daemon's own user if it is left out.
    #[serde(default)]
    pub creator: Option<String>,
}
