//! Snapshots of one volume or of all at once, clones that take a volume's place, rollback, and removals in any order.
//!
//! What a snapshot may hold is known when it is made; once a block of it was read, that is what it holds for ever.

use super::volumes::name;
use super::{Pending, VOLUME_COUNT, Workload};
use crate::model::{Model, Value};
use crate::sector::parse;
use crate::world::End;
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::error::{ErrorKind, IoError, Result};
use rok_blk::format::snapshot::{Annotations, SnapshotRecord};
use rok_blk::pool::{NewClone, NewSnapshot};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, Frozen, OpenVolume};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Snapshots that there are at once.
const SNAPSHOTS_MAX: usize = 12;
/// The same where leaves are to be stored in parts: more than parts may be deep, for each volume.
const MANY_SNAPSHOTS_MAX: usize = 24;
/// Blocks that are read by one request where all are read.
const RUN_BLOCKS_MAX: usize = 64;

type ReadResult = std::result::Result<IoBuffer, IoError>;

/// What a snapshot may hold, by block: several values until it was read.
type Content = BTreeMap<u64, Vec<Value>>;

/// A snapshot that was made.
pub struct Snapshot {
    volume: Uuid,
    number: u64,
    size_bytes: u64,
    content: Content,
    /// Its making or removal failed: a crash may find it or not.
    is_doubtful: bool,
}

impl Snapshot {
    pub(super) const fn id(&self) -> (Uuid, u64) {
        (self.volume, self.number)
    }

    pub(super) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) const fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// What a block may hold.
    pub(super) fn values(&self, block: u64) -> Vec<Value> {
        self.content.get(&block).cloned().unwrap_or_else(|| vec![crate::model::ZEROS])
    }

    /// Blocks that were ever written, or read.
    pub(super) fn touched(&self) -> Vec<u64> {
        self.content.keys().copied().collect()
    }

    /// Whether a block was ever written, or read.
    pub(super) fn is_touched(&self, block: u64) -> bool {
        self.content.contains_key(&block)
    }

    /// Notes what a block holds from now on; `false` if it cannot.
    pub(super) fn settle(&mut self, block: u64, value: Value) -> bool {
        let allowed = self.content.entry(block).or_insert_with(|| vec![crate::model::ZEROS]);
        let is_allowed = allowed.contains(&value);
        if is_allowed {
            *allowed = vec![value];
        }
        is_allowed
    }
}

impl Workload {
    /// Holds writes of volumes back until none is under way. Other requests go on meanwhile.
    pub(super) fn freeze(&mut self, ids: &[Uuid]) -> Result<Frozen> {
        let frozen = self.life().volumes.freeze(ids)?;
        let moves = self.pending.values().filter(|pending| matches!(pending, Pending::Clean));
        self.groups_at_gates += moves.count();
        while !frozen.is_empty() {
            self.step();
        }
        Ok(frozen)
    }

    fn flush_frozen(&mut self, frozen: &Frozen) -> Result<()> {
        let begin = self.now;
        while !frozen.flush()? {
            self.step();
        }
        self.models.iter_mut().for_each(|model| model.flushed(begin));
        Ok(())
    }

    fn volume_id(&mut self, volume: usize) -> Uuid {
        self.life().volumes.find(&name(volume)).expect("the volume is there").id
    }

    fn new_snapshot(&mut self, volume: usize) -> NewSnapshot {
        let id = Uuid::from_u128(self.next_volume_id);
        self.next_volume_id += 1;
        let now = i64::try_from(self.now).expect("a small count");
        let annotations = Annotations { message: format!("at {now}"), ..Annotations::default() };
        NewSnapshot { id, volume: self.volume_id(volume), created_at_ms: now, time_ms: now, expires_at: 0, annotations }
    }

    const fn snapshots_max(&self) -> usize {
        if self.has_many_snapshots { MANY_SNAPSHOTS_MAX } else { SNAPSHOTS_MAX }
    }

    /// Small changes of one volume with a snapshot behind each, and now and then one of all that goes.
    pub(super) fn snapshots_in_a_row(&mut self) {
        let volume = self.random_volume();
        for _ in 0..self.world.random.random_range(1..6) {
            if self.world.random.random_bool(0.8) {
                self.write_up_to(volume, 2);
            } else {
                self.remove_up_to(volume, 2);
            }
            if self.world.random.random_bool(0.2) {
                self.remove_snapshot();
            }
            self.snapshot();
            for _ in 0..self.world.random.random_range(0..12) {
                self.step();
            }
        }
    }

