//! The table of attachments: which device was made of what, and the steps of its life.
//!
//! Invariants: what is a device in the table was started and is served by lanes; one that could not be taken away stays in
//! it. What is in the table is in the file of [`super::attachment_store`], also while nobody serves it: then it waits. Calls
//! that change it come one at a time; those that look at it wait for none of the driver's commands.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use rok_ublk::control::{DeviceInfo, DeviceState};
use rok_ublk::device::{block_path, write_back};
use rok_ublk::{Control as Driver, ControlError, Device, DeviceParameters, Features};
use uuid::Uuid;

use super::attachment_resource::AttachmentState;
use super::attachment_store::{AttachmentFile, Remembered, RememberedDevices};
use super::device_names::{DeviceName, DeviceNames};
use super::device_users::{self, Care};
use super::kernel_nbd::NbdAttachments;
use super::restoration::reference_of;
use super::short_memory::{MemoryLock, ShortMemory};
use super::trash::Thing;
use super::ublk_failure::failure;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{AttachedDevice, DeviceAccess, DeviceVolume, Server};
use crate::volume::Volume;

/// How long the driver may take for a command, at most for a stop.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);
/// How long lanes may take to end the queues of a device that the driver has stopped.
pub(super) const END_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the driver may take to forget a stopped device. One whose users are still there goes when they do.
const DELETE_TIME_MAX: Duration = Duration::from_secs(2);
/// Longest request of a device, in bytes.
const IO_BYTES_MAX: u32 = 1 << 20;
/// Numbers of devices are below this (a limit of the driver).
const DEVICE_NUMBER_END: u32 = 1 << 20;
/// Fewest requests that the block layer lets a queue be limited to.
const REQUESTS_MIN: u16 = 4;

/// The devices of an open pool.
pub(super) struct Attachments {
    pub(super) server: Arc<Server>,
    pool: PathBuf,
    pub(super) names: DeviceNames,
    pub(super) table: Mutex<Table>,
    /// Those that the kernel's NBD client has, which are no devices of this driver.
    pub(super) nbd: NbdAttachments,
    short_memory: Arc<ShortMemory>,
}

#[derive(Default)]
pub(super) struct Table {
    /// By number.
    pub(super) devices: BTreeMap<u32, Arc<Attached>>,
    /// What is remembered and not served.
    pub(super) waiting: BTreeMap<u32, Waiting>,
    /// Nothing is attached any more.
    pub(super) is_closed: bool,
}

/// A device that was made of something.
pub(super) struct Attached {
    pub remembered: Remembered,
    pub volume: DeviceVolume,
    /// Why it is not as it should be.
    pub problem: Option<String>,
    pub(super) device: Arc<Device>,
    /// Kept open, so that the device can be taken away whatever becomes of the driver's file in `/dev`.
    pub(super) driver: Driver,
    // Looked at by whoever detaches it, one at a time.
    pub(super) queues: Mutex<AttachedDevice>,
}

/// Something that is remembered as a device and is not served.
#[derive(Clone)]
pub(super) struct Waiting {
    pub remembered: Remembered,
    /// Why, and what can be done.
    pub problem: String,
}

impl Waiting {
    /// What is remembered, before any of it is brought back.
    pub(super) fn all_at_start(remembered: &RememberedDevices) -> BTreeMap<u32, Self> {
        let waiting =
            |remembered: &Remembered| Self { remembered: *remembered, problem: "The daemon is starting".to_owned() };
        remembered.iter().map(|(number, remembered)| (*number, waiting(remembered))).collect()
    }
}

impl Remembered {
    /// Parameters of a device that is so attached.
    pub(super) fn parameters(&self, volume: &Volume) -> DeviceParameters {
        let mut parameters = DeviceParameters {
            logical_block_bytes: volume.sector_size(),
            queue_count: self.queue_count,
            queue_depth: self.queue_depth,
            io_bytes_max: IO_BYTES_MAX,
            ..DeviceParameters::new(volume.size_bytes())
        };
        if self.access == DeviceAccess::ReadOnly {
            parameters.is_read_only = true;
            (parameters.has_volatile_cache, parameters.has_fua) = (false, false);
            (parameters.discard_bytes_max, parameters.write_zeroes_bytes_max) = (0, 0);
        }
        parameters
    }

