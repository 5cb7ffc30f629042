//! What a pool does on its disks, step by step.

use crate::rig::stage::{Done, Stage};
use crate::rig::{Rig, Settings};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rok_blk::crypto::Suite;
use rok_blk::disk::{CrashMode, Device as _};
use rok_blk::error::ErrorKind;
use rok_blk::pool::Unverified;
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64, LEAF_ENTRIES_U64, STRETCH_BLOCKS};
use rok_blk::volume::RemoveMode;

/// A step and its name.
pub type Step = (&'static str, fn(&mut Stage) -> Done);

/// Steps from an empty machine on.
pub struct Scenario {
    pub name: &'static str,
    pub begin: fn() -> Stage,
    pub steps: &'static [Step],
}

const STRETCH_BYTES: u64 = STRETCH_BLOCKS * BLOCK_SIZE_U64;
/// A front, a window, stock, and some to give back.
const SPACE_STRETCHES: u64 = 6;
/// A front, the reserve, windows, and room.
const SMALL_BYTES: u64 = 800 * BLOCK_SIZE_U64;
/// Into a second leaf.
const BLOCKS: u64 = 270;
/// More than one checkpoint merges.
const LEAVES: u64 = 10;

fn small(suite: Suite, lane_count: u16) -> Stage {
    Stage::new(Rig::blank(Settings::new(suite, lane_count), &[SMALL_BYTES]), 7)
}

pub const SCENARIOS: [Scenario; 4] = [
    Scenario { name: "data", begin: || small(Suite::XtsGmac, 2), steps: &DATA },
    Scenario { name: "versions", begin: || small(Suite::Plain, 1), steps: &VERSIONS },
    Scenario {
        name: "lineage",
        begin: || {
            let mut settings = Settings::new(Suite::Plain, 1);
            // Nothing is copied down: what is removed is merged into what was made of it.
            settings.limits.lineage_max = 8;
            Stage::new(Rig::blank(settings, &[SMALL_BYTES]), 8)
        },
        steps: &LINEAGE,
    },
    Scenario {
        name: "space",
        begin: || {
            let stage = Stage::new(Rig::blank(Settings::new(Suite::XtsGmac, 1), &[SPACE_STRETCHES * STRETCH_BYTES]), 9);
            stage.rig.devices[0].0.set_thin(true);
            stage
        },
        steps: &SPACE,
    },
];

fn settled(stage: &mut Stage, act: impl FnOnce(&mut Stage)) -> Done {
    act(stage);
    stage.settle()
}

const BEGIN: [Step; 3] =
    [("make a pool", Stage::create_pool), ("make a superblock", Stage::create_superblock), ("open", Stage::open)];

const DATA: [Step; 35] = [
    BEGIN[0],
    BEGIN[1],
    BEGIN[2],
    ("create", |stage| stage.create("a", BLOCKS, false)),
    ("create with a key", |stage| stage.create("b", 8, true)),
    ("write", |stage| settled(stage, |stage| stage.write("a", 0..4, false))),
    ("write with FUA", |stage| settled(stage, |stage| stage.write("b", 0..2, true))),
    ("write in two leaves", |stage| settled(stage, |stage| stage.write("a", 254..259, false))),
    ("write a part of a block", |stage| settled(stage, |stage| stage.write_sectors("a", 9..19, false))),
    ("flush", |stage| settled(stage, Stage::flush)),
    ("checkpoint", Stage::checkpoint),
    ("write a part of a block", |stage| settled(stage, |stage| stage.write_sectors("b", 3..5, true))),
    ("read", |stage| stage.read("a")),
    ("read of leaves in memory", |stage| stage.read("a")),
    ("discard", |stage| removed(stage, 1..2, RemoveMode::Discard)),
    ("write zeroes", |stage| removed(stage, 255..257, RemoveMode::Zero)),
    ("write provisioned zeroes", |stage| removed(stage, 2..3, RemoveMode::ZeroProvisioned)),
    ("write zeroes in parts of blocks", |stage| zeroed(stage, 5..26, RemoveMode::Zero)),
    ("write provisioned zeroes in a part of a block", |stage| zeroed(stage, 27..30, RemoveMode::ZeroProvisioned)),
    ("resize", |stage| stage.resize("a", BLOCKS + 4)),
    ("checkpoint", Stage::checkpoint),
    ("die and open", die_and_open),
    ("read", |stage| stage.read("a")),
    ("read", |stage| stage.read("b")),
    ("checkpoint", Stage::checkpoint),
    ("scrub", Stage::scrub),
    ("write", |stage| settled(stage, |stage| stage.write("b", 2..4, false))),
    ("die and be refused without keys", die_and_be_refused),
    ("open", Stage::open),
    ("shred", |stage| stage.remove_volume("b", true)),
    ("change the key slots", Stage::change_superblock),
    ("repair the superblock", Stage::repair_superblock),
    ("reclaim", Stage::reclaim),
    ("close", Stage::close),
    ("check", Stage::check_closed),
];

const VERSIONS: [Step; 34] = [
    BEGIN[0],
    BEGIN[1],
    BEGIN[2],
    ("create", |stage| stage.create("a", BLOCKS, false)),
    ("write", |stage| settled(stage, |stage| stage.write("a", 0..6, false))),
    ("snapshot", |stage| stage.snapshot(&["a"])),
    ("write", |stage| settled(stage, |stage| stage.write("a", 2..3, false))),
    ("checkpoint", Stage::checkpoint),
    ("snapshot", |stage| stage.snapshot(&["a"])),
    ("write", |stage| settled(stage, |stage| stage.write("a", 258..260, false))),
    ("clone", |stage| stage.clone_version("a@1", &["c", "d"])),
    ("read a clone", |stage| stage.read("c")),
    ("write", |stage| settled(stage, |stage| stage.write("c", 1..3, false))),
    ("snapshot", |stage| stage.snapshot(&["a", "c"])),
    ("clone", |stage| stage.clone_version("c@1", &["e"])),
    ("tell the status", |stage| stage.list_status("e", "a@2")),
    ("checkpoint", Stage::checkpoint),
    ("read a version", |stage| stage.read("a@1")),
    ("tell the status", |stage| stage.list_status("a", "c@1")),
    ("compare", |stage| stage.compare("a@1", "c")),
    ("write", |stage| settled(stage, |stage| stage.write("e", 4..5, false))),
    ("snapshot", |stage| stage.snapshot(&["e"])),
    ("clone", |stage| stage.clone_version("e@1", &["f"])),
    ("reclaim", Stage::reclaim),
    ("forecast", |stage| stage.forecast("a")),
    ("roll back", |stage| stage.roll_back("a", "a@2", true)),
    ("remove a version", |stage| stage.remove_version("a@1")),
    ("remove a volume", |stage| stage.remove_volume("c", false)),
    ("reclaim", Stage::reclaim),
    ("die and open", die_and_open),
    ("read a clone", |stage| stage.read("e")),
    ("check the open pool", Stage::check_open),
    ("close", Stage::close),
    ("check", Stage::check_closed),
];

/// A version is merged into the clone that is left of it, and in the middle of that the clone goes too.
const LINEAGE: [Step; 17] = [
    BEGIN[0],
    BEGIN[1],
    BEGIN[2],
    ("create", |stage| stage.create("a", LEAVES * LEAF_ENTRIES_U64, false)),
    ("create", |stage| stage.create("b", 4, false)),
    ("write in each leaf", |stage| {
        settled(stage, |stage| in_each_leaf().for_each(|blocks| stage.write("a", blocks, false)))
    }),
    ("write", |stage| settled(stage, |stage| stage.write("b", 0..2, false))),
    ("snapshot", |stage| stage.snapshot(&["a"])),
    ("clone", |stage| stage.clone_version("a@1", &["c"])),
    ("write", |stage| settled(stage, |stage| stage.write("c", 1..3, false))),
    ("checkpoint", Stage::checkpoint),
    ("remove a volume", |stage| stage.remove_volume("a", false)),
    ("checkpoint", Stage::begin_a_merge),
    ("remove a volume", |stage| stage.remove_volume("c", false)),
    ("reclaim", Stage::reclaim),
    ("close", Stage::close),
    ("check", Stage::check_closed),
];

const SPACE: [Step; 20] = [
    BEGIN[0],
    BEGIN[1],
    BEGIN[2],
    ("create", |stage| stage.create("a", 32, false)),
    ("write", |stage| settled(stage, |stage| stage.write("a", 0..20, false))),
    ("checkpoint", Stage::checkpoint),
    ("clean", Stage::clean),
    ("leak and repair", Stage::repair_a_leak),
    ("trim", |stage| {
        leave_old_bytes(stage);
        stage.trim()
    }),
    ("grow a device", |stage| stage.grow_device(300 * BLOCK_SIZE_U64)),
    ("write", |stage| settled(stage, |stage| stage.write("a", 20..24, true))),
    ("close", Stage::close),
    ("open", |stage| {
        stage.rig.settings.lane_count = 3;
        stage.open()
    }),
    ("write", |stage| settled(stage, |stage| (0..3).for_each(|block| stage.write("a", block..block + 1, false)))),
    ("restock", Stage::restock),
    ("add a device", |stage| stage.add_device(SMALL_BYTES)),
    ("write", |stage| settled(stage, |stage| stage.write("a", 3..30, false))),
    ("checkpoint", Stage::checkpoint),
    ("close", Stage::close),
    ("check", Stage::check_closed),
];

/// A block of each leaf.
fn in_each_leaf() -> impl Iterator<Item = std::ops::Range<u64>> {
    (0..LEAVES).map(|leaf| leaf * LEAF_ENTRIES_U64..leaf * LEAF_ENTRIES_U64 + 1)
}

fn removed(stage: &mut Stage, blocks: std::ops::Range<u64>, mode: RemoveMode) -> Done {
    stage.remove_blocks("a", blocks, mode, false)?;
    stage.settle()
}

fn zeroed(stage: &mut Stage, sectors: std::ops::Range<u64>, mode: RemoveMode) -> Done {
    stage.zero_sectors("a", sectors, mode, false)?;
    stage.settle()
}

/// With writes that were not stored, of which some were flushed.
fn die_and_open(stage: &mut Stage) -> Done {
    settled(stage, |stage| stage.write("a", 5..8, true))?;
    settled(stage, |stage| stage.write("a", 7..10, false))?;
    stage.end_life();
    stage.rig.kill(CrashMode::KillBeforeWriteback, &mut SmallRng::seed_from_u64(3));
    stage.open()
}

/// Nobody can tell without its key whether what was written last to the volume is whole.
fn die_and_be_refused(stage: &mut Stage) -> Done {
    stage.end_life();
    stage.rig.kill(CrashMode::KillBeforeWriteback, &mut SmallRng::seed_from_u64(4));
    match stage.rig.open_without_own_keys(Unverified::Refused) {
        // A failure before was in the way of the write.
        Ok(_) if stage.rig.tap.failed_count() > 0 => {
            stage.rig.kill(CrashMode::KillBeforeWriteback, &mut SmallRng::seed_from_u64(5));
            Ok(())
        }
        Ok(_) => panic!("it is opened without a key that it needs"),
        Err(error) if error.kind() == ErrorKind::Key => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Bytes that somebody wrote long ago are where nothing is.
fn leave_old_bytes(stage: &Stage) {
    let device = &stage.rig.devices[0].0;
    let written = (1..SPACE_STRETCHES)
        .try_for_each(|stretch| device.write_at(stretch * STRETCH_BYTES + STRETCH_BYTES / 2, &[7; BLOCK_SIZE]));
    written.and_then(|()| device.flush()).expect("a healthy machine");
}
