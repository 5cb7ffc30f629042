//! A scrub in the middle of everything else, and a bit that rots meanwhile: it finds that, wherever the block is shared, and
//! nothing else.

use super::{Pending, VOLUME_COUNT, Workload};
use rand::Rng;
use rok_blk::error::IoError;
use rok_blk::format::scrub::{DamageKind, DamageReader};
use rok_blk::pool::{Scrub, ScrubWish};
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::ScrubResult;
use std::sync::Arc;
use uuid::Uuid;

/// Who reads a block: the head of a volume, or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Head(usize, Uuid),
    Snapshot(Uuid, u64),
}

/// A bit that was inverted.
struct Rot {
    device: usize,
    /// Of its block.
    offset: u64,
    byte: u64,
    bit: u8,
    /// The block with it.
    content: Vec<u8>,
    /// Whether it is inverted now: for a recovery it is not.
    is_there: bool,
    /// Which block of a volume it is.
    block: u64,
    /// Who read an error when the bit was inverted.
    readers: Vec<Reader>,
}

/// The scrub of a seed's pool.
#[derive(Default)]
pub(super) struct Scrubbing {
    /// As this life has it.
    scrub: Option<Scrub>,
    is_reading: bool,
    rot: Option<Rot>,
    /// What the pass may find that began last: a block of a volume.
    may_find: Option<u64>,
    /// When that was. After a crash the one before it may be under way again, whose end was not stored.
    began_at: u64,
    /// Operations that had failed on purpose by then.
    faults_before: u64,
    /// A pass came to its end.
    is_due: bool,
    /// Of what was found not everybody who has it was to be named.
    is_brief: bool,
    /// Rollbacks that there were when the pass began: a head that was rolled back may have a block again.
    rollbacks_before: u64,
}

impl Scrubbing {
    /// The block whose reads may fail because of it.
    pub(super) fn rotten_block(&self) -> Option<u64> {
        self.rot.as_ref().filter(|rot| rot.is_there).map(|rot| rot.block)
    }
}

impl Workload {
    /// Begins a pass, mostly with a bit inverted; or stores how far one is.
    pub(super) fn scrub(&mut self) {
        if std::mem::take(&mut self.scrubbing.is_due) {
            // It came to its end in what this operation has done already.
            return self.judge_scrub();
        }
        if self.scrubbing.scrub.as_ref().is_some_and(|scrub| scrub.record().place.is_some()) {
            return self.store_scrub();
        }
        if self.scrubbing.rot.is_none() && self.world.random.random_bool(0.7) {
            self.plant_rot();
        }
        let now = self.now;
        self.scrubbing.may_find = self.scrubbing.rot.as_ref().map(|rot| rot.block);
        self.scrubbing.began_at = now;
        self.scrubbing.faults_before = self.faults_met();
        (self.scrubbing.is_brief, self.scrubbing.rollbacks_before) = (false, self.world.counts.rollbacks);
        self.scrubbing.scrub.as_mut().expect("each life has one").begin(now, 1 << 20);
        self.store_scrub();
    }

    /// What a scrub that is under way does beside everything else.
    pub(super) fn go_on_scrubbing(&mut self) {
        if std::mem::take(&mut self.scrubbing.is_due) {
            return self.judge_scrub();
        }
        let Some(place) = self.scrubbing.scrub.as_ref().and_then(|scrub| scrub.record().place) else { return };
        if self.scrubbing.is_reading || self.world.random.random_bool(0.2) {
            return;
        }
        let blocks_max = *[1, 20, 300].get(self.world.random.random_range(0..3)).expect("in range");
        let is_brief = self.world.random.random_bool(0.1);
        let result = ScrubResult::default();
        self.note(|| format!("scrub from {place:?}, {blocks_max} blocks"));
        let completion = self.completion(Pending::Scrub { result: Arc::clone(&result), is_brief });
        let lane = self.lane();
        self.scrubbing.is_reading = true;
        self.life().lanes[lane].scrub(ScrubWish { from: place, blocks_max, is_brief }, &result, completion);
        if self.is_short_of_space && self.world.random.random_bool(0.3) {
            self.overtake_scrub(lane);
        }
    }

