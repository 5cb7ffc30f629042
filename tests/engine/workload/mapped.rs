//! Walks over the map in the middle of everything else: what is told to be absent must read as zeros.

use super::{Pending, Workload};
use crate::model::{Value, ZEROS};
use rand::Rng;
use rok_blk::error::IoError;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::{MapRuns, StatusWanted, Volume};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

impl Workload {
    /// Asks what is mapped in a range of a volume or of a snapshot, or has it cached.
    pub(super) fn ask_mapped(&mut self) {
        if !self.snapshots.is_empty() && self.world.random.random_bool(0.5) {
            return self.walk_over_snapshot();
        }
        let volume = self.random_volume();
        if self.now.is_multiple_of(4) { self.cache(volume) } else { self.walk_over(volume) }
    }

    fn cache(&mut self, volume: usize) {
        let (first, count) = self.random_range(volume, 2000);
        let lane = self.lane();
        let completion = self.completion(Pending::Cache { volume });
        let life = self.life();
        let handle = life.handles[volume].volume().clone();
        life.lanes[lane].cache(&handle, (first * BLOCK_SIZE_U64, count * BLOCK_SIZE_U64), completion);
    }

    /// Asks what is mapped in a range of a volume.
    pub(super) fn walk_over(&mut self, volume: usize) {
        let (first, count) = self.random_range(volume, 2000);
        self.note(|| format!("walk over volume {volume} from {first}, {count} blocks"));
        let blocks = first..first + count;
        let allowed = blocks.map(|block| (block, self.models[volume].visible_values(block))).collect();
        let runs = MapRuns::default();
        let handle = self.life().handles[volume].volume().clone();
        self.walk(&handle, (first, count), &runs.clone(), Pending::Walk { volume, first, count, runs, allowed });
    }

    fn walk_over_snapshot(&mut self) {
        // The last one more often: of it not everything may be stored.
        let is_last = self.world.random.random_bool(0.5);
        let index =
            if is_last { self.snapshots.len() - 1 } else { self.world.random.random_range(0..self.snapshots.len()) };
        let (id, blocks) = (self.snapshots[index].id(), self.snapshots[index].size_bytes() / BLOCK_SIZE_U64);
        let first = self.world.random.random_range(0..blocks);
        let count = self.world.random.random_range(1..=2000).min(blocks - first);
        self.note(|| format!("walk over snapshot {} of {} from {first}, {count} blocks", id.1, id.0));
        let runs = MapRuns::default();
        let handle = self.life().volumes.open_snapshot(id).expect("the snapshot is there");
        let volume = Arc::clone(handle.volume());
        let pending = Pending::WalkSnapshot { id, first, count, runs: runs.clone(), _handle: handle };
        self.walk(&volume, (first, count), &runs, pending);
    }

    /// Begins a walk. In half of the cases checkpoints store what they can between its look at the store and its next turn.
    fn walk(&mut self, over: &Arc<Volume>, (first, count): (u64, u64), runs: &MapRuns, pending: Pending) {
        let completion = self.completion(pending);
        let lane = self.lane();
        let is_overtaken = self.world.random.random_bool(0.5);
        let mut life = self.life.take().expect("a life was begun");
        let wanted = StatusWanted { mapped: Some(runs.clone()), ..StatusWanted::default() };
        life.lanes[lane].list_status(over, (first * BLOCK_SIZE_U64, count * BLOCK_SIZE_U64), wanted, completion);
        if is_overtaken {
            life.lanes[lane].turn();
            life.run_jobs();
            self.world.checkpoints_alone(&mut life);
        }
        self.life = Some(life);
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
        assert_eq!(result, Ok(()), "a look at the map reads no device");
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

    /// The same for a walk over a snapshot. What is told to be absent reads as zeros for ever.
    pub(super) fn snapshot_walked(
        &mut self,
        id: (Uuid, u64),
        (first, count): (u64, u64),
        runs: &MapRuns,
        result: Result<(), IoError>,
    ) {
        assert_eq!(result, Ok(()), "a look at the map reads no device");
        let Some(index) = self.snapshots.iter().position(|other| other.id() == id) else { return };
        let mut block = first;
        for run in runs.borrow().iter() {
            assert_eq!(run.size_bytes % BLOCK_SIZE_U64, 0, "the range is whole blocks");
            for _ in 0..run.size_bytes / BLOCK_SIZE_U64 {
                let snapshot = &mut self.snapshots[index];
                let is_right = if run.is_mapped { snapshot.is_touched(block) } else { snapshot.settle(block, ZEROS) };
                assert!(
                    is_right,
                    "block {block} of snapshot {} of {} is told to be mapped ({}), possible are {:?}",
                    id.1,
                    id.0,
                    run.is_mapped,
                    snapshot.values(block)
                );
                block += 1;
            }
        }
        assert!(block > first && block <= first + count, "a walk covers a part of its range");
        self.world.counts.snapshot_blocks_walked += block - first;
    }
}
