//! Flips of bits and edits in small pools, by the structure that they hit: each is detected, or without effect on any read.
//!
//! `ROK_BIT_FLIPS` flips so many bits, `ROK_FIRST_BIT_FLIP` says with which they begin: a number names one bit of one pool.
//! With `ROK_EVERY_BYTE=1` each byte of each pool has one of its bits flipped, and the numbers count these.

mod edit;
mod limit;
mod pool;
mod structure;

use crate::setting;
use edit::EDITS;
use limit::Limit;
use parking_lot::Mutex;
use pool::{Effect, Pools, SAMPLES};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use structure::{Spot, Structure};

const FLIPS: u64 = 65_536;
/// Magic, version and what follows.
const HEAD_BYTES: usize = 24;
/// Of each edit in each pool.
const EDITS_EACH: u64 = 60;

/// What was found, by what was changed.
#[derive(Default)]
struct Tally {
    counts: BTreeMap<String, [u64; 3]>,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, what: &str, result: Result<Effect, String>) {
        match result {
            Ok(effect) => self.counts.entry(what.to_owned()).or_default()[effect as usize] += 1,
            Err(error) => self.wrong.push(error),
        }
    }

    fn merge(&mut self, other: Self) {
        for (what, counts) in other.counts {
            let sum = self.counts.entry(what).or_default();
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        self.wrong.extend(other.wrong);
    }

    /// Prints the counts; they of all together.
    fn print(&self) -> [u64; 3] {
        let mut sum = [0; 3];
        for (what, [detected, torn, none]) in &self.counts {
            println!(
                "{what}: {detected} detected, {torn} taken for a crash that tore the last writes, {none} without effect"
            );
            sum.iter_mut().zip([detected, torn, none]).for_each(|(sum, count)| *sum += count);
        }
        sum
    }

    fn assert_clean(&self) {
        let first: Vec<_> = self.wrong.iter().take(10).collect();
        assert!(self.wrong.is_empty(), "{} wrong: {first:#?}", self.wrong.len());
    }
}

/// Does a numbered piece of work on all threads, each with pools of its own.
fn on_all_threads(first: u64, count: u64, work: impl Fn(&Pools, u64, &mut Tally) + Sync) -> Tally {
    let (next, sum) = (AtomicU64::new(first), Mutex::new(Tally::default()));
    crate::in_threads(|| {
        let (pools, mut tally) = (Pools::new(), Tally::default());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= first + count {
                return sum.lock().merge(tally);
            }
            work(&pools, number, &mut tally);
        }
    });
    sum.into_inner()
}

fn flip(pools: &Pools, sample: u64, spot: &Spot, (byte, bit): (usize, u8), tally: &mut Tally) {
    let told = || format!("sample {sample}, bit {bit} of byte {byte} of {spot:?}");
    let result = pools.check(sample, &told, &Limit::of(spot), &mut |rig, _| {
        spot.flip(rig, byte, bit);
        true
    });
    tally.add(spot.structure().name(), result.map(|effect| effect.expect("a bit was flipped")));
}

/// A bit that the number chooses: structures have equal chances, then all their bytes.
fn flip_any(pools: &Pools, number: u64, tally: &mut Tally) {
    let (sample, random) = (number % SAMPLES, &mut SmallRng::seed_from_u64(number));
    let spots = pools.spots(sample);
    let structures: Vec<Structure> = spots.iter().map(Spot::structure).collect();
    let kinds: std::collections::BTreeSet<Structure> = structures.iter().copied().collect();
    let kind = kinds.iter().nth(random.random_range(0..kinds.len())).expect("in range");
    let of_kind: Vec<&Spot> = spots.iter().filter(|spot| spot.structure() == *kind).collect();
    let spot = of_kind[random.random_range(0..of_kind.len())];
    flip(pools, sample, spot, (random.random_range(0..spot.len_bytes), random.random_range(0..8)), tally);
}

