//! The engine of one lane: its state, its loop turn, and what device completions lead to.

use crate::crypto::CipherCache;
use crate::disk::{Disk, DiskCompletion, DiskOp, IoBuffer};
use crate::error::IoError;
use crate::format::entry::Entry;
use crate::pool::{BatchWrite, DoneBatch, Log, Pool};
use crate::units::{AddressRun, LEAF_ENTRIES, LaneIndex, LeafIndex, ViewId, to_u64};
use crate::volume::pause::Pauses;
use crate::volume::range_lock::RangeLocks;
use crate::volume::read::Reread;
use crate::volume::request::{
    Completion, Done, FlushWaiter, Operation, Part, Read, Request, RunningFlush, Starved, Ticket,
};
use crate::volume::write::HeldBack;
use async_executor::LocalExecutor;
use futures_channel::oneshot;
use slab::Slab;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// Where a lane has work done that may block: a small pool of threads, or the scheduler of a simulation.
pub trait Blocking {
    /// Runs `job` elsewhere, then wakes the lane.
    fn run(&self, job: Box<dyn FnOnce() + Send>);
}

/// What an engine is made of.
pub struct EngineParts<D> {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Its range locks, shared by the lanes.
    pub locks: Arc<RangeLocks>,
    /// Which lane this is.
    pub lane: LaneIndex,
    /// The lane's queue of device I/O.
    pub disk: D,
    /// Where blocking work is done.
    pub blocking: Rc<dyn Blocking>,
    /// The lane's executor, kept by its owner: when it goes, the tasks go.
    pub executor: Rc<LocalExecutor<'static>>,
}

/// Tasks that one turn polls at most: the rest waits for the next turn.
const TASKS_PER_TURN: usize = 256;
/// Blocks that one turn decrypts at least, if that many are there, or a quarter of the device reads that are. What is
/// answered makes room for other requests, which should reach the device before the lane goes on with the rest.
const DECRYPTED_PER_TURN_MIN: usize = 8;

/// Vectors of reads that are kept, each of at most a leaf's entries: 2 MiB.
const SPARE_ENTRIES_MAX: usize = 256;

/// Who waits for a leaf that another task loads.
pub(super) type LoadWaiter = oneshot::Sender<Result<(), IoError>>;

pub(super) struct State<D> {
    pub disk: D,
    pub log: Log,
    pub ciphers: CipherCache,
    pub requests: Slab<Request>,
    pub parts: Slab<Part>,
    pub reads: Slab<Read>,
    /// Emptied vectors of ended reads, for those that follow.
    pub spare_entries: Vec<Vec<Option<Entry>>>,
    pub operations: Slab<Operation>,
    /// Memory for the writes of the next batch.
    batch_writes: Vec<BatchWrite>,
    pub tickets: Slab<Ticket>,
    /// Locked parts that wait for room in the log, oldest first.
    pub backlog: VecDeque<u32>,
    /// Locked parts that wait for a snapshot of their volume to be made.
    pub held_back: Vec<HeldBack>,
    /// Locked parts that wait for space.
    pub starved: Vec<Starved>,
    /// Writes that wait for space without a lock, as long as it takes.
    pub pauses: Pauses,
    /// Locked parts that wait for a leaf, which says whether they need space.
    pub lookups: Vec<u32>,
    pub flush_waiting: Vec<FlushWaiter>,
    pub flush_running: Option<RunningFlush>,
    /// Memory of the last one.
    pub spare_flush: RunningFlush,
    pub done: Vec<(Completion, Result<(), IoError>)>,
    /// Reads that need a task.
    pub spawn_later: Vec<Reread>,
    /// Leaves that are being loaded, and who else waits for each.
    pub loads: BTreeMap<(ViewId, LeafIndex), Vec<LoadWaiter>>,
    /// What has completed and was not taken yet, oldest first.
    completions: Vec<DiskCompletion>,
    /// Blocks that may still be decrypted in this turn.
    pub decrypt_budget: usize,
    /// Checkpoints that were done when the lane last looked.
    pub checkpoints_seen: u64,
    /// Writes wait for the lane to submit what there is.
    pub is_yielding: bool,
    task_count: u32,
}

impl<D> State<D> {
    /// Keeps a read's vector for another one.
    pub fn keep_entries(&mut self, entries: Vec<Option<Entry>>) {
        if self.spare_entries.len() < SPARE_ENTRIES_MAX && entries.capacity() <= LEAF_ENTRIES {
            self.spare_entries.push(entries);
        }
    }
}

/// The engine of one lane.
pub struct Engine<D: Disk> {
    pub(super) pool: Arc<Pool>,
    pub(super) locks: Arc<RangeLocks>,
    pub(super) lane: LaneIndex,
    pub(super) blocking: Rc<dyn Blocking>,
    /// Weak, since the executor's tasks hold the engine.
    executor: Weak<LocalExecutor<'static>>,
    pub(super) state: RefCell<State<D>>,
}

