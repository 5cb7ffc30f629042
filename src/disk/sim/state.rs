//! What a simulated device holds, and what happens to it.
//!
//! Invariants: `current` is what a read sees when nothing is in flight; writes of `pending` are in completion order and
//! applying them to `durable` never replaces newer bytes by older ones. Every choice is drawn from the caller's generator.

use super::content::{Content, SECTOR_SIZE, Write};
use super::{CrashMode, OpKind, SimCounters, WrittenRange};
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, to_u64, to_usize};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What a range holds that was discarded and is no hole.
const DISCARDED: u8 = 0xd1;

/// A generator: given n, a number below n.
pub(super) type Random<'a> = &'a mut dyn FnMut(u64) -> u64;

pub(super) struct State {
    pub(super) size_bytes: u64,
    durable: Content,
    current: Content,
    pending: Vec<PendingWrite>,
    /// Writes of lanes that have not completed, by submission.
    in_flight: BTreeMap<u64, Write>,
    submission_count: u64,
    /// Number of the newest completed write.
    completed_last: u64,
    /// Counts the crashes: what was opened before one is dead.
    pub(super) generation: u64,
    /// Operations that will fail, by their number from the start.
    faults: BTreeSet<(OpKind, u64)>,
    /// Writes that will go nowhere, or elsewhere, by their number from the start.
    strays: BTreeMap<u64, Option<u64>>,
    /// Whether flushes are acknowledged without making anything durable.
    pub(super) is_lying: bool,
    /// Blocks that cannot be read before they are written again.
    bad_blocks: BTreeSet<u64>,
    /// Whether discarded ranges are to be written before they are used.
    pub(super) is_thin: bool,
    /// Blocks that were discarded and not written since.
    discarded: BTreeSet<u64>,
    pub(super) counters: SimCounters,
    pub(super) written_log: Option<Vec<WrittenRange>>,
    /// For calls that have no generator of a caller.
    pub(super) own_random: SmallRng,
}

#[derive(Clone)]
struct PendingWrite {
    number: u64,
    write: Write,
}

