//! Behaviour of the crate through its public interface.

mod block_sizes;
mod catalog;
mod client_handshake;
mod client_replies;
mod contexts;
mod handshake;
mod hostile_input;
mod memory_server;
mod numbers;
mod replies;
mod requests;
mod round_trips;
mod strings;
mod tls;
mod uris;
