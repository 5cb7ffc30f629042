//! What the control side does when something is wrong, against the real driver. Run as root on a kernel with ublk.
//!
//! Prints what the driver can do, then a line for each case; ends with an error at the first that fails.

#![expect(clippy::print_stdout, reason = "a program for people and scripts")]

use std::error::Error;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rok_ublk::control::DeviceState;
use rok_ublk::{Control, ControlError, Device, DeviceParameters, Prefix, Queue, QueueError, RequestKind, ring};

type Failure = Box<dyn Error>;
type Case = fn() -> Result<(), Failure>;

/// Bound of the commands that are expected to overrun it.
const SHORT: Duration = Duration::from_secs(1);
/// No case may take longer, cancellation included.
const CASE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a server waits for requests before it looks whether it is to end.
const TURN_TIME_MAX: Duration = Duration::from_millis(20);
/// What tells the device of a case from those of others.
const IDENTITY: u64 = 0x0123_4567_89ab_cdef;
const PARAMETERS: DeviceParameters = DeviceParameters::new(64 << 20);

fn main() -> Result<(), Failure> {
    let cases: [(&str, Case); 6] = [
        ("start of a device that nobody serves ends", start_unserved),
        ("a number that is taken is refused", add_twice),
        ("delete waits for the handle and no longer than allowed", delete_held),
        ("a device that is not there has no state", state_of_missing),
        ("commands of a second server of a queue are refused", serve_twice),
        ("a device outlives its servers, one in the middle of its recovery", survive),
    ];
    println!("{}", Control::open()?.features()?);
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
    let device = control.add(None, &PARAMETERS, None)?;
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
    let device = control.add(Some(7), &PARAMETERS, None)?;
    expect(device.id() == 7, "another number was given")?;
    let again = control.add(Some(7), &PARAMETERS, None);
    let Err(ControlError::Refused { source, .. }) = again else { return Err("the number was given twice".into()) };
    expect(source.raw_os_error() == Some(libc::EEXIST), "another error number")?;
    drop(device);
    control.delete(7)?;
    expect_gone(&control, 7)
}

fn delete_held() -> Result<(), Failure> {
    let control = Control::open()?;
    let device = control.add(None, &PARAMETERS, None)?;
    let id = device.id();
    let deleted = Control::open()?.with_time_max(SHORT).delete(id);
    if !matches!(deleted, Err(ControlError::TimeOver { .. })) {
        return Err(format!("delete gave {deleted:?}").into());
    }
    drop(device);
    await_gone(&control, id)
}

fn state_of_missing() -> Result<(), Failure> {
    expect_gone(&Control::open()?, 4242)
}

fn serve_twice() -> Result<(), Failure> {
    let control = Control::open()?;
    let device = Arc::new(control.add(None, &PARAMETERS, None)?);
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

/// Two queues where the driver gives them, so that a recovery can break off with one served and the other not.
fn survive() -> Result<(), Failure> {
    let control = Control::open()?;
    let device = Arc::new(control.add(None, &DeviceParameters { queue_count: 2, ..PARAMETERS }, Some(IDENTITY))?);
    let (id, queues) = (device.id(), device.queue_count());
    expect(device.is_recoverable(), "it does not outlive its server")?;
    let server = Server::start(device, 0..queues)?;
    control.start(&server.device)?;
    let path = server.device.block_path();
    read_first_block(&path)?;
    server.end()?;
    let info = control.info(id)?;
    expect(info.identity == IDENTITY && info.is_recoverable, "the driver forgot what it was")?;
    // Its requests wait.
    let reader = thread::spawn(move || read_first_block(&path).map_err(|error| error.to_string()));
    for served in [0..0, 0..1, 0..queues] {
        Server::start(Arc::new(control.recover(id, CASE_TIME_MAX)?), served)?.end()?;
        expect(control.state(id)? == DeviceState::Quiesced, "it does not wait for a server")?;
    }
    let server = Server::start(Arc::new(control.recover(id, CASE_TIME_MAX)?), 0..queues)?;
    control.finish_recovery(&server.device)?;
    reader.join().map_err(|_| "the reader panicked")??;
    expect(control.state(id)? == DeviceState::Live, "it is not live")?;
    control.stop(id)?;
    server.end()?;
    control.delete(id)?;
    expect_gone(&control, id)
}

fn read_first_block(path: &Path) -> Result<(), Failure> {
    let mut block = [1; 4096];
    File::open(path)?.read_exact(&mut block)?;
    expect(block == [0; 4096], "it does not read zeros")
}

/// A thread that serves some queues of a device with zeros, until it is told to end.
struct Server {
    device: Arc<Device>,
    ending: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Server {
    /// Returns when the commands of the queues are in the kernel.
    fn start(device: Arc<Device>, queues: Range<u16>) -> Result<Self, Failure> {
        let ending = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = mpsc::channel();
        let (own, flag) = (Arc::clone(&device), Arc::clone(&ending));
        let work = move || serve_zeros(&own, queues, &flag, &ready).map_err(|error| error.to_string());
        let thread = thread::spawn(work);
        is_ready.recv().map_err(|_| "a server did not start")?;
        Ok(Self { device, ending, thread })
    }

    /// Ends it as a crash does: its commands are in the kernel.
    fn end(self) -> Result<(), Failure> {
        self.ending.store(true, Ordering::Release);
        self.thread.join().map_err(|_| "a server panicked")??;
        Ok(())
    }
}

fn serve_zeros(
    device: &Arc<Device>,
    queues: Range<u16>,
    ending: &AtomicBool,
    ready: &mpsc::Sender<()>,
) -> Result<(), Failure> {
    let mut ring = ring::build(&ring::Setup { submission_entries: 512, completion_entries: 1024 })?;
    let queues: Result<Vec<Queue>, QueueError> =
        queues.map(|queue| Queue::new(Arc::clone(device), queue, Prefix::new(queue))).collect();
    let mut queues = queues?;
    while !ending.load(Ordering::Acquire) {
        for queue in &mut queues {
            expect(queue.submit(&mut ring) == 0, "the ring has no room")?;
        }
        ring::enter(&mut ring, 0, None)?;
        // Nobody waits any more for one that is told to end.
        let _is_awaited = ready.send(()).is_ok();
        ring::enter(&mut ring, 1, Some(TURN_TIME_MAX))?;
        let completions: Vec<_> = ring.completion().collect();
        for completion in completions {
            let owner = queues.iter_mut().find(|queue| queue.owns(completion.user_data()));
            let queue = owner.ok_or("a completion of nobody")?;
            let Some(request) = queue.on_completion(completion.user_data(), completion.result())? else { continue };
            if request.kind == RequestKind::Read {
                queue.write_data(request.tag, 0, &vec![0; usize::try_from(request.len_bytes)?])?;
            }
            queue.complete(request.tag, Ok(()))?;
        }
    }
    Ok(())
}

/// Newer drivers let go of a device a moment after its handle was closed, and tell nobody.
fn await_gone(control: &Control, id: u32) -> Result<(), Failure> {
    let end = Instant::now() + CASE_TIME_MAX;
    while control.state(id).is_ok() && Instant::now() < end {
        thread::sleep(TURN_TIME_MAX);
    }
    expect_gone(control, id)
}

fn expect_gone(control: &Control, id: u32) -> Result<(), Failure> {
    expect(matches!(control.state(id), Err(ControlError::Refused { .. })), "the device is still there")
}

fn expect(is_true: bool, otherwise: &'static str) -> Result<(), Failure> {
    if is_true { Ok(()) } else { Err(otherwise.into()) }
}
