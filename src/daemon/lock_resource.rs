//! What the API answers about a pool that is locked or unlocked.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::resource::{ApiVersion, Kind};

/// What a request did to the lock of the pool or, as a dry run, would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LockAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `PoolLock`.
    pub kind: Kind,
    /// `locked` or `unlocked`: how the pool is afterwards.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// Whether it was not so before.
    pub has_changed: bool,
    /// How many connections are, or would be, closed for it.
    pub connections: u64,
}

impl LockAnswer {
    /// A pool that is, or would be, locked or not.
    #[must_use]
    pub fn new(is_locked: bool, has_changed: bool, is_dry_run: bool, connections: u64) -> Self {
        let reference = if is_locked { "locked" } else { "unlocked" }.to_owned();
        Self { api: ApiVersion::V1, kind: Kind::PoolLock, reference, is_dry_run, has_changed, connections }
    }
}
