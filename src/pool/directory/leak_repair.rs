//! The repair of leaked space in a pool that nobody has open.

use super::{Credential, META_CACHE_BYTES_MIN, OpenOptions, OwnKeys, check, open};
use crate::error::Result;
use crate::pool::{LeakRepair, Watermarks};
use std::path::Path;

/// Checks the pool in `directory`, which nobody has open, and repairs what leaked if the check finds nothing else; then the
/// pool is opened for it, which does what any opening does first.
///
/// # Errors
/// As [`open`], and the failure of the metadata store: then some of it is repaired.
pub fn repair(directory: &Path, credential: Option<&Credential>) -> Result<LeakRepair> {
    let report = check(directory, credential)?;
    if !report.has_only_leaks() {
        return Ok(LeakRepair::none(report));
    }
    let options = OpenOptions {
        credential: credential.cloned(),
        lane_count: 1,
        map_cache_bytes: 0,
        meta_cache_bytes: META_CACHE_BYTES_MIN,
        own_keys: OwnKeys::Opened,
        watermarks: Watermarks::default(),
    };
    let opened = open(directory, &options)?;
    let mut repair = opened.pool.find_leaks()?;
    while opened.pool.repair_leaks(&mut repair)? {}
    Ok(repair)
}
