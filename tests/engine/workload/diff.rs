//! Differences between any two snapshots and heads, in the middle of everything else: each block whose content differs must
//! be told of, and one that nobody wrote since the two parted must not.

use super::{Pending, Workload};
use crate::model::{Value, ZEROS};
use rand::Rng;
use rok_blk::error::IoError;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::{ChangedRun, ChangedRuns, DiffKind, DiffSide, OpenVolume, StatusWanted, Volume, diff};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;

/// Blocks that the cleaner looks at in one go.
const GROUP_BLOCKS: usize = 256;

/// What is compared, and what it may hold.
pub struct Side {
    pub head: Option<usize>,
    snapshot: Option<(Uuid, u64)>,
    pub allowed: BTreeMap<u64, Vec<Value>>,
    handle: Option<OpenVolume>,
}

/// A comparison under way.
pub struct Comparison {
    blocks: Range<u64>,
    pub sides: [Side; 2],
    runs: ChangedRuns,
}

impl Workload {
    /// Compares two of all volumes and snapshots: by the lane while others write, or at once in small steps.
    pub(super) fn ask_diff(&mut self) {
        let [from, to] = [(); 2].map(|()| self.random_side());
        let Some(size) = self.side_size(to).filter(|size| *size > 0) else { return };
        let block_count = size / BLOCK_SIZE_U64;
        let first = self.world.random.random_range(0..block_count);
        let is_whole = self.world.random.random_bool(0.5);
        let blocks = if is_whole { 0..block_count } else { first..block_count.min(first + 700) };
        let sides = [from, to].map(|choice| self.open_side(choice, &blocks));
        let volumes = [0, 1].map(|index: usize| self.volume_of(&sides[index]));
        self.note(|| format!("diff of {:?}, blocks {blocks:?}", volumes.each_ref().map(|of| DiffSide::from(&**of))));
        let comparison = Comparison { blocks, sides, runs: ChangedRuns::default() };
        if self.world.random.random_bool(0.5) {
            self.diff_on_lane(comparison, volumes)
        } else {
            self.diff_at_once(comparison, &volumes)
        }
    }

    /// A place among the volumes, then among the snapshots.
    fn random_side(&mut self) -> usize {
        let count = super::VOLUME_COUNT + self.snapshots.len();
        self.world.random.random_range(0..count)
    }

    fn side_size(&self, choice: usize) -> Option<u64> {
        let of_snapshot = || self.snapshots.get(choice - super::VOLUME_COUNT).map(|snapshot| snapshot.size_bytes());
        if choice < super::VOLUME_COUNT { self.sizes.get(choice).copied() } else { of_snapshot() }
    }

    fn open_side(&mut self, choice: usize, blocks: &Range<u64>) -> Side {
        if choice < super::VOLUME_COUNT {
            let allowed = blocks.clone().map(|block| (block, self.models[choice].visible_values(block))).collect();
            return Side { head: Some(choice), snapshot: None, allowed, handle: None };
        }
        let id = self.snapshots[choice - super::VOLUME_COUNT].id();
        let handle = self.life().volumes.open_snapshot(id).expect("the snapshot is there");
        Side { head: None, snapshot: Some(id), allowed: BTreeMap::new(), handle: Some(handle) }
    }

    fn volume_of(&mut self, side: &Side) -> Arc<Volume> {
        match (&side.handle, side.head) {
            (Some(handle), _) => Arc::clone(handle.volume()),
            (None, Some(volume)) => Arc::clone(self.life().handles[volume].volume()),
            (None, None) => unreachable!("a side is one or the other"),
        }
    }

    fn diff_on_lane(&mut self, comparison: Comparison, [from, to]: [Arc<Volume>; 2]) {
        let bytes = (
            comparison.blocks.start * BLOCK_SIZE_U64,
            (comparison.blocks.end - comparison.blocks.start) * BLOCK_SIZE_U64,
        );
        let wanted = StatusWanted { mapped: None, changed: vec![(from, ChangedRuns::clone(&comparison.runs))] };
        let completion = self.completion(Pending::Diff(Box::new(comparison)));
        let lane = self.lane();
        self.life().lanes[lane].list_status(&to, bytes, wanted, completion);
    }

