//! The command `serve`: the daemon in the foreground.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use tracing_subscriber::EnvFilter;

use super::activation::given_sockets;
use super::arguments::{Global, Resources, Serve};
use super::client::socket_path;
use super::failure::{EXIT_INTERRUPTED, Outcome, tell};
use super::notification::{State, notify};
use super::output::Output;
use crate::daemon::control_socket::{make_private_directory, nbd_path_beside};
use crate::daemon::{Daemon, DaemonOptions, Ending, TcpListen, host, short_memory};
use crate::error::{Error, ErrorKind, Result};
use crate::lane::ListenAddress;
use crate::pool::directory::OwnKeys;

/// Lanes if nobody says how many: more than this share too little.
const LANE_COUNT_MAX: usize = 8;

/// `serve --pool DIR`.
pub(super) fn run(arguments: &Serve, global: &Global, output: &Output) -> Outcome<ExitCode> {
    // Before there is a second thread, since it changes the environment.
    let nbd_given = given_sockets(&arguments.nbd)?;
    prepare_process(global.verbose)?;
    let socket = prepare_socket(global)?;
    let nbd_unix = arguments.nbd_unix.clone().unwrap_or_else(|| nbd_path_beside(&socket));
    let pool = absolute(&arguments.pool)?;
    let tcp_listen = |address: &SocketAddr| {
        let settings = arguments.nbd.tcp_settings(address)?;
        Ok(TcpListen { address: *address, port_tries: 1, settings })
    };
    let options = DaemonOptions {
        pool: pool.clone(),
        credential: arguments.credential.read()?,
        nbd_unix: Some(absolute(&nbd_unix)?),
        nbd_unix_settings: arguments.nbd.unix_settings(),
        nbd_limits: arguments.nbd.limits()?,
        tls_directory: arguments.nbd.tls_directory()?,
        nbd_tcp: arguments.nbd_listen.iter().map(tcp_listen).collect::<Result<_>>()?,
        nbd_given,
        lane_count: lane_count(arguments.resources),
        io: arguments.resources.io.into(),
        map_cache_bytes: arguments.resources.map_cache,
        meta_cache_bytes: arguments.resources.meta_cache,
        watermarks: arguments.resources.watermarks()?,
        memory_lock: arguments.resources.memory_lock(),
        is_locked: arguments.locked,
        own_keys: own_keys(arguments),
        socket: socket.clone(),
    };
    let given = options.nbd_given.iter().filter_map(|given| match given.socket.address() {
        ListenAddress::Tcp(address) => Some(address),
        ListenAddress::Unix(_) => None,
    });
    let addresses = arguments.nbd_listen.iter().chain(given);
    addresses.filter(|address| arguments.nbd.is_plaintext_for_others(address)).for_each(warn_open);
    let daemon = Daemon::start(options)?;
    output.message(&format!("Serving the pool in {}.", pool.display()));
    output.message(&format!("Control socket: {}", socket.display()));
    let introduced = print_uris(&daemon, output);
    finish(daemon, introduced, "Ready.", output)
}

/// Volumes whose URIs are printed at the start. A daemon with thousands would not be ready before somebody has read them all,
/// since a pipe takes 64 KiB.
const INTRODUCED_MAX: usize = 32;

/// What a daemon's process does before it holds a key or starts a thread.
///
/// # Errors
/// If the kernel refuses to keep secrets out of core files.
pub(super) fn prepare_process(verbose: u8) -> Result<()> {
    keep_secrets()?;
    start_log(verbose);
    short_memory::mark_threads();
    if let Err(error) = host::raise_open_file_limit() {
        tracing::warn!(%error, "the limit of open files was not raised");
    }
    Ok(())
}

/// Keeps keys out of core files, and other users out of the files that this process makes.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn keep_secrets() -> Result<()> {
    host::create_private_files();
    host::forbid_core_dumps().map_err(|error| {
        let message = "This process cannot keep its keys out of core files";
        Error::new(ErrorKind::Other, message)
            .with_hint(format!("{}=1 goes on all the same", host::ALLOW_CORE_VARIABLE))
            .with_source(error)
    })
}

