//! The job that scrubs the pool: a lane reads part after part, slowly enough for everybody else.
//!
//! It is gone on with after a restart, from the place that was stored last. Where somebody else uses the pool it rests three
//! times as long as a part took, whatever its rate is; where nobody scrubs, nothing here wakes up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::jobs::{JobContext, Jobs, NewJob};
use super::resource::seconds_since_1970;
use super::scrub_resource::{DamagedRange, RATE_BYTES_DEFAULT, RATE_BYTES_MIN, ScrubAnswer, ScrubOptions, Scrubbing};
use crate::error::{Error, ErrorKind, Result};
use crate::format::job::{JobRecord, JobState, JobUnit};
use crate::format::scrub::ScrubRecord;
use crate::lane::Server;
use crate::pool::directory::Copies;
use crate::pool::{Scrub, ScrubWish};
use crate::units::{BLOCK_SIZE_U64, to_usize};

/// The word for it in a job's record.
pub(super) const WORK: &str = "scrub";
/// Most blocks of a part: 4 MiB.
const PART_BLOCKS_MAX: u64 = 1024;
/// A part takes about this share of a second at the rate, so that a wish to end is seen soon.
const PARTS_PER_SECOND: u64 = 8;
/// While others use the pool, the rest behind a part, in times of what it took.
const REST_IN_USE: u32 = 3;
/// No more than that, however slow a part was.
const REST_TIME_MAX: Duration = Duration::from_secs(1);
/// How often a job that waits for a checkpoint looks whether it is to end.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How often the place is stored.
const STORE_PERIOD: Duration = Duration::from_secs(5);
/// Damaged ranges that the failure of a job names.
const NAMED_MAX: usize = 3;

/// How a job begins.
#[derive(Clone, Copy)]
enum Begin {
    /// Somebody asked for it: bytes a second, and percent of the used space if not all.
    Asked(u64, Option<u8>),
    /// It began at this time in an earlier life of the daemon, which stored what was asked for.
    Again(u64),
}

/// One scrub at a time.
pub(super) struct ScrubJob {
    jobs: Arc<Jobs>,
    server: Arc<Server>,
    copies: Copies,
    scrub: Mutex<Scrub>,
    /// The job that scrubs. Held while one begins.
    running: Mutex<Option<u64>>,
}

impl ScrubJob {
    /// Loads where the scrub of the server's pool is, and goes on with its job if one ran.
    ///
    /// # Errors
    /// The store's failure, and what resuming a job reports.
    pub(super) fn open(server: &Arc<Server>, jobs: &Arc<Jobs>, copies: Copies) -> Result<Arc<Self>> {
        let scrub = Mutex::new(Scrub::load(Arc::clone(server.pool()))?);
        let (jobs, server) = (Arc::clone(jobs), Arc::clone(server));
        let opened = Arc::new(Self { jobs, server, copies, scrub, running: Mutex::new(None) });
        let is_running = |record: &JobRecord| record.work == WORK && record.state == JobState::Running;
        let records = opened.jobs.table().list().into_iter().map(|job| job.record);
        for record in records.filter(is_running) {
            let mut running = opened.running.lock();
            if running.is_some() {
                opened.jobs.give_up(&record);
                continue;
            }
            *running = Some(record.id);
            tracing::info!(job = record.id, "the scrub goes on");
            let begun_at = record.began_at;
            opened.jobs.resume(record, true, opened.work(Begin::Again(begun_at)))?;
        }
        Ok(opened)
    }

    /// How the scrub is.
    pub(super) fn state(&self) -> Scrubbing {
        let (record, job) = (self.record(), *self.running.lock());
        self.server.pool().with_catalog(|catalog, _| Scrubbing::new(&record, catalog, job))
    }

    fn record(&self) -> ScrubRecord {
        self.scrub.lock().record().clone()
    }

