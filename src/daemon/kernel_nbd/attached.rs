//! A disk that the kernel's client has of us, and the thread that gives it another connection when it has lost one.
//!
//! Invariant: while the thread runs, it alone connects the disk; who ends the disk says so first, and waits for the thread.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::net::{RecvFlags, recv};

use super::disk::{Holder, block_path};
use super::driver::{DiskParameters, Driver, DriverError};
use super::failure::failure;
use crate::daemon::attachment_resource::AttachmentState;
use crate::daemon::attachment_store::Remembered;
use crate::daemon::restoration::told;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{DeviceVolume, KernelClient, KernelClientEnd, KernelClientId, Server};

/// Pause before a connection that failed is tried again, which doubles each time, and the longest one.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a lane may take to end a connection, and the thread to notice.
const END_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the kernel may take to look for partitions before the disk is told to whoever asked for it.
const PARTITIONS_TIME_MAX: Duration = Duration::from_secs(10);

/// A disk. Served by a lane, or waiting for its next connection.
pub(in crate::daemon) struct NbdAttached {
    /// N of `/dev/nbdN`.
    pub number: u32,
    pub remembered: Remembered,
    pub volume: DeviceVolume,
    server: Arc<Server>,
    life: Mutex<Life>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Life {
    /// The connection that a lane serves.
    client: Option<KernelClientId>,
    /// Others have told the driver to let go of it.
    is_disconnected: bool,
    /// It gets no connection any more.
    is_ending: bool,
    /// The thread runs.
    is_watched: bool,
    problem: Option<String>,
}

impl NbdAttached {
    /// Makes the disk, under a number that must be free.
    ///
    /// # Errors
    /// `Exists` if the number is taken, `Unsupported` by a driver that is too old, `Permission`, and what else driver and
    /// server report. Then there is no disk.
    pub(super) fn make(
        server: &Arc<Server>,
        number: u32,
        remembered: Remembered,
        volume: DeviceVolume,
    ) -> std::result::Result<Arc<Self>, (Error, DeviceVolume)> {
        match connect(server, number, &remembered, &volume) {
            Ok(client) => Ok(Self::begin(server, number, remembered, volume, client)),
            Err(error) => Err((error, volume)),
        }
    }

