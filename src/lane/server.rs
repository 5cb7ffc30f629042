//! The server: starts and ends the lanes and the threads beside them, and what others may ask of it.
//!
//! Every method may block. Owned by the daemon; lanes know only what they share.

use super::address::ListenAddress;
use super::alarm::Alarm;
use super::blocking::{Jobs, LaneJobs};
use super::checkpoints::Checkpoints;
use super::cleaning::Cleaning;
use super::device::{DeviceTarget, NewQueue};
use super::driver::{Driver, LaneDisk, Readiness, Uring};
use super::exports::ExportTable;
use super::io_method::{IoChoice, IoMethod, RING};
use super::limits::{BLOCKING_THREADS, CONNECTIONS_MAX, SHUTDOWN_TIME_MAX, TRANSFER_THREADS};
use super::mailbox::{Mailbox, Message};
use super::signals::LaneSignals;
use super::thread::{DISK, Lane, LaneParts};
use crate::disk::{FileDevice, ThreadDisk, TransferQueue, UringDisk};
use crate::error::{Error, ErrorKind, IoError, Result};
use crate::pool::Pool;
use crate::units::{DeviceIndex, LaneIndex};
use crate::volume::{Engine, EngineParts, RangeLocks, VolumeInfo, Volumes};
use async_executor::LocalExecutor;
use parking_lot::Mutex;
use rok_ublk::{Device, ring};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// How a server is started.
pub struct ServerOptions {
    /// The pool's devices, in the pool's order.
    pub devices: Vec<Arc<FileDevice>>,
    /// How its lanes are to do their I/O.
    pub io: IoChoice,
}

/// One export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name: the volume's.
    pub name: String,
    /// Whether clients may choose it.
    pub is_exported: bool,
    /// Connections and devices that have the volume open.
    pub connections: u32,
}

/// What lanes share.
pub(super) struct Shared {
    pub exports: Arc<ExportTable>,
    pub mailboxes: Vec<Arc<Mailbox>>,
    pub jobs: Arc<Jobs>,
    /// Handshakes, which may wait for a commit of `meta/`: on a thread of their own, so that no read waits behind them.
    pub handshakes: Arc<Jobs>,
    pub checkpoints: Arc<Checkpoints>,
    pub cleaning: Arc<Cleaning>,
    /// The first of the lanes, which serve users; the one behind them is the cleaner's.
    serving_count: usize,
    io_method: IoMethod,
    /// Transfers for threads, if lanes have no rings.
    transfers: Arc<TransferQueue>,
    connection_count: Arc<AtomicUsize>,
    next_lane: AtomicUsize,
}

/// Leave to have one connection; counts until it is dropped.
pub(super) struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    /// Leave for one more connection, if there is any.
    pub(super) fn permit(&self) -> Option<Permit> {
        let increment = |count| (count < CONNECTIONS_MAX).then_some(count + 1);
        let updated = self.connection_count.fetch_update(Ordering::AcqRel, Ordering::Acquire, increment);
        updated.is_ok().then(|| Permit(Arc::clone(&self.connection_count)))
    }

    /// The mailbox whose turn it is.
    pub(super) fn next_mailbox(&self) -> &Mailbox {
        let turn = self.next_lane.fetch_add(1, Ordering::Relaxed);
        &self.mailboxes[turn % self.serving_count]
    }
}

/// A device that lanes serve.
pub struct AttachedDevice {
    ends: mpsc::Receiver<()>,
}

