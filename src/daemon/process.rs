//! The life of a daemon: claim the control socket, open the pool, serve, and close cleanly when told to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::control_socket::ControlSocket;
use super::device_names::DeviceNames;
use super::gate::Gate;
use super::peer_listener::PeerListener;
use super::pool_setup::{GivenListen, PoolSetup, TcpListen, check_can_be_locked, check_credential};
use super::short_memory::MemoryLock;
use super::{host, router};
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{IoChoice, ListenSettings, NbdLimits};
use crate::pool::Watermarks;
use crate::pool::directory::{self, Credential, OwnKeys};

/// Threads of the control plane. It is not on the data path.
const CONTROL_THREADS: usize = 2;
/// Engine calls at once; further ones wait.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long requests that are under way may take when the daemon is told to stop.
const REQUEST_GRACE: Duration = Duration::from_secs(10);
/// How long the runtime waits for threads that are still in an engine call at the very end.
const RUNTIME_GRACE: Duration = Duration::from_secs(1);

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The pool's directory.
    pub pool: PathBuf,
    /// What unlocks the pool.
    pub credential: Option<Credential>,
    /// Do not open the pool yet: its key is to come through the API.
    pub is_locked: bool,
    /// What is done with volumes that have a key of their own.
    pub own_keys: OwnKeys,
    /// The control socket; its directory is there.
    pub socket: PathBuf,
    /// The NBD socket; its directory is there.
    pub nbd_unix: Option<PathBuf>,
    /// How that listener treats its clients.
    pub nbd_unix_settings: ListenSettings,
    /// The bounds of NBD connections.
    pub nbd_limits: NbdLimits,
    /// The directory with the certificates of TLS.
    pub tls_directory: Option<PathBuf>,
    /// NBD over TCP.
    pub nbd_tcp: Vec<TcpListen>,
    /// NBD on sockets that were passed to the process.
    pub nbd_given: Vec<GivenListen>,
    /// Threads that do the pool's I/O, at least 1.
    pub lane_count: u16,
    /// How they do it.
    pub io: IoChoice,
    /// Memory for decoded leaves of the map, in bytes.
    pub map_cache_bytes: u64,
    /// Memory of the metadata store, in bytes.
    pub meta_cache_bytes: u64,
    /// When space counts as low.
    pub watermarks: Watermarks,
    /// When the process's memory is locked.
    pub memory_lock: MemoryLock,
}

/// How a daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Connections finished, checkpoint written, devices unlocked.
    Clean,
    /// A second signal came while it was closing: leave at once. What was acknowledged is in the log.
    Interrupted,
}

/// A daemon that serves. Dropped without [`Self::stop`] it leaves the pool as a crash does.
pub struct Daemon {
    runtime: Runtime,
    signals: Signals,
    gate: Arc<Gate>,
    api: JoinHandle<std::io::Result<()>>,
    stop_api: oneshot::Sender<()>,
    nbd_unix: Option<PathBuf>,
    _socket: ControlSocket,
}

impl Daemon {
    /// Opens the pool and serves it. When this returns, clients can connect. A passphrase in the options is wiped then.
    ///
    /// From here on SIGINT, SIGTERM and SIGHUP do not end the process; see [`Self::wait_for_signal`].
    ///
    /// # Errors
    /// `Busy` if a daemon has the socket, the pool or all the ports; `Key`, `Integrity` and others of opening a pool.
    pub fn start(options: DaemonOptions) -> Result<Self> {
        let description = directory::describe(&options.pool).map_err(|error| no_pool_hint(error, &options.pool))?;
        if options.is_locked {
            check_can_be_locked(&description, &options.pool)?;
        } else {
            check_credential(&options.pool, &description, options.credential.as_ref())?;
        }
        let socket = ControlSocket::claim(&options.socket)?;
        let runtime = start_runtime()?;
        let signals = runtime.block_on(async { Signals::new() })?;
        let api_listener = listen_for_api(&runtime, &socket)?;
        let nbd_unix = options.nbd_unix.clone();
        let gate = Arc::new(Gate::locked(PoolSetup {
            pool: options.pool,
            device_names: DeviceNames::beside(&options.socket),
            nbd_unix: options.nbd_unix,
            nbd_unix_settings: options.nbd_unix_settings,
            nbd_limits: within_open_files(options.nbd_limits),
            tls_directory: options.tls_directory,
            nbd_tcp: options.nbd_tcp,
            nbd_given: options.nbd_given,
            lane_count: options.lane_count,
            io: options.io,
            map_cache_bytes: options.map_cache_bytes,
            meta_cache_bytes: options.meta_cache_bytes,
            own_keys: options.own_keys,
            watermarks: options.watermarks,
            memory_lock: options.memory_lock,
        }));
        if !options.is_locked {
            gate.open(options.credential)?;
        }
        let (stop_api, stopped) = oneshot::channel();
        let api = serve_api(&runtime, api_listener, Arc::clone(&gate), stopped);
        Ok(Self { runtime, signals, gate, api, stop_api, nbd_unix, _socket: socket })
    }

