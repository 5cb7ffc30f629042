//! The record: the block or blocks that open a batch and make its changes durable.
//!
//! ```text
//! 0   magic "RREC"     4   version u16   6  lane u16
//! 8   session u64      16  chain sequence u64
//! 24  body length u32  28  block count u16   30 reserved u16
//! 32  tag, 16 bytes    48  body, sealed     then zeros to the end of the last block
//! ```
//! The seal's associated data are bytes 0 to 31, the pool's id and the record's own address: no record of
//! another pool, session, lane or place, and no guest's data, passes for the expected one.

use crate::crypto::SessionKeys;
use crate::format::FormatError;
use crate::format::codec::{Reader, Writer, len_u16, len_u32};
use crate::units::{
    Address, AddressRun, BLOCK_SIZE, BlockIndex, ChainSequence, Epoch, KeyGeneration, LaneIndex, Sequence, SessionId,
    TreeId, to_u64, to_usize,
};
use uuid::Uuid;

/// Bytes in front of the sealed body.
pub const RECORD_HEAD_BYTES: usize = 48;
/// Blocks of the largest record.
pub const RECORD_BLOCKS_MAX: usize = 8;
/// Data blocks of the largest batch: 1 MiB.
pub const BATCH_BLOCKS_MAX: usize = 256;

const MAGIC: [u8; 4] = *b"RREC";
const VERSION: u16 = 1;
const CLEAR_BYTES: usize = 32;
/// The clear bytes, the pool's id, the record's address.
const ASSOCIATED_BYTES: usize = CLEAR_BYTES + 16 + 8;
const BODY_FIXED_BYTES: usize = 32;
const RUN_BYTES: usize = 40;
const MAC_BYTES: usize = 8;
const SEGMENT_BYTES: usize = 16;
const REMOVAL_BYTES: usize = 40;

/// Blocks written by one request: consecutive blocks, consecutive sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteRun {
    /// The tree.
    pub tree: TreeId,
    /// The epoch that the head had.
    pub epoch: Epoch,
    /// The first block.
    pub block: BlockIndex,
    /// How many blocks, 1 to 256.
    pub count: u32,
    /// Generation of the domain's key.
    pub generation: KeyGeneration,
    /// Sequence of the first block.
    pub sequence: Sequence,
}

/// Blocks that became absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The tree.
    pub tree: TreeId,
    /// The epoch that the head had.
    pub epoch: Epoch,
    /// The first block.
    pub block: BlockIndex,
    /// How many blocks, at least 1.
    pub count: u32,
    /// The removal's own sequence, one for all of its blocks.
    pub sequence: Sequence,
}

/// Who writes a record, and where: what its seal covers beside its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    /// The pool.
    pub pool: Uuid,
    /// The session.
    pub session: SessionId,
    /// The lane.
    pub lane: LaneIndex,
    /// Its number in the lane's chain.
    pub chain: ChainSequence,
    /// Its own address.
    pub address: Address,
}

/// What a batch did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where the next record of the lane will be.
    pub next: Address,
    /// For each lane the last record known durable; 0 is none.
    pub marks: Vec<ChainSequence>,
    /// What was written.
    pub runs: Vec<WriteRun>,
    /// One mac for each block written, in the order of the runs.
    pub macs: Vec<u64>,
    /// Where the blocks are, in the same order.
    pub segments: Vec<AddressRun>,
    /// What became absent.
    pub removals: Vec<Removal>,
}

/// Bytes of a body with so many parts.
#[must_use]
pub const fn body_bytes(marks: usize, runs: usize, blocks: usize, segments: usize, removals: usize) -> usize {
    BODY_FIXED_BYTES
        + marks * 8
        + runs * RUN_BYTES
        + blocks * MAC_BYTES
        + segments * SEGMENT_BYTES
        + removals * REMOVAL_BYTES
}

/// Blocks of a record with a body of so many bytes.
#[must_use]
pub const fn blocks_for_body(body_bytes: usize) -> usize {
    (RECORD_HEAD_BYTES + body_bytes).div_ceil(BLOCK_SIZE)
}

/// What the first block of a record says before its seal is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// The session.
    pub session: SessionId,
    /// The lane.
    pub lane: LaneIndex,
    /// Its number in the lane's chain.
    pub chain: ChainSequence,
    /// Blocks of the whole record.
    pub block_count: usize,
    body_len: usize,
}

impl RecordHead {
    /// The head of a block, if it looks like one.
    ///
    /// # Errors
    /// [`FormatError`] if it is anything else: the usual end of a chain.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(block);
        if reader.array::<4>()? != MAGIC {
            return Err(FormatError::Magic);
        }
        if reader.u16()? != VERSION {
            return Err(FormatError::Field("record version"));
        }
        let lane = LaneIndex::new(reader.u16()?);
        let (session, chain) = (SessionId::new(reader.u64()?), ChainSequence::new(reader.u64()?));
        let body_len = to_usize(u64::from(reader.u32()?));
        let block_count = usize::from(reader.u16()?);
        reader.reserved(2)?;
        if block_count == 0 || block_count > RECORD_BLOCKS_MAX || blocks_for_body(body_len) != block_count {
            return Err(FormatError::Field("record length"));
        }
        Ok(Self { session, lane, chain, block_count, body_len })
    }
}