    fn diff_at_once(&mut self, comparison: Comparison, volumes: &[Arc<Volume>; 2]) {
        let sides = (DiffSide::from(&*volumes[0]), DiffSide::from(&*volumes[1]));
        let leaf_count_max = self.world.random.random_range(1..4);
        let (mut next, end) = (comparison.blocks.start * BLOCK_SIZE_U64, comparison.blocks.end * BLOCK_SIZE_U64);
        let mut runs = Vec::new();
        while next < end {
            let pool = Arc::clone(&self.life().pool);
            let step = diff(&pool, sides, next..end, leaf_count_max).expect("a look at the map reads no device");
            assert!(step.end_bytes > next, "a step goes on");
            for run in step.runs {
                runs.push(ChangedRun { size_bytes: run.offset_bytes - next, kind: None });
                runs.push(ChangedRun { size_bytes: run.size_bytes, kind: Some(run.kind) });
                next = run.offset_bytes + run.size_bytes;
            }
            runs.push(ChangedRun { size_bytes: step.end_bytes - next, kind: None });
            next = step.end_bytes;
        }
        comparison.runs.replace(runs);
        self.compared(&comparison, Ok(()));
    }

    /// Checks what a comparison found.
    pub(super) fn compared(&mut self, comparison: &Comparison, result: Result<(), IoError>) {
        assert_eq!(result, Ok(()), "a look at the map reads no device");
        let mut block = comparison.blocks.start;
        for run in comparison.runs.borrow().iter() {
            assert_eq!(run.size_bytes % BLOCK_SIZE_U64, 0, "the range is whole blocks");
            for _ in 0..run.size_bytes / BLOCK_SIZE_U64 {
                let [before, after] = [0, 1].map(|index: usize| self.values_of(&comparison.sides[index], block));
                let is_right = is_possible(run.kind, &before, &after) || self.is_moved(run.kind, block);
                let sides = comparison.sides.each_ref().map(|side| (side.head, side.snapshot));
                assert!(is_right, "block {block} of {sides:?} is told as {:?}: {before:?}, {after:?}", run.kind);
                self.world.counts.blocks_changed += u64::from(run.kind.is_some());
                block += 1;
            }
        }
        assert!(block > comparison.blocks.start && block <= comparison.blocks.end, "a part of the range is told of");
        self.world.counts.diffs += 1;
    }

    /// Whether the cleaner may have moved a block behind a snapshot that was made meanwhile: then it is told of as written,
    /// although what it holds is the same. What it begins later leaves the snapshot's blocks alone.
    fn is_moved(&mut self, kind: Option<DiffKind>, block: u64) -> bool {
        if kind == Some(DiffKind::Rewritten) {
            self.moved_by_cleaner.insert(block);
        }
        kind == Some(DiffKind::Rewritten) && self.moved_by_cleaner.len() <= self.groups_at_gates * GROUP_BLOCKS
    }

    fn values_of(&self, side: &Side, block: u64) -> Vec<Value> {
        if let Some(volume) = side.head {
            let mut values = side.allowed[&block].clone();
            values.extend(self.models[volume].visible_values(block));
            return values;
        }
        let snapshot = self.snapshots.iter().find(|snapshot| Some(snapshot.id()) == side.snapshot);
        snapshot.expect("a snapshot that is open stays").values(block)
    }
}

/// Whether it may be told so of a block that held one of these values, and then one of those.
fn is_possible(kind: Option<DiffKind>, before: &[Value], after: &[Value]) -> bool {
    // Of two equal values without zeros nobody wrote one since: each write has its own number.
    let is_surely_same = before.iter().chain(after).all(|value| *value == before[0] && !value.contains(&0));
    match kind {
        None => before.iter().any(|value| after.contains(value)),
        Some(_) if is_surely_same => false,
        Some(DiffKind::Added) => before.contains(&ZEROS),
        Some(DiffKind::Removed) => after.contains(&ZEROS),
        Some(DiffKind::Rewritten) => true,
    }
}
