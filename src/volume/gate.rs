//! The gate of a volume: blocks of it enter a batch only while it is open, and a snapshot waits until none is under way.
//!
//! Lanes enter and leave without a lock. Who closes the gate waits for the last to leave.

use crate::pool::Exits;
use crate::units::Epoch;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Nothing enters for now.
const CLOSED: u64 = 1 << 62;
/// Nothing enters any more.
const RETIRED: u64 = 1 << 63;

/// Why nothing enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shut {
    /// Until a snapshot is made.
    Closed,
    /// The head that it led to is nobody's any more.
    Retired,
}

/// A gate, and the epoch that those who enter write.
pub struct Gate {
    /// How many are inside, and flags.
    state: AtomicU64,
    epoch: AtomicU64,
    /// How many were refused and have not tried again since it opened.
    held_back: AtomicU64,
    /// Where it is told that the last one left, or tried again.
    exits: Arc<Exits>,
}

impl Gate {
    pub(super) const fn new(epoch: Epoch, exits: Arc<Exits>) -> Self {
        Self { state: AtomicU64::new(0), epoch: AtomicU64::new(epoch.get()), held_back: AtomicU64::new(0), exits }
    }

    /// The epoch to write, for who is to [`Self::leave`] once what it writes is laid over the map or abandoned.
    pub(super) fn enter(&self) -> Result<Epoch, Shut> {
        // Nobody counts as inside who is refused: who closed it and saw it empty relies on that.
        let one_more = |state| (state & (CLOSED | RETIRED) == 0).then_some(state + 1);
        match self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) {
            Ok(_) => Ok(Epoch::new(self.epoch.load(Ordering::Acquire))),
            Err(state) if state & RETIRED == 0 => Err(Shut::Closed),
            Err(_) => Err(Shut::Retired),
        }
    }

    pub(super) fn leave(&self) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & (CLOSED | RETIRED) != 0 && inside(before) == 1 {
            self.exits.tell();
        }
    }

    /// Somebody was refused, and tries again once it is open.
    pub(super) fn hold_back(&self) {
        self.held_back.fetch_add(1, Ordering::AcqRel);
    }

    /// That one has tried, or is given up.
    pub(super) fn has_tried_again(&self) {
        if self.held_back.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.exits.tell();
        }
    }

    /// Waits until those that the last closing held back have tried again, or the pool has failed: who closes it again and
    /// again would keep them out for ever. Never on a lane.
    ///
    /// It ends if nobody closes the gate meanwhile, for which the caller's turn sees: lanes are woken when it opens, and each
    /// tries everybody again at its next turn. One that ends drops them, unless its ring has failed, and with it the pool.
    ///
    /// # Panics
    /// If the gate is closed.
    pub(super) fn await_held_back(&self) {
        assert!(!self.is_closed(), "who is held back is let in while it is open");
        self.exits.wait_until(|| self.held_back.load(Ordering::Acquire) == 0);
    }

    /// Whether nothing enters for now.
    pub(super) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Closes the gate; `false` if somebody else has.
    pub(super) fn close(&self) -> bool {
        self.state.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0
    }

    /// Changes the epoch to write. Only who closed the gate may.
    pub(super) fn begin_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.get(), Ordering::Release);
    }

    /// Opens the gate. Only who closed it may.
    pub(super) fn open(&self) {
        self.state.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// Shuts the gate for good.
    pub(super) fn retire(&self) {
        self.state.fetch_or(RETIRED, Ordering::AcqRel);
    }

    /// Whether nothing enters any more.
    pub(super) fn is_retired(&self) -> bool {
        self.state.load(Ordering::Acquire) & RETIRED != 0
    }

    /// Whether nobody is inside. Of use only while it is closed.
    pub(super) fn is_empty(&self) -> bool {
        inside(self.state.load(Ordering::Acquire)) == 0
    }

    /// Waits until nobody is inside, or the pool has failed: then not everybody leaves, since a lane may be gone whose ring
    /// has failed. Never on a lane.
    pub(super) fn await_empty(&self) {
        self.exits.wait_until(|| self.is_empty());
    }
}

const fn inside(state: u64) -> u64 {
    state & (CLOSED - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_is_empty_once_the_last_one_left_and_opens_with_the_next_epoch() {
        let gate = Gate::new(Epoch::new(3), Arc::default());
        assert_eq!(gate.enter(), Ok(Epoch::new(3)));

        assert!(gate.close());
        assert!(!gate.close(), "by one at a time");
        assert_eq!(gate.enter(), Err(Shut::Closed));
        assert!(!gate.is_empty());
        gate.leave();
        assert!(gate.is_empty());

        gate.begin_epoch(Epoch::new(4));
        gate.open();
        assert_eq!(gate.enter(), Ok(Epoch::new(4)));
    }

    #[test]
    fn a_retired_gate_never_opens_again() {
        let gate = Gate::new(Epoch::new(1), Arc::default());
        gate.retire();
        gate.open();
        assert_eq!(gate.enter(), Err(Shut::Retired));
        assert!(gate.is_empty());
    }

    #[test]
    fn a_closed_gate_that_was_empty_stays_so_whoever_knocks() {
        let gate = Gate::new(Epoch::new(1), Arc::default());
        std::thread::scope(|scope| {
            let lane = || {
                for _ in 0..100_000 {
                    if gate.enter().is_ok() {
                        gate.leave();
                    }
                }
            };
            let lanes = [scope.spawn(lane), scope.spawn(lane)];
            while !lanes.iter().all(|lane| lane.is_finished()) {
                assert!(gate.close());
                gate.await_empty();
                assert!((0..100).all(|_| gate.is_empty()));
                gate.open();
            }
        });
    }

    #[test]
    fn those_who_were_held_back_come_in_before_it_is_closed_again() {
        let gate = Gate::new(Epoch::new(1), Arc::default());
        assert!(gate.close());
        assert_eq!(gate.enter(), Err(Shut::Closed));
        gate.hold_back();
        gate.open();
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| {
                gate.await_held_back();
                gate.is_empty()
            });
            assert!(gate.enter().is_ok());
            gate.has_tried_again();
            assert!(!closer.join().expect("it ends"), "who was held back is inside");
        });
        gate.leave();
        gate.await_held_back();
    }

    #[test]
    fn who_waits_is_told_of_a_failure_behind_which_nobody_leaves() {
        let exits = Arc::<Exits>::default();
        let [closed, open] = [(); 2].map(|()| Gate::new(Epoch::new(1), Arc::clone(&exits)));
        assert!(closed.enter().is_ok());
        assert!(closed.close());
        open.hold_back();
        std::thread::scope(|scope| {
            let waiting = [scope.spawn(|| closed.await_empty()), scope.spawn(|| open.await_held_back())];
            exits.fail();
            waiting.into_iter().for_each(|waiting| waiting.join().expect("it wakes"));
        });
        assert!(!closed.is_empty());
    }

    #[test]
    fn who_waits_is_told_when_the_last_one_leaves() {
        let gate = Gate::new(Epoch::new(1), Arc::default());
        assert!(gate.enter().is_ok());
        assert!(gate.close());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.await_empty());
            gate.leave();
            waiting.join().expect("it wakes");
        });
        assert!(gate.is_empty());
    }
}