impl State {
    pub(super) fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            durable: Content::default(),
            current: Content::default(),
            pending: Vec::new(),
            in_flight: BTreeMap::new(),
            submission_count: 0,
            completed_last: 0,
            generation: 0,
            faults: BTreeSet::new(),
            strays: BTreeMap::new(),
            is_lying: false,
            bad_blocks: BTreeSet::new(),
            is_thin: false,
            discarded: BTreeSet::new(),
            counters: SimCounters::default(),
            written_log: None,
            own_random: SmallRng::seed_from_u64(0),
        }
    }

    /// A device with the same bytes, durable and not.
    pub(super) fn duplicate(&self) -> Self {
        let mut copy = Self::new(self.size_bytes);
        copy.durable = self.durable.clone();
        copy.current = self.current.clone();
        copy.pending.clone_from(&self.pending);
        copy.completed_last = self.completed_last;
        copy.bad_blocks.clone_from(&self.bad_blocks);
        (copy.is_thin, copy.discarded) = (self.is_thin, self.discarded.clone());
        copy
    }

    /// The same with what is in flight.
    pub(super) fn image(&self) -> Self {
        let mut copy = self.duplicate();
        copy.in_flight.clone_from(&self.in_flight);
        copy.submission_count = self.submission_count;
        copy.own_random = self.own_random.clone();
        copy
    }

    pub(super) fn fail_nth(&mut self, kind: OpKind, nth: u64) {
        self.faults.insert((kind, self.counters.of(kind) + nth));
    }

    pub(super) fn lead_astray(&mut self, nth: u64, offset_bytes: Option<u64>) {
        self.strays.insert(self.counters.writes + nth, offset_bytes);
    }

    pub(super) fn clear_faults(&mut self) {
        self.faults.clear();
        self.strays.clear();
        self.is_lying = false;
    }

    pub(super) fn spoil(&mut self, block: u64) {
        self.bad_blocks.insert(block);
    }

    pub(super) fn heal(&mut self) {
        self.bad_blocks.clear();
    }

    /// Offset and bytes of each write that a power loss may take, in part or whole.
    pub(super) fn unflushed(&self) -> Vec<(u64, Arc<[u8]>)> {
        let pending = self.pending.iter().map(|pending| &pending.write);
        pending.chain(self.in_flight.values()).map(|write| (write.offset_bytes, Arc::clone(&write.bytes))).collect()
    }

    /// Forgets a range at once and durably, with what was on its way there: in a file it reads as zeros, else as what
    /// nobody wrote.
    pub(super) fn discard(&mut self, offset_bytes: u64, len_bytes: u64) {
        self.counters.discards += 1;
        let blocks = blocks_of(offset_bytes, to_usize(len_bytes));
        self.durable.fill(blocks.clone(), if self.is_thin { 0 } else { DISCARDED });
        self.current.fill(blocks.clone(), if self.is_thin { 0 } else { DISCARDED });
        for pending in self.pending.iter_mut().filter(|pending| pending.write.overlaps(offset_bytes, len_bytes)) {
            pending.write.forget(offset_bytes, len_bytes);
        }
        self.pending.retain(|pending| pending.write.alive_count() > 0);
        self.discarded.extend(blocks);
    }

    /// Blocks that were discarded and not written since, as ranges of bytes.
    pub(super) fn holes(&self) -> Vec<Range<u64>> {
        let bytes = |block: &u64| block * BLOCK_SIZE_U64..(block + 1) * BLOCK_SIZE_U64;
        if self.is_thin { self.discarded.iter().map(bytes).collect() } else { Vec::new() }
    }

    /// Counts an operation that ends now, and tells whether it is one that fails.
    fn has_fault(&mut self, kind: OpKind) -> bool {
        let count = self.counters.of_mut(kind);
        *count += 1;
        let is_failing = self.faults.remove(&(kind, *count));
        self.counters.injected_errors += u64::from(is_failing);
        is_failing
    }

    pub(super) fn submit_write(&mut self, offset_bytes: u64, bytes: Arc<[u8]>) -> u64 {
        self.submission_count += 1;
        self.in_flight.insert(self.submission_count, Write::new(offset_bytes, bytes));
        self.submission_count
    }

    pub(super) fn complete_write(&mut self, id: u64, random: Random<'_>) -> io::Result<()> {
        let write = self.in_flight.remove(&id).expect("an operation completes once");
        self.write(write, random)
    }

    /// A write that ends now.
    pub(super) fn write(&mut self, mut write: Write, random: Random<'_>) -> io::Result<()> {
        let is_failing = self.has_fault(OpKind::Write);
        if let Some(stray) = self.strays.remove(&self.counters.writes).filter(|_| !is_failing) {
            self.counters.strays += 1;
            let Some(offset_bytes) = stray else { return Ok(()) };
            let room = to_usize(self.size_bytes - offset_bytes).min(write.bytes.len());
            write = Write::new(offset_bytes, write.bytes[..room].into());
        }
        if is_failing {
            tear(&mut write.is_alive, random);
        } else {
            for block in blocks_of(write.offset_bytes, write.bytes.len()) {
                self.bad_blocks.remove(&block);
                self.discarded.remove(&block);
            }
        }
        self.keep(write);
        if is_failing { Err(injected()) } else { Ok(()) }
    }

    fn keep(&mut self, write: Write) {
        if let Some(log) = &mut self.written_log {
            log.push(WrittenRange { offset_bytes: write.offset_bytes, bytes: Arc::clone(&write.bytes) });
        }
        self.current.apply(&write);
        self.wait_for_flush(write);
    }

    /// A read that ends now. What is in flight over it may be seen, not seen, or in part.
    pub(super) fn read(&mut self, offset_bytes: u64, target: &mut [u8], random: Random<'_>) -> io::Result<()> {
        if self.has_fault(OpKind::Read) {
            return Err(injected());
        }
        if self.bad_blocks.range(blocks_of(offset_bytes, target.len())).next().is_some() {
            self.counters.bad_block_reads += 1;
            return Err(injected());
        }
        self.current.read(offset_bytes, target);
        let len_bytes = to_u64(target.len());
        for write in self.in_flight.values().filter(|write| write.overlaps(offset_bytes, len_bytes)) {
            match random(3) {
                0 => {}
                1 => write.overlay(offset_bytes, target, || true),
                _ => write.overlay(offset_bytes, target, || random(2) == 1),
            }
        }
        Ok(())
    }

    /// Number of the newest write that a flush submitted now covers.
    pub(super) const fn flush_mark(&self) -> u64 {
        self.completed_last
    }

    /// A flush that ends now. It covers the writes up to `mark`; whether it covers later ones is random.
    pub(super) fn flush(&mut self, mark: u64, random: Random<'_>) -> io::Result<()> {
        if self.has_fault(OpKind::Flush) {
            self.counters.failed_flushes += 1;
            let count_before = self.pending.len();
            self.pending.retain(|_| random(2) == 1);
            self.counters.dropped_writes += to_u64(count_before - self.pending.len());
            return Err(injected());
        }
        if self.is_lying {
            self.counters.lies += 1;
            return Ok(());
        }
        let mut left: Vec<PendingWrite> = Vec::new();
        for PendingWrite { number, write } in std::mem::take(&mut self.pending) {
            if number > mark && random(2) == 0 {
                left.push(PendingWrite { number, write });
                continue;
            }
            self.durable.apply(&write);
            // An older write that stays behind must not replace this one later.
            left.iter_mut().for_each(|older| older.write.supersede(&write));
        }
        left.retain(|pending| pending.write.alive_count() > 0);
        self.pending = left;
        Ok(())
    }

    pub(super) fn crash(&mut self, mode: CrashMode, random: Random<'_>) {
        self.generation += 1;
        self.counters.crashes += 1;
        // One crash spares almost everything, another almost nothing: independent even chances would
        // leave neither a long intact tail nor a wholly lost one.
        let spared_of_8 = random(9);
        if mode == CrashMode::PowerLoss {
            for pending in std::mem::take(&mut self.pending) {
                self.settle_at_crash(pending.write, spared_of_8, random);
            }
        }
        let mut in_flight: Vec<Write> = std::mem::take(&mut self.in_flight).into_values().collect();
        while !in_flight.is_empty() {
            let write = in_flight.swap_remove(to_usize(random(to_u64(in_flight.len()))));
            self.settle_at_crash(write, spared_of_8, random);
        }
        self.current = self.durable.clone();
        for pending in &self.pending {
            self.current.apply(&pending.write);
        }
        if mode != CrashMode::KillBeforeWriteback {
            self.durable = self.current.clone();
            self.pending.clear();
        }
    }

    /// A power loss of which `choose` says what each write loses.
    pub(super) fn lose_power(&mut self, choose: &mut dyn FnMut(&mut [bool])) {
        self.generation += 1;
        self.counters.crashes += 1;
        let pending = std::mem::take(&mut self.pending).into_iter().map(|pending| pending.write);
        let writes: Vec<Write> = pending.chain(std::mem::take(&mut self.in_flight).into_values()).collect();
        for mut write in writes {
            let was_alive = write.is_alive.clone();
            choose(&mut write.is_alive);
            write.is_alive.iter_mut().zip(&was_alive).for_each(|(is_alive, was_alive)| *is_alive &= was_alive);
            let count_before = was_alive.iter().filter(|is_alive| **is_alive).count();
            self.count_lost(count_before, write.alive_count());
            self.durable.apply(&write);
        }
        self.current = self.durable.clone();
    }

    fn count_lost(&mut self, count_before: usize, count_kept: usize) {
        self.counters.dropped_writes += u64::from(count_kept == 0);
        self.counters.torn_writes += u64::from(0 < count_kept && count_kept < count_before);
    }

    /// Keeps, drops or tears a write whose fate the crash decides.
    fn settle_at_crash(&mut self, mut write: Write, spared_of_8: u64, random: Random<'_>) {
        let count_before = write.alive_count();
        if random(8) >= spared_of_8 {
            if random(2) == 0 {
                write.is_alive.fill(false);
            } else {
                tear(&mut write.is_alive, random);
            }
        }
        self.count_lost(count_before, write.alive_count());
        self.wait_for_flush(write);
    }

    /// Puts a completed write behind all others that are not durable.
    fn wait_for_flush(&mut self, write: Write) {
        self.completed_last += 1;
        if write.alive_count() > 0 {
            self.pending.push(PendingWrite { number: self.completed_last, write });
        }
    }

    pub(super) fn flip_bit(&mut self, offset_bytes: u64, bit: u8) {
        self.durable.flip_bit(offset_bytes, bit);
        self.current.flip_bit(offset_bytes, bit);
        for pending in &mut self.pending {
            pending.write.flip_bit(offset_bytes, bit);
        }
    }

    pub(super) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        // Whole blocks by their hashes, which is quicker, and each only once: most are the same in both, or discarded.
        for (content, before) in [(&self.durable, None), (&self.current, Some(&self.durable))] {
            for (index, block) in content.nonzero_blocks() {
                hasher.update(&index.to_le_bytes());
                if before.is_some_and(|before| before.has_same_block(content, index)) {
                    hasher.update(b"the same");
                } else if *block == [DISCARDED; BLOCK_SIZE] {
                    hasher.update(b"discarded");
                } else {
                    hasher.update(blake3::hash(block).as_bytes());
                }
            }
            hasher.update(&u64::MAX.to_le_bytes());
        }
        for PendingWrite { write, .. } in &self.pending {
            hasher.update(&write.offset_bytes.to_le_bytes()).update(&to_u64(write.bytes.len()).to_le_bytes());
            for (index, sector) in write.alive_sectors() {
                hasher.update(&to_u64(index).to_le_bytes()).update(sector);
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// What [`Self::scan`] shows of a block, each content once.
    pub(super) fn contents_of(&self, index: u64) -> Vec<&[u8]> {
        let stored = [&self.durable, &self.current].into_iter().filter_map(|content| content.nonzero_block(index));
        let pending = self.pending.iter().map(|pending| &pending.write);
        let waiting = pending.chain(self.in_flight.values()).filter_map(|write| write.block(index));
        let mut contents: Vec<&[u8]> = Vec::new();
        for content in stored.map(<[u8; BLOCK_SIZE]>::as_slice).chain(waiting) {
            if !contents.contains(&content) {
                contents.push(content);
            }
        }
        contents
    }

    pub(super) fn scan(&self, look: &mut dyn FnMut(u64, &[u8])) {
        scan_runs(self.durable.nonzero_blocks(), look);
        let differs = |block: &(u64, &[u8; BLOCK_SIZE])| !self.current.has_same_block(&self.durable, block.0);
        scan_runs(self.current.nonzero_blocks().filter(differs), look);
        let pending = self.pending.iter().map(|pending| &pending.write);
        for write in pending.chain(self.in_flight.values()) {
            look(write.offset_bytes, &write.bytes);
        }
    }
}

/// Shows neighbouring blocks as one run, so that nothing hides on a border between them.
fn scan_runs<'a>(blocks: impl Iterator<Item = (u64, &'a [u8; BLOCK_SIZE])>, look: &mut dyn FnMut(u64, &[u8])) {
    let mut run: Vec<u8> = Vec::new();
    let mut next_index = 0;
    let mut show = |end_index: u64, run: &mut Vec<u8>| {
        if !run.is_empty() {
            look(end_index * to_u64(BLOCK_SIZE) - to_u64(run.len()), run);
            run.clear();
        }
    };
    for (index, block) in blocks {
        if index != next_index {
            show(next_index, &mut run);
        }
        run.extend_from_slice(block);
        next_index = index + 1;
    }
    show(next_index, &mut run);
}

