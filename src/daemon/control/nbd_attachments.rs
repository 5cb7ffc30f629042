//! Attaching volumes and snapshots by the kernel's NBD client, and taking them away.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::Control;
use super::attachments::{RETRY_TIME_MAX, how};
use crate::daemon::attachment_resource::{
    Attachment, AttachmentAction, AttachmentChange, AttachmentState, DetachOptions,
};
use crate::daemon::attachment_store::Remembered;
use crate::daemon::attachments::Waiting;
use crate::daemon::device_request::{AttachDevice, AttachmentDriver};
use crate::daemon::kernel_nbd::{NbdAttached, block_path, state_unserved};
use crate::daemon::trash::Thing;
use crate::error::{Error, ErrorKind, Result};

/// What paths of these disks begin with.
const DEVICE_PREFIX: &str = "/dev/nbd";

/// A disk that was asked for by name.
pub(super) enum FoundNbd {
    Attached(Arc<NbdAttached>),
    Waiting(u32, Waiting),
}

impl Control {
    /// All disks of the NBD client, those that are served and those that wait.
    pub(super) fn nbd_attachments(&self) -> Vec<Attachment> {
        let nbd = &self.devices.nbd;
        let served = nbd.list().into_iter().map(|attached| self.describe_nbd(&attached));
        let waiting = nbd.waiting().into_iter().map(|(number, waiting)| self.describe_nbd_waiting(number, &waiting));
        served.chain(waiting).collect()
    }

    /// Makes a disk of a volume or a snapshot of this name. One that there is stays, and is told; one that waits is brought
    /// back.
    ///
    /// # Errors
    /// As those of [`Self::attach`].
    pub(super) fn attach_nbd(
        &self,
        (thing, name): (Thing, &str),
        request: &AttachDevice,
        is_dry_run: bool,
    ) -> Result<AttachmentChange> {
        let nbd = &self.devices.nbd;
        if request.queues.is_some_and(|count| count != 1) || request.depth.is_some() {
            return Err(Error::new(
                ErrorKind::Usage,
                "A device of the kernel's NBD client has one queue of 128 requests",
            )
            .with_hint("Leave queues and depth out"));
        }
        let remembered = Remembered { queue_count: 1, queue_depth: 128, ..self.remembered(thing, request) };
        let change = |before, after| AttachmentChange::new(AttachmentAction::Attach, is_dry_run, name, before, after);
        if let Some(present) = nbd.of(thing) {
            let before = self.describe_nbd(&present);
            check_same(&before, &present, &remembered, request.id)?;
            return Ok(change(Some(before.clone()), Some(before)));
        }
        let waiting = nbd.waiting().into_iter().find(|(_, waiting)| waiting.remembered.thing == thing);
        if let Some((number, waiting)) = waiting {
            check_as_remembered(name, (number, &waiting.remembered), &remembered, request.id)?;
            if is_dry_run {
                nbd.check_driver()?;
                return Ok(change(None, None));
            }
            if let Some(attached) = nbd.bring_back(number, waiting.remembered, Instant::now() + RETRY_TIME_MAX)? {
                return Ok(change(None, Some(self.describe_nbd(&attached))));
            }
        }
        let volume = self.server.open_for_device(name, remembered.access)?;
        if is_dry_run {
            nbd.check_driver()?;
            return Ok(change(None, None));
        }
        let attached = nbd.attach(request.id, remembered, volume)?;
        Ok(change(None, Some(self.describe_nbd(&attached))))
    }

    /// The disk with a path, or the one that was made of this.
    pub(super) fn find_nbd(&self, name: &str, thing: Option<Thing>) -> Option<FoundNbd> {
        let number: Option<u32> = name.strip_prefix(DEVICE_PREFIX).and_then(|number| number.parse().ok());
        let is_meant = |one: u32, remembered: &Remembered| Some(one) == number || Some(remembered.thing) == thing;
        let nbd = &self.devices.nbd;
        let attached = nbd.list().into_iter().find(|attached| is_meant(attached.number, &attached.remembered));
        let waiting = || nbd.waiting().into_iter().find(|(number, waiting)| is_meant(*number, &waiting.remembered));
        attached
            .map(FoundNbd::Attached)
            .or_else(|| waiting().map(|(number, waiting)| FoundNbd::Waiting(number, waiting)))
    }

