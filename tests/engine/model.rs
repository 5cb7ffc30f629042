//! The oracle: what each block may hold, now and after a crash.
//!
//! A block's value is eight numbers, one for each 512-byte sector: the number of the write that filled it, 0 for
//! zeros. Overlapping writes may be in flight, so a block has a set of candidates. Time is a counter of events.

use std::collections::{BTreeMap, BTreeSet};

/// Which write filled each sector of a block.
pub type Value = [u64; 8];

/// A block that was never written.
pub const ZEROS: Value = [0; 8];

/// A value, and when it was written: `end` is the answer's time, `None` while the write is in flight.
#[derive(Clone, Debug)]
struct Candidate {
    value: Value,
    begin: u64,
    end: Option<u64>,
    is_acknowledged: bool,
    /// Durable since this time at the latest: by FUA.
    is_forced: bool,
    write: u64,
}

/// What a block may hold.
#[derive(Clone, Debug)]
struct Block {
    /// After a crash: everything since the last flush that is not surely overwritten.
    candidates: Vec<Candidate>,
    /// Of those, what a read may see now.
    visible: Vec<u64>,
}

/// The blocks of one volume.
#[derive(Clone, Default)]
pub struct Model {
    blocks: BTreeMap<u64, Block>,
    /// Blocks that were behind an end that the volume had.
    cut_off: BTreeSet<u64>,
}

/// Number of the state that a block had before any write that is remembered.
const BASE: u64 = 0;
/// Numbers of further such states count down from here.
const BASE_LAST: u64 = u64::MAX;

impl Block {
    fn new(value: Value) -> Self {
        let base = Candidate { value, begin: 0, end: Some(0), is_acknowledged: true, is_forced: true, write: BASE };
        Self { candidates: vec![base], visible: vec![BASE] }
    }

    /// One more value that the block may have had before any write that is remembered.
    fn add_base(&mut self, index: u64, value: Value) {
        let write = BASE_LAST - index;
        let base = Candidate { value, begin: 0, end: Some(0), is_acknowledged: true, is_forced: true, write };
        self.candidates.push(base);
        self.visible.push(write);
    }

    fn is_busy(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.end.is_none())
    }

    /// Drops what a write of `winners` surely overwrote: it began after the other had ended.
    fn prune(&mut self, is_winner: impl Fn(&Candidate) -> bool) {
        let begins: Vec<(u64, u64)> = self
            .candidates
            .iter()
            .filter(|candidate| is_winner(candidate))
            .map(|candidate| (candidate.begin, candidate.write))
            .collect();
        self.candidates.retain(|candidate| {
            let is_overwritten = |(begin, write): &(u64, u64)| {
                candidate.end.is_some_and(|end| end < *begin) && *write != candidate.write
            };
            !begins.iter().any(is_overwritten)
        });
    }
}

impl Model {
    /// A volume that starts with this content, of which each block may have several values.
    pub fn of(content: &BTreeMap<u64, Vec<Value>>) -> Self {
        let mut model = Self::default();
        for (block, values) in content {
            let mut found = Block::new(values[0]);
            for (index, value) in (1..).zip(&values[1..]) {
                found.add_base(index, *value);
            }
            model.blocks.insert(*block, found);
        }
        model
    }

    /// A crash may find this content instead of what is there.
    pub fn may_be(&mut self, content: &BTreeMap<u64, Vec<Value>>) {
        for block in self.touched().into_iter().chain(content.keys().copied()) {
            let values = content.get(&block).cloned().unwrap_or_else(|| vec![ZEROS]);
            let found = self.block(block);
            values.into_iter().zip(0..).for_each(|(value, index)| found.add_base(1000 + index, value));
        }
    }

    fn block(&mut self, block: u64) -> &mut Block {
        self.blocks.entry(block).or_insert_with(|| Block::new(ZEROS))
    }

    /// The one value that a read must see, if there is just one.
    pub fn certain(&self, block: u64) -> Option<Value> {
        let Some(found) = self.blocks.get(&block) else { return Some(ZEROS) };
        let mut values = self.visible_values(block);
        values.dedup();
        (values.len() == 1 && !found.is_busy()).then(|| values[0])
    }

    /// Whether the block was ever written.
    pub fn is_touched(&self, block: u64) -> bool {
        self.blocks.contains_key(&block)
    }

