//! Snapshots, clones and rollback of the volumes of a pool.
//!
//! Each is one commit of the catalog, made while the writes of the volumes are held back. See `freeze`.

use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::VolumeRecord;
use crate::format::snapshot::SnapshotRecord;
use crate::pool::{Catalog, CatalogStore, NewClone, NewSnapshot, SnapshotId};
use crate::units::Epoch;
use crate::volume::freeze::Frozen;
use crate::volume::registry::busy;
use crate::volume::{Volume, Volumes};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

impl Volumes {
    /// Makes snapshots of several volumes at one instant, all or none; returns them in the order of `new`. Never on a lane.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`] for a tag, [`ErrorKind::Usage`] for texts that are too long,
    /// [`ErrorKind::Busy`] while another snapshot of a volume is made; the failure of the pool.
    pub fn snapshot(&self, new: Vec<NewSnapshot>) -> Result<Vec<SnapshotRecord>> {
        let ids: Vec<Uuid> = new.iter().map(|new| new.volume).collect();
        let turn = self.pool.take_turn();
        self.await_held_back(&ids);
        let frozen = self.freeze_in(turn, &ids)?;
        frozen.wait(true)?;
        self.snapshot_frozen(&frozen, new)
    }

    /// Waits until what the last snapshot held back is let in: snapshots in a row would hold it back for all of them. Only
    /// in a turn: then nobody holds anything back meanwhile.
    fn await_held_back(&self, ids: &[Uuid]) {
        let open = self.open.lock();
        let volumes: Vec<Arc<Volume>> = ids.iter().filter_map(|id| open.get(id).map(Arc::clone)).collect();
        drop(open);
        volumes.iter().for_each(|volume| volume.gate.await_held_back());
    }

    /// As [`Self::snapshot`], once [`Frozen::flush`] has flushed.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    ///
    /// # Panics
    /// If a write of the volumes is under way.
    pub fn snapshot_frozen(&self, frozen: &Frozen, new: Vec<NewSnapshot>) -> Result<Vec<SnapshotRecord>> {
        assert!(frozen.is_empty(), "no write of a volume is under way when its epoch ends");
        let end = self.pool.end_of_writes();
        let records = self.pool.change_catalog_in(frozen.turn(), |catalog, at| catalog.add_snapshots(at, new, end))?;
        for record in &records {
            let (_, epoch) = record.point;
            for volume in frozen.volumes().iter().filter(|volume| volume.id() == record.volume) {
                volume.gate.begin_epoch(Epoch::new(epoch.get() + 1));
            }
        }
        Ok(records)
    }

    /// Removes snapshots, all or none; their space comes back with the next checkpoints.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or [`ErrorKind::Busy`] while one is open.
    pub fn remove_snapshots(&self, ids: &[SnapshotId]) -> Result<()> {
        let turn = self.pool.take_turn();
        let mut open = self.open_snapshots.lock();
        for id in ids {
            let users = open.get(id).map_or(0, |snapshot| snapshot.users.load(Ordering::Acquire));
            if users > 0 {
                let name = self.pool.with_catalog(|catalog, _| catalog.volume(id.0).map(|volume| volume.name.clone()));
                return Err(busy(&format!("{}@{}", name.unwrap_or_default(), id.1), users));
            }
        }
        self.pool.change_catalog_in(&turn, |catalog, at| catalog.remove_snapshots(at, ids))?;
        ids.iter().for_each(|id| drop(open.remove(id)));
        drop(open);
        self.pool.want_checkpoint();
        Ok(())
    }

    /// Makes volumes that start as a snapshot, all or none.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`] or [`ErrorKind::Usage`] for a name; the failure of the pool.
    pub fn clone_snapshot(&self, source: SnapshotId, new: Vec<NewClone>) -> Result<Vec<VolumeRecord>> {
        let records = self.pool.change_catalog(|catalog, at| catalog.add_clones(at, source, new))?;
        let point = self.pool.with_catalog(|catalog, _| catalog.snapshot(source).map(|snapshot| snapshot.point));
        let is_stored =
            |point| self.pool.with_catalog(|catalog, _| catalog.is_stored(point, self.pool.checkpoints_done()));
        if !point.is_some_and(is_stored) {
            // Until then the clone's leaves cannot be cached.
            self.pool.want_checkpoint();
        }
        Ok(records)
    }

    /// Switches the head of a volume to one of its snapshots; the head before is kept as a snapshot if `keep` says what of
    /// it, and returned. Never on a lane.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] while the volume is open; the failure of the pool.
    pub fn roll_back(&self, target: SnapshotId, keep: Option<NewSnapshot>) -> Result<Option<SnapshotRecord>> {
        self.check_closed(target.0)?;
        let frozen = self.freeze(&[target.0])?;
        frozen.wait(true)?;
        self.roll_back_frozen(&frozen, target, keep)
    }

    /// As [`Self::roll_back`], once [`Frozen::flush`] has flushed.
    ///
    /// # Errors
    /// As [`Self::roll_back`].
    ///
    /// # Panics
    /// If a write of the volume is under way, or if it is not the only one that is held back.
    pub fn roll_back_frozen(
        &self,
        frozen: &Frozen,
        target: SnapshotId,
        keep: Option<NewSnapshot>,
    ) -> Result<Option<SnapshotRecord>> {
        let [volume] = frozen.volumes() else { panic!("one volume is rolled back at a time") };
        assert!(frozen.is_empty() && volume.id() == target.0, "the head's writes are held back");
        let mut open = self.open.lock();
        self.check_users(target.0, volume.users.load(Ordering::Acquire))?;
        let end = self.pool.end_of_writes();
        let plan = |catalog: &Catalog, at: CatalogStore<'_>| catalog.roll_back(at, target, keep, end);
        let result = self.pool.change_catalog_in(frozen.turn(), plan);
        // Also behind an error the head may be another.
        let tree = self.pool.with_catalog(|catalog, _| catalog.volume(target.0).map(|volume| volume.tree));
        if tree != Some(volume.tree) {
            volume.gate.retire();
            open.remove(&target.0);
        }
        drop(open);
        self.pool.want_checkpoint();
        result.map(|(_, kept)| kept)
    }

    /// Refuses a rollback of a volume that somebody has open.
    fn check_closed(&self, id: Uuid) -> Result<()> {
        let users = self.open.lock().get(&id).map_or(0, |volume| volume.users.load(Ordering::Acquire));
        self.check_users(id, users)
    }

    fn check_users(&self, id: Uuid, users: u32) -> Result<()> {
        if users == 0 {
            return Ok(());
        }
        let name = self.pool.with_catalog(|catalog, _| catalog.volume(id).map(|volume| volume.name.clone()));
        let message = format!("Volume \"{}\" is in use by {users} connection(s)", name.unwrap_or_default());
        Err(Error::new(ErrorKind::Busy, message).with_hint(
            "Disconnect its clients, roll back, and connect them again: a mounted disk cannot change its content",
        ))
    }
}