impl AttachedDevice {
    /// Waits until no lane serves a queue of it any more, which follows when the device was stopped.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`].
    pub fn wait_ended(&self, time_max: Duration) -> Result<()> {
        match self.ends.recv_timeout(time_max) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(Error::new(ErrorKind::TimedOut, "The queues of the device are still served")
                    .with_hint("Stop the device first"))
            }
            // Nobody sends: each queue drops its end of the channel.
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

/// Threads of a running server.
struct Threads {
    lanes: Vec<JoinHandle<std::io::Result<()>>>,
    /// Each lane says here that it is over.
    lane_ends: mpsc::Receiver<()>,
    blocking: Vec<JoinHandle<()>>,
    checkpoint: JoinHandle<()>,
    cleaner: Option<JoinHandle<()>>,
}

/// A running server.
pub struct Server {
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    addresses: Mutex<Vec<ListenAddress>>,
    threads: Mutex<Option<Threads>>,
}

impl Server {
    /// Starts a lane for each lane of the pool.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where io_uring is refused and nothing else will do, else the system's.
    ///
    /// # Panics
    /// If the pool is served already.
    pub fn start(pool: Arc<Pool>, options: ServerOptions) -> Result<Arc<Self>> {
        let io_method = IoMethod::choose(options.io)?;
        let lane_count = pool.lane_count();
        let mailboxes: std::io::Result<Vec<_>> = (0..lane_count).map(|_| Mailbox::new().map(Arc::new)).collect();
        let mailboxes = mailboxes.map_err(|source| start_error("An eventfd", source))?;
        let (checkpoints, cleaning) = (Arc::new(Checkpoints::default()), Arc::new(Cleaning::default()));
        let alarms = mailboxes.iter().map(|mailbox| Arc::clone(&mailbox.alarm)).collect();
        let shared = Arc::new(Shared {
            exports: Arc::new(ExportTable::new(Arc::new(Volumes::new(Arc::clone(&pool))))),
            mailboxes,
            jobs: Arc::new(Jobs::default()),
            handshakes: Arc::new(Jobs::default()),
            checkpoints: Arc::clone(&checkpoints),
            cleaning: Arc::clone(&cleaning),
            serving_count: pool.cleaner_lane().map_or(lane_count, LaneIndex::as_usize),
            io_method,
            transfers: Arc::default(),
            connection_count: Arc::new(AtomicUsize::new(0)),
            next_lane: AtomicUsize::new(0),
        });
        pool.set_signals(Arc::new(LaneSignals { alarms, checkpoints, cleaning }));
        let threads = spawn_threads(&pool, &shared, &options)?;
        let threads = Mutex::new(Some(threads));
        Ok(Arc::new(Self { pool, shared, addresses: Mutex::default(), threads }))
    }

    /// The volumes.
    #[must_use]
    pub fn volumes(&self) -> &Arc<Volumes> {
        &self.shared.exports.volumes
    }

    /// The pool.
    #[must_use]
    pub const fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Whether there is nothing to clean before the next checkpoint.
    #[must_use]
    pub fn is_cleaner_resting(&self) -> bool {
        self.shared.cleaning.is_resting()
    }

    /// How lanes do their I/O.
    #[must_use]
    pub fn io_method(&self) -> IoMethod {
        self.shared.io_method
    }

    /// Makes a volume larger, or smaller: what lies behind the new end is discarded. Clients see the new size when
    /// they connect anew.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Usage`] for a size that cannot be, [`ErrorKind::Busy`] if a volume that is
    /// to shrink is in use.
    pub fn resize(&self, name: &str, size_bytes: u64) -> Result<VolumeInfo> {
        let volumes = self.volumes();
        let info = volumes.find(name)?;
        if size_bytes >= info.size_bytes {
            return volumes.set_size(name, size_bytes);
        }
        check_shrunk_size(size_bytes)?;
        let Some(_closed) = self.shared.exports.close(info.id) else {
            return Err(Error::new(ErrorKind::Busy, format!("Volume \"{name}\" is being resized already"))
                .with_hint("Wait for that to end"));
        };
        volumes.check_unused(name, 0)?;
        let open = volumes.open(name)?;
        let (done, result) = mpsc::channel();
        let range = (size_bytes, open.volume().size_bytes().saturating_sub(size_bytes));
        let volume = Arc::clone(open.volume());
        self.shared.next_mailbox().send(Message::Discard { volume, range, done })?;
        // The lane answers each of them, also when it ends.
        let result = result.recv().unwrap_or(Err(crate::error::IoError::ShuttingDown));
        result.map_err(|error| {
            Error::new(ErrorKind::Other, format!("Discarding the end of volume \"{name}\" failed: {error}"))
                .with_hint("Its size is unchanged; see the log of the server")
        })?;
        volumes.set_size(name, size_bytes)
    }