    /// Begins a scrub, or goes on with one that paused.
    ///
    /// # Errors
    /// `Usage` for a rate or a share that cannot be; `Busy` if one runs; what beginning a job reports.
    pub(super) fn begin(self: &Arc<Self>, options: ScrubOptions) -> Result<ScrubAnswer> {
        let rate_bytes = options.rate.unwrap_or(RATE_BYTES_DEFAULT);
        if rate_bytes < RATE_BYTES_MIN {
            return Err(Error::new(ErrorKind::Usage, format!("A scrub cannot read {rate_bytes} bytes a second"))
                .with_hint(format!("The least is {} MiB", RATE_BYTES_MIN >> 20)));
        }
        let subset = options.subset;
        if let Some(percent) = subset.filter(|percent| !(1..=100).contains(percent)) {
            return Err(Error::new(ErrorKind::Usage, format!("A scrub cannot read {percent} % of the pool"))
                .with_hint("From 1 to 100"));
        }
        let mut running = self.running.lock();
        if let Some(id) = *running {
            return Err(Error::new(ErrorKind::Busy, format!("The pool is being scrubbed: job j-{id}")).with_hint(
                format!("rok-blk job wait j-{id} tells when that is done; rok-blk scrub --pause ends it for now"),
            ));
        }
        if !options.dry_run {
            let total = self.server.pool().status().used_bytes;
            let new = NewJob {
                work: WORK,
                target: String::new(),
                unit: JobUnit::Bytes,
                total: subset.map_or(total, |percent| (total / 100).saturating_mul(u64::from(percent))),
                is_cancellable: true,
            };
            *running = Some(self.jobs.start(new, self.work(Begin::Asked(rate_bytes, subset)))?.record.id);
        }
        drop(running);
        Ok(ScrubAnswer::new(self.state(), options.dry_run))
    }

    /// Has the scrub end where it is; the next one goes on there, or, where it `is_stop`, begins at the start.
    ///
    /// # Errors
    /// The store's failure.
    pub(super) fn pause(&self, is_stop: bool, is_dry_run: bool) -> Result<ScrubAnswer> {
        if is_dry_run {
            return Ok(ScrubAnswer::new(self.state(), true));
        }
        let running = *self.running.lock();
        if let Some(id) = running {
            self.jobs.table().cancel(id, false)?;
            self.server.events().happen();
            // Until it has seen that: its steps take less than a second.
            loop {
                let seen = self.server.events().count();
                if *self.running.lock() != running {
                    break;
                }
                self.server.events().wait_beyond(seen);
            }
        }
        if is_stop {
            let mut scrub = self.scrub.lock();
            scrub.give_up();
            scrub.store()?;
        }
        Ok(ScrubAnswer::new(self.state(), false))
    }

