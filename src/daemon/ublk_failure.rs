//! What the refusals of the ublk driver mean to a user: their kinds, and the ways out.

use rok_ublk::ControlError;

use super::kernel_nbd;
use crate::error::{Error, ErrorKind};

/// Where the driver says how many devices it allows.
const LIMIT_PATH: &str = "/sys/module/ublk_drv/parameters/ublks_max";
const NBD: &str = "connect over NBD, which needs no driver here: rok-blk exports lists the addresses";
/// Where the other driver is there.
const KERNEL_NBD: &str = "attach it by the kernel's NBD client, which is there: rok-blk attach --nbd";

/// The failure of a command with a sentence and a hint.
pub(super) fn failure(error: ControlError) -> Error {
    let new = |kind, message: String, hint: String| Error::new(kind, message).with_hint(hint);
    let other = if matches!(error, ControlError::Missing) && kernel_nbd::is_available() { KERNEL_NBD } else { NBD };
    let told = match &error {
        ControlError::Missing => new(
            ErrorKind::Unsupported,
            "This host has no /dev/ublk-control: its kernel has no ublk driver, or has not loaded it".to_owned(),
            format!(
                "Run modprobe ublk_drv as root (Linux 6.5 or newer with CONFIG_BLK_DEV_UBLK; Debian 12 has such a kernel \
                 as linux-image-6.12 in its security updates and backports). In a container, let it have the device. Or \
                 {other}"
            ),
        ),
        ControlError::Permission { action, source } => new(
            ErrorKind::Permission,
            format!("The ublk driver does not let this daemon {action}: {source}"),
            format!(
                "Run the daemon as root, or with CAP_SYS_ADMIN as the user to whom the udev rule 60-rok-blk.rules gives \
                 /dev/ublk-control and /dev/ublkc*; a container also needs both. Or {NBD}"
            ),
        ),
        ControlError::TooOld { features } => new(
            ErrorKind::Unsupported,
            format!("The ublk driver of this kernel is too old (features: {features})"),
            format!("Boot Linux 6.5 or newer, or {NBD}"),
        ),
        ControlError::Ring { source } => new(
            ErrorKind::Unsupported,
            format!("The ublk driver takes its commands by io_uring, which is refused: {source}"),
            format!("Allow io_uring (sysctl kernel.io_uring_disabled=0; a container's seccomp profile), or {NBD}"),
        ),
        ControlError::Parameters(parameters) => {
            new(ErrorKind::Usage, parameters.to_string(), "See --queues and --depth of rok-blk attach".to_owned())
        }
        ControlError::Refused { action: "add", source, .. }
            if matches!(source.raw_os_error(), Some(libc::EACCES | libc::ENOSPC)) =>
        {
            too_many(source)
        }
        ControlError::Refused { action: "add", device, source } if source.raw_os_error() == Some(libc::EEXIST) => new(
            ErrorKind::Exists,
            format!("There is a ublk device {device} already"),
            "Name another number with --id, or none".to_owned(),
        ),
        ControlError::OtherMode { .. } => new(
            ErrorKind::Unsupported,
            error.to_string(),
            "Start the version that made it, or take it away with rok-blk detach --force and attach the volume anew"
                .to_owned(),
        ),
        ControlError::TimeOver { action, device, seconds, hint } => new(
            ErrorKind::TimedOut,
            format!("The ublk driver did not {action} device {device} within {seconds} s"),
            format!("Probably {hint}; see the kernel's log (dmesg) and that of the daemon"),
        ),
        ControlError::Open { .. } | ControlError::Refused { .. } => {
            new(ErrorKind::Other, error.to_string(), "See the kernel's log (dmesg)".to_owned())
        }
    };
    told.with_source(error)
}

/// The driver's limit of devices is reached: on Linux 6.3 to 6.14 it counts those of everybody.
fn too_many(source: &std::io::Error) -> Error {
    let limit = std::fs::read_to_string(LIMIT_PATH);
    let limit = limit.map_or_else(|_| "its limit".to_owned(), |limit| format!("ublks_max = {}", limit.trim()));
    Error::new(ErrorKind::NoSpace, format!("The ublk driver allows no more devices ({limit}): {source}")).with_hint(
        format!("Detach one (rok-blk devices lists ours), or allow more: write a larger number to {LIMIT_PATH}"),
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused(action: &'static str, errno: i32) -> Error {
        let source = io::Error::from_raw_os_error(errno);
        failure(ControlError::Refused { action, device: "7".to_owned(), source })
    }

    #[test]
    fn each_refusal_has_its_kind_and_a_way_out() {
        let no_permission =
            ControlError::Permission { action: "add", source: io::Error::from_raw_os_error(libc::EPERM) };
        let cases = [
            (failure(ControlError::Missing), ErrorKind::Unsupported, "modprobe ublk_drv"),
            (failure(no_permission), ErrorKind::Permission, "CAP_SYS_ADMIN"),
            (failure(ControlError::TooOld { features: "0x0".to_owned() }), ErrorKind::Unsupported, "NBD"),
            (refused("add", libc::EACCES), ErrorKind::NoSpace, "ublks_max"),
            (refused("add", libc::EEXIST), ErrorKind::Exists, "--id"),
            (failure(ControlError::OtherMode { device: 7 }), ErrorKind::Unsupported, "detach --force"),
            (refused("start", libc::EACCES), ErrorKind::Other, "dmesg"),
        ];
        for (error, kind, word) in cases {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains(word)), "{error} names {word}");
        }
    }
}
