//! The threads beside the lanes: one runs checkpoints when the pool wants them, or one after the other without a pause;
//! others do what a lane must not wait for.

use std::sync::Arc;
use std::thread::{self, JoinHandle, Thread};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::lane::{Alarm, BLOCKING_THREADS, Jobs, work_in_background};
use crate::pool::{Checkpoint, Pool, Signals};
use crate::units::LaneIndex;
use crate::volume::Blocking;

/// How a lane is woken.
#[derive(Debug)]
pub(super) enum Waker {
    /// It sleeps in its ring.
    Ring(Arc<Alarm>),
    /// It parks its thread, which it names when it begins.
    Parked(Mutex<Option<Thread>>),
}

impl Waker {
    pub(super) fn wake(&self) {
        match self {
            Self::Ring(alarm) => alarm.raise(),
            Self::Parked(thread) => {
                if let Some(thread) = &*thread.lock() {
                    thread.unpark();
                }
            }
        }
    }
}

#[derive(Default)]
struct Wishes {
    is_checkpoint_wanted: bool,
    is_always_wanted: bool,
    is_closing: bool,
}

/// Who wants what of whom.
struct Bell {
    wishes: Mutex<Wishes>,
    changed: Condvar,
    wakers: Vec<Arc<Waker>>,
    /// Held while a checkpoint runs: one at a time.
    checkpoint: Mutex<()>,
}

impl Bell {
    fn change(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.wishes.lock());
        self.changed.notify_all();
    }

    fn run_checkpoint(&self, pool: &Arc<Pool>) -> Result<()> {
        let _one_at_a_time = self.checkpoint.lock();
        Checkpoint::begin(Arc::clone(pool)).run()
    }

    /// What the checkpoint thread does. A checkpoint that fails ends the bench: writes fail from then on.
    fn work(&self, pool: &Arc<Pool>) {
        loop {
            let mut wishes = self.wishes.lock();
            while !wishes.is_checkpoint_wanted && !wishes.is_always_wanted && !wishes.is_closing {
                self.changed.wait(&mut wishes);
            }
            if wishes.is_closing {
                return;
            }
            wishes.is_checkpoint_wanted = false;
            drop(wishes);
            if let Err(error) = self.run_checkpoint(pool) {
                pool.fail(format!("A checkpoint failed: {error}"));
            }
        }
    }
}

impl Signals for Bell {
    fn want_checkpoint(&self) {
        self.change(|wishes| wishes.is_checkpoint_wanted = true);
    }

    fn wake_lanes(&self) {
        self.wakers.iter().for_each(|waker| waker.wake());
    }

    fn wake_lane(&self, lane: LaneIndex) {
        self.wakers[lane.as_usize()].wake();
    }

    fn wake_other_lanes(&self, lane: LaneIndex) {
        let others = self.wakers.iter().enumerate().filter(|(index, _)| *index != lane.as_usize());
        others.for_each(|(_, waker)| waker.wake());
    }

    // Whoever wants the pool cleaned does that between two cases.
    fn space_freed(&self) {}

    // Nothing is given back here.
    fn want_stock(&self) {}

    // Nothing waits here.
    fn now_seconds(&self) -> u64 {
        0
    }
}

/// Jobs of one lane, which wake it when they are done.
pub(super) struct LaneJobs {
    pub(super) jobs: Arc<Jobs>,
    pub(super) waker: Arc<Waker>,
}

impl Blocking for LaneJobs {
    fn run(&self, job: Box<dyn FnOnce() + Send>) {
        let waker = Arc::clone(&self.waker);
        self.jobs.push(Box::new(move || {
            job();
            waker.wake();
        }));
    }
}

/// The threads. They end when this is dropped, which must be after the lanes have ended.
pub(super) struct Background {
    bell: Arc<Bell>,
    pool: Arc<Pool>,
    jobs: Arc<Jobs>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts the threads, and tells the pool of them and of its lanes.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start(pool: &Arc<Pool>, wakers: Vec<Arc<Waker>>) -> Result<Self> {
        let bell =
            Arc::new(Bell { wishes: Mutex::default(), changed: Condvar::new(), wakers, checkpoint: Mutex::default() });
        pool.set_signals(Arc::clone(&bell) as Arc<dyn Signals>);
        let jobs = Arc::<Jobs>::default();
        let mut background =
            Self { bell: Arc::clone(&bell), pool: Arc::clone(pool), jobs: Arc::clone(&jobs), threads: Vec::new() };
        let checkpointed = Arc::clone(pool);
        background.spawn("checkpoint", move || {
            work_in_background();
            bell.work(&checkpointed);
        })?;
        for _ in 0..BLOCKING_THREADS {
            let jobs = Arc::clone(&jobs);
            background.spawn("blocking", move || jobs.work())?;
        }
        Ok(background)
    }

    /// Where lanes have blocking work done.
    pub(super) const fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// Runs a checkpoint to its end.
    ///
    /// # Errors
    /// As the checkpoint.
    pub(super) fn run_checkpoint(&self) -> Result<()> {
        // On a thread of its own, as the daemon has one that gives way to lanes.
        let (bell, pool) = (&self.bell, &self.pool);
        let run = || {
            work_in_background();
            bell.run_checkpoint(pool)
        };
        thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Whether checkpoints follow each other without a pause from now on.
    pub(super) fn set_checkpoints_back_to_back(&self, is_on: bool) {
        self.bell.change(|wishes| wishes.is_always_wanted = is_on);
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let started = thread::Builder::new().name(name.to_owned()).spawn(work);
        let thread =
            started.map_err(|error| Error::new(ErrorKind::Other, "Starting a thread failed").with_source(error))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.bell.change(|wishes| wishes.is_closing = true);
        self.jobs.close();
        for thread in self.threads.drain(..) {
            // A panic in a thread has ended the process already.
            drop(thread.join());
        }
    }
}
