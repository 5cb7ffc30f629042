//! Leaves stored, changed and merged at random, against a model that keeps them whole.

use super::{OneLeaf, Onto, StoredLeaves};
use crate::crypto::{KeyRing, Suite};
use crate::format::entry::Entry;
use crate::format::golden_tests as golden;
use crate::format::key;
use crate::format::leaf::{Leaf, LeafChange, PART_DEPTH_MAX};
use crate::meta::{Durability, MemoryStore, MetaOp, MetaRead as _, MetaStore as _, Table};
use crate::units::{Address, DeviceIndex, Epoch, KeyGeneration, LeafIndex, Sequence, TreeId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;

const TREE: TreeId = TreeId::new(3);
const INDEX: LeafIndex = LeafIndex::new(5);

struct Scene {
    store: MemoryStore,
    keys: KeyRing,
    random: SmallRng,
    /// By epoch, the leaf of each interval.
    model: BTreeMap<Epoch, Leaf>,
    next: u64,
    counts: [u64; 4],
}

impl Scene {
    fn new(seed: u64) -> Self {
        let keys = KeyRing::new(Suite::XtsGmac, Arc::new(golden::master()));
        keys.begin_session(golden::SESSION, Sequence::new(1), golden::SALT);
        let random = SmallRng::seed_from_u64(seed);
        Self { store: MemoryStore::new(), keys, random, model: BTreeMap::new(), next: 0, counts: [0; 4] }
    }

    const fn stored(&self) -> StoredLeaves<'_> {
        StoredLeaves { store: &self.store, keys: &self.keys }
    }

    fn commit(&self, batch: &[MetaOp]) {
        self.store.commit(batch, Durability::Synced).expect("memory takes it");
    }

    fn change(&mut self, slots: usize) -> LeafChange {
        let mut change = LeafChange::default();
        for _ in 0..slots {
            let slot = self.random.random();
            self.next += 1;
            let address = Address::new(DeviceIndex::new(0), 1000 + self.next);
            let entry = Entry::new(address, KeyGeneration::new(1), Sequence::new(self.next), self.next);
            change.removed.remove(slot);
            change.entries.set(slot, None);
            if self.random.random_bool(0.2) {
                change.removed.insert(slot);
            } else {
                change.entries.set(slot, Some(entry));
            }
        }
        change
    }

    /// A change of the newest interval, or of a new one; in a later epoch or in the same one.
    fn put(&mut self, is_new: bool, is_later: bool, slots: usize) {
        let change = self.change(slots);
        let newest = self.model.last_key_value().map_or(Epoch::new(0), |(epoch, _)| *epoch);
        let epoch = Epoch::new(newest.get() + if is_new || is_later { self.random.random_range(1..9) } else { 0 });
        let before = self.stored().newest(TREE, epoch, INDEX).expect("it can be read");
        let mut leaf = before.as_ref().map_or_else(Leaf::default, |before| before.leaf.clone());
        leaf.apply(&change);
        let mut batch = Vec::new();
        let onto = match &before {
            None => Onto::Nothing,
            Some(before) if is_new => Onto::Older(before),
            Some(before) => Onto::Own(before),
        };
        let level = self.stored().store((TREE, epoch, INDEX), onto, &leaf, &change, &mut batch);
        self.counts[0] += u64::from(level.is_some());
        self.counts[1] += u64::from(level.is_some_and(|level| level.depth == PART_DEPTH_MAX));
        self.counts[2] += u64::from(level.is_some_and(|level| level.restarts > 0));
        if !is_new && epoch != newest && before.is_some() {
            batch.extend(StoredLeaves::delete((TREE, newest, INDEX)));
            self.model.remove(&newest);
        }
        self.commit(&batch);
        self.model.insert(epoch, leaf);
    }

    /// Merges one interval into the next one.
    fn merge(&mut self) {
        if self.model.len() < 2 {
            return;
        }
        let index = self.random.random_range(0..self.model.len() - 1);
        let epochs: Vec<Epoch> = self.model.keys().copied().collect();
        let read = |epoch| self.stored().exactly((TREE, epoch, INDEX)).expect("it can be read").expect("it is there");
        let (going, follower) = (read(epochs[index]), read(epochs[index + 1]));
        let mut batch = StoredLeaves::delete((TREE, epochs[index], INDEX)).to_vec();
        let is_rebased = self.stored().rebase((TREE, INDEX), (&going, &follower), &mut batch);
        self.commit(&batch);
        self.model.remove(&epochs[index]);
        self.counts[3] += u64::from(is_rebased);
    }

    fn verify(&self) {
        for (epoch, leaf) in &self.model {
            let found = self.stored().newest(TREE, *epoch, INDEX).expect("it can be read").expect("it is there");
            assert_eq!((found.epoch, &found.leaf), (*epoch, leaf));
        }
        let values = self.store.scan(Table::Leaves, &[], &[], usize::MAX).expect("memory answers");
        assert_eq!(values.len(), self.model.len());
        let open = |(leaf_key, value): &(Vec<u8>, Vec<u8>)| {
            let (_, _, epoch) = key::parse_leaf(leaf_key).expect("a leaf's key");
            self.stored().open(leaf_key, epoch, value).expect("it can be read")
        };
        let leaves: Vec<OneLeaf> = values.iter().map(open).collect();
        for (position, leaf) in leaves.iter().enumerate() {
            assert!(leaf.level.depth <= PART_DEPTH_MAX);
            // A whole leaf has no need of it.
            let builds_on_older = |older: &&OneLeaf| leaf.level.depth > 0 && older.level.depth >= leaf.level.depth;
            let between = leaves[position + 1..].iter().take_while(builds_on_older);
            for older in between {
                assert!(leaf.change.slots().has_all_of(&older.change.slots()), "a slot of {} is missing", older.epoch);
            }
        }
    }
}

