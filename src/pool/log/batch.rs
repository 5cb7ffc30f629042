//! A batch of the log: while it is open, in flight, and done.

use crate::disk::IoBuffer;
use crate::format::record::{RECORD_BLOCKS_MAX, Record};
use crate::units::{Address, AddressRun, ChainSequence, blocks_to_bytes, to_usize};

/// One device write of a batch.
#[derive(Debug)]
pub struct BatchWrite {
    /// Where.
    pub address: Address,
    /// What.
    pub source: IoBuffer,
}

/// A batch whose writes, and all batches before it, are done.
#[derive(Debug)]
pub struct DoneBatch {
    /// Its number.
    pub chain: ChainSequence,
    /// The blocks of its record, free once a checkpoint contains the batch.
    pub record_run: AddressRun,
    /// Its record.
    pub record: Record,
    /// Whom to acknowledge.
    pub parts: Vec<u32>,
}

pub(super) struct OpenBatch {
    pub buffer: IoBuffer,
    /// Without what is known only when the batch is closed: the next record, the marks and the segments.
    pub record: Record,
    pub parts: Vec<u32>,
}

pub(super) struct Flying {
    pub batch: DoneBatch,
    pub buffer: IoBuffer,
    pub writes_left: usize,
}

/// A record of nothing, which has no next one yet.
pub(super) const fn empty_record(next: Address) -> Record {
    Record { next, marks: Vec::new(), runs: Vec::new(), macs: Vec::new(), segments: Vec::new(), removals: Vec::new() }
}

/// One write for the record and the data right behind it, one for each further segment.
pub(super) fn append_batch_writes(
    writes: &mut Vec<BatchWrite>,
    buffer: &IoBuffer,
    record_run: AddressRun,
    segments: &[AddressRun],
) {
    let record_start = RECORD_BLOCKS_MAX - to_usize(record_run.count);
    let is_adjacent = segments.first().is_some_and(|first| first.start == record_run.start.plus(record_run.count));
    let mut block = RECORD_BLOCKS_MAX;
    let mut first_end = RECORD_BLOCKS_MAX;
    for (index, segment) in segments.iter().enumerate() {
        let end = block + to_usize(segment.count);
        if index == 0 && is_adjacent {
            first_end = end;
        } else {
            let source = buffer.slice(blocks_to_bytes(block)..blocks_to_bytes(end));
            writes.push(BatchWrite { address: segment.start, source });
        }
        block = end;
    }
    let source = buffer.slice(blocks_to_bytes(record_start)..blocks_to_bytes(first_end));
    writes.push(BatchWrite { address: record_run.start, source });
}
