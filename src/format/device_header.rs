//! The header of a device: whose it is, and how new.
//!
//! Two copies, in blocks 0 and 128 of the front that holds no data; generations alternate between them.

use crate::crypto::StaticMac;
use crate::format::codec::{Reader, Writer};
use crate::format::{FORMAT_VERSION, FormatError};
use crate::units::{BLOCK_SIZE, CheckpointId, DeviceIndex, SessionId};
use uuid::Uuid;

/// Byte offsets of the two copies.
pub const HEADER_OFFSETS: [u64; 2] = [0, 128 * 4096];
/// Blocks at the front of a device that never hold data.
pub const FRONT_BLOCKS: u64 = 256;

const MAGIC: [u8; 8] = *b"ROKBLKDV";
const BODY_BYTES: usize = 96;

/// What a device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceHeader {
    /// The pool that it belongs to.
    pub pool: Uuid,
    /// Its own id, also in the superblock.
    pub device: Uuid,
    /// Its position in the pool.
    pub index: DeviceIndex,
    /// Size in blocks when it was added or grown.
    pub block_count: u64,
    /// The session that wrote the header.
    pub session: SessionId,
    /// The last checkpoint that the metadata store is known to hold.
    pub checkpoint: CheckpointId,
    /// Counts the writes of the header; its lowest bit chooses the copy.
    pub generation: u64,
}

impl DeviceHeader {
    /// The offset to write at, and one block of bytes.
    #[must_use]
    pub fn encode(&self, mac: &StaticMac) -> (u64, Vec<u8>) {
        let mut writer = Writer::new();
        writer.bytes(&MAGIC);
        writer.u32(FORMAT_VERSION);
        writer.u8(self.index.get());
        writer.zeros(3);
        writer.bytes(self.pool.as_bytes());
        writer.bytes(self.device.as_bytes());
        writer.u64(self.block_count);
        writer.u64(self.session.get());
        writer.u64(self.checkpoint.get());
        writer.u64(self.generation);
        writer.pad_to(BODY_BYTES);
        let seal = mac.compute(&[writer.as_slice()]);
        writer.bytes(&seal);
        writer.pad_to(BLOCK_SIZE);
        (HEADER_OFFSETS[usize::from(self.generation & 1 == 1)], writer.finish())
    }

    /// The header in a block.
    ///
    /// # Errors
    /// [`FormatError`]: [`FormatError::Magic`] on a device that never was one of ours, [`FormatError::Checksum`]
    /// on one of another pool or a damaged one.
    pub fn decode(block: &[u8], mac: &StaticMac) -> Result<Self, FormatError> {
        let mut reader = Reader::new(block);
        let body = reader.bytes(BODY_BYTES)?;
        let seal = reader.array::<32>()?;
        reader.reserved(reader.remaining())?;
        let mut reader = Reader::new(body);
        if reader.array::<8>()? != MAGIC {
            return Err(FormatError::Magic);
        }
        let version = reader.u32()?;
        if version > FORMAT_VERSION {
            return Err(FormatError::NewerVersion(version));
        }
        if version == 0 {
            return Err(FormatError::Field("format version"));
        }
        if !mac.verify(&[body], &seal) {
            return Err(FormatError::Checksum);
        }
        let index = DeviceIndex::new(reader.u8()?);
        reader.reserved(3)?;
        let header = Self {
            pool: Uuid::from_bytes(reader.array()?),
            device: Uuid::from_bytes(reader.array()?),
            index,
            block_count: reader.u64()?,
            session: SessionId::new(reader.u64()?),
            checkpoint: CheckpointId::new(reader.u64()?),
            generation: reader.u64()?,
        };
        reader.reserved(reader.remaining())?;
        Ok(header)
    }

    /// The pool that a header names, without a key: for messages about foreign devices.
    #[must_use]
    pub fn peek_pool(block: &[u8]) -> Option<Uuid> {
        let mut reader = Reader::new(block);
        if reader.array::<8>().ok()? != MAGIC {
            return None;
        }
        reader.bytes(8).ok()?;
        Some(Uuid::from_bytes(reader.array().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{MasterKey, Purpose};

    #[test]
    fn version_0_was_never_written() {
        let mac = MasterKey::from_bytes([3; 32]).static_mac(Purpose::DeviceHeader);
        let id = Uuid::from_u128(1);
        let header = DeviceHeader {
            pool: id,
            device: id,
            index: DeviceIndex::new(0),
            block_count: 4096,
            session: SessionId::new(1),
            checkpoint: CheckpointId::new(1),
            generation: 1,
        };
        let (_, mut block) = header.encode(&mac);
        assert_eq!(DeviceHeader::decode(&block, &mac), Ok(header));

        block[8..12].fill(0);
        let seal = mac.compute(&[&block[..BODY_BYTES]]);
        block[BODY_BYTES..BODY_BYTES + 32].copy_from_slice(&seal);

        assert_eq!(DeviceHeader::decode(&block, &mac), Err(FormatError::Field("format version")));
    }
}
