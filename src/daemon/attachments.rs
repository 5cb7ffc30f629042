//! The table of attachments: which device was made of what, and the steps of its life.
//!
//! Invariants: what is in the table was started and is served by lanes; a device that could not be taken away stays in it.
//! Calls that change it come one at a time; those that look at it wait for none of the driver's commands.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rok_ublk::control::DeviceState;
use rok_ublk::{Control as Driver, ControlError, Device, DeviceParameters};
use uuid::Uuid;

use super::attachment_resource::AttachmentState;
use super::device_users;
use super::trash::Thing;
use super::ublk_failure::failure;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{AttachedDevice, DeviceVolume, Server};

/// How long the driver may take for a command, at most for a stop, which writes what is cached of the device.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);
/// How long lanes may take to end the queues of a device that the driver has stopped.
const END_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the driver may take to forget a stopped device. One whose users are still there goes when they do.
const DELETE_TIME_MAX: Duration = Duration::from_secs(2);

/// The devices of an open pool.
pub(super) struct Attachments {
    server: Arc<Server>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// By number.
    devices: BTreeMap<u32, Arc<Attached>>,
    /// Nothing is attached any more.
    is_closed: bool,
}

/// A device that was made of something.
pub(super) struct Attached {
    pub thing: Thing,
    pub volume: DeviceVolume,
    device: Arc<Device>,
    /// Kept open, so that the device can be taken away whatever becomes of the driver's file in `/dev`.
    driver: Driver,
    // Looked at by whoever detaches it, one at a time.
    queues: Mutex<AttachedDevice>,
}

impl Attached {
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn path(&self) -> PathBuf {
        self.device.block_path()
    }

    /// What the driver says of it.
    pub(super) fn state(&self) -> AttachmentState {
        match self.driver.state(self.device.id()) {
            Ok(DeviceState::Live) => AttachmentState::Live,
            Ok(DeviceState::Dead) => AttachmentState::Dead,
            Err(error) if is_gone(&error) => AttachmentState::Gone,
            Ok(_) | Err(_) => AttachmentState::Unknown,
        }
    }

    /// Whether it was made of a volume or of one of its snapshots.
    pub(super) fn is_of(&self, volume: Uuid) -> bool {
        match self.thing {
            Thing::Volume(id) | Thing::Snapshot((id, _)) => id == volume,
        }
    }
}

impl Attachments {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, table: Mutex::default() }
    }

    /// All, by number.
    pub(super) fn list(&self) -> Vec<Arc<Attached>> {
        self.table.lock().devices.values().cloned().collect()
    }

    /// The device that was made of this.
    pub(super) fn of(&self, thing: Thing) -> Option<Arc<Attached>> {
        self.list().into_iter().find(|attached| attached.thing == thing)
    }

    /// Whether devices can be made.
    ///
    /// # Errors
    /// `Unsupported` without io_uring or the driver, `Permission`.
    pub(super) fn check_driver(&self) -> Result<()> {
        self.server.check_devices()?;
        Driver::open().map(|_| ()).map_err(failure)
    }

    /// Makes a device and starts it.
    ///
    /// # Errors
    /// Those of [`Self::check_driver`], `NoSpace` at the driver's limit of devices, `Exists` for a number that is taken,
    /// `Usage` for parameters that cannot be, `Busy` if the daemon is ending; then there is no device.
    pub(super) fn attach(
        &self,
        thing: Thing,
        volume: DeviceVolume,
        parameters: &DeviceParameters,
        id: Option<u32>,
    ) -> Result<Arc<Attached>> {
        if self.table.lock().is_closed {
            return Err(Error::new(ErrorKind::Busy, "The daemon is ending").with_hint("Start it again"));
        }
        self.server.check_devices()?;
        let driver = Driver::open().map_err(failure)?.with_time_max(COMMAND_TIME_MAX);
        let device = Arc::new(driver.add(id, parameters).map_err(failure)?);
        let number = device.id();
        let served = self.server.attach(&device, &volume.target());
        let started = served.and_then(|queues| driver.start(&device).map(|()| queues).map_err(failure));
        let queues = match started {
            Ok(queues) => queues,
            Err(error) => {
                // Gives the queues that are served their commands back, which ends them.
                if let Err(error) = driver.stop(number) {
                    tracing::warn!(%error, device = number, "a device that did not start could not be stopped");
                }
                drop(device);
                delete(&driver, number);
                return Err(error);
            }
        };
        let attached = Arc::new(Attached { thing, volume, device, driver, queues: Mutex::new(queues) });
        self.table.lock().devices.insert(number, Arc::clone(&attached));
        tracing::info!(device = number, volume = %attached.volume.open().volume().id(), "a device was attached");
        Ok(attached)
    }

    /// Stops a device and deletes it.
    ///
    /// # Errors
    /// `Busy` if it is in use, unless that is `forced`; `TimedOut` if a request of it is not answered, and what the driver
    /// reports. Then it is attached still.
    pub(super) fn detach(&self, attached: Arc<Attached>, is_forced: bool) -> Result<()> {
        let number = attached.device.id();
        // Of one that others have stopped there is no disk any more.
        let has_disk = !matches!(attached.state(), AttachmentState::Dead | AttachmentState::Gone);
        let claim = if is_forced || !has_disk { None } else { Some(device_users::claim(&attached.path())?) };
        // A stop waits for the answers to all requests, and those that wait for space would come when there is some.
        if let Err(error) = self.server.leave_device(number) {
            tracing::warn!(%error, device = number, "a lane was not told that a device is to be stopped");
        }
        match attached.driver.stop(number) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(failure(error)),
        }
        drop(claim);
        attached.queues.lock().wait_ended(END_TIME_MAX)?;
        self.table.lock().devices.remove(&number);
        // The driver keeps the number while anybody has a handle of the device: the last of them goes here, unless somebody
        // is telling of it.
        if let Some(Attached { device, driver, .. }) = Arc::into_inner(attached) {
            drop(device);
            delete(&driver, number);
        } else if let Ok(driver) = Driver::open() {
            delete(&driver, number);
        }
        tracing::info!(device = number, "a device was detached");
        Ok(())
    }

    /// Stops all devices, whoever uses them, and attaches nothing any more.
    pub(super) fn close(&self) {
        let devices = {
            let mut table = self.table.lock();
            table.is_closed = true;
            table.devices.values().cloned().collect::<Vec<_>>()
        };
        for attached in devices {
            let device = attached.path();
            if let Err(error) = self.detach(attached, true) {
                tracing::error!(%error, device = %device.display(), "a device was left behind");
            }
        }
    }
}

/// Deletes a device that was stopped. Whoever has it open still keeps it from going, and only that: it goes by itself then.
fn delete(driver: &Driver, number: u32) {
    let impatient = Driver::open().map(|driver| driver.with_time_max(DELETE_TIME_MAX));
    match impatient.as_ref().unwrap_or(driver).delete(number) {
        Err(ControlError::TimeOver { .. }) => {
            tracing::info!(device = number, "a device goes when nobody has it open any more");
        }
        Err(error) if !is_gone(&error) => tracing::warn!(%error, device = number, "a device was not deleted"),
        Ok(()) | Err(_) => {}
    }
}

/// Whether the driver does not know the device.
fn is_gone(error: &ControlError) -> bool {
    matches!(error, ControlError::Refused { source, .. } if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)))
}
