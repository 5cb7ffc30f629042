//! The write path: lock, append to the open batch, and when it is on the device lay the changes and acknowledge.
//!
//! A write of whole blocks takes no task. One that has an edge inside a block reads, merges and writes that
//! block in a task under the block's lock.

use crate::disk::{Disk, IoBuffer};
use crate::error::IoError;
use crate::format::entry::Entry;
use crate::format::record::{Record, Removal, WriteRun};
use crate::map::{Change, ChangeKey, LayGuard};
use crate::planted::{Bug, is_planted};
use crate::pool::{FLIGHT_MAX, HOME_RESERVE_BLOCKS, Pool, Refusal};
use crate::units::{
    BLOCK_SIZE, BLOCK_SIZE_U64, BlockIndex, Epoch, LEAF_ENTRIES_U64, blocks_to_bytes, to_u64, to_usize,
};
use crate::volume::Volume;
use crate::volume::engine::{Engine, State, finish};
use crate::volume::gate::Shut;
use crate::volume::partial;
use crate::volume::range_lock::BlockRange;
use crate::volume::request::{Completion, Done, FlushWaiter, Part, PartKind, Request, Ticket};
use futures_channel::oneshot;
use std::rc::Rc;
use std::sync::Arc;

impl<D: Disk + 'static> Engine<D> {
    /// Writes `source` at `offset_bytes`. With `is_fua`, it is durable when it completes.
    pub fn write(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        offset_bytes: u64,
        source: IoBuffer,
        is_fua: bool,
        completion: Completion,
    ) {
        self.pool.count_request(self.lane);
        self.write_for(volume, offset_bytes, source, is_fua, Done::Frontend(completion));
    }

    pub(super) fn write_for(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        offset_bytes: u64,
        source: IoBuffer,
        is_fua: bool,
        done: Done,
    ) {
        if let Err(error) = self.check(volume, offset_bytes, to_u64(source.len())) {
            finish(&mut self.state.borrow_mut(), done, Err(error));
        } else if offset_bytes.is_multiple_of(BLOCK_SIZE_U64) && source.len().is_multiple_of(BLOCK_SIZE) {
            self.write_blocks(volume, offset_bytes / BLOCK_SIZE_U64, &source, is_fua, done);
        } else {
            let is_for = (is_fua, done.request());
            let task = partial::write_unaligned(Rc::clone(self), Arc::clone(volume), offset_bytes, source, is_for);
            self.spawn(done, task);
        }
    }

    /// Checks that the pool takes writes and that the range lies in the volume.
    pub(super) fn check(&self, volume: &Volume, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        if volume.is_read_only() {
            return Err(IoError::ReadOnly);
        }
        self.pool.check_writable()?;
        check_range(volume, offset_bytes, len_bytes)
    }

    pub(super) fn write_blocks(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        first: u64,
        source: &IoBuffer,
        is_fua: bool,
        done: Done,
    ) {
        let state = &mut *self.state.borrow_mut();
        let end = first + to_u64(source.len()) / BLOCK_SIZE_U64;
        if first == end {
            return finish(state, done, Ok(()));
        }
        let parts_left = u32::try_from((end - 1) / LEAF_ENTRIES_U64 - first / LEAF_ENTRIES_U64 + 1);
        let parts_left = parts_left.expect("a request is bounded by the frontends");
        let request = Request { done, parts_left, result: Ok(()), is_fua };
        let request = slot(state.requests.insert(request));
        let mut block = first;
        while block < end {
            let next = end.min((block / LEAF_ENTRIES_U64 + 1) * LEAF_ENTRIES_U64);
            let bytes = blocks_to_bytes(to_usize(block - first))..blocks_to_bytes(to_usize(next - first));
            let count = u32::try_from(next - block).expect("a leaf has 256 blocks");
            let range = BlockRange { tree: volume.tree, block: BlockIndex::new(block), count };
            let kind = PartKind::Write(source.slice(bytes));
            self.lock_part(state, Part::new(request, volume, range, kind));
            block = next;
        }
    }

    fn lock_part(&self, state: &mut State<D>, part: Part) {
        let part = slot(state.parts.insert(part));
        self.lock_again(state, part);
    }

    /// Locks the range of a part that holds none; then it is appended.
    pub(super) fn lock_again(&self, state: &mut State<D>, part: u32) {
        let range = state.parts[usize_of(part)].range;
        let ticket = state.tickets.insert(Ticket::Part(part));
        if self.locks.lock(range, self.lane, to_u64(ticket)) {
            state.tickets.remove(ticket);
            self.append_part(state, part);
        }
    }

    /// Waits until the range is locked for a task.
    pub(super) async fn lock_for_task(&self, range: BlockRange) -> Result<(), IoError> {
        let receiver = {
            let mut state = self.state.borrow_mut();
            let (sender, receiver) = oneshot::channel();
            let ticket = state.tickets.insert(Ticket::Task(range, sender));
            if self.locks.lock(range, self.lane, to_u64(ticket)) {
                state.tickets.remove(ticket);
                return Ok(());
            }
            receiver
        };
        receiver.await.map_err(|_| IoError::ShuttingDown)?
    }

    /// Ends what waits for a range, if the pool has failed: who holds it may be on a lane that is gone.
    pub(super) fn abandon_tickets(&self) {
        let state = &mut *self.state.borrow_mut();
        if state.tickets.is_empty() || self.pool.check_writable().is_ok() {
            return;
        }
        let mut parts = Vec::new();
        for (_, ticket) in &mut state.tickets {
            let range = match ticket {
                Ticket::Part(part) => {
                    parts.push(*part);
                    state.parts[usize_of(*part)].range
                }
                Ticket::Task(range, _) => *range,
                Ticket::Nobody(_) => continue,
            };
            if let Ticket::Task(_, sender) = std::mem::replace(ticket, Ticket::Nobody(range)) {
                // If the task is gone, nobody waits.
                let _is_awaited = sender.send(Err(IoError::Io)).is_ok();
            }
        }
        for index in parts {
            let part = &mut state.parts[usize_of(index)];
            part.holds_range = false;
            part.failure = Some(IoError::Io);
            self.settle_part(state, index);
        }
    }

    /// A request of one part whose range is locked already; the part unlocks it.
    pub(super) fn start_part(&self, part: Part, request: Option<Completion>) -> oneshot::Receiver<Result<(), IoError>> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let done = Done::Task { answer, request };
        let request = Request { done, parts_left: 1, result: Ok(()), is_fua: false };
        let request = slot(state.requests.insert(request));
        let part = slot(state.parts.insert(Part { request, ..part }));
        self.append_part(&mut state, part);
        receiver
    }

    /// Appends what fits of a locked part; behind the parts that wait for room.
    pub(super) fn append_part(&self, state: &mut State<D>, part: u32) {
        if state.backlog.is_empty() {
            self.append_now(state, part);
        } else {
            queue(state, part);
        }
    }

    /// Appends parts that waited for room, in their order.
    pub(super) fn drain_backlog(&self) {
        let state = &mut *self.state.borrow_mut();
        if state.is_yielding && state.disk.has_unsubmitted() {
            return;
        }
        state.is_yielding = false;
        for _ in 0..state.backlog.len() {
            let Some(part) = state.backlog.pop_front() else { return };
            let waiting = state.backlog.len();
            state.parts[usize_of(part)].is_queued = false;
            self.append_now(state, part);
            if state.backlog.len() > waiting {
                // It still waits, and keeps its place.
                if let Some(part) = state.backlog.pop_back() {
                    state.backlog.push_front(part);
                }
                return;
            }
        }
    }

    fn append_now(&self, state: &mut State<D>, index: u32) {
        loop {
            let part = &mut state.parts[usize_of(index)];
            part.forget_old_judgement();
            if part.failure.is_some() || part.appended == part.total() {
                return self.settle_part(state, index);
            }
            if self.pool.check_writable().is_err() {
                state.parts[usize_of(index)].failure = Some(IoError::Io);
                continue;
            }
            let is_move = part.is_move;
            // A move waits for nothing: it is not worth it.
            if is_move && (self.pool.is_change_limit_reached() || self.pool.is_meta_reserve_gone()) {
                state.parts[usize_of(index)].failure = Some(IoError::NoSpace);
                continue;
            }
            if self.pool.is_change_limit_reached() {
                self.pool.want_checkpoint();
                return queue(state, index);
            }
            if matches!(part.kind, PartKind::Write(_)) && state.log.is_full_for_idle_device() {
                self.close_batch(state);
                state.is_yielding = true;
                return queue(state, index);
            }
            if !part.is_privileged && self.pool.is_meta_reserve_gone() {
                // What overwrites needs no space in the end, and a checkpoint may bring the reserve back: one for each
                // write that comes, since those that have waited are told.
                if !part.has_waited {
                    self.pool.want_checkpoint();
                }
                let Some(is_overwrite) = self.is_privileged(state, index) else { return };
                state.parts[usize_of(index)].is_privileged = is_overwrite;
                if !is_overwrite && self.pause_or_fail(state, index) {
                    return;
                }
                continue;
            }
            let floor = if part.is_privileged { HOME_RESERVE_BLOCKS } else { self.pool.reserve_blocks() };
            let refusal = match &part.kind {
                PartKind::Write(_) => self.append_blocks(state, index, floor),
                PartKind::Remove(_) => self.append_removals(state, index),
            };
            match refusal {
                Ok(()) => {}
                Err(Refusal::Full) if state.log.flying_count() < FLIGHT_MAX => self.close_batch(state),
                Err(Refusal::Full) => return queue(state, index),
                Err(Refusal::Closed) => return hold_back(state, index),
                Err(Refusal::NoSpace) if is_move => {
                    state.parts[usize_of(index)].failure = Some(IoError::NoSpace);
                }
                Err(Refusal::NoSpace) if self.wait_for_space(state, index) => return,
                Err(Refusal::NoSpace) => {}
            }
        }
    }

    /// Encrypts as many blocks as fit into the open batch.
    fn append_blocks(&self, state: &mut State<D>, index: u32, floor: u64) -> Result<(), Refusal> {
        let part = &mut state.parts[usize_of(index)];
        let room = state.log.room_for_blocks(&self.pool, part.total() - part.appended, floor)?;
        let Some(epoch) = enter(part)? else { return Ok(()) };
        let PartKind::Write(source) = &part.kind else { unreachable!("only writes append blocks") };
        let volume = &part.volume;
        let sequence = self.pool.take_sequences(to_u64(room));
        let run = WriteRun {
            tree: volume.tree,
            epoch,
            block: part.range.block.plus(to_u64(part.appended)),
            count: u32::try_from(room).expect("a batch has 256 blocks"),
            generation: volume.generation,
            sequence,
        };
        let cipher = state.ciphers.get(self.pool.keys(), volume.domain, volume.generation, sequence);
        // A move holds nobody's volume open: its key may have been destroyed with it.
        let Some(cipher) = cipher else {
            assert!(part.is_move, "the current session and the domain of each open volume have keys");
            volume.gate.leave();
            part.failure = Some(IoError::Io);
            return Ok(());
        };
        let bytes = blocks_to_bytes(part.appended)..blocks_to_bytes(part.appended + room);
        source.slice(bytes).with_bytes(|source| {
            state.log.append_run(run, index, |step, target| {
                let block = &source[blocks_to_bytes(step)..blocks_to_bytes(step + 1)];
                cipher.encrypt(sequence.plus(to_u64(step)), block, target)
            });
        });
        part.appended += room;
        part.batches_left += 1;
        self.note_space(part);
        Ok(())
    }

    fn append_removals(&self, state: &mut State<D>, index: u32) -> Result<(), Refusal> {
        let room = state.log.room_for_removals(&self.pool, HOME_RESERVE_BLOCKS)?;
        let part = &mut state.parts[usize_of(index)];
        let Some(epoch) = enter(part)? else { return Ok(()) };
        let PartKind::Remove(runs) = &part.kind else { return Ok(()) };
        let runs = &runs[part.appended..runs.len().min(part.appended + room)];
        let removals: Vec<Removal> = runs
            .iter()
            .map(|(offset, count)| Removal {
                tree: part.volume.tree,
                epoch,
                block: part.range.block.plus(u64::from(*offset)),
                count: *count,
                sequence: self.pool.take_sequences(1),
            })
            .collect();
        part.appended += removals.len();
        part.batches_left += 1;
        self.note_space(part);
        if is_planted(Bug::DiscardNotLogged) {
            state.log.append_unlogged(&removals, index);
        } else {
            state.log.append_removals(&removals, index);
        }
        Ok(())
    }

    /// Goes on with parts whose volumes take writes again.
    pub(super) fn retry_held_back(&self) {
        let state = &mut *self.state.borrow_mut();
        let is_ready = |held: &mut HeldBack| !held.volume.gate.is_closed();
        let ready: Vec<HeldBack> = state.held_back.extract_if(.., is_ready).collect();
        for held in ready {
            state.parts[usize_of(held.part)].is_queued = false;
            self.append_part(state, held.part);
        }
    }

    /// Ends a part that is over: unlocks its range and counts it in its request.
    pub(super) fn settle_part(&self, state: &mut State<D>, index: u32) {
        if state.parts[usize_of(index)].is_pausing {
            return self.park_part(state, index);
        }
        if !state.parts[usize_of(index)].is_over() {
            return;
        }
        let part = state.parts.remove(usize_of(index));
        if part.holds_range {
            self.locks.unlock(part.range, &self.pool);
        }
        if part.is_paused {
            let request = state.requests[usize_of(part.request)].done.request();
            self.end_pause(state, request, &part.volume);
        }
        let request = &mut state.requests[usize_of(part.request)];
        request.parts_left -= 1;
        if let Some(failure) = part.failure {
            request.result = Err(failure);
        }
        if request.parts_left > 0 {
            return;
        }
        let request = state.requests.remove(usize_of(part.request));
        match request.result {
            Ok(()) if request.is_fua => {
                let need = self.pool.flush_need();
                state.flush_waiting.push(FlushWaiter { done: request.done, need });
            }
            result => finish(state, request.done, result),
        }
    }

    /// Ends every write under way with an error: the pool has failed.
    pub(super) fn abandon_writes(&self, state: &mut State<D>) {
        for part in state.log.abandon() {
            let abandoned = &mut state.parts[usize_of(part)];
            abandoned.batches_left -= 1;
            abandoned.volume.gate.leave();
            self.note_batch_end(abandoned);
            abandoned.failure = Some(IoError::Io);
            self.settle_part(state, part);
        }
    }

    /// The planted bug: tells everybody whose blocks are all in closed batches that they are done.
    pub(super) fn acknowledge_early(&self, state: &mut State<D>) {
        let mut told = Vec::new();
        for (_, part) in &state.parts {
            let request = &mut state.requests[usize_of(part.request)];
            if part.appended == part.total() && request.parts_left == 1 && !request.is_fua {
                told.push(std::mem::replace(&mut request.done, Done::Nobody));
            }
        }
        for done in told {
            finish(state, done, Ok(()));
        }
    }
}

