//! The structures of the library's `volume`, from its source.

#[path = "../../src/volume/range_lock.rs"]
pub mod range_lock;
