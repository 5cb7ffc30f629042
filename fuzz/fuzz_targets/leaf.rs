//! Leaves of the map, changes of them and parts, as they are before they are sealed. The first byte chooses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_blk::format::leaf::{Leaf, LeafChange, Part, frames, level_of, sealed_part};
use rok_blk::map::PackedLeaf;
use rok_blk::units::Epoch;
use rok_fuzz::{bounded, stable};

const EPOCH: Epoch = Epoch::new(900);

/// A leaf is the same packed, and its entries can be taken out and put back.
fn check_leaf(leaf: &Leaf) {
    assert_eq!(leaf.encoded_len(), leaf.encode().len());
    assert_eq!((leaf.len(), leaf.iter().count()), (leaf.present().len(), leaf.len()));
    let packed = PackedLeaf::from(leaf);
    assert!(packed.entries_from(0).eq((0..=u8::MAX).map(|slot| leaf.get(slot))), "it is another leaf when packed");
    let mut copy = Leaf::default();
    leaf.iter().for_each(|(slot, entry)| assert!(copy.set(slot, Some(entry)).is_none()));
    assert_eq!(&copy, leaf);
}

/// A change applied twice is that change, and appended to itself as well.
fn check_change(change: &LeafChange) {
    check_leaf(&change.entries);
    let mut once = Leaf::default();
    once.apply(change);
    assert_eq!(once, change.entries, "removals come first");
    let mut twice = once.clone();
    twice.apply(change);
    assert_eq!(twice, once);
    let mut sum = change.clone();
    sum.append(change);
    let mut by_sum = Leaf::default();
    by_sum.apply(&sum);
    assert_eq!(by_sum, once);
    assert_eq!(sum.slots(), change.slots());
}

fuzz_target!(|input: &[u8]| {
    let [choice, body @ ..] = input else { return };
    match choice % 4 {
        0 => {
            if let Some(leaf) = stable(body, Leaf::decode, Leaf::encode) {
                check_leaf(&leaf);
            }
        }
        1 => {
            if let Some(change) = stable(body, LeafChange::decode, LeafChange::encode) {
                check_change(&change);
            }
        }
        2 => {
            if let Some(part) = stable(body, |body| Part::decode(body, EPOCH), |part| part.encode(EPOCH)) {
                assert!(part.base < EPOCH);
                check_change(&part.change);
            }
        }
        _ => {
            let level = level_of(body);
            if let Ok((found, frames)) = bounded(body.len(), || frames(body)) {
                assert_eq!(found, level);
                assert!(!frames.is_empty());
            }
            let _is_seal = bounded(body.len(), || sealed_part(body)).is_ok();
        }
    }
});