#[test]
fn leaves_in_parts_are_what_they_were_when_any_of_them_is_merged() {
    let mut counts = [0; 4];
    for seed in 0..60 {
        let mut scene = Scene::new(seed);
        // Most leaves are large; some become so.
        let first = if seed % 4 == 0 { 3 } else { 400 };
        scene.put(true, true, first);
        for _ in 0..120 {
            match scene.random.random_range(0..20) {
                0..10 => scene.put(true, true, 1),
                10 | 11 => scene.put(true, true, 5),
                12 => scene.put(true, true, 150),
                13 => scene.put(false, true, 2),
                14 | 15 => scene.put(false, false, 2),
                16 => (0..70).for_each(|_| scene.put(false, false, 1)),
                _ => scene.merge(),
            }
            scene.verify();
        }
        while scene.model.len() > 1 {
            scene.merge();
            scene.verify();
        }
        counts.iter_mut().zip(scene.counts).for_each(|(sum, count)| *sum += count);
    }
    assert!(
        counts.iter().all(|count| *count > 20),
        "parts, deepest ones, those beside others, rebased ones: {counts:?}"
    );
}

#[test]
fn one_entry_a_part_needs_a_whole_leaf_each_164_parts() {
    let mut scene = Scene::new(1);
    scene.put(true, true, 1500);
    let mut parts_in_a_row = Vec::new();
    let mut parts = 0;
    let mut entries = 0;
    for _ in 0..400 {
        let before = scene.counts[0];
        scene.put(true, true, 1);
        if scene.counts[0] > before {
            parts += 1;
            let (epoch, _) = scene.model.last_key_value().expect("it was put");
            let leaf_key = key::leaf(TREE, INDEX, *epoch);
            let value = scene.store.get(Table::Leaves, &leaf_key).expect("memory answers").expect("it is there");
            let opened = scene.stored().open(&leaf_key, *epoch, &value).expect("it can be read");
            entries += opened.change.slots().len();
        } else {
            parts_in_a_row.push(std::mem::take(&mut parts));
        }
    }
    scene.verify();
    assert_eq!(parts_in_a_row, [164, 164]);
    assert!((2 * 400..3 * 400).contains(&entries), "{entries}");
}

#[test]
fn part_whose_base_is_missing_is_damage() {
    for missing in 1..9 {
        let mut scene = Scene::new(2);
        (0..9).for_each(|nth| scene.put(true, true, if nth == 0 { 1000 } else { 1 }));
        let epochs: Vec<Epoch> = scene.model.keys().copied().collect();
        let newest = epochs[8];
        assert!(scene.stored().newest(TREE, newest, INDEX).is_ok());

        scene.commit(&StoredLeaves::delete((TREE, epochs[missing - 1], INDEX)));

        let error = scene.stored().newest(TREE, newest, INDEX).err().expect("a leaf is missing");
        assert!(error.message().contains("missing"), "{error}");
    }
}
