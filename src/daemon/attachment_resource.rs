//! What the API takes and tells about attachments: volumes and snapshots that are block devices of this host.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::device_request::AttachmentDriver;
use super::device_users::Care;
use super::resource::{ApiVersion, Kind};

/// Options of taking a device away.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DetachOptions {
    /// Say what would change, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// Also while it is mounted or open: its users get errors from then on.
    #[serde(default)]
    #[param(required = false)]
    pub force: bool,
    /// The caller has looked for processes that have it open, and found none. A daemon that is not root may not look into those of
    /// others, and refuses without.
    #[serde(default)]
    #[param(required = false)]
    pub no_process_has_it: bool,
}

impl DetachOptions {
    /// How its users are regarded.
    #[must_use]
    pub const fn care(self) -> Care {
        match self {
            Self { force: true, .. } => Care::None,
            Self { no_process_has_it: true, .. } => Care::KernelOnly,
            Self { .. } => Care::Full,
        }
    }
}

/// What the driver says of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentState {
    /// It takes requests.
    Live,
    /// Nobody serves it: its requests wait.
    Quiesced,
    /// It was stopped, and not by this daemon.
    Dead,
    /// The driver has none of this number any more.
    Gone,
    /// The driver has one of another program under this number.
    Taken,
    /// Another state, or the driver did not tell.
    Unknown,
}

impl AttachmentState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Quiesced => "quiesced",
            Self::Dead => "dead",
            Self::Gone => "gone",
            Self::Taken => "taken",
            Self::Unknown => "unknown",
        }
    }
}

/// A volume or snapshot that is a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// Path of the device.
    pub device: String,
    /// The driver that has it.
    #[serde(default)]
    pub driver: AttachmentDriver,
    /// Its number, among those of its driver.
    pub id: u32,
    /// The volume or snapshot.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Id of the volume, or of the snapshot's volume.
    pub volume_uuid: uuid::Uuid,
    /// How many bytes the device has.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// Bytes of its sectors: 512 or 4096.
    pub sector_size: u32,
    /// Writes are refused.
    pub is_read_only: bool,
    /// Others may write the volume meanwhile.
    pub is_shared: bool,
    /// Its queues, as the driver granted them.
    pub queues: u16,
    /// Requests of each that may be under way.
    pub depth: u16,
    /// When it has ended with the daemon or the host, it is not attached anew.
    pub is_once: bool,
    /// What the driver says of it.
    pub state: AttachmentState,
    /// Why it is not as it was left, and what can be done; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Attachments, ordered by driver and number.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttachmentList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `AttachmentList`.
    pub kind: Kind,
    /// The attachments.
    pub items: Vec<Attachment>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum AttachmentAction {
    Attach,
    Detach,
}

/// What a request did to an attachment or, as a dry run, would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttachmentChange {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `AttachmentChange`.
    pub kind: Kind,
    /// What was asked for.
    pub action: AttachmentAction,
    /// Path of the device. In the plan of an attachment, where it is not known yet, the volume or snapshot.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// Whether anything changes: what is attached already is not attached again.
    pub has_changed: bool,
    /// The attachment before; null if there was none.
    pub before: Option<Attachment>,
    /// The attachment afterwards; null if there is none, and in the plan of an attachment.
    pub after: Option<Attachment>,
}

impl AttachmentChange {
    /// From the states around it, about what was asked for as `reference`.
    #[must_use]
    pub fn new(
        action: AttachmentAction,
        is_dry_run: bool,
        reference: &str,
        before: Option<Attachment>,
        after: Option<Attachment>,
    ) -> Self {
        let device = after.as_ref().or(before.as_ref()).map(|attachment| attachment.device.clone());
        Self {
            api: ApiVersion::V1,
            kind: Kind::AttachmentChange,
            action,
            reference: device.unwrap_or_else(|| reference.to_owned()),
            is_dry_run,
            has_changed: before.is_none() || after.is_none(),
            before,
            after,
        }
    }
}

/// What one command did to several.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttachmentChangeList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `AttachmentChangeList`.
    pub kind: Kind,
    /// What was done to each.
    pub items: Vec<AttachmentChange>,
}
