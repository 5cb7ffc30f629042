//! rok-blk: a userspace block-device server with thin, encrypted, copy-on-write volumes.
//!
//! `ARCHITECTURE.md` tells the layers and the path of a write and a read through these files.

mod atomics;
#[cfg(feature = "rocksdb")]
pub mod cli;
pub mod crypto;
#[cfg(feature = "rocksdb")]
pub mod daemon;
pub mod disk;
pub mod error;
pub mod format;
pub mod lane;
pub mod map;
pub mod meta;
pub mod planted;
pub mod pool;
pub mod units;
pub mod volume;
