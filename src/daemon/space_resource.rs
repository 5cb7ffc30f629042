//! What the API answers about who has the space, and what a removal would give back.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::resource::{ApiVersion, Kind};

/// What removing a set for good would free.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RemovalForecast {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `RemovalForecast`.
    pub kind: Kind,
    /// What would be removed, as commands call it.
    pub refs: Vec<String>,
    /// Bytes that would be free then; null while the space of earlier removals is still being reclaimed.
    pub freed: Option<u64>,
}

/// Options of what can be shown with an explanation of its space.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ShowOptions {
    /// Explain its space too, for which leaves of the map are read: some seconds at most.
    #[serde(default)]
    #[param(required = false)]
    pub space: bool,
}

/// A snapshot, and what its removal alone would free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldSpace {
    /// The snapshot.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Bytes that nothing else maps.
    pub unique: u64,
}

/// Where the space of a volume is, as of the last checkpoint. What is null would take too long, or is not known while the space
/// of earlier removals is being reclaimed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeSpace {
    /// Bytes that the volume maps as it is now.
    pub allocated: u64,
    /// Of these, bytes that nothing else maps.
    pub unique: u64,
    /// The others, which snapshots or other volumes map too.
    pub shared: u64,
    /// Who builds on the shared data, the nearest first, at most 16.
    pub shared_with: Vec<String>,
    /// Bytes that the volume's snapshots hold and it does not map: what would be free without them.
    pub versions: Option<u64>,
    /// The snapshots that hold most, at most 8, with what the removal of each alone would free.
    pub held_by: Vec<HeldSpace>,
    /// Bytes that would be free without the volume and its snapshots.
    pub freed: Option<u64>,
}
