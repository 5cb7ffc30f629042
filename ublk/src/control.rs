//! Makes, starts, stops and deletes devices through `/dev/ublk-control`.
//!
//! Every call blocks, up to a bound: **never call it on a thread that serves a queue**. In particular
//! [`Control::start`] returns only when all tags of all queues have been fetched and the partition table was read
//! through them, and [`Control::stop`] when the requests in flight are answered. The order of a device's life:
//! `add`, a [`crate::Queue`] on its thread for each queue, `start`, …, `stop`, queues ended and dropped, handle
//! dropped, `delete`. One that has outlived its server: `recover`, queues as above, `finish_recovery`, ….

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use libublk_rs_sys as sys;

use crate::awaited_file::{self, UDEV_TIME_MAX};
use crate::command::{Command, CommandFailure};
use crate::device::{Device, character_path};
use crate::features::Features;
use crate::parameters::{DeviceParameters, ParameterError};
use crate::request::SECTOR_BYTES;
use crate::stand_in;

/// The driver's control device.
pub const CONTROL_PATH: &str = "/dev/ublk-control";
/// Bound of each command, unless another is set.
pub const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);
/// Pause before the driver is asked again whether a dead server's commands are gone: it tells nobody when.
const RECOVERY_PERIOD: Duration = Duration::from_millis(10);
/// The driver's number for "no device yet" and "any number".
const ANY_DEVICE: u32 = u32::MAX;

/// The way to the driver. Can be shared by threads; calls do not wait for each other.
#[derive(Debug)]
pub struct Control {
    file: File,
    time_max: Duration,
}

/// In which state the driver has a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// Added and not started, or stopped.
    Dead,
    /// Started.
    Live,
    /// Its server is gone; requests wait for the next one.
    Quiesced,
    /// Its server is gone; requests fail until the next one.
    FailIo,
    /// A state that this crate does not know.
    Unknown(u16),
}

/// What the driver knows of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its state.
    pub state: DeviceState,
    /// What [`Control::add`] was given; devices of other programs have anything here, 0 most often.
    pub identity: u64,
    /// Process that serves it, or served it last, as that process sees its own number.
    pub server: Option<u32>,
    /// It outlives its server, and its requests in flight are sent again to the next one.
    pub is_recoverable: bool,
}