    /// What is about to be read is replaced, and its places are used again, before all of it is read.
    fn overtake_scrub(&mut self, lane: usize) {
        self.life().lanes[lane].turn();
        self.life().run_jobs();
        let volume = self.random_volume();
        for _ in 0..2 {
            (0..3).for_each(|_| self.write_up_to(volume, 64));
            (0..20).for_each(|_| self.step());
            let mut life = self.life.take().expect("a life was begun");
            self.world.checkpoints_alone(&mut life);
            self.life = Some(life);
        }
    }

    pub(super) fn scrubbed(&mut self, result: &ScrubResult, is_brief: bool, outcome: Result<(), IoError>) {
        self.scrubbing.is_reading = false;
        if outcome.is_err() {
            return self.failed();
        }
        let step = std::mem::take(&mut *result.lock());
        self.note(|| format!("scrubbed {} blocks, next {:?}, {:?}", step.read_blocks, step.next, step.damages));
        self.world.counts.scrubbed_blocks += step.read_blocks;
        self.scrubbing.is_brief |= is_brief;
        let now = self.now;
        let scrub = self.scrubbing.scrub.as_mut().expect("each life has one");
        self.scrubbing.is_due = scrub.take(step, now);
        if self.world.random.random_bool(0.3) {
            self.store_scrub();
        }
    }

    /// A commit takes a turn, and a flush is the only one: another one may have them that only this thread can end.
    fn store_scrub(&mut self) {
        let pool = &self.life().pool;
        if pool.is_turn_taken() || pool.is_flush_under_way() {
            return;
        }
        let scrub = self.scrubbing.scrub.as_mut().expect("each life has one");
        if let Err(error) = scrub.store() {
            self.note(|| format!("the scrub is not stored: {error}"));
            if self.life().pool.check_writable().is_err() {
                self.failed();
            }
        }
    }

    /// Inverts a bit of a block that stored leaves map, if somebody reads it.
    fn plant_rot(&mut self) {
        self.drain();
        let used = self.life().pool.status().used_bytes / BLOCK_SIZE_U64;
        if used == 0 {
            return;
        }
        let nth = self.world.random.random_range(0..used);
        let Some(address) = self.life().pool.used_block(nth) else { return };
        let byte = address.offset_bytes() + self.world.random.random_range(0..BLOCK_SIZE_U64);
        let bit = self.world.random.random_range(0..8);
        let (device, offset) = (address.device().as_usize(), address.offset_bytes());
        self.world.devices[device].flip_bit(byte, bit);
        let [content] = &self.world.devices[device].contents_of(offset)[..] else {
            // Of a block that was written twice since the last flush one content is not the one that counts.
            return self.world.devices[device].flip_bit(byte, bit);
        };
        let content = content.clone();
        let rot = Rot { device, offset, byte, bit, content, is_there: true, block: 0, readers: Vec::new() };
        self.scrubbing.rot = Some(rot);
        let (block, readers) = self.who_reads_errors();
        self.note(|| format!("{address} rots: block {block} of {readers:?}"));
        let rot = self.scrubbing.rot.as_mut().expect("it was just put there");
        (rot.block, rot.readers) = (block, readers);
        if self.scrubbing.rot.as_ref().is_some_and(|rot| rot.readers.is_empty()) {
            self.end_rot();
        }
    }

    fn readers(&mut self) -> Vec<(Reader, Vec<u64>)> {
        let mut readers = Vec::new();
        for volume in 0..VOLUME_COUNT {
            let id = self.life().handles[volume].volume().id();
            let blocks_max = self.sizes[volume] / BLOCK_SIZE_U64;
            let blocks = self.models[volume].touched().into_iter().filter(|block| *block < blocks_max).collect();
            readers.push((Reader::Head(volume, id), blocks));
        }
        for snapshot in &self.snapshots {
            let (volume, number) = snapshot.id();
            readers.push((Reader::Snapshot(volume, number), snapshot.touched()));
        }
        readers
    }

    fn reads_error(&mut self, reader: Reader, block: u64) -> bool {
        match reader {
            Reader::Head(volume, id) => {
                let is_there = block < self.sizes[volume] / BLOCK_SIZE_U64;
                is_there && self.life().handles[volume].volume().id() == id && self.read_block(volume, block).is_err()
            }
            Reader::Snapshot(volume, number) => {
                let Ok(handle) = self.life().volumes.open_snapshot((volume, number)) else { return false };
                self.read_through(&handle, block).is_err()
            }
        }
    }

