//! What the API tells of exports.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::resource::{ApiVersion, Kind};

/// A volume that the listeners offer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Export {
    /// The volume.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Where NBD clients find it, one for each listener.
    pub uris: Vec<String>,
    /// How many connections have it open.
    pub connections: u32,
    /// Clients cannot change it.
    pub is_read_only: bool,
    /// Only encrypted connections may open it.
    pub requires_tls: bool,
    /// How many connections may have it open; 0 is the server's bound.
    pub max_connections: u32,
    /// Who may open it; everybody if there is no rule.
    pub allow: Vec<String>,
}

/// Exports, ordered by name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExportList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `ExportList`.
    pub kind: Kind,
    /// The exports.
    pub items: Vec<Export>,
}
