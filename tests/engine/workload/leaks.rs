//! Space that leaks, and its repair step by step while everything else goes on.

use super::Workload;
use crate::world::{End, World};
use rand::Rng;
use rok_blk::error::ErrorKind;
use rok_blk::pool::{CheckReport, Difference, DifferenceKind, LeakRepair};
use rok_blk::units::{Address, AddressRun};
use std::collections::BTreeSet;

/// Leaks that there are at most.
const LEAKS_MAX: usize = 8;

/// A repair under way, and what it is about to mend.
pub(super) struct Repair {
    repair: LeakRepair,
    leaks: BTreeSet<Address>,
}

impl Workload {
    /// Leaks a block, looks for what leaked, or repairs a part of what was found.
    pub(super) fn leak_or_repair(&mut self) {
        if self.life().pool.check_writable().is_err() {
            return;
        }
        match self.repair.take() {
            Some(repair) => self.repair_a_part(repair),
            None if self.world.leaked.len() < LEAKS_MAX && self.world.random.random_bool(0.6) => self.leak(),
            None => self.repair = Some(self.find_leaks()),
        }
    }

    fn leak(&mut self) {
        let mut leaked = None;
        let result = self.life().pool.clone().leak_block(&mut |address| leaked = Some(address));
        self.note(|| format!("{leaked:?} leaks: {:?}", result.is_ok()));
        self.world.leaked.extend(leaked);
        if result.is_err() {
            self.failed();
            self.crash(End::PowerLoss);
        }
    }

    fn find_leaks(&mut self) -> Repair {
        let repair = self.life().pool.find_leaks().expect("the store can be read");
        let report = repair.report();
        self.world.assert_only_leaked(report);
        Repair { repair, leaks: self.world.leaked.clone() }
    }

    fn repair_a_part(&mut self, mut repair: Repair) {
        let pool = self.life().pool.clone();
        let before = repair.repair.repaired_count();
        let result = pool.repair_leaks(&mut repair.repair);
        self.world.counts.leaks_repaired += repair.repair.repaired_count() - before;
        match result {
            Ok(true) => self.repair = Some(repair),
            Ok(false) => self.world.leaked.retain(|address| !repair.leaks.contains(address)),
            Err(error) if error.kind() == ErrorKind::NoSpace => self.repair = Some(repair),
            Err(_) => {
                self.failed();
                self.crash(End::PowerLoss);
            }
        }
    }

    /// Nothing leaks behind it.
    pub(super) fn repair_everything(&mut self) {
        let Repair { mut repair, .. } = self.find_leaks();
        let pool = self.life().pool.clone();
        while pool.repair_leaks(&mut repair).expect("nothing is injected any more") {}
        self.world.counts.leaks_repaired += repair.repaired_count();
        self.world.leaked.clear();
        assert!(repair.is_whole(), "there is nothing but leaks: {:#?}", repair.report());
        assert!(pool.check().expect("the store can be read").is_clean(), "what leaked was repaired");
    }
}

impl World {
    /// Panics if a check found anything but what was leaked on purpose.
    pub fn assert_only_leaked(&self, report: &CheckReport) {
        let is_leaked = |run: AddressRun| (0..run.count).all(|step| self.leaked.contains(&run.start.plus(step)));
        let is_expected = |difference: &Difference| {
            difference.kind == DifferenceKind::Leaked && difference.blocks.is_some_and(is_leaked)
        };
        assert!(report.differences.iter().all(is_expected), "the check found: {report:#?}, leaked: {:?}", self.leaked);
    }
}
