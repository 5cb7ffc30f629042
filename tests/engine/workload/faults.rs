//! What goes wrong in a seed's life: failing operations, and a metadata store that is full for a while.

use super::Workload;
use rand::Rng;
use rok_blk::disk::OpKind;

/// Commits that a checkpoint of a seed's few leaves has, about: space runs out at any of them.
const COMMITS_MAX: u64 = 12;

impl Workload {
    /// One of the next operations fails.
    pub(super) fn inject(&mut self) {
        let nth = self.world.random.random_range(1..10);
        match self.world.random.random_range(0..5) {
            0 => self.world.any_file().fail_nth(OpKind::Write, nth),
            1 => self.world.any_file().fail_nth(OpKind::Flush, nth),
            2 => {
                self.world.counts.meta_failures += 1;
                self.world.store.fail_commit_after(Some(nth));
            }
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
