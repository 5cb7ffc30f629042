//! What nobody has open: only that may be given an end.
//!
//! Who opens a volume or a snapshot becomes its user under the lock of those that are open. So who has that lock and finds
//! no user is alone with it until the lock is given back.

use crate::error::Result;
use crate::format::catalog::{Lifetime, VolumeRecord};
use crate::format::snapshot::Annotations;
use crate::pool::SnapshotId;
use crate::volume::registry::busy;
use crate::volume::{Volume, Volumes};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

impl Volumes {
    /// Refuses if somebody has a volume or a snapshot of it open, be it in the trash or not.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::error::ErrorKind::Busy).
    pub fn check_id_unused(&self, id: Uuid) -> Result<()> {
        let (open, open_snapshots) = (self.open.lock(), self.open_snapshots.lock());
        self.check_none_uses(&open, &open_snapshots, id)
    }

    /// Changes when a volume ends that nobody has open, nor a snapshot of it. Who wants to open it meanwhile waits, and then
    /// finds it as it is. Never on a lane.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::error::ErrorKind::Busy) if somebody has it open,
    /// [`ErrorKind::NotFound`](crate::error::ErrorKind::NotFound), or the store's failure.
    pub fn change_unused(&self, id: Uuid, change: impl FnOnce(&mut Lifetime)) -> Result<()> {
        let turn = self.pool.take_turn();
        let (open, open_snapshots) = (self.open.lock(), self.open_snapshots.lock());
        self.check_none_uses(&open, &open_snapshots, id)?;
        let plan = |volume: &mut VolumeRecord| change(&mut volume.lifetime);
        self.pool.change_catalog_in(&turn, |catalog, at| catalog.change_volume(at, id, plan)).map(drop)
    }

    /// As [`Self::change_unused`], of a snapshot alone.
    ///
    /// # Errors
    /// As [`Self::change_unused`].
    pub fn change_unused_snapshot(&self, id: SnapshotId, change: impl FnOnce(&mut Lifetime)) -> Result<()> {
        let turn = self.pool.take_turn();
        let open = self.open_snapshots.lock();
        self.check_none_uses_snapshot(&open, id)?;
        let plan = |_: &mut Annotations, lifetime: &mut Lifetime| change(lifetime);
        self.pool.change_catalog_in(&turn, |catalog, at| catalog.change_snapshot(at, id, plan)).map(drop)
    }

    /// Refuses if somebody has a snapshot open.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::error::ErrorKind::Busy).
    pub fn check_snapshot_unused(&self, id: SnapshotId) -> Result<()> {
        self.check_none_uses_snapshot(&self.open_snapshots.lock(), id)
    }

    fn check_none_uses_snapshot(&self, open: &BTreeMap<SnapshotId, Arc<Volume>>, id: SnapshotId) -> Result<()> {
        let users = open.get(&id).map_or(0, |snapshot| snapshot.users.load(Ordering::Acquire));
        if users == 0 { Ok(()) } else { Err(busy(&format!("{}@{}", self.name_of(id.0), id.1), users)) }
    }

    fn check_none_uses(
        &self,
        open: &BTreeMap<Uuid, Arc<Volume>>,
        open_snapshots: &BTreeMap<SnapshotId, Arc<Volume>>,
        id: Uuid,
    ) -> Result<()> {
        let of_volume = open_snapshots.range((id, 0)..=(id, u64::MAX)).map(|(_, snapshot)| snapshot);
        let users: u32 = of_volume.chain(open.get(&id)).map(|volume| volume.users.load(Ordering::Acquire)).sum();
        if users == 0 {
            return Ok(());
        }
        Err(busy(&self.name_of(id), users))
    }

    fn name_of(&self, id: Uuid) -> String {
        let name = self.pool.with_catalog(|catalog, _| catalog.volume(id).map(|record| record.name.clone()));
        name.unwrap_or_default()
    }
}
