//! Small pools that have one of everything, and what is read of a changed one.

use super::limit::{Found, Limit};
use super::structure::Spot;
use crate::crash_states::text_of;
use crate::model::Value;
use crate::rig::oracle::Oracle;
use crate::rig::stage::Stage;
use crate::rig::{Rig, RigLife, Settings};
use crate::sector::parse;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rok_blk::crypto::Suite;
use rok_blk::disk::CrashMode;
use rok_blk::error::ErrorKind;
use rok_blk::pool::{Checkpoint, SuperblockCopies};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Pools: encrypted or not, with or without writes that are only in the log, and one with a second leaf.
pub const SAMPLES: u64 = 5;
const DEVICE_BYTES: u64 = 560 * BLOCK_SIZE_U64;

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The pool is refused, or blocks are errors.
    Detected,
    /// Blocks hold what they held before the last writes.
    Torn,
    /// All is read as before.
    None,
}

/// A pool at its end, and an older copy of it.
struct Sample {
    rig: Rig,
    older: Rig,
    oracle: Oracle,
    spots: Vec<Spot>,
}

/// The pools of a thread.
pub struct Pools(Vec<Sample>);

impl Pools {
    pub fn new() -> Self {
        Self((0..SAMPLES).map(Sample::new).collect())
    }

    /// What is stored in a pool.
    pub fn spots(&self, sample: u64) -> &[Spot] {
        &self.sample(sample).spots
    }

    /// An older copy of a pool.
    pub fn older(&self, sample: u64) -> &Rig {
        &self.sample(sample).older
    }

    pub fn byte_count(&self) -> u64 {
        self.0.iter().flat_map(|sample| &sample.spots).map(|spot| spot.len_bytes as u64).sum()
    }

    fn sample(&self, sample: u64) -> &Sample {
        &self.0[usize::try_from(sample).expect("few samples")]
    }

    /// Changes a copy of a pool, and looks at what comes of it, which is to be no more than the limit says; `None` if there was
    /// nothing to change.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(
        &self,
        sample: u64,
        told: &dyn Fn() -> String,
        limit: &Limit,
        change: &mut dyn FnMut(&mut Rig, &[Spot]) -> bool,
    ) -> Result<Option<Effect>, String> {
        let sample = self.sample(sample);
        let mut rig = sample.rig.image();
        if !change(&mut rig, &sample.spots) {
            return Ok(None);
        }
        let looked = catch_unwind(AssertUnwindSafe(|| look(&mut rig, &sample.oracle, limit)));
        let looked = looked.unwrap_or_else(|panic| Err(text_of(&*panic)));
        looked.map(Some).map_err(|error| format!("{}: {error}", told()))
    }
}

impl Sample {
    fn new(number: u64) -> Self {
        let suite = if number.is_multiple_of(2) { Suite::XtsGmac } else { Suite::Plain };
        let (is_closed, is_wide) = (number == 2 || number == 3, number == 4);
        let mut stage = Stage::new(Rig::blank(Settings::new(suite, 1), &[DEVICE_BYTES]), number);
        let mut older = None;
        let made = (|| {
            stage.create_pool()?;
            stage.create_superblock()?;
            stage.open()?;
            stage.create("a", if is_wide { 262 } else { 10 }, false)?;
            stage.create("b", 4, stage.rig.has_own_keys())?;
            stage.write("a", 0..5, false);
            stage.write("b", 1..3, false);
            stage.snapshot(&["a"])?;
            stage.write("a", 3..7, false);
            if is_wide {
                stage.write("a", 255..258, false);
            }
            stage.checkpoint()?;
            older = Some(stage.rig.image());
            stage.clone_version("a@1", &["c"])?;
            stage.write("c", 1..2, false);
            stage.write("a", 0..1, false);
            stage.snapshot(&["a"])?;
            stage.checkpoint()?;
            stage.write("a", 2..4, false);
            stage.settle()?;
            stage.checkpoint()?;
            for block in 5..8 {
                stage.write("a", block..block + 1, false);
                stage.settle()?;
            }
            // The last record says that those before it are flushed.
            stage.flush();
            stage.settle()?;
            stage.write("b", 0..2, false);
            stage.settle()?;
            if is_closed { stage.close() } else { Ok(()) }
        })();
        made.unwrap_or_else(|error| panic!("a healthy machine: {error:?}"));
        stage.end_life();
        stage.rig.kill(CrashMode::Kill, &mut SmallRng::seed_from_u64(0));
        let older = older.expect("it was copied");
        older.kill(CrashMode::Kill, &mut SmallRng::seed_from_u64(0));
        let (spots, oracle) = (Spot::all(&stage.rig), stage.oracle.lock().clone());
        Self { rig: stage.rig, older, oracle, spots }
    }
}

