//! Writes that wait for space, of volumes whose `on_full` is to pause.
//!
//! A write waits where one of another volume fails: when checkpoints have brought it nothing. What it has in batches is
//! finished first. Then it gives its range back and keeps only the rest, so it holds nothing that a read, a discard or
//! another write needs. When there is news of space it locks the rest again and goes on, without asking for checkpoints:
//! each of those is news. What overlapped it meanwhile came before it, which is right, since it is not acknowledged.
//!
//! A write of a part of a block does not wait with what it has merged, which others may overwrite: its task waits, and merges
//! anew.

use crate::disk::Disk;
use crate::error::IoError;
use crate::planted::{Bug, is_planted};
use crate::units::to_usize;
use crate::volume::Volume;
use crate::volume::engine::{Engine, State};
use crate::volume::partial::BlockChange;
use crate::volume::request::{Completion, PartKind};
use futures_channel::oneshot;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// Writes of a volume that wait for space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// How many.
    pub writes: u32,
    /// Since when there is at least one, in seconds since 1970.
    pub since: u64,
}

/// What waits.
enum Waiter {
    /// The rest of a part, whose range is not locked.
    Part(u32),
    /// A task.
    Task(oneshot::Sender<Result<(), IoError>>),
}

struct Waiting {
    waiter: Waiter,
    volume: Arc<Volume>,
    request: Option<Completion>,
    /// The news before it looked for space.
    news: u64,
}

/// The writes of a lane that wait for space, and who is not to wait.
#[derive(Default)]
pub(super) struct Pauses {
    /// Oldest first.
    waiting: Vec<Waiting>,
    /// Requests that wait or did so and have not ended: how many of their pieces.
    requests: BTreeMap<Completion, u32>,
    /// Owners whose writes do not wait.
    leaving: BTreeSet<u32>,
    is_closing: bool,
    /// The news that all of them were compared with, unless one has to be looked at again.
    seen_news: Option<u64>,
}

impl Pauses {
    fn is_leaving(&self, request: Option<Completion>) -> bool {
        self.is_closing || request.is_some_and(|request| self.leaving.contains(&request.owner))
    }

    fn begin(&mut self, request: Option<Completion>, volume: &Volume, now: u64) {
        let Some(request) = request else { return };
        let pieces = self.requests.entry(request).or_default();
        *pieces += 1;
        if *pieces == 1 {
            volume.pause_one(now);
        }
    }

    fn end(&mut self, request: Option<Completion>, volume: &Volume) {
        let Some(request) = request else { return };
        let pieces = self.requests.get_mut(&request).expect("what ends to wait has begun");
        *pieces -= 1;
        if *pieces == 0 {
            self.requests.remove(&request);
            volume.resume_one();
        }
    }

    /// What became of something that waits: it may go on, has to fail, or waits still (`None`).
    fn verdict(&self, waiting: &Waiting, news: u64, is_failed: bool) -> Option<Result<(), IoError>> {
        if is_failed {
            Some(Err(IoError::Io))
        } else if self.is_leaving(waiting.request) {
            Some(Err(IoError::ShuttingDown))
        } else if !waiting.volume.is_pausing() {
            Some(Err(IoError::NoSpace))
        } else {
            (waiting.news != news).then_some(Ok(()))
        }
    }
}