/// The control socket's path; the directory of a default one is made.
///
/// # Errors
/// `Permission` if somebody else could have made it.
pub(super) fn prepare_socket(global: &Global) -> Result<PathBuf> {
    let socket = socket_path(global.socket.as_deref());
    if global.socket.is_none()
        && let Some(directory) = socket.parent()
    {
        make_private_directory(directory, host::effective_uid())?;
    }
    absolute(&socket)
}

/// As asked for, else by the number of processors.
pub(super) fn lane_count(resources: Resources) -> u16 {
    let processors = available_parallelism().map_or(1, |count| count.get().min(LANE_COUNT_MAX));
    resources.lane_count.unwrap_or_else(|| u16::try_from(processors).expect("at most eight"))
}

/// The same path whatever the working directory is: it goes into URIs.
///
/// # Errors
/// If there is no working directory, or the path is empty.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::from_io("Resolving", path, error))
}

/// Prints where volumes are, one URI a line, of the first [`INTRODUCED_MAX`]; without volumes, tells where they will be.
pub(super) fn print_uris(daemon: &Daemon, output: &Output) -> Outcome<()> {
    let open = daemon.gate().with(|control| Ok((control.exports(), control.listeners().to_vec())));
    let Ok((exports, listeners)) = open else {
        output.message("The pool is locked; rok-blk key unlock opens it.");
        return Ok(());
    };
    if exports.items.is_empty() {
        for listener in &listeners {
            match listener {
                ListenAddress::Unix(path) => output.message(&format!("NBD listens on {}", path.display())),
                ListenAddress::Tcp(address) => output.message(&format!("NBD listens on {address}")),
            }
        }
        output.message("There is no volume yet; create one with rok-blk create vol1 --size 10G");
    }
    let first = exports.items.iter().take(INTRODUCED_MAX);
    let uris: String = first.flat_map(|export| &export.uris).map(|uri| format!("{uri}\n")).collect();
    output.lines(&uris)?;
    if let Some(more) = exports.items.len().checked_sub(INTRODUCED_MAX).filter(|more| *more > 0) {
        output.message(&format!("{more} more; rok-blk exports lists all"));
    }
    Ok(())
}

/// Tells `ready`, serves until a signal, then closes. Closes at once if the daemon was not introduced.
pub(super) fn finish(mut daemon: Daemon, introduced: Outcome<()>, ready: &str, output: &Output) -> Outcome<ExitCode> {
    if let Err(failed) = introduced {
        daemon.stop()?;
        return Err(failed);
    }
    tell(ready);
    notify(State::Ready);
    let signal = daemon.wait_for_signal();
    notify(State::Stopping);
    output.message(&format!(
        "{signal}: finishing connections and writing a checkpoint. A second signal stops at once; no acknowledged \
         write is lost then either."
    ));
    match daemon.stop()? {
        Ending::Clean => {
            output.message("The pool is closed.");
            Ok(ExitCode::SUCCESS)
        }
        Ending::Interrupted => {
            tell("Stopped at once, without a checkpoint. The next start reads the log again.");
            host::exit_now(EXIT_INTERRUPTED)
        }
    }
}

fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("ROK_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

fn warn_open(address: &SocketAddr) {
    tell(&format!(
        "Warning: {address} may be reachable from other machines. Whoever reaches it can read and write what \
         rok-blk export offers, unless its rules say otherwise, unencrypted on the wire."
    ));
}

const fn own_keys(arguments: &Serve) -> OwnKeys {
    match (arguments.without_own_keys, arguments.give_up_own_keys) {
        (_, true) => OwnKeys::GivenUp,
        (true, false) => OwnKeys::Closed,
        (false, false) => OwnKeys::Opened,
    }
}
