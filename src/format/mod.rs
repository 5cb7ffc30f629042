//! Bytes and structs of everything on disk. `FORMAT.md` beside this file is the specification.
//!
//! All integers are little-endian, but for those in keys of the metadata store, which are big-endian so
//! that byte order is number order. Reserved bytes are zero and checked. Nothing here does I/O.

pub mod bitmap;
pub mod catalog;
pub mod codec;
pub mod device_header;
pub mod entry;
#[cfg(test)]
pub(crate) mod golden_tests;
pub mod job;
pub mod key;
pub mod leaf;
pub mod owner;
pub mod policy;
pub mod record;
pub mod scrub;
pub mod session;
pub mod shred_key;
pub mod snapshot;
pub mod superblock;

pub use codec::FormatError;

/// Version of the on-disk format that this build writes. A pool with a higher one is refused.
pub const FORMAT_VERSION: u32 = 1;
