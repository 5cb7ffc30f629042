//! What the API takes about devices, of the pool and of this host. As in [`request`](super::request), a field it does not know is an error.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Makes a device of the pool larger.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrowDevice {
    /// Its name in the pool's directory; may be left out if the pool has one device.
    #[serde(default)]
    pub device: Option<String>,
    /// Its new size in bytes, a multiple of 4096, if it is a file. A disk takes the size that it has by now.
    #[serde(default, rename = "size")]
    pub size_bytes: Option<u64>,
}

/// Adds a device to the pool: one of the two.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDevice {
    /// Bytes of a new file in the pool's directory: a multiple of 4096, at least 16 MiB.
    #[serde(default, rename = "size")]
    pub size_bytes: Option<u64>,
    /// Absolute path of a block device whose first MiB is zeros.
    #[serde(default)]
    pub block: Option<String>,
}

/// The kernel's driver that has a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentDriver {
    /// `/dev/ublkbN`.
    #[default]
    Ublk,
    /// `/dev/nbdN`, by the kernel's NBD client.
    Nbd,
}

impl AttachmentDriver {
    /// Whether it is the one that is meant where none is named.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Makes a block device of a volume or a snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachDevice {
    /// The volume, or a snapshot of one, which is read-only.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The driver; by default ublk. A device of the NBD client has one queue of 128 requests.
    #[serde(default, skip_serializing_if = "AttachmentDriver::is_default")]
    pub driver: AttachmentDriver,
    /// Queues, each of which a lane serves; the driver gives no more than there are processors. By default one for each
    /// lane, at most 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Requests of a queue that may be under way; by default 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// Writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Others may write it meanwhile: its users see to it that they agree.
    #[serde(default)]
    pub shared: bool,
    /// N of `/dev/ublkbN` or `/dev/nbdN`; by default the lowest that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// When it has ended with the daemon or the host, it is not attached anew.
    #[serde(default)]
    pub once: bool,
}
