//! The control plane: the process around the engine and its HTTP/JSON API on a unix socket.
//!
//! [`Daemon`] owns the process's life: it claims the control socket, opens the pool, starts the lanes, listens for NBD
//! and answers the API until a signal. [`Control`] is what the API can do, without HTTP. It runs on tokio, never
//! touches a pool device and is never awaited by a lane; every call into the engine goes to tokio's blocking threads.

pub mod attachment_resource;
pub mod attention;
pub mod check_resource;
pub mod cleaning_resource;
pub mod control;
pub mod control_socket;
pub mod device_request;
pub mod device_resource;
pub mod device_users;
pub mod diff_resource;
pub mod export_resource;
pub mod failure_resource;
pub mod gate;
pub mod host;
pub mod job_resource;
pub mod key_resource;
pub mod lock_resource;
pub mod name_template;
pub mod on_full;
pub mod on_full_resource;
pub mod policy_request;
pub mod policy_resource;
pub mod request;
pub mod resource;
pub mod retention;
pub mod scrub_resource;
pub mod short_memory;
pub mod snapshot_request;
pub mod snapshot_resource;
pub mod space_resource;
pub mod trash_resource;
pub mod version_rule;
pub mod volume_rule;

mod answer;
mod attachment_routes;
mod attachment_store;
mod attachments;
mod device_names;
mod diff_routes;
mod durable_file;
mod export_control;
mod export_routes;
mod export_store;
mod job_routes;
mod job_table;
mod jobs;
mod keeper;
mod kernel_nbd;
mod key_routes;
mod metrics;
mod overdue;
mod peer_listener;
mod policies;
mod policy_routes;
mod policy_table;
mod pool_routes;
mod pool_setup;
mod process;
mod reclaim_job;
mod restoration;
mod router;
mod schedule;
mod scrub_job;
mod scrub_routes;
mod snapshot_routes;
#[cfg(test)]
#[path = "tests/test_server.rs"]
mod test_server;
mod trash;
mod trash_routes;
mod ublk_failure;
mod unchanged;
mod upkeep;
mod volume_routes;
mod warnings;

pub use control::Control;
pub use gate::Gate;
pub use pool_setup::{GivenListen, TcpListen};
pub use process::{Daemon, DaemonOptions, Ending};
pub use router::openapi_document;
