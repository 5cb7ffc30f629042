//! The thread that runs checkpoints: when the pool wants one, and for changes that are a few seconds old.
//!
//! While there are no changes it sleeps without a timeout, unless the reserve of `meta/` is gone.

use super::limits::{CHECKPOINT_PERIOD, CHECKPOINT_RETRY_PERIOD, RESERVE_RETRY_PERIOD};
use crate::error::{ErrorKind, Result};
use crate::pool::{Checkpoint, Pool};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Wishes {
    is_wanted: bool,
    /// When changes are to be stored that nobody asked for.
    due: Option<Instant>,
    is_closing: bool,
    /// How many the thread has begun, and how many of them have ended.
    begun: u64,
    ended: u64,
}

/// What the thread is told.
#[derive(Default)]
pub(super) struct Checkpoints {
    wishes: Mutex<Wishes>,
    changed: Condvar,
    /// One has ended.
    ended: Condvar,
    /// Mirror of `due`, so that a lane need not take the lock in each of its turns.
    has_due: AtomicBool,
    /// A checkpoint that waited for space when its thread had to end. Its changes are frozen: the next one begins only
    /// when it is done.
    unfinished: Mutex<Option<Checkpoint>>,
}

impl Checkpoints {
    /// A checkpoint should run soon.
    pub(super) fn want(&self) {
        self.wishes.lock().is_wanted = true;
        self.changed.notify_one();
    }

    /// Has the thread run one that begins from now on, and waits for its end; whether that came within `time_max`.
    pub(super) fn await_next(&self, time_max: Duration) -> bool {
        let mut wishes = self.wishes.lock();
        let awaited = wishes.begun + 1;
        wishes.is_wanted = true;
        self.changed.notify_one();
        let is_awaited = |wishes: &mut Wishes| wishes.ended < awaited;
        !self.ended.wait_while_for(&mut wishes, is_awaited, time_max).timed_out()
    }

    /// There are changes.
    pub(super) fn note_changes(&self) {
        if self.has_due.swap(true, Ordering::AcqRel) {
            return;
        }
        self.wishes.lock().due = Some(Instant::now() + CHECKPOINT_PERIOD);
        self.changed.notify_one();
    }

    /// Lets the thread end.
    pub(super) fn close(&self) {
        self.wishes.lock().is_closing = true;
        self.changed.notify_one();
    }

    /// What the thread does.
    pub(super) fn work(&self, pool: &Arc<Pool>) {
        while self.wait_until_due(pool) {
            if pool.check_writable().is_ok()
                && let Err(error) = self.run(pool, None)
            {
                tracing::error!(%error, "a checkpoint failed");
            }
            self.wishes.lock().ended += 1;
            self.ended.notify_all();
        }
    }

    /// Stores the changes that there are. While `meta/` lacks space it is tried again, until `time_max` is over or the
    /// thread is to end; the next call goes on where this one stopped.
    pub(super) fn run(&self, pool: &Arc<Pool>, time_max: Option<Duration>) -> Result<()> {
        let begun = Instant::now();
        let unfinished = self.unfinished.lock().take();
        if let Some(checkpoint) = unfinished {
            self.finish(checkpoint, begun, time_max)?;
        }
        self.finish(Checkpoint::begin(Arc::clone(pool)), begun, time_max)
    }

    /// Gives up a checkpoint that waits for space: it holds the pool, which holds this. The log has what it would store.
    pub(super) fn abandon(&self) {
        *self.unfinished.lock() = None;
    }

    fn finish(&self, mut checkpoint: Checkpoint, begun: Instant, time_max: Option<Duration>) -> Result<()> {
        loop {
            let error = match checkpoint.run() {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() != ErrorKind::NoSpace => return Err(error),
                Err(error) => error,
            };
            tracing::warn!(%error, "a checkpoint waits for space");
            let mut wishes = self.wishes.lock();
            let is_over = time_max.map_or(wishes.is_closing, |time_max| begun.elapsed() >= time_max);
            if is_over {
                *self.unfinished.lock() = Some(checkpoint);
                return Err(error);
            }
            // A wake-up before the time is only a wish for the checkpoint that runs.
            self.changed.wait_for(&mut wishes, CHECKPOINT_RETRY_PERIOD);
        }
    }

