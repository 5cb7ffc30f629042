//! Threads that measure: each has one side of its own, since rings, lanes and buffers stay on their threads.

use std::sync::{Arc, Barrier, mpsc};
use std::thread::JoinHandle;

use super::case::Case;
use super::load::{Measured, Plan, Side, measure, random_buffers};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::AddressGroup;
use crate::units::to_u64;

/// What a worker is to do.
enum Order {
    Measure { case: Case, plan: Plan, seeds: (u64, u64, u64), start: Arc<Barrier> },
    Discard,
    Open(String),
    Move(AddressGroup),
}

/// How that ended.
enum Answer {
    Measured(Measured),
    Done,
    NoSpace,
}

struct Worker {
    /// Taken when the thread is to end.
    orders: Option<mpsc::Sender<Order>>,
    answers: mpsc::Receiver<Result<Answer>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start<S: Side>(index: usize, build: impl FnOnce() -> Result<S> + Send + 'static) -> Result<Self> {
        let (orders, receiver) = mpsc::channel();
        let (sender, answers) = mpsc::channel();
        let work = move || {
            let built = build();
            let (mut side, answer) = match built {
                Ok(side) => (side, Ok(Answer::Done)),
                Err(error) => return drop(sender.send(Err(error))),
            };
            if sender.send(answer).is_err() {
                return;
            }
            for order in receiver {
                if sender.send(obey(&mut side, &order)).is_err() {
                    return;
                }
            }
        };
        let started = std::thread::Builder::new().name(format!("bench-{index}")).spawn(work);
        let thread =
            started.map_err(|error| Error::new(ErrorKind::Other, "Starting a thread failed").with_source(error))?;
        let worker = Self { orders: Some(orders), answers, thread: Some(thread) };
        worker.answer()?;
        Ok(worker)
    }

    fn order(&self, order: Order) {
        // A thread that has ended has left an error, or there is none to be had.
        let _is_there = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
    }

    fn answer(&self) -> Result<Answer> {
        let gone = |_| Err(Error::new(ErrorKind::Other, "A measuring thread has ended"));
        self.answers.recv().unwrap_or_else(gone)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic in a thread has ended the process already.
            drop(thread.join());
        }
    }
}

fn obey(side: &mut impl Side, order: &Order) -> Result<Answer> {
    match order {
        Order::Measure { case, plan, seeds, start } => {
            let buffers = random_buffers(case);
            start.wait();
            measure(side, case, plan, &buffers, *seeds).map(Answer::Measured)
        }
        Order::Discard => side.discard().map(|()| Answer::Done),
        Order::Open(name) => side.open_volume(name).map(|()| Answer::Done),
        Order::Move(group) => {
            side.move_group(*group).map(|has_space| if has_space { Answer::Done } else { Answer::NoSpace })
        }
    }
}

/// Some workers of the same kind.
pub(super) struct Team {
    workers: Vec<Worker>,
}

impl Team {
    /// Starts a worker for each of `builds`, which make its side on its thread.
    ///
    /// # Errors
    /// If one of them fails.
    pub(super) fn start<S: Side, B>(builds: Vec<B>) -> Result<Self>
    where
        B: FnOnce() -> Result<S> + Send + 'static,
    {
        let workers = builds.into_iter().enumerate().map(|(index, build)| Worker::start(index, build));
        Ok(Self { workers: workers.collect::<Result<_>>()? })
    }

    /// Workers that can measure together.
    pub(super) const fn count(&self) -> usize {
        self.workers.len()
    }

    /// Measures with so many workers at the same time. The same `seed` makes the same requests.
    ///
    /// # Errors
    /// If a request fails.
    pub(super) fn measure(&self, case: &Case, plan: &Plan, seed_and_workers: (u64, usize)) -> Result<Measured> {
        self.measure_beside(case, plan, seed_and_workers, None)
    }

    /// The same, while `meanwhile` is called again and again on this thread.
    ///
    /// # Errors
    /// If a request or `meanwhile` fails.
    pub(super) fn measure_beside(
        &self,
        case: &Case,
        plan: &Plan,
        (seed, worker_count): (u64, usize),
        meanwhile: Option<&mut dyn FnMut() -> Result<()>>,
    ) -> Result<Measured> {
        let workers = &self.workers[..worker_count];
        let start = Arc::new(Barrier::new(worker_count));
        for (index, worker) in (0..).zip(workers) {
            let seeds = (seed, index, to_u64(worker_count));
            worker.order(Order::Measure { case: *case, plan: plan.clone(), seeds, start: Arc::clone(&start) });
        }
        let mut beside = Ok(());
        if let Some(meanwhile) = meanwhile {
            // Each worker that measures has the barrier.
            while beside.is_ok() && Arc::strong_count(&start) > 1 {
                beside = meanwhile();
            }
        }
        // All of them, also after an error.
        let answers: Vec<Result<Answer>> = workers.iter().map(Worker::answer).collect();
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        beside?;
        let found = answers.into_iter().filter_map(|answer| match answer {
            Answer::Measured(measured) => Some(measured),
            Answer::Done | Answer::NoSpace => None,
        });
        let sum = found.reduce(|sum, one| Measured {
            request_count: sum.request_count + one.request_count,
            duration: sum.duration.max(one.duration),
            cpu: sum.cpu + one.cpu,
            tail_us: None,
            longest_us: None,
        });
        sum.ok_or_else(|| Error::new(ErrorKind::Other, "Nothing was measured"))
    }

    /// Discards all there is.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn discard(&self) -> Result<()> {
        let Some(worker) = self.workers.first() else { return Ok(()) };
        worker.order(Order::Discard);
        worker.answer().map(|_| ())
    }

    /// Has all workers go on with another volume.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn open_volume(&self, name: &str) -> Result<()> {
        self.workers.iter().for_each(|worker| worker.order(Order::Open(name.to_owned())));
        let answers: Vec<Result<Answer>> = self.workers.iter().map(Worker::answer).collect();
        answers.into_iter().try_for_each(|answer| answer.map(|_| ()))
    }

    /// Has the last worker move what lives in a group of addresses; `false` if there was no space.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn move_group(&self, group: AddressGroup) -> Result<bool> {
        let Some(worker) = self.workers.last() else { return Ok(false) };
        worker.order(Order::Move(group));
        worker.answer().map(|answer| !matches!(answer, Answer::NoSpace))
    }
}