/// The bit of a byte, where all bytes of all pools are counted.
fn flip_byte(pools: &Pools, number: u64, tally: &mut Tally) {
    let mut left = usize::try_from(number).expect("a small count");
    for sample in 0..SAMPLES {
        for spot in pools.spots(sample) {
            if left < spot.len_bytes {
                let bit = u8::try_from(number.wrapping_mul(0x9e37_79b9) % 8).expect("below 8");
                return flip(pools, sample, spot, (left, bit), tally);
            }
            left -= spot.len_bytes;
        }
    }
}

#[test]
fn each_flipped_bit_is_detected_or_without_effect() {
    let first = setting("ROK_FIRST_BIT_FLIP", 0);
    let is_every_byte = setting("ROK_EVERY_BYTE", 0) == 1;
    let tally = if is_every_byte {
        let count = Pools::new().byte_count();
        println!("{count} bytes in all");
        on_all_threads(first, setting("ROK_BIT_FLIPS", count).min(count - first), flip_byte)
    } else {
        on_all_threads(first, setting("ROK_BIT_FLIPS", FLIPS), flip_any)
    };
    let [detected, torn, none] = tally.print();
    println!("flips from {first}: {detected} detected, {torn} taken for torn, {none} without effect");
    tally.assert_clean();
    assert!(detected > 0 && none > 0, "each of these happens");
}

/// There are two of each of them: nothing that one says of itself, its version too, keeps the other from being read.
#[test]
fn no_bit_at_the_begin_of_one_of_two_copies_has_an_effect() {
    let pools = Pools::new();
    let mut tally = Tally::default();
    for sample in 0..SAMPLES {
        for spot in pools.spots(sample).iter().filter(|spot| spot.is_begin_of_copy()) {
            let bits = (0..HEAD_BYTES).flat_map(|byte| (0..8).map(move |bit| (byte, bit)));
            bits.for_each(|place| flip(&pools, sample, spot, place, &mut tally));
        }
    }
    let [detected, torn, none] = tally.print();
    tally.assert_clean();
    assert!(detected + torn == 0 && none > 1000, "each bit is flipped, and none of them is missed");
}

#[test]
fn each_edit_of_structures_is_detected_or_without_effect() {
    let each = SAMPLES * EDITS_EACH;
    let tally = on_all_threads(0, each * EDITS.len() as u64, |pools, number, tally| {
        let edit = &EDITS[usize::try_from(number / each).expect("few edits")];
        let (sample, random) = (number % SAMPLES, &mut SmallRng::seed_from_u64(number));
        let older = pools.older(sample);
        let told = || format!("sample {sample}, {} {number}", edit.name);
        let result = pools.check(sample, &told, &Limit::Any, &mut |rig, spots| (edit.make)(rig, older, spots, random));
        match result {
            // Of this pool there are not two.
            Ok(None) => {}
            Ok(Some(effect)) => tally.add(edit.name, Ok(effect)),
            Err(error) => tally.add(edit.name, Err(error)),
        }
    });
    tally.print();
    tally.assert_clean();
    for edit in &EDITS {
        let [detected, torn, none] = tally.counts.get(edit.name).copied().unwrap_or_default();
        assert!(detected + torn + none > 0, "{} was never made", edit.name);
        assert!(!edit.is_always_detected || torn + none == 0, "{} is not always detected", edit.name);
    }
}

#[test]
fn pools_of_flips_hold_every_structure() {
    let pools = Pools::new();
    let found: std::collections::BTreeSet<Structure> =
        (0..SAMPLES).flat_map(|sample| pools.spots(sample).iter().map(Spot::structure)).collect();
    let missing: Vec<_> = Structure::ALL.iter().filter(|structure| !found.contains(structure)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for sample in 0..SAMPLES {
        let untouched = pools.check(sample, &String::new, &Limit::Nothing, &mut |_, _| true);
        assert_eq!(untouched, Ok(Some(Effect::None)));
    }
}
