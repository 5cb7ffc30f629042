//! What the API takes. A field it does not know is an error: a misspelled option must not be ignored.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::volume_rule::SECTOR_SIZE_DEFAULT;

/// Largest body of a request.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Creates a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Bytes that users see: a multiple of 4096, at most 2^50.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// 512 (the default) or 4096.
    #[serde(default = "default_sector_size")]
    pub sector_size: u32,
    /// A volume of this name is a success that changes nothing.
    #[serde(default)]
    pub if_missing: bool,
}

/// Gives a volume a new name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameVolume {
    /// The new name.
    pub name: String,
}

/// Gives a volume a new size.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// The new size in bytes.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// It may be below the present one; what lies behind it is lost.
    #[serde(default)]
    pub shrink: bool,
}

/// Options of every request that changes something.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ChangeOptions {
    /// Say what would change, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
}

/// Options of a removal.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemoveOptions {
    /// Say what would change, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// Remove for good. There is no trash yet, so it is required.
    #[serde(default)]
    #[param(required = false)]
    pub now: bool,
}

const fn default_sector_size() -> u32 {
    SECTOR_SIZE_DEFAULT
}