    /// Makes a snapshot of a volume, or of all at once.
    pub(super) fn snapshot(&mut self) {
        if self.snapshots.len() >= self.snapshots_max() {
            return self.remove_snapshot();
        }
        let volumes: Vec<usize> =
            if self.world.random.random_bool(0.3) { (0..VOLUME_COUNT).collect() } else { vec![self.random_volume()] };
        let new: Vec<NewSnapshot> = volumes.iter().map(|volume| self.new_snapshot(*volume)).collect();
        let ids: Vec<Uuid> = new.iter().map(|new| new.volume).collect();
        let Ok(frozen) = self.freeze(&ids) else { return self.failed() };
        if self.flush_frozen(&frozen).is_err() {
            return self.failed();
        }
        if self.world.random.random_bool(0.03) {
            drop(frozen);
            return self.crash(End::PowerLoss);
        }
        let made = self.life().volumes.snapshot_frozen(&frozen, new);
        // Some of what is in flight may be in it: blocks of a write go one by one.
        let contents: Vec<Content> = volumes.iter().map(|volume| self.content(*volume)).collect();
        drop(frozen);
        match made {
            Ok(records) => {
                self.world.counts.snapshots += records.len() as u64;
                for (record, content) in records.into_iter().zip(contents) {
                    self.note(|| format!("snapshot {} of {}, epoch {:?}", record.number, record.volume, record.point));
                    self.add_snapshot(record, content, false);
                }
            }
            Err(error) => {
                let numbers: Vec<u64> = ids.iter().map(|id| self.next_number(*id)).collect();
                self.not_stored(error.kind(), |workload| {
                    for (((volume, number), content), id) in volumes.iter().zip(numbers).zip(contents).zip(ids) {
                        let size_bytes = workload.sizes[*volume];
                        workload.snapshots.push(Snapshot {
                            volume: id,
                            number,
                            size_bytes,
                            content,
                            is_doubtful: true,
                        });
                    }
                });
            }
        }
    }

    fn next_number(&mut self, volume: Uuid) -> u64 {
        self.life().pool.with_catalog(|catalog, _| catalog.volume(volume).expect("it is there").next_snapshot)
    }

    fn content(&self, volume: usize) -> Content {
        let model = &self.models[volume];
        model.touched().into_iter().map(|block| (block, model.visible_values(block))).collect()
    }

    fn add_snapshot(&mut self, record: SnapshotRecord, content: Content, is_doubtful: bool) {
        let SnapshotRecord { volume, number, size_bytes, .. } = record;
        self.snapshots.push(Snapshot { volume, number, size_bytes, content, is_doubtful });
    }

    /// A change of the catalog failed. Without space nothing happened; after another error a crash decides.
    fn not_stored(&mut self, kind: ErrorKind, in_doubt: impl FnOnce(&mut Self)) {
        if kind == ErrorKind::NoSpace {
            return;
        }
        in_doubt(self);
        self.failed();
        self.crash(End::PowerLoss);
    }

    pub(super) fn remove_snapshot(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let index = self.world.random.random_range(0..self.snapshots.len());
        let id = (self.snapshots[index].volume, self.snapshots[index].number);
        self.note(|| format!("snapshot {} of {} is removed", id.1, id.0));
        let removed = self.life().volumes.remove_snapshots(&[id]);
        match removed {
            Ok(()) => {
                self.snapshots.remove(index);
                self.world.counts.snapshots_removed += 1;
            }
            // A read of it is under way.
            Err(error) if error.kind() == ErrorKind::Busy => {}
            Err(error) => self.not_stored(error.kind(), |workload| workload.snapshots[index].is_doubtful = true),
        }
    }

    /// Reads some blocks of a snapshot, in the middle of everything else.
    pub(super) fn read_snapshot(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let index = self.world.random.random_range(0..self.snapshots.len());
        let snapshot = &self.snapshots[index];
        let (id, blocks) = ((snapshot.volume, snapshot.number), snapshot.size_bytes / BLOCK_SIZE_U64);
        let first = self.world.random.random_range(0..blocks.min(64));
        let count = self.world.random.random_range(1..=32).min(blocks - first);
        let target = IoBuffer::allocate(usize::try_from(count).expect("few") * BLOCK_SIZE);
        let handle = self.life().volumes.open_snapshot(id).expect("the snapshot is there");
        let volume = handle.volume().clone();
        let faults_before = self.faults_met();
        let pending = Pending::ReadSnapshot { id, first, target: target.clone(), faults_before, _handle: handle };
        let completion = self.completion(pending);
        let lane = self.lane();
        self.life().lanes[lane].read(&volume, first * BLOCK_SIZE_U64, target, completion);
    }

