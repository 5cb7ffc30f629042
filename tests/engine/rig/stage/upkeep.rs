//! What a pool does to itself: checkpoints, and closing.

use super::super::Answers;
use super::{Done, Refusal, Stage};
use rok_blk::error::ErrorKind;
use rok_blk::pool::{Checkpoint, Progress};
use std::sync::Arc;

/// Steps of a checkpoint: far above what one takes here.
const STEPS_MAX: usize = 2_000;

impl Stage {
    /// Stores everything, while what is under way goes on.
    pub fn checkpoint(&mut self) -> Done {
        let begin = self.oracle.lock().tick();
        let mut checkpoint = Checkpoint::begin(Arc::clone(&self.life().pool));
        let mut result = Ok(());
        for _ in 0..STEPS_MAX {
            let step = match checkpoint.step() {
                // The same step comes again once there is space.
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    result = result.and(Err(error.into()));
                    continue;
                }
                step => step?,
            };
            match step {
                Progress::Done => {
                    self.oracle.lock().flushed(begin);
                    return result;
                }
                Progress::Working => {}
                Progress::Waiting => {
                    let mut answers = Answers::new();
                    let life = self.life.as_ref().expect("the pool is open");
                    let goes_on = life.progress_or_turn(&mut answers, &mut self.random);
                    result = result.and(self.take(answers));
                    if !goes_on {
                        return Err(Refusal::Dead);
                    }
                }
            }
            result = result.and(self.progress(1));
        }
        panic!("a checkpoint does not end");
    }

    /// Checkpoints until everything is gone that lives no more.
    pub fn reclaim(&mut self) -> Done {
        self.settle()?;
        for _ in 0..STEPS_MAX {
            self.checkpoint()?;
            if !self.life().pool.is_reclaiming() {
                return Ok(());
            }
        }
        panic!("something lives no more and is not reclaimed");
    }

    /// Checkpoints until a version that lives no more is merged in part; or what is to go is gone, where a removal was refused.
    pub fn begin_a_merge(&mut self) -> Done {
        self.settle()?;
        for _ in 0..STEPS_MAX {
            self.checkpoint()?;
            let pool = &self.life().pool;
            if pool.with_catalog(|catalog, _| catalog.merging().next().is_some()) || !pool.is_reclaiming() {
                return Ok(());
            }
        }
        panic!("nothing is merged, and something lives no more");
    }

    /// Checks a pool that nobody has open.
    pub fn check_closed(&mut self) -> Done {
        let report = self.rig.check(&self.rig.tap)?;
        assert!(report.is_clean() || report.has_only_leaks(), "{report:#?}");
        Ok(())
    }

    /// Everything is answered and stored, and the life ends.
    pub fn close(&mut self) -> Done {
        let closed = self.settle().and_then(|()| self.checkpoint());
        // Blocks that leaked and were repaired are free only in the next life.
        let closed = closed.and_then(|()| self.check_open());
        self.end_life();
        self.is_closed = closed.is_ok();
        closed
    }
}
