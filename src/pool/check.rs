//! The check: what the stored leaves map, found anew from all of them, against everything that was counted on the way.
//!
//! It reads one view of the metadata store, so that an open pool goes on meanwhile, and changes nothing (`repair` does). It takes the
//! memory of one bitmap of the devices (two for an open pool), whatever the pool holds. What it does not read is data: that
//! blocks hold what they should is verified by each read of them.

mod block_map;
pub(in crate::pool) mod leaf_group;
mod repair;
mod report;
mod walk;
mod wanted_view;
mod whole;

pub use repair::LeakRepair;
pub use report::{CheckReport, Difference, DifferenceKind, Place};

use crate::crypto::KeyRing;
use crate::error::Result;
use crate::format::bitmap::StretchBits;
use crate::meta::MetaRead;
use crate::pool::loading::{check_age, load_checkpoint, load_domains, load_sessions, open_devices};
use crate::pool::recovery::{Source, replay};
use crate::pool::shred_key::ShredKeys;
use crate::pool::{Catalog, Parts, Pool, Space};
use crate::units::AddressRun;
use block_map::{BlockMap, for_each_run};
use repair::Leaks;
use std::sync::Arc;
use walk::Walk;
use wanted_view::WantedView;

/// Checks a pool that nobody has open. The log is followed as recovery would, and changes nothing either.
///
/// # Errors
/// What keeps the pool from being opened, and a failure of a device or of `meta/`.
pub fn check(parts: &Parts) -> Result<CheckReport> {
    let keys = KeyRing::new(parts.suite, Arc::clone(&parts.master));
    let (devices, headers) = open_devices(parts)?;
    let (last_session, sessions_sequence) = load_sessions(parts, &keys)?;
    let shred_keys = ShredKeys::read(parts.shred_key.clone(), parts.id, Arc::clone(&parts.master))?;
    load_domains(parts, &keys, &shred_keys)?;
    let checkpoint = load_checkpoint(&*parts.store, &keys)?;
    check_age(parts, &headers, &checkpoint, last_session)?;
    let catalog = Catalog::load(&*parts.store, &keys, checkpoint.next_tree)?;
    catalog.check_domains(&keys, shred_keys.is_there())?;
    let block_counts: Vec<u64> = devices.iter().map(|device| device.block_count()).collect();
    let space = Space::new(&block_counts);
    let raw_devices: Vec<_> = parts.devices.iter().map(|(device, _)| Arc::clone(device)).collect();
    let source = Source { pool: parts.id, devices: &raw_devices, keys: &keys, catalog: &catalog, space: &space };
    let recovered = replay(&source, &checkpoint.chains, checkpoint.next_sequence.max(sessions_sequence))?;
    let mut walk = Walk::new(&*parts.store, &keys, &catalog, &block_counts);
    walk.leaves()?;
    walk.whole_trees()?;
    walk.index()?;
    walk.log(&recovered)?;
    walk.bitmap(None)?;
    walk.finish()
}

/// What an open pool has in memory at the moment of the view.
struct InMemory {
    used: Vec<Vec<StretchBits>>,
    used_count: u64,
}

impl Pool {
    /// Checks the pool while it is used. Never on a lane.
    ///
    /// # Errors
    /// The failure of the metadata store.
    pub fn check(&self) -> Result<CheckReport> {
        self.look().map(|(report, _)| report)
    }

    /// As [`Self::check`], as long as `is_wanted` says so.
    ///
    /// # Errors
    /// The failure of the metadata store; any, when it is not wanted any more.
    pub fn check_while(&self, is_wanted: &(dyn Fn() -> bool + Sync)) -> Result<CheckReport> {
        self.look_while(is_wanted).map(|(report, _)| report)
    }

    /// Checks the pool while it is used, and tells what leaked.
    fn look(&self) -> Result<(CheckReport, Leaks)> {
        self.look_while(&|| true)
    }

