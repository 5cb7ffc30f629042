//! The life of a daemon: claim the control socket, open the pool, serve, and close cleanly when told to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::control::{Control, PoolPlace};
use super::control_socket::{ControlSocket, remove_stale};
use super::peer_listener::PeerListener;
use super::{host, router};
use crate::crypto::Suite;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{ListenAddress, Server, ServerOptions};
use crate::pool::directory::{self, Credential, OpenOptions, PoolDescription};

/// Threads of the control plane. It is not on the data path.
const CONTROL_THREADS: usize = 2;
/// Engine calls at once; further ones wait.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long requests that are under way may take when the daemon is told to stop.
const REQUEST_GRACE: Duration = Duration::from_secs(10);
/// How long the runtime waits for threads that are still in an engine call at the very end.
const RUNTIME_GRACE: Duration = Duration::from_secs(1);

/// Where to listen for NBD over TCP.
#[derive(Clone, Copy, Debug)]
pub struct TcpListen {
    /// The address; port 0 takes any free one.
    pub address: SocketAddr,
    /// How many ports to try, counting up from the address's: at least 1.
    pub port_tries: u16,
}

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The pool's directory.
    pub pool: PathBuf,
    /// What unlocks the pool.
    pub credential: Option<Credential>,
    /// The control socket; its directory is there.
    pub socket: PathBuf,
    /// The NBD socket; its directory is there.
    pub nbd_unix: Option<PathBuf>,
    /// NBD over TCP.
    pub nbd_tcp: Vec<TcpListen>,
    /// Threads that do the pool's I/O, at least 1.
    pub lane_count: u16,
    /// Memory for decoded leaves of the map, in bytes.
    pub map_cache_bytes: u64,
    /// Memory of the metadata store, in bytes.
    pub meta_cache_bytes: u64,
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
    control: Arc<Control>,
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
        check_credential(&description, &options)?;
        let socket = ControlSocket::claim(&options.socket)?;
        let runtime = start_runtime()?;
        let signals = runtime.block_on(async { Signals::new() })?;
        let api_listener = listen_for_api(&runtime, &socket)?;
        let begin = Instant::now();
        let pool = directory::open(
            &options.pool,
            &OpenOptions {
                credential: options.credential.clone(),
                lane_count: options.lane_count,
                map_cache_bytes: options.map_cache_bytes,
                meta_cache_bytes: options.meta_cache_bytes,
            },
        )?;
        let place = PoolPlace { path: options.pool.clone(), open_time: begin.elapsed() };
        let server = Server::start(pool.pool, ServerOptions { devices: pool.devices })?;
        let listeners = match listen_everywhere(&server, &options) {
            Ok(listeners) => listeners,
            Err(error) => {
                // The pool was opened, so it is closed; that this fails too would hide the cause.
                if let Err(second) = server.shutdown() {
                    tracing::warn!(error = %second, "the pool did not close cleanly");
                }
                return Err(error);
            }
        };
        let control = Arc::new(Control::new(server, place, pool.key_slots, pool.device_list, listeners));
        let (stop_api, stopped) = oneshot::channel();
        let api = serve_api(&runtime, api_listener, Arc::clone(&control), stopped);
        let nbd_unix = options.nbd_unix;
        Ok(Self { runtime, signals, control, api, stop_api, nbd_unix, _socket: socket })
    }

    /// What the API can do, for the process's own use.
    #[must_use]
    pub fn control(&self) -> &Arc<Control> {
        &self.control
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
        let server = Arc::clone(self.control.server());
        let api = self.api;
        let closed = self.runtime.block_on(async {
            let closing = async {
                if tokio::time::timeout(REQUEST_GRACE, api).await.is_err() {
                    tracing::warn!("requests to the control API were cut off");
                }
                tokio::task::spawn_blocking(move || server.shutdown()).await
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
    control: Arc<Control>,
    stopped: oneshot::Receiver<()>,
) -> JoinHandle<std::io::Result<()>> {
    let service = axum::serve(listener, router::router(control)).with_graceful_shutdown(async {
        // Stops as well if the sender is dropped.
        let _was_sent = stopped.await.is_ok();
    });
    let _inside = runtime.enter();
    runtime.spawn(service.into_future())
}

fn listen_everywhere(server: &Server, options: &DaemonOptions) -> Result<Vec<ListenAddress>> {
    let mut listeners = Vec::new();
    if let Some(path) = &options.nbd_unix {
        remove_stale(path).map_err(|error| match error.kind() {
            ErrorKind::Busy => Error::new(ErrorKind::Busy, format!("Another server listens at {}", path.display()))
                .with_hint("Name another socket with --nbd-unix"),
            _ => error,
        })?;
        listeners.push(server.listen(&ListenAddress::Unix(path.clone()))?);
    }
    for tcp in &options.nbd_tcp {
        listeners.push(listen_on_free_port(server, tcp)?);
    }
    Ok(listeners)
}

fn listen_on_free_port(server: &Server, tcp: &TcpListen) -> Result<ListenAddress> {
    let first = tcp.address.port();
    let last = first.saturating_add(tcp.port_tries.saturating_sub(1));
    for port in first..=last {
        match server.listen(&ListenAddress::Tcp(SocketAddr::new(tcp.address.ip(), port))) {
            Err(error) if error.kind() == ErrorKind::Busy => {}
            result => return result,
        }
    }
    let message = if first == last {
        format!("Another server listens on {}", tcp.address)
    } else {
        format!("The ports {first} to {last} of {} are all taken", tcp.address.ip())
    };
    Err(Error::new(ErrorKind::Busy, message).with_hint("Stop it, or choose another port with --nbd-listen"))
}

/// An encrypted pool needs a passphrase, or a key file that is there: said before anything is locked or bound.
fn check_credential(description: &PoolDescription, options: &DaemonOptions) -> Result<()> {
    if description.suite == Suite::Plain {
        return Ok(());
    }
    let path = match &options.credential {
        Some(Credential::KeyFile(path)) => path,
        Some(Credential::Passphrase(_)) => return Ok(()),
        None => {
            let message = format!("The pool in {} is encrypted, and no key was given", options.pool.display());
            return Err(Error::new(ErrorKind::Key, message).with_hint(
                "Name its key file with --key-file, or give its passphrase with --passphrase or --passphrase-file",
            ));
        }
    };
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = format!("The key file {} is not there", path.display());
            Err(Error::new(ErrorKind::Key, message)
                .with_hint("Put your copy of it there; without it the pool cannot be read"))
        }
        Err(error) => Err(Error::from_io("Looking at", path, error)),
    }
}

fn no_pool_hint(error: Error, pool: &Path) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    Error::new(ErrorKind::NotFound, format!("There is no pool in {}", pool.display()))
        .with_hint("Create one with rok-blk pool create")
        .with_source(error)
}
