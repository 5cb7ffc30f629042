//! Attaching volumes and snapshots as block devices of this host, and taking them away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rok_ublk::device::block_path;
use uuid::Uuid;

use super::Control;
use super::nbd_attachments::FoundNbd;
use crate::daemon::attachment_resource::{
    Attachment, AttachmentAction, AttachmentChange, AttachmentList, AttachmentState, DetachOptions,
};
use crate::daemon::attachment_store::{Remembered, RememberedDevices};
use crate::daemon::attachments::{Attached, Waiting};
use crate::daemon::device_request::{AttachDevice, AttachmentDriver};
use crate::daemon::kernel_nbd::NbdAttached;
use crate::daemon::resource::{ApiVersion, Kind, Volume};
use crate::daemon::trash::Thing;
use crate::daemon::ublk_failure::failure;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::DeviceAccess;
use crate::volume::{Reference, find_selected};

/// What paths of devices begin with; no reference does.
const DEVICES: &str = "/dev/";
const DEVICE_PREFIX: &str = "/dev/ublkb";
/// Queues of a device unless a number is asked for: more lanes than this serve other devices better.
const QUEUE_COUNT_DEFAULT_MAX: usize = 4;
const QUEUE_DEPTH_DEFAULT: u16 = 128;
/// How long a device that waits may stay with the daemon before when it is asked for.
pub(super) const RETRY_TIME_MAX: Duration = Duration::from_secs(5);

/// A disk that can have the new size of its volume while it is used.
pub(super) enum GrowingDisk {
    Ublk(Arc<Attached>),
    Nbd(Arc<NbdAttached>),
}

impl GrowingDisk {
    /// Gives it the size of its volume, which is called `name`.
    ///
    /// # Errors
    /// What the driver reports; the volume has its new size then.
    pub(super) fn follow_size(&self, name: &str) -> Result<()> {
        let (path, result) = match self {
            Self::Ublk(disk) => (disk.path(), disk.follow_size()),
            Self::Nbd(disk) => (disk.path(), disk.follow_size()),
        };
        result.map_err(|error| {
            let message = format!("{name} has its new size, and its disk {} does not", path.display());
            Error::new(error.kind(), message).with_hint("Detach it and attach it anew").with_source(error)
        })
    }
}

impl Control {
    /// All attachments, by driver and number: those that are served, and those that wait.
    #[must_use]
    pub fn attachments(&self) -> AttachmentList {
        let mut items: Vec<Attachment> =
            self.devices.list().iter().map(|attached| self.describe_attached(attached)).collect();
        items.extend(
            self.devices.waiting().into_iter().map(|(number, waiting)| self.describe_waiting(number, &waiting)),
        );
        items.extend(self.nbd_attachments());
        items.sort_by_key(|attachment| (attachment.driver, attachment.id));
        AttachmentList { api: ApiVersion::V1, kind: Kind::AttachmentList, items }
    }

    /// Makes a block device of a volume or a snapshot. One that there is stays, and is told; one that waits is brought back.
    ///
    /// # Errors
    /// `Usage` for what is no reference, and parameters that cannot be, `NotFound`; `Busy` if others write what the device
    /// is to have for itself, or it is attached in another way; `Unsupported` without the driver, `Permission`, `NoSpace` at
    /// the driver's limit, and what else the driver reports; those of remembering it.
    pub fn attach(&self, request: &AttachDevice, is_dry_run: bool) -> Result<AttachmentChange> {
        let reference: Reference = request.reference.parse()?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let (thing, name) = self.find_thing(&reference)?;
        self.refuse_other_driver(thing, request.driver)?;
        if request.driver == AttachmentDriver::Nbd {
            return self.attach_nbd((thing, &name), request, is_dry_run);
        }
        let remembered = self.remembered(thing, request);
        if let Some(present) = self.devices.of(thing) {
            let before = self.describe_attached(&present);
            check_same(&before, &present, remembered.access, request.id)?;
            let after = Some(before.clone());
            return Ok(AttachmentChange::new(AttachmentAction::Attach, is_dry_run, &name, Some(before), after));
        }
        let change = |after| AttachmentChange::new(AttachmentAction::Attach, is_dry_run, &name, None, after);
        let waiting = self.devices.waiting().into_iter().find(|(_, waiting)| waiting.remembered.thing == thing);
        if let Some((number, waiting)) = waiting {
            check_as_remembered(&name, (number, &waiting.remembered), remembered.access, request.id)?;
            if is_dry_run {
                self.devices.check_driver()?;
                return Ok(change(None));
            }
            if let Some(attached) =
                self.devices.bring_back(number, waiting.remembered, Instant::now() + RETRY_TIME_MAX)?
            {
                return Ok(change(Some(self.describe_attached(&attached))));
            }
        }
        let volume = self.server.open_for_device(&name, remembered.access)?;
        let parameters = remembered.parameters(volume.open().volume());
        parameters.validate().map_err(|error| failure(error.into()))?;
        if is_dry_run {
            self.devices.check_driver()?;
            return Ok(change(None));
        }
        let attached = self.devices.attach(request.id, remembered, volume)?;
        Ok(change(Some(self.describe_attached(&attached))))
    }

