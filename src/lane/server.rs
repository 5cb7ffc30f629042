//! The server: starts and ends the lanes and the threads beside them, and what others may ask of it.
//!
//! Every method may block. Owned by the daemon; lanes know only what they share.

use super::address::ListenAddress;
use super::blocking::Jobs;
use super::checkpoints::Checkpoints;
use super::cleaning::Cleaning;
use super::exports::{ExportPolicy, ExportTable};
use super::given_socket::GivenSocket;
use super::io_method::{IoChoice, IoMethod};
use super::limits::SHUTDOWN_TIME_MAX;
use super::mailbox::{Mailbox, Message};
use super::pool_events::PoolEvents;
use super::settings::{Expose, ListenSettings, NbdLimits};
use super::signals::LaneSignals;
use super::threads::{Threads, join, join_lanes, spawn_threads, start_error};
use super::tls::TlsAuthority;
use super::trimming::Trimming;
use crate::disk::{FileDevice, TransferQueue};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Pool;
use crate::units::{DeviceIndex, LaneIndex};
use crate::volume::{VolumeInfo, Volumes};
use parking_lot::Mutex;
use rok_nbd::server::TlsOffer;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use uuid::Uuid;

/// How a server is started.
pub struct ServerOptions {
    /// The pool's devices, in the pool's order.
    pub devices: Vec<Arc<FileDevice>>,
    /// How its lanes are to do their I/O.
    pub io: IoChoice,
    /// The bounds of NBD connections.
    pub nbd: NbdLimits,
    /// What TLS needs, if listeners are to offer it.
    pub tls: Option<Arc<TlsAuthority>>,
}

/// One export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name: the volume's.
    pub name: String,
    /// Whether clients may choose it at a listener; without listeners, whether it was not unexported.
    pub is_exported: bool,
    /// The listeners that offer it.
    pub offered_at: Vec<ListenAddress>,
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
    pub trimming: Arc<Trimming>,
    pub events: Arc<PoolEvents>,
    /// The first of the lanes, which serve users; the one behind them is the cleaner's.
    serving_count: usize,
    pub io_method: IoMethod,
    /// Transfers for threads, if lanes have no rings.
    pub transfers: Arc<TransferQueue>,
    connection_count: Arc<AtomicUsize>,
    next_lane: AtomicUsize,
    /// What the next connection of the kernel's client is named by.
    pub next_kernel_client: AtomicU64,
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
        let increment = |count| (count < self.exports.limits.connections_max).then_some(count + 1);
        let updated = self.connection_count.fetch_update(Ordering::AcqRel, Ordering::Acquire, increment);
        updated.is_ok().then(|| Permit(Arc::clone(&self.connection_count)))
    }

    /// The mailbox whose turn it is.
    pub(super) fn next_mailbox(&self) -> &Mailbox {
        let turn = self.next_lane.fetch_add(1, Ordering::Relaxed);
        &self.serving_mailboxes()[turn % self.serving_count]
    }

    /// Those of the lanes that serve users.
    pub(super) fn serving_mailboxes(&self) -> &[Arc<Mailbox>] {
        &self.mailboxes[..self.serving_count]
    }
}

/// Where a server listens.
struct Listening {
    address: ListenAddress,
    settings: ListenSettings,
    /// Whether its file is removed with it.
    is_own: bool,
}

/// A running server.
pub struct Server {
    pool: Arc<Pool>,
    pub(super) shared: Arc<Shared>,
    listening: Mutex<Vec<Listening>>,
    threads: Mutex<Option<Threads>>,
}

