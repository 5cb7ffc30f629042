//! The threads that do what a lane must not wait for: the metadata store, and on a thread of their own negotiations that
//! ask for volumes.
//!
//! Shared by all lanes. The queue is bounded by what waits for it: each request and each connection has at most one
//! job at a time, and both are bounded.

use super::alarm::Alarm;
use super::limits::JOBS_MAX;
use crate::volume::Blocking;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closing: bool,
}

/// The queue of jobs.
#[derive(Default)]
pub(crate) struct Jobs {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Jobs {
    /// Queues a job.
    ///
    /// # Panics
    /// If more jobs wait than requests can be under way.
    pub(crate) fn push(&self, job: Job) {
        let mut queue = self.queue.lock();
        assert!(queue.jobs.len() < JOBS_MAX, "each request and each connection has at most one job");
        queue.jobs.push_back(job);
        drop(queue);
        self.changed.notify_one();
    }

    /// Lets the threads end once the queue is empty.
    pub(crate) fn close(&self) {
        self.queue.lock().is_closing = true;
        self.changed.notify_all();
    }

    /// What each of the threads does.
    pub(crate) fn work(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.is_closing {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }
}

/// The jobs of one lane, which wake it when they are done.
pub(super) struct LaneJobs {
    pub jobs: Arc<Jobs>,
    pub alarm: Arc<Alarm>,
}

impl Blocking for LaneJobs {
    fn run(&self, job: Job) {
        let alarm = Arc::clone(&self.alarm);
        self.jobs.push(Box::new(move || {
            job();
            alarm.raise();
        }));
    }
}