/// Enters the gate of a part's volume for one batch; the epoch to write. `None` if the part has failed: what it was to move
/// is nobody's any more.
fn enter(part: &mut Part) -> Result<Option<Epoch>, Refusal> {
    match part.volume.gate.enter() {
        Ok(epoch) => Ok(Some(epoch)),
        Err(Shut::Closed) => Err(Refusal::Closed),
        Err(Shut::Retired) => {
            part.failure = Some(IoError::Io);
            Ok(None)
        }
    }
}

/// A part that the gate of its volume refused, until it has tried again or its lane has ended.
pub(super) struct HeldBack {
    part: u32,
    volume: Arc<Volume>,
}

impl HeldBack {
    fn new(part: u32, volume: &Arc<Volume>) -> Self {
        volume.gate.hold_back();
        Self { part, volume: Arc::clone(volume) }
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        self.volume.gate.has_tried_again();
    }
}

/// Keeps a part until a snapshot of its volume is made.
fn hold_back<D>(state: &mut State<D>, part: u32) {
    state.parts[usize_of(part)].is_queued = true;
    let held = HeldBack::new(part, &state.parts[usize_of(part)].volume);
    state.held_back.push(held);
}

/// Puts a part behind those that wait for room.
fn queue<D>(state: &mut State<D>, part: u32) {
    state.parts[usize_of(part)].is_queued = true;
    state.backlog.push_back(part);
}

