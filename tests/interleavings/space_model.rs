//! Lanes that reserve blocks and give them back, while free stretches are given back to a file and taken back for use.

use crate::locks::Mutex;
use rok_blk::pool::{Space, Stretch};
use rok_blk::units::{Address, AddressRun, DeviceIndex, STRETCH_BLOCKS};
use shuttle::thread;
use std::collections::BTreeSet;
use std::sync::Arc;

const STRETCHES: u64 = 3;
const LANES: u64 = 2;
const WINDOWS: u64 = 3;
/// More than half of the device together, so that lanes come to every stretch.
const WINDOW_BLOCKS: u64 = STRETCH_BLOCKS - 1;
const TRIMS: u64 = 3;

struct Machine {
    space: Mutex<Space>,
    /// Who has what: runs of lanes by their first block, and stretches that are being discarded or written.
    owned: Mutex<BTreeSet<(u64, u64)>>,
}

impl Machine {
    fn new() -> Self {
        let mut space = Space::new(&[STRETCHES * STRETCH_BLOCKS]);
        // As if it was used before: its free stretches may hold old bytes.
        space.distrust();
        Self { space: Mutex::new(space), owned: Mutex::default() }
    }

    /// From now on nobody else may have these blocks.
    fn own(&self, first: u64, count: u64) {
        let mut owned = self.owned.lock();
        let overlaps = owned.iter().any(|(start, len)| *start < first + count && first < start + len);
        assert!(!overlaps, "blocks {first} and {count} behind it have an owner");
        owned.insert((first, count));
    }

    fn disown(&self, first: u64, count: u64) {
        assert!(self.owned.lock().remove(&(first, count)), "it was owned");
    }

    fn own_stretch(&self, stretch: Stretch) {
        self.own(stretch.index * STRETCH_BLOCKS, STRETCH_BLOCKS);
    }

    fn disown_stretch(&self, stretch: Stretch) {
        self.disown(stretch.index * STRETCH_BLOCKS, STRETCH_BLOCKS);
    }
}

/// Writes into windows, and gives back what it wrote as a checkpoint does.
fn lane(machine: &Machine) {
    for _ in 0..WINDOWS {
        let window = machine.space.lock().reserve(WINDOW_BLOCKS, 0);
        window.iter().for_each(|run| machine.own(run.start.block(), run.count));
        thread::yield_now();
        for run in window {
            machine.disown(run.start.block(), run.count);
            machine.space.lock().free_run(run);
        }
    }
}

/// Gives stretches back, each with nobody else in it, and takes them for use again.
fn trim(machine: &Machine) {
    for _ in 0..TRIMS {
        let taken = machine.space.lock().take_stale(0);
        let Some(stretch) = taken else { continue };
        machine.own_stretch(stretch);
        thread::yield_now();
        machine.disown_stretch(stretch);
        machine.space.lock().release(stretch);
        thread::yield_now();
        let taken = machine.space.lock().take_released();
        let Some(stretch) = taken else { continue };
        machine.own_stretch(stretch);
        thread::yield_now();
        machine.disown_stretch(stretch);
        machine.space.lock().give_back(stretch);
    }
}

/// Discards what it saw to be free.
fn trim_what_looks_free(machine: &Machine) {
    for index in 1..STRETCHES {
        let stretch = Stretch { device: DeviceIndex::new(0), index };
        let (free, capacity) = machine.space.lock().free_in(stretch);
        if free == capacity {
            machine.own_stretch(stretch);
            thread::yield_now();
            machine.disown_stretch(stretch);
        }
    }
}

fn model(trim: fn(&Machine)) {
    let machine = Arc::new(Machine::new());
    let free = machine.space.lock().free_count();
    let spawn = |work: fn(&Machine)| {
        let machine = Arc::clone(&machine);
        thread::spawn(move || work(&machine))
    };
    let threads: Vec<_> = (0..LANES).map(|_| spawn(lane)).chain([spawn(trim)]).collect();
    for thread in threads {
        thread.join().expect("a thread panics only with the run");
    }
    let mut space = machine.space.lock();
    while let Some(stretch) = space.take_released() {
        space.give_back(stretch);
    }
    assert_eq!(space.free_count(), free, "what is given back is free again");
    let all = AddressRun { start: Address::new(DeviceIndex::new(0), STRETCH_BLOCKS), count: STRETCH_BLOCKS };
    assert!((0..all.count).all(|step| !space.is_allocated(all.start.plus(step))));
}

pub fn blocks_have_one_owner() {
    model(trim);
}

pub fn what_looks_free_is_discarded() {
    model(trim_what_looks_free);
}