    /// Whether to run a checkpoint now; if not, the thread ends. While the reserve of `meta/` is gone it tries to take that
    /// back now and then: nobody may write anything that a checkpoint would come for.
    fn wait_until_due(&self, pool: &Pool) -> bool {
        let mut wishes = self.wishes.lock();
        loop {
            let now = Instant::now();
            if wishes.is_closing {
                return false;
            }
            if wishes.is_wanted || wishes.due.is_some_and(|due| due <= now) {
                wishes.is_wanted = false;
                wishes.begun += 1;
                wishes.due = None;
                // Before the cut: changes that come behind it are noted anew.
                self.has_due.store(false, Ordering::Release);
                return true;
            }
            if let Some(due) = wishes.due {
                self.changed.wait_until(&mut wishes, due);
            } else if !pool.is_meta_reserve_gone() {
                self.changed.wait(&mut wishes);
            } else if self.changed.wait_for(&mut wishes, RESERVE_RETRY_PERIOD).timed_out() {
                drop(wishes);
                pool.restore_meta_reserve();
                wishes = self.wishes.lock();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{MasterKey, Suite};
    use crate::disk::SimDevice;
    use crate::meta::MemoryStore;
    use crate::pool::{self, Limits, Parts};
    use crate::units::{BlockIndex, Epoch, Sequence, TreeId};
    use uuid::Uuid;

    fn open_pool(store: &Arc<MemoryStore>) -> Arc<Pool> {
        let parts = Parts {
            id: Uuid::from_u128(1),
            suite: Suite::Plain,
            master: Arc::new(MasterKey::from_bytes([7; 32])),
            devices: vec![(Arc::new(SimDevice::new("sim", 16 << 20)), Uuid::from_u128(2))],
            store: Arc::clone(store) as Arc<dyn crate::meta::MetaStore>,
            reserve: None,
            shred_key: None,
            lane_count: 1,
            has_cleaner: false,
            limits: Limits::default(),
        };
        pool::create(&parts, &mut |bytes| bytes.fill(5)).expect("a new pool");
        pool::open(parts, &mut |bytes| bytes.fill(6)).expect("a new pool opens")
    }

    fn lay_removal(pool: &Pool, sequence: u64) {
        let key = crate::map::ChangeKey { tree: TreeId::new(1), block: BlockIndex::new(0), epoch: Epoch::new(1) };
        let change = crate::map::Change { sequence: Sequence::new(sequence), entry: None };
        pool.changes().lay().lay(key, change);
    }

    #[test]
    fn who_awaits_the_next_checkpoint_has_everything_of_before_stored() {
        let pool = open_pool(&Arc::new(MemoryStore::new()));
        let checkpoints = Checkpoints::default();
        std::thread::scope(|scope| {
            scope.spawn(|| checkpoints.work(&pool));
            let left_after = |sequence| {
                lay_removal(&pool, sequence);
                let is_done = checkpoints.await_next(Duration::from_secs(60));
                (is_done, pool.changes().active_count(), pool.changes().frozen_count())
            };
            let left: Vec<_> = (1000..1010).map(left_after).collect();
            // Before anything is asserted: the thread must end in any case.
            checkpoints.close();
            assert_eq!(left, [(true, 0, 0); 10]);
        });
        assert!(!checkpoints.await_next(Duration::ZERO), "nobody runs one any more");
    }

    #[test]
    fn checkpoint_without_space_goes_on_after_its_thread_has_ended() {
        let store = Arc::new(MemoryStore::new());
        let pool = open_pool(&store);
        let checkpoints = Checkpoints::default();
        let done_before = pool.checkpoints_done();
        lay_removal(&pool, 1000);
        store.fill_after(Some(1));
        checkpoints.close();
        checkpoints.run(&pool, None).expect_err("there is no space, and the thread is to end");
        lay_removal(&pool, 1001);

        let again = checkpoints.run(&pool, Some(Duration::ZERO));
        assert_eq!(again.expect_err("there is no space yet").kind(), ErrorKind::NoSpace);
        store.fill_after(None);
        checkpoints.run(&pool, Some(Duration::ZERO)).expect("there is space");

        assert_eq!(pool.checkpoints_done(), done_before + 2, "the unfinished one, and one for what came behind it");
        assert_eq!((pool.changes().active_count(), pool.changes().frozen_count()), (0, 0));
    }
}