    /// Whether it is a volume or one of its snapshots.
    pub(super) fn is_of(&self, volume: Uuid) -> bool {
        match self.thing {
            Thing::Volume(id) | Thing::Snapshot((id, _)) => id == volume,
        }
    }

    /// What the driver has under the number of a device that is remembered so, if it can tell.
    pub(super) fn state(&self, number: u32) -> AttachmentState {
        match Driver::open().and_then(|driver| driver.info(number)) {
            Ok(info) if info.identity != self.identity() => AttachmentState::Taken,
            Err(ControlError::Missing) => AttachmentState::Gone,
            result => state_of(result),
        }
    }
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
        state_of(self.driver.info(self.device.id()))
    }

    /// Whether it can have another size while it is used.
    pub(super) fn can_grow(&self) -> bool {
        self.state() == AttachmentState::Live && self.driver.features().is_ok_and(Features::has_size_update)
    }

    /// Gives it the size of its volume, which it may have already.
    ///
    /// # Errors
    /// What the driver reports.
    pub(super) fn follow_size(&self) -> Result<()> {
        self.driver.set_size(&self.device, self.volume.open().volume().size_bytes()).map_err(failure)
    }
}

impl Attachments {
    /// None yet, of the pool in a directory.
    pub(super) fn new(server: Arc<Server>, pool: &Path, names: DeviceNames, lock: MemoryLock) -> Self {
        let short_memory = Arc::new(ShortMemory::new(lock));
        let nbd = NbdAttachments::new(Arc::clone(&server), pool, Arc::clone(&short_memory));
        Self { server, pool: pool.to_owned(), names, table: Mutex::default(), nbd, short_memory }
    }

    /// All devices, by number.
    pub(super) fn list(&self) -> Vec<Arc<Attached>> {
        self.table.lock().devices.values().cloned().collect()
    }

    /// What waits, by number.
    pub(super) fn waiting(&self) -> BTreeMap<u32, Waiting> {
        self.table.lock().waiting.clone()
    }

    /// What is remembered of what waits.
    pub(super) fn remembered_waiting(&self) -> RememberedDevices {
        self.table.lock().waiting.iter().map(|(number, waiting)| (*number, waiting.remembered)).collect()
    }

    /// What is remembered of all, by number.
    pub(super) fn remembered(&self) -> RememberedDevices {
        let mut remembered = self.remembered_waiting();
        remembered.extend(self.list().iter().map(|attached| (attached.device.id(), attached.remembered)));
        remembered
    }

    /// The device that was made of this.
    pub(super) fn of(&self, thing: Thing) -> Option<Arc<Attached>> {
        self.list().into_iter().find(|attached| attached.remembered.thing == thing)
    }

    /// Has the links of a volume that was renamed, and of its snapshots, follow. Those of what waits do when it is served.
    pub(super) fn rename(&self, volume: Uuid) {
        for attached in self.list().iter().filter(|attached| attached.remembered.is_of(volume)) {
            if let Some(reference) = reference_of(&self.server, attached.remembered.thing) {
                let name = DeviceName { reference: &reference, requests_max: requests_max(&attached.device) };
                self.names.renew(attached.device.id(), name);
            }
        }
    }

    /// Takes the name of a device back that is not there any more, unless another program has its number.
    pub(super) fn withdraw_name(&self, number: u32, remembered: &Remembered) {
        if remembered.state(number) != AttachmentState::Taken {
            self.names.withdraw(number);
        }
    }

