//! The thread that does what is due: snapshots of policies are taken, what has expired goes to the trash, what was in the
//! trash long enough goes for good, if the clock says so for an hour.
//!
//! It sleeps until the next time that something is due, and is woken when that may have changed.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::policies::Policies;
use super::reclaim_job::ReclaimJob;
use super::resource::seconds_since_1970;
use super::trash::Trash;
use crate::error::{Error, ErrorKind, Result};

/// Longest sleep while something is to come: the clock may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(3600);
/// Sleep before what is due and was not done is tried again.
const RETRY_PERIOD: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Wishes {
    is_due: bool,
    is_closing: bool,
}

#[derive(Default)]
struct Shared {
    wishes: Mutex<Wishes>,
    changed: Condvar,
}

/// The thread and what it is told. Ends when it is told to.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Starts the thread. It holds `changes` while it changes something.
    ///
    /// # Errors
    /// If the thread does not start.
    pub(super) fn start(
        trash: Trash,
        policies: Arc<Policies>,
        changes: Arc<Mutex<()>>,
        reclaim: Arc<ReclaimJob>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let work = move || own.work(&trash, &policies, &changes, &reclaim);
        let thread = std::thread::Builder::new().name("keeper".to_owned()).spawn(work).map_err(|source| {
            Error::new(ErrorKind::Other, format!("A thread could not be started: {source}")).with_source(source)
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Something may be due at another time than before.
    pub(super) fn look(&self) {
        self.shared.wishes.lock().is_due = true;
        self.shared.changed.notify_one();
    }

    /// Ends the thread; the second call does nothing.
    pub(super) fn stop(&self) {
        self.shared.wishes.lock().is_closing = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the keeper's thread panicked");
        }
    }
}

impl Shared {
    fn work(&self, trash: &Trash, policies: &Policies, changes: &Mutex<()>, reclaim: &Arc<ReclaimJob>) {
        let begun = Instant::now();
        loop {
            let (has_removed, next) = {
                let _one_at_a_time = changes.lock();
                trash.tidy(seconds_since_1970(), begun.elapsed())
            };
            if has_removed && let Err(error) = reclaim.begin("") {
                tracing::warn!(%error, "there is no job that watches space come back");
            }
            // One wait for `changes` each: whoever makes a request need not wait for both.
            let next_snapshot = {
                let _one_at_a_time = changes.lock();
                policies.run_due()
            };
            let now = seconds_since_1970();
            let times = [next.map(|next| sleep_time(next, now)), next_snapshot.map(|next| time_until(next, now))];
            if !self.sleep(times.into_iter().flatten().min()) {
                return;
            }
        }
    }

    /// Sleeps so long at most, or until it is woken; `false` if the thread is to end.
    fn sleep(&self, time_max: Option<Duration>) -> bool {
        let mut wishes = self.wishes.lock();
        while !wishes.is_closing && !wishes.is_due {
            match time_max {
                Some(time) if self.changed.wait_for(&mut wishes, time).timed_out() => break,
                Some(_) => {}
                None => self.changed.wait(&mut wishes),
            }
        }
        wishes.is_due = false;
        !wishes.is_closing
    }
}

/// How long to sleep when the next thing is due at `next`.
fn sleep_time(next: u64, now: u64) -> Duration {
    if next <= now { RETRY_PERIOD } else { Duration::from_secs(next - now).min(SLEEP_MAX) }
}

/// How long to sleep until the next snapshot is due. One that fails is due again later, so there is no pause here.
fn time_until(next: u64, now: u64) -> Duration {
    Duration::from_secs(next.saturating_sub(now)).min(SLEEP_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sleeps_until_the_next_thing_is_due_but_no_longer_than_an_hour() {
        assert_eq!(sleep_time(130, 100), Duration::from_secs(30));
        assert_eq!(sleep_time(1_000_000, 100), SLEEP_MAX);
        assert_eq!(sleep_time(100, 100), RETRY_PERIOD, "it was tried just now");
        assert_eq!(sleep_time(0, 100), RETRY_PERIOD);
        assert_eq!(time_until(101, 100), Duration::from_secs(1));
        assert_eq!(time_until(99, 100), Duration::ZERO, "it became due meanwhile");
        assert_eq!(time_until(u64::MAX, 100), SLEEP_MAX);
    }
}