impl Record {
    /// Writes the sealed record into `target`, whose length is a whole number of blocks that fits exactly. What `scratch` holds is
    /// replaced; it is there to be used again.
    ///
    /// # Panics
    /// If the length of `target` is not the one that [`blocks_for_body`] gives.
    pub fn encode(&self, place: &RecordPlace, keys: &SessionKeys, target: &mut [u8], scratch: &mut Vec<u8>) {
        let [marks, runs, blocks] = [self.marks.len(), self.runs.len(), self.macs.len()];
        let body_len = body_bytes(marks, runs, blocks, self.segments.len(), self.removals.len());
        let block_count = blocks_for_body(body_len);
        assert_eq!(target.len(), block_count * BLOCK_SIZE);
        scratch.clear();
        let mut head = Writer::onto(std::mem::take(scratch));
        head.bytes(&MAGIC);
        head.u16(VERSION);
        head.u16(place.lane.get());
        head.u64(place.session.get());
        head.u64(place.chain.get());
        head.u32(len_u32(body_len));
        head.u16(len_u16(block_count));
        head.u16(0);
        self.encode_body(&mut head);
        *scratch = head.finish();
        let (head, body) = scratch.split_at(CLEAR_BYTES);
        let end = RECORD_HEAD_BYTES + body_len;
        target[..CLEAR_BYTES].copy_from_slice(head);
        target[RECORD_HEAD_BYTES..end].copy_from_slice(body);
        target[end..].fill(0);
        let associated = associated(place, head);
        let tag = keys.seal_record(place.lane, place.chain, &associated, &mut target[RECORD_HEAD_BYTES..end]);
        target[CLEAR_BYTES..RECORD_HEAD_BYTES].copy_from_slice(&tag);
    }

    /// The record in `bytes`, which hold exactly its blocks.
    ///
    /// # Errors
    /// [`FormatError::Checksum`] if it is not the record that `place` says; other kinds for a record that was
    /// sealed with the right key but has a field out of range.
    pub fn decode(bytes: &[u8], place: &RecordPlace, keys: &SessionKeys) -> Result<Self, FormatError> {
        let head = RecordHead::decode(bytes)?;
        if (head.session, head.lane, head.chain) != (place.session, place.lane, place.chain) {
            return Err(FormatError::Field("record place"));
        }
        let end = RECORD_HEAD_BYTES + head.body_len;
        if bytes.len() != head.block_count * BLOCK_SIZE || bytes[end..].iter().any(|byte| *byte != 0) {
            return Err(FormatError::Field("record length"));
        }
        let mut tag = [0; 16];
        tag.copy_from_slice(&bytes[CLEAR_BYTES..RECORD_HEAD_BYTES]);
        let mut body = bytes[RECORD_HEAD_BYTES..end].to_vec();
        let associated = associated(place, &bytes[..CLEAR_BYTES]);
        keys.open_record(place.lane, place.chain, &associated, &mut body, &tag).map_err(|_| FormatError::Checksum)?;
        Self::decode_body(&body)
    }

    fn encode_body(&self, writer: &mut Writer) {
        writer.u64(self.next.bits());
        writer.u16(len_u16(self.marks.len()));
        writer.u16(len_u16(self.runs.len()));
        writer.u16(len_u16(self.segments.len()));
        writer.u16(len_u16(self.removals.len()));
        writer.u32(len_u32(self.macs.len()));
        // Actions that change trees: their count, and room for the length of their bytes. None exist yet.
        writer.zeros(12);
        for mark in &self.marks {
            writer.u64(mark.get());
        }
        for run in &self.runs {
            writer.u64(run.tree.get());
            writer.u64(run.epoch.get());
            writer.u64(run.block.get());
            writer.u64(run.sequence.get());
            writer.u32(run.count);
            writer.u8(run.generation.get());
            writer.zeros(3);
        }
        for mac in &self.macs {
            writer.u64(*mac);
        }
        for segment in &self.segments {
            writer.u64(segment.start.bits());
            writer.u64(segment.count);
        }
        for removal in &self.removals {
            writer.u64(removal.tree.get());
            writer.u64(removal.epoch.get());
            writer.u64(removal.block.get());
            writer.u64(removal.sequence.get());
            writer.u32(removal.count);
            writer.zeros(4);
        }
    }

