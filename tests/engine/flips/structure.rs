//! What is stored in a pool, and where.

use crate::rig::Rig;
use rok_blk::disk::SimDevice;
use rok_blk::format::device_header::HEADER_OFFSETS;
use rok_blk::format::record::RecordHead;
use rok_blk::format::shred_key::COPY_OFFSETS;
use rok_blk::format::superblock::SUPERBLOCK_OFFSETS;
use rok_blk::meta::{MetaRead as _, Table};
use rok_blk::units::BLOCK_SIZE;

/// A kind of thing on the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Structure {
    Superblock,
    DeviceHeader,
    Record,
    DataBlock,
    ShredKey,
    Volume,
    Tree,
    Point,
    Snapshot,
    Domain,
    Checkpoint,
    Session,
    Leaf,
    /// Its value is empty: keys are moved, never flipped.
    LeafIndex,
    Owners,
    Bitmap,
}

impl Structure {
    /// Those whose bits can be flipped.
    pub const ALL: [Self; 15] = [
        Self::Superblock,
        Self::DeviceHeader,
        Self::Record,
        Self::DataBlock,
        Self::ShredKey,
        Self::Volume,
        Self::Tree,
        Self::Point,
        Self::Snapshot,
        Self::Domain,
        Self::Checkpoint,
        Self::Session,
        Self::Leaf,
        Self::Owners,
        Self::Bitmap,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::DeviceHeader => "device header",
            Self::Record => "record of the log",
            Self::DataBlock => "data block",
            Self::ShredKey => "shred key",
            Self::Volume => "meta/ volume",
            Self::Tree => "meta/ tree",
            Self::Point => "meta/ frozen epoch",
            Self::Snapshot => "meta/ snapshot",
            Self::Domain => "meta/ domain",
            Self::Checkpoint => "meta/ checkpoint",
            Self::Session => "meta/ session",
            Self::Leaf => "meta/ leaf",
            Self::LeafIndex => "meta/ index of leaves",
            Self::Owners => "meta/ owners",
            Self::Bitmap => "meta/ bitmap",
        }
    }

    fn of_value(table: Table, key: &[u8]) -> Self {
        match (table, key.first()) {
            (Table::Catalog, Some(b'V')) => Self::Volume,
            (Table::Catalog, Some(b'T')) => Self::Tree,
            (Table::Catalog, Some(b'P')) => Self::Point,
            (Table::Catalog, Some(b'S')) => Self::Snapshot,
            (Table::Catalog, Some(b'D')) => Self::Domain,
            (Table::Catalog, _) => Self::Checkpoint,
            (Table::Sessions, _) => Self::Session,
            (Table::Leaves, _) => Self::Leaf,
            (Table::EpochLeaves, _) => Self::LeafIndex,
            (Table::Owners, _) => Self::Owners,
            (Table::Used | Table::Shared, _) => Self::Bitmap,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Place {
    Superblock(u64),
    ShredKey(u64),
    Device(u64),
    Value(Table, Vec<u8>),
}

/// Where one of them is.
#[derive(Clone, Debug)]
pub struct Spot {
    structure: Structure,
    pub place: Place,
    pub len_bytes: usize,
}

impl Spot {
    pub const fn structure(&self) -> Structure {
        self.structure
    }

    /// Whether one of two copies begins there.
    pub fn is_begin_of_copy(&self) -> bool {
        match (self.structure, &self.place) {
            (Structure::Superblock, Place::Superblock(offset)) => SUPERBLOCK_OFFSETS.contains(offset),
            (Structure::DeviceHeader, Place::Device(offset)) => HEADER_OFFSETS.contains(offset),
            (Structure::ShredKey, Place::ShredKey(offset)) => COPY_OFFSETS.contains(offset),
            _ => false,
        }
    }

    /// All that is stored, but for what has no bytes.
    pub fn all(rig: &Rig) -> Vec<Self> {
        let mut spots = Vec::new();
        let mut add = |structure, place, len_bytes| spots.push(Self { structure, place, len_bytes });
        for_each_block(&rig.superblock, |offset, _| add(Structure::Superblock, Place::Superblock(offset), BLOCK_SIZE));
        for_each_block(&rig.shred_key, |offset, _| add(Structure::ShredKey, Place::ShredKey(offset), BLOCK_SIZE));
        for_each_block(&rig.devices[0].0, |offset, bytes| {
            let is_header = HEADER_OFFSETS.contains(&offset);
            let structure = match RecordHead::decode(bytes) {
                _ if is_header => Structure::DeviceHeader,
                Ok(_) => Structure::Record,
                Err(_) => Structure::DataBlock,
            };
            add(structure, Place::Device(offset), BLOCK_SIZE);
        });
        for table in Table::ALL {
            let values = rig.store.scan(table, &[], &[], usize::MAX).expect("memory");
            for (key, value) in values.into_iter().filter(|(_, value)| !value.is_empty()) {
                add(Structure::of_value(table, &key), Place::Value(table, key), value.len());
            }
        }
        spots
    }

    /// Inverts a bit of it.
    pub fn flip(&self, rig: &Rig, byte: usize, bit: u8) {
        match &self.place {
            Place::Superblock(offset) => rig.superblock.flip_bit(offset + byte as u64, bit),
            Place::ShredKey(offset) => rig.shred_key.flip_bit(offset + byte as u64, bit),
            Place::Device(offset) => rig.devices[0].0.flip_bit(offset + byte as u64, bit),
            Place::Value(table, key) => {
                assert!(rig.store.flip_bit(*table, key, byte * 8 + usize::from(bit)), "the value has the byte");
            }
        }
    }
}

/// Shows the blocks of a device that are not zeros, once each.
fn for_each_block(device: &SimDevice, mut look: impl FnMut(u64, &[u8])) {
    let mut seen = std::collections::BTreeSet::new();
    device.scan(|offset, bytes| {
        for (offset, block) in (offset..).step_by(BLOCK_SIZE).zip(bytes.chunks_exact(BLOCK_SIZE)) {
            if block.iter().any(|byte| *byte != 0) && seen.insert(offset) {
                look(offset, block);
            }
        }
    });
}
