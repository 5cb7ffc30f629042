//! What the control side does when something is wrong, against the real driver. Run as root on a kernel with ublk.
//!
//! Prints a line for each case; ends with an error at the first that fails.

#![expect(clippy::print_stdout, reason = "a program for people and scripts")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rok_ublk::control::DeviceState;
use rok_ublk::{Control, ControlError, DeviceParameters, Prefix, Queue, QueueError, ring};

type Failure = Box<dyn Error>;
type Case = fn() -> Result<(), Failure>;

/// Bound of the commands that are expected to overrun it.
const SHORT: Duration = Duration::from_secs(1);
/// No case may take longer, cancellation included.
const CASE_TIME_MAX: Duration = Duration::from_secs(10);
const PARAMETERS: DeviceParameters = DeviceParameters::new(64 << 20);

fn main() -> Result<(), Failure> {
    let cases: [(&str, Case); 5] = [
        ("start of a device that nobody serves ends", start_unserved),
        ("a number that is taken is refused", add_twice),
        ("delete waits for the handle and no longer than allowed", delete_held),
        ("a device that is not there has no state", state_of_missing),
        ("commands of a second server of a queue are refused", serve_twice),
    ];
    for (name, case) in cases {
        let started = Instant::now();
        case().map_err(|error| format!("{name}: {error}"))?;
        if started.elapsed() > CASE_TIME_MAX {
            return Err(format!("{name}: took {:?}", started.elapsed()).into());
        }
        println!("{name}");
    }
    Ok(())
}

fn start_unserved() -> Result<(), Failure> {
    let control = Control::open()?;
    let device = control.add(None, &PARAMETERS)?;
    let id = device.id();
    let started = Control::open()?.with_time_max(SHORT).start(&device);
    if !matches!(started, Err(ControlError::TimeOver { .. })) {
        return Err(format!("start gave {started:?}").into());
    }
    expect(control.state(id)? == DeviceState::Dead, "the device is live")?;
    control.stop(id)?;
    drop(device);
    control.delete(id)?;
    expect_gone(&control, id)
}

fn add_twice() -> Result<(), Failure> {
    let control = Control::open()?;
    let device = control.add(Some(7), &PARAMETERS)?;
    expect(device.id() == 7, "another number was given")?;
    let again = control.add(Some(7), &PARAMETERS);
    let Err(ControlError::Refused { source, .. }) = again else { return Err("the number was given twice".into()) };
    expect(source.raw_os_error() == Some(libc::EEXIST), "another error number")?;
    drop(device);
    control.delete(7)?;
    expect_gone(&control, 7)
}

fn delete_held() -> Result<(), Failure> {
    let control = Control::open()?;
    let device = control.add(None, &PARAMETERS)?;
    let id = device.id();
    let deleted = Control::open()?.with_time_max(SHORT).delete(id);
    if !matches!(deleted, Err(ControlError::TimeOver { .. })) {
        return Err(format!("delete gave {deleted:?}").into());
    }
    drop(device);
    expect_gone(&control, id)
}

fn state_of_missing() -> Result<(), Failure> {
    expect_gone(&Control::open()?, 4242)
}

fn serve_twice() -> Result<(), Failure> {
    let control = Control::open()?;
    let device = Arc::new(control.add(None, &PARAMETERS)?);
    let id = device.id();
    let mut ring = ring::build(&ring::Setup { submission_entries: 256, completion_entries: 512 })?;
    let mut first = Queue::new(Arc::clone(&device), 0, Prefix::new(1))?;
    let mut second = Queue::new(Arc::clone(&device), 0, Prefix::new(2))?;
    expect(first.submit(&mut ring) + second.submit(&mut ring) == 0, "the ring has no room")?;
    let depth = usize::from(device.queue_depth());
    let mut refused_count = 0;
    while refused_count < depth {
        ring::enter(&mut ring, 1, Some(CASE_TIME_MAX))?;
        let completions: Vec<_> = ring.completion().collect();
        expect(!completions.is_empty(), "the second server got no answer")?;
        for completion in completions {
            let answer = second.on_completion(completion.user_data(), completion.result());
            expect(matches!(answer, Err(QueueError::Command { .. })), "a second server was accepted")?;
            refused_count += 1;
        }
    }
    expect(second.is_ended() && !first.is_ended(), "the wrong queue ended")?;
    control.stop(id)?;
    while !first.is_ended() {
        ring::enter(&mut ring, 1, Some(CASE_TIME_MAX))?;
        let completions: Vec<_> = ring.completion().collect();
        expect(!completions.is_empty(), "the first server got no answer")?;
        for completion in completions {
            first.on_completion(completion.user_data(), completion.result())?;
        }
    }
    drop((first, second, ring, device));
    control.delete(id)?;
    expect_gone(&control, id)
}

fn expect_gone(control: &Control, id: u32) -> Result<(), Failure> {
    expect(matches!(control.state(id), Err(ControlError::Refused { .. })), "the device is still there")
}

fn expect(is_true: bool, otherwise: &'static str) -> Result<(), Failure> {
    if is_true { Ok(()) } else { Err(otherwise.into()) }
}
