//! How a daemon's pool is opened and served, each time that is done.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::attachments::Attachments;
use super::control::{Control, PoolPlace};
use super::control_socket::remove_stale;
use super::device_names::DeviceNames;
use super::export_store;
use super::short_memory::MemoryLock;
use super::upkeep::Upkeep;
use crate::crypto::Suite;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{
    GivenSocket, IoChoice, ListenAddress, ListenSettings, NbdLimits, Server, ServerOptions, TlsAuthority,
};
use crate::pool::Watermarks;
use crate::pool::directory::{self, Credential, OpenOptions, OwnKeys, PoolDescription};

/// Where to listen for NBD over TCP.
#[derive(Clone, Copy, Debug)]
pub struct TcpListen {
    /// The address; port 0 takes any free one.
    pub address: SocketAddr,
    /// How many ports to try, counting up from the address's: at least 1.
    pub port_tries: u16,
    /// How the listener treats its clients.
    pub settings: ListenSettings,
}

/// A socket that was passed to the process, to listen on for NBD.
#[derive(Clone, Debug)]
pub struct GivenListen {
    /// The socket. It stays open while the pool is locked; clients that connect meanwhile wait.
    pub socket: Arc<GivenSocket>,
    /// How the listener treats its clients.
    pub settings: ListenSettings,
}

/// What opens a pool, but for its key.
#[derive(Debug)]
pub(super) struct PoolSetup {
    /// The pool's directory.
    pub pool: PathBuf,
    /// Where udev is told the names of disks.
    pub device_names: DeviceNames,
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
    /// NBD on sockets that others made.
    pub nbd_given: Vec<GivenListen>,
    /// Threads that do the pool's I/O, at least 1.
    pub lane_count: u16,
    /// How they do it.
    pub io: IoChoice,
    /// Memory for decoded leaves of the map, in bytes.
    pub map_cache_bytes: u64,
    /// Memory of the metadata store, in bytes.
    pub meta_cache_bytes: u64,
    /// What is done with volumes that have a key of their own.
    pub own_keys: OwnKeys,
    /// When space counts as low.
    pub watermarks: Watermarks,
    /// When the process's memory is locked.
    pub memory_lock: MemoryLock,
}

impl PoolSetup {
    /// Opens the pool, starts its lanes and listens.
    ///
    /// # Errors
    /// `Busy` if another process has the pool or all the ports; `Key`, `Integrity` and others of opening a pool.
    pub fn serve(&self, credential: Option<Credential>, started_at: u64) -> Result<Control> {
        let begin = Instant::now();
        // Before anybody can connect, and before anything is changed.
        let policies = export_store::read(&self.pool)?;
        let tls = self.tls_directory.as_deref().map(TlsAuthority::open).transpose()?.map(Arc::new);
        let pool = directory::open(
            &self.pool,
            &OpenOptions {
                credential,
                lane_count: self.lane_count,
                map_cache_bytes: self.map_cache_bytes,
                meta_cache_bytes: self.meta_cache_bytes,
                own_keys: self.own_keys,
                watermarks: self.watermarks,
            },
        )?;
        let place = PoolPlace { path: self.pool.clone(), open_time: begin.elapsed(), started_at };
        let options = ServerOptions { devices: pool.devices, io: self.io, nbd: self.nbd_limits, tls };
        let server = Server::start(pool.pool, options)?;
        policies.into_iter().for_each(|(volume, policy)| server.set_export_policy(volume, policy));
        // Before clients can connect: what a device has for itself, none of them may get first.
        let devices = Attachments::restore(&server, &self.pool, self.device_names.clone(), self.memory_lock);
        let started = listen_everywhere(&server, self)
            .and_then(|listeners| Ok((listeners, Upkeep::begin(&server, pool.copies)?)));
        let (listeners, upkeep) = match started {
            Ok(started) => started,
            Err(error) => {
                devices.leave();
                // The pool was opened, so it is closed; that this fails too would hide the cause.
                if let Err(second) = server.shutdown() {
                    tracing::warn!(error = %second, "the pool did not close cleanly");
                }
                return Err(error);
            }
        };
        Ok(Control::new(devices, place, pool.key_slots, pool.device_list, listeners, upkeep))
    }

    /// Takes where it listened, so that clients find it there again.
    pub fn keep_addresses(&mut self, listeners: &[ListenAddress]) {
        let tcp = listeners.iter().filter_map(|listener| match listener {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        });
        // It listens in the order in which it was told to.
        let kept = self.nbd_tcp.iter().zip(tcp);
        self.nbd_tcp = kept.map(|(listen, address)| TcpListen { address, port_tries: 1, ..*listen }).collect();
    }
}

fn listen_everywhere(server: &Server, setup: &PoolSetup) -> Result<Vec<ListenAddress>> {
    let mut listeners = Vec::new();
    if let Some(path) = &setup.nbd_unix {
        remove_stale(path).map_err(|error| match error.kind() {
            ErrorKind::Busy => Error::new(ErrorKind::Busy, format!("Another server listens at {}", path.display()))
                .with_hint("Name another socket with --nbd-unix"),
            _ => error,
        })?;
        listeners.push(server.listen(&ListenAddress::Unix(path.clone()), setup.nbd_unix_settings)?);
    }
    for tcp in &setup.nbd_tcp {
        listeners.push(listen_on_free_port(server, tcp)?);
    }
    for given in &setup.nbd_given {
        listeners.push(server.listen_on_given(&given.socket, given.settings)?);
    }
    Ok(listeners)
}

fn listen_on_free_port(server: &Server, tcp: &TcpListen) -> Result<ListenAddress> {
    let first = tcp.address.port();
    let last = first.saturating_add(tcp.port_tries.saturating_sub(1));
    for port in first..=last {
        match server.listen(&ListenAddress::Tcp(SocketAddr::new(tcp.address.ip(), port)), tcp.settings) {
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
pub(super) fn check_credential(
    pool: &Path,
    description: &PoolDescription,
    credential: Option<&Credential>,
) -> Result<()> {
    if description.suite == Suite::Plain {
        return Ok(());
    }
    let path = match credential {
        Some(Credential::KeyFile(path)) => path,
        Some(Credential::Passphrase(_)) => return Ok(()),
        None => {
            let message = format!("The pool in {} is encrypted, and no key was given", pool.display());
            return Err(Error::new(ErrorKind::Key, message).with_hint(
                "Name its key file with --key-file, or give its passphrase with --passphrase or --passphrase-file; with \
                 --locked the key comes later, from rok-blk key unlock",
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

/// A pool is locked by forgetting its key: it must have one.
pub(super) fn check_can_be_locked(description: &PoolDescription, pool: &Path) -> Result<()> {
    if description.suite == Suite::Plain {
        let message = format!("The pool in {} is not encrypted: it cannot be locked", pool.display());
        return Err(Error::new(ErrorKind::Usage, message).with_hint("Leave --locked out"));
    }
    Ok(())
}
