//! The threads beside the lane: one runs checkpoints when the pool wants them, one does what the lane must not wait for.
//!
//! The lane sleeps in its ring while device I/O is under way, and here while it only waits for these threads.

use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::pool::{Checkpoint, Pool, Signals};
use crate::units::LaneIndex;
use crate::volume::Blocking;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Wishes {
    is_checkpoint_wanted: bool,
    is_lane_woken: bool,
    is_closing: bool,
}

/// Who wants what of whom.
#[derive(Default)]
struct Bell {
    wishes: Mutex<Wishes>,
    changed: Condvar,
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
            while !wishes.is_checkpoint_wanted && !wishes.is_closing {
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
        self.change(|wishes| wishes.is_lane_woken = true);
    }

    fn wake_lane(&self, _lane: LaneIndex) {
        self.wake_lanes();
    }
}

/// Jobs of the lane, done one after the other.
struct Jobs {
    sender: mpsc::Sender<Job>,
    bell: Arc<Bell>,
}

impl Blocking for Jobs {
    fn run(&self, job: Job) {
        let bell = Arc::clone(&self.bell);
        let job_and_bell = Box::new(move || {
            job();
            bell.wake_lanes();
        });
        self.sender.send(job_and_bell).expect("the thread takes jobs until the lane is gone");
    }
}

/// The threads. They end when this is dropped, after the lane.
pub(super) struct Background {
    bell: Arc<Bell>,
    pool: Arc<Pool>,
    /// Taken when the threads are to end; the other handles are gone with the lane by then.
    jobs: Option<Rc<Jobs>>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts the threads, and tells the pool of them.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start(pool: &Arc<Pool>) -> Result<Self> {
        let bell = Arc::new(Bell::default());
        let signals: Arc<dyn Signals> = Arc::clone(&bell) as Arc<dyn Signals>;
        pool.set_signals(signals);
        let (sender, receiver) = mpsc::channel::<Job>();
        let jobs = Some(Rc::new(Jobs { sender, bell: Arc::clone(&bell) }));
        let mut background = Self { bell: Arc::clone(&bell), pool: Arc::clone(pool), jobs, threads: Vec::new() };
        let checkpointed = Arc::clone(pool);
        background.spawn("checkpoint", move || bell.work(&checkpointed))?;
        background.spawn("blocking", move || receiver.into_iter().for_each(|job| job()))?;
        Ok(background)
    }

    /// Where the lane has blocking work done.
    pub(super) fn blocking(&self) -> Rc<dyn Blocking> {
        let jobs = self.jobs.as_ref().expect("taken only by drop");
        Rc::clone(jobs) as Rc<dyn Blocking>
    }

    /// Runs a checkpoint to its end.
    ///
    /// # Errors
    /// As the checkpoint.
    pub(super) fn run_checkpoint(&self) -> Result<()> {
        self.bell.run_checkpoint(&self.pool)
    }

    /// Sleeps until something was rung for the lane since the last call.
    pub(super) fn wait(&self) {
        let mut wishes = self.bell.wishes.lock();
        while !std::mem::take(&mut wishes.is_lane_woken) {
            self.bell.changed.wait(&mut wishes);
        }
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        let thread =
            started.map_err(|error| Error::new(ErrorKind::Other, "Starting a thread failed").with_source(error))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.bell.change(|wishes| wishes.is_closing = true);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic in a thread has ended the process already.
            drop(thread.join());
        }
    }
}
