//! The superblock of the simulated machine, on a device of its own, and which key opens which of its slots.

use super::{World, device_id, filler};
use memchr::memmem::Finder;
use rand::Rng;
use rok_blk::crypto::slot::{KeySlot, SlotKind, unwrap_with_key_file, wrap_with_key_file};
use rok_blk::crypto::{MasterKey, Purpose, Suite};
use rok_blk::disk::{CrashMode, OpKind, SimDevice};
use rok_blk::format::superblock::{DeviceRecord, KEY_SLOTS_MAX, KeySlotRecord, Superblock};
use rok_blk::pool::SuperblockCopies;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Room for both copies.
const FILE_BYTES: u64 = 128 << 10;
/// Writes and flushes of a change, each.
const STEPS: u64 = 3;
/// Changes before a pool is served for the first time.
const OFFLINE_CHANGES: usize = 12;

/// The superblock, and what it may say.
pub struct KeySlots {
    pub superblock: SimDevice,
    master: Arc<MasterKey>,
    /// What the slots may be: what was acknowledged last, and what changes that failed since would have made of it.
    possible: Vec<Vec<KeySlotRecord>>,
    /// Bytes of the key file that opens a slot, by the salt of the slot.
    keys: BTreeMap<[u8; 32], [u8; 32]>,
}

impl KeySlots {
    /// With one slot. (The superblock of a pool without encryption looks the same, and nothing changes it.)
    pub fn new(seed: u64, suite: Suite, pool: &Uuid, master: Arc<MasterKey>) -> Self {
        let superblock = SimDevice::new("superblock", FILE_BYTES);
        superblock.reseed(seed ^ 0x517);
        let mut slots = Self { superblock, master, possible: Vec::new(), keys: BTreeMap::new() };
        let first = slots.wrap(pool, 0, seed);
        let device = DeviceRecord { id: device_id(*pool, 0), block_count: 1, name: "data-0".to_owned() };
        let first = Superblock { pool: *pool, generation: 0, suite, devices: vec![device], slots: vec![first] };
        SuperblockCopies::create(&slots.superblock, &first, &slots.master.static_mac(Purpose::Superblock))
            .expect("a healthy device");
        slots.possible.push(first.slots);
        slots
    }

    /// What opening a pool does with its superblock.
    ///
    /// # Panics
    /// If it says something else than it may, or a key does not open its slot.
    pub fn open(&mut self) {
        let process = self.superblock.process_handle();
        let copies = self.read(&process);
        if copies.damage().is_some() {
            copies.repair(&process, &self.master).expect("no failure is planned here");
        }
        self.possible = vec![copies.superblock.slots];
    }

    fn read(&self, process: &SimDevice) -> SuperblockCopies {
        let copies = SuperblockCopies::read(process)
            .unwrap_or_else(|error| panic!("the superblock is lost, and the pool with it: {error}"));
        assert!(copies.is_of(&self.master), "the superblock is nobody's");
        let found = &copies.superblock.slots;
        assert!(self.possible.contains(found), "the key slots are {found:?}, possible are {:?}", self.possible);
        for record in found {
            let KeySlotRecord { index, salt, wrapped, parameters, .. } = *record;
            let slot = KeySlot { kind: SlotKind::KeyFile, label: String::new(), salt, parameters, wrapped };
            let opened = unwrap_with_key_file(&slot, &self.keys[&salt], &copies.superblock.pool, index);
            assert!(opened.is_ok(), "the key of slot {index} does not open it");
        }
        copies
    }

    /// A slot for a new key.
    fn wrap(&mut self, pool: &Uuid, index: u8, seed: u64) -> KeySlotRecord {
        let random = &mut filler(seed);
        let mut key = [0; 32];
        random(&mut key);
        let KeySlot { kind, salt, wrapped, parameters, .. } =
            wrap_with_key_file(&self.master, &key, pool, index, random);
        self.keys.insert(salt, key);
        KeySlotRecord { index, kind: kind.code(), salt, wrapped, parameters }
    }

    /// Panics if a slot that is not among `slots` is anywhere on the device, durable or not.
    fn check_gone(&self, slots: &[KeySlotRecord]) {
        let gone = self.keys.keys().filter(|salt| slots.iter().all(|slot| slot.salt != **salt));
        let gone: Vec<Finder<'_>> = gone.map(Finder::new).collect();
        if gone.is_empty() {
            return;
        }
        self.superblock.scan(|offset, bytes| {
            let is_there = gone.iter().any(|salt| salt.find(bytes).is_some());
            assert!(!is_there, "a slot that was replaced or removed is still in the copy at {offset}");
        });
    }
}

impl World {
    /// Changes of a pool that nobody serves, with power losses between them.
    pub(super) fn change_key_slots_offline(&mut self) {
        if self.suite == Suite::Plain {
            return;
        }
        for _ in 0..OFFLINE_CHANGES {
            let is_done = self.change_key_slots();
            if self.random.random_bool(if is_done { 0.1 } else { 0.4 }) {
                let random = &mut self.random;
                self.key_slots.superblock.crash(CrashMode::PowerLoss, &mut |below| random.random_range(0..below));
                self.key_slots.open();
            }
        }
    }

    /// Adds, rotates or removes a key slot; `false` if one of its writes or flushes failed.
    pub fn change_key_slots(&mut self) -> bool {
        let (kind, seed) = (self.random.random_range(0..3), self.random.random());
        let slots = &mut self.key_slots;
        let process = slots.superblock.process_handle();
        let copies = slots.read(&process);
        let mut new = copies.superblock.clone();
        let used = new.slots.len();
        let place = self.random.random_range(0..used);
        match kind {
            0 if used < KEY_SLOTS_MAX => {
                let is_free = |index: &u8| new.slots.iter().all(|slot| slot.index != *index);
                let index = (0..).find(is_free).expect("one of them is free");
                new.slots.push(slots.wrap(&new.pool, index, seed));
                new.slots.sort_by_key(|slot| slot.index);
            }
            1 if used > 1 => drop(new.slots.remove(place)),
            _ => new.slots[place] = slots.wrap(&new.pool, new.slots[place].index, seed),
        }
        if self.random.random_bool(0.6) {
            let kind = if self.random.random_bool(0.5) { OpKind::Write } else { OpKind::Flush };
            slots.superblock.fail_nth(kind, self.random.random_range(1..=STEPS));
        }
        slots.possible.push(new.slots.clone());
        let result = copies.replace(&process, &new, &slots.master);
        slots.superblock.clear_faults();
        if result.is_ok() {
            slots.check_gone(&new.slots);
            slots.possible = vec![new.slots];
        }
        result.is_ok()
    }
}
