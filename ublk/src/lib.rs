//! ublk devices (`/dev/ublkbN`) whose commands share one io_uring with all other I/O of a thread.
//!
//! Knows nothing of the engine. Read in this order: [`ring`] (the ring of a thread and how it is entered),
//! [`user_data`] (who owns which completion), [`control`] (make, start, stop and delete a device; blocking, never on
//! the thread that serves it), [`queue`] (serve a queue's requests), [`request`] (what a request says).
//!
//! # Why libublk's lower layer
//!
//! The structures and numbers come from `libublk-rs-sys`, the lower layer of libublk. Its upper layer (0.4.8) cannot
//! share a ring with other I/O, nor serve two queues with one ring:
//!
//! - creating its queue object registers the ring's table of fixed files for itself, with the device as file 0. A ring
//!   has one such table, so a second queue, or files that somebody else registered, make it fail with `EBUSY`;
//! - its loop takes every completion off the ring, and only that loop may keep the queue's books: nobody else
//!   can hand it a completion;
//! - it decides about all 64 bits of `user_data`;
//! - when the submission queue is full and the kernel refuses an `io_uring_enter`, it panics.
//!
//! What remains of it is a thread-local slot for a ring, which needs no library. So [`ring`] has the slot,
//! [`queue`] builds the driver's I/O commands itself, and whoever owns the thread owns the loop.
//!
//! Its control side is not used either: its control ring lives in the thread that made it (calls from another
//! thread panic), waits have no bound, and it writes state files of its own. The commands are few, see [`control`].
//!
//! # Size of a submission entry
//!
//! An I/O command carries 16 bytes (`ublksrv_io_cmd`), which is the command area of an ordinary 64-byte entry. A
//! control command carries 32 bytes (`ublksrv_ctrl_cmd`) and needs a ring of 128-byte entries. The two therefore
//! never share a ring, and the shared ring stays one of 64-byte entries.

pub mod awaited_file;
mod command;
pub mod control;
pub mod device;
pub mod features;
mod mapping;
pub mod parameters;
pub mod queue;
pub mod request;
pub mod ring;
mod stand_in;
pub mod user_data;

pub use control::{Control, ControlError};
pub use device::Device;
pub use features::Features;
pub use io_uring;
pub use parameters::{DeviceParameters, ParameterError};
pub use queue::{Queue, QueueError};
pub use request::{Request, RequestKind};
pub use ring::RingError;
pub use user_data::Prefix;
