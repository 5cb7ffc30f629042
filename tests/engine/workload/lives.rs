//! How lives of the pool end and begin, and what must be there then.

use super::{VOLUME_COUNT, Workload, value_of};
use crate::model::Model;
use crate::world::End;
use rand::Rng;
use rok_blk::units::BLOCK_SIZE_U64;

impl Workload {
    pub(super) fn crash(&mut self, end: End) {
        self.note(|| format!("crash {end:?}"));
        let life = self.life.take();
        // What a flush that failed has dropped no kill leaves.
        let end = if self.has_flush_failed() { End::PowerLoss } else { end };
        self.pending.clear();
        self.world.paused.clear();
        self.exclusive.clear();
        self.pieces.clear();
        self.world.clear_faults();
        self.world.crash(life, end);
        self.check_shredded();
        self.settle_after_open(end == End::Kill);
    }

    fn has_flush_failed(&self) -> bool {
        self.world.device_counters().failed_flushes > self.failed_flushes_before_life
    }

    pub(super) fn reopen_cleanly(&mut self) {
        self.note(|| "close".to_owned());
        self.drain();
        let life = self.life.take().expect("a life was begun");
        let has_failed = self.has_failed || life.pool.check_writable().is_err();
        let mut done = Vec::new();
        let commits_left = self.world.random.random_range(1..8);
        let commits_left = self.world.random.random_bool(0.1).then_some(commits_left);
        let is_closed = self.world.close(life, commits_left, &mut done);
        self.world.store.fill_after(None);
        self.world.clear_faults();
        assert!(done.is_empty(), "a drained engine answers nothing more");
        let is_kill = (has_failed || !is_closed) && !self.has_flush_failed() && self.now.is_multiple_of(3);
        if is_kill {
            self.world.crash(None, End::Kill);
        } else if has_failed || !is_closed {
            self.world.crash(None, End::PowerLoss);
        } else {
            self.models.iter_mut().for_each(Model::killed);
            self.world.crash(None, if self.now.is_multiple_of(2) { End::Kill } else { End::PowerLoss });
        }
        self.settle_after_open(is_kill);
    }

    /// Opens the pool, reads every block that was ever written, and takes what is there as the truth.
    fn settle_after_open(&mut self, is_kill: bool) {
        self.heal_rot();
        let (life, has_lost_power) = self.world.reopen();
        self.note(|| format!("opened: {:?}, lost power {has_lost_power}", life.pool.recovery()));
        if is_kill && !has_lost_power {
            self.models.iter_mut().for_each(Model::killed);
        }
        self.begin_life(life);
        self.repair = None;
        for volume in 0..VOLUME_COUNT {
            let is_all = self.world.random.random_bool(0.1);
            let all = 0..self.sizes[volume] / BLOCK_SIZE_U64;
            let blocks = if is_all { all.collect() } else { self.models[volume].touched() };
            let handle = self.life().handles.remove(volume);
            let contents = self.read_all(&handle, &blocks);
            self.life().handles.insert(volume, handle);
            for (block, content) in contents {
                let content = content.unwrap_or_else(|error| {
                    panic!("block {block} of volume {volume} reads as an error after a crash: {error}")
                });
                let value = content.with_bytes(|bytes| value_of(volume, block, bytes));
                let candidates = self.models[volume].candidate_values(block);
                assert!(
                    candidates.contains(&value),
                    "after a crash block {block} of volume {volume} holds {value:?}, possible are {candidates:?}"
                );
                if self.models[volume].is_touched(block) {
                    self.models[volume].settle(block, value);
                }
            }
        }
        self.settle_snapshots();
        self.rot_again();
    }
}