    pub(super) fn snapshot_read_done(&mut self, id: (Uuid, u64), first: u64, target: &IoBuffer) {
        let Some(index) = self.snapshots.iter().position(|other| (other.volume, other.number) == id) else { return };
        let bytes = target.with_bytes(<[u8]>::to_vec);
        for (block, content) in (first..).zip(bytes.chunks_exact(BLOCK_SIZE)) {
            self.check_snapshot_block(index, block, content);
        }
        self.world.counts.snapshot_reads += 1;
    }

    fn check_snapshot_block(&mut self, index: usize, block: u64, content: &[u8]) {
        let snapshot = &mut self.snapshots[index];
        let place = format!("block {block} of snapshot {} of {}", snapshot.number, snapshot.volume);
        let mut value = [0; 8];
        for (sector, bytes) in value.iter_mut().zip(content.chunks_exact(512)) {
            *sector = parse(bytes).unwrap_or_else(|| panic!("{place} holds bytes that nobody wrote"));
        }
        assert!(snapshot.settle(block, value), "{place} holds {value:?}, possible are {:?}", snapshot.values(block));
    }

    /// Reads a whole snapshot and settles what it holds.
    fn verify_snapshot(&mut self, index: usize) {
        let (id, blocks) = {
            let snapshot = &self.snapshots[index];
            let blocks: Vec<u64> = snapshot.content.keys().copied().collect();
            ((snapshot.volume, snapshot.number), blocks)
        };
        let handle = self.life().volumes.open_snapshot(id).expect("the snapshot is there");
        assert_eq!(handle.volume().size_bytes(), self.snapshots[index].size_bytes, "the size is frozen too");
        let faults_before = self.faults_met();
        for (block, content) in self.read_all(&handle, &blocks) {
            match content {
                Ok(content) => content.with_bytes(|bytes| self.check_snapshot_block(index, block, bytes)),
                Err(_) => self.failed_at(faults_before, [block]),
            }
        }
        self.world.counts.snapshots_verified += 1;
    }

    pub(super) fn verify_snapshots(&mut self) {
        (0..self.snapshots.len()).for_each(|index| self.verify_snapshot(index));
    }

    /// Blocks in ascending order, neighbours by one request; each alone where that fails. One of them has the error at least.
    pub(super) fn read_all(&mut self, handle: &OpenVolume, blocks: &[u64]) -> Vec<(u64, ReadResult)> {
        let mut contents = Vec::new();
        let neighbours = blocks.chunk_by(|block, next| block + 1 == *next);
        for run in neighbours.flat_map(|neighbours| neighbours.chunks(RUN_BLOCKS_MAX)) {
            match self.read_run(handle, run[0], run.len()) {
                Ok(content) => {
                    let starts = (0..).step_by(BLOCK_SIZE);
                    let blocks = starts.map(|start| Ok(content.slice(start..start + BLOCK_SIZE)));
                    contents.extend(run.iter().copied().zip(blocks));
                }
                Err(error) => {
                    let mut alone: Vec<_> =
                        run.iter().map(|block| (*block, self.read_through(handle, *block))).collect();
                    if alone.iter().all(|(_, content)| content.is_ok()) {
                        // Who reads has to have a reason for that.
                        alone[0].1 = Err(error);
                    }
                    contents.extend(alone);
                }
            }
        }
        contents
    }

    /// One block, once everything else is done.
    pub(super) fn read_through(&mut self, handle: &OpenVolume, block: u64) -> ReadResult {
        self.read_run(handle, block, 1)
    }

    fn read_run(&mut self, handle: &OpenVolume, first: u64, count: usize) -> ReadResult {
        let target = IoBuffer::allocate(count * BLOCK_SIZE);
        let completion = Completion { owner: 1, cookie: 0 };
        let lane = self.lane();
        let life = self.life();
        life.lanes[lane].read(handle.volume(), first * BLOCK_SIZE_U64, target.clone(), completion);
        let mut done = Vec::new();
        let mut life = self.life.take().expect("a life was begun");
        self.world.drain(&mut life, &mut done);
        self.life = Some(life);
        let position = done.iter().position(|(completion, _)| completion.owner == 1).expect("the read is answered");
        let (_, result) = done.remove(position);
        self.take_done(done);
        result.map(|()| target)
    }