/// Lays the changes of a batch over the map.
pub(super) fn lay_record(record: &Record, guard: &LayGuard<'_>, pool: &Pool) {
    let mut addresses = record.segments.iter().flat_map(|run| (0..run.count).map(|step| run.start.plus(step)));
    let mut macs = record.macs.iter();
    for run in &record.runs {
        if is_planted(Bug::ReuseBeforeCheckpoint) {
            free_replaced(run, pool);
        }
        // The blocks of a run are in one leaf, as those of the part that it is of.
        let changes = (0..u64::from(run.count)).map(|step| {
            let (Some(address), Some(mac)) = (addresses.next(), macs.next()) else {
                unreachable!("a batch has an address and a mac for each of its blocks")
            };
            let sequence = run.sequence.plus(step);
            let key = ChangeKey { tree: run.tree, block: run.block.plus(step), epoch: run.epoch };
            (key, Change { sequence, entry: Some(Entry::new(address, run.generation, sequence, *mac)) })
        });
        guard.lay_in_leaf((run.tree, run.block.leaf()), changes);
    }
    for removal in &record.removals {
        for step in 0..u64::from(removal.count) {
            let key = ChangeKey { tree: removal.tree, block: removal.block.plus(step), epoch: removal.epoch };
            guard.lay(key, Change { sequence: removal.sequence, entry: None });
        }
    }
}

/// The planted bug: blocks that a change maps are free as soon as a run replaces them.
fn free_replaced(run: &WriteRun, pool: &Pool) {
    for step in 0..u64::from(run.count) {
        let before = pool.changes().get(run.tree, run.epoch, run.block.plus(step));
        if let Some(Change { entry: Some(before), .. }) = before {
            pool.free_early(before.address());
        }
    }
}

/// Checks that a range lies in the volume.
pub(super) fn check_range(volume: &Volume, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
    let size_bytes = volume.size_bytes();
    if offset_bytes > size_bytes || len_bytes > size_bytes - offset_bytes {
        return Err(IoError::Invalid);
    }
    Ok(())
}

fn slot(index: usize) -> u32 {
    u32::try_from(index).expect("a lane has far fewer than 2^32 requests")
}

fn usize_of(index: u32) -> usize {
    to_usize(u64::from(index))
}
