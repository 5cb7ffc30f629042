//! The program as its users meet it: the real binary, unprivileged, in directories of its own.

mod api;
mod bench;
mod boot;
mod canary;
mod cli;
mod clients;
mod damage;
mod devices;
mod failures;
mod history;
mod images;
mod key;
mod kill;
mod lane_nbd;
mod load;
mod nbd_client;
mod passphrase;
mod process;
mod quickstart;
mod scan;
mod schema;
mod stamp;
mod support;
mod thin;
mod victim;