    /// Whether devices can be made.
    ///
    /// # Errors
    /// `Unsupported` without io_uring or the driver, `Permission`.
    pub(super) fn check_driver(&self) -> Result<()> {
        self.server.check_devices()?;
        Driver::open().map(|_| ()).map_err(failure)
    }

    /// The way to the driver, for a process that is prepared for disks from then on.
    ///
    /// # Errors
    /// `Unsupported` without io_uring or the driver, `Permission`.
    pub(super) fn driver(&self) -> Result<Driver> {
        self.server.check_devices()?;
        let driver = Driver::open().map_err(failure)?.with_time_max(COMMAND_TIME_MAX);
        self.short_memory.prepare();
        Ok(driver)
    }

    /// Makes a device, remembers and starts it.
    ///
    /// # Errors
    /// Those of [`Self::check_driver`], `NoSpace` at the driver's limit of devices, `Exists` for a number that is taken,
    /// `Usage` for parameters that cannot be, `Busy` if the daemon is ending; those of remembering it. Then there is no device.
    pub(super) fn attach(
        &self,
        id: Option<u32>,
        remembered: Remembered,
        volume: DeviceVolume,
    ) -> Result<Arc<Attached>> {
        if self.table.lock().is_closed {
            return Err(Error::new(ErrorKind::Busy, "The daemon is ending").with_hint("Start it again"));
        }
        let driver = self.driver()?;
        let id = self.number_for(&remembered, id, &driver)?;
        let parameters = remembered.parameters(volume.open().volume());
        let device = Arc::new(driver.add(id, &parameters, Some(remembered.identity())).map_err(failure)?);
        let number = device.id();
        let reference = reference_of(&self.server, remembered.thing).unwrap_or_default();
        let started = self.server.attach(&device, &volume.target()).and_then(|queues| {
            // Before anybody can use it: a daemon that is killed then leaves nothing behind that nobody knows.
            self.store(Some((number, remembered)))?;
            self.names.announce(number, DeviceName { reference: &reference, requests_max: requests_max(&device) });
            driver.start(&device).map_err(failure)?;
            Ok(queues)
        });
        let queues = match started {
            Ok(queues) => queues,
            Err(error) => {
                // Gives the queues that are served their commands back, which ends them.
                if let Err(error) = driver.stop(number) {
                    tracing::warn!(%error, device = number, "a device that did not start could not be stopped");
                }
                drop(device);
                delete(&driver, number);
                self.names.withdraw(number);
                if let Err(error) = self.store(None) {
                    tracing::warn!(%error, device = number, "a device that did not start is remembered");
                }
                return Err(error);
            }
        };
        self.names.confirm(number);
        hold_one_back(&device);
        let attached = Attached { remembered, volume, problem: None, device, driver, queues: Mutex::new(queues) };
        tracing::info!(device = number, volume = %attached.volume.open().volume().id(), "a device was attached");
        Ok(self.insert(attached))
    }

    /// The number to ask the driver for, `None` if any will do: not one that another thing waits for.
    fn number_for(&self, remembered: &Remembered, id: Option<u32>, driver: &Driver) -> Result<Option<u32>> {
        let waiting = self.remembered_waiting();
        match id.map(|id| (id, waiting.get(&id))) {
            Some((id, Some(other))) if other.thing != remembered.thing => {
                let device = block_path(id);
                let device = device.display();
                Err(Error::new(ErrorKind::Exists, format!("{device} is kept for what was attached there"))
                    .with_hint(format!("Name another number, or give that up first: rok-blk detach {device}")))
            }
            Some((id, _)) => Ok(Some(id)),
            None if waiting.is_empty() => Ok(None),
            None => {
                let is_free = |number: u32| driver.info(number).is_err_and(|error| error.is_gone());
                Ok((0..DEVICE_NUMBER_END).find(|number| !waiting.contains_key(number) && is_free(*number)))
            }
        }
    }