    fn work(self: &Arc<Self>, begin: Begin) -> impl FnOnce(&JobContext) -> Result<()> + Send + 'static {
        let scrubbing = Arc::clone(self);
        move |context| {
            let result = scrubbing.scrub(context, begin);
            let stored = scrubbing.scrub.lock().store();
            if let Err(error) = stored {
                tracing::warn!(%error, "the scrub goes on from an earlier place the next time");
            }
            *scrubbing.running.lock() = None;
            scrubbing.server.events().happen();
            result
        }
    }

    fn scrub(&self, context: &JobContext, begin: Begin) -> Result<()> {
        let record = self.record();
        if record.place.is_none() {
            if matches!(begin, Begin::Again(began_at) if record.ended_at >= began_at) {
                // Its pass was at its end.
                return self.verdict(context, true);
            }
            self.store_what_was_written(context)?;
        }
        let (rate_bytes, read_before) = self.prepare(context.total() / BLOCK_SIZE_U64, begin)?;
        let mut stored_at = Instant::now();
        loop {
            context.check()?;
            let is_done = self.read_part(context, rate_bytes)?;
            let record = self.record();
            context.progress(record.read_blocks.saturating_sub(read_before) * BLOCK_SIZE_U64);
            if is_done {
                self.scrub.lock().store()?;
                return self.verdict(context, true);
            }
            if self.scrub.lock().is_pause_due() {
                return self.verdict(context, false);
            }
            if stored_at.elapsed() >= STORE_PERIOD {
                self.scrub.lock().store()?;
                stored_at = Instant::now();
            }
        }
    }

    /// Begins a pass, or goes on with one; its rate, and how many blocks it had read before this job.
    fn prepare(&self, total_blocks: u64, begin: Begin) -> Result<(u64, u64)> {
        let mut scrub = self.scrub.lock();
        match begin {
            Begin::Again(_) if scrub.record().place.is_some() => {}
            Begin::Again(_) => scrub.begin(seconds_since_1970(), RATE_BYTES_DEFAULT),
            Begin::Asked(rate_bytes, subset) => {
                scrub.begin(seconds_since_1970(), rate_bytes);
                if subset.is_some() {
                    scrub.pause_after(total_blocks.max(1));
                }
            }
        }
        scrub.store()?;
        let record = scrub.record();
        let read_before = record.pause_blocks.saturating_sub(total_blocks.max(1));
        Ok((record.rate_bytes.max(RATE_BYTES_MIN), read_before))
    }

    /// Has a lane read the next part, and rests; says whether it was the last.
    fn read_part(&self, context: &JobContext, rate_bytes: u64) -> Result<bool> {
        let pool = self.server.pool();
        let (begun, requests) = (Instant::now(), pool.request_count());
        let blocks_max = (rate_bytes / PARTS_PER_SECOND / BLOCK_SIZE_U64).clamp(1, PART_BLOCKS_MAX);
        let wish = {
            let scrub = self.scrub.lock();
            let from = scrub.record().place.unwrap_or_default();
            ScrubWish { from, blocks_max: to_usize(blocks_max), is_brief: scrub.is_list_full() }
        };
        let step = self.server.scrub(wish)?;
        for damage in &step.damages {
            let named = pool.with_catalog(|catalog, _| DamagedRange::list(std::slice::from_ref(damage), catalog));
            named.iter().for_each(|range| tracing::error!("the scrub found damage: {}", range.message));
        }
        let read_bytes = step.read_blocks * BLOCK_SIZE_U64;
        let is_done = self.scrub.lock().take(step, seconds_since_1970());
        let took = begun.elapsed();
        let is_in_use = pool.request_count() != requests;
        let at_rate = Duration::from_secs_f64(as_float(read_bytes) / as_float(rate_bytes)).saturating_sub(took);
        let rest = if is_in_use { at_rate.max((took * REST_IN_USE).min(REST_TIME_MAX)) } else { at_rate };
        if !is_done {
            self.rest(context, rest);
        }
        Ok(is_done)
    }

    /// Rests, or until the job is to end.
    fn rest(&self, context: &JobContext, time: Duration) {
        let until = Instant::now() + time;
        loop {
            let seen = self.server.events().count();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || context.check().is_err() {
                return;
            }
            self.server.events().wait_beyond_for(seen, left);
        }
    }

    /// What was written before a pass is part of it once a checkpoint has stored it.
    fn store_what_was_written(&self, context: &JobContext) -> Result<()> {
        let pool = self.server.pool();
        let awaited = pool.cuts_begun() + 1;
        pool.want_checkpoint();
        loop {
            let seen = self.server.events().count();
            context.check()?;
            if pool.checkpoints_done() >= awaited || pool.check_writable().is_err() {
                return Ok(());
            }
            self.server.events().wait_beyond_for(seen, LOOK_PERIOD);
        }
    }

    /// What came of a pass: a failure of the job if anything is damaged. The map and what is counted are checked as well, and
    /// what the pool has in two copies, of which a damaged one is written anew.
    fn verdict(&self, context: &JobContext, is_whole: bool) -> Result<()> {
        let pool = self.server.pool();
        let record = self.record();
        let found = pool.with_catalog(|catalog, _| DamagedRange::list(&record.damages, catalog));
        let mut messages: Vec<String> = found.iter().take(NAMED_MAX).map(|range| range.message.clone()).collect();
        if found.len() > NAMED_MAX {
            messages.push(format!("Damaged ranges beside these: {}", found.len() - NAMED_MAX));
        }
        if is_whole {
            if let Err(error) = self.copies.scrub() {
                messages.push(error.to_string());
            }
            let report = pool.check_while(&|| context.check().is_ok());
            context.check()?;
            let report = report?;
            if !report.is_clean() && !report.has_only_leaks() {
                messages
                    .push(format!("The map has {} differences, which rok-blk check lists", report.difference_count));
            }
        }
        if messages.is_empty() {
            return Ok(());
        }
        let hint = "rok-blk status lists what is damaged. Write it anew, restore it, or remove it, and scrub again";
        Err(Error::new(ErrorKind::Integrity, messages.join(". ")).with_hint(hint))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a time to rest; 53 bits are plenty")]
fn as_float(bytes: u64) -> f64 {
    bytes as f64
}
