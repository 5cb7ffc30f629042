//! What looks at the map and changes nothing of it, or only where blocks are.

use super::{Done, Pending, Stage};
use rok_blk::error::Result;
use rok_blk::pool::{AddressGroup, Effort, Removals, Scrub, ScrubWish, Stretch};
use rok_blk::units::{BLOCK_SIZE_U64, DeviceIndex, STRETCH_BLOCKS};
use rok_blk::volume::{DiffSide, ScrubResult, StatusWanted, diff};
use std::sync::Arc;

impl Stage {
    /// Loads leaves, then tells what is mapped, and what differs from another volume or version.
    pub fn list_status(&mut self, name: &str, other: &str) -> Done {
        self.settle()?;
        let (open, base) = (self.life().volumes.open_reference(name)?, self.life().volumes.open_reference(other)?);
        let range = (0, open.volume().size_bytes());
        let cached = self.completion(Pending::Other);
        self.life().lanes[0].cache(open.volume(), range, cached);
        self.settle()?;
        let told = self.completion(Pending::Other);
        let wanted = StatusWanted {
            mapped: Some(Default::default()),
            changed: vec![(Arc::clone(base.volume()), Default::default())],
        };
        self.life().lanes[0].list_status(open.volume(), range, wanted, told);
        self.settle()
    }

    /// Compares two of them off the lanes.
    pub fn compare(&mut self, from: &str, to: &str) -> Done {
        self.settle()?;
        let volumes = &self.life().volumes;
        let (from, to) = (volumes.open_reference(from)?, volumes.open_reference(to)?);
        let sides = (DiffSide::from(&**from.volume()), DiffSide::from(&**to.volume()));
        let (mut next, end) = (0, to.volume().size_bytes());
        while next < end {
            next = diff(&self.life().pool, sides, next..end, 1)?.end_bytes;
        }
        Ok(())
    }

    /// Tells what a removal would free.
    pub fn forecast(&mut self, name: &str) -> Done {
        self.settle()?;
        let id = self.life().volumes.find(name)?.id;
        let pool = &self.life().pool;
        let goes_on = || false;
        pool.would_free(&Removals::of_volume(id), &mut Effort::whatever_it_takes(&goes_on))?;
        pool.most_freeing(1, &|_| true, &mut Effort::whatever_it_takes(&goes_on))?;
        Ok(())
    }

    /// Moves what lives on the first device.
    pub fn clean(&mut self) -> Done {
        self.settle()?;
        let pool = Arc::clone(&self.life().pool);
        let stretches = (self.rig.devices[0].1 / BLOCK_SIZE_U64).div_ceil(STRETCH_BLOCKS);
        let stretches = (0..stretches).map(|index| Stretch { device: DeviceIndex::new(0), index });
        let groups: Vec<AddressGroup> = stretches.flat_map(AddressGroup::of_stretch).collect();
        let owned: Result<Vec<bool>> =
            groups.iter().map(|group| pool.owners_of(*group).map(|owners| !owners.is_empty())).collect();
        for (group, _) in groups.into_iter().zip(owned?).filter(|(_, is_owned)| *is_owned) {
            let completion = self.completion(Pending::Other);
            let life = self.life();
            life.lanes[0].clean(&life.volumes, group, completion);
            self.settle()?;
        }
        Ok(())
    }

    /// A block leaks, is found, and repaired.
    pub fn repair_a_leak(&mut self) -> Done {
        self.settle()?;
        self.life().pool.leak_block(&mut |_| {})?;
        self.repair_leaks()
    }

    /// Repairs what leaked.
    pub fn repair_leaks(&mut self) -> Done {
        let pool = &self.life().pool;
        let mut repair = pool.find_leaks()?;
        while pool.repair_leaks(&mut repair)? {}
        Ok(())
    }

    /// Reads everything, as a scrub does, a few blocks at a time, and stores how far it is.
    pub fn scrub(&mut self) -> Done {
        self.settle()?;
        let mut scrub = Scrub::load(Arc::clone(&self.life().pool))?;
        scrub.begin(1, 1 << 20);
        while let Some(from) = scrub.record().place {
            let result = ScrubResult::default();
            let completion = self.completion(Pending::Other);
            let wish = ScrubWish { from, blocks_max: 4, is_brief: false };
            self.life().lanes[0].scrub(wish, &result, completion);
            self.settle()?;
            let step = std::mem::take(&mut *result.lock());
            scrub.take(step, 1);
            scrub.store()?;
        }
        self.life().pool.scrub_shred_key()?;
        let damages = &scrub.record().damages;
        assert!(damages.is_empty() || self.rig.tap.failed_count() > 0, "nothing is damaged: {damages:?}");
        Ok(())
    }

    /// Checks the pool while it is open.
    pub fn check_open(&mut self) -> Done {
        self.settle()?;
        let report = self.life().pool.check()?;
        // A repair that was refused leaves what leaked.
        assert!(report.is_clean() || report.has_only_leaks(), "{report:#?}");
        Ok(())
    }

    /// Sets sizes and texts of a volume, which are changes of the catalog.
    pub fn resize(&mut self, name: &str, block_count: u64) -> Done {
        self.settle()?;
        self.life().volumes.set_size(name, block_count * BLOCK_SIZE_U64)?;
        self.oracle.lock().heads.get_mut(name).expect("it is known").block_count = block_count;
        Ok(())
    }
}