    /// Takes a device into the table.
    pub(super) fn insert(&self, attached: Attached) -> Arc<Attached> {
        let (number, attached) = (attached.device.id(), Arc::new(attached));
        let mut table = self.table.lock();
        table.waiting.remove(&number);
        table.devices.insert(number, Arc::clone(&attached));
        attached
    }

    /// Takes a device away and forgets it.
    ///
    /// # Errors
    /// Those of [`Self::take_away`]: then it is attached still. Those of forgetting it: then it is gone, and comes back with
    /// the next start.
    pub(super) fn detach(&self, attached: Arc<Attached>, care: Care) -> Result<()> {
        self.take_away(attached, care)?;
        self.store(None)
    }

    /// Stops a device and deletes it.
    ///
    /// # Errors
    /// `Busy` if it is in use, or that cannot be told, as far as there is care; `TimedOut` if a request of it is not answered, and what the driver
    /// reports. Then it is attached still.
    pub(super) fn take_away(&self, attached: Arc<Attached>, care: Care) -> Result<()> {
        let number = attached.device.id();
        let state = attached.state();
        // Of one that others have stopped there is no disk any more.
        let has_disk = !matches!(state, AttachmentState::Dead | AttachmentState::Gone);
        let claim = if has_disk { device_users::claim(&attached.path(), care)? } else { None };
        // A stop waits for the answers to all requests, and those that wait for space would come when there is some.
        if let Err(error) = self.server.leave_device(number) {
            tracing::warn!(%error, device = number, "a lane was not told that a device is to be stopped");
        }
        if state == AttachmentState::Live {
            write_cache(&attached.path());
        }
        match attached.driver.stop(number) {
            Ok(()) => {}
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(failure(error)),
        }
        drop(claim);
        attached.queues.lock().wait_ended(END_TIME_MAX)?;
        self.table.lock().devices.remove(&number);
        self.names.withdraw(number);
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

    /// Forgets what is not served. A device that there is still is stopped and deleted: its users get errors.
    ///
    /// # Errors
    /// `Busy` if it is in use, or that cannot be told, as far as there is care; what the driver reports. Those of storing it.
    pub(super) fn forget(&self, number: u32, remembered: &Remembered, care: Care) -> Result<()> {
        end_unserved(number, remembered, care)?;
        self.table.lock().waiting.remove(&number);
        self.withdraw_name(number, remembered);
        self.store(None)
    }

    /// Stops all devices, whoever uses them, and attaches nothing any more. They are remembered.
    pub(super) fn close(&self) {
        for attached in self.close_table() {
            let device = attached.path();
            if let Err(error) = self.take_away(attached, Care::None) {
                tracing::error!(%error, device = %device.display(), "a device was left behind");
            }
        }
        self.nbd.close();
    }

    /// Attaches nothing any more; returns all devices.
    pub(super) fn close_table(&self) -> Vec<Arc<Attached>> {
        let mut table = self.table.lock();
        table.is_closed = true;
        table.devices.values().cloned().collect()
    }

    /// Stores what is in the table, and one more.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn store(&self, one_more: Option<(u32, Remembered)>) -> Result<()> {
        let mut remembered = self.remembered();
        remembered.extend(one_more);
        self.store_all(&remembered)
    }

    /// Stores what is to be remembered.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn store_all(&self, remembered: &RememberedDevices) -> Result<()> {
        AttachmentFile::UBLK.write(&self.pool, remembered)
    }
}

fn state_of(info: std::result::Result<DeviceInfo, ControlError>) -> AttachmentState {
    match info.map(|info| info.state) {
        Ok(DeviceState::Live) => AttachmentState::Live,
        Ok(DeviceState::Dead) => AttachmentState::Dead,
        Ok(DeviceState::Quiesced | DeviceState::FailIo) => AttachmentState::Quiesced,
        Err(error) if error.is_gone() => AttachmentState::Gone,
        Ok(DeviceState::Unknown(_)) | Err(_) => AttachmentState::Unknown,
    }
}