    /// Takes over a disk whose daemon is gone.
    ///
    /// # Errors
    /// `Busy` if it has a connection still at `end`; what driver and server report.
    pub(super) fn take_over(
        server: &Arc<Server>,
        number: u32,
        remembered: Remembered,
        volume: DeviceVolume,
        end: Instant,
    ) -> Result<Arc<Self>> {
        let mut pause = PAUSE_MIN;
        loop {
            match connect_again(server, number, &remembered, &volume) {
                Ok(client) => return Ok(Self::begin(server, number, remembered, volume, client)),
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() + pause < end => {}
                Err(error) => return Err(error),
            }
            // Nobody tells when the kernel has closed the sockets of a daemon that was killed.
            std::thread::sleep(pause);
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    fn begin(
        server: &Arc<Server>,
        number: u32,
        remembered: Remembered,
        volume: DeviceVolume,
        client: KernelClient,
    ) -> Arc<Self> {
        let life = Mutex::new(Life { client: Some(client.id()), is_watched: true, ..Life::default() });
        let (changed, thread) = (Condvar::new(), Mutex::new(None));
        let attached = Arc::new(Self { number, remembered, volume, server: Arc::clone(server), life, changed, thread });
        let watched = Arc::clone(&attached);
        let work = move || {
            watched.watch(client);
            // Before the thread is known to have ended: nobody then has the volume open for it.
            drop(watched);
        };
        match std::thread::Builder::new().name(format!("nbd-{number}")).spawn(work) {
            Ok(thread) => *attached.thread.lock() = Some(thread),
            Err(error) => {
                let mut life = attached.life.lock();
                life.is_watched = false;
                life.problem = Some(format!("A thread could not be started ({error}): a lost connection stays lost"));
            }
        }
        attached
    }

    /// Path of the disk.
    pub(in crate::daemon) fn path(&self) -> PathBuf {
        block_path(self.number)
    }

    /// How it is.
    pub(in crate::daemon) fn state(&self) -> AttachmentState {
        let life = self.life.lock();
        match Holder::of(self.number, &self.remembered.backend()) {
            Holder::Nobody => AttachmentState::Gone,
            Holder::Other => AttachmentState::Taken,
            Holder::Ours if life.is_disconnected => AttachmentState::Dead,
            Holder::Ours if life.client.is_none() => AttachmentState::Quiesced,
            Holder::Ours => AttachmentState::Live,
        }
    }

    /// Why it is not as it should be.
    pub(in crate::daemon) fn problem(&self) -> Option<String> {
        self.life.lock().problem.clone()
    }

    /// Gives the disk the size of its volume, which it may have already.
    ///
    /// # Errors
    /// What the driver reports.
    pub(in crate::daemon) fn follow_size(&self) -> Result<()> {
        let driver = Driver::open().map_err(failure)?;
        let size_bytes = self.volume.open().volume().size_bytes();
        driver.set_size(self.number, size_bytes, &self.remembered.backend()).map_err(failure)
    }

    /// None of its writes waits for space any more, and what the driver has for us it can hand over.
    pub(super) fn leave(&self) {
        let client = self.life.lock().client;
        if let Some(Err(error)) = client.map(|client| self.server.leave_kernel_client(client)) {
            tracing::warn!(%error, device = self.number, "a lane was not told that a disk is to be taken away");
        }
    }

    /// Has the driver take the disk away, and waits until no lane serves it.
    ///
    /// # Errors
    /// What the driver reports; then it is as it was. `TimedOut` if a request is not answered; then it is gone, but its
    /// volume is in use.
    pub(super) fn disconnect(&self) -> Result<()> {
        // Before the driver lets go of it: it could be connected again behind that.
        self.set_ending(true);
        let is_connected = self.life.lock().client.is_some();
        if let Err(error) = self.disconnect_ours() {
            self.set_ending(false);
            return Err(error);
        }
        self.wait_ended()?;
        // The thread may have connected it behind that, if somebody has it open still.
        if is_connected { Ok(()) } else { self.disconnect_ours() }
    }

    fn disconnect_ours(&self) -> Result<()> {
        if Holder::of(self.number, &self.remembered.backend()) != Holder::Ours {
            return Ok(());
        }
        Driver::open().and_then(|driver| driver.disconnect(self.number)).map_err(failure)
    }

    /// Ends the connection; the driver keeps the requests of the disk for the next daemon.
    ///
    /// # Errors
    /// `TimedOut` if a request does not end.
    pub(super) fn release(&self) -> Result<()> {
        self.set_ending(true);
        let client = self.life.lock().client;
        if let Some(client) = client {
            self.server.release_kernel_client(client)?;
        }
        self.wait_ended()
    }

    fn set_ending(&self, is_ending: bool) {
        self.life.lock().is_ending = is_ending;
        self.changed.notify_all();
    }

    fn wait_ended(&self) -> Result<()> {
        let end = Instant::now() + END_TIME_MAX;
        let mut life = self.life.lock();
        while life.is_watched {
            if self.changed.wait_until(&mut life, end).timed_out() && life.is_watched {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("Requests of {} do not end", self.path().display()),
                )
                .with_hint("See the log of the daemon and the health of the pool's devices"));
            }
        }
        drop(life);
        // It is at its last line.
        if let Some(Err(_)) = self.thread.lock().take().map(JoinHandle::join) {
            tracing::error!(device = self.number, "the thread of a disk has failed");
        }
        Ok(())
    }

    /// Waits for the end of each connection, and makes the next.
    fn watch(&self, first: KernelClient) {
        let mut client = Some(first);
        while let Some(served) = client {
            let end = served.wait_ended();
            client = self.next_client(end);
        }
        self.life.lock().is_watched = false;
        self.changed.notify_all();
    }

