//! The superblock: what a pool is, which devices it has, and its wrapped keys.
//!
//! Two copies of 4096 bytes, 64 KiB apart in one file; each change writes the copy that the other
//! generation does not use. A BLAKE3 checksum finds damage before a key is known; a MAC under
//! the master key finds changes by others after.

use crate::crypto::{StaticMac, Suite};
use crate::format::codec::{Reader, Writer, len_u16};
use crate::format::{FORMAT_VERSION, FormatError};
use uuid::Uuid;

/// Bytes of one copy.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Where the two copies are in the file.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 65_536];
/// Key slots of a pool.
pub const KEY_SLOTS_MAX: usize = 8;
/// Devices of a pool.
pub const DEVICES_MAX: usize = 32;

const MAGIC: [u8; 8] = *b"ROKBLKSB";
const CHECKSUM_OFFSET: usize = SUPERBLOCK_BYTES - 32;
const MAC_OFFSET: usize = CHECKSUM_OFFSET - 32;
const DEVICE_NAME_BYTES_MAX: usize = 32;

/// A device as the superblock lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Also in the device's header.
    pub id: Uuid,
    /// Size in blocks, the reserved front included.
    pub block_count: u64,
    /// Name in the pool's directory, at most 32 bytes.
    pub name: String,
}

/// A wrapped copy of the master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlotRecord {
    /// Position, below [`KEY_SLOTS_MAX`].
    pub index: u8,
    /// What unwraps it: 1 a key file, 2 nothing (the key is in the clear: `--no-encryption`), 3 a passphrase; 4, a
    /// systemd credential, is reserved.
    pub kind: u8,
    /// Enters the key that wraps.
    pub salt: [u8; 32],
    /// Nonce, wrapped key and tag.
    pub wrapped: [u8; 60],
    /// Parameters of the kind; zeros where there are none.
    pub parameters: [u8; 16],
}

/// What a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool's id.
    pub pool: Uuid,
    /// Counts the changes of the superblock; its lowest bit chooses the copy.
    pub generation: u64,
    /// How blocks are encrypted and verified.
    pub suite: Suite,
    /// Devices, by index.
    pub devices: Vec<DeviceRecord>,
    /// Key slots in use.
    pub slots: Vec<KeySlotRecord>,
}

impl Superblock {
    /// The copy to write, and its bytes.
    ///
    /// # Panics
    /// If there are more devices or slots than the named limits allow.
    #[must_use]
    pub fn encode(&self, mac: &StaticMac) -> (u64, Vec<u8>) {
        assert!(self.devices.len() <= DEVICES_MAX && self.slots.len() <= KEY_SLOTS_MAX);
        let mut writer = Writer::new();
        writer.bytes(&MAGIC);
        writer.u32(FORMAT_VERSION);
        writer.u8(self.suite.code());
        writer.zeros(3);
        writer.bytes(self.pool.as_bytes());
        writer.u64(self.generation);
        writer.u16(len_u16(self.devices.len()));
        writer.u16(len_u16(self.slots.len()));
        writer.zeros(4);
        for device in &self.devices {
            writer.bytes(device.id.as_bytes());
            writer.u64(device.block_count);
            writer.u16(len_u16(device.name.len()));
            writer.zeros(6);
            let end = writer.len() + DEVICE_NAME_BYTES_MAX;
            writer.bytes(device.name.as_bytes());
            writer.pad_to(end);
        }
        for slot in &self.slots {
            writer.u8(slot.index);
            writer.u8(slot.kind);
            writer.zeros(2);
            writer.bytes(&slot.salt);
            writer.bytes(&slot.wrapped);
            writer.bytes(&slot.parameters);
        }
        writer.pad_to(MAC_OFFSET);
        let mut bytes = writer.finish();
        let seal = mac.compute(&[&bytes]);
        bytes.extend_from_slice(&seal);
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        (SUPERBLOCK_OFFSETS[usize::from(self.generation & 1 == 1)], bytes)
    }

