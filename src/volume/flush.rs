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
        let waiters = std::mem::take(&mut state.flush_waiting);
        let is_over = |need| result.is_err() || is_planted(Bug::SkipFlush) || self.pool.is_flushed(need);
        let (over, waiting): (Vec<_>, Vec<_>) = waiters.into_iter().partition(|waiter| is_over(waiter.need));
        end(state, over, result);
        if waiting.is_empty() {
            return;
        }
        let Some(start) = self.pool.begin_flush() else {
            state.flush_waiting = waiting;
            return;
        };
        if start.devices().is_empty() {
            self.pool.end_flush(&start, Some(self.lane));
            return end(state, waiting, self.pool.check_writable());
        }
        for device in start.devices().iter().copied() {
            let token = to_u64(state.operations.insert(Operation::Flush));
            state.disk.submit(token, DiskOp::Flush { device });
        }
        let devices_left = u32::try_from(start.devices().len()).expect("a pool has at most 32 devices");
        state.flush_running = Some(RunningFlush { start, devices_left, waiters: waiting });
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
        end(state, running.waiters, result);
    }
}

fn end<D>(state: &mut State<D>, waiters: Vec<FlushWaiter>, result: Result<(), IoError>) {
    for waiter in waiters {
        finish(state, waiter.done, result);
    }
}