    /// Takes a block device away, named by its path or by what it was made of, and forgets it.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while it is mounted or open, unless that does not matter, `TimedOut` if a request of it is not
    /// answered, and what the driver reports; those of forgetting it.
    pub fn detach(&self, name: &str, options: DetachOptions) -> Result<AttachmentChange> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = match self.find_attached(name)? {
            Found::Nbd(found) => return self.detach_nbd(found, name, options),
            Found::Attached(attached) => {
                let before = self.describe_attached(&attached);
                if !options.dry_run {
                    self.devices.detach(attached, options.care())?;
                }
                before
            }
            Found::Waiting(number, waiting) => {
                let before = self.describe_waiting(number, &waiting);
                if !options.dry_run {
                    self.devices.forget(number, &waiting.remembered, options.care())?;
                }
                before
            }
        };
        Ok(AttachmentChange::new(AttachmentAction::Detach, options.dry_run, name, Some(before), None))
    }

    /// Stops all devices, whoever uses them; nothing can be attached from then on. Behind it the server can end.
    pub(in crate::daemon) fn take_devices_away(&self) {
        let _one_at_a_time = self.upkeep.changes.lock();
        self.devices.close();
    }

    /// Leaves the devices that are in use to the next daemon, and stops the others; nothing can be attached from then on.
    /// Behind it the server can end.
    pub(in crate::daemon) fn leave_devices(&self) {
        let _one_at_a_time = self.upkeep.changes.lock();
        self.devices.leave();
    }

    /// Paths of all devices.
    pub(in crate::daemon) fn device_paths(&self) -> Vec<String> {
        let (ublk, nbd) = (self.devices.list(), self.devices.nbd.list());
        let paths = ublk.iter().map(|attached| attached.path()).chain(nbd.iter().map(|attached| attached.path()));
        paths.map(|path| path.display().to_string()).collect()
    }

    /// How many of the users of a volume are devices.
    pub(in crate::daemon) fn device_count(&self, volume: Uuid) -> u32 {
        let thing = Thing::Volume(volume);
        u32::from(self.devices.of(thing).is_some() || self.devices.nbd.of(thing).is_some())
    }

    /// Refuses what must not happen to a volume or snapshot under a device, also one that waits. A volume goes with its
    /// snapshots.
    pub(super) fn refuse_if_attached(&self, thing: Thing, with_snapshots: bool, refusal: &str) -> Result<()> {
        let is_meant = |remembered: &Remembered| match thing {
            Thing::Volume(id) if with_snapshots => remembered.is_of(id),
            _ => remembered.thing == thing,
        };
        let find = |all: RememberedDevices| all.into_iter().find(|(_, remembered)| is_meant(remembered));
        let ublk = find(self.devices.remembered());
        let ublk = ublk.map(|(number, remembered)| self.describe_remembered(number, &remembered));
        let nbd = || find(self.devices.nbd.remembered());
        let nbd = || nbd().map(|(number, remembered)| self.describe_nbd_remembered(number, &remembered));
        let Some(Attachment { device, reference, .. }) = ublk.or_else(nbd) else { return Ok(()) };
        Err(Error::new(ErrorKind::Busy, format!("{refusal}: {reference} is attached as {device}"))
            .with_hint(format!("Unmount it and detach it first: rok-blk detach {reference}")))
    }

    /// The disk that a volume's new size is to be given to, `None` if it has none or keeps its size.
    ///
    /// # Errors
    /// `Busy` if it cannot be given to the disk.
    pub(super) fn disk_to_resize(&self, volume: &Volume, size_bytes: u64) -> Result<Option<GrowingDisk>> {
        if size_bytes == volume.size_bytes {
            return Ok(None);
        }
        let (name, thing) = (&volume.name, Thing::Volume(volume.uuid));
        if size_bytes < volume.size_bytes {
            self.refuse_if_attached(thing, false, &format!("{name} cannot be made smaller under its users"))?;
        }
        if let Some(attached) = self.devices.of(thing).filter(|attached| attached.can_grow()) {
            return Ok(Some(GrowingDisk::Ublk(attached)));
        }
        if let Some(attached) = self.nbd_disk_to_grow(volume.uuid) {
            return Ok(Some(GrowingDisk::Nbd(attached)));
        }
        let refusal = format!("{name} cannot be resized, since its driver in this kernel leaves a disk its size");
        self.refuse_if_attached(thing, false, &refusal)?;
        Ok(None)
    }

    /// Refuses to attach by one driver what another one has: two devices would both be told to be the only writer.
    fn refuse_other_driver(&self, thing: Thing, driver: AttachmentDriver) -> Result<()> {
        let (ublk, nbd) = (self.devices.remembered(), self.devices.nbd.remembered());
        let find = |all: RememberedDevices| all.into_iter().find(|(_, remembered)| remembered.thing == thing);
        let other = match driver {
            AttachmentDriver::Ublk => find(nbd).map(|(number, one)| self.describe_nbd_remembered(number, &one)),
            AttachmentDriver::Nbd => find(ublk).map(|(number, one)| self.describe_remembered(number, &one)),
        };
        let Some(Attachment { device, reference, .. }) = other else { return Ok(()) };
        Err(Error::new(ErrorKind::Busy, format!("{reference} is attached already, as {device}, by another driver"))
            .with_hint(format!("Use that one, or detach it first: rok-blk detach {reference}")))
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

    fn find_attached(&self, name: &str) -> Result<Found> {
        let is_path = name.starts_with(DEVICES);
        let number: Option<u32> = name.strip_prefix(DEVICE_PREFIX).and_then(|number| number.parse().ok());
        let thing = if is_path { None } else { Some(self.find_thing(&name.parse()?)?.0) };
        let is_meant = |one: u32, remembered: &Remembered| {
            if is_path { Some(one) == number } else { Some(remembered.thing) == thing }
        };
        let mut attached = self.devices.list().into_iter();
        if let Some(attached) = attached.find(|attached| is_meant(attached.device().id(), &attached.remembered)) {
            return Ok(Found::Attached(attached));
        }
        let mut waiting = self.devices.waiting().into_iter();
        if let Some((number, waiting)) = waiting.find(|(number, waiting)| is_meant(*number, &waiting.remembered)) {
            return Ok(Found::Waiting(number, waiting));
        }
        if let Some(found) = self.find_nbd(name, thing) {
            return Ok(Found::Nbd(found));
        }
        Err(Error::new(ErrorKind::NotFound, format!("{name} is not attached by this daemon"))
            .with_hint("rok-blk devices lists what is"))
    }

    /// How something is to be attached.
    pub(super) fn remembered(&self, thing: Thing, request: &AttachDevice) -> Remembered {
        let access = if matches!(thing, Thing::Snapshot(_)) || request.read_only {
            DeviceAccess::ReadOnly
        } else if request.shared {
            DeviceAccess::Shared
        } else {
            DeviceAccess::Exclusive
        };
        let queue_count = self.server.lane_count().min(QUEUE_COUNT_DEFAULT_MAX);
        Remembered {
            thing,
            access,
            queue_count: request.queues.unwrap_or_else(|| u16::try_from(queue_count).expect("at most four")),
            queue_depth: request.depth.unwrap_or(QUEUE_DEPTH_DEFAULT),
            is_once: request.once,
        }
    }

    fn describe_attached(&self, attached: &Attached) -> Attachment {
        let (volume, device) = (attached.volume.open().volume(), attached.device());
        Attachment {
            size_bytes: volume.size_bytes(),
            sector_size: volume.sector_size(),
            queues: device.queue_count(),
            depth: device.queue_depth(),
            state: attached.state(),
            problem: attached.problem.clone(),
            ..self.describe_remembered(device.id(), &attached.remembered)
        }
    }

    fn describe_waiting(&self, number: u32, waiting: &Waiting) -> Attachment {
        let state = waiting.remembered.state(number);
        let problem = Some(waiting.problem.clone());
        Attachment { state, problem, ..self.describe_remembered(number, &waiting.remembered) }
    }

    /// What can be told without its device. A volume that is not there any more has no size.
    pub(super) fn describe_remembered(&self, id: u32, remembered: &Remembered) -> Attachment {
        let (volume_uuid, snapshot) = match remembered.thing {
            Thing::Volume(volume) => (volume, None),
            Thing::Snapshot((volume, number)) => (volume, Some(number)),
        };
        let found = self.with_catalog(|catalog| {
            let record = catalog.volume(volume_uuid)?;
            let of_snapshot = snapshot.and_then(|number| catalog.snapshot_or_error((volume_uuid, number)).ok());
            let size_bytes = of_snapshot.map_or(record.size_bytes, |snapshot| snapshot.size_bytes);
            Some((record.name.clone(), size_bytes, record.sector_size))
        });
        let (name, size_bytes, sector_size) = found.unwrap_or_else(|| (volume_uuid.to_string(), 0, 512));
        Attachment {
            device: block_path(id).display().to_string(),
            driver: AttachmentDriver::Ublk,
            id,
            reference: snapshot.map_or_else(|| name.clone(), |number| format!("{name}@{number}")),
            volume_uuid,
            size_bytes,
            sector_size,
            is_read_only: remembered.access == DeviceAccess::ReadOnly,
            is_shared: remembered.access == DeviceAccess::Shared,
            queues: remembered.queue_count,
            depth: remembered.queue_depth,
            is_once: remembered.is_once,
            state: AttachmentState::Unknown,
            problem: None,
        }
    }
}