    /// What the pool has and what was made are the same, but for what a crash decides.
    pub(super) fn settle_snapshots(&mut self) {
        let found: Vec<(Uuid, u64)> = self.life().pool.with_catalog(|catalog, _| {
            catalog.snapshots().map(|snapshot| (snapshot.volume, snapshot.number)).collect()
        });
        self.snapshots.retain(|snapshot| {
            let is_there = found.contains(&(snapshot.volume, snapshot.number));
            assert!(is_there || snapshot.is_doubtful, "snapshot {} of {} is gone", snapshot.number, snapshot.volume);
            is_there
        });
        assert_eq!(found.len(), self.snapshots.len(), "a snapshot is there that nobody made");
        self.snapshots.iter_mut().for_each(|snapshot| snapshot.is_doubtful = false);
        if self.world.random.random_bool(0.5) {
            self.verify_snapshots();
        }
    }

    /// Those of a volume that is gone, or may be.
    pub(super) fn forget_snapshots(&mut self, volume: Uuid, is_sure: bool) {
        for snapshot in self.snapshots.iter_mut().filter(|snapshot| snapshot.volume == volume) {
            snapshot.is_doubtful = true;
        }
        if is_sure {
            self.snapshots.retain(|snapshot| snapshot.volume != volume);
        }
    }

    /// Puts a clone of a snapshot of another volume into a volume's place, which nobody has now. `false` if there is none.
    pub(super) fn clone_into(&mut self, volume: usize) -> Option<Result<()>> {
        if self.snapshots.is_empty() || self.world.random.random_bool(0.4) {
            return None;
        }
        let index = self.world.random.random_range(0..self.snapshots.len());
        if self.world.random.random_bool(0.5) {
            self.verify_snapshot(index);
        }
        let snapshot = &self.snapshots[index];
        let source = (snapshot.volume, snapshot.number);
        let id = Uuid::from_u128(self.next_volume_id);
        self.next_volume_id += 1;
        self.sizes[volume] = snapshot.size_bytes;
        self.models[volume] = Model::of(&snapshot.content);
        // That of the volume it comes from.
        self.on_full[volume] = None;
        self.note(|| format!("volume {volume} is a clone of snapshot {} of {}", source.1, source.0));
        let new = NewClone { id, name: name(volume), created_at: 0, expires_at: 0, labels: Vec::new() };
        let made = self.life().volumes.clone_snapshot(source, vec![new]);
        self.world.counts.clones += u64::from(made.is_ok());
        Some(made.map(|_| ()))
    }

    /// Switches a volume to one of its snapshots.
    pub(super) fn roll_back(&mut self) {
        let volume = self.random_volume();
        let id = self.volume_id(volume);
        let own: Vec<usize> = (0..self.snapshots.len()).filter(|index| self.snapshots[*index].volume == id).collect();
        if own.is_empty() {
            return;
        }
        let index = own[self.world.random.random_range(0..own.len())];
        let number = self.snapshots[index].number;
        self.await_answers(volume);
        let refused = self.life().volumes.roll_back((id, number), None);
        assert!(refused.is_err(), "a volume is rolled back while somebody has it open");
        let is_kept = self.world.random.random_bool(0.6) && self.snapshots.len() < self.snapshots_max();
        let keep = is_kept.then(|| self.new_snapshot(volume));
        drop(self.life().handles.remove(volume));
        let rolled = self.freeze(&[id]).and_then(|frozen| {
            self.flush_frozen(&frozen)?;
            self.life().volumes.roll_back_frozen(&frozen, (id, number), keep)
        });
        self.note(|| format!("volume {volume} is rolled back to {number}, kept {is_kept}: {:?}", rolled.is_ok()));
        let before = self.content(volume);
        let (content, size_bytes) = (self.snapshots[index].content.clone(), self.snapshots[index].size_bytes);
        match rolled {
            Ok(kept) => {
                self.world.counts.rollbacks += 1;
                if let Some(record) = kept {
                    self.add_snapshot(record, before, false);
                }
                self.models[volume] = Model::of(&content);
                self.sizes[volume] = size_bytes;
                self.open_volume(volume);
                self.walk_over(volume);
            }
            Err(error) if error.kind() == ErrorKind::NoSpace => self.open_volume(volume),
            Err(error) => {
                let next = self.next_number(id);
                self.open_volume(volume);
                self.not_stored(error.kind(), |workload| {
                    if is_kept {
                        let size_bytes = workload.sizes[volume];
                        let content = before.clone();
                        let doubtful = Snapshot { volume: id, number: next, size_bytes, content, is_doubtful: true };
                        workload.snapshots.push(doubtful);
                    }
                    workload.other_sizes.may_be(volume, size_bytes);
                    workload.models[volume].may_be(&content);
                });
            }
        }
    }
}
