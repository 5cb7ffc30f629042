//! The program as its users meet it: the real binary, unprivileged, in directories of its own.

mod api;
mod boot;
mod cli;
mod clients;
mod failures;
mod images;
mod lane_nbd;
mod process;
mod quickstart;
mod schema;
mod support;
