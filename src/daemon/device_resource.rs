//! What the API takes and answers about the pool's devices.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::device_request::AddDevice;
use super::resource::{ApiVersion, Kind, PoolDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::directory::{ChangedDevice, DeviceSource};

impl AddDevice {
    /// Where the blocks are to be.
    ///
    /// # Errors
    /// `Usage` if it is not exactly one, or the path is not absolute.
    pub fn source(&self) -> Result<DeviceSource> {
        match (self.size_bytes, &self.block) {
            (Some(size_bytes), None) => Ok(DeviceSource::File { size_bytes }),
            (None, Some(path)) if path.starts_with('/') => Ok(DeviceSource::Block { path: path.into() }),
            (None, Some(path)) => Err(Error::new(ErrorKind::Usage, format!("The path {path:?} is not absolute"))
                .with_hint("The daemon's working directory is not the client's")),
            (Some(_), Some(_)) | (None, None) => {
                Err(Error::new(ErrorKind::Usage, "A device is either a file with a size or a block device"))
            }
        }
    }
}

/// What a request does to the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum DeviceAction {
    Grow,
    Add,
}

/// What a request changed about a device or, as a dry run, would change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceChange {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `DeviceChange`.
    pub kind: Kind,
    /// What was asked for.
    pub action: DeviceAction,
    /// The device's name, as commands call it.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// The device before; null if it is new.
    pub before: Option<PoolDevice>,
    /// The device afterwards.
    pub after: PoolDevice,
}

impl DeviceChange {
    /// From what the engine did.
    #[must_use]
    pub fn new(action: DeviceAction, is_dry_run: bool, changed: &ChangedDevice) -> Self {
        let device = |size_bytes| PoolDevice { name: changed.name.clone(), size_bytes };
        Self {
            api: ApiVersion::V1,
            kind: Kind::DeviceChange,
            action,
            reference: changed.name.clone(),
            is_dry_run,
            before: changed.before.map(device),
            after: device(changed.after),
        }
    }
}
