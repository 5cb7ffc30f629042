//! Leaves in memory, packed, bounded in bytes, evicted by use (second chance).
//!
//! Invariants: what the leaves of a stripe take is counted in `bytes`, and is at most the stripe's share, but for a
//! single leaf, which always fits. A cached leaf is the stored one. A load that a checkpoint overtook is refused by
//! [`LeafCache::insert`], since changes over what it read may be gone.

use crate::format::leaf::Leaf;
use crate::map::changes::stripe_of;
use crate::map::packed::PackedLeaf;
use crate::units::{LeafIndex, ViewId, to_u64, to_usize};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

const STRIPE_COUNT_MAX: u64 = 64;
/// A stripe has at least this much, so that a small cache is not all edges.
const STRIPE_BYTES_MIN: u64 = 64 << 10;
/// What a leaf takes beside itself: the rest of its slot, 24 that the allocator adds to the slot and to the leaf's words,
/// an entry of the table with its tag, 25 by 16 for each 7 at worst, and a place in the queue, 16 by 2 at worst.
const SLOT_BYTES: usize = size_of::<Slot>() - size_of::<PackedLeaf>() + 24 + 25 * 16 / 7 + 1 + 32;
const _: () = assert!(size_of::<(Key, Box<Slot>)>() == 24);

type Key = (ViewId, LeafIndex);

struct Slot {
    leaf: PackedLeaf,
    is_used: bool,
}

#[derive(Default)]
struct Stripe {
    /// Counts the replacements by checkpoints.
    version: u64,
    slots: HashMap<Key, Box<Slot>, BuildHasherDefault<PlaceHasher>>,
    /// Keys in the order in which they are considered for eviction.
    queue: VecDeque<Key>,
    /// What the slots take.
    bytes: usize,
}

/// The cache of a pool, shared by its lanes.
pub struct LeafCache {
    stripes: Box<[Mutex<Stripe>]>,
    stripe_bytes_max: usize,
}

impl LeafCache {
    /// A cache of at most about `bytes_max` (a full leaf has 2 to 6 KiB). A smaller one than a leaf keeps one leaf.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        let stripe_count = (bytes_max / STRIPE_BYTES_MIN).clamp(1, STRIPE_COUNT_MAX);
        Self {
            stripes: (0..stripe_count).map(|_| Mutex::default()).collect(),
            stripe_bytes_max: to_usize(bytes_max / stripe_count),
        }
    }

    /// Bytes that the cached leaves take, and how many leaves these are.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        self.stripes.iter().fold((0, 0), |(bytes, count), stripe| {
            let stripe = stripe.lock();
            (bytes + to_u64(stripe.bytes), count + to_u64(stripe.slots.len()))
        })
    }

    /// Looks at a cached leaf; `None` if it is not cached.
    pub fn look<R>(&self, view: ViewId, leaf: LeafIndex, look: impl FnOnce(&PackedLeaf) -> R) -> Option<R> {
        let mut stripe = self.stripe(view, leaf).lock();
        let slot = stripe.slots.get_mut(&(view, leaf))?;
        slot.is_used = true;
        Some(look(&slot.leaf))
    }

    /// To be asked before a load, and given to [`Self::insert`] after it.
    #[must_use]
    pub fn version(&self, view: ViewId, leaf: LeafIndex) -> u64 {
        self.stripe(view, leaf).lock().version
    }

    /// Caches a loaded leaf; `false` if a checkpoint replaced leaves since `version`: load it again.
    pub fn insert(&self, view: ViewId, leaf_index: LeafIndex, leaf: &Leaf, version: u64) -> bool {
        let slot = Box::new(Slot { leaf: PackedLeaf::from(leaf), is_used: true });
        let mut stripe = self.stripe(view, leaf_index).lock();
        if stripe.version != version {
            return false;
        }
        let key = (view, leaf_index);
        stripe.bytes += bytes_of(&slot.leaf);
        match stripe.slots.insert(key, slot) {
            Some(old) => stripe.bytes -= bytes_of(&old.leaf),
            None => stripe.queue.push_back(key),
        }
        stripe.evict(self.stripe_bytes_max);
        true
    }

    /// Puts what a checkpoint stored in the place of what is cached. Call it after the commit.
    pub fn replace(&self, view: ViewId, leaf_index: LeafIndex, leaf: &Leaf) {
        let key = (view, leaf_index);
        // Most leaves that a checkpoint changes may not be cached; the others are packed outside the lock.
        let is_cached = self.stripe(view, leaf_index).lock().slots.contains_key(&key);
        let packed = is_cached.then(|| PackedLeaf::from(leaf));
        let stripe = &mut *self.stripe(view, leaf_index).lock();
        stripe.version += 1;
        if let Some(slot) = stripe.slots.get_mut(&key) {
            // One that was not cached a moment ago is packed here: a load came between.
            let packed = packed.unwrap_or_else(|| PackedLeaf::from(leaf));
            stripe.bytes += bytes_of(&packed);
            stripe.bytes -= bytes_of(&slot.leaf);
            slot.leaf = packed;
        }
        stripe.evict(self.stripe_bytes_max);
    }

    fn stripe(&self, view: ViewId, leaf: LeafIndex) -> &Mutex<Stripe> {
        &self.stripes[stripe_of(view.get(), leaf, to_u64(self.stripes.len()))]
    }
}

