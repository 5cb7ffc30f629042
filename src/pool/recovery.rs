//! Recovery: follows the chains that the last checkpoint names and gives the changes since then.
//!
//! It only reads, so a crash inside it changes nothing. A record counts if its seal, session, lane, chain sequence
//! and address hold. A chain that ends before its mark is refused, never skipped: something durable is gone.
//! Blocks of records above the mark are verified, since parts of a batch may be missing; one that fails, or that
//! cannot be read, keeps its old mapping. Sectors that no record names may be unreadable. Where the key is missing nobody
//! can tell: those blocks are named, and whoever opens the pool decides.

use crate::crypto::{CipherCache, KeyRing};
use crate::disk::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::ChainStart;
use crate::format::entry::Entry;
use crate::format::record::{BATCH_BLOCKS_MAX, RECORD_BLOCKS_MAX, Record, RecordHead, RecordPlace, WriteRun};
use crate::map::{Change, ChangeKey};
use crate::planted::{Bug, is_planted};
use crate::pool::{Catalog, Space};
use crate::units::{
    Address, AddressRun, BLOCK_SIZE, BLOCK_SIZE_U64, ChainSequence, LaneIndex, Sequence, blocks_to_bytes, to_u64,
    to_usize,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Blocks that one read takes where the log has jumped: it may jump on, in space that has aged.
const CHUNK_BLOCKS_MIN: u64 = 16;
/// Where it goes straight on, each read takes twice as many as the one before, up to a window's worth of batches.
const CHUNK_BLOCKS_MAX: u64 = 512;
/// Behind a record that is missing the next one begins within so many blocks, if it begins right behind its batch.
const GAP_BLOCKS_MAX: u64 = (RECORD_BLOCKS_MAX + BATCH_BLOCKS_MAX) as u64;

/// What recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Records that count.
    pub record_count: u64,
    /// Changes that they gave.
    pub change_count: u64,
    /// Blocks above the marks that the crash lost or tore: their writes were never flushed.
    pub lost_block_count: u64,
    /// Blocks at or below the marks whose mac does not match: damage. They read as errors.
    pub damaged_block_count: u64,
}

/// Changes and blocks since the last checkpoint.
pub struct Recovered {
    /// The newest change of each block.
    pub changes: BTreeMap<ChangeKey, Change>,
    /// Blocks of the records.
    pub record_runs: Vec<AddressRun>,
    /// Those of them that nobody could verify and that no flush is known to cover: their volumes' key is not there.
    pub unverified: BTreeSet<ChangeKey>,
    /// Above every sequence that counts.
    pub next_sequence: Sequence,
    /// For people.
    pub report: RecoveryReport,
}

/// What recovery reads.
pub struct Source<'a> {
    /// The pool.
    pub pool: Uuid,
    /// Its devices.
    pub devices: &'a [Arc<dyn Device>],
    /// Its keys.
    pub keys: &'a KeyRing,
    /// Its trees.
    pub catalog: &'a Catalog,
    /// To check addresses.
    pub space: &'a Space,
}

/// A change that a record holds.
struct Found {
    key: ChangeKey,
    change: Change,
    lane: LaneIndex,
    chain: ChainSequence,
    content: Content,
}

/// What is known of the block that a change names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// It is what was written; or there is none.
    Whole,
    /// It is something else.
    Torn,
    /// There is no key to verify it with.
    Unverified,
}

/// Follows all chains.
///
/// # Errors
/// A device's failure, or [`ErrorKind::Integrity`] for a chain that ends before its mark.
pub fn replay(source: &Source<'_>, starts: &[ChainStart], next_sequence: Sequence) -> Result<Recovered> {
    let mut walk = Walk::new(source);
    let mut ends = BTreeMap::new();
    for start in starts {
        let end = walk.follow(start)?;
        ends.insert(start.lane, end);
    }
    for (lane, mark) in &walk.marks {
        let end = ends.get(lane).copied().unwrap_or_default();
        if end < *mark {
            return Err(Error::new(
                ErrorKind::Integrity,
                format!("The log of lane {lane} ends at record {end}, but record {mark} was flushed: flushed writes are missing"),
            )
            .with_hint("A device lost or damaged what it had confirmed; restore the pool from a backup"));
        }
    }
    Ok(walk.finish(next_sequence))
}

