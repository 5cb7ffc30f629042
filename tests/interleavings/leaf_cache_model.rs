//! Lanes that load and look at a leaf while checkpoints store it.

use crate::locks::Mutex;
use crate::map::cache::LeafCache;
use rok_blk::format::entry::Entry;
use rok_blk::format::leaf::Leaf;
use rok_blk::units::{Address, DeviceIndex, KeyGeneration, LeafIndex, Sequence, ViewId};
use shuttle::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One stripe.
const CACHE_BYTES: u64 = 64 << 10;
const CHECKPOINTS: u64 = 3;
const LOADS: u32 = 2;
const LOOKS: u32 = 3;

struct Machine {
    cache: LeafCache,
    /// The leaf in the store, by its sequence.
    stored: Mutex<u64>,
    /// What nobody may see less than: a checkpoint is done.
    replaced: AtomicU64,
}

fn place() -> (ViewId, LeafIndex) {
    (ViewId::new(1), LeafIndex::new(0))
}

fn leaf(sequence: u64) -> Leaf {
    let mut leaf = Leaf::default();
    let address = Address::new(DeviceIndex::new(0), 100 + sequence);
    leaf.set(0, Some(Entry::new(address, KeyGeneration::new(0), Sequence::new(sequence), sequence)));
    leaf
}

fn model(asks_early: bool) {
    let machine =
        Arc::new(Machine { cache: LeafCache::new(CACHE_BYTES), stored: Mutex::default(), replaced: AtomicU64::new(0) });
    let spawn = |work: fn(&Machine)| {
        let machine = Arc::clone(&machine);
        thread::spawn(move || work(&machine))
    };
    let load = if asks_early { load_early } else { load_late };
    for thread in [spawn(checkpoint), spawn(load), spawn(load), spawn(look)] {
        thread.join().expect("a thread panics only with the run");
    }
    look(&machine);
}

fn checkpoint(machine: &Machine) {
    let (view, index) = place();
    for sequence in 1..=CHECKPOINTS {
        *machine.stored.lock() = sequence;
        machine.cache.replace(view, index, &leaf(sequence));
        machine.replaced.store(sequence, Ordering::SeqCst);
    }
}

fn load_early(machine: &Machine) {
    let (view, index) = place();
    for _ in 0..LOADS {
        let version = machine.cache.version(view, index);
        let loaded = *machine.stored.lock();
        let _is_cached = machine.cache.insert(view, index, &leaf(loaded), version);
    }
}

fn load_late(machine: &Machine) {
    let (view, index) = place();
    for _ in 0..LOADS {
        let loaded = *machine.stored.lock();
        let version = machine.cache.version(view, index);
        let _is_cached = machine.cache.insert(view, index, &leaf(loaded), version);
    }
}

fn look(machine: &Machine) {
    let (view, index) = place();
    for _ in 0..LOOKS {
        let least = machine.replaced.load(Ordering::SeqCst);
        let seen = machine.cache.look(view, index, |leaf| leaf.entries_from(0).next().flatten());
        if let Some(entry) = seen {
            let sequence = entry.expect("the slot has one").sequence().get();
            assert!(sequence >= least, "a leaf of checkpoint {sequence} is cached behind checkpoint {least}");
        }
    }
}

pub fn overtaken_loads_are_refused() {
    model(true);
}

pub fn versions_are_asked_late() {
    model(false);
}