    /// Takes a disk away and forgets it.
    ///
    /// # Errors
    /// As those of [`Self::detach`].
    pub(super) fn detach_nbd(&self, found: FoundNbd, name: &str, options: DetachOptions) -> Result<AttachmentChange> {
        let before = match found {
            FoundNbd::Attached(attached) => {
                let before = self.describe_nbd(&attached);
                if !options.dry_run {
                    self.devices.nbd.detach(&attached, options.care())?;
                }
                before
            }
            FoundNbd::Waiting(number, waiting) => {
                let before = self.describe_nbd_waiting(number, &waiting);
                if !options.dry_run {
                    self.devices.nbd.forget(number, &waiting.remembered, options.care())?;
                }
                before
            }
        };
        Ok(AttachmentChange::new(AttachmentAction::Detach, options.dry_run, name, Some(before), None))
    }

    /// The disk that takes a larger size of its volume while it is used.
    pub(super) fn nbd_disk_to_grow(&self, volume: Uuid) -> Option<Arc<NbdAttached>> {
        self.devices.nbd.of(Thing::Volume(volume)).filter(|disk| disk.state() == AttachmentState::Live)
    }

    fn describe_nbd(&self, attached: &NbdAttached) -> Attachment {
        let (state, problem) = (attached.state(), attached.problem());
        Attachment { state, problem, ..self.describe_nbd_remembered(attached.number, &attached.remembered) }
    }

    fn describe_nbd_waiting(&self, number: u32, waiting: &Waiting) -> Attachment {
        let (state, problem) = (state_unserved(number, &waiting.remembered), Some(waiting.problem.clone()));
        Attachment { state, problem, ..self.describe_nbd_remembered(number, &waiting.remembered) }
    }

    pub(super) fn describe_nbd_remembered(&self, number: u32, remembered: &Remembered) -> Attachment {
        Attachment {
            device: block_path(number).display().to_string(),
            driver: AttachmentDriver::Nbd,
            ..self.describe_remembered(number, remembered)
        }
    }
}

/// Whether what is attached is what is asked for.
fn check_same(present: &Attachment, attached: &NbdAttached, wanted: &Remembered, id: Option<u32>) -> Result<()> {
    let Attachment { device, reference, .. } = present;
    let busy = |message: String, hint: String| Err(Error::new(ErrorKind::Busy, message).with_hint(hint));
    match present.state {
        AttachmentState::Live => {}
        AttachmentState::Quiesced => {
            let message = format!("{reference} is attached as {device}, and its connection is being made anew");
            return busy(message, "Try again; rok-blk devices says what hinders it".to_owned());
        }
        _ => {
            let message = format!("{reference} was attached as {device}, which others have disconnected");
            return busy(
                message,
                format!("Take away what is left of it: rok-blk detach {reference}; then attach it again"),
            );
        }
    }
    let access = attached.volume.access();
    if access != wanted.access || id.is_some_and(|id| id != present.id) {
        let message = format!("{reference} is attached already, as {device}, {}", how(access));
        return busy(message, format!("Use that one, or detach it first: rok-blk detach {reference}"));
    }
    Ok(())
}

/// Whether what waits is to be attached as it was.
fn check_as_remembered(
    name: &str,
    (number, remembered): (u32, &Remembered),
    wanted: &Remembered,
    id: Option<u32>,
) -> Result<()> {
    if remembered.access == wanted.access && id.is_none_or(|id| id == number) {
        return Ok(());
    }
    let (device, how) = (block_path(number), how(remembered.access));
    Err(Error::new(ErrorKind::Busy, format!("{name} was attached as {}, {how}, and waits for that", device.display()))
        .with_hint(format!("Give that up first: rok-blk detach {name}")))
}
