//! The threads of a server: its lanes and those beside them.

use super::alarm::Alarm;
use super::blocking::LaneJobs;
use super::driver::{Driver, LaneDisk, Readiness, Uring};
use super::io_method::{IoMethod, RING};
use super::limits::{BLOCKING_THREADS, TRANSFER_THREADS};
use super::mailbox::Message;
use super::priority::work_in_background;
use super::server::{ServerOptions, Shared};
use super::thread::{DISK, Lane, LaneParts};
use crate::disk::{FileDevice, ThreadDisk, UringDisk};
use crate::error::{Error, ErrorKind, IoError, Result};
use crate::pool::Pool;
use crate::units::LaneIndex;
use crate::volume::{Engine, EngineParts, RangeLocks};
use async_executor::LocalExecutor;
use rok_ublk::ring;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// Threads of a running server.
pub(super) struct Threads {
    pub lanes: Vec<JoinHandle<std::io::Result<()>>>,
    /// Each lane says here that it is over.
    pub lane_ends: mpsc::Receiver<()>,
    pub blocking: Vec<JoinHandle<()>>,
    pub checkpoint: JoinHandle<()>,
    pub cleaner: Option<JoinHandle<()>>,
    pub trimmer: JoinHandle<()>,
}

pub(super) fn spawn_threads(pool: &Arc<Pool>, shared: &Arc<Shared>, options: &ServerOptions) -> Result<Threads> {
    let locks = Arc::new(RangeLocks::new(pool.lane_count()));
    let (end, lane_ends) = mpsc::channel();
    let mut lanes = Vec::new();
    for index in (0..).map(LaneIndex::new).take(pool.lane_count()) {
        let (pool, shared, locks) = (Arc::clone(pool), Arc::clone(shared), Arc::clone(&locks));
        let (devices, end) = (options.devices.clone(), end.clone());
        lanes.push(spawn(format!("lane-{index}"), move || {
            if pool.cleaner_lane() == Some(index) {
                work_in_background();
            }
            let result = run_lane(&pool, &shared, &locks, index, devices);
            // Also where the lane could not begin: what was sent to it is dropped, and who sent it sees that.
            shared.mailboxes[index.as_usize()].close();
            if let Err(error) = &result {
                tracing::error!(%error, %index, "a lane ended");
                pool.fail(format!("Lane {index} ended: {error}"));
            }
            drop((pool, shared, locks));
            if end.send(()).is_err() {
                tracing::debug!(%index, "nobody waits for the end of the lane");
            }
            result
        })?);
    }
    let handshakes = Arc::clone(&shared.handshakes);
    let mut blocking = vec![spawn("handshakes".to_owned(), move || handshakes.work())?];
    for index in 0..BLOCKING_THREADS {
        let jobs = Arc::clone(&shared.jobs);
        blocking.push(spawn(format!("blocking-{index}"), move || jobs.work())?);
    }
    if shared.io_method == IoMethod::Threads {
        for index in 0..TRANSFER_THREADS {
            let transfers = Arc::clone(&shared.transfers);
            blocking.push(spawn(format!("transfer-{index}"), move || transfers.work())?);
        }
    }
    let cleaner = pool.cleaner_lane().map(|lane| spawn_cleaner(pool, shared, lane)).transpose()?;
    let (trimmed, trimming) = (Arc::clone(pool), Arc::clone(&shared.trimming));
    let trimmer = spawn_in_background("trimmer", move || trimming.work(&trimmed))?;
    let (pool, checkpoints) = (Arc::clone(pool), Arc::clone(&shared.checkpoints));
    let checkpoint = spawn_in_background("checkpoint", move || checkpoints.work(&pool))?;
    Ok(Threads { lanes, lane_ends, blocking, checkpoint, cleaner, trimmer })
}

fn spawn_cleaner(pool: &Arc<Pool>, shared: &Arc<Shared>, lane: LaneIndex) -> Result<JoinHandle<()>> {
    let (pool, cleaning) = (Arc::clone(pool), Arc::clone(&shared.cleaning));
    let mailbox = Arc::clone(&shared.mailboxes[lane.as_usize()]);
    let move_group = move |group| {
        let (done, answer) = mpsc::channel();
        mailbox.send(Message::Clean { group, done }).map_err(|_| IoError::ShuttingDown)?;
        // A lane that ends drops its messages, and with them the channel.
        answer.recv().unwrap_or(Err(IoError::ShuttingDown))
    };
    spawn_in_background("cleaner", move || cleaning.work(&pool, move_group))
}

fn run_lane(
    pool: &Arc<Pool>,
    shared: &Arc<Shared>,
    locks: &Arc<RangeLocks>,
    index: LaneIndex,
    devices: Vec<Arc<FileDevice>>,
) -> std::io::Result<()> {
    let method = shared.io_method;
    if method == IoMethod::IoUring {
        ring::init(&RING).map_err(std::io::Error::other)?;
    }
    let executor = Rc::new(LocalExecutor::new());
    let alarm = Arc::clone(&shared.mailboxes[index.as_usize()].alarm);
    let engine = Engine::new(EngineParts {
        pool: Arc::clone(pool),
        locks: Arc::clone(locks),
        lane: index,
        disk: disk_of(shared, devices, &alarm),
        blocking: Rc::new(LaneJobs { jobs: Arc::clone(&shared.jobs), alarm }),
        executor: Rc::clone(&executor),
    });
    let mut lane = Lane::new(LaneParts { shared: Arc::clone(shared), index, engine, executor });
    let result = match method {
        IoMethod::IoUring => {
            ring::with(|ring| lane.run(&mut Driver::Uring(Uring::new(ring)))).map_err(std::io::Error::other)?
        }
        IoMethod::Threads => lane.run(&mut Driver::Readiness(Readiness::default())),
    };
    shared.mailboxes[index.as_usize()].close();
    if result.is_err() {
        // The kernel may still write to the lane's memory, so it stays for ever.
        Box::leak(Box::new(lane)).break_off();
    }
    if method == IoMethod::IoUring {
        drop(ring::take().map_err(std::io::Error::other)?);
    }
    result
}

fn disk_of(shared: &Shared, devices: Vec<Arc<FileDevice>>, alarm: &Arc<Alarm>) -> LaneDisk {
    match shared.io_method {
        IoMethod::IoUring => LaneDisk::Uring(UringDisk::new(devices, DISK.value(), None)),
        IoMethod::Threads => {
            let alarm = Arc::clone(alarm);
            LaneDisk::Threads(ThreadDisk::new(devices, Arc::clone(&shared.transfers), move || alarm.raise()))
        }
    }
}

fn spawn<T: Send + 'static>(name: String, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name).spawn(work).map_err(|source| start_error("A thread", source))
}

fn spawn_in_background(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    spawn(name.to_owned(), || {
        work_in_background();
        work();
    })
}

pub(super) fn start_error(what: &str, source: std::io::Error) -> Error {
    Error::new(ErrorKind::Other, format!("{what} could not be started: {source}")).with_source(source)
}

pub(super) fn join_lanes(lanes: Vec<JoinHandle<std::io::Result<()>>>) -> Result<()> {
    for lane in lanes {
        join(lane, "lane")?
            .map_err(|source| Error::new(ErrorKind::Other, format!("A lane failed: {source}")).with_source(source))?;
    }
    Ok(())
}

pub(super) fn join<T>(thread: JoinHandle<T>, what: &str) -> Result<T> {
    thread.join().map_err(|_| Error::new(ErrorKind::Other, format!("The {what} thread panicked")))
}
