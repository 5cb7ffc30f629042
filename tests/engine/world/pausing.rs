//! Writes that wait for space: who waits, whether it is right that they do, and what ends it.

use super::{DRAIN_STEPS_MAX, Life, World};
use rand::Rng;
use rok_blk::error::IoError;
use rok_blk::pool::TrimProgress;
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::{Completion, OnFull};
use std::sync::atomic::Ordering;

/// The owner of the requests of a workload.
pub const OWNER: u32 = 0;

impl World {
    /// Remembers who waits now.
    pub(super) fn note_paused(&mut self, life: &Life) {
        for request in life.lanes.iter().flat_map(|engine| engine.paused_requests()) {
            self.counts.paused += u64::from(self.paused.insert(request.cookie));
        }
    }

    /// Whether nothing goes on any more but that writes wait for space, for which every lane has looked since `news`.
    pub(super) fn is_paused(&self, life: &Life, news: u64) -> bool {
        life.pool.space_news() == news
            && life.lanes.iter().all(|engine| engine.is_idle() || engine.is_paused())
            && life.job_count() == 0
            && life.checkpoint.is_none()
            && !life.signals.wants_checkpoint.load(Ordering::Relaxed)
    }

    /// Runs until nothing goes on any more, or only writes wait for space. Unlike [`Self::drain`], it gives `meta/` no space
    /// and tells nobody to fail.
    pub fn quiesce(&mut self, life: &mut Life, done: &mut Vec<(Completion, Result<(), IoError>)>) {
        for _ in 0..DRAIN_STEPS_MAX {
            let news = life.pool.space_news();
            for engine in &life.lanes {
                engine.turn();
                engine.drain_done(done);
            }
            let is_over = life.lanes.iter().all(|engine| engine.is_idle()) && life.checkpoint.is_none();
            let is_wanted = life.signals.wants_checkpoint.load(Ordering::Relaxed);
            if is_over && !is_wanted || self.is_paused(life, news) {
                return;
            }
            for lane in 0..life.lanes.len() {
                self.complete_one(life, lane);
            }
            life.run_job();
            self.checkpoint_step(life, is_wanted);
        }
        panic!("requests hang: nothing completes them");
    }

    /// Lets come what comes by itself (a checkpoint after some seconds, stock); if nothing does, the writes that wait do so
    /// rightly, and are told to fail.
    pub(super) fn relieve(&mut self, life: &mut Life) {
        if life.pool.changes().active_count() > 0 {
            return self.checkpoint_step(life, true);
        }
        if matches!(life.pool.restock_step(), Ok(TrimProgress::Worked)) {
            return;
        }
        let status = life.pool.status();
        let usable = (status.free_bytes - status.released_bytes).saturating_sub(status.reserve_bytes) / BLOCK_SIZE_U64;
        assert!(
            usable == 0 || status.is_meta_reserve_gone || status.failure.is_some(),
            "writes wait for space although {usable} blocks are free"
        );
        if self.random.random_bool(0.3) {
            self.counts.owners_left += 1;
            life.lanes.iter().for_each(|engine| engine.leave(OWNER));
            life.lanes.iter().for_each(|engine| {
                engine.turn();
            });
            return life.lanes.iter().for_each(|engine| engine.forget_owner(OWNER));
        }
        for volume in life.volumes.list() {
            if volume.on_full == OnFull::Pause {
                self.counts.set_to_error += 1;
                // If that fails, so does the pool, and with it the writes.
                let is_set = life.volumes.set_on_full(&volume.name, OnFull::Error).is_ok();
                assert!(is_set || life.pool.check_writable().is_err(), "a healthy store takes it");
            }
        }
    }
}