    /// The block that cannot be read, and by whom: it is the same block for all.
    fn who_reads_errors(&mut self) -> (u64, Vec<Reader>) {
        self.world.clear_faults();
        let readers = self.readers();
        let mut rotten = None;
        for (reader, blocks) in &readers {
            if rotten.is_none() {
                rotten = blocks.iter().copied().find(|block| self.reads_error(*reader, *block));
            }
        }
        let Some(block) = rotten else { return (0, Vec::new()) };
        let with_block = readers.into_iter().filter(|(_, blocks)| blocks.contains(&block));
        (block, with_block.map(|(reader, _)| reader).filter(|reader| self.reads_error(*reader, block)).collect())
    }

    /// A pass is at its end: it has found the bit if somebody reads it still, and nothing else.
    fn judge_scrub(&mut self) {
        self.drain();
        self.world.clear_faults();
        self.world.counts.scrubs += 1;
        let record = self.scrubbing.scrub.as_ref().expect("each life has one").record().clone();
        if record.began_at != self.scrubbing.began_at {
            // It may list a bit of its own time, and may have been behind the one that is inverted now.
            return self.end_rot();
        }
        let may_fail = self.faults_met() > self.scrubbing.faults_before;
        for damage in &record.damages {
            let is_rot = damage.kind == DamageKind::Content && Some(damage.first.get()) == self.scrubbing.may_find;
            let is_failure = damage.kind == DamageKind::Unreadable && may_fail;
            assert!(
                is_rot && damage.count == 1 || is_failure,
                "the scrub found damage where there is none: {damage:?}"
            );
        }
        let (block, readers) = match &self.scrubbing.rot {
            Some(rot) if self.scrubbing.may_find == Some(rot.block) => (rot.block, rot.readers.clone()),
            _ => return self.end_rot(),
        };
        for reader in readers {
            if !self.reads_error(reader, block) {
                continue;
            }
            let is_rolled_back = self.world.counts.rollbacks > self.scrubbing.rollbacks_before;
            let names = |found: &DamageReader| match reader {
                Reader::Head(_, id) => found.volume == id && (found.is_head || is_rolled_back),
                // Eight are named.
                Reader::Snapshot(id, number) => {
                    found.volume == id && (found.snapshots.contains(&number) || found.snapshot_count > 8)
                }
            };
            let mut found = record.damages.iter().filter(|damage| damage.first.get() == block);
            assert!(
                found.any(|damage| self.scrubbing.is_brief || damage.readers.iter().any(names)),
                "block {block} of {reader:?} reads as an error, and the scrub found {:?}",
                record.damages
            );
            self.world.counts.scrub_finds += 1;
        }
        self.end_rot();
    }

    /// The bit is as it was from now on.
    pub(super) fn end_rot(&mut self) {
        self.heal_rot();
        self.scrubbing.rot = None;
    }

    /// Inverts the bit back, unless something else was written there.
    pub(super) fn heal_rot(&mut self) {
        let Some(rot) = self.scrubbing.rot.take().filter(|rot| rot.is_there) else { return };
        if self.world.devices[rot.device].contents_of(rot.offset) != [rot.content.clone()] {
            return;
        }
        self.world.devices[rot.device].flip_bit(rot.byte, rot.bit);
        self.scrubbing.rot = Some(Rot { is_there: false, ..rot });
    }

    /// A life has begun: its scrub goes on where it was stored last, and the bit rots again.
    pub(super) fn resume_scrub(&mut self) {
        let scrub = Scrub::load(self.life().pool.clone()).expect("nothing is in the way of reading");
        self.world.counts.scrubs_resumed += u64::from(scrub.record().place.is_some());
        self.scrubbing.scrub = Some(scrub);
        (self.scrubbing.is_reading, self.scrubbing.is_due) = (false, false);
    }

    /// The bit rots again, unless something else was written there.
    pub(super) fn rot_again(&mut self) {
        let Some(rot) = self.scrubbing.rot.take() else { return };
        self.world.devices[rot.device].flip_bit(rot.byte, rot.bit);
        if self.world.devices[rot.device].contents_of(rot.offset) == [rot.content.clone()] {
            self.scrubbing.rot = Some(Rot { is_there: true, ..rot });
        } else {
            self.world.devices[rot.device].flip_bit(rot.byte, rot.bit);
        }
    }
}
