//! Attaching volumes and snapshots as block devices of this host, and taking them away.

use rok_ublk::DeviceParameters;
use uuid::Uuid;

use super::Control;
use crate::daemon::attachment_resource::{
    AttachDevice, Attachment, AttachmentAction, AttachmentChange, AttachmentList, AttachmentState, DetachOptions,
};
use crate::daemon::attachments::Attached;
use crate::daemon::resource::{ApiVersion, Kind};
use crate::daemon::trash::Thing;
use crate::daemon::ublk_failure::failure;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::DeviceAccess;
use crate::volume::{Reference, Volume, find_selected};

/// What paths of devices begin with; no reference does.
const DEVICES: &str = "/dev/";
const DEVICE_PREFIX: &str = "/dev/ublkb";
/// Queues of a device unless a number is asked for: more lanes than this serve other devices better.
const QUEUE_COUNT_DEFAULT_MAX: usize = 4;
const QUEUE_DEPTH_DEFAULT: u16 = 128;
/// Longest request of a device, in bytes.
const IO_BYTES_MAX: u32 = 1 << 20;

impl Control {
    /// All attachments, by number.
    #[must_use]
    pub fn attachments(&self) -> AttachmentList {
        let items = self.devices.list().iter().map(|attached| self.describe_attached(attached)).collect();
        AttachmentList { api: ApiVersion::V1, kind: Kind::AttachmentList, items }
    }

    /// Makes a block device of a volume or a snapshot. One that there is stays, and is told.
    ///
    /// # Errors
    /// `Usage` for what is no reference, and parameters that cannot be, `NotFound`; `Busy` if others write what the device
    /// is to have for itself, or it is attached in another way; `Unsupported` without the driver, `Permission`, `NoSpace` at
    /// the driver's limit, and what else the driver reports.
    pub fn attach(&self, request: &AttachDevice, is_dry_run: bool) -> Result<AttachmentChange> {
        let reference: Reference = request.reference.parse()?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let (thing, name) = self.find_thing(&reference)?;
        let access = if matches!(thing, Thing::Snapshot(_)) || request.read_only {
            DeviceAccess::ReadOnly
        } else if request.shared {
            DeviceAccess::Shared
        } else {
            DeviceAccess::Exclusive
        };
        if let Some(present) = self.devices.of(thing) {
            let before = self.describe_attached(&present);
            check_same(&before, &present, access, request.id)?;
            let after = Some(before.clone());
            return Ok(AttachmentChange::new(AttachmentAction::Attach, is_dry_run, &name, Some(before), after));
        }
        let volume = self.server.open_for_device(&name, access)?;
        let parameters = self.device_parameters(volume.open().volume(), access, request);
        parameters.validate().map_err(|error| failure(error.into()))?;
        if is_dry_run {
            self.devices.check_driver()?;
            return Ok(AttachmentChange::new(AttachmentAction::Attach, true, &name, None, None));
        }
        let attached = self.devices.attach(thing, volume, &parameters, request.id)?;
        let after = self.describe_attached(&attached);
        Ok(AttachmentChange::new(AttachmentAction::Attach, false, &name, None, Some(after)))
    }