/// What went wrong with the driver.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no control device.
    #[error(
        "No {CONTROL_PATH}: this kernel has no ublk driver loaded; run 'modprobe ublk_drv' (Linux 6.4 or newer \
         with CONFIG_BLK_DEV_UBLK), or export the volume over NBD"
    )]
    Missing,
    /// The control device, or the device's own file, may not be opened, or the command is not permitted.
    #[error(
        "Not permitted to {action}: {source}; run as root or with CAP_SYS_ADMIN, and let the container have \
         {CONTROL_PATH} and /dev/ublkc*, or export the volume over NBD"
    )]
    Permission {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The control device cannot be opened for another reason.
    #[error("Could not open {path}: {source}")]
    Open {
        /// Path of the file.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The driver is too old.
    #[error("The ublk driver is too old (features: {features}); use Linux 6.5 or newer, or export the volume over NBD")]
    TooOld {
        /// What the driver can do.
        features: String,
    },
    /// The parameters break a rule.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// The driver refused a command.
    #[error("The ublk driver refused to {action} device {device}: {source}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Number of the device, or "new".
        device: String,
        /// The driver's answer.
        source: io::Error,
    },
    /// The device has buffers of its server, as nobody makes it any more.
    #[error(
        "Device {device} was made for a server that lends it buffers, as older versions of this program did; let that version \
         serve it, or stop using it and detach it by force"
    )]
    OtherMode {
        /// Number of the device.
        device: u32,
    },
    /// A command took too long.
    #[error("The ublk driver did not {action} device {device} within {seconds} s; {hint}")]
    TimeOver {
        /// What was tried.
        action: &'static str,
        /// Number of the device, or "new".
        device: String,
        /// The bound, in seconds.
        seconds: u64,
        /// What probably holds it up.
        hint: &'static str,
    },
    /// The ring for a command could not be set up.
    #[error(
        "Could not set up an io_uring for ublk commands: {source}; ublk needs io_uring (sysctl \
         kernel.io_uring_disabled=0, and a seccomp profile that permits io_uring_setup)"
    )]
    Ring {
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What a command does, for messages.
#[derive(Clone, Copy)]
struct Action {
    code: u32,
    name: &'static str,
    hint: &'static str,
}

const GET_FEATURES: Action =
    Action { code: sys::UBLK_U_CMD_GET_FEATURES, name: "tell the features of", hint: "look at the kernel log" };
const ADD: Action = Action { code: sys::UBLK_U_CMD_ADD_DEV, name: "add", hint: "look at the kernel log" };
const SET_PARAMETERS: Action =
    Action { code: sys::UBLK_U_CMD_SET_PARAMS, name: "set the parameters of", hint: "look at the kernel log" };
const START: Action = Action {
    code: sys::UBLK_U_CMD_START_DEV,
    name: "start",
    hint: "a thread that serves one of its queues is not running, or not submitting",
};
const STOP: Action =
    Action { code: sys::UBLK_U_CMD_STOP_DEV, name: "stop", hint: "requests in flight were not answered" };
const DELETE: Action =
    Action { code: sys::UBLK_U_CMD_DEL_DEV, name: "delete", hint: "something still holds its character device open" };
const START_RECOVERY: Action =
    Action { code: sys::UBLK_U_CMD_START_USER_RECOVERY, name: "begin the recovery of", hint: "look at the kernel log" };
const END_RECOVERY: Action = Action {
    code: sys::UBLK_U_CMD_END_USER_RECOVERY,
    name: "end the recovery of",
    hint: "a thread that serves one of its queues is not running, or not submitting",
};
const QUIESCE: Action =
    Action { code: sys::UBLK_U_CMD_QUIESCE_DEV, name: "quiesce", hint: "requests in flight were not answered" };
const UPDATE_SIZE: Action =
    Action { code: sys::UBLK_U_CMD_UPDATE_SIZE, name: "change the size of", hint: "look at the kernel log" };
const GET_INFO: Action =
    Action { code: sys::UBLK_U_CMD_GET_DEV_INFO, name: "tell the state of", hint: "look at the kernel log" };

impl Control {
    /// Opens the way to the driver, which must be new enough for this crate (Linux 6.5).
    ///
    /// # Errors
    /// [`ControlError::Missing`], [`ControlError::Permission`], [`ControlError::TooOld`], [`ControlError::Open`].
    pub fn open() -> Result<Self, ControlError> {
        Self::open_at(Path::new(CONTROL_PATH))
    }

    /// The same with another bound for each command.
    #[must_use]
    pub fn with_time_max(self, time_max: Duration) -> Self {
        Self { time_max, ..self }
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// [`ControlError::TooOld`] before Linux 6.5; else what the driver answers.
    pub fn features(&self) -> Result<Features, ControlError> {
        let bits = self.run_with(GET_FEATURES, ANY_DEVICE, Box::new(0_u64)).map_err(|error| match error {
            ControlError::Refused { .. } => ControlError::TooOld { features: "unknown".into() },
            other => other,
        })?;
        Ok(Features::from_bits(bits))
    }

    /// Adds a device with parameters, not yet started. `id`: its number, or `None` for the lowest free one.
    ///
    /// With an `identity` it outlives its server, if the driver can do that: its requests wait, those in flight are sent
    /// again, and whoever finds the identity in [`Control::info`] can [`Control::recover`] it. Without, it ends with its server.
    ///
    /// It may get fewer queues than it is to have: no more than there are processors, and one where the driver loses a device with
    /// several when a server dies in the middle of its recovery (Linux 6.16 to 6.19).
    ///
    /// When something fails after the driver made the device, it is deleted again.
    ///
    /// # Errors
    /// [`ControlError::Parameters`]; [`ControlError::Refused`] with `EEXIST` when the number is taken,
    /// `ENOSPC` or `EACCES` when the driver's limit of devices is reached; what else the driver answers.
    pub fn add(
        &self,
        id: Option<u32>,
        parameters: &DeviceParameters,
        identity: Option<u64>,
    ) -> Result<Device, ControlError> {
        let driver_parameters = parameters.to_driver()?;
        let mut queue_count = parameters.queue_count;
        let mut survival = 0;
        if identity.is_some() {
            let features = self.features()?;
            survival = features.survival_flags();
            queue_count = queue_count.min(features.surviving_queues_max());
        }
        let wanted = sys::ublksrv_ctrl_dev_info {
            nr_hw_queues: queue_count,
            queue_depth: parameters.queue_depth,
            max_io_buf_bytes: parameters.io_bytes_max,
            dev_id: id.unwrap_or(ANY_DEVICE),
            flags: u64::from(sys::UBLK_F_CMD_IOCTL_ENCODE | sys::UBLK_F_USER_COPY) | survival,
            ublksrv_flags: identity.unwrap_or(0),
            ..Default::default()
        };
        let granted = self.run_with(ADD, wanted.dev_id, Box::new(wanted))?;
        self.prepare(&granted, driver_parameters).inspect_err(|_| {
            // The first error is the one to tell; a device that stays shows up as dead in its list.
            let _deleted = self.delete(granted.dev_id);
        })
    }

    /// Starts a device: `/dev/ublkbN` appears. Returns when all tags of all its queues have been fetched.
    ///
    /// # Errors
    /// [`ControlError::TimeOver`] when a queue is not being served; [`ControlError::Permission`]; what the
    /// driver answers.
    pub fn start(&self, device: &Device) -> Result<(), ControlError> {
        self.run(START, device.id, u64::from(std::process::id()))
    }

    /// Stops a device: its requests in flight are answered by its server, `/dev/ublkbN` goes away, and every command of
    /// its queues comes back, which ends them. Stopping a device that was not started is no error.
    ///
    /// # Errors
    /// [`ControlError::TimeOver`] when a request is not answered; what the driver answers.
    pub fn stop(&self, id: u32) -> Result<(), ControlError> {
        self.run(STOP, id, 0)
    }

    /// Deletes a device. Its queues and its handle must be dropped before, or this waits for them.
    ///
    /// # Errors
    /// [`ControlError::TimeOver`] when something holds the device: it then goes away by itself once that is
    /// gone. What the driver answers.
    pub fn delete(&self, id: u32) -> Result<(), ControlError> {
        self.run(DELETE, id, 0)
    }

    /// Takes a device over whose server is gone, within `time_max`: its handle, for queues to be served. Requests wait until
    /// [`Control::finish_recovery`].
    ///
    /// # Errors
    /// [`ControlError::Refused`]: with `EBUSY` when the device is served still, or what is left of its server is not gone in
    /// time; with `EINVAL` when it does not outlive its server; [`ControlError::OtherMode`]; what else the driver answers. It is as
    /// it was then.
    pub fn recover(&self, id: u32, time_max: Duration) -> Result<Device, ControlError> {
        let end = Instant::now() + time_max;
        if !Features::from_bits(self.driver_info(id)?.flags).has_user_copy() {
            return Err(ControlError::OtherMode { device: id });
        }
        if self.features()?.needs_stand_in() {
            let device = self.ask_until(end, |control| open_handle(&control.driver_info(id)?))?;
            stand_in::visit(device).map_err(|source| ControlError::Ring { source })?;
        }
        self.ask_until(end, |control| control.run(START_RECOVERY, id, 0))?;
        open_handle(&self.driver_info(id)?)
    }

    /// Has the requests of a device come to its new server. Returns when all tags of all its queues have been fetched.
    ///
    /// # Errors
    /// [`ControlError::TimeOver`] when a queue is not being served; what the driver answers.
    pub fn finish_recovery(&self, device: &Device) -> Result<(), ControlError> {
        self.run(END_RECOVERY, device.id, u64::from(std::process::id()))
    }

    /// Has the requests of a live device that outlives its server wait from now on, but for those that the server has: commands without a
    /// request come back. What is answered behind that comes to no other server, so the server should answer everything and then
    /// go ([`crate::Queue::drain`], to be called before this).
    ///
    /// Only for devices with [`Device::can_quiesce`]. The driver may wait until all is answered, or not at all, as it does up to Linux
    /// 7.3: at most for `time_max`, in whole milliseconds and at least one.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with `EBUSY` when requests were not answered in time: new ones wait all the same, and those come to
    /// the next server again. What else the driver answers.
    pub fn quiesce(&self, device: &Device, time_max: Duration) -> Result<(), ControlError> {
        // 0 is for ever.
        let milliseconds = u64::try_from(time_max.as_millis()).unwrap_or(u64::MAX).max(1);
        self.run(QUIESCE, device.id, milliseconds)
    }

    /// Gives a live device another size, in bytes, a multiple of 512; its users see it at once. The driver does not look at
    /// what is on the device: who makes it smaller cuts off what is there.
    ///
    /// Only for drivers with [`Features::has_size_update`].
    ///
    /// # Errors
    /// What the driver answers.
    pub fn set_size(&self, device: &Device, size_bytes: u64) -> Result<(), ControlError> {
        self.run(UPDATE_SIZE, device.id, size_bytes / SECTOR_BYTES)
    }

    /// In which state the driver has a device.
    ///
    /// # Errors
    /// As [`Control::info`].
    pub fn state(&self, id: u32) -> Result<DeviceState, ControlError> {
        self.info(id).map(|info| info.state)
    }

    /// What the driver knows of a device.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with `ENODEV` or `EINVAL` when there is no such device (see [`ControlError::is_gone`]); what
    /// else the driver answers.
    pub fn info(&self, id: u32) -> Result<DeviceInfo, ControlError> {
        let info = self.driver_info(id)?;
        Ok(DeviceInfo {
            state: DeviceState::from(info.state),
            identity: info.ublksrv_flags,
            server: u32::try_from(info.ublksrv_pid).ok().filter(|pid| *pid > 0),
            is_recoverable: survives(info.flags),
        })
    }

    fn driver_info(&self, id: u32) -> Result<sys::ublksrv_ctrl_dev_info, ControlError> {
        self.run_with(GET_INFO, id, Box::new(sys::ublksrv_ctrl_dev_info::default()))
    }

    /// Asks again while what is left of a server is in the way, until `end`.
    fn ask_until<T>(&self, end: Instant, ask: impl Fn(&Self) -> Result<T, ControlError>) -> Result<T, ControlError> {
        loop {
            match ask(self) {
                Err(error) if error.is_busy() && Instant::now() < end => thread::sleep(RECOVERY_PERIOD),
                result => return result,
            }
        }
    }

    fn open_at(path: &Path) -> Result<Self, ControlError> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ControlError::Missing,
            io::ErrorKind::PermissionDenied => ControlError::Permission { action: "open /dev/ublk-control", source },
            _ => ControlError::Open { path: path.display().to_string(), source },
        })?;
        let control = Self { file, time_max: COMMAND_TIME_MAX };
        let features = control.features()?;
        if !features.has_ioctl_encoding() || !features.has_user_copy() {
            return Err(ControlError::TooOld { features: features.to_string() });
        }
        Ok(control)
    }

    /// Second half of adding: parameters and handle.
    fn prepare(
        &self,
        granted: &sys::ublksrv_ctrl_dev_info,
        parameters: sys::ublk_params,
    ) -> Result<Device, ControlError> {
        self.run_with(SET_PARAMETERS, granted.dev_id, Box::new(parameters))?;
        open_handle(granted)
    }

    fn run(&self, action: Action, device_id: u32, data: u64) -> Result<(), ControlError> {
        let command = Command { code: action.code, device_id, data };
        command.run(&self.file, self.time_max).map_err(|failure| self.error(action, device_id, failure))
    }

    fn run_with<T: Copy>(&self, action: Action, device_id: u32, buffer: Box<T>) -> Result<T, ControlError> {
        let command = Command { code: action.code, device_id, data: 0 };
        command.run_with(&self.file, buffer, self.time_max).map_err(|failure| self.error(action, device_id, failure))
    }

    fn error(&self, action: Action, device_id: u32, failure: CommandFailure) -> ControlError {
        let device = if device_id == ANY_DEVICE { "new".to_owned() } else { device_id.to_string() };
        match failure {
            CommandFailure::Ring(source) => ControlError::Ring { source },
            CommandFailure::TimeOver => {
                let seconds = self.time_max.as_secs();
                ControlError::TimeOver { action: action.name, device, seconds, hint: action.hint }
            }
            CommandFailure::Refused(source) if source.raw_os_error() == Some(libc::EPERM) => {
                ControlError::Permission { action: action.name, source }
            }
            CommandFailure::Refused(source) => ControlError::Refused { action: action.name, device, source },
        }
    }
}

