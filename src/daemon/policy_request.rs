//! What the API takes about retention policies. A field it does not know is an error.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::retention::Retention;

/// Makes a policy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePolicy {
    /// Its name.
    pub name: String,
    /// Seconds between two snapshots, from 1. They are taken at its multiples since 1970 in UTC.
    pub every_seconds: u64,
    /// Only of volumes that have changed since their last snapshot.
    #[serde(default)]
    pub if_changed: bool,
    /// Which of its snapshots stay; without any number all do.
    #[serde(default)]
    pub keep: Retention,
}

/// Changes a policy. What is absent stays as it was.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// Seconds between two snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// Only of volumes that have changed since their last snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_changed: Option<bool>,
    /// Which of its snapshots stay: all numbers at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Retention>,
}

/// Volumes that a policy is applied to or taken from.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyTargets {
    /// Names, or patterns of those that there are now: `*` stands for any letters, `?` for one.
    pub targets: Vec<String>,
}
