//! A cleaner that empties stretches in the middle of everything else.

use super::{Pending, Workload};
use rand::Rng;
use rok_blk::error::IoError;
use rok_blk::pool::{AddressGroup, Pass, Stretch, Tried, Urgency};
use rok_blk::units::{BLOCK_SIZE_U64, DeviceIndex, STRETCH_BLOCKS};
use std::sync::Arc;

/// Groups that one operation cleans at most.
const GROUPS_MAX: usize = 4;

impl Workload {
    /// Moves what lives in some groups of a stretch: one that the pool chose, or any.
    pub(super) fn clean(&mut self) {
        while let Some(stretch) = self.closed.pop() {
            self.life().pool.reopen_stretch(stretch);
        }
        let chosen = self.life().pool.close_sparse_stretch(Urgency::Idle, &Tried::new(), &mut Pass::default());
        self.closed.extend(chosen);
        let stretch = match chosen {
            Some(stretch) if self.world.random.random_bool(0.5) => stretch,
            _ => self.any_stretch(),
        };
        self.note(|| format!("cleaning {stretch:?}"));
        let pool = Arc::clone(&self.life().pool);
        let is_used = |group: &AddressGroup| pool.owners_of(*group).is_ok_and(|owners| !owners.is_empty());
        let groups: Vec<AddressGroup> = AddressGroup::of_stretch(stretch).filter(is_used).collect();
        if groups.is_empty() {
            return;
        }
        for _ in 0..self.world.random.random_range(1..=GROUPS_MAX) {
            let group = groups[self.world.random.random_range(0..groups.len())];
            let completion = self.completion(Pending::Clean);
            let lane = self.lane();
            let life = self.life();
            let volumes = Arc::clone(&life.volumes);
            life.lanes[lane].clean(&volumes, group, completion);
        }
    }

    pub(super) fn cleaned(&mut self, result: Result<(), IoError>) {
        match result {
            // The cleaner leaves it at that: nobody asked for what it does.
            Ok(()) | Err(IoError::NoSpace) => {}
            // Any block may be among those that it moves.
            Err(_) => self.failed_at(self.faults_before_life, self.scrubbing.rotten_block()),
        }
    }

    fn any_stretch(&mut self) -> Stretch {
        // Of a device that the pool knows: all but one that is being added.
        let devices = self.life().pool.devices();
        let device = self.world.random.random_range(0..devices.len());
        let blocks = devices[device].size_bytes() / BLOCK_SIZE_U64;
        let index = self.world.random.random_range(0..blocks.div_ceil(STRETCH_BLOCKS));
        Stretch { device: DeviceIndex::new(u8::try_from(device).expect("few devices")), index }
    }
}
