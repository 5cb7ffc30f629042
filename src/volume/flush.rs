//! Flush: one flush of each device for everything acknowledged before it, on all lanes and connections.
//!
//! A request joins only a flush that has not started: one that runs may have begun before the last write.

use crate::disk::{Disk, DiskOp};
use crate::error::IoError;
use crate::planted::{Bug, is_planted};
use crate::units::to_u64;
use crate::volume::engine::{Engine, State, finish};
use crate::volume::request::{Completion, Done, FlushWaiter, Operation, RunningFlush};
use futures_channel::oneshot;
use std::rc::Rc;

impl<D: Disk + 'static> Engine<D> {
    /// Makes everything durable that was acknowledged before this call, whoever wrote it.
    pub fn flush(self: &Rc<Self>, completion: Completion) {
        self.flush_for(Done::Frontend(completion));
    }

    pub(super) fn flush_for(&self, done: Done) {
        let state = &mut *self.state.borrow_mut();
        if let Err(error) = self.pool.check_writable() {
            return finish(state, done, Err(error));
        }
        let waiter = FlushWaiter { done, need: self.pool.flush_need() };
        match &mut state.flush_running {
            Some(running) if is_planted(Bug::FlushJoinsStarted) => running.waiters.push(waiter),
            _ => state.flush_waiting.push(waiter),
        }
    }

    pub(super) async fn flush_for_task(&self) -> Result<(), IoError> {
        let (sender, receiver) = oneshot::channel();
        self.flush_for(Done::Task { answer: sender, request: None });
        receiver.await.map_err(|_| IoError::ShuttingDown)?
    }

    /// Ends the waiting requests that an earlier flush covered, and starts one for the others unless one runs.
    pub(super) fn start_flush(&self) {
        let state = &mut *self.state.borrow_mut();
        if state.flush_waiting.is_empty() || state.flush_running.is_some() {
            return;
        }
        let result = self.pool.check_writable();
        let is_over = |need| result.is_err() || is_planted(Bug::SkipFlush) || self.pool.is_flushed(need);
        let mut waiting = std::mem::take(&mut state.flush_waiting);
        for waiter in waiting.extract_if(.., |waiter| is_over(waiter.need)) {
            finish(state, waiter.done, result);
        }
        state.flush_waiting = waiting;
        let RunningFlush { mut start, waiters, .. } = std::mem::take(&mut state.spare_flush);
        if state.flush_waiting.is_empty() || !self.pool.begin_flush(&mut start) {
            state.spare_flush = RunningFlush { start, waiters, devices_left: 0 };
            return;
        }
        // Those that come from now on wait for the next one.
        let waiters = std::mem::replace(&mut state.flush_waiting, waiters);
        if start.devices().is_empty() {
            self.pool.end_flush(&start, Some(self.lane));
            return end(state, RunningFlush { start, waiters, devices_left: 0 }, self.pool.check_writable());
        }
        for device in start.devices().iter().copied() {
            let token = to_u64(state.operations.insert(Operation::Flush));
            state.disk.submit(token, DiskOp::Flush { device });
        }
        let devices_left = u32::try_from(start.devices().len()).expect("a pool has at most 32 devices");
        state.flush_running = Some(RunningFlush { start, devices_left, waiters });
    }

    /// Counts a device as flushed; after the last one the flush is done.
    pub(super) fn device_flushed(&self, state: &mut State<D>, result: std::io::Result<()>) {
        if let Err(error) = result {
            self.pool.fail(format!("Flushing a device failed: {error}"));
        }
        let running = state.flush_running.as_mut().expect("a completed flush was running");
        running.devices_left -= 1;
        if running.devices_left > 0 {
            return;
        }
        let Some(running) = state.flush_running.take() else { return };
        self.pool.end_flush(&running.start, Some(self.lane));
        let result = self.pool.check_writable();
        if result.is_err() {
            self.abandon_writes(state);
        }
        end(state, running, result);
    }
}

/// Tells those that waited for a flush, and keeps its memory for the next one.
fn end<D>(state: &mut State<D>, mut flush: RunningFlush, result: Result<(), IoError>) {
    for waiter in flush.waiters.drain(..) {
        finish(state, waiter.done, result);
    }
    state.spare_flush = flush;
}