    /// The connection that follows one that has ended; `None` if there is to be none.
    fn next_client(&self, end: KernelClientEnd) -> Option<KernelClient> {
        let mut life = self.life.lock();
        life.client = None;
        if life.is_ending {
            return None;
        }
        let device = self.path();
        if end == KernelClientEnd::Disconnected {
            life.is_disconnected = true;
            life.problem = Some(
                "Another program told the driver to disconnect it; rok-blk detach takes away what is left".to_owned(),
            );
            tracing::error!(device = %device.display(), "a disk was disconnected by another program");
            return None;
        }
        tracing::warn!(device = %device.display(), "a disk has lost its connection: a request took too long, or the kernel closed it");
        let mut pause = PAUSE_MIN;
        while !life.is_ending {
            // Not held meanwhile: the driver and the lanes take their time.
            drop(life);
            let connected = self.connect_again();
            life = self.life.lock();
            match connected {
                Ok(client) => {
                    life.client = Some(client.id());
                    life.problem = None;
                    if life.is_ending && self.server.release_kernel_client(client.id()).is_err() {
                        tracing::debug!(device = %device.display(), "the server is ending");
                    }
                    tracing::info!(device = %device.display(), "a disk has a connection again");
                    return Some(client);
                }
                Err(error) => life.problem = Some(told(&error)),
            }
            if Holder::of(self.number, &self.remembered.backend()) != Holder::Ours {
                life.is_disconnected = true;
                tracing::error!(device = %device.display(), "a disk is gone: another program has ended it");
                return None;
            }
            self.changed.wait_for(&mut life, pause);
            pause = (2 * pause).min(PAUSE_MAX);
        }
        None
    }

    fn connect_again(&self) -> Result<KernelClient> {
        connect_again(&self.server, self.number, &self.remembered, &self.volume)
    }

    /// Has the kernel look for partitions while somebody serves the disk: the first to open it waits for that.
    pub(super) fn find_partitions(&self) {
        let (done, opened) = mpsc::channel();
        let path = self.path();
        let work = move || {
            if let Err(error) = File::open(&path) {
                tracing::warn!(%error, device = %path.display(), "a disk cannot be opened");
            }
            // Nobody waits any more if that fails.
            let _is_awaited = done.send(()).is_ok();
        };
        let started = std::thread::Builder::new().name("partitions".to_owned()).spawn(work);
        if started.is_err() || opened.recv_timeout(PARTITIONS_TIME_MAX).is_err() {
            tracing::warn!(device = self.number, "the partitions of a disk are not known yet");
        }
    }
}

fn connect(server: &Arc<Server>, number: u32, remembered: &Remembered, volume: &DeviceVolume) -> Result<KernelClient> {
    let driver = Driver::open().map_err(failure)?;
    let (own, theirs) = pair()?;
    let (backend, opened) = (remembered.backend(), volume.open().volume());
    let disk = DiskParameters {
        number,
        size_bytes: opened.size_bytes(),
        sector_size: opened.sector_size(),
        flags: volume.transmission_flags().0,
        backend: &backend,
    };
    driver.connect(&disk, theirs.as_fd()).map_err(failure)?;
    drop(theirs);
    let served = if Holder::of(number, &backend) == Holder::Ours {
        server.serve_kernel_client(own, volume)
    } else {
        Err(failure(DriverError::TooOld))
    };
    served.inspect_err(|_| {
        if let Err(error) = driver.disconnect(number) {
            tracing::error!(%error, device = number, "a disk that is not served was left behind");
        }
    })
}

fn connect_again(
    server: &Arc<Server>,
    number: u32,
    remembered: &Remembered,
    volume: &DeviceVolume,
) -> Result<KernelClient> {
    let driver = Driver::open().map_err(failure)?;
    let (own, theirs) = pair()?;
    let size_bytes = volume.open().volume().size_bytes();
    driver.reconfigure(number, size_bytes, &remembered.backend(), theirs.as_fd()).map_err(failure)?;
    drop(theirs);
    // The driver has it, or nobody.
    if recv(&own, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok_and(|(_, len)| len == 0) {
        return Err(failure(DriverError::HasConnection(number)));
    }
    server.serve_kernel_client(own, volume)
}

/// Our end of a connection, and the driver's.
fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (own, theirs) = UnixStream::pair().map_err(|source| {
        Error::new(ErrorKind::Other, format!("A pair of sockets could not be made: {source}")).with_source(source)
    })?;
    Ok((own.into(), theirs.into()))
}
