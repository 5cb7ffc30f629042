//! Devices across the life of a daemon: what its end leaves to the next one, and how that brings them back.
//!
//! A device that is in use when the daemon ends, or is killed, stays: its requests wait. The next daemon takes it over. What
//! the driver does not have, after a boot of the host for example, is made anew under the same number.
//!
//! Nothing here keeps a daemon from starting: what cannot be brought back waits, with the reason.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rok_ublk::control::DeviceState;
use rok_ublk::device::block_path;
use rok_ublk::{Control as Driver, ControlError};

use super::attachment_resource::AttachmentState;
use super::attachment_store::{AttachmentFile, Remembered};
use super::attachments::{Attached, Attachments, END_TIME_MAX, Waiting, delete, end_unserved, requests_max};
use super::device_names::{DeviceName, DeviceNames};
use super::device_users::Care;
use super::short_memory::MemoryLock;
use super::trash::Thing;
use super::ublk_failure::failure;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{DeviceVolume, Server};

/// How long a start waits for the driver to be done with the daemon before, all devices together. With a queue whose
/// commands all were with that daemon the driver takes half a minute.
const RECOVERY_TIME_MAX: Duration = Duration::from_secs(40);

/// How long the requests in flight may take to be answered when the daemon ends, those of all devices together. Writes that wait
/// for space are not.
const QUIESCE_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause before lanes are asked again whether all is answered.
const DRAIN_PERIOD: Duration = Duration::from_millis(1);

impl Attachments {
    /// Brings back what is remembered of the pool in a directory.
    pub(super) fn restore(server: &Arc<Server>, pool: &Path, names: DeviceNames, lock: MemoryLock) -> Self {
        let attachments = Self::new(Arc::clone(server), pool, names, lock);
        let remembered = AttachmentFile::UBLK.read_or_set_aside(pool);
        // All of them at first, so that none is forgotten while another one is stored.
        attachments.table.lock().waiting = Waiting::all_at_start(&remembered);
        let end = Instant::now() + RECOVERY_TIME_MAX;
        for (number, remembered) in remembered {
            attachments.names.withdraw_start(number);
            if let Err(error) = attachments.bring_back(number, remembered, end) {
                let device = block_path(number);
                tracing::error!(
                    device = %device.display(),
                    "a disk was not brought back: {}. rok-blk attach tries again, rok-blk detach {} gives it up",
                    told(&error),
                    device.display()
                );
            }
        }
        attachments.nbd.restore();
        attachments
    }

    /// Brings back one that waits; `None` if it is nothing to be brought back any more, and is forgotten.
    ///
    /// # Errors
    /// Why it waits still.
    pub(super) fn bring_back(
        &self,
        number: u32,
        remembered: Remembered,
        end: Instant,
    ) -> Result<Option<Arc<Attached>>> {
        match self.take_over_or_make(number, remembered, end) {
            Ok(Some(attached)) => Ok(Some(attached)),
            Ok(None) => {
                self.table.lock().waiting.remove(&number);
                self.withdraw_name(number, &remembered);
                self.store(None)?;
                Ok(None)
            }
            Err(error) => {
                let waiting = Waiting { remembered, problem: told(&error) };
                self.table.lock().waiting.insert(number, waiting);
                Err(error)
            }
        }
    }