/// Multiplies and folds: a lookup for each block read is too often for a hash that withstands chosen keys, and these
/// are trees and leaves of bounded number.
#[derive(Default)]
struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let [low, high] = [product & u128::from(u64::MAX), product >> 64];
        self.0 = u64::try_from(low ^ high).expect("two halves of 64 bits");
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
}

fn bytes_of(leaf: &PackedLeaf) -> usize {
    leaf.memory_bytes() + SLOT_BYTES
}

impl Stripe {
    fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.slots.len() > 1 {
            self.evict_one();
        }
    }

    fn evict_one(&mut self) {
        while let Some(key) = self.queue.pop_front() {
            let slot = self.slots.get_mut(&key).expect("each queued key has a slot");
            if std::mem::take(&mut slot.is_used) {
                self.queue.push_back(key);
            } else {
                self.bytes -= bytes_of(&slot.leaf);
                self.slots.remove(&key);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::entry::Entry;
    use crate::units::{Address, DeviceIndex, KeyGeneration, Sequence};

    const VIEW: ViewId = ViewId::new(1);

    /// No entry follows from another: all have one sequence.
    fn full_leaf() -> Leaf {
        let mut leaf = Leaf::default();
        for slot in 0..=u8::MAX {
            let address = Address::new(DeviceIndex::new(0), u64::from(slot));
            leaf.set(slot, Some(Entry::new(address, KeyGeneration::new(1), Sequence::new(1), 0)));
        }
        leaf
    }

    fn full_bytes() -> u64 {
        to_u64(bytes_of(&PackedLeaf::from(&full_leaf())))
    }

    fn insert(cache: &LeafCache, index: u64) {
        let index = LeafIndex::new(index);
        assert!(cache.insert(VIEW, index, &full_leaf(), cache.version(VIEW, index)));
    }

    #[test]
    fn leaves_take_no_more_than_the_bound_and_nearly_all_of_it() {
        let bytes_max = 1 << 20;
        let cache = LeafCache::new(bytes_max);
        (0..1000).for_each(|index| insert(&cache, index));
        let (bytes, count) = cache.size();
        assert!(bytes <= bytes_max, "{bytes}");
        // A stripe of 64 KiB has place for ten full leaves.
        assert!(bytes > bytes_max * 3 / 4, "{bytes}");
        assert_eq!(bytes, count * full_bytes());
    }

    #[test]
    fn a_cache_smaller_than_a_leaf_keeps_the_last_one() {
        let cache = LeafCache::new(1);
        insert(&cache, 1);
        insert(&cache, 2);
        assert!(cache.look(VIEW, LeafIndex::new(1), |_| ()).is_none());
        assert!(cache.look(VIEW, LeafIndex::new(2), |_| ()).is_some());
    }

    #[test]
    fn a_leaf_that_a_checkpoint_made_larger_counts_with_its_new_size() {
        let cache = LeafCache::new(1 << 20);
        let index = LeafIndex::new(3);
        assert!(cache.insert(VIEW, index, &Leaf::default(), 0));
        cache.replace(VIEW, index, &full_leaf());
        assert_eq!(cache.size(), (full_bytes(), 1));
    }

    #[test]
    fn a_leaf_that_is_used_outlives_those_that_are_not() {
        // One stripe with place for eight leaves.
        let cache = LeafCache::new(8 * full_bytes());
        (0..8).for_each(|index| insert(&cache, index));
        for index in 8..100 {
            assert!(cache.look(VIEW, LeafIndex::new(7), |_| ()).is_some(), "before {index}");
            insert(&cache, index);
        }
        assert!(cache.look(VIEW, LeafIndex::new(8), |_| ()).is_none());
    }

    #[test]
    fn a_load_that_a_checkpoint_overtook_is_refused() {
        let cache = LeafCache::new(1 << 20);
        let index = LeafIndex::new(5);
        let version = cache.version(VIEW, index);
        cache.replace(VIEW, index, &full_leaf());
        assert!(!cache.insert(VIEW, index, &full_leaf(), version));
    }
}