impl ControlError {
    /// Whether the driver does not know the device.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)))
    }

    /// Whether somebody else serves the device, or what is left of who did is not gone yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Refused { source, .. } | Self::Open { source, .. } => source.raw_os_error() == Some(libc::EBUSY),
            _ => false,
        }
    }
}

/// Whether a device of these flags waits for its next server, which gets what was in flight again.
fn survives(flags: u64) -> bool {
    Features::from_bits(flags).survival_flags() != 0
}

/// The handle of a device that nobody serves. A daemon that is not root waits until udev has given it the file.
fn open_handle(info: &sys::ublksrv_ctrl_dev_info) -> Result<Device, ControlError> {
    let path = character_path(info.dev_id);
    let opened = awaited_file::open(&path, OpenOptions::new().read(true).write(true), UDEV_TIME_MAX);
    let file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            ControlError::Permission { action: "open /dev/ublkc*, which udev gave to nobody else within 5 s", source }
        }
        _ => ControlError::Open { path: path.display().to_string(), source },
    })?;
    Ok(Device {
        file,
        id: info.dev_id,
        queue_count: info.nr_hw_queues,
        queue_depth: info.queue_depth,
        io_bytes_max: info.max_io_buf_bytes,
        is_recoverable: survives(info.flags),
        can_quiesce: Features::from_bits(info.flags).has_quiesce(),
    })
}

