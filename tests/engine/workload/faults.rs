//! What goes wrong in a seed's life: failing operations, and a metadata store that is full for a while.

use super::Workload;
use rand::Rng;
use rok_blk::disk::OpKind;

/// Commits that a checkpoint of a seed's few leaves has, about: space runs out at any of them.
const COMMITS_MAX: u64 = 12;

impl Workload {
    /// Operations that have failed so far because they were to.
    pub(super) fn faults_met(&self) -> u64 {
        self.world.device_counters().injected_errors + self.world.store.failed_commit_count()
    }

    /// An error other than "no space": something must have failed in this life.
    pub(super) fn failed(&mut self) {
        self.failed_at(self.faults_before_life, []);
    }

    /// The same for what reads blocks: something must have failed since there were so many faults, or one of the blocks rots.
    pub(super) fn failed_at(&mut self, faults_before: u64, blocks: impl IntoIterator<Item = u64>) {
        let rotten = self.scrubbing.rotten_block();
        let is_hit = rotten.is_some_and(|rotten| blocks.into_iter().any(|block| block == rotten));
        let is_explained = is_hit || self.faults_met() > faults_before;
        assert!(is_explained, "a request failed although no error was injected");
        self.has_failed |= self.life().pool.check_writable().is_err();
    }

    /// One of the next operations fails.
    pub(super) fn inject(&mut self) {
        let nth = self.world.random.random_range(1..10);
        match self.world.random.random_range(0..5) {
            0 => self.world.any_file().fail_nth(OpKind::Write, nth),
            1 => self.world.any_file().fail_nth(OpKind::Flush, nth),
            2 => self.world.store.fail_commit_after(Some(nth)),
            _ => self.world.any_file().fail_nth(OpKind::Read, nth),
        }
    }

    /// The metadata store has no space from one of the next commits on, or has space again.
    pub(super) fn fill_or_empty_meta(&mut self) {
        let nth = self.world.random.random_range(1..=COMMITS_MAX);
        let count = self.world.random.random_bool(0.6).then_some(nth);
        self.note(|| format!("meta/ is full after commits: {count:?}"));
        self.world.store.fill_after(count);
    }
}
