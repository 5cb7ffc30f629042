//! What keeps disks served while the host is short of memory.
//!
//! The kernel makes room by writing what is dirty, also what belongs to a file system on one of our disks, and that memory is
//! free only when the daemon has stored it. So the daemon must not wait for memory in that way itself:
//!
//! - its threads are *IO flushers*: memory that the kernel needs on their behalf is never made free by such writes,
//! - its memory is locked, so that nothing of it has to be read back first, perhaps from swap on one of its own disks,
//! - it is the last that the kernel kills. Not never: in a control group with a limit of its own a daemon that cannot be killed
//!   would stop, where a killed one is started again and takes its disks over.
//!
//! All memory is locked, that of the metadata store too: a read may need it to find its blocks. What its caches may take has
//! bounds ([`super::DaemonOptions`]), and what was never used is not locked, so that this costs nothing but swap.
//!
//! What is refused is told when the first disk is there; all else goes on without.

use std::fs;
use std::io;
use std::sync::Once;

use rok_ublk::ring;

use super::host;

/// Where a process says how soon it is killed when memory is out.
const KILL_ORDER: &str = "/proc/self/oom_score_adj";
/// The last value before never.
const KILLED_LAST: i32 = -999;

/// When the daemon's memory is locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLock {
    /// As soon as there is a disk of this host.
    #[default]
    WithDisks,
    /// Never: it may be swapped out, and a disk with swap on it, or under memory pressure, may stop for ever.
    Never,
}

/// Marks the calling thread and all that come from it. To be called before there are others, since each can be marked by itself
/// only: the metadata store starts some.
pub fn mark_threads() {
    if let Err(error) = ring::become_io_flusher() {
        tracing::debug!(%error, "threads are not marked as those that serve disks");
    }
}

/// Prepares a process for disks, once.
#[derive(Debug)]
pub(super) struct ShortMemory {
    lock: MemoryLock,
    prepared: Once,
}

impl ShortMemory {
    /// Nothing is prepared yet.
    pub(super) const fn new(lock: MemoryLock) -> Self {
        Self { lock, prepared: Once::new() }
    }

    /// To be called when there is to be a disk. From the second time on it does nothing.
    pub(super) fn prepare(&self) {
        self.prepared.call_once(|| {
            let warnings = [thread_warning(), kill_order_warning(), lock_warning(self.lock)];
            warnings.iter().flatten().for_each(|warning| tracing::warn!("{warning}"));
        });
    }
}

/// Threads are marked when the process begins; this one is a later one.
fn thread_warning() -> Option<String> {
    match ring::is_io_flusher() {
        Ok(true) => None,
        Ok(false) | Err(_) => Some(
            "Where memory is short, this daemon may wait for its own disks: its threads are not marked as IO flushers, which \
             takes the capability CAP_SYS_RESOURCE (systemd: CapabilityBoundingSet=, AmbientCapabilities=)"
                .to_owned(),
        ),
    }
}

fn kill_order_warning() -> Option<String> {
    let error = put_last().err()?;
    Some(format!(
        "Where memory is out, the kernel may kill this daemon before others: {KILL_ORDER} was not set to {KILLED_LAST} \
         ({error}), which takes the capability CAP_SYS_RESOURCE (systemd: OOMScoreAdjust={KILLED_LAST})"
    ))
}

fn put_last() -> io::Result<()> {
    // Who started the process may have said the same, or never.
    let is_last = fs::read_to_string(KILL_ORDER)?.trim().parse::<i32>().is_ok_and(|now| now <= KILLED_LAST);
    if is_last { Ok(()) } else { fs::write(KILL_ORDER, KILLED_LAST.to_string()) }
}

fn lock_warning(lock: MemoryLock) -> Option<String> {
    if lock == MemoryLock::Never {
        return None;
    }
    // A process that locks what it will have, and has a limit, gets no memory beyond: so it is all or nothing.
    let locked = host::lift_memory_lock_limit().and_then(|()| host::lock_memory());
    let error = locked.err()?;
    let limit = host::memory_lock_limit().map_or_else(|_| "unknown".to_owned(), |bytes| format!("{bytes} bytes"));
    Some(format!(
        "Where memory is short, this daemon may have to be read back from swap before it serves its disks: its memory is not \
         locked ({error}; RLIMIT_MEMLOCK is {limit}). That takes no limit (ulimit -l unlimited, systemd: \
         LimitMEMLOCK=infinity) or the capability CAP_SYS_RESOURCE; --swappable goes without, and without this warning"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_no_locked_memory_is_not_warned_of_its_lack() {
        assert_eq!(lock_warning(MemoryLock::Never), None);
    }

    // Twice, since the second finds what the first has set, whoever may.
    #[test]
    fn process_is_put_last_or_the_capability_is_named() {
        let warnings = [kill_order_warning(), kill_order_warning()];
        let now = fs::read_to_string(KILL_ORDER).expect("each process has one");
        let is_last = now.trim() == "-999" || now.trim() == "-1000";
        for warning in warnings {
            assert_eq!(warning.is_none(), is_last);
            assert!(warning.is_none_or(|warning| warning.contains("CAP_SYS_RESOURCE")));
        }
    }
}