    /// Blocks that were ever written.
    pub fn touched(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    /// A write of a block begins.
    pub fn begin(&mut self, block: u64, write: u64, value: Value, now: u64) {
        let candidate = Candidate { value, begin: now, end: None, is_acknowledged: false, is_forced: false, write };
        self.block(block).candidates.push(candidate);
    }

    /// A write of a block was answered.
    pub fn end(&mut self, block: u64, write: u64, is_success: bool, is_fua: bool, now: u64) {
        let found = self.block(block);
        let Some(index) = found.candidates.iter().position(|candidate| candidate.write == write) else {
            panic!("a write that has not ended is remembered")
        };
        let begin = found.candidates[index].begin;
        found.candidates[index].end = Some(now);
        found.candidates[index].is_acknowledged = is_success;
        found.candidates[index].is_forced = is_success && is_fua;
        if is_success {
            // What had ended before this one began is overwritten for readers.
            let ends: BTreeMap<u64, Option<u64>> =
                found.candidates.iter().map(|candidate| (candidate.write, candidate.end)).collect();
            found.visible.retain(|write| ends.get(write).is_some_and(|end| end.is_none_or(|end| end >= begin)));
        }
        found.visible.push(write);
        if is_success && is_fua {
            found.prune(|candidate| candidate.is_forced);
        }
    }

    /// A write of a block that was one of several possible ones is none any more, unless a crash comes before the next flush.
    pub fn give_up(&mut self, block: u64, write: u64, now: u64) {
        let mut candidates = self.block(block).candidates.iter_mut();
        if let Some(candidate) = candidates.find(|candidate| candidate.write == write) {
            candidate.end = candidate.end.or(Some(now));
        }
    }

    /// A flush that began at `begin` was answered: what was acknowledged before is durable.
    pub fn flushed(&mut self, begin: u64) {
        for block in self.blocks.values_mut() {
            block.prune(|candidate| candidate.is_acknowledged && candidate.end.is_some_and(|end| end < begin));
        }
    }

    /// The process died, the machine stayed: everything acknowledged survives.
    pub fn killed(&mut self) {
        for block in self.blocks.values_mut() {
            block.prune(|candidate| candidate.is_acknowledged);
        }
    }

    /// Whether a write of a block was acknowledged as durable.
    pub fn is_durable(&self, block: u64, write: u64) -> bool {
        let candidates = self.blocks.get(&block).map_or(&[][..], |block| &block.candidates);
        candidates.iter().any(|candidate| candidate.write == write && candidate.is_forced)
    }

    /// The volume ends before this block now. Should it have the blocks behind it again, they are zeros.
    pub fn end_at(&mut self, end: u64) {
        self.cut_off.extend(self.blocks.split_off(&end).into_keys());
        for block in self.cut_off.range(..end) {
            self.blocks.entry(*block).or_insert_with(|| Block::new(ZEROS));
        }
        self.cut_off = self.cut_off.split_off(&end);
    }

    /// A read of a block that began then saw this value. If nothing was in flight since, no earlier one comes back.
    pub fn observed(&mut self, block: u64, value: Value, begin: u64) {
        let Some(found) = self.blocks.get_mut(&block) else { return };
        // What failed may come back at a crash.
        let is_open =
            |candidate: &Candidate| candidate.end.is_none_or(|end| end >= begin) || !candidate.is_acknowledged;
        if found.candidates.iter().any(is_open) {
            return;
        }
        let mut seen = found.candidates.iter_mut().filter(|candidate| candidate.value == value);
        if let (Some(candidate), None) = (seen.next(), seen.next()) {
            candidate.begin = candidate.begin.max(begin);
            found.visible = vec![candidate.write];
        }
    }

    /// While pieces of a block are written, of which one was acknowledged: what is without it is not to be read any more.
    pub fn retire(&mut self, block: u64, now: u64, is_without: impl Fn(&Value) -> bool) {
        let found = self.block(block);
        for candidate in found.candidates.iter_mut().filter(|candidate| is_without(&candidate.value)) {
            candidate.end = candidate.end.or(Some(now));
            found.visible.retain(|write| *write != candidate.write);
        }
    }

    /// When the write began that a value is of, if it is of just one, and no zeros.
    pub fn begin_of(&self, block: u64, value: Value) -> Option<u64> {
        let of_value = |candidate: &&Candidate| candidate.value == value && !value.contains(&0);
        let mut seen = self.blocks.get(&block)?.candidates.iter().filter(of_value);
        let begin = seen.next()?.begin;
        seen.next().is_none().then_some(begin)
    }

    /// Values that a read may see while no crash intervenes: of writes that ended last, and of all in flight.
    pub fn visible_values(&self, block: u64) -> Vec<Value> {
        let Some(found) = self.blocks.get(&block) else { return vec![ZEROS] };
        let is_visible = |candidate: &&Candidate| candidate.end.is_none() || found.visible.contains(&candidate.write);
        found.candidates.iter().filter(is_visible).map(|candidate| candidate.value).collect()
    }

    /// Values that the block may have after a crash.
    pub fn candidate_values(&self, block: u64) -> Vec<Value> {
        let Some(found) = self.blocks.get(&block) else { return vec![ZEROS] };
        found.candidates.iter().map(|candidate| candidate.value).collect()
    }

    /// After a crash and recovery the block holds this, durably.
    pub fn settle(&mut self, block: u64, value: Value) {
        self.blocks.insert(block, Block::new(value));
    }
}