    /// Listens for connections; returns the real address.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] naming an address that is in use, else the system's.
    pub fn listen(&self, address: &ListenAddress) -> Result<ListenAddress> {
        let mut addresses = self.addresses.lock();
        if self.shared.exports.is_closing() {
            return Err(Error::new(ErrorKind::Busy, "The server is ending"));
        }
        let (listener, address) = address.bind()?;
        let is_tcp = matches!(address, ListenAddress::Tcp(_));
        self.shared.mailboxes[0].send(Message::Listen { listener, is_tcp })?;
        addresses.push(address.clone());
        Ok(address)
    }

    /// Serves the queues of a device, each on the lane whose turn it is. The device is not started, since the driver
    /// waits until every queue is served: the caller does that next, and stops the device before it ends the server.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending or the lanes have too much to serve; [`ErrorKind::Other`] if a queue
    /// could not be mapped; [`ErrorKind::Unsupported`] without io_uring. The device has to be deleted then.
    pub fn attach(&self, device: &Arc<Device>, target: &DeviceTarget) -> Result<AttachedDevice> {
        self.shared.io_method.check_devices()?;
        let (started, answers) = mpsc::channel();
        let (ended, ends) = mpsc::channel();
        for id in 0..device.queue_count() {
            let queue = NewQueue {
                device: Arc::clone(device),
                id,
                target: target.clone(),
                started: started.clone(),
                ended: ended.clone(),
            };
            self.shared.next_mailbox().send(Message::ServeDevice(queue))?;
        }
        drop((started, ended));
        for _ in 0..device.queue_count() {
            // A lane that ends drops its messages, and with them the channel.
            let answer = answers.recv().map_err(|_| Error::new(ErrorKind::Busy, "The server is ending"))?;
            answer?;
        }
        Ok(AttachedDevice { ends })
    }

    /// Has every lane have a device at `index`, so that the pool may begin to use it there.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the server is ending, or overloaded; then some lanes may have it.
    pub fn set_device(&self, index: DeviceIndex, device: &Arc<FileDevice>) -> Result<()> {
        let (done, answers) = mpsc::channel();
        for mailbox in &self.shared.mailboxes {
            let (device, done) = (Arc::clone(device), done.clone());
            mailbox.send(Message::SetDevice { index, device, done })?;
        }
        drop(done);
        for _ in &self.shared.mailboxes {
            // A lane that ends drops its messages, and with them the channel.
            answers.recv().map_err(|_| Error::new(ErrorKind::Busy, "The server is ending"))?;
        }
        Ok(())
    }

    /// Says whether clients may choose the volume. Connections that there are stay.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn set_exported(&self, name: &str, is_exported: bool) -> Result<()> {
        let info = self.volumes().find(name)?;
        self.shared.exports.set_exported(info.id, is_exported);
        Ok(())
    }

    /// All volumes, and who uses them.
    #[must_use]
    pub fn exports(&self) -> Vec<ExportInfo> {
        let infos = self.volumes().list().into_iter();
        infos
            .map(|info| ExportInfo {
                is_exported: self.shared.exports.is_exported(info.id),
                name: info.name,
                connections: info.connections,
            })
            .collect()
    }

