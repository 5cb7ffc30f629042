//! Whether a lane was woken and has not looked yet.
//!
//! Invariant: who publishes something and raises this either finds it lowered, and wakes the lane, or was before the lane
//! lowers it, and so before the lane looks.

use crate::atomics::{AtomicBool, Ordering};

/// The flag of one lane.
#[derive(Debug, Default)]
pub(crate) struct Raised(AtomicBool);

impl Raised {
    /// Raises it. Whether it was not before: then the lane is to be woken.
    pub(crate) fn raise(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Lowers it. The lane does that once for each time that it was woken, before it looks at what it was woken for.
    pub(crate) fn lower(&self) {
        // A swap, not a store: it synchronizes with a raise that found it raised and did nothing.
        self.0.swap(false, Ordering::AcqRel);
    }
}
