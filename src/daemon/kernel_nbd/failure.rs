//! What the refusals of the NBD driver mean to a user: their kinds, and the ways out.

use super::disk::block_path;
use super::driver::DriverError;
use crate::error::{Error, ErrorKind};

/// The failure of a command with a sentence and a hint.
pub(super) fn failure(error: DriverError) -> Error {
    let new = |kind, message: String, hint: &str| Error::new(kind, message).with_hint(hint);
    let told = match &error {
        DriverError::Missing => new(
            ErrorKind::Unsupported,
            "This kernel's NBD client is not there, or is not loaded: netlink knows no family nbd".to_owned(),
            "Run modprobe nbd as root (Linux 5.14 or newer with CONFIG_BLK_DEV_NBD). In a container, run the daemon in the \
             network namespace of the host. Or attach it without --nbd, by ublk",
        ),
        DriverError::TooOld => new(
            ErrorKind::Unsupported,
            "The NBD client of this kernel does not keep whose a disk is".to_owned(),
            "Boot Linux 5.14 or newer, or connect with nbd-client: rok-blk exports lists the addresses",
        ),
        DriverError::Netlink(_) => new(
            ErrorKind::Unsupported,
            format!("The kernel's NBD client takes its commands by netlink, and that fails: {error}"),
            "Let the daemon have it (AF_NETLINK in RestrictAddressFamilies= of its unit, or a container's profile)",
        ),
        DriverError::Taken(number) => new(
            ErrorKind::Exists,
            format!("{} is in use by another program", block_path(*number).display()),
            "Name another number with --id, or none",
        ),
        DriverError::HasConnection(number) => new(
            ErrorKind::Busy,
            format!("{} is still with the daemon before, or another one serves it", block_path(*number).display()),
            "See that no other daemon runs, and the kernel's log (dmesg)",
        ),
        DriverError::Refused { source, .. } if source.raw_os_error() == Some(libc::EPERM) => new(
            ErrorKind::Permission,
            format!("The kernel's NBD client does not let this daemon have disks: {source}"),
            "Run the daemon as root or with CAP_SYS_ADMIN, outside of user namespaces",
        ),
        DriverError::Refused { .. } => new(ErrorKind::Other, capitalized(&error), "See the kernel's log (dmesg)"),
    };
    told.with_source(error)
}

fn capitalized(error: &DriverError) -> String {
    let text = error.to_string();
    text.strip_prefix("the ").map_or_else(|| text.clone(), |rest| format!("The NBD {rest}"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_refusal_has_its_kind_and_a_way_out() {
        let refused =
            |errno| DriverError::Refused { action: "make", number: 7, source: io::Error::from_raw_os_error(errno) };
        let cases = [
            (DriverError::Missing, ErrorKind::Unsupported, "modprobe nbd"),
            (DriverError::TooOld, ErrorKind::Unsupported, "nbd-client"),
            (DriverError::Netlink("no".to_owned()), ErrorKind::Unsupported, "AF_NETLINK"),
            (DriverError::Taken(7), ErrorKind::Exists, "--id"),
            (DriverError::HasConnection(7), ErrorKind::Busy, "daemon"),
            (refused(libc::EPERM), ErrorKind::Permission, "CAP_SYS_ADMIN"),
            (refused(libc::EINVAL), ErrorKind::Other, "dmesg"),
        ];
        for (error, kind, word) in cases {
            let error = failure(error);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains(word)), "{error} names {word}");
            assert!(error.message().starts_with(['T', '/']), "{error}");
        }
    }
}
