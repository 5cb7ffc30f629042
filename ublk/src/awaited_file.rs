//! Files that udev gives to another user a moment after the kernel made them: `/dev/ublkcN`, a file of `/sys`.
//!
//! The driver answers that a device was added while udev may not have heard of it, and the file is root's until udev has
//! applied its rules. Who is not root has to wait for that.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// How long udev may take: it has a queue, and a host that starts has much in it.
pub const UDEV_TIME_MAX: Duration = Duration::from_secs(5);
/// The file is tried again after this time also when nothing is told of it: not every file system tells.
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// Memory for events, in bytes. What they say does not matter.
const EVENT_BYTES: usize = 4096;

/// Opens a file. While that is not permitted, waits until its owner or mode change, `time_max` at most.
///
/// # Errors
/// What the kernel answers at the last try; anything but a missing permission at once.
pub fn open(path: &Path, options: &OpenOptions, time_max: Duration) -> io::Result<File> {
    let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    match options.open(path) {
        Err(error) if is_denied(&error) => {}
        result => return result,
    }
    let end = Instant::now() + time_max;
    // Without it there are the looks.
    let events = path.parent().and_then(|directory| events_of(directory).ok());
    loop {
        // Behind the watch's beginning, so that no change is missed.
        match options.open(path) {
            Err(error) if is_denied(&error) && Instant::now() < end => {}
            result => return result,
        }
        let rest = end.saturating_duration_since(Instant::now());
        await_event(events.as_ref(), rest.min(LOOK_PERIOD));
    }
}

/// Tells of new owners and modes in a directory. The file itself may be watched only by who may read it.
fn events_of(directory: &Path) -> io::Result<OwnedFd> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&events, directory, WatchFlags::ATTRIB | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    Ok(events)
}

/// Returns at an event, or after `time_max`; without events, after that.
fn await_event(events: Option<&OwnedFd>, time_max: Duration) {
    let Some(events) = events else {
        std::thread::sleep(time_max);
        return;
    };
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(time_max.subsec_nanos()) };
    // An error ends the wait: the caller looks, and comes back.
    let is_told = poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&timeout)).is_ok_and(|count| count > 0);
    if is_told {
        let mut memory = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut reader = inotify::Reader::new(events.as_fd(), &mut memory);
        while reader.next().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_denied_is_told_at_once() {
        let mut options = OpenOptions::new();
        options.read(true);
        // Would be waited for beyond the test's patience.
        let time_max = Duration::from_secs(3600);
        let error = open(Path::new("/nonexistent/file"), &options, time_max).expect_err("there is no such file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(open(Path::new("/dev/null"), &options, time_max).is_ok());
    }

    #[test]
    fn wait_for_an_event_ends_with_one() {
        let directory = std::env::temp_dir().join(format!("rok-ublk-awaited-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("space");
        let events = events_of(&directory).expect("inotify");
        let file = File::create(directory.join("file")).expect("space");
        // The event is there already: without it, this would take an hour.
        await_event(Some(&events), Duration::from_millis(999));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        file.set_permissions(mode).expect("it is ours");
        await_event(Some(&events), Duration::from_millis(999));
        std::fs::remove_dir_all(&directory).expect("it is there");
    }
}