    fn look_while(&self, is_wanted: &(dyn Fn() -> bool + Sync)) -> Result<(CheckReport, Leaks)> {
        let in_memory = |catalog: &Catalog| {
            let stored = self.stored.lock();
            let memory = InMemory { used: stored.used.clone(), used_count: stored.used_count };
            let free = self.used_but_free(&memory);
            (catalog.clone(), memory, free)
        };
        self.at_one_instant(in_memory, |(trees, memory, free), view| {
            self.check_view(&WantedView { view, is_wanted }, &trees, &memory, &free)
        })
    }

    fn check_view(
        &self,
        view: &dyn MetaRead,
        trees: &Catalog,
        memory: &InMemory,
        free: &BlockMap,
    ) -> Result<(CheckReport, Leaks)> {
        let checkpoint = load_checkpoint(view, &self.keys)?;
        let catalog = Catalog::load(view, &self.keys, checkpoint.next_tree)?;
        let block_counts: Vec<u64> = self.devices.read().iter().map(|device| device.block_count()).collect();
        let mut walk = Walk::new(view, &self.keys, &catalog, &block_counts);
        if !catalog.has_same_records(trees) {
            walk.report.add(Difference::new(DifferenceKind::Memory, "the catalog in memory is not the one in meta/"));
        }
        for_each_run(free, |run| {
            let message = "used blocks are free in memory: they may be given to other writes";
            walk.report.add(Difference::new(DifferenceKind::Memory, message).at(run));
        });
        walk.leaves()?;
        walk.whole_trees()?;
        walk.index()?;
        walk.bitmap(Some(&memory.used))?;
        walk.count("blocks used, as counted in memory", memory.used_count, walk.used_count);
        let leaks = std::mem::take(&mut walk.leaks);
        walk.finish().map(|report| (report, leaks))
    }

    /// Blocks that are free in memory although stored leaves map them.
    fn used_but_free(&self, memory: &InMemory) -> BlockMap {
        let space = self.space.lock();
        let mut free = BlockMap::of(&memory.used);
        free.change_stretches(|device, stretch, used| {
            for (word, allocated) in used.iter_mut().zip(space.allocated_in(device, stretch)) {
                *word &= !allocated;
            }
        });
        free
    }

    /// Compares the free space with what holds blocks, at a quiet point: no checkpoint runs, no request is under way, and
    /// `reserved` is what the lanes' logs have for their next records and data. Each block that is not free must have one
    /// holder.
    #[must_use]
    pub fn check_space(&self, reserved: &[AddressRun]) -> CheckReport {
        let mut report = CheckReport::default();
        let mut held = BlockMap::of(&self.stored.lock().used);
        let mut holders = reserved.to_vec();
        holders.extend(self.space.lock().released_runs());
        for lane in &self.lanes {
            holders.extend(lane.spent.lock().iter().map(|(_, run)| *run));
        }
        holders.extend(self.changes.held_blocks().into_iter().map(|start| AddressRun { start, count: 1 }));
        for address in holders.iter().flat_map(|run| (0..run.count).map(|step| run.start.plus(step))) {
            if !held.mark(address) {
                report.add(Difference::new(DifferenceKind::Memory, format!("{address} has two holders")));
            }
        }
        let space = self.space.lock();
        let mut lost = held.clone();
        lost.change_stretches(|device, stretch, bits| {
            for (word, allocated) in bits.iter_mut().zip(space.allocated_in(device, stretch)) {
                *word = allocated & !*word;
            }
        });
        held.change_stretches(|device, stretch, bits| {
            for (word, allocated) in bits.iter_mut().zip(space.allocated_in(device, stretch)) {
                *word &= !allocated;
            }
        });
        drop(space);
        for (map, what) in [(lost, "not free, and nothing holds them"), (held, "free, and something holds them")] {
            for_each_run(&map, |run| {
                let message = format!("{} blocks from {} on are {what}", run.count, run.start);
                report.add(Difference::new(DifferenceKind::Memory, message).at(run));
            });
        }
        report
    }
}

#[cfg(test)]
mod tests;
