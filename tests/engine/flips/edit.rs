//! Edits of whole structures, as somebody makes them who has the disks but no key, or a backup that was put back in part.

use super::structure::{Place, Spot, Structure};
use crate::rig::{Rig, Settings};
use rand::Rng;
use rand::rngs::SmallRng;
use rok_blk::disk::{Device as _, SimDevice};
use rok_blk::format::record::RecordHead;
use rok_blk::meta::{Durability, MetaOp, MetaRead as _, MetaStore as _, Table};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use uuid::Uuid;

/// An edit: of a pool, with an older copy of it, what is stored in it, and chance. Whether there was something to edit.
pub struct Edit {
    pub name: &'static str,
    pub make: fn(&mut Rig, &Rig, &[Spot], &mut SmallRng) -> bool,
    pub is_always_detected: bool,
}

pub const EDITS: [Edit; 12] = [
    Edit {
        name: "two data blocks swapped",
        make: |rig, _, spots, random| swap(rig, spots, Structure::DataBlock, random),
        is_always_detected: false,
    },
    Edit {
        name: "two records swapped",
        make: |rig, _, spots, random| swap(rig, spots, Structure::Record, random),
        is_always_detected: false,
    },
    Edit {
        name: "two device headers swapped",
        make: |rig, _, spots, random| swap(rig, spots, Structure::DeviceHeader, random),
        is_always_detected: false,
    },
    Edit {
        name: "two leaves swapped",
        make: |rig, _, spots, random| swap(rig, spots, Structure::Leaf, random),
        is_always_detected: true,
    },
    Edit {
        name: "two trees swapped",
        make: |rig, _, spots, random| swap(rig, spots, Structure::Tree, random),
        is_always_detected: true,
    },
    Edit {
        name: "two domains swapped",
        make: |rig, _, spots, random| swap(rig, spots, Structure::Domain, random),
        is_always_detected: true,
    },
    Edit {
        name: "an old block put back",
        make: |rig, older, spots, random| replay(rig, older, spots, random),
        is_always_detected: false,
    },
    Edit { name: "a block zeroed", make: |rig, _, spots, random| zero(rig, spots, random), is_always_detected: false },
    Edit {
        name: "a value cut short",
        make: |rig, _, spots, random| cut_short(rig, spots, random),
        is_always_detected: false,
    },
    Edit { name: "a device cut short", make: |rig, _, _, random| truncate(rig, random), is_always_detected: true },
    Edit {
        name: "the device of another pool",
        make: |rig, _, _, _| take_foreign_device(rig),
        is_always_detected: true,
    },
    Edit {
        name: "an older copy of the device",
        make: |rig, older, _, _| take_older_device(rig, older),
        is_always_detected: false,
    },
];

fn any_of<'a>(spots: &'a [Spot], structure: Structure, random: &mut SmallRng) -> Option<&'a Spot> {
    let found: Vec<&Spot> = spots.iter().filter(|spot| spot.structure() == structure).collect();
    (!found.is_empty()).then(|| found[random.random_range(0..found.len())])
}

/// Swaps two of a kind that are not the same, but for the last record: that alone says that those before it were flushed.
fn swap(rig: &Rig, spots: &[Spot], structure: Structure, random: &mut SmallRng) -> bool {
    let (Some(one), Some(other)) = (any_of(spots, structure, random), any_of(spots, structure, random)) else {
        return false;
    };
    let number = |spot: &Spot| match spot.place {
        Place::Device(offset) => {
            RecordHead::decode(&read(&rig.devices[0].0, offset)).ok().map(|head| (head.session, head.chain))
        }
        _ => None,
    };
    let last = spots.iter().filter_map(number).max();
    if [one, other].into_iter().any(|spot| last.is_some() && number(spot) == last) {
        return false;
    }
    match (&one.place, &other.place) {
        (Place::Device(one), Place::Device(other)) if one != other => {
            let device = &rig.devices[0].0;
            let (first, second) = (read(device, *one), read(device, *other));
            write(device, *one, &second);
            write(device, *other, &first);
            true
        }
        (Place::Value(table, one), Place::Value(_, other)) if one != other => {
            let (first, second) = (value(rig, *table, one), value(rig, *table, other));
            put(rig, *table, one, second);
            put(rig, *table, other, first);
            true
        }
        _ => false,
    }
}

/// Puts back what a block held before, where that is something else.
fn replay(rig: &Rig, older: &Rig, spots: &[Spot], random: &mut SmallRng) -> bool {
    let is_changed = |spot: &&Spot| match spot.place {
        Place::Device(offset) => read(&rig.devices[0].0, offset) != read(&older.devices[0].0, offset),
        _ => false,
    };
    let found: Vec<&Spot> = spots.iter().filter(is_changed).collect();
    let Some(Place::Device(offset)) = found.get(random.random_range(0..found.len().max(1))).map(|spot| &spot.place)
    else {
        return false;
    };
    write(&rig.devices[0].0, *offset, &read(&older.devices[0].0, *offset));
    true
}

fn zero(rig: &Rig, spots: &[Spot], random: &mut SmallRng) -> bool {
    let structures = [Structure::DataBlock, Structure::Record, Structure::DeviceHeader];
    let spot = any_of(spots, structures[random.random_range(0..structures.len())], random);
    let Some(Place::Device(offset)) = spot.map(|spot| &spot.place) else { return false };
    write(&rig.devices[0].0, *offset, &[0; BLOCK_SIZE]);
    true
}

fn cut_short(rig: &Rig, spots: &[Spot], random: &mut SmallRng) -> bool {
    let spot = &spots[random.random_range(0..spots.len())];
    let Place::Value(table, key) = &spot.place else { return false };
    let mut bytes = value(rig, *table, key);
    bytes.truncate(random.random_range(0..bytes.len()));
    put(rig, *table, key, bytes);
    true
}

/// The device has fewer blocks than are listed.
fn truncate(rig: &mut Rig, random: &mut SmallRng) -> bool {
    rig.devices[0].1 -= random.random_range(1..200) * BLOCK_SIZE_U64;
    true
}

fn take_foreign_device(rig: &mut Rig) -> bool {
    let size_bytes = rig.devices[0].1;
    let mut other = Rig::blank(Settings::new(rig.settings.suite, 1), &[size_bytes]);
    other.pool_id = Uuid::from_u128(0xf0);
    other.create_pool().expect("a healthy machine");
    rig.devices[0].0 = other.devices[0].0.clone();
    true
}

fn take_older_device(rig: &mut Rig, older: &Rig) -> bool {
    rig.devices[0].0 = older.devices[0].0.image();
    true
}

fn read(device: &SimDevice, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_SIZE];
    device.read_at(offset, &mut bytes).expect("a healthy machine");
    bytes
}

fn write(device: &SimDevice, offset: u64, bytes: &[u8]) {
    device.write_at(offset, bytes).and_then(|()| device.flush()).expect("a healthy machine");
}

fn value(rig: &Rig, table: Table, key: &[u8]) -> Vec<u8> {
    rig.store.get(table, key).expect("memory").expect("it is there")
}

fn put(rig: &Rig, table: Table, key: &[u8], value: Vec<u8>) {
    rig.store.commit(&[MetaOp::Put(table, key.to_vec(), value)], Durability::Synced).expect("memory");
}
