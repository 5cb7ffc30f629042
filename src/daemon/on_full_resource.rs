//! What the API answers about volumes whose writes find no space in the pool.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::resource::Volume;

pub use super::on_full::OnFull;

/// A volume whose writes wait for space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PausedVolume {
    /// The volume.
    #[serde(rename = "ref")]
    pub reference: String,
    /// How many writes wait.
    pub writes: u32,
    /// Since when at least one does.
    pub since: String,
}

impl PausedVolume {
    /// From a volume, if writes of it wait.
    #[must_use]
    pub fn new(volume: &Volume) -> Option<Self> {
        let since = volume.paused_since.clone()?;
        Some(Self { reference: volume.reference.clone(), writes: volume.paused_writes, since })
    }

    /// What needs somebody's attention, and the way out.
    #[must_use]
    pub fn warning(&self) -> String {
        let Self { reference, writes, since } = self;
        format!(
            "Writes of {reference} wait for space: {writes} since {since}. They go on when there is some: make the pool larger \
             with rok-blk pool grow or add-device, discard or remove what is not needed. Or have them fail: rok-blk set \
             {reference} on-full=error."
        )
    }
}