    /// What the API can do, for the process's own use.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Waits for SIGINT, SIGTERM or SIGHUP and returns its name.
    pub fn wait_for_signal(&mut self) -> &'static str {
        self.runtime.block_on(self.signals.next())
    }

    /// Finishes requests and connections, writes a checkpoint and unlocks the pool; a further signal ends the wait.
    ///
    /// # Errors
    /// What the engine reports about closing. The pool recovers at its next start.
    pub fn stop(mut self) -> Result<Ending> {
        // The receiver is gone if the API ended by itself; then there is nothing to stop.
        let _is_running = self.stop_api.send(()).is_ok();
        let gate = self.gate;
        gate.end_waits();
        let api = self.api;
        let closed = self.runtime.block_on(async {
            let closing = async {
                if tokio::time::timeout(REQUEST_GRACE, api).await.is_err() {
                    tracing::warn!("requests to the control API were cut off");
                }
                tokio::task::spawn_blocking(move || gate.close()).await
            };
            tokio::select! {
                result = closing => Some(result),
                _ = self.signals.next() => None,
            }
        });
        let Some(result) = closed else {
            // Does not wait for the closing that still runs.
            self.runtime.shutdown_background();
            return Ok(Ending::Interrupted);
        };
        if let Some(path) = &self.nbd_unix
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(path = %path.display(), %error, "the NBD socket was not there any more");
        }
        self.runtime.shutdown_timeout(RUNTIME_GRACE);
        match result {
            Ok(Ok(())) => Ok(Ending::Clean),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(Error::new(ErrorKind::Other, "Closing the pool was cut off").with_source(error)),
        }
    }
}

/// The signals that ask the daemon to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Must be called inside of a runtime.
    fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::new(ErrorKind::Other, "Signals cannot be handled").with_source(error))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// As many connections as the process may have files open beside its own; fewer than are wanted are told of.
fn within_open_files(limits: NbdLimits) -> NbdLimits {
    let files_max = match host::open_file_limit() {
        Ok(files_max) => files_max,
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell how many files this process may open");
            return limits;
        }
    };
    let bounded = limits.within_open_files(files_max);
    if bounded.connections_max < limits.connections_max {
        tracing::warn!(
            "At most {} NBD connections instead of {}, since this process may have {files_max} files open and the pool needs some \
             of them: raise that limit (ulimit -n, systemd: LimitNOFILE=)",
            bounded.connections_max,
            limits.connections_max
        );
    }
    bounded
}

fn start_runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Other, "The control threads did not start").with_source(error))
}

fn listen_for_api(runtime: &Runtime, socket: &ControlSocket) -> Result<PeerListener> {
    let listener = socket.listener()?;
    let _inside = runtime.enter();
    let listener = tokio::net::UnixListener::from_std(listener)
        .map_err(|error| Error::new(ErrorKind::Other, "The control socket cannot be polled").with_source(error))?;
    Ok(PeerListener::new(listener, host::effective_uid()))
}

fn serve_api(
    runtime: &Runtime,
    listener: PeerListener,
    gate: Arc<Gate>,
    stopped: oneshot::Receiver<()>,
) -> JoinHandle<std::io::Result<()>> {
    let service = axum::serve(listener, router::router(gate)).with_graceful_shutdown(async {
        // Stops as well if the sender is dropped.
        let _was_sent = stopped.await.is_ok();
    });
    let _inside = runtime.enter();
    runtime.spawn(service.into_future())
}

fn no_pool_hint(error: Error, pool: &Path) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    Error::new(ErrorKind::NotFound, format!("There is no pool in {}", pool.display()))
        .with_hint("Create one with rok-blk pool create")
        .with_source(error)
}