struct Walk<'a> {
    source: &'a Source<'a>,
    /// The last bytes read of each device: where they start, and they. A batch may have its record on one and its data on another.
    chunks: Vec<Option<(Address, Vec<u8>)>>,
    /// Where a long read failed last: there only what is needed is read.
    rough: Option<AddressRun>,
    ciphers: CipherCache,
    found: Vec<Found>,
    record_runs: Vec<AddressRun>,
    marks: BTreeMap<LaneIndex, ChainSequence>,
    report: RecoveryReport,
}

impl<'a> Walk<'a> {
    fn new(source: &'a Source<'a>) -> Self {
        Self {
            source,
            chunks: source.devices.iter().map(|_| None).collect(),
            rough: None,
            ciphers: CipherCache::default(),
            found: Vec::new(),
            record_runs: Vec::new(),
            marks: BTreeMap::new(),
            report: RecoveryReport::default(),
        }
    }
}

impl Walk<'_> {
    /// Follows one chain; returns the number of its last record that counts.
    fn follow(&mut self, start: &ChainStart) -> Result<ChainSequence> {
        let mut place = RecordPlace {
            pool: self.source.pool,
            session: start.session,
            lane: start.lane,
            chain: start.chain,
            address: start.address,
        };
        if !self.is_valid(start.address) {
            let message = format!("The log of lane {} is at a block that does not exist", start.lane);
            return Err(Error::new(ErrorKind::Integrity, message)
                .with_hint("Was the superblock restored from a time before the pool grew?"));
        }
        loop {
            let Some((record, block_count)) = self.read_record(&mut place)? else {
                self.look_behind(&place);
                return Ok(ChainSequence::new(place.chain.get() - 1));
            };
            self.check_addresses(&record, &place)?;
            self.record_runs.push(AddressRun { start: place.address, count: to_u64(block_count) });
            self.report.record_count += 1;
            self.take_marks(&record);
            self.take(&record, &place)?;
            place.chain = place.chain.next();
            place.address = record.next;
        }
    }

    fn take_marks(&mut self, record: &Record) {
        for (lane, mark) in (0..).map(LaneIndex::new).zip(&record.marks) {
            let highest = self.marks.entry(lane).or_default();
            *highest = (*highest).max(*mark);
        }
    }

    /// Takes the marks of later records of a chain whose next one is missing, which alone said where they are: mostly right
    /// behind its batch. What cannot be read there says nothing.
    fn look_behind(&mut self, missing: &RecordPlace) {
        let Some(keys) = self.source.keys.session(missing.session) else { return };
        let start = missing.address.plus(1);
        let count = GAP_BLOCKS_MAX.min(self.device_blocks(start).saturating_sub(start.block()));
        for address in (0..count).map(|step| start.plus(step)) {
            // What an earlier record of the chain says holds too, should one be there; the seal leaves all others out.
            let Some(head) = self.read(address, 1).ok().and_then(|block| RecordHead::decode(&block).ok()) else {
                continue;
            };
            let place = RecordPlace { chain: head.chain, address, ..*missing };
            let bytes = self.read(address, to_u64(head.block_count));
            if let Some(record) = bytes.ok().and_then(|bytes| Record::decode(&bytes, &place, &keys).ok()) {
                self.take_marks(&record);
            }
        }
    }

    fn read_record(&mut self, place: &mut RecordPlace) -> Result<Option<(Record, usize)>> {
        let first = self.read(place.address, 1)?;
        let Ok(head) = RecordHead::decode(&first) else { return Ok(None) };
        if is_planted(Bug::StaleRecordAccepted) {
            (place.session, place.lane, place.chain) = (head.session, head.lane, head.chain);
        }
        let end = place.address.block() + to_u64(head.block_count);
        if end > self.device_blocks(place.address) {
            return Ok(None);
        }
        let bytes = self.read(place.address, to_u64(head.block_count))?;
        let Some(keys) = self.source.keys.session(place.session) else { return Ok(None) };
        Ok(Record::decode(&bytes, place, &keys).ok().map(|record| (record, head.block_count)))
    }

    /// A sealed record names only blocks that exist: anything else is our own bug, not to be built upon.
    fn check_addresses(&self, record: &Record, place: &RecordPlace) -> Result<()> {
        let last = |run: &AddressRun| run.start.plus(run.count - 1);
        let segments_exist = record.segments.iter().all(|run| self.is_valid(run.start) && self.is_valid(last(run)));
        if segments_exist && self.is_valid(record.next) {
            return Ok(());
        }
        let message = format!("Record {} of lane {} names a block that does not exist", place.chain, place.lane);
        Err(Error::new(ErrorKind::Integrity, message).with_hint("Has a device been replaced by a smaller one?"))
    }

    fn is_valid(&self, address: Address) -> bool {
        self.source.space.is_valid(address)
    }

    /// Takes the changes of a record.
    fn take(&mut self, record: &Record, place: &RecordPlace) -> Result<()> {
        let mut blocks = record.segments.iter().flat_map(|run| (0..run.count).map(|step| run.start.plus(step)));
        let mut macs = record.macs.iter();
        for run in &record.runs {
            for index in 0..u64::from(run.count) {
                let (Some(address), Some(mac)) = (blocks.next(), macs.next()) else {
                    unreachable!("the codec checked that the counts agree")
                };
                self.take_block(
                    run,
                    index,
                    Entry::new(address, run.generation, run.sequence.plus(index), *mac),
                    place,
                )?;
            }
        }
        for removal in &record.removals {
            for index in 0..u64::from(removal.count) {
                let key = ChangeKey { tree: removal.tree, block: removal.block.plus(index), epoch: removal.epoch };
                let change = Change { sequence: removal.sequence, entry: None };
                self.found.push(Found { key, change, lane: place.lane, chain: place.chain, content: Content::Whole });
            }
        }
        Ok(())
    }

    fn take_block(&mut self, run: &WriteRun, index: u64, entry: Entry, place: &RecordPlace) -> Result<()> {
        let Some(tree) = self.source.catalog.tree(run.tree).copied() else { return Ok(()) };
        let bytes = self.read_block(entry.address(), place)?;
        let cipher = self.ciphers.get(self.source.keys, tree.domain, entry.generation(), entry.sequence());
        let is_intact = cipher
            .zip(bytes.as_deref())
            .is_some_and(|(cipher, bytes)| cipher.verify(entry.sequence(), bytes, entry.mac()));
        let key = ChangeKey { tree: run.tree, block: run.block.plus(index), epoch: run.epoch };
        let change = Change { sequence: entry.sequence(), entry: Some(entry) };
        let has_key = self.source.keys.newest_generation(tree.domain).is_some();
        let is_closed = !has_key && !is_planted(Bug::UnverifiedDropped);
        let content = match is_intact || is_planted(Bug::RecoveryTrustsData) {
            true => Content::Whole,
            false if is_closed => Content::Unverified,
            false => Content::Torn,
        };
        self.found.push(Found { key, change, lane: place.lane, chain: place.chain, content });
        Ok(())
    }

    fn finish(mut self, next_sequence: Sequence) -> Recovered {
        let mut next_sequence = next_sequence.get();
        let mut changes: BTreeMap<ChangeKey, Change> = BTreeMap::new();
        let mut unverified = BTreeSet::new();
        self.found.sort_by_key(|found| found.change.sequence);
        for found in self.found {
            next_sequence = next_sequence.max(found.change.sequence.get() + 1);
            if !self.source.catalog.is_living(found.key.tree) {
                continue;
            }
            let is_flushed = found.chain <= self.marks.get(&found.lane).copied().unwrap_or_default();
            match found.content {
                Content::Torn if !is_flushed => {
                    self.report.lost_block_count += 1;
                    continue;
                }
                Content::Torn => self.report.damaged_block_count += 1,
                Content::Whole | Content::Unverified => {}
            }
            if found.content == Content::Unverified && !is_flushed {
                unverified.insert(found.key);
            } else {
                unverified.remove(&found.key);
            }
            changes.insert(found.key, found.change);
        }
        self.report.change_count = to_u64(changes.len());
        Recovered {
            changes,
            unverified,
            record_runs: self.record_runs,
            next_sequence: Sequence::new(next_sequence),
            report: self.report,
        }
    }

    fn device_blocks(&self, address: Address) -> u64 {
        self.source.devices[address.device().as_usize()].size_bytes() / BLOCK_SIZE_U64
    }

    /// A data block; `None` if it is unreadable although the device works: then it is torn or damaged like any other
    /// whose bytes are wrong.
    fn read_block(&mut self, address: Address, place: &RecordPlace) -> Result<Option<Vec<u8>>> {
        let error = match self.read(address, 1) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) => error,
        };
        if self.read_device(place.address, 1).is_err() {
            return Err(error);
        }
        // Once more: an error that passes must not cost a block.
        let again = self.read_device(address, 1).ok();
        if again.is_none() {
            tracing::warn!(%error, record = %place.address, "a block of the log is unreadable");
        }
        Ok(again)
    }

    /// Blocks of a device, through the chunk that was read of it last.
    fn read(&mut self, address: Address, count: u64) -> Result<Vec<u8>> {
        let device = address.device().as_usize();
        let is_inside = self.chunks[device].as_ref().is_some_and(|(start, bytes)| {
            start.block() <= address.block()
                && address.block() + count <= start.block() + to_u64(bytes.len() / BLOCK_SIZE)
        });
        if !is_inside {
            self.chunks[device] = Some((address, self.read_chunk(address, count)?));
        }
        let (start, bytes) = self.chunks[device].as_ref().expect("read just now");
        let from = blocks_to_bytes(to_usize(address.block() - start.block()));
        Ok(bytes[from..from + blocks_to_bytes(to_usize(count))].to_vec())
    }

    /// How many blocks are worth reading at once: what has gone straight on so far is likely to go on.
    fn blocks_ahead(&self, address: Address) -> u64 {
        let follows = self.chunks[address.device().as_usize()].as_ref().and_then(|(start, bytes)| {
            let len = to_u64(bytes.len() / BLOCK_SIZE);
            (start.block()..=start.block() + len).contains(&address.block()).then_some(2 * len)
        });
        follows.unwrap_or_default().clamp(CHUNK_BLOCKS_MIN, CHUNK_BLOCKS_MAX)
    }

    /// At least `count` blocks; many, if all of them can be read.
    fn read_chunk(&mut self, address: Address, count: u64) -> Result<Vec<u8>> {
        let blocks = self.blocks_ahead(address).min(self.device_blocks(address).saturating_sub(address.block()));
        let is_rough = self.rough.is_some_and(|rough| {
            rough.start.device() == address.device()
                && (rough.start.block()..rough.start.block() + rough.count).contains(&address.block())
        });
        if blocks > count && !is_rough {
            if let Ok(bytes) = self.read_device(address, blocks) {
                return Ok(bytes);
            }
            self.rough = Some(AddressRun { start: address, count: blocks });
        }
        self.read_device(address, count).map_err(|error| {
            let device = self.source.devices[address.device().as_usize()].name();
            Error::new(ErrorKind::Other, format!("Reading the log on {device} at {address} failed: {error}"))
                .with_hint("Repair the device or its connection, then open the pool again; nothing was changed")
                .with_source(error)
        })
    }

    fn read_device(&self, address: Address, count: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; blocks_to_bytes(to_usize(count))];
        let device = &self.source.devices[address.device().as_usize()];
        device.read_at(address.offset_bytes(), &mut bytes).map(|()| bytes)
    }
}

#[cfg(test)]
mod tests;