    fn decode_body(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let next = Address::from_bits(reader.u64()?).ok_or(FormatError::Field("next record"))?;
        let counts: [u16; 4] = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        let [marks, runs, segments, removals] = counts.map(usize::from);
        let macs = to_usize(u64::from(reader.u32()?));
        reader.reserved(12)?;
        if body.len() != body_bytes(marks, runs, macs, segments, removals) {
            return Err(FormatError::Field("record body length"));
        }
        let record = Self {
            next,
            marks: (0..marks).map(|_| Ok(ChainSequence::new(reader.u64()?))).collect::<Result<_, FormatError>>()?,
            runs: (0..runs).map(|_| decode_run(&mut reader)).collect::<Result<_, _>>()?,
            macs: (0..macs).map(|_| reader.u64()).collect::<Result<_, _>>()?,
            segments: (0..segments).map(|_| decode_segment(&mut reader)).collect::<Result<_, _>>()?,
            removals: (0..removals).map(|_| decode_removal(&mut reader)).collect::<Result<_, _>>()?,
        };
        reader.finish()?;
        let run_blocks: u64 = record.runs.iter().map(|run| u64::from(run.count)).sum();
        let segment_blocks = record.segments.iter().try_fold(0_u64, |sum, segment| sum.checked_add(segment.count));
        if run_blocks != to_u64(macs) || segment_blocks != Some(run_blocks) || macs > BATCH_BLOCKS_MAX {
            return Err(FormatError::Field("record block count"));
        }
        Ok(record)
    }
}

fn associated(place: &RecordPlace, head: &[u8]) -> [u8; ASSOCIATED_BYTES] {
    let mut associated = [0; ASSOCIATED_BYTES];
    associated[..CLEAR_BYTES].copy_from_slice(head);
    associated[CLEAR_BYTES..CLEAR_BYTES + 16].copy_from_slice(place.pool.as_bytes());
    associated[CLEAR_BYTES + 16..].copy_from_slice(&place.address.bits().to_le_bytes());
    associated
}

fn decode_run(reader: &mut Reader<'_>) -> Result<WriteRun, FormatError> {
    let (tree, epoch) = (TreeId::new(reader.u64()?), Epoch::new(reader.u64()?));
    let (block, sequence) = (BlockIndex::new(reader.u64()?), Sequence::new(reader.u64()?));
    let (count, generation) = (reader.u32()?, KeyGeneration::new(reader.u8()?));
    reader.reserved(3)?;
    if count == 0 || sequence.get() == 0 {
        return Err(FormatError::Field("record run"));
    }
    Ok(WriteRun { tree, epoch, block, count, generation, sequence })
}

fn decode_segment(reader: &mut Reader<'_>) -> Result<AddressRun, FormatError> {
    let start = Address::from_bits(reader.u64()?).ok_or(FormatError::Field("record segment"))?;
    let count = reader.u64()?;
    if count == 0 || start.block().checked_add(count).is_none_or(|end| end > Address::DEVICE_BLOCKS_MAX) {
        return Err(FormatError::Field("record segment"));
    }
    Ok(AddressRun { start, count })
}

fn decode_removal(reader: &mut Reader<'_>) -> Result<Removal, FormatError> {
    let (tree, epoch) = (TreeId::new(reader.u64()?), Epoch::new(reader.u64()?));
    let (block, sequence) = (BlockIndex::new(reader.u64()?), Sequence::new(reader.u64()?));
    let count = reader.u32()?;
    reader.reserved(4)?;
    if count == 0 || sequence.get() == 0 {
        return Err(FormatError::Field("record removal"));
    }
    Ok(Removal { tree, epoch, block, count, sequence })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::DeviceIndex;

    /// A record of one run of so many blocks, with one sequence.
    fn decoded(count: u32, sequence: u64) -> Result<usize, FormatError> {
        let (start, blocks) = (Address::new(DeviceIndex::new(0), 600), u64::from(count));
        let run = WriteRun {
            tree: TreeId::new(1),
            epoch: Epoch::new(1),
            block: BlockIndex::new(5),
            count,
            generation: KeyGeneration::new(0),
            sequence: Sequence::new(sequence),
        };
        let record = Record {
            next: start,
            marks: vec![ChainSequence::new(1)],
            runs: vec![run],
            macs: vec![9; to_usize(blocks)],
            segments: if count == 0 { Vec::new() } else { vec![AddressRun { start, count: blocks }] },
            removals: Vec::new(),
        };
        let mut writer = Writer::new();
        record.encode_body(&mut writer);
        let found = Record::decode_body(&writer.finish())?;
        assert_eq!(found, record);
        Ok(found.macs.len())
    }

    #[test]
    fn a_batch_has_no_more_blocks_than_it_may() {
        for count in [1, BATCH_BLOCKS_MAX - 1, BATCH_BLOCKS_MAX] {
            assert_eq!(decoded(u32::try_from(count).expect("small"), 1), Ok(count));
        }
        let more = u32::try_from(BATCH_BLOCKS_MAX + 1).expect("small");
        assert_eq!(decoded(more, 1), Err(FormatError::Field("record block count")));
    }

    #[test]
    fn a_run_has_blocks_and_a_sequence() {
        assert_eq!(decoded(0, 1), Err(FormatError::Field("record run")));
        assert_eq!(decoded(1, 0), Err(FormatError::Field("record run")));
    }
}