/// Leaves a random subset of the sectors alive, in one of the shapes that devices leave.
fn tear(is_alive: &mut [bool], random: Random<'_>) {
    const SECTORS_PER_BLOCK: usize = BLOCK_SIZE / SECTOR_SIZE;
    let count = to_u64(is_alive.len());
    match random(4) {
        0 => is_alive.iter_mut().for_each(|alive| *alive &= random(2) == 1),
        1 => is_alive[to_usize(random(count + 1))..].fill(false),
        2 => {
            for block in is_alive.chunks_mut(SECTORS_PER_BLOCK) {
                if random(2) == 0 {
                    block.fill(false);
                }
            }
        }
        _ => is_alive[to_usize(random(count))] = false,
    }
}

fn blocks_of(offset_bytes: u64, len_bytes: usize) -> std::ops::Range<u64> {
    offset_bytes / BLOCK_SIZE_U64..(offset_bytes + to_u64(len_bytes)).div_ceil(BLOCK_SIZE_U64)
}

fn injected() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// Draws from the device's own generator, for calls that bring none.
pub(super) fn with_own_random<R>(state: &mut State, act: impl FnOnce(&mut State, Random<'_>) -> R) -> R {
    let mut generator = state.own_random.clone();
    let result = act(state, &mut |below| generator.random_range(0..below));
    state.own_random = generator;
    result
}
