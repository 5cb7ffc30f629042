//! A stand-in for the servers of a device whose recovery broke off.
//!
//! When a server dies in the middle of a recovery, some queues of the device may have had a server since the recovery
//! began, and others none. The driver of 6.12 takes for granted that each had one when the next recovery begins, and follows a
//! null pointer. So a thread serves those that had none, for as long as it takes to fetch all their tags, and ends.
//!
//! Queues that had a server refuse it, which in the ordinary case is all that happens. Requests do not come to it: they
//! wait until the end of the recovery. All its commands go to the kernel at once, so that a kill finds it before or
//! behind them.

use std::io;
use std::thread;

use libublk_rs_sys as sys;

use crate::device::Device;
use crate::queue::entry_of;
use crate::ring::{self, SUBMISSION_ENTRIES_MAX, Setup};

/// Stands in where that is needed. The handle is closed a moment after this returns.
///
/// # Errors
/// When there is no thread or no ring.
pub(crate) fn visit(device: Device) -> io::Result<()> {
    let work = move || fetch_everything(&device);
    let thread = thread::Builder::new().name("ublk-stand-in".to_owned()).spawn(work)?;
    thread.join().map_err(|_| io::Error::other("a thread panicked"))?
}

fn fetch_everything(device: &Device) -> io::Result<()> {
    let count = u32::from(device.queue_count) * u32::from(device.queue_depth);
    let submission_entries = count.clamp(1, SUBMISSION_ENTRIES_MAX);
    let setup = Setup { submission_entries, completion_entries: submission_entries };
    let mut ring = ring::build(&setup).map_err(io::Error::other)?;
    for queue in 0..device.queue_count {
        for tag in 0..device.queue_depth {
            let command = sys::ublksrv_io_cmd { q_id: queue, tag, result: 0, addr: 0 };
            let entry = entry_of(device, sys::UBLK_U_IO_FETCH_REQ, command);
            // SAFETY: the entry names no memory; the file outlives the ring.
            unsafe { ring::push(&mut ring, &entry) }?;
        }
    }
    // What is refused is back at once; the rest comes back with the end of the ring. Nobody needs to know which.
    ring::enter(&mut ring, 0, None)
}
