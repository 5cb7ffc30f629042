//! Owners: for whom an address was written. A hint that is verified against the map before use.
//!
//! A value holds the owners of 256 consecutive addresses as runs; each change puts the whole value.

use crate::format::FormatError;
use crate::format::codec::{Reader, Writer, len_u16};
use crate::units::{BlockIndex, Epoch, TreeId};

/// A run of addresses and the blocks that they were written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerRun {
    /// First address, as an offset into the group of 256.
    pub offset: u8,
    /// Length, 1 to 256.
    pub count: u16,
    /// The tree.
    pub tree: TreeId,
    /// The epoch that was written.
    pub epoch: Epoch,
    /// The block of the first address; the others follow.
    pub block: BlockIndex,
}

/// The body of a value, before it is sealed.
#[must_use]
pub fn encode(runs: &[OwnerRun]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u16(len_u16(runs.len()));
    for run in runs {
        writer.u8(run.offset);
        writer.u8(u8::try_from(run.count - 1).expect("a group has 256 addresses"));
        writer.u64(run.tree.get());
        writer.u64(run.epoch.get());
        writer.u64(run.block.get());
    }
    writer.finish()
}

/// The runs in a body.
///
/// # Errors
/// [`FormatError`] if the body is anything else.
pub fn decode(body: &[u8]) -> Result<Vec<OwnerRun>, FormatError> {
    let mut reader = Reader::new(body);
    let count = reader.u16()?;
    let mut runs = Vec::new();
    for _ in 0..count {
        let run = OwnerRun {
            offset: reader.u8()?,
            count: u16::from(reader.u8()?) + 1,
            tree: TreeId::new(reader.u64()?),
            epoch: Epoch::new(reader.u64()?),
            block: BlockIndex::new(reader.u64()?),
        };
        if u16::from(run.offset) + run.count > 256 {
            return Err(FormatError::Field("owner run"));
        }
        runs.push(run);
    }
    reader.finish()?;
    Ok(runs)
}