    /// Takes a block device away, named by its path or by what it was made of.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while it is mounted or open, unless that does not matter, `TimedOut` if a request of it is not
    /// answered, and what the driver reports.
    pub fn detach(&self, name: &str, options: DetachOptions) -> Result<AttachmentChange> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let attached = self.find_attached(name)?;
        let before = self.describe_attached(&attached);
        if !options.dry_run {
            self.devices.detach(attached, options.force)?;
        }
        Ok(AttachmentChange::new(AttachmentAction::Detach, options.dry_run, name, Some(before), None))
    }

    /// Stops all devices; nothing can be attached from then on. Behind it the server can end.
    pub(in crate::daemon) fn detach_all(&self) {
        let _one_at_a_time = self.upkeep.changes.lock();
        self.devices.close();
    }

    /// Paths of all devices.
    pub(in crate::daemon) fn device_paths(&self) -> Vec<String> {
        self.devices.list().iter().map(|attached| attached.path().display().to_string()).collect()
    }

    /// How many of the users of a volume are devices.
    pub(in crate::daemon) fn device_count(&self, volume: Uuid) -> u32 {
        u32::from(self.devices.of(Thing::Volume(volume)).is_some())
    }

    /// Refuses what must not happen to a volume or snapshot under a device. A volume goes with its snapshots.
    pub(super) fn refuse_if_attached(&self, thing: Thing, with_snapshots: bool, refusal: &str) -> Result<()> {
        let is_meant = |attached: &Attached| match thing {
            Thing::Volume(id) if with_snapshots => attached.is_of(id),
            _ => attached.thing == thing,
        };
        let Some(attached) = self.devices.list().into_iter().find(|attached| is_meant(attached)) else { return Ok(()) };
        let Attachment { device, reference, .. } = self.describe_attached(&attached);
        Err(Error::new(ErrorKind::Busy, format!("{refusal}: {reference} is attached as {device}"))
            .with_hint(format!("Unmount it and detach it first: rok-blk detach {reference}")))
    }

    /// What a reference means, and its name with a number where there was a selector.
    fn find_thing(&self, reference: &Reference) -> Result<(Thing, String)> {
        let name = reference.volume_name();
        self.with_catalog(|catalog| {
            if reference.selector().is_none() {
                return Ok((Thing::Volume(catalog.find(name)?.id), name.to_owned()));
            }
            let record = find_selected(catalog, reference)?;
            Ok((Thing::Snapshot((record.volume, record.number)), format!("{name}@{}", record.number)))
        })
    }

    fn find_attached(&self, name: &str) -> Result<std::sync::Arc<Attached>> {
        let found = if name.starts_with(DEVICES) {
            let number: Option<u32> = name.strip_prefix(DEVICE_PREFIX).and_then(|number| number.parse().ok());
            self.devices.list().into_iter().find(|attached| Some(attached.device().id()) == number)
        } else {
            let (thing, _) = self.find_thing(&name.parse()?)?;
            self.devices.of(thing)
        };
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{name} is not attached by this daemon"))
                .with_hint("rok-blk devices lists what is")
        })
    }

    fn device_parameters(&self, volume: &Volume, access: DeviceAccess, request: &AttachDevice) -> DeviceParameters {
        let queue_count = self.server.lane_count().min(QUEUE_COUNT_DEFAULT_MAX);
        let mut parameters = DeviceParameters {
            logical_block_bytes: volume.sector_size(),
            queue_count: request.queues.unwrap_or_else(|| u16::try_from(queue_count).expect("at most four")),
            queue_depth: request.depth.unwrap_or(QUEUE_DEPTH_DEFAULT),
            io_bytes_max: IO_BYTES_MAX,
            ..DeviceParameters::new(volume.size_bytes())
        };
        if access == DeviceAccess::ReadOnly {
            parameters.is_read_only = true;
            (parameters.has_volatile_cache, parameters.has_fua) = (false, false);
            (parameters.discard_bytes_max, parameters.write_zeroes_bytes_max) = (0, 0);
        }
        parameters
    }

    fn describe_attached(&self, attached: &Attached) -> Attachment {
        let (volume, device) = (attached.volume.open().volume(), attached.device());
        let name = self.with_catalog(|catalog| catalog.volume(volume.id()).map(|record| record.name.clone()));
        let name = name.unwrap_or_else(|| volume.id().to_string());
        let access = attached.volume.access();
        Attachment {
            device: attached.path().display().to_string(),
            id: device.id(),
            reference: volume.snapshot_number().map_or_else(|| name.clone(), |number| format!("{name}@{number}")),
            volume_uuid: volume.id(),
            size_bytes: volume.size_bytes(),
            sector_size: volume.sector_size(),
            is_read_only: access == DeviceAccess::ReadOnly,
            is_shared: access == DeviceAccess::Shared,
            queues: device.queue_count(),
            depth: device.queue_depth(),
            state: attached.state(),
        }
    }
}

/// Whether what is attached is what is asked for.
fn check_same(present: &Attachment, attached: &Attached, access: DeviceAccess, id: Option<u32>) -> Result<()> {
    let Attachment { device, reference, .. } = present;
    let busy = |message: String, hint: String| Err(Error::new(ErrorKind::Busy, message).with_hint(hint));
    if !matches!(present.state, AttachmentState::Live | AttachmentState::Unknown) {
        let message = format!("{reference} was attached as {device}, which others have stopped");
        return busy(
            message,
            format!("Take away what is left of it: rok-blk detach {reference}; then attach it again"),
        );
    }
    let how = match attached.volume.access() {
        DeviceAccess::ReadOnly => "read-only",
        DeviceAccess::Exclusive => "for writes, and not shared",
        DeviceAccess::Shared => "shared",
    };
    if attached.volume.access() != access || id.is_some_and(|id| id != present.id) {
        let message = format!("{reference} is attached already, as {device}, {how}");
        return busy(message, format!("Use that one, or detach it first: rok-blk detach {reference}"));
    }
    Ok(())
}
