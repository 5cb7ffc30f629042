//! What the API answers about a check of the pool.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::resource::{ApiVersion, Kind};
use crate::pool::{CheckReport, Difference, LeakRepair, Place};
use crate::units::BLOCK_SIZE_U64;

/// What a check found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `CheckReport`.
    pub kind: Kind,
    /// The pool's id.
    pub uuid: Uuid,
    /// Whether there is no difference, or none is left after the repair.
    pub is_clean: bool,
    /// Trees of the map.
    pub trees: u64,
    /// Leaves of the map.
    pub leaves: u64,
    /// Blocks that they map.
    pub mapped_blocks: u64,
    /// Records of the log that were followed; none of a pool that is served.
    pub records: u64,
    /// Blocks that count as used, and nothing maps them: what a repair frees if there is no other difference.
    pub leaked_blocks: u64,
    /// How many differences there are, or were before the repair.
    pub differences: u64,
    /// The first of them, at most 1000.
    pub items: Vec<CheckDifference>,
    /// What was repaired; null if that was not asked for.
    pub repair: Option<CheckRepair>,
}

/// What a repair of leaked space did or, as a dry run, would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckRepair {
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// Blocks that count as used no more. None if there is a difference of another kind.
    pub blocks: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// Of these bytes, what writes can have at once; the others when the pool is opened next. Null in a plan.
    pub free: Option<u64>,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckDifference {
    /// What is wrong, a stable word: `leaked`, `not-marked`, `mapped-twice`, `out-of-range`, `damaged-leaf`,
    /// `damaged-bitmap`, `stray-leaf`, `missing-leaf`, `stray-tree`, `index`, `count`, `log` or `memory`.
    pub code: String,
    /// Which blocks it is about; null if not about single ones.
    pub blocks: Option<DeviceBlocks>,
    /// Who maps them.
    pub places: Vec<MappedPlace>,
    /// The same as a sentence.
    pub message: String,
}

/// Consecutive blocks of 4 KiB of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceBlocks {
    /// The device, as `pool show` orders them, from 0.
    pub device: u8,
    /// The first block.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// A block of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MappedPlace {
    /// The volume whose head the tree is; null if it is none's.
    pub volume: Option<String>,
    /// The tree.
    pub tree: u64,
    /// The epoch.
    pub epoch: u64,
    /// The block of 4 KiB.
    pub block: u64,
}

impl CheckAnswer {
    /// From what the engine found in the pool.
    #[must_use]
    pub fn new(pool: Uuid, report: CheckReport) -> Self {
        Self {
            api: ApiVersion::V1,
            kind: Kind::CheckReport,
            uuid: pool,
            is_clean: report.is_clean(),
            trees: report.tree_count,
            leaves: report.leaf_count,
            mapped_blocks: report.mapped_block_count,
            records: report.record_count,
            leaked_blocks: report.leaked_block_count,
            differences: report.difference_count,
            items: report.differences.into_iter().map(CheckDifference::new).collect(),
            repair: None,
        }
    }

    /// With what a repair would do.
    #[must_use]
    pub fn planned(pool: Uuid, report: CheckReport) -> Self {
        let blocks = if report.has_only_leaks() { report.leaked_block_count } else { 0 };
        let repair = CheckRepair { is_dry_run: true, blocks, bytes: blocks * BLOCK_SIZE_U64, free: None };
        Self { repair: Some(repair), ..Self::new(pool, report) }
    }

    /// With what a repair did; what it freed is free at once where `is_open`.
    #[must_use]
    pub fn repaired(pool: Uuid, repair: &LeakRepair, is_open: bool) -> Self {
        let blocks = repair.repaired_count();
        let free = if is_open { repair.freed_count() } else { blocks };
        let [bytes, free] = [blocks, free].map(|count| count * BLOCK_SIZE_U64);
        let done = CheckRepair { is_dry_run: false, blocks, bytes, free: Some(free) };
        let is_clean = repair.is_whole();
        Self { is_clean, repair: Some(done), ..Self::new(pool, repair.report().clone()) }
    }
}

impl CheckDifference {
    fn new(difference: Difference) -> Self {
        let blocks = difference.blocks.map(|run| DeviceBlocks {
            device: run.start.device().get(),
            first: run.start.block(),
            count: run.count,
        });
        let place = |place: Place| MappedPlace {
            volume: place.volume,
            tree: place.tree.get(),
            epoch: place.epoch.get(),
            block: place.block.get(),
        };
        Self {
            code: difference.kind.code().to_owned(),
            blocks,
            places: difference.places.into_iter().map(place).collect(),
            message: difference.message,
        }
    }
}