impl<D: Disk + 'static> Engine<D> {
    /// The owner's writes do not wait for space any more: those that do fail with [`IoError::ShuttingDown`] at the next
    /// turn. To be called when nobody may be there to be told, before the owner is waited for.
    pub fn leave(&self, owner: u32) {
        let pauses = &mut self.state.borrow_mut().pauses;
        pauses.leaving.insert(owner);
        pauses.seen_news = None;
    }

    /// The owner is gone; another one may have its number.
    pub fn forget_owner(&self, owner: u32) {
        self.state.borrow_mut().pauses.leaving.remove(&owner);
    }

    /// No write waits for space any more, as if every owner left.
    pub fn close(&self) {
        let pauses = &mut self.state.borrow_mut().pauses;
        pauses.is_closing = true;
        pauses.seen_news = None;
    }

    /// Requests that wait for space, or did so and are being written.
    #[must_use]
    pub fn paused_requests(&self) -> Vec<Completion> {
        self.state.borrow().pauses.requests.keys().copied().collect()
    }

    /// Whether there is nothing to do but for writes that wait for space, of which there is at least one, and for
    /// blocking work.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        let state = self.state.borrow();
        !state.pauses.waiting.is_empty()
            && state.reads.is_empty()
            && state.operations.is_empty()
            && state.tickets.is_empty()
            && state.backlog.is_empty()
            && state.starved.is_empty()
            && state.held_back.is_empty()
            && state.lookups.is_empty()
            && state.loads.is_empty()
            && state.log.is_idle()
            && state.flush_waiting.is_empty()
            && state.done.is_empty()
    }

    /// What a part does for which there is no space, not even after checkpoints. `true` if it waits; else it goes on, with
    /// a failure or with another look.
    pub(super) fn pause_or_fail(&self, state: &mut State<D>, index: u32) -> bool {
        let part = &mut state.parts[slot_of(index)];
        let may_wait = matches!(part.kind, PartKind::Write(_)) && !part.is_merged && !part.is_move;
        if !may_wait || !part.volume.is_pausing() {
            part.failure = Some(IoError::NoSpace);
            return false;
        }
        if state.pauses.is_leaving(state.requests[slot_of(part.request)].done.request()) {
            part.failure = Some(IoError::ShuttingDown);
            return false;
        }
        // Space may have come since it looked. What comes from now on is news.
        let news = self.pool.space_news();
        if part.news_seen.replace(news) != Some(news) {
            return false;
        }
        part.is_queued = true;
        part.is_pausing = true;
        if !is_planted(Bug::PauseMissesSpace) {
            self.park_part(state, index);
        }
        true
    }

    /// The planted bug: what looked in vain begins to wait a turn later, for what is news by then.
    pub(super) fn park_late(&self, state: &mut State<D>) {
        let late: Vec<u32> = (0..)
            .zip(0..state.parts.capacity())
            .filter(|(_, slot)| state.parts.get(*slot).is_some_and(|part| part.is_pausing))
            .map(|(index, _)| index)
            .collect();
        late.into_iter().for_each(|index| self.park_part(state, index));
    }

    /// Lets a part wait that is to, once nothing of it is in a batch.
    pub(super) fn park_part(&self, state: &mut State<D>, index: u32) {
        let part = &mut state.parts[slot_of(index)];
        if part.batches_left > 0 {
            return;
        }
        part.is_pausing = false;
        if !is_planted(Bug::PausedWriteKeepsItsRange) {
            self.locks.unlock(part.range, &self.pool);
            part.holds_range = false;
            part.keep_rest();
        }
        part.is_privileged = false;
        part.lookup = None;
        let request = state.requests[slot_of(part.request)].done.request();
        let news = part.news_seen.unwrap_or_default();
        let volume = Arc::clone(&part.volume);
        if !std::mem::replace(&mut part.is_paused, true) {
            state.pauses.begin(request, &volume, self.pool.now_seconds());
        }
        self.wait(state, Waiting { waiter: Waiter::Part(index), volume, request, news });
    }

    fn wait(&self, state: &mut State<D>, mut waiting: Waiting) {
        if is_planted(Bug::PauseMissesSpace) {
            waiting.news = self.pool.space_news();
        }
        self.pool.begin_waiting();
        state.pauses.waiting.push(waiting);
        state.pauses.seen_news = None;
    }

    /// Lets what waits go on or fail; says whether there was anything.
    pub(super) fn retry_paused(&self) -> bool {
        let state = &mut *self.state.borrow_mut();
        if state.pauses.waiting.is_empty() {
            return false;
        }
        let news = self.pool.space_news();
        let is_failed = self.pool.check_writable().is_err();
        if state.pauses.seen_news == Some(news) && !is_failed {
            return false;
        }
        state.pauses.seen_news = Some(news);
        let mut ready = Vec::new();
        for waiting in std::mem::take(&mut state.pauses.waiting) {
            match state.pauses.verdict(&waiting, news, is_failed) {
                Some(verdict) => ready.push((waiting.waiter, verdict)),
                None => state.pauses.waiting.push(waiting),
            }
        }
        let has_ready = !ready.is_empty();
        for (waiter, verdict) in ready {
            self.pool.end_waiting();
            match waiter {
                Waiter::Part(part) => self.resume_part(state, part, verdict),
                // The task may be gone; then nobody waits.
                Waiter::Task(sender) => drop(sender.send(verdict)),
            }
        }
        has_ready
    }

    fn resume_part(&self, state: &mut State<D>, index: u32, verdict: Result<(), IoError>) {
        let part = &mut state.parts[slot_of(index)];
        part.is_queued = false;
        if let Err(error) = verdict {
            part.failure = Some(error);
            return self.settle_part(state, index);
        }
        part.has_waited = true;
        if !std::mem::replace(&mut part.holds_range, true) {
            return self.lock_again(state, index);
        }
        self.append_part(state, index);
    }

    /// A part that has waited is over.
    pub(super) fn end_pause(&self, state: &mut State<D>, request: Option<Completion>, volume: &Volume) {
        state.pauses.end(request, volume);
    }

    /// Makes a change of one block that found no space, as soon as there is some; fails if the volume's writes do not wait.
    /// `news` is from before the first try.
    pub(super) async fn merge_with_space(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        change: BlockChange,
        fill: impl Fn(&mut [u8]),
        mut news: u64,
    ) -> Result<(), IoError> {
        if !volume.is_pausing() {
            return Err(IoError::NoSpace);
        }
        self.state.borrow_mut().pauses.begin(change.request, volume, self.pool.now_seconds());
        let result = loop {
            if let Err(error) = self.wait_for_news(volume, change.request, news).await {
                break Err(error);
            }
            news = self.pool.space_news();
            let again = BlockChange { has_waited: true, ..change };
            let answer = match self.merge_block(volume, again, &fill).await {
                Ok(receiver) => receiver.await.unwrap_or(Err(IoError::ShuttingDown)),
                Err(error) => Err(error),
            };
            if answer != Err(IoError::NoSpace) || !volume.is_pausing() {
                break answer;
            }
        };
        self.state.borrow_mut().pauses.end(change.request, volume);
        result
    }

    /// Waits until there is other news than `news`.
    async fn wait_for_news(&self, volume: &Arc<Volume>, request: Option<Completion>, news: u64) -> Result<(), IoError> {
        let (sender, receiver) = oneshot::channel();
        let volume = Arc::clone(volume);
        self.wait(&mut self.state.borrow_mut(), Waiting { waiter: Waiter::Task(sender), volume, request, news });
        receiver.await.map_err(|_| IoError::ShuttingDown)?
    }
}

fn slot_of(index: u32) -> usize {
    to_usize(u64::from(index))
}
