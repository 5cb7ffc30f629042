//! What the API answers about retention policies.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::failure_resource::FailureDetail;
use super::resource::{ApiVersion, Kind};
use super::retention::{Reason, Retention};

pub use super::policy_request::{CreatePolicy, PolicyTargets, SetPolicy};

/// A volume under a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyVolume {
    /// The volume's name.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The volume's id, by which the policy knows it.
    pub uuid: Uuid,
    /// It is in the trash: nothing is taken until it is restored.
    pub is_trashed: bool,
    /// How many snapshots of the policy it has.
    pub snapshots: u64,
    /// When it was last looked after; when the policy was applied, if it was not yet.
    pub last_at: String,
    /// When it is looked after next; null while it is in the trash.
    pub next_at: Option<String>,
    /// Why the last attempt failed; null if it did not.
    pub failure: Option<FailureDetail>,
}

/// When snapshots of which volumes are taken, and which of them stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Its name.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Seconds between two snapshots.
    pub every_seconds: u64,
    /// Whether a volume that has not changed is left alone.
    pub if_changed: bool,
    /// Which of its snapshots stay.
    pub keep: Retention,
    /// When it was made.
    pub created_at: String,
    /// The volumes.
    pub volumes: Vec<PolicyVolume>,
}

/// One policy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Policy`.
    pub kind: Kind,
    /// The policy.
    #[serde(flatten)]
    pub policy: Policy,
}

/// All policies, by name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `PolicyList`.
    pub kind: Kind,
    /// The policies.
    pub items: Vec<Policy>,
}

/// What a request does to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum PolicyAction {
    Create,
    Set,
    Apply,
    Detach,
    Remove,
}

/// What a request changed of a policy or, as a dry run, would change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyChange {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `PolicyChange`.
    pub kind: Kind,
    /// What was done.
    pub action: PolicyAction,
    /// The policy's name.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// Whether `before` and `after` differ.
    pub has_changed: bool,
    /// The policy before; null if there was none.
    pub before: Option<Policy>,
    /// The policy afterwards; null if it is gone.
    pub after: Option<Policy>,
}

/// A snapshot that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptSnapshot {
    /// What commands call it.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Why it stays.
    pub reasons: Vec<Reason>,
}

/// What a run of a policy did for one volume, or would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyRunItem {
    /// The volume.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The snapshot that was taken; null if the volume has not changed, or it failed.
    pub taken: Option<String>,
    /// The snapshots of the policy that stay.
    pub kept: Vec<KeptSnapshot>,
    /// Those that went to the trash.
    pub removed: Vec<String>,
    /// Why it failed; null if it did not.
    pub error: Option<FailureDetail>,
}

/// What a run of a policy did, or would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyRun {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `PolicyRun`.
    pub kind: Kind,
    /// The policy.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// The volumes, but for those in the trash.
    pub items: Vec<PolicyRunItem>,
}
