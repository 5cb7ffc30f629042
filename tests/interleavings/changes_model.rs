//! Lanes that lay batches of changes while a checkpoint cuts.

use crate::map::changes::{Change, ChangeKey, Changes};
use rok_blk::units::{BlockIndex, Epoch, LEAF_ENTRIES_U64, Sequence, TreeId};
use shuttle::thread;
use std::collections::BTreeMap;
use std::sync::Arc;

const LANES: u64 = 2;
const BATCHES: u64 = 2;
const CUTS: u64 = 2;

/// A lane's blocks: one in each of two leaves.
fn blocks_of(lane: u64) -> [BlockIndex; 2] {
    [lane, LEAF_ENTRIES_U64 + lane].map(BlockIndex::new)
}

fn key(block: BlockIndex) -> ChangeKey {
    ChangeKey { tree: TreeId::new(1), block, epoch: Epoch::new(1) }
}

/// Each batch of a lane has one sequence, higher than the one before.
fn lay(changes: &Changes, lane: u64, is_whole: bool) {
    for batch in 1..=BATCHES {
        let change = Change { sequence: Sequence::new(batch), entry: None };
        if is_whole {
            let guard = changes.lay();
            blocks_of(lane).into_iter().for_each(|block| guard.lay(key(block), change));
        } else {
            blocks_of(lane).into_iter().for_each(|block| changes.lay().lay(key(block), change));
        }
    }
}

/// The sequences of all blocks that a cut has.
fn cut(changes: &Changes) -> BTreeMap<BlockIndex, Sequence> {
    changes.cut(|| ());
    let frozen = (0..changes.stripe_count()).flat_map(|stripe| changes.frozen(stripe));
    let frozen: BTreeMap<_, _> = frozen.map(|(key, change)| (key.block, change.sequence)).collect();
    assert_eq!(changes.frozen_count(), frozen.len() as u64, "the count is that of the cut");
    changes.drop_frozen();
    frozen
}

fn model(is_whole: bool) {
    let changes = Arc::new(Changes::default());
    let lanes = (0..LANES).map(|lane| {
        let changes = Arc::clone(&changes);
        thread::spawn(move || lay(&changes, lane, is_whole))
    });
    let lanes: Vec<_> = lanes.collect();
    let mut last = BTreeMap::new();
    for _ in 0..CUTS {
        take(&mut last, cut(&changes));
    }
    for lane in lanes {
        lane.join().expect("a lane panics only with the run");
    }
    take(&mut last, cut(&changes));
    let all = (0..LANES).flat_map(blocks_of).map(|block| (block, Sequence::new(BATCHES)));
    assert_eq!(last, all.collect(), "each lane's last batch came to a cut");
    assert_eq!(changes.active_count(), 0);
}

/// Takes a cut over: each batch is in it wholly or not at all, and nothing goes back.
fn take(last: &mut BTreeMap<BlockIndex, Sequence>, cut: BTreeMap<BlockIndex, Sequence>) {
    for lane in 0..LANES {
        let [first, second] = blocks_of(lane).map(|block| cut.get(&block));
        assert_eq!(first, second, "a batch is divided");
    }
    for (block, sequence) in cut {
        let before = last.insert(block, sequence);
        assert!(before.is_none_or(|before| before < sequence), "a change came to two cuts");
    }
}

pub fn cuts_divide_no_batch() {
    model(true);
}

pub fn cuts_divide_what_is_no_batch() {
    model(false);
}
