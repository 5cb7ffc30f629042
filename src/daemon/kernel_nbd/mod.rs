//! Disks by the kernel's NBD client, `/dev/nbdN`, for hosts without ublk.
//!
//! The driver is told by netlink what to connect to ([`driver`]), and gets one end of a pair of sockets whose other end a
//! lane serves. When a connection is lost, the driver keeps the requests of the disk and waits for another one, which a
//! thread for each disk gives it ([`attached`]); when the daemon ends, the next daemon does ([`restoration`]). What the
//! driver has under a number, the kernel tells in files ([`disk`]): a disk of somebody else is never touched.

mod attached;
mod disk;
mod driver;
mod failure;
mod message;
mod restoration;
mod table;

pub(super) use attached::NbdAttached;
pub(super) use disk::{block_path, state_unserved};
pub(super) use driver::is_available;
pub(super) use table::NbdAttachments;