/// Opens a changed pool and reads all of it, before and behind a checkpoint.
fn look(rig: &mut Rig, oracle: &Oracle, limit: &Limit) -> Result<Effect, String> {
    if !is_superblock_right(rig)? {
        limit.check_refused()?;
        return Ok(Effect::Detected);
    }
    let Ok(life) = rig.open() else {
        limit.check_refused()?;
        return Ok(Effect::Detected);
    };
    let before = compare(&life, oracle)?;
    // It may find the damage and stop the pool.
    let is_stored = Checkpoint::begin(Arc::clone(&life.pool)).run().is_ok();
    let after = compare(&life, oracle)?;
    [&before, &after].into_iter().try_for_each(|found| limit.check(&life.pool, found))?;
    // What no read meets, the check may.
    let is_clean = life.check().is_ok() && is_stored;
    let is_readable = before.unreadable.is_empty() && after.unreadable.is_empty();
    Ok(match before.older.len() + after.older.len() {
        0 if is_readable && is_clean => Effect::None,
        older if is_readable && older > 0 => Effect::Torn,
        _ => Effect::Detected,
    })
}

/// Whether the superblock is read as it was; `false` if it is refused.
fn is_superblock_right(rig: &Rig) -> Result<bool, String> {
    let Ok(copies) = SuperblockCopies::read(&rig.superblock.process_handle()) else { return Ok(false) };
    if !copies.is_of(&rig.master) {
        return Ok(false);
    }
    let slots = &copies.superblock.slots;
    let is_right = slots.len() == 1 && slots[0].salt == [1; 32] && copies.superblock.devices.len() == 1;
    if is_right { Ok(true) } else { Err(format!("the superblock says {:?}", copies.superblock)) }
}

/// Compares all that can be read with what it may be.
fn compare(life: &RigLife, oracle: &Oracle) -> Result<Found, String> {
    let Found { mut unreadable, mut older } = Found::default();
    let random = &mut SmallRng::seed_from_u64(0);
    let heads = oracle.heads.iter().map(|(name, head)| (name, head.block_count));
    let versions = oracle.versions.iter().map(|(name, version)| (name, version.block_count));
    for (name, block_count) in heads.chain(versions) {
        let open = match life.volumes.open_reference(name) {
            Ok(open) => open,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(format!("{name} is gone")),
            Err(_) => {
                unreadable.extend((0..block_count).map(|block| (name.clone(), block)));
                continue;
            }
        };
        let mut one = |block: u64, bytes: &[u8]| {
            let is_newest =
                oracle.judge_block(name, block, value_of(bytes)).map_err(|error| format!("{name}: {error}"))?;
            older.extend((!is_newest).then(|| (name.clone(), block)));
            Ok::<(), String>(())
        };
        if let Ok(bytes) = life.read(&open, (0, block_count), random) {
            (0..).zip(bytes.chunks(BLOCK_SIZE)).try_for_each(|(block, bytes)| one(block, bytes))?;
            continue;
        }
        for block in 0..block_count {
            match life.read(&open, (block, 1), random) {
                Ok(bytes) => one(block, &bytes)?,
                Err(_) => {
                    unreadable.insert((name.clone(), block));
                }
            }
        }
    }
    Ok(Found { unreadable, older })
}

/// Who wrote each sector; `None` where nobody did.
fn value_of(bytes: &[u8]) -> Option<Value> {
    let mut value = Value::default();
    if bytes.iter().fold(0, |all, byte| all | byte) != 0 {
        for (place, sector) in value.iter_mut().zip(bytes.chunks_exact(512)) {
            *place = parse(sector)?;
        }
    }
    Some(value)
}