impl From<u16> for DeviceState {
    fn from(state: u16) -> Self {
        match u32::from(state) {
            sys::UBLK_S_DEV_DEAD => Self::Dead,
            sys::UBLK_S_DEV_LIVE => Self::Live,
            sys::UBLK_S_DEV_QUIESCED => Self::Quiesced,
            sys::UBLK_S_DEV_FAIL_IO => Self::FailIo,
            _ => Self::Unknown(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_driver_names_the_way_out() {
        let error = Control::open_at(Path::new("/nonexistent/ublk-control")).expect_err("there is no such file");
        assert!(matches!(error, ControlError::Missing));
        let message = error.to_string();
        assert!(message.contains("modprobe ublk_drv") && message.contains("NBD"), "{message}");
    }

    #[test]
    fn file_that_is_no_driver_is_refused_and_not_waited_for() {
        // /dev/null takes no commands: the kernel answers EOPNOTSUPP.
        let error = Control::open_at(Path::new("/dev/null")).expect_err("it is no driver");
        assert!(matches!(error, ControlError::TooOld { .. }), "{error}");
    }

    #[test]
    fn errors_of_devices_that_are_gone_or_served_are_told_apart() {
        let refused = |errno| ControlError::Refused {
            action: "begin the recovery of",
            device: "7".to_owned(),
            source: io::Error::from_raw_os_error(errno),
        };
        assert!(refused(libc::ENODEV).is_gone() && refused(libc::EINVAL).is_gone() && !refused(libc::EBUSY).is_gone());
        assert!(refused(libc::EBUSY).is_busy() && !refused(libc::ENODEV).is_busy());
        let path = "/dev/ublkc7".to_owned();
        assert!(ControlError::Open { path, source: io::Error::from_raw_os_error(libc::EBUSY) }.is_busy());
    }

    #[test]
    fn states_of_the_driver_are_known() {
        let states = [0, 1, 2, 3, 9].map(DeviceState::from);
        let wanted =
            [DeviceState::Dead, DeviceState::Live, DeviceState::Quiesced, DeviceState::FailIo, DeviceState::Unknown(9)];
        assert_eq!(states, wanted);
    }
}