/// An attachment that was asked for by name.
enum Found {
    Attached(Arc<Attached>),
    Waiting(u32, Waiting),
    Nbd(FoundNbd),
}

/// Whether what is attached is what is asked for.
fn check_same(present: &Attachment, attached: &Attached, access: DeviceAccess, id: Option<u32>) -> Result<()> {
    let Attachment { device, reference, .. } = present;
    let busy = |message: String, hint: String| Err(Error::new(ErrorKind::Busy, message).with_hint(hint));
    if present.state == AttachmentState::Quiesced {
        let message = format!("{reference} is attached as {device}, and nobody serves its requests");
        return busy(message, format!("Give it up, its users get errors then: rok-blk detach --force {reference}"));
    }
    if !matches!(present.state, AttachmentState::Live | AttachmentState::Unknown) {
        let message = format!("{reference} was attached as {device}, which others have stopped");
        return busy(
            message,
            format!("Take away what is left of it: rok-blk detach {reference}; then attach it again"),
        );
    }
    let how = how(attached.volume.access());
    if attached.volume.access() != access || id.is_some_and(|id| id != present.id) {
        let message = format!("{reference} is attached already, as {device}, {how}");
        return busy(message, format!("Use that one, or detach it first: rok-blk detach {reference}"));
    }
    Ok(())
}

/// Whether what waits is to be attached as it was.
fn check_as_remembered(
    name: &str,
    (number, remembered): (u32, &Remembered),
    access: DeviceAccess,
    id: Option<u32>,
) -> Result<()> {
    if remembered.access == access && id.is_none_or(|id| id == number) {
        return Ok(());
    }
    let (device, how) = (block_path(number), how(remembered.access));
    Err(Error::new(ErrorKind::Busy, format!("{name} was attached as {}, {how}, and waits for that", device.display()))
        .with_hint(format!("Give that up first: rok-blk detach {name}")))
}

pub(super) const fn how(access: DeviceAccess) -> &'static str {
    match access {
        DeviceAccess::ReadOnly => "read-only",
        DeviceAccess::Exclusive => "for writes, and not shared",
        DeviceAccess::Shared => "shared",
    }
}