impl<D: Disk + 'static> Engine<D> {
    /// An engine without requests. Takes the lane's log.
    ///
    /// # Panics
    /// If the lane has an engine already.
    #[must_use]
    pub fn new(parts: EngineParts<D>) -> Rc<Self> {
        let log = parts.pool.take_log(parts.lane);
        Rc::new(Self {
            pool: parts.pool,
            locks: parts.locks,
            lane: parts.lane,
            blocking: parts.blocking,
            executor: Rc::downgrade(&parts.executor),
            state: RefCell::new(State {
                disk: parts.disk,
                log,
                ciphers: CipherCache::default(),
                requests: Slab::new(),
                parts: Slab::new(),
                reads: Slab::new(),
                spare_entries: Vec::new(),
                operations: Slab::new(),
                batch_writes: Vec::new(),
                tickets: Slab::new(),
                backlog: VecDeque::new(),
                held_back: Vec::new(),
                starved: Vec::new(),
                pauses: Pauses::default(),
                lookups: Vec::new(),
                flush_waiting: Vec::new(),
                flush_running: None,
                spare_flush: RunningFlush::default(),
                done: Vec::new(),
                spawn_later: Vec::new(),
                loads: BTreeMap::new(),
                completions: Vec::new(),
                decrypt_budget: 0,
                checkpoints_seen: 0,
                is_yielding: false,
                task_count: 0,
            }),
        })
    }

    /// The pool.
    #[must_use]
    pub const fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Runs `change` on the disk: its owner feeds it completions of the ring.
    pub fn with_disk<R>(&self, change: impl FnOnce(&mut D) -> R) -> R {
        change(&mut self.state.borrow_mut().disk)
    }

    /// What the lane's log has reserved. For an idle lane that is all it holds of the free space.
    #[must_use]
    pub fn reserved_runs(&self) -> Vec<AddressRun> {
        self.state.borrow().log.reserved_runs()
    }

    /// One turn of the lane's loop: takes device completions and grants, runs tasks, and closes the open batch if
    /// few are in flight. Call it after the requests of the turn were handed in.
    ///
    /// Returns whether there is more to do, once the lane has submitted what there is: it must enter the kernel, but not
    /// sleep there.
    pub fn turn(self: &Rc<Self>) -> bool {
        {
            let state = &mut *self.state.borrow_mut();
            state.ciphers.drop_forgotten(self.pool.keys());
            state.disk.reap(&mut state.completions);
            state.decrypt_budget = DECRYPTED_PER_TURN_MIN.max(state.completions.len() / 4);
            if crate::planted::is_planted(crate::planted::Bug::PauseMissesSpace) {
                self.park_late(state);
            }
        }
        loop {
            self.abandon_tickets();
            let has_completions = self.take_completions();
            self.spawn_rereads();
            self.spawn_lookups();
            let has_grants = self.take_grants();
            self.retry_starved();
            self.retry_held_back();
            self.drain_backlog();
            self.start_flush();
            let has_run = self.run_tasks();
            // Last: what began to wait in this turn is compared with the news before the lane sleeps.
            let has_resumed = self.retry_paused();
            if !has_completions && !has_grants && !has_run && !has_resumed {
                break;
            }
        }
        let mut state = self.state.borrow_mut();
        self.give_back_window(&mut state);
        if state.log.is_due() {
            self.close_batch(&mut state);
        }
        state.is_yielding || !state.completions.is_empty()
    }

    /// Behind a checkpoint, if the lane has written nothing since.
    fn give_back_window(&self, state: &mut State<D>) {
        let done = self.pool.checkpoints_done();
        if std::mem::replace(&mut state.checkpoints_seen, done) != done
            && state.log.is_idle()
            && self.pool.is_quiet_since_cut(self.lane, state.log.next_chain())
        {
            state.log.give_back_window(&self.pool);
        }
    }

    /// Appends the requests that are done, with their results.
    pub fn drain_done(&self, done: &mut Vec<(Completion, Result<(), IoError>)>) {
        done.append(&mut self.state.borrow_mut().done);
    }

    /// Whether no request, task or I/O is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.requests.is_empty()
            && state.parts.is_empty()
            && state.reads.is_empty()
            && state.operations.is_empty()
            && state.task_count == 0
            && state.log.is_idle()
            && state.flush_waiting.is_empty()
            && state.done.is_empty()
    }

    /// Starts a task that reports to `done` when it ends.
    pub(super) fn spawn(self: &Rc<Self>, done: Done, task: impl Future<Output = Result<(), IoError>> + 'static) {
        self.state.borrow_mut().task_count += 1;
        let engine = Rc::clone(self);
        let task = async move {
            let result = task.await;
            let mut state = engine.state.borrow_mut();
            state.task_count -= 1;
            finish(&mut state, done, result);
        };
        if let Some(executor) = self.executor.upgrade() {
            executor.spawn(task).detach();
        }
    }

    /// Reads device blocks into `target`, whose length says how many; for tasks.
    pub(super) async fn read_device(&self, run: AddressRun, target: &IoBuffer) -> Result<(), IoError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            let token = to_u64(state.operations.insert(Operation::Task(sender)));
            let (device, offset_bytes) = (run.start.device(), run.start.offset_bytes());
            state.disk.submit(token, DiskOp::Read { device, offset_bytes, target: target.lend_to_device() });
        }
        match receiver.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::error!(%error, address = %run.start, "reading a device failed");
                Err(IoError::Io)
            }
            Err(oneshot::Canceled) => Err(IoError::ShuttingDown),
        }
    }

    /// Closes the open batch and submits its writes.
    pub(super) fn close_batch(&self, state: &mut State<D>) {
        let mut writes = std::mem::take(&mut state.batch_writes);
        let chain = state.log.close(&self.pool, &mut writes);
        for write in writes.drain(..) {
            let token = to_u64(state.operations.insert(Operation::Batch(chain)));
            let source = write.source.lend_for_device();
            let (device, offset_bytes) = (write.address.device(), write.address.offset_bytes());
            state.disk.submit(token, DiskOp::Write { device, offset_bytes, source });
        }
        state.batch_writes = writes;
        if crate::planted::is_planted(crate::planted::Bug::AcknowledgeBeforeWrite) {
            self.acknowledge_early(state);
        }
    }

    fn take_completions(self: &Rc<Self>) -> bool {
        let mut completions = {
            let state = &mut *self.state.borrow_mut();
            state.disk.reap(&mut state.completions);
            VecDeque::from(std::mem::take(&mut state.completions))
        };
        let mut has_taken = false;
        while self.state.borrow().decrypt_budget > 0
            && let Some(completion) = completions.pop_front()
        {
            self.complete(completion);
            has_taken = true;
        }
        self.state.borrow_mut().completions = completions.into();
        has_taken
    }

    fn complete(self: &Rc<Self>, completion: DiskCompletion) {
        let mut state = self.state.borrow_mut();
        match state.operations.remove(crate::units::to_usize(completion.token)) {
            Operation::Batch(chain) => {
                state.log.write_done(chain);
                if let Err(error) = completion.result {
                    self.pool.fail(format!("Writing a device failed: {error}"));
                }
                self.finish_batches(&mut state);
            }
            Operation::Read { read, first, count } => {
                drop(state);
                self.device_read_done((read, first, count), completion.result);
            }
            // A task that is gone does not wait for its read any more.
            Operation::Task(sender) => drop(sender.send(completion.result)),
            Operation::Flush => self.device_flushed(&mut state, completion.result),
        }
    }

    /// Lays and acknowledges the batches that are done, in the order of the log.
    fn finish_batches(&self, state: &mut State<D>) {
        if self.pool.check_writable().is_err() {
            self.abandon_writes(state);
            while state.log.pop_done().is_some() {}
            return;
        }
        while let Some(batch) = state.log.pop_done() {
            self.lay(&batch);
            for part in &batch.parts {
                let written = &mut state.parts[crate::units::to_usize(u64::from(*part))];
                written.batches_left -= 1;
                written.volume.gate.leave();
                self.note_batch_end(written);
                self.settle_part(state, *part);
            }
            state.log.recycle(batch);
        }
    }

    fn lay(&self, batch: &DoneBatch) {
        self.pool.lay_batch(self.lane, batch, |guard| super::write::lay_record(&batch.record, guard, &self.pool));
        // What is removed becomes free only there.
        if !batch.record.removals.is_empty() && self.pool.has_waiting_writes() {
            self.pool.want_checkpoint();
        }
    }

    fn take_grants(self: &Rc<Self>) -> bool {
        let granted = self.locks.take_granted(self.lane);
        let is_some = !granted.is_empty();
        for ticket in granted {
            let ticket = self.state.borrow_mut().tickets.remove(crate::units::to_usize(ticket));
            match ticket {
                Ticket::Part(part) => self.append_part(&mut self.state.borrow_mut(), part),
                // A task holds its range until it ends, so it is there to take it.
                Ticket::Task(_, sender) => drop(sender.send(Ok(()))),
                Ticket::Nobody(range) => self.locks.unlock(range, &self.pool),
            }
        }
        is_some
    }

    fn run_tasks(&self) -> bool {
        let Some(executor) = self.executor.upgrade() else { return false };
        let mut has_run = false;
        for _ in 0..TASKS_PER_TURN {
            if !executor.try_tick() {
                break;
            }
            has_run = true;
        }
        has_run
    }
}

/// Tells who waits for a request how it ended.
pub(super) fn finish<D>(state: &mut State<D>, done: Done, result: Result<(), IoError>) {
    match done {
        Done::Frontend(completion) => state.done.push((completion, result)),
        // The task may be gone with its connection; then nobody waits.
        Done::Task { answer, .. } => drop(answer.send(result)),
        Done::Nobody => {}
    }
}