/// Stops and deletes a device of ours that this daemon does not serve; nothing if there is none of ours.
///
/// # Errors
/// `Busy` if it is in use, or that cannot be told, or somebody else serves it, as far as there is care; what the driver reports.
pub(super) fn end_unserved(number: u32, remembered: &Remembered, care: Care) -> Result<()> {
    let driver = match Driver::open() {
        Ok(driver) => driver.with_time_max(COMMAND_TIME_MAX),
        // Without the driver there are no devices.
        Err(ControlError::Missing) => return Ok(()),
        Err(error) => return Err(failure(error)),
    };
    let info = match driver.info(number) {
        Ok(info) if info.identity == remembered.identity() => info,
        Ok(_) => return Ok(()),
        Err(error) if error.is_gone() => return Ok(()),
        Err(error) => return Err(failure(error)),
    };
    let path = block_path(number);
    if info.state == DeviceState::Live && care != Care::None {
        let server = info.server.map_or_else(String::new, |pid| format!(" (process {pid})"));
        return Err(Error::new(ErrorKind::Busy, format!("{} is served by another program{server}", path.display()))
            .with_hint("End that one, or take the disk away in any case with --force: its users get errors then"));
    }
    let has_disk = info.state != DeviceState::Dead;
    let claim = if has_disk { device_users::claim(&path, care)? } else { None };
    match driver.stop(number) {
        Ok(()) => {}
        Err(error) if error.is_gone() => return Ok(()),
        Err(error) => return Err(failure(error)),
    }
    drop(claim);
    delete(&driver, number);
    Ok(())
}

/// Deletes a device that was stopped. Whoever has it open still keeps it from going, and only that: it goes by itself then.
pub(super) fn delete(driver: &Driver, number: u32) {
    let impatient = Driver::open().map(|driver| driver.with_time_max(DELETE_TIME_MAX));
    match impatient.as_ref().unwrap_or(driver).delete(number) {
        Err(ControlError::TimeOver { .. }) => {
            tracing::info!(device = number, "a device goes when nobody has it open any more");
        }
        Err(error) if !error.is_gone() => tracing::warn!(%error, device = number, "a device was not deleted"),
        Ok(()) | Err(_) => {}
    }
}

/// Writes what the kernel caches of a device, as long as a command of the driver may take. On a thread of its own, which is
/// left alone when it takes longer: a request that is never answered must not keep its device.
pub(super) fn write_cache(path: &Path) {
    let (done, result) = mpsc::channel();
    let own = path.to_owned();
    let work = move || {
        // Nobody waits any more if that fails.
        let _is_awaited = done.send(File::open(own).and_then(|device| write_back(&device))).is_ok();
    };
    let device = path.display();
    if let Err(error) = std::thread::Builder::new().name("write-back".to_owned()).spawn(work) {
        tracing::warn!(%error, %device, "what is cached of a device is lost: a thread could not be started");
        return;
    }
    match result.recv_timeout(COMMAND_TIME_MAX) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, %device, "what is cached of a device may be lost: it was not written"),
        Err(_) => tracing::warn!(%device, "what is cached of a device may be lost: writing it takes too long"),
    }
}

/// Has the block layer leave one command of each queue with the driver: when a daemon dies, the driver learns it from those
/// at once, and from a queue that has none only by a timeout of half a minute, for which all requests would wait.
///
/// Only root may write that: of a daemon that is not, udev does it.
fn hold_one_back(device: &Device) {
    let path = device.block_path();
    let name = path.file_name().unwrap_or_default();
    let limit = Path::new("/sys/block").join(name).join("queue/nr_requests");
    if let Err(error) = std::fs::write(limit, requests_max(device).to_string()) {
        tracing::debug!(%error, device = device.id(), "the requests of a device are not limited");
    }
}

/// Requests that the block layer may have under way in each queue of a device: see [`hold_one_back`].
pub(super) fn requests_max(device: &Device) -> u16 {
    device.queue_depth().saturating_sub(1).max(REQUESTS_MIN)
}