    /// The superblock in the bytes of one copy, whose MAC is not verified yet: see [`verify`].
    ///
    /// # Errors
    /// [`FormatError`] naming what is wrong. Magic, version and checksum have their places in every version, so that
    /// a damaged copy is not taken for one of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes.get(..SUPERBLOCK_BYTES).ok_or(FormatError::TooShort)?);
        if reader.array::<8>()? != MAGIC {
            return Err(FormatError::Magic);
        }
        if *blake3::hash(&bytes[..CHECKSUM_OFFSET]).as_bytes() != bytes[CHECKSUM_OFFSET..SUPERBLOCK_BYTES] {
            return Err(FormatError::Checksum);
        }
        let version = reader.u32()?;
        if version > FORMAT_VERSION {
            return Err(FormatError::NewerVersion(version));
        }
        if version == 0 {
            return Err(FormatError::Field("format version"));
        }
        let suite = Suite::from_code(reader.u8()?).ok_or(FormatError::Field("suite"))?;
        reader.reserved(3)?;
        let pool = Uuid::from_bytes(reader.array()?);
        let generation = reader.u64()?;
        let (device_count, slot_count) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
        reader.reserved(4)?;
        if device_count == 0 || device_count > DEVICES_MAX {
            return Err(FormatError::Field("device count"));
        }
        if slot_count == 0 || slot_count > KEY_SLOTS_MAX {
            return Err(FormatError::Field("key slot count"));
        }
        let devices = (0..device_count).map(|_| decode_device(&mut reader)).collect::<Result<_, _>>()?;
        let slots: Vec<KeySlotRecord> = (0..slot_count).map(|_| decode_slot(&mut reader)).collect::<Result<_, _>>()?;
        if (1..slot_count).any(|at| slots[..at].iter().any(|slot| slot.index == slots[at].index)) {
            return Err(FormatError::Field("key slot index"));
        }
        reader.reserved(reader.remaining() - 64)?;
        Ok(Self { pool, generation, suite, devices, slots })
    }
}

/// Whether the bytes of a copy were written by who knows the master key.
#[must_use]
pub fn verify(bytes: &[u8], mac: &StaticMac) -> bool {
    let Some(seal) = bytes.get(MAC_OFFSET..CHECKSUM_OFFSET).and_then(|seal| <&[u8; 32]>::try_from(seal).ok()) else {
        return false;
    };
    mac.verify(&[&bytes[..MAC_OFFSET]], seal)
}

fn decode_device(reader: &mut Reader<'_>) -> Result<DeviceRecord, FormatError> {
    let id = Uuid::from_bytes(reader.array()?);
    let block_count = reader.u64()?;
    let len = usize::from(reader.u16()?);
    reader.reserved(6)?;
    let name = reader.bytes(DEVICE_NAME_BYTES_MAX)?;
    let (name, rest) = name.split_at_checked(len).ok_or(FormatError::Field("device name"))?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(FormatError::Reserved);
    }
    let name = std::str::from_utf8(name).map_err(|_| FormatError::Field("device name"))?;
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(FormatError::Field("device name"));
    }
    Ok(DeviceRecord { id, block_count, name: name.to_owned() })
}

fn decode_slot(reader: &mut Reader<'_>) -> Result<KeySlotRecord, FormatError> {
    let (index, kind) = (reader.u8()?, reader.u8()?);
    reader.reserved(2)?;
    if usize::from(index) >= KEY_SLOTS_MAX {
        return Err(FormatError::Field("key slot index"));
    }
    Ok(KeySlotRecord { index, kind, salt: reader.array()?, wrapped: reader.array()?, parameters: reader.array()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{MasterKey, Purpose};

    #[test]
    fn as_many_devices_and_slots_are_taken_as_there_may_be() {
        let device =
            |number| DeviceRecord { id: Uuid::from_u128(number), block_count: 4096, name: format!("data-{number}") };
        let slot = |index| KeySlotRecord { index, kind: 1, salt: [0; 32], wrapped: [0; 60], parameters: [0; 16] };
        let mac = MasterKey::from_bytes([3; 32]).static_mac(Purpose::Superblock);
        for (devices, slots) in [(1, 1), (DEVICES_MAX - 1, 2), (DEVICES_MAX, KEY_SLOTS_MAX)] {
            let superblock = Superblock {
                pool: Uuid::from_u128(1),
                generation: 1,
                suite: Suite::XtsGmac,
                devices: (0..).take(devices).map(device).collect(),
                slots: (0..).take(slots).map(slot).collect(),
            };
            assert_eq!(Superblock::decode(&superblock.encode(&mac).1), Ok(superblock), "{devices} and {slots}");
        }
    }

    #[test]
    fn two_slots_with_one_index_are_refused() {
        let device = DeviceRecord { id: Uuid::from_u128(2), block_count: 4096, name: "data-0".to_owned() };
        let slot = |index| KeySlotRecord { index, kind: 1, salt: [0; 32], wrapped: [0; 60], parameters: [0; 16] };
        let decoded = |indexes: [u8; 3]| {
            let slots = indexes.map(slot).to_vec();
            let superblock = Superblock {
                pool: Uuid::from_u128(1),
                generation: 1,
                suite: Suite::XtsGmac,
                devices: vec![device.clone()],
                slots,
            };
            let mac = MasterKey::from_bytes([3; 32]).static_mac(Purpose::Superblock);
            Superblock::decode(&superblock.encode(&mac).1).map(|decoded| decoded.slots.len())
        };

        assert_eq!(decoded([5, 0, 7]), Ok(3), "they need not ascend");
        assert_eq!(decoded([5, 0, 5]), Err(FormatError::Field("key slot index")));
    }
}
