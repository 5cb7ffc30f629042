//! Values of the table of leaves, as a checkpoint stores them and the store's merges leave them: a whole leaf or a part, then
//! changes, each sealed for its place; several epochs of one leaf, which build on each other.
//!
//! The input tells values, the oldest first: a byte for the distance of its epoch, its depth, its restarts and the number of
//! its frames, then each frame's length and body. What is left over is a value that nobody sealed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_blk::crypto::{KeyRing, SealKind};
use rok_blk::format::key;
use rok_blk::format::leaf::{Leaf, LeafChange, Level, PART_DEPTH_MAX, Part, part_value, push_frame};
use rok_blk::map::{Lineage, Onto, StoredLeaves};
use rok_blk::meta::{Durability, MemoryStore, MetaOp, MetaStore as _, Table};
use rok_blk::units::{Epoch, LeafIndex, TreeId};
use rok_fuzz::{bounded, key_ring};

const TREE: TreeId = TreeId::new(7);
/// Has no leaf there.
const PARENT: TreeId = TreeId::new(4);
const INDEX: LeafIndex = LeafIndex::new(3);
const VALUES_MAX: usize = 6;
/// No leaf and no change is larger.
const BODY_BYTES_MAX: usize = 16 << 10;

/// A value with its bodies as they are before they are sealed.
struct Value<'a> {
    epoch: Epoch,
    level: Level,
    bodies: Vec<&'a [u8]>,
}

fn take<'a>(input: &mut &'a [u8], epoch: Epoch) -> Option<Value<'a>> {
    let (&[distance, depth, restarts, count], mut rest) = input.split_first_chunk()?;
    let depth = depth % (PART_DEPTH_MAX + 1);
    let level = Level { depth, restarts: if depth == 0 { 0 } else { restarts } };
    let mut bodies = Vec::new();
    for _ in 0..=count % 4 {
        let (&len, behind) = rest.split_first_chunk()?;
        let (body, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(len)))?;
        bodies.push(&body[..body.len().min(BODY_BYTES_MAX)]);
        rest = behind;
    }
    *input = rest;
    Some(Value { epoch: Epoch::new(epoch.get() + 1 + u64::from(distance)), level, bodies })
}

/// As `FORMAT.md` tells it, not as the store writes it.
fn sealed(value: &Value<'_>, keys: &KeyRing) -> Vec<u8> {
    let leaf_key = key::leaf(TREE, INDEX, value.epoch);
    let (first, changes) = value.bodies.split_first().expect("there is one");
    let (mut bytes, base) = if value.level == Level::WHOLE {
        let base = keys.seal(SealKind::Leaf, &leaf_key, first);
        let mut bytes = Vec::new();
        push_frame(&mut bytes, &base);
        (bytes, base)
    } else {
        let base = keys.seal(SealKind::Leaf, &[&leaf_key[..], &value.level.bytes()].concat(), first);
        (part_value(value.level, &base), base)
    };
    for (position, change) in (0_u8..).zip(changes) {
        let associated = [&leaf_key[..], &base[..16], &[position]].concat();
        push_frame(&mut bytes, &keys.seal(SealKind::LeafChange, &associated, change));
    }
    bytes
}

/// What the value holds, by its bodies alone; `None` if one of them is none.
fn model(value: &Value<'_>) -> Option<LeafChange> {
    let (first, changes) = value.bodies.split_first()?;
    let mut whole = if value.level == Level::WHOLE {
        LeafChange { entries: Leaf::decode(first).ok()?, ..LeafChange::default() }
    } else {
        Part::decode(first, value.epoch).ok()?.change
    };
    for change in changes {
        let change = LeafChange::decode(change).ok()?;
        if value.level == Level::WHOLE {
            whole.entries.apply(&change);
        } else {
            whole.append(&change);
        }
    }
    Some(whole)
}

fn check_value(leaves: &StoredLeaves<'_>, value: &Value<'_>, bytes: &[u8]) {
    let leaf_key = key::leaf(TREE, INDEX, value.epoch);
    let opened = bounded(bytes.len(), || leaves.open(&leaf_key, value.epoch, bytes));
    assert_eq!(opened.ok().map(|leaf| leaf.change), model(value));
    let elsewhere = key::leaf(TREE, LeafIndex::new(4), value.epoch);
    assert!(leaves.open(&elsewhere, value.epoch, bytes).is_err(), "its seals are for its place");
}

/// Whatever can be read is the same when it is stored whole by a later epoch, and changed there.
fn check_stored(store: &MemoryStore, keys: &KeyRing, newest: Epoch) {
    let leaves = StoredLeaves { store, keys };
    let lineage = Lineage(vec![(TREE, newest), (PARENT, Epoch::new(1))]);
    let (resolved, read) = (leaves.resolve(&lineage, INDEX), leaves.newest(TREE, newest, INDEX));
    assert_eq!(resolved.is_ok(), read.is_ok());
    let Ok(Some(read)) = read else { return };
    assert_eq!(resolved.ok().as_ref(), Some(&read.leaf));
    let later = Epoch::new(newest.get() + 1);
    for onto in [Onto::Nothing, Onto::Older(&read)] {
        let mut batch = Vec::new();
        leaves.store((TREE, later, INDEX), onto, &read.leaf, &LeafChange::default(), &mut batch);
        let image = store.image();
        image.commit(&batch, Durability::Synced).expect("memory takes it");
        let again = StoredLeaves { store: &image, keys }.exactly((TREE, later, INDEX));
        let again = again.expect("our own").expect("it was put");
        assert_eq!(again.leaf, read.leaf);
    }
}

fuzz_target!(|input: &[u8]| {
    let (mut input, keys, store) = (input, key_ring(), MemoryStore::new());
    let leaves = StoredLeaves { store: &store, keys: &keys };
    let mut newest = Epoch::new(0);
    for _ in 0..VALUES_MAX {
        let Some(value) = take(&mut input, newest) else { break };
        newest = value.epoch;
        let bytes = sealed(&value, &keys);
        check_value(&leaves, &value, &bytes);
        let put = MetaOp::Put(Table::Leaves, key::leaf(TREE, INDEX, value.epoch), bytes);
        store.commit(&[put], Durability::Synced).expect("memory takes it");
    }
    check_stored(&store, &keys, newest);
    let leaf_key = key::leaf(TREE, INDEX, newest);
    let _is_sealed = bounded(input.len(), || leaves.open(&leaf_key, newest, input)).is_ok();
});