    fn take_over_or_make(&self, number: u32, remembered: Remembered, end: Instant) -> Result<Option<Arc<Attached>>> {
        let volume = match open_remembered(&self.server, &remembered) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                end_unserved(number, &remembered, Care::None)?;
                tracing::error!(
                    device = %block_path(number).display(),
                    "the volume of a disk is not there any more: the disk was taken away, its users get errors"
                );
                return Ok(None);
            }
            opened => opened?,
        };
        let driver = match Driver::open() {
            Err(ControlError::Missing) if remembered.is_once => return Ok(None),
            Err(error) => return Err(failure(error)),
            Ok(_) => self.driver()?,
        };
        let info = match driver.info(number) {
            Ok(info) => Some(info),
            Err(error) if error.is_gone() => None,
            Err(error) => return Err(failure(error)),
        };
        match info {
            Some(info) if info.identity != remembered.identity() && !remembered.is_once => Err(taken(number)),
            Some(info) if info.identity == remembered.identity() && info.state != DeviceState::Dead => {
                self.take_over(number, remembered, (driver, volume), end).map(Some)
            }
            leftover => {
                if leftover.is_some_and(|info| info.identity == remembered.identity()) {
                    delete(&driver, number);
                }
                if remembered.is_once {
                    tracing::info!(device = number, "a disk that was attached for once is not made anew");
                    return Ok(None);
                }
                self.attach(Some(number), remembered, volume).map(Some)
            }
        }
    }

    /// Takes over a device whose daemon is gone.
    fn take_over(
        &self,
        number: u32,
        remembered: Remembered,
        (driver, volume): (Driver, DeviceVolume),
        end: Instant,
    ) -> Result<Arc<Attached>> {
        let patience = end.saturating_duration_since(Instant::now());
        let device = Arc::new(driver.recover(number, patience).map_err(|error| not_free(number, error))?);
        let queues = self.server.attach(&device, &volume.target())?;
        // From here on it is served, whatever comes: `detach` finds it in the table.
        let problem = driver.finish_recovery(&device).map_err(failure).err().map(|error| told(&error));
        match &problem {
            None => tracing::info!(device = number, "a device was taken over from an earlier daemon"),
            Some(problem) => tracing::error!(
                device = %device.block_path().display(),
                "a disk was not taken over, and its requests wait: {problem}. rok-blk detach --force ends that"
            ),
        }
        if let Some(reference) = reference_of(&self.server, remembered.thing) {
            self.names.renew(number, DeviceName { reference: &reference, requests_max: requests_max(&device) });
        }
        let queues = Mutex::new(queues);
        let attached = Attached { remembered, volume, problem, device, driver, queues };
        // The daemon before may have been killed between the volume and its device.
        if attached.can_grow()
            && let Err(error) = attached.follow_size()
        {
            tracing::warn!(%error, device = number, "a disk may be smaller than its volume until it is attached anew");
        }
        Ok(self.insert(attached))
    }

    /// Ends what nobody uses, and leaves what is in use to the next daemon. Attaches nothing any more. All is remembered but
    /// what was attached for once and has ended.
    pub(super) fn leave(&self) {
        self.nbd.leave();
        let before = self.remembered();
        let mut kept = before.clone();
        let mut left = Vec::new();
        let quiesce_until = Instant::now() + QUIESCE_TIME_MAX;
        for attached in self.close_table() {
            let (number, remembered, path) = (attached.device().id(), attached.remembered, attached.path());
            let has_ended = self.end_or_release(attached, quiesce_until);
            if !has_ended {
                left.push(path.display().to_string());
            }
            if has_ended && remembered.is_once {
                kept.remove(&number);
            }
        }
        if kept != before
            && let Err(error) = self.store_all(&kept)
        {
            tracing::warn!(%error, "what the next start attaches is not up to date");
        }
        tell_of_left(&left);
    }

    /// Whether a device was ended; else the next daemon takes it over, if it can be.
    fn end_or_release(&self, attached: Arc<Attached>, quiesce_until: Instant) -> bool {
        let (number, can_stay) = (attached.device().id(), attached.device().is_recoverable());
        let Err(error) = self.take_away(attached, Care::Full) else { return true };
        // It is in the table still.
        let Some(attached) = self.list().into_iter().find(|attached| attached.device().id() == number) else {
            return true;
        };
        if can_stay && attached.state() != AttachmentState::Dead {
            tracing::debug!(%error, device = number, "a device stays for the next daemon");
        } else if let Err(error) = self.take_away(Arc::clone(&attached), Care::None) {
            tracing::error!(%error, device = number, "a device was left behind");
        } else {
            return true;
        }
        self.quiesce(&attached, quiesce_until);
        let released = self.server.release_device(number);
        if let Err(error) = released.and_then(|()| attached.queues.lock().wait_ended(END_TIME_MAX)) {
            tracing::warn!(%error, device = number, "requests of a device are under way still");
        }
        false
    }

    /// Has what is in flight of a device answered, so that none of it comes to the next daemon again, if the driver can hold back what
    /// is new, and if that is in time.
    fn quiesce(&self, attached: &Attached, until: Instant) {
        let number = attached.device().id();
        if !attached.device().can_quiesce() || attached.state() != AttachmentState::Live {
            return;
        }
        match self.drain(attached, until) {
            Ok(true) => tracing::info!(device = number, "a device was quiesced: nothing of it is in flight"),
            Ok(false) => tracing::warn!(device = number, "requests in flight come to the next daemon again"),
            Err(error) => tracing::warn!(%error, device = number, "requests in flight come to the next daemon again"),
        }
    }

    /// Whether everything was answered in time.
    fn drain(&self, attached: &Attached, until: Instant) -> Result<bool> {
        let number = attached.device().id();
        self.server.drain_device(number)?;
        let time_max = until.saturating_duration_since(Instant::now());
        attached.driver.quiesce(attached.device(), time_max).map_err(failure)?;
        let mut said = 0;
        while said < 2 {
            said = if self.server.drain_device(number)? { said + 1 } else { 0 };
            if said == 0 {
                if Instant::now() >= until {
                    return Ok(false);
                }
                // Lanes are busy with just that: they are not asked all the time.
                thread::sleep(DRAIN_PERIOD);
            }
        }
        Ok(true)
    }
}