impl Server {
    /// Starts a lane for each lane of the pool.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for limits that cannot be kept; [`ErrorKind::Unsupported`] where io_uring is refused and nothing
    /// else will do, else the system's.
    ///
    /// # Panics
    /// If the pool is served already.
    pub fn start(pool: Arc<Pool>, options: ServerOptions) -> Result<Arc<Self>> {
        options.nbd.check()?;
        let io_method = IoMethod::choose(options.io)?;
        let lane_count = pool.lane_count();
        let mailboxes: std::io::Result<Vec<_>> = (0..lane_count).map(|_| Mailbox::new().map(Arc::new)).collect();
        let mailboxes = mailboxes.map_err(|source| start_error("An eventfd", source))?;
        let (checkpoints, cleaning) = (Arc::new(Checkpoints::default()), Arc::new(Cleaning::default()));
        let (trimming, events) = (Arc::new(Trimming::default()), Arc::new(PoolEvents::default()));
        let alarms = mailboxes.iter().map(|mailbox| Arc::clone(&mailbox.alarm)).collect();
        let shared = Arc::new(Shared {
            exports: Arc::new(ExportTable::new(
                Arc::new(Volumes::new(Arc::clone(&pool))),
                options.nbd,
                options.tls.clone(),
            )),
            mailboxes,
            jobs: Arc::new(Jobs::default()),
            handshakes: Arc::new(Jobs::default()),
            checkpoints: Arc::clone(&checkpoints),
            cleaning: Arc::clone(&cleaning),
            trimming: Arc::clone(&trimming),
            events: Arc::clone(&events),
            serving_count: pool.cleaner_lane().map_or(lane_count, LaneIndex::as_usize),
            io_method,
            transfers: Arc::default(),
            connection_count: Arc::new(AtomicUsize::new(0)),
            next_lane: AtomicUsize::new(0),
            next_kernel_client: AtomicU64::new(0),
        });
        pool.set_signals(Arc::new(LaneSignals { alarms, checkpoints, cleaning, trimming, events }));
        let threads = spawn_threads(&pool, &shared, &options)?;
        let threads = Mutex::new(Some(threads));
        Ok(Arc::new(Self { pool, shared, listening: Mutex::default(), threads }))
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

    /// What tells that a checkpoint was done, that space came back, or that the pool failed.
    #[must_use]
    pub fn events(&self) -> &Arc<PoolEvents> {
        &self.shared.events
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
    pub fn listen(&self, address: &ListenAddress, settings: ListenSettings) -> Result<ListenAddress> {
        self.listen_on(address, settings, true, || address.bind())
    }

    /// Listens on a socket that somebody else made; its file stays when the server ends.
    ///
    /// # Errors
    /// As [`Self::listen`].
    pub fn listen_on_given(&self, socket: &GivenSocket, settings: ListenSettings) -> Result<ListenAddress> {
        let address = socket.address();
        self.listen_on(address, settings, false, || Ok((socket.duplicate()?, address.clone())))
    }

    fn listen_on(
        &self,
        address: &ListenAddress,
        settings: ListenSettings,
        is_own: bool,
        open: impl FnOnce() -> Result<(OwnedFd, ListenAddress)>,
    ) -> Result<ListenAddress> {
        let mut listening = self.listening.lock();
        if self.shared.exports.is_closing() {
            return Err(Error::new(ErrorKind::Busy, "The server is ending"));
        }
        if settings.tls != TlsOffer::Off && self.shared.exports.tls.is_none() {
            return Err(Error::new(ErrorKind::Usage, format!("{address} cannot offer TLS: there are no certificates"))
                .with_hint("Name their directory with --tls-dir"));
        }
        let (listener, address) = open()?;
        let is_tcp = matches!(address, ListenAddress::Tcp(_));
        self.shared.mailboxes[0].send(Message::Listen { listener, is_tcp, settings })?;
        listening.push(Listening { address: address.clone(), settings, is_own });
        Ok(address)
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
        let policy = self.shared.exports.policy(info.id);
        self.shared.exports.set_policy(info.id, ExportPolicy { is_exported: Some(is_exported), ..policy });
        Ok(())
    }

    /// How each volume is exported whose policy was set, by its id.
    #[must_use]
    pub fn export_policies(&self) -> BTreeMap<Uuid, ExportPolicy> {
        self.shared.exports.policies()
    }

    /// Sets how a volume is exported. Connections that there are stay as they are.
    pub fn set_export_policy(&self, volume: Uuid, policy: ExportPolicy) {
        self.shared.exports.set_policy(volume, policy);
    }

    /// Ends all connections that have a volume open. What was acknowledged to them stays.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Busy`] if the server is ending or overloaded.
    pub fn disconnect(&self, name: &str) -> Result<()> {
        let volume = self.volumes().find(name)?.id;
        let (done, answers) = mpsc::channel();
        for mailbox in &self.shared.mailboxes {
            mailbox.send(Message::Disconnect { volume, done: done.clone() })?;
        }
        drop(done);
        for _ in &self.shared.mailboxes {
            answers.recv().map_err(|_| Error::new(ErrorKind::Busy, "The server is ending"))?;
        }
        Ok(())
    }

    /// All volumes, and who uses them.
    #[must_use]
    pub fn exports(&self) -> Vec<ExportInfo> {
        let (infos, listening) = (self.volumes().list().into_iter(), self.listening.lock());
        let describe = |info: VolumeInfo| {
            let is_offered = |expose| self.shared.exports.is_exported(info.id, expose);
            let offering = listening.iter().filter(|place| is_offered(place.settings.expose));
            let offered_at: Vec<ListenAddress> = offering.map(|place| place.address.clone()).collect();
            let is_exported = !offered_at.is_empty() || (listening.is_empty() && is_offered(Expose::All));
            ExportInfo { is_exported, offered_at, name: info.name, connections: info.connections }
        };
        infos.map(describe).collect()
    }

    /// Stores the changes that there are while everybody is served, so that the end that follows takes little time: who
    /// waits for the next server waits for all of the end. At most as long as the end itself may take.
    pub fn prepare_shutdown(&self) {
        if !self.shared.checkpoints.await_next(SHUTDOWN_TIME_MAX) {
            tracing::warn!("a checkpoint before the end takes long: the end may do so too");
        }
    }

    /// Ends the server: nothing more is accepted, requests under way are finished, everything is stored. The second
    /// call does nothing.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if a request does not end; then the threads go on. The failure of the last
    /// checkpoint; what was acknowledged is in the log nevertheless.
    pub fn shutdown(&self) -> Result<()> {
        let Some(threads) = self.threads.lock().take() else { return Ok(()) };
        let listening = {
            let mut listening = self.listening.lock();
            self.shared.exports.shut_down();
            std::mem::take(&mut *listening)
        };
        // It begins nothing more; what it has begun a lane ends.
        self.shared.cleaning.close();
        for mailbox in &self.shared.mailboxes {
            // A lane that has failed has closed its mailbox; the error comes when it is joined.
            if let Err(error) = mailbox.send(Message::Close) {
                tracing::warn!(%error, "a lane has ended before");
            }
        }
        listening.iter().filter(|place| place.is_own).for_each(|place| place.address.clean_up());
        for _ in &threads.lanes {
            // The lanes' own patience, and as much for the device.
            if threads.lane_ends.recv_timeout(2 * SHUTDOWN_TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                return Err(Error::new(ErrorKind::TimedOut, "Requests under way do not end")
                    .with_hint("See the log of the server and the health of the devices"));
            }
        }
        let result = join_lanes(threads.lanes);
        threads.cleaner.map_or(Ok(()), |cleaner| join(cleaner, "cleaner"))?;
        // Behind the lanes, whose writes may have waited for what it makes fit for use.
        self.shared.trimming.close();
        join(threads.trimmer, "trimmer")?;
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
