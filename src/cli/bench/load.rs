//! The load: which requests are made and when, the same for all sides, and how fast they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::case::{Access, Case};
use crate::disk::IoBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::AddressGroup;
use crate::units::to_u64;

/// What ends a measurement.
#[derive(Clone, Debug)]
pub(super) enum Limit {
    /// No request begins behind this; nor when as much was written as the span has.
    Time(Duration),
    /// So many requests.
    Count(u64),
    /// Somebody says that it is over.
    Until(Arc<AtomicBool>),
}

/// What holds for a measurement.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Requests lie in the first so many bytes.
    pub(super) span_bytes: u64,
    /// From the place of a request to the next one, in sizes of a request. They then lie in so many times the span.
    pub(super) stride: u64,
    pub(super) limit: Limit,
    /// Whether the time of each request is taken.
    pub(super) is_timed: bool,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write,
    /// Makes durable what was acknowledged before.
    Flush,
}

/// What can be measured: something that does requests, many at once, on one thread.
pub(super) trait Side {
    /// Begins to write `buffer`, to fill it, or to flush. It is named by `slot`, of which each is under way once.
    fn request(&mut self, action: Action, slot: usize, offset_bytes: u64, buffer: &IoBuffer);

    /// Waits for at least one request and appends the slots of all that are done.
    ///
    /// # Errors
    /// If a request failed.
    fn wait(&mut self, done: &mut Vec<usize>) -> Result<()>;

    /// Is told what follows.
    fn begin(&mut self, _case: &Case, _plan: &Plan) {}

    /// Discards all there is.
    ///
    /// # Errors
    /// If that failed.
    fn discard(&mut self) -> Result<()> {
        Ok(())
    }

    /// Goes on with another volume.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn open_volume(&mut self, _name: &str) -> Result<()> {
        Ok(())
    }

    /// Moves what lives in a group of addresses; `false` if there was no space.
    ///
    /// # Errors
    /// If that failed.
    fn move_group(&mut self, _group: AddressGroup) -> Result<bool> {
        Ok(true)
    }
}

/// What one measurement found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// Reads and writes.
    pub(super) request_count: u64,
    pub(super) duration: Duration,
    /// Processor time of the measuring threads, which do all but checkpoints.
    pub(super) cpu: Duration,
    /// What all but one request in a thousand stay below, in microseconds, if that was asked for.
    pub(super) tail_us: Option<f64>,
    /// What the slowest took, in microseconds, if that was asked for.
    pub(super) longest_us: Option<f64>,
}

impl Limit {
    fn is_said(&self) -> bool {
        matches!(self, Self::Until(is_over) if is_over.load(Ordering::Acquire))
    }
}

impl Measured {
    /// Of so many things that took this long, and nothing else is known of them.
    pub(super) const fn of(request_count: u64, duration: Duration) -> Self {
        Self { request_count, duration, cpu: Duration::ZERO, tail_us: None, longest_us: None }
    }

    pub(super) fn requests_per_second(&self) -> f64 {
        count(self.request_count) / self.duration.as_secs_f64()
    }

    pub(super) fn cpu_us_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count(self.request_count)
    }
}

