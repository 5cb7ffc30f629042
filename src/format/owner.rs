//! Owners: for whom an address was written. A hint that is verified against the map before use.
//!
//! A value holds the owners of 256 consecutive addresses as runs; each change puts the whole value. Blocks that were written
//! scattered have a run each, so numbers have no more bytes than they need.

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

/// In the number of runs: what follows is the short form.
const IS_SHORT: u16 = 1 << 15;

/// The body of a value, before it is sealed, in the short form.
#[must_use]
pub fn encode(runs: &[OwnerRun]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u16(len_u16(runs.len()) | IS_SHORT);
    let mut owner = (TreeId::new(0), Epoch::new(0));
    for run in runs {
        let is_other = (run.tree, run.epoch) != owner;
        owner = (run.tree, run.epoch);
        writer.u8(run.offset);
        writer.varint(u64::from(run.count - 1) * 2 + u64::from(is_other));
        if is_other {
            writer.varint(run.tree.get());
            writer.varint(run.epoch.get());
        }
        writer.varint(run.block.get());
    }
    writer.finish()
}

/// The runs in a body of either form.
///
/// # Errors
/// [`FormatError`] if the body is anything else.
pub fn decode(body: &[u8]) -> Result<Vec<OwnerRun>, FormatError> {
    let mut reader = Reader::new(body);
    let count = reader.u16()?;
    let mut runs: Vec<OwnerRun> = Vec::new();
    for _ in 0..count & !IS_SHORT {
        let run = if count & IS_SHORT == 0 { read_long(&mut reader)? } else { read_short(&mut reader, runs.last())? };
        if u16::from(run.offset) + run.count > 256 {
            return Err(FormatError::Field("owner run"));
        }
        runs.push(run);
    }
    reader.finish()?;
    Ok(runs)
}

fn read_long(reader: &mut Reader<'_>) -> Result<OwnerRun, FormatError> {
    Ok(OwnerRun {
        offset: reader.u8()?,
        count: u16::from(reader.u8()?) + 1,
        tree: TreeId::new(reader.u64()?),
        epoch: Epoch::new(reader.u64()?),
        block: BlockIndex::new(reader.u64()?),
    })
}

fn read_short(reader: &mut Reader<'_>, before: Option<&OwnerRun>) -> Result<OwnerRun, FormatError> {
    let offset = reader.u8()?;
    let head = reader.varint()?;
    let count = u8::try_from(head / 2).map_err(|_| FormatError::Field("owner run"))?;
    let (tree, epoch) = if head & 1 == 1 {
        (TreeId::new(reader.varint()?), Epoch::new(reader.varint()?))
    } else {
        before.map(|before| (before.tree, before.epoch)).unwrap_or_default()
    };
    Ok(OwnerRun { offset, count: u16::from(count) + 1, tree, epoch, block: BlockIndex::new(reader.varint()?) })
}
