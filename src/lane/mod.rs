//! Lanes: threads that own a ring each, run the engine, and serve NBD connections and queues of ublk devices.
//!
//! [`Server`] starts one lane for each lane of the pool. Everything that a lane does goes through its ring: pool I/O,
//! commands of devices, sockets, accepting, timers, and the eventfd by which other threads wake it. It enters the kernel once a turn,
//! and sleeps there when there is nothing to do. Where io_uring is refused, a lane does its sockets by itself and threads
//! do its pool I/O (`driver`); its logic is the same. tokio never waits for a lane: the methods of [`Server`] block.

mod accepting;
mod access;
mod address;
mod alarm;
mod attaching;
mod blocking;
mod buffers;
mod checkpoints;
mod cleaning;
mod connection;
mod controls;
mod device;
mod diff_context;
mod driver;
mod exports;
mod given_socket;
mod handshake;
mod io_method;
mod kernel_client;
pub mod limits;
mod listeners;
mod mailbox;
mod pool_events;
mod priority;
mod raised;
mod requests;
mod scrubbing;
mod sender;
mod server;
mod settings;
mod signals;
mod status;
mod stream;
mod target;
mod tcp;
mod thread;
mod threads;
mod tls;
mod trimming;
mod users;

pub use access::{AllowRule, BadRule};
pub use address::ListenAddress;
#[cfg(feature = "rocksdb")]
pub(crate) use alarm::Alarm;
pub use attaching::{AttachedDevice, DeviceVolume};
#[cfg(feature = "rocksdb")]
pub(crate) use blocking::Jobs;
pub use device::DeviceTarget;
pub use exports::ExportPolicy;
pub use given_socket::GivenSocket;
pub use io_method::{IoChoice, IoMethod};
pub use kernel_client::{KernelClient, KernelClientEnd, KernelClientId};
#[cfg(feature = "rocksdb")]
pub(crate) use limits::BLOCKING_THREADS;
pub use pool_events::PoolEvents;
#[cfg(feature = "rocksdb")]
pub(crate) use priority::work_in_background;
pub use rok_nbd::server::TlsOffer;
pub use server::{ExportInfo, Server, ServerOptions};
pub use settings::{Expose, ListenSettings, NbdLimits};
pub use tls::TlsAuthority;
pub use users::DeviceAccess;