/// What is remembered, open for a device.
///
/// # Errors
/// `NotFound` if it is not there any more, and those of opening it.
pub(super) fn open_remembered(server: &Server, remembered: &Remembered) -> Result<DeviceVolume> {
    let (Thing::Volume(volume) | Thing::Snapshot((volume, _))) = remembered.thing;
    let reference = reference_of(server, remembered.thing)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("There is no volume with the id {volume}")))?;
    server.open_for_device(&reference, remembered.access)
}

/// What a volume or snapshot is called now, if it is there still.
pub(super) fn reference_of(server: &Server, thing: Thing) -> Option<String> {
    let (volume, number) = match thing {
        Thing::Volume(volume) => (volume, None),
        Thing::Snapshot((volume, number)) => (volume, Some(number)),
    };
    let name = server.pool().with_catalog(|catalog, _| catalog.volume(volume).map(|record| record.name.clone()))?;
    Some(number.map_or_else(|| name.clone(), |number| format!("{name}@{number}")))
}

/// Tells of disks that the end of the daemon leaves to the next one.
pub(super) fn tell_of_left(disks: &[String]) {
    if !disks.is_empty() {
        tracing::warn!(
            "{} in use: requests wait until the daemon is started again. To end that, start it and run rok-blk detach --force",
            disks.join(", ")
        );
    }
}

/// An error as a sentence, with what can be done.
pub(super) fn told(error: &Error) -> String {
    error.hint().map_or_else(|| error.message().to_owned(), |hint| format!("{}. {hint}", error.message()))
}

fn taken(number: u32) -> Error {
    let device = block_path(number);
    Error::new(ErrorKind::Exists, format!("{} belongs to another program now", device.display()))
        .with_hint("Give the number up with rok-blk detach and attach under another one, or end that program")
}

/// What it means that a device cannot be taken over.
fn not_free(number: u32, error: ControlError) -> Error {
    if !error.is_busy() {
        return failure(error);
    }
    let device = block_path(number);
    Error::new(
        ErrorKind::Busy,
        format!("{} is still with the daemon before, or another one serves it", device.display()),
    )
    .with_hint("See that no other daemon runs, and the kernel's log (dmesg)")
    .with_source(error)
}
