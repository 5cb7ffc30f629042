//! Each small merge: a version goes whose leaves are merged with what follows it, one leaf in a checkpoint, and in the middle of
//! that a block is written.

use crate::rig::stage::Stage;
use crate::rig::{Rig, Settings};
use rok_blk::crypto::Suite;
use rok_blk::units::LEAF_ENTRIES_U64;

const DEVICE_BYTES: u64 = 48 << 20;
/// So many can lie before, at and behind a cursor.
const LEAVES: u64 = 3;
/// The merge ends in fewer.
const CHECKPOINTS_MAX: u64 = 4;
/// A block that everybody writes, one that only the version's interval writes, and one that nobody does.
const SHARED: u64 = 0;
const OF_VERSION: u64 = 1;
const FREE: u64 = 7;

/// What there is around the version that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    /// Nothing before it.
    Nothing,
    /// A version before it that stays.
    Earlier,
    /// A clone of it follows, and its volume goes with it.
    Clone,
}

/// Which intervals have a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leaf {
    of_version: bool,
    of_follower: bool,
}

const LEAVES_ALL: [Leaf; 4] = [
    Leaf { of_version: false, of_follower: false },
    Leaf { of_version: false, of_follower: true },
    Leaf { of_version: true, of_follower: false },
    Leaf { of_version: true, of_follower: true },
];

/// One merge, and what is written in the middle of it.
#[derive(Clone, Copy, Debug)]
struct Case {
    around: Around,
    /// The leaf that is written, and what it is like before.
    written: (u64, Leaf),
    /// What the others are like.
    others: Leaf,
    /// Checkpoints before it is written.
    checkpoints: u64,
    block: u64,
}

impl Case {
    fn leaf(&self, leaf: u64) -> Leaf {
        if leaf == self.written.0 { self.written.1 } else { self.others }
    }
}

/// A closed pool with a volume, of which a version may be kept.
fn base(around: Around) -> Stage {
    let mut settings = Settings::new(Suite::XtsGmac, 1);
    settings.limits.reclaimed_per_checkpoint = 1;
    let mut stage = Stage::new(Rig::new(settings, &[DEVICE_BYTES]), 1);
    stage.open().expect("a new pool opens");
    stage.create("v", LEAVES * LEAF_ENTRIES_U64, false).expect("a new volume");
    if around == Around::Earlier {
        for leaf in 0..LEAVES {
            write(&mut stage, "v", leaf, &[SHARED, OF_VERSION]);
        }
        stage.snapshot(&["v"]).expect("nothing is in the way");
    }
    stage.close().expect("a healthy machine");
    stage
}

fn write(stage: &mut Stage, name: &str, leaf: u64, blocks: &[u64]) {
    for block in blocks {
        let block = leaf * LEAF_ENTRIES_U64 + block;
        stage.write(name, block..block + 1, false);
    }
    stage.settle().expect("a healthy machine");
}

fn check(stage: &mut Stage, case: &Case) {
    if let Err(error) = stage.life().check() {
        panic!("{case:?}: {error}");
    }
}

fn run(base: &Stage, case: Case) {
    let mut stage = base.image(2);
    stage.open().expect("it was closed");
    for leaf in (0..LEAVES).filter(|leaf| case.leaf(*leaf).of_version) {
        write(&mut stage, "v", leaf, &[SHARED, OF_VERSION]);
    }
    stage.snapshot(&["v"]).expect("nothing is in the way");
    let version = stage.version_of("v", false).expect("it was just made");
    let name = if case.around == Around::Clone { "clone" } else { "v" };
    if case.around == Around::Clone {
        stage.clone_version(&version, &[name]).expect("nothing is in the way");
    }
    for leaf in (0..LEAVES).filter(|leaf| case.leaf(*leaf).of_follower) {
        write(&mut stage, name, leaf, &[SHARED]);
    }
    stage.checkpoint().expect("a healthy machine");
    match case.around {
        Around::Clone => stage.remove_volume("v", false).expect("nobody has it open"),
        Around::Nothing | Around::Earlier => stage.remove_version(&version).expect("nobody reads it"),
    }
    for _ in 0..case.checkpoints {
        stage.checkpoint().expect("a healthy machine");
        check(&mut stage, &case);
    }
    write(&mut stage, name, case.written.0, &[case.block]);
    stage.checkpoint().expect("a healthy machine");
    check(&mut stage, &case);
    stage.reclaim().expect("a healthy machine");
    check(&mut stage, &case);
    stage.read(name).expect("nothing is in the way");
    if case.around == Around::Earlier {
        let earlier = stage.version_of("v", true).expect("it stays");
        stage.read(&earlier).expect("nothing is in the way");
    }
    stage.close().expect("a healthy machine");
}

#[test]
fn a_write_in_the_middle_of_a_merge_is_neither_lost_nor_leaks_what_it_replaces() {
    for around in [Around::Nothing, Around::Earlier, Around::Clone] {
        let base = base(around);
        for written in (0..LEAVES).flat_map(|leaf| LEAVES_ALL.map(|like| (leaf, like))) {
            for others in &LEAVES_ALL[2..] {
                for checkpoints in 0..=CHECKPOINTS_MAX {
                    for block in [SHARED, OF_VERSION, FREE] {
                        run(&base, Case { around, written, others: *others, checkpoints, block });
                    }
                }
            }
        }
    }
}