/// Counts here are far below 2^32.
fn count(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Keeps as many requests under way on `side` as the case says, until the plan's limit. `lane` of `lane_count` tells
/// which part of the writes are made here, and makes the requests of lanes differ.
///
/// # Errors
/// If a request fails.
pub(super) fn measure(
    side: &mut impl Side,
    case: &Case,
    plan: &Plan,
    buffers: &[IoBuffer],
    (seed, lane, lane_count): (u64, u64, u64),
) -> Result<Measured> {
    side.begin(case, plan);
    let mut requests = Requests::new(case, plan, seed << 8 | lane, lane_count);
    let mut done: Vec<usize> = Vec::with_capacity(case.depth);
    let mut times = Times::new(plan, case.depth);
    let (mut request_count, mut under_way) = (0, 0);
    let time_max = if let Limit::Time(time) = &plan.limit { *time } else { Duration::MAX };
    let cpu_before = thread_cpu()?;
    let begun = Instant::now();
    let mut begin = |side: &mut _, slot: usize, times: &mut Times| {
        let Some((action, offset_bytes)) = requests.next() else { return false };
        times.begin(slot, action);
        Side::request(side, action, slot, offset_bytes, &buffers[slot]);
        request_count += u64::from(action != Action::Flush);
        true
    };
    for slot in 0..case.depth {
        under_way += usize::from(begin(side, slot, &mut times));
    }
    while under_way > 0 {
        side.wait(&mut done)?;
        let is_over = begun.elapsed() >= time_max || plan.limit.is_said();
        for slot in done.drain(..) {
            times.end(slot);
            under_way -= 1;
            if !is_over {
                under_way += usize::from(begin(side, slot, &mut times));
            }
        }
    }
    let duration = begun.elapsed();
    let cpu = thread_cpu()?.saturating_sub(cpu_before);
    let longest_us = times.longest_us();
    Ok(Measured { request_count, duration, cpu, tail_us: times.tail_us(), longest_us })
}

/// Buffers of random bytes: nothing on the way to the flash can compress them.
pub(super) fn random_buffers(case: &Case) -> Vec<IoBuffer> {
    let mut random = SmallRng::seed_from_u64(to_u64(case.size_bytes));
    let buffers = (0..case.depth).map(|_| {
        let buffer = IoBuffer::allocate(case.size_bytes);
        buffer.with_bytes_mut(|bytes| random.fill(bytes));
        buffer
    });
    buffers.collect()
}

/// When the request of each slot began, and how long those that ended took.
struct Times {
    is_on: bool,
    begun: Vec<Option<Instant>>,
    nanoseconds: Vec<u64>,
}

impl Times {
    fn new(plan: &Plan, depth: usize) -> Self {
        Self { is_on: plan.is_timed, begun: vec![None; depth], nanoseconds: Vec::new() }
    }

    fn begin(&mut self, slot: usize, action: Action) {
        if self.is_on && action != Action::Flush {
            self.begun[slot] = Some(Instant::now());
        }
    }

    fn end(&mut self, slot: usize) {
        if let Some(begun) = self.begun[slot].take() {
            self.nanoseconds.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn longest_us(&self) -> Option<f64> {
        self.nanoseconds.iter().max().map(|longest| Duration::from_nanos(*longest).as_secs_f64() * 1e6)
    }

    fn tail_us(mut self) -> Option<f64> {
        let place = self.nanoseconds.len().checked_sub(1)? * 999 / 1000;
        let (_, tail, _) = self.nanoseconds.select_nth_unstable(place);
        Some(Duration::from_nanos(*tail).as_secs_f64() * 1e6)
    }
}

/// The requests of a measurement.
struct Requests {
    access: Access,
    random: SmallRng,
    size_bytes: u64,
    place_count: u64,
    stride: u64,
    made: u64,
    made_max: u64,
    flush_every: Option<u64>,
    /// Since the last flush.
    written: u64,
}

/// Of ten mixed requests.
const MIXED_WRITES: u32 = 3;

impl Requests {
    fn new(case: &Case, plan: &Plan, seed: u64, lane_count: u64) -> Self {
        let size_bytes = to_u64(case.size_bytes);
        let place_count = plan.span_bytes / size_bytes;
        let made_max = match &plan.limit {
            Limit::Count(count) => *count,
            Limit::Until(_) => u64::MAX,
            Limit::Time(_) if case.access.is_read() => u64::MAX,
            Limit::Time(_) => place_count / lane_count,
        };
        let random = SmallRng::seed_from_u64(seed);
        let (access, flush_every, stride) = (case.access, case.flush_every, plan.stride);
        Self { access, random, size_bytes, place_count, stride, made: 0, made_max, flush_every, written: 0 }
    }
}

impl Iterator for Requests {
    type Item = (Action, u64);

    fn next(&mut self) -> Option<(Action, u64)> {
        if self.flush_every.is_some_and(|every| self.written >= every) {
            self.written = 0;
            return Some((Action::Flush, 0));
        }
        if self.made >= self.made_max {
            return None;
        }
        let place = if self.access.is_random() {
            self.random.random_range(0..self.place_count)
        } else {
            self.made % self.place_count
        };
        self.made += 1;
        let is_write = match self.access {
            Access::Mixed => self.random.random_ratio(MIXED_WRITES, 10),
            access => access.is_write(),
        };
        self.written += u64::from(is_write);
        Some((if is_write { Action::Write } else { Action::Read }, place * self.stride * self.size_bytes))
    }
}

/// A side on which every request is done at once: what the load costs itself.
#[derive(Debug, Default)]
pub(super) struct NoSide {
    done: Vec<usize>,
}

impl Side for NoSide {
    fn request(&mut self, _action: Action, slot: usize, _offset_bytes: u64, _buffer: &IoBuffer) {
        self.done.push(slot);
    }

    fn wait(&mut self, done: &mut Vec<usize>) -> Result<()> {
        done.append(&mut self.done);
        Ok(())
    }
}

/// Processor time of this thread, in user and kernel mode (`proc(5)`, `schedstat`: the first number, nanoseconds).
fn thread_cpu() -> Result<Duration> {
    const PATH: &str = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(PATH).map_err(|error| Error::from_io("Reading", PATH.as_ref(), error))?;
    let nanoseconds = text.split_whitespace().next().and_then(|number| number.parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{PATH} says {text:?}, not how long this thread has run"))
    })
}

/// Requests that write `bytes`.
pub(super) fn requests_of(bytes: u64, case: &Case) -> u64 {
    bytes / to_u64(case.size_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::arguments::BenchGroup;

    const SPAN_BYTES: u64 = 64 * 4096;
    const TIMED: Limit = Limit::Time(Duration::from_secs(1));

    fn requests(access: Access, flush_every: Option<u64>, limit: Limit, seed: u64) -> Requests {
        let case = Case { flush_every, ..Case::new(BenchGroup::Fresh, access, 4096, 1) };
        Requests::new(&case, &Plan { span_bytes: SPAN_BYTES, stride: 1, limit, is_timed: false }, seed, 1)
    }

    #[test]
    fn sequential_writes_cover_the_span_once() {
        let made: Vec<_> = requests(Access::SequentialWrite, None, TIMED, 1).collect();
        let expected: Vec<_> = (0..64).map(|place| (Action::Write, place * 4096)).collect();
        assert_eq!(made, expected);
    }

    #[test]
    fn sequential_reads_begin_again_at_the_end() {
        let made = requests(Access::SequentialRead, None, TIMED, 1).skip(63).take(2);
        assert_eq!(made.collect::<Vec<_>>(), [(Action::Read, 63 * 4096), (Action::Read, 0)]);
    }

    #[test]
    fn random_requests_lie_in_the_span_and_follow_from_the_seed() {
        let of = |seed| requests(Access::RandomWrite, None, TIMED, seed).collect::<Vec<_>>();

        assert_eq!(of(1).len(), 64);
        assert!(of(1).iter().all(|(_, offset)| offset % 4096 == 0 && *offset < SPAN_BYTES));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn a_flush_follows_each_so_many_writes_and_is_not_counted() {
        let made = requests(Access::SequentialWrite, Some(2), Limit::Count(5), 1).map(|(action, _)| action);
        let (write, flush) = (Action::Write, Action::Flush);
        assert_eq!(made.collect::<Vec<_>>(), [write, write, flush, write, write, flush, write]);
    }

    #[test]
    fn three_of_ten_mixed_requests_write() {
        let writes =
            requests(Access::Mixed, None, Limit::Count(10_000), 1).filter(|(action, _)| *action == Action::Write);
        assert!((2800..3200).contains(&writes.count()));
    }

    #[test]
    fn the_tail_is_what_one_in_a_thousand_exceeds() {
        let times =
            Times { is_on: true, begun: Vec::new(), nanoseconds: (1..=1000).rev().map(|us| us * 1000).collect() };
        assert!(times.tail_us().is_some_and(|tail| (tail - 999.0).abs() < 1e-6));
    }

    #[test]
    fn processor_time_grows_with_work() {
        let before = thread_cpu().expect("this kernel counts");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(thread_cpu().expect("this kernel counts") > before);
    }
}
