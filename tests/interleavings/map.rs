//! The structures of the library's `map`, from its source.

#[path = "../../src/map/cache.rs"]
pub mod cache;
#[path = "../../src/map/changes.rs"]
pub mod changes;
#[path = "../../src/map/packed.rs"]
pub mod packed;
