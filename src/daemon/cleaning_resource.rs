//! What the API answers about the cleaner.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::pool::{PoolStatus, WRITE_AMPLIFICATION_MAX};
use crate::units::BLOCK_SIZE_U64;

/// How the free space lies, and what the cleaner did about it since the pool was opened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Cleaning {
    /// Free bytes in long runs, where writes are batched well.
    #[serde(rename = "long_runs")]
    pub long_run_bytes: u64,
    /// Free bytes in holes among blocks in use.
    #[serde(rename = "holes")]
    pub hole_bytes: u64,
    /// Free bytes that were given back to the file systems of the pool's files, and are taken again when they are needed.
    #[serde(rename = "given_back")]
    pub given_back_bytes: u64,
    /// Whether the file system had no space when that was tried last.
    pub is_taking_failing: bool,
    /// Bytes that users wrote.
    #[serde(rename = "written")]
    pub written_bytes: u64,
    /// Bytes that the cleaner moved.
    #[serde(rename = "moved")]
    pub moved_bytes: u64,
    /// Bytes written for each byte that users wrote, without the log's records.
    pub write_amplification: f64,
    /// What the cleaner never lets that come to be.
    pub write_amplification_max: u64,
    /// Whether there is nothing to clean before the next checkpoint.
    pub is_resting: bool,
}

impl Cleaning {
    /// From what the pool knows.
    #[must_use]
    pub fn new(pool: &PoolStatus, is_resting: bool) -> Self {
        let status = &pool.cleaning;
        Self {
            given_back_bytes: pool.released_bytes,
            is_taking_failing: pool.is_restock_failing,
            long_run_bytes: status.shape.whole_blocks * BLOCK_SIZE_U64,
            hole_bytes: status.shape.hole_blocks * BLOCK_SIZE_U64,
            written_bytes: status.written * BLOCK_SIZE_U64,
            moved_bytes: status.moved * BLOCK_SIZE_U64,
            write_amplification: status.write_amplification(),
            write_amplification_max: WRITE_AMPLIFICATION_MAX,
            is_resting,
        }
    }
}
