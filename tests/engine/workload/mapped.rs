//! Walks over the map in the middle of everything else: what is told to be absent must read as zeros.

use super::{Pending, Workload};
use crate::model::{Value, ZEROS};
use rok_blk::error::IoError;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::{MapRuns, StatusWanted};
use std::collections::BTreeMap;

impl Workload {
    /// Asks what is mapped in a range, or has it cached.
    pub(super) fn ask_mapped(&mut self) {
        let volume = self.random_volume();
        let (first, count) = self.random_range(volume, 2000);
        let lane = self.lane();
        let is_cached_only = self.now.is_multiple_of(4);
        self.note(|| format!("walk over volume {volume} from {first}, {count} blocks"));
        let blocks = first..first + count;
        let allowed = blocks.map(|block| (block, self.models[volume].visible_values(block))).collect();
        let runs = MapRuns::default();
        let pending = if is_cached_only {
            Pending::Cache { volume }
        } else {
            Pending::Walk { volume, first, count, runs: runs.clone(), allowed }
        };
        let completion = self.completion(pending);
        let life = self.life();
        let handle = life.handles[volume].volume().clone();
        let range = (first * BLOCK_SIZE_U64, count * BLOCK_SIZE_U64);
        if is_cached_only {
            life.lanes[lane].cache(&handle, range, completion);
        } else {
            let wanted = StatusWanted { mapped: Some(runs), ..StatusWanted::default() };
            life.lanes[lane].list_status(&handle, range, wanted, completion);
        }
    }

    /// Checks what a walk found. A block that may hold data at no time of the walk must not be mapped if it was never
    /// written, and one that held data all the time must be.
    pub(super) fn walked(
        &mut self,
        volume: usize,
        (first, count): (u64, u64),
        runs: &MapRuns,
        allowed: &BTreeMap<u64, Vec<Value>>,
        result: Result<(), IoError>,
    ) {
        if result.is_err() {
            return self.failed();
        }
        let mut block = first;
        for run in runs.borrow().iter() {
            assert_eq!(run.size_bytes % BLOCK_SIZE_U64, 0, "the range is whole blocks");
            for _ in 0..run.size_bytes / BLOCK_SIZE_U64 {
                let mut values = allowed[&block].clone();
                values.extend(self.models[volume].visible_values(block));
                let is_right =
                    if run.is_mapped { self.models[volume].is_touched(block) } else { values.contains(&ZEROS) };
                assert!(
                    is_right,
                    "block {block} of volume {volume} is told to be mapped ({}), allowed are {values:?}",
                    run.is_mapped
                );
                block += 1;
            }
        }
        assert!(block > first && block <= first + count, "a walk covers a part of its range");
        self.world.counts.blocks_walked += block - first;
    }
}
