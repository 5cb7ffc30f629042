//! Lanes: threads that own a ring each, run the engine, and serve NBD connections.
//!
//! [`Server`] starts one lane for each lane of the pool. Everything that a lane does goes through its ring: pool I/O,
//! sockets, accepting, timers, and the eventfd by which other threads wake it. It enters the kernel once a turn,
//! and sleeps there when there is nothing to do. tokio never waits for a lane: the methods of [`Server`] block.

mod address;
mod alarm;
mod blocking;
mod buffers;
mod checkpoints;
mod connection;
mod exports;
mod handshake;
pub mod limits;
mod mailbox;
mod requests;
mod sender;
mod server;
mod signals;
mod thread;

pub use address::ListenAddress;
pub use server::{ExportInfo, Server, ServerOptions};
