//! The load: which requests are made and when, the same for both sides, and how fast they were.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::case::Case;
use super::interrupt::Interrupt;
use crate::disk::IoBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::units::to_u64;

/// What holds for all measurements.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Requests lie in the first so many bytes; so many are written at most in one measurement.
    pub(super) span_bytes: u64,
    /// How long requests are made.
    pub(super) duration: Duration,
    /// Ends measurements early.
    pub(super) interrupt: Interrupt,
}

/// What can be measured: something that does reads and writes, many at once.
pub(super) trait Side {
    /// Begins to write `buffer` or to fill it. It is named by `slot`, of which each is under way once.
    fn request(&mut self, is_write: bool, slot: usize, offset_bytes: u64, buffer: &IoBuffer);

    /// Waits for at least one request and appends the slots of all that are done.
    ///
    /// # Errors
    /// If a request failed.
    fn wait(&mut self, done: &mut Vec<usize>) -> Result<()>;
}

/// What one measurement found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) request_count: u64,
    pub(super) duration: Duration,
    /// Processor time of the measuring thread, which does all but checkpoints.
    pub(super) cpu: Duration,
}

impl Measured {
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

/// Keeps as many requests under way on `side` as the case says, until the time or the span is used up.
///
/// # Errors
/// If a request fails.
pub(super) fn measure(
    side: &mut impl Side,
    case: &Case,
    plan: &Plan,
    buffers: &[IoBuffer],
    seed: u64,
) -> Result<Measured> {
    let mut offsets = Offsets::new(case, plan.span_bytes, seed);
    let is_write = case.access.is_write();
    let mut done: Vec<usize> = Vec::with_capacity(case.depth);
    let mut request_count = 0;
    let mut under_way = 0;
    let cpu_before = thread_cpu()?;
    let begun = Instant::now();
    for (slot, buffer) in buffers.iter().enumerate().take(case.depth) {
        if let Some(offset_bytes) = offsets.next() {
            side.request(is_write, slot, offset_bytes, buffer);
            under_way += 1;
        }
    }
    while under_way > 0 {
        side.wait(&mut done)?;
        let is_over = begun.elapsed() >= plan.duration || plan.interrupt.is_raised();
        for slot in done.drain(..) {
            request_count += 1;
            under_way -= 1;
            if !is_over && let Some(offset_bytes) = offsets.next() {
                side.request(is_write, slot, offset_bytes, &buffers[slot]);
                under_way += 1;
            }
        }
    }
    let duration = begun.elapsed();
    Ok(Measured { request_count, duration, cpu: thread_cpu()?.saturating_sub(cpu_before) })
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

/// Where the requests of a measurement go. Writes end when they have covered as much as the span; reads do not end.
struct Offsets {
    random: Option<SmallRng>,
    size_bytes: u64,
    place_count: u64,
    position: u64,
    is_endless: bool,
}

impl Offsets {
    fn new(case: &Case, span_bytes: u64, seed: u64) -> Self {
        let size_bytes = to_u64(case.size_bytes);
        Self {
            random: case.access.is_random().then(|| SmallRng::seed_from_u64(seed)),
            size_bytes,
            place_count: span_bytes / size_bytes,
            position: 0,
            is_endless: !case.access.is_write(),
        }
    }
}

impl Iterator for Offsets {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.position >= self.place_count && !self.is_endless {
            return None;
        }
        let place = match &mut self.random {
            Some(random) => random.random_range(0..self.place_count),
            None => self.position % self.place_count,
        };
        self.position += 1;
        Some(place * self.size_bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::case::Access;

    fn case(access: Access, size_bytes: usize) -> Case {
        Case { access, size_bytes, depth: 1, target: None }
    }

    #[test]
    fn sequential_writes_cover_the_span_once() {
        let offsets = Offsets::new(&case(Access::SequentialWrite, 4096), 3 * 4096, 1);
        assert_eq!(offsets.collect::<Vec<_>>(), [0, 4096, 8192]);
    }

    #[test]
    fn sequential_reads_begin_again_at_the_end() {
        let offsets = Offsets::new(&case(Access::SequentialRead, 4096), 2 * 4096, 1);
        assert_eq!(offsets.take(4).collect::<Vec<_>>(), [0, 4096, 0, 4096]);
    }

    #[test]
    fn random_offsets_lie_in_the_span_and_follow_from_the_seed() {
        let offsets = |seed| Offsets::new(&case(Access::RandomWrite, 4096), 64 * 4096, seed).collect::<Vec<_>>();

        assert_eq!(offsets(1).len(), 64);
        assert!(offsets(1).iter().all(|offset| offset % 4096 == 0 && *offset < 64 * 4096));
        assert_eq!(offsets(1), offsets(1));
        assert_ne!(offsets(1), offsets(2));
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
