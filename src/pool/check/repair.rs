//! The repair of leaked space: blocks that the stored bitmap counts as used, and no stored leaf maps.
//!
//! Nothing else is ever repaired, and nothing at all if the check finds anything else: what an unreadable or a missing leaf
//! maps looks leaked too, and is the only copy of somebody's data.
//!
//! The repair goes on one view of the store, while the pool is used. It is right because such a block can only stay what it
//! is: it is not free, so that no lane is given it, and no write can map it; a step clears nothing but bits that the view had
//! set and that are set still. Each step is one synced commit of the bitmap with nothing else in it, so that a crash leaves
//! leaks or none.

use super::CheckReport;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::StretchBits;
use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use crate::pool::catalog::Edit;
use crate::pool::used::BitChanges;
use crate::units::{Address, DeviceIndex, STRETCH_BLOCKS, to_u64, to_usize};
use std::collections::BTreeMap;

/// Stretches whose bits one synced commit changes: 32 KiB.
const STRETCHES_PER_COMMIT: usize = 64;

/// Leaked blocks, by device and stretch.
pub(super) type Leaks = BTreeMap<(DeviceIndex, u64), StretchBits>;

/// A repair under way.
pub struct LeakRepair {
    report: CheckReport,
    left: Leaks,
    repaired_count: u64,
    freed_count: u64,
}

impl LeakRepair {
    pub(super) fn new(report: CheckReport, leaks: Leaks) -> Self {
        let left = if report.has_only_leaks() { leaks } else { Leaks::new() };
        Self { report, left, repaired_count: 0, freed_count: 0 }
    }

    /// With nothing to do, whatever the check found.
    #[cfg(feature = "rocksdb")]
    pub(in crate::pool) const fn none(report: CheckReport) -> Self {
        Self { report, left: Leaks::new(), repaired_count: 0, freed_count: 0 }
    }

    /// What the check found, before anything was repaired.
    #[must_use]
    pub const fn report(&self) -> &CheckReport {
        &self.report
    }

    /// Whether all that was found is repaired.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.report.is_clean() || self.report.has_only_leaks() && self.left.is_empty()
    }

    /// Blocks that no longer count as used.
    #[must_use]
    pub const fn repaired_count(&self) -> u64 {
        self.repaired_count
    }

    /// Of these, those that writes may take at once; the others when the pool is opened next.
    #[must_use]
    pub const fn freed_count(&self) -> u64 {
        self.freed_count
    }
}

impl Pool {
    /// Checks the pool while it is used, and remembers what leaked. Never on a lane.
    ///
    /// # Errors
    /// The failure of the metadata store.
    pub fn find_leaks(&self) -> Result<LeakRepair> {
        let (report, leaks) = self.look()?;
        Ok(LeakRepair::new(report, leaks))
    }

    /// Repairs a bounded part of what was found; `false` if nothing is left. Never on a lane.
    ///
    /// Who holds blocks that are not used, no longer free and not mapped is known to the lanes only. So a block becomes
    /// free at once only where nothing was taken from its stretch since the pool was opened: then nobody can hold it. Else it
    /// is free when the pool is opened next, which counts anew.
    ///
    /// # Errors
    /// The failure of the metadata store, or of the pool before. But for a lack of space in `meta/` the pool has failed.
    pub fn repair_leaks(&self, repair: &mut LeakRepair) -> Result<bool> {
        if self.check_writable().is_err() {
            return Err(Error::new(ErrorKind::Other, "The pool has failed: nothing is repaired any more")
                .with_hint("`rok-blk status` says why; restart the daemon once the device is repaired"));
        }
        let later = repair.left.keys().nth(STRETCHES_PER_COMMIT).copied();
        let later = later.map(|first| repair.left.split_off(&first)).unwrap_or_default();
        let step = std::mem::replace(&mut repair.left, later);
        if step.is_empty() {
            return Ok(false);
        }
        // No checkpoint stores anything until the step is done.
        let turn = self.take_turn();
        let clear = self.still_leaked(&step);
        let bits = BitChanges { set: Vec::new(), clear };
        let nothing_else = (Vec::new(), Edit::default());
        if let Err(error) = self.commit_with_bits(&turn, nothing_else, &bits, "Repairing leaked space") {
            repair.left.extend(step);
            if error.kind() != ErrorKind::NoSpace {
                self.fail(error.to_string());
            }
            return Err(error);
        }
        repair.repaired_count += to_u64(bits.clear.len());
        let mut space = self.space.lock();
        for address in bits.clear {
            if space.is_allocated(address) && !space.was_taken_from(address) {
                space.free(address);
                repair.freed_count += 1;
            }
        }
        drop(space);
        drop(turn);
        self.tell_space();
        Ok(!repair.left.is_empty())
    }

    /// Of the blocks of a step those whose bits are set.
    fn still_leaked(&self, step: &Leaks) -> Vec<Address> {
        let stored = self.stored.lock();
        let mut blocks = Vec::new();
        for ((device, stretch), leaked) in step {
            let used = &stored.used[device.as_usize()][to_usize(*stretch)];
            for (index, (used, leaked)) in (0..).zip(used.iter().zip(leaked)) {
                let leaked = if is_planted(Bug::RepairTakesAllUsed) && *leaked != 0 { u64::MAX } else { *leaked };
                let first = stretch * STRETCH_BLOCKS + index * 64;
                let bits = (0..64).filter(|bit| (used & leaked) >> bit & 1 == 1);
                blocks.extend(bits.map(|bit| Address::new(*device, first + bit)));
            }
        }
        blocks
    }

    /// Makes a leak, for a simulation that repairs it: a block counts as used from now on, and nothing maps it. `note` is told which, before
    /// that is stored; there may be no space for it.
    ///
    /// # Errors
    /// The failure of the metadata store: the block may be leaked or not.
    #[cfg(any(test, feature = "planted-bugs"))]
    pub fn leak_block(&self, note: &mut dyn FnMut(Address)) -> Result<()> {
        let window = self.space.lock().reserve(1, self.reserve_blocks());
        let Some(run) = window.first() else { return Ok(()) };
        note(run.start);
        let bits = BitChanges { set: vec![run.start], clear: Vec::new() };
        let nothing_else = (Vec::new(), Edit::default());
        match self.commit_with_bits(&self.take_turn(), nothing_else, &bits, "Leaking a block") {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                self.space.lock().free(run.start);
                Ok(())
            }
            Err(error) => {
                self.fail(error.to_string());
                Err(error)
            }
        }
    }
}
