//! Turns to change the catalog: one change at a time, in the order in which they were asked for.
//!
//! A change is planned under the lock of the catalog, committed without it, and laid over it under the lock again. Only its
//! turn keeps other changes away meanwhile, so nobody who looks at the catalog waits for a commit. Who holds writes back
//! for a change takes its turn first: then no commit of a checkpoint comes between the closing of the gates and its own.
//! Who needs both the catalog and the store as they are at one instant takes no turn; see `instant`.

use crate::error::{Error, ErrorKind};
use crate::meta::{Durability, MetaError, MetaOp, MetaStore as _};
use crate::pool::{Catalog, CatalogStore, Change, Pool};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Who is next. Asked for before every lock of the pool and of its volumes.
#[derive(Default)]
pub(super) struct Turns {
    numbers: Mutex<Numbers>,
    ended: Condvar,
}

#[derive(Default)]
struct Numbers {
    /// How many turns were asked for.
    asked: u64,
    /// How many of them are over.
    ended: u64,
}

/// The right to change the catalog, until it is dropped.
pub struct Turn {
    turns: Arc<Turns>,
}

impl Turns {
    /// Waits for its turn. Never on a lane, and never by who has one.
    pub(super) fn take(self: &Arc<Self>) -> Turn {
        let mut numbers = self.numbers.lock();
        let number = numbers.asked;
        numbers.asked += 1;
        while numbers.ended < number {
            self.ended.wait(&mut numbers);
        }
        Turn { turns: Arc::clone(self) }
    }

    /// Whether somebody has a turn.
    pub(super) fn is_taken(&self) -> bool {
        let numbers = self.numbers.lock();
        numbers.ended < numbers.asked
    }
}

impl Turn {
    pub(super) fn is_of(&self, turns: &Arc<Turns>) -> bool {
        Arc::ptr_eq(&self.turns, turns)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.numbers.lock().ended += 1;
        self.turns.ended.notify_all();
    }
}

impl Pool {
    /// Runs `look` on the catalog. Short: lanes wait for it when they open a volume.
    pub fn with_catalog<R>(&self, look: impl FnOnce(&mut Catalog, CatalogStore<'_>) -> R) -> R {
        look(&mut self.catalog.lock(), CatalogStore { store: &*self.store, keys: &self.keys })
    }

    /// How many trees became whole since the pool was opened, of which no parents need be searched any more.
    #[must_use]
    pub fn whole_count(&self) -> u64 {
        self.whole_count.load(Ordering::Acquire)
    }

    /// Waits for a turn to change the catalog. Never on a lane, and never by who has one.
    #[must_use]
    pub fn take_turn(&self) -> Turn {
        self.turns.take()
    }

    /// Whether somebody has a turn, for which a checkpoint would wait.
    #[must_use]
    pub fn is_turn_taken(&self) -> bool {
        self.turns.is_taken()
    }

    /// Makes the change of the catalog that `plan` plans, in a turn of its own. Never on a lane.
    ///
    /// # Errors
    /// As [`Self::change_catalog_in`].
    pub fn change_catalog<R>(
        &self,
        plan: impl FnOnce(&Catalog, CatalogStore<'_>) -> Result<Change<R>, Error>,
    ) -> Result<R, Error> {
        self.change_catalog_in(&self.take_turn(), plan)
    }

    /// Makes the change of the catalog that `plan` plans. If the store fails, the next open may find the change or not: a
    /// removed volume would take with it what was acknowledged since, so nothing is acknowledged any more. Nor is another change
    /// made, which might build on what is not there. Never on a lane.
    ///
    /// # Errors
    /// Those of `plan`, and the store's. All but refusals and a lack of space stop the pool, before anybody has another turn.
    /// [`ErrorKind::Other`] if the pool has failed.
    pub fn change_catalog_in<R>(
        &self,
        turn: &Turn,
        plan: impl FnOnce(&Catalog, CatalogStore<'_>) -> Result<Change<R>, Error>,
    ) -> Result<R, Error> {
        assert!(turn.is_of(&self.turns), "the turn is of the same pool");
        let at = CatalogStore { store: &*self.store, keys: &self.keys };
        let planned = plan(&self.catalog.lock(), at);
        if planned.is_ok() {
            self.check_healthy()?;
        }
        let _until_the_catalog_has_it = self.commits.lock();
        let committed = planned.and_then(|change| change.commit(at));
        if let Err(error) = &committed
            && !is_refusal(error.kind())
        {
            self.fail(error.to_string());
        }
        Ok(self.catalog.lock().take(committed?, &self.keys))
    }

    /// Stores what is no part of the catalog, in a turn of its own: it would be in the way of who holds writes back. Never on
    /// a lane, and never by who has a turn.
    ///
    /// # Errors
    /// The store's failure.
    pub fn commit_beside(&self, batch: &[MetaOp]) -> Result<(), MetaError> {
        let _turn = self.take_turn();
        self.store.commit(batch, Durability::Synced)
    }
}

/// Whether nothing was changed, for sure.
const fn is_refusal(kind: ErrorKind) -> bool {
    use ErrorKind::{Busy, Exists, NoSpace, NotFound, Usage};
    matches!(kind, NotFound | Exists | Usage | Busy | NoSpace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_one_at_a_time_in_the_order_in_which_they_were_asked_for() {
        let turns = Arc::<Turns>::default();
        let order = Mutex::new(Vec::new());
        let first = turns.take();
        std::thread::scope(|scope| {
            for number in 0..3_u64 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take();
                    order.lock().push(number);
                });
                // The next one asks only once this one has.
                while turns.numbers.lock().asked < number + 2 {
                    std::thread::yield_now();
                }
            }
            assert!(turns.is_taken() && order.lock().is_empty());
            drop(first);
        });
        assert_eq!(*order.lock(), [0, 1, 2]);
        assert!(!turns.is_taken());
    }
}
