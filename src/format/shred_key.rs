//! A copy of the shred key, in a file that is overwritten in place. The wrapped key authenticates its place: pool and number.

use crate::format::codec::{Reader, Writer};
use crate::format::{FORMAT_VERSION, FormatError};
use crate::units::BLOCK_SIZE;
use uuid::Uuid;

/// Byte offsets of the two copies, of a block each.
pub const COPY_OFFSETS: [u64; 2] = [0, 65_536];
/// Size of the file.
pub const FILE_BYTES: u64 = 131_072;

const MAGIC: [u8; 8] = *b"ROKBLKSK";

/// What a copy says. It holds only if the key unwraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShredKeyCopy {
    /// The pool that it belongs to.
    pub pool: Uuid,
    /// The key's number, from 1.
    pub number: u32,
    /// The key, wrapped by the master key.
    pub wrapped: [u8; 60],
}

impl ShredKeyCopy {
    /// One block of bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(&MAGIC);
        writer.u32(FORMAT_VERSION);
        writer.u32(self.number);
        writer.bytes(self.pool.as_bytes());
        writer.bytes(&self.wrapped);
        writer.pad_to(BLOCK_SIZE);
        writer.finish()
    }

    /// The copy in a block.
    ///
    /// # Errors
    /// [`FormatError::Magic`] where none was ever written, [`FormatError::NewerVersion`], and others for damage.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(block);
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
        let number = reader.u32()?;
        let copy = Self { pool: Uuid::from_bytes(reader.array()?), number, wrapped: reader.array()? };
        reader.reserved(reader.remaining())?;
        if number == 0 {
            return Err(FormatError::Field("number of the shred key"));
        }
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_0_was_never_written() {
        let copy = ShredKeyCopy { pool: Uuid::from_u128(1), number: 1, wrapped: [7; 60] };
        let mut block = copy.encode();
        assert_eq!(ShredKeyCopy::decode(&block), Ok(copy));

        block[8..12].fill(0);

        assert_eq!(ShredKeyCopy::decode(&block), Err(FormatError::Field("format version")));
    }
}
