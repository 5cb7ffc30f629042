//! Turns to change the catalog: one change at a time, in the order in which they were asked for.
//!
//! A change is planned under the lock of the catalog, committed without it, and laid over it under the lock again. Only its
//! turn keeps other changes away meanwhile, so nobody who looks at the catalog waits for a commit. Who holds writes back
//! for a change takes its turn first: then no commit of a checkpoint comes between the closing of the gates and its own.
//! Who needs both the catalog and the store as they are at one instant takes no turn; see `instant`.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

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
