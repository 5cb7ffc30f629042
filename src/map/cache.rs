//! Decoded leaves, bounded in number, evicted by use (second chance).
//!
//! Invariant: a cached leaf is the stored one. A load that a checkpoint overtook is refused by
//! [`LeafCache::insert`], since changes over what it read may be gone.

use crate::format::leaf::Leaf;
use crate::map::changes::stripe_of;
use crate::units::{LeafIndex, TreeId, to_u64};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

const STRIPE_COUNT_MAX: usize = 64;

type Key = (TreeId, LeafIndex);

struct Slot {
    leaf: Arc<Leaf>,
    is_used: bool,
}

#[derive(Default)]
struct Stripe {
    /// Counts the replacements by checkpoints.
    version: u64,
    slots: HashMap<Key, Slot, BuildHasherDefault<PlaceHasher>>,
    /// Keys in the order in which they are considered for eviction.
    queue: VecDeque<Key>,
}

/// The cache of a pool, shared by its lanes.
pub struct LeafCache {
    stripes: Box<[Mutex<Stripe>]>,
    stripe_capacity: usize,
}

impl LeafCache {
    /// A cache of at most about `leaf_count_max` leaves (6 KiB each when full).
    #[must_use]
    pub fn new(leaf_count_max: usize) -> Self {
        let stripe_count = leaf_count_max.clamp(1, STRIPE_COUNT_MAX);
        Self {
            stripes: (0..stripe_count).map(|_| Mutex::default()).collect(),
            stripe_capacity: (leaf_count_max / stripe_count).max(1),
        }
    }

    /// Looks at a cached leaf; `None` if it is not cached.
    pub fn look<R>(&self, tree: TreeId, leaf: LeafIndex, look: impl FnOnce(&Leaf) -> R) -> Option<R> {
        let mut stripe = self.stripe(tree, leaf).lock();
        let slot = stripe.slots.get_mut(&(tree, leaf))?;
        slot.is_used = true;
        Some(look(&slot.leaf))
    }

    /// To be asked before a load, and given to [`Self::insert`] after it.
    #[must_use]
    pub fn version(&self, tree: TreeId, leaf: LeafIndex) -> u64 {
        self.stripe(tree, leaf).lock().version
    }

    /// Caches a loaded leaf; `false` if a checkpoint replaced leaves since `version`: load it again.
    pub fn insert(&self, tree: TreeId, leaf_index: LeafIndex, leaf: Arc<Leaf>, version: u64) -> bool {
        let mut stripe = self.stripe(tree, leaf_index).lock();
        if stripe.version != version {
            return false;
        }
        let key = (tree, leaf_index);
        if stripe.slots.insert(key, Slot { leaf, is_used: true }).is_none() {
            stripe.queue.push_back(key);
        }
        while stripe.slots.len() > self.stripe_capacity {
            stripe.evict_one();
        }
        true
    }

    /// Puts what a checkpoint stored in the place of what is cached. Call it after the commit.
    pub fn replace(&self, tree: TreeId, leaf_index: LeafIndex, leaf: &Arc<Leaf>) {
        let mut stripe = self.stripe(tree, leaf_index).lock();
        stripe.version += 1;
        if let Some(slot) = stripe.slots.get_mut(&(tree, leaf_index)) {
            slot.leaf = Arc::clone(leaf);
        }
    }

    fn stripe(&self, tree: TreeId, leaf: LeafIndex) -> &Mutex<Stripe> {
        &self.stripes[stripe_of(tree, leaf, to_u64(self.stripes.len()))]
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

impl Stripe {
    fn evict_one(&mut self) {
        while let Some(key) = self.queue.pop_front() {
            let slot = self.slots.get_mut(&key).expect("each queued key has a slot");
            if std::mem::take(&mut slot.is_used) {
                self.queue.push_back(key);
            } else {
                self.slots.remove(&key);
                return;
            }
        }
    }
}