    /// Ends the server: nothing more is accepted, requests under way are finished, everything is stored. The second
    /// call does nothing.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if a request does not end; then the threads go on. The failure of the last
    /// checkpoint; what was acknowledged is in the log nevertheless.
    pub fn shutdown(&self) -> Result<()> {
        let Some(threads) = self.threads.lock().take() else { return Ok(()) };
        let addresses = {
            let mut addresses = self.addresses.lock();
            self.shared.exports.shut_down();
            std::mem::take(&mut *addresses)
        };
        // First, since what it has begun is work of a lane.
        self.shared.cleaning.close();
        threads.cleaner.map_or(Ok(()), |cleaner| join(cleaner, "cleaner"))?;
        for mailbox in &self.shared.mailboxes {
            // A lane that has failed has closed its mailbox; the error comes when it is joined.
            if let Err(error) = mailbox.send(Message::Close) {
                tracing::warn!(%error, "a lane has ended before");
            }
        }
        addresses.iter().for_each(ListenAddress::clean_up);
        for _ in &threads.lanes {
            // The lanes' own patience, and as much for the device.
            if threads.lane_ends.recv_timeout(2 * SHUTDOWN_TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                return Err(Error::new(ErrorKind::TimedOut, "Requests under way do not end")
                    .with_hint("See the log of the server and the health of the devices"));
            }
        }
        let result = join_lanes(threads.lanes);
        self.shared.checkpoints.close();
        join(threads.checkpoint, "checkpoint")?;
        let stored = if self.pool.check_writable().is_ok() {
            self.shared.checkpoints.run(&self.pool, Some(SHUTDOWN_TIME_MAX))
        } else {
            Err(Error::new(ErrorKind::Other, "The pool has failed before, so nothing was stored at its end")
                .with_hint("See the log of the server"))
        };
        self.shared.checkpoints.abandon();
        self.shared.jobs.close();
        self.shared.handshakes.close();
        self.shared.transfers.close();
        for thread in threads.blocking {
            join(thread, "blocking")?;
        }
        result.and(stored)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::error!(%error, "the server did not end cleanly");
        }
    }
}

fn check_shrunk_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(crate::units::BLOCK_SIZE_U64) {
        return Err(Error::new(ErrorKind::Usage, format!("A volume cannot have {size_bytes} bytes"))
            .with_hint("Use a multiple of 4 KiB, from 4 KiB to 1 PiB"));
    }
    Ok(())
}

fn spawn_threads(pool: &Arc<Pool>, shared: &Arc<Shared>, options: &ServerOptions) -> Result<Threads> {
    let locks = Arc::new(RangeLocks::new(pool.lane_count()));
    let (end, lane_ends) = mpsc::channel();
    let mut lanes = Vec::new();
    for index in (0..).map(LaneIndex::new).take(pool.lane_count()) {
        let (pool, shared, locks) = (Arc::clone(pool), Arc::clone(shared), Arc::clone(&locks));
        let (devices, end) = (options.devices.clone(), end.clone());
        lanes.push(spawn(format!("lane-{index}"), move || {
            let result = run_lane(&pool, &shared, &locks, index, devices);
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
    let (pool, checkpoints) = (Arc::clone(pool), Arc::clone(&shared.checkpoints));
    let checkpoint = spawn("checkpoint".to_owned(), move || checkpoints.work(&pool))?;
    Ok(Threads { lanes, lane_ends, blocking, checkpoint, cleaner })
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
    spawn("cleaner".to_owned(), move || cleaning.work(&pool, move_group))
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

fn start_error(what: &str, source: std::io::Error) -> Error {
    Error::new(ErrorKind::Other, format!("{what} could not be started: {source}")).with_source(source)
}

fn join_lanes(lanes: Vec<JoinHandle<std::io::Result<()>>>) -> Result<()> {
    for lane in lanes {
        join(lane, "lane")?
            .map_err(|source| Error::new(ErrorKind::Other, format!("A lane failed: {source}")).with_source(source))?;
    }
    Ok(())
}

fn join<T>(thread: JoinHandle<T>, what: &str) -> Result<T> {
    thread.join().map_err(|_| Error::new(ErrorKind::Other, format!("The {what} thread panicked")))
}
