//! Volumes of an open pool, by name, and who has them open.

use crate::crypto::Random;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{OnFull, VolumeRecord};
use crate::planted::{Bug, is_planted};
use crate::pool::{Catalog, Pool, SnapshotId, Turn};
use crate::units::{BLOCK_SIZE_U64, DomainId, Epoch, KeyGeneration, TreeId, VOLUME_SIZE_BYTES_MAX, ViewId};
use crate::volume::freeze::Frozen;
use crate::volume::gate::Gate;
use crate::volume::opened::{LineageCell, OpenVolume, Volume, stored_after};
use crate::volume::pause::Pause;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use uuid::Uuid;

/// What a new volume is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewVolume<'a> {
    /// A new id.
    pub id: Uuid,
    /// Its name.
    pub name: &'a str,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub sector_size: u32,
    /// Seconds since 1970.
    pub created_at: u64,
    /// What its writes do that find no space.
    pub on_full: OnFull,
}

impl<'a> NewVolume<'a> {
    /// A volume with sectors of 512 bytes and nothing special.
    #[must_use]
    pub const fn new(id: Uuid, name: &'a str, size_bytes: u64) -> Self {
        Self { id, name, size_bytes, sector_size: 512, created_at: 0, on_full: OnFull::Error }
    }
}

/// What is told of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub sector_size: u32,
    /// Seconds since 1970 when it was created.
    pub created_at: u64,
    /// What its blocks take on the devices, as of the last checkpoint.
    pub allocated_bytes: u64,
    /// Connections and devices that have it open.
    pub connections: u32,
    /// Whether it is encrypted with a key of its own, which can be shredded.
    pub has_own_key: bool,
    /// What its writes do that find no space.
    pub on_full: OnFull,
    /// Those that wait for space, if there are any.
    pub pause: Option<Pause>,
}

/// The volumes of a pool.
pub struct Volumes {
    pub(super) pool: Arc<Pool>,
    pub(super) open: Mutex<BTreeMap<Uuid, Arc<Volume>>>,
    pub(super) open_snapshots: Mutex<BTreeMap<SnapshotId, Arc<Volume>>>,
    /// Views of snapshots that there were.
    view_count: AtomicU64,
}

/// Snapshots that stay open without a user.
const IDLE_SNAPSHOTS_MAX: usize = 1024;

impl Volumes {
    /// The volumes of `pool`.
    #[must_use]
    pub const fn new(pool: Arc<Pool>) -> Self {
        let open = Mutex::new(BTreeMap::new());
        Self { pool, open, open_snapshots: Mutex::new(BTreeMap::new()), view_count: AtomicU64::new(0) }
    }

    /// The pool.
    #[must_use]
    pub const fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Opens a volume for requests.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn open(&self, name: &str) -> Result<OpenVolume> {
        let mut open = self.open.lock();
        let id = self.find_id(name)?;
        let volume = self.entry(&mut open, id)?;
        self.generation(volume.domain, name)?;
        Ok(OpenVolume::new(volume))
    }

    /// Opens a snapshot for reads.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn open_snapshot(&self, id: SnapshotId) -> Result<OpenVolume> {
        let mut open = self.open_snapshots.lock();
        if let Some(volume) = open.get(&id) {
            return Ok(OpenVolume::new(Arc::clone(volume)));
        }
        let volume = self.pool.with_catalog(|catalog, _| {
            let snapshot = catalog.snapshot_or_error(id)?;
            let of = catalog.volume(id.0).expect("each snapshot has a volume");
            let tree = catalog.tree(snapshot.point.0).expect("each snapshot has a tree");
            let lineage = catalog.lineage(snapshot.point);
            let view = ViewId::of_snapshot(self.view_count.fetch_add(1, Ordering::Relaxed));
            Ok(Volume {
                tree: tree.id,
                seen: snapshot.point.1,
                view,
                stored_after: stored_after(catalog, &lineage),
                origins: catalog.origins(tree.id),
                lineage: LineageCell::new(lineage, &self.pool),
                domain: tree.domain,
                generation: self.generation(tree.domain, &of.name)?,
                gate: Gate::new(snapshot.point.1, Arc::clone(self.pool.exits())),
                own_from: Arc::new(AtomicU64::new(u64::MAX)),
                id: id.0,
                number: Some(id.1),
                sector_size: of.sector_size,
                size_bytes: AtomicU64::new(snapshot.size_bytes),
                users: AtomicU32::new(0),
                is_pausing: AtomicBool::new(false),
                pause: Mutex::new(None),
            })
        })?;
        let volume = OpenVolume::new(Arc::new(volume));
        if open.len() >= IDLE_SNAPSHOTS_MAX {
            open.retain(|_, volume| volume.users.load(Ordering::Acquire) > 0);
        }
        open.insert(id, Arc::clone(volume.volume()));
        Ok(volume)
    }

    /// The volume whose head is the newest epoch of a tree, without opening it: it may be removed at any time.
    #[must_use]
    pub fn head(&self, tree: TreeId) -> Option<Arc<Volume>> {
        let mut open = self.open.lock();
        if let Some(volume) = open.values().find(|volume| volume.tree == tree) {
            return Some(Arc::clone(volume));
        }
        let id = self.pool.with_catalog(|catalog, _| catalog.head_of(tree).map(|record| record.id))?;
        let volume = self.entry(&mut open, id).ok().filter(|volume| volume.tree == tree)?;
        self.pool.keys().newest_generation(volume.domain).map(|_| volume)
    }

    fn generation(&self, domain: DomainId, name: &str) -> Result<KeyGeneration> {
        self.pool.keys().newest_generation(domain).ok_or_else(|| {
            Error::new(ErrorKind::Key, format!("Volume \"{name}\" is closed: its key needs the pool's file shred-key"))
                .with_hint("Start the daemon again with the file, and without --without-own-keys")
        })
    }

    pub(super) fn entry(&self, open: &mut BTreeMap<Uuid, Arc<Volume>>, id: Uuid) -> Result<Arc<Volume>> {
        if let Some(volume) = open.get(&id) {
            return Ok(Arc::clone(volume));
        }
        let volume = self.pool.with_catalog(|catalog, _| self.of_catalog(catalog, id))?;
        let volume = Arc::new(volume);
        open.insert(id, Arc::clone(&volume));
        Ok(volume)
    }

    fn of_catalog(&self, catalog: &mut Catalog, id: Uuid) -> Result<Volume> {
        let gone = || Error::new(ErrorKind::NotFound, format!("There is no volume {id}"));
        let own_from = catalog.own_from_of_head(catalog.volume(id).ok_or_else(gone)?.tree);
        let record = catalog.volume(id).ok_or_else(gone)?;
        let tree = catalog.tree(record.tree).expect("each volume has a tree");
        let is_pool_key_used = is_planted(Bug::OwnKeyLostInRecovery) && self.pool.recovery().record_count > 0;
        let domain = if is_pool_key_used { DomainId::POOL } else { tree.domain };
        let lineage = catalog.lineage((tree.id, Epoch::NEWEST));
        Ok(Volume {
            tree: tree.id,
            seen: Epoch::NEWEST,
            view: ViewId::of_head(tree.id),
            stored_after: stored_after(catalog, &lineage),
            origins: catalog.origins(tree.id),
            lineage: LineageCell::new(lineage, &self.pool),
            domain,
            // Without its key a volume cannot be opened, but it can be removed.
            generation: self.pool.keys().newest_generation(domain).unwrap_or_default(),
            gate: Gate::new(tree.epoch, Arc::clone(self.pool.exits())),
            own_from,
            id: record.id,
            number: None,
            sector_size: record.sector_size,
            size_bytes: AtomicU64::new(record.size_bytes),
            users: AtomicU32::new(0),
            is_pausing: AtomicBool::new(record.on_full == OnFull::Pause),
            pause: Mutex::new(None),
        })
    }

    /// Waits for a turn to change the catalog, and holds the writes of volumes back. Those that are under way are still to be
    /// waited for. Never on a lane, and never by who has a turn.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Busy`] while somebody else does.
    pub fn freeze(&self, ids: &[Uuid]) -> Result<Frozen> {
        self.freeze_in(self.pool.take_turn(), ids)
    }

    /// As [`Self::freeze`], in a turn that was waited for.
    pub(super) fn freeze_in(&self, turn: Turn, ids: &[Uuid]) -> Result<Frozen> {
        let mut open = self.open.lock();
        let volumes: Result<Vec<_>> = ids.iter().map(|id| self.entry(&mut open, *id)).collect();
        // Under the lock: who rolls one back meanwhile would leave this with a head that is nobody's.
        Frozen::close(&self.pool, turn, volumes?)
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`], or [`ErrorKind::Usage`] for a name, size or sector size that cannot be.
    pub fn create(&self, new: &NewVolume<'_>) -> Result<VolumeInfo> {
        let record = new_record(new)?;
        let record = self.pool.change_catalog(|catalog, at| catalog.create(at, record))?;
        Ok(self.info(&record))
    }

    /// Makes a volume with a key of its own.
    ///
    /// # Errors
    /// As [`Self::create`], and those of [`Pool::create_with_own_key`].
    pub fn create_with_own_key(&self, new: &NewVolume<'_>, random: Random<'_>) -> Result<VolumeInfo> {
        let record = self.pool.create_with_own_key(new_record(new)?, random)?;
        Ok(self.info(&record))
    }

    /// All volumes, by name.
    #[must_use]
    pub fn list(&self) -> Vec<VolumeInfo> {
        let records: Vec<VolumeRecord> = self.pool.with_catalog(|catalog, _| {
            let living = catalog.volumes().filter(|record| !record.lifetime.is_trashed());
            living.cloned().collect()
        });
        let mut infos: Vec<VolumeInfo> = records.iter().map(|record| self.info(record)).collect();
        infos.sort_by(|one, other| one.name.cmp(&other.name));
        infos
    }

    /// One volume.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn find(&self, name: &str) -> Result<VolumeInfo> {
        let record = self.pool.with_catalog(|catalog, _| catalog.find(name).cloned())?;
        Ok(self.info(&record))
    }

    /// Gives a volume another name. Connections stay.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`], [`ErrorKind::Usage`].
    pub fn rename(&self, from: &str, to: &str) -> Result<VolumeInfo> {
        let record = self.pool.change_catalog(|catalog, at| catalog.rename(at, from, to))?;
        Ok(self.info(&record))
    }

    /// Makes a volume larger, or smaller once nothing is mapped behind the new end.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Usage`] for a size that cannot be.
    pub fn set_size(&self, name: &str, size_bytes: u64) -> Result<VolumeInfo> {
        check_size(size_bytes)?;
        let turn = self.pool.take_turn();
        // Held over the change: of two the last one is to be last in memory too.
        let open = self.open.lock();
        let record = self.pool.change_catalog_in(&turn, |catalog, at| catalog.set_size(at, name, size_bytes))?;
        if let Some(volume) = open.get(&record.id).filter(|_| !is_planted(Bug::SizeNotTold)) {
            volume.size_bytes.store(size_bytes, Ordering::Release);
        }
        drop((open, turn));
        Ok(self.info(&record))
    }

    /// Says what writes of a volume do that find no space. Those that wait fail at once if it is to fail.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the store's failure.
    pub fn set_on_full(&self, name: &str, on_full: OnFull) -> Result<VolumeInfo> {
        let record = {
            let turn = self.pool.take_turn();
            // Held over the change: who opens the volume meanwhile would have it as it was.
            let open = self.open.lock();
            let id = self.find_id(name)?;
            let change = |volume: &mut VolumeRecord| volume.on_full = on_full;
            let record = self.pool.change_catalog_in(&turn, |catalog, at| catalog.change_volume(at, id, change))?;
            if let Some(volume) = open.get(&record.id) {
                volume.is_pausing.store(on_full == OnFull::Pause, Ordering::Release);
            }
            record
        };
        self.pool.tell_space();
        Ok(self.info(&record))
    }

    /// Removes a volume with its snapshots; its space comes back with the next checkpoints. Never on a lane.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or [`ErrorKind::Busy`] while it or a snapshot of it is open.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.check_unused(name, 0)?;
        let frozen = self.freeze(&[self.find_id(name)?])?;
        frozen.wait(false)?;
        self.remove_frozen(&frozen)
    }

    /// As [`Self::remove`], by its id, in the trash or not.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn remove_id(&self, id: Uuid) -> Result<()> {
        // Who has it open would feel that its writes are held back, although it stays.
        self.check_id_unused(id)?;
        let frozen = self.freeze(&[id])?;
        frozen.wait(false)?;
        self.remove_frozen(&frozen)
    }

    /// As [`Self::remove`], once no write of the volume is under way.
    ///
    /// # Errors
    /// As [`Self::remove`].
    ///
    /// # Panics
    /// If not just one volume is held back.
    pub fn remove_frozen(&self, frozen: &Frozen) -> Result<()> {
        let end = self.pool.end_of_writes();
        self.remove_unused(frozen, |id, _| {
            self.pool.change_catalog_in(frozen.turn(), |catalog, at| catalog.remove(at, id, end)).map(|_| ())
        })?;
        self.pool.want_checkpoint();
        Ok(())
    }

    /// Removes a volume and destroys its key. Never on a lane.
    ///
    /// # Errors
    /// As [`Self::remove`], and those of [`Pool::shred`].
    pub fn shred(&self, name: &str, random: Random<'_>) -> Result<()> {
        self.check_unused(name, 0)?;
        let frozen = self.freeze(&[self.find_id(name)?])?;
        frozen.wait(false)?;
        self.shred_frozen(&frozen, random)
    }

    /// As [`Self::shred`], once no write of the volume is under way.
    ///
    /// # Errors
    /// As [`Self::shred`].
    ///
    /// # Panics
    /// As [`Self::remove_frozen`].
    pub fn shred_frozen(&self, frozen: &Frozen, random: Random<'_>) -> Result<()> {
        self.remove_unused(frozen, |_, name| self.pool.shred(frozen.turn(), name, random))
    }

    /// Nobody can open the volume or its snapshots while `remove` runs.
    fn remove_unused(&self, frozen: &Frozen, remove: impl FnOnce(Uuid, &str) -> Result<()>) -> Result<()> {
        let [volume] = frozen.volumes() else { panic!("one volume is removed at a time") };
        assert!(frozen.is_empty(), "no write of a volume that goes is under way");
        let mut open = self.open.lock();
        let mut open_snapshots = self.open_snapshots.lock();
        let name = self.pool.with_catalog(|catalog, _| catalog.volume(volume.id()).map(|record| record.name.clone()));
        let name = name.ok_or_else(|| Error::new(ErrorKind::NotFound, "The volume is gone already"))?;
        let of_volume = open_snapshots.iter().filter(|((of, _), _)| *of == volume.id()).map(|(_, snapshot)| snapshot);
        let users: u32 = of_volume.chain([volume]).map(|volume| volume.users.load(Ordering::Acquire)).sum();
        if users > 0 {
            return Err(busy(&name, users));
        }
        let result = remove(volume.id(), &name);
        // Also behind an error the volume may be gone.
        if self.pool.with_catalog(|catalog, _| catalog.volume(volume.id()).is_none()) {
            volume.gate.retire();
            open.remove(&volume.id());
            open_snapshots.retain(|(of, _), _| *of != volume.id());
        }
        result
    }

    /// Refuses if somebody has the volume open, but for `allowed` users.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Busy`].
    pub fn check_unused(&self, name: &str, allowed: u32) -> Result<()> {
        let info = self.find(name)?;
        if info.connections > allowed { Err(busy(name, info.connections - allowed)) } else { Ok(()) }
    }

    pub(super) fn find_id(&self, name: &str) -> Result<Uuid> {
        self.pool.with_catalog(|catalog, _| catalog.find(name).map(|record| record.id))
    }

    pub(super) fn info(&self, record: &VolumeRecord) -> VolumeInfo {
        let (tree, mapped_count) = self.pool.with_catalog(|catalog, _| {
            let tree = catalog.tree(record.tree).copied();
            (tree, tree.map_or(0, |tree| catalog.mapped_count((tree.id, tree.epoch))))
        });
        let (connections, pause) = self.open_state(record.id);
        VolumeInfo {
            id: record.id,
            name: record.name.clone(),
            size_bytes: record.size_bytes,
            sector_size: record.sector_size,
            created_at: record.created_at,
            allocated_bytes: mapped_count * BLOCK_SIZE_U64,
            connections,
            has_own_key: tree.is_some_and(|tree| !tree.domain.is_pool()),
            on_full: record.on_full,
            pause,
        }
    }

    /// Users of a volume, and its writes that wait for space.
    fn open_state(&self, id: Uuid) -> (u32, Option<Pause>) {
        let open = self.open.lock();
        open.get(&id).map_or((0, None), |volume| (volume.users.load(Ordering::Acquire), *volume.pause.lock()))
    }
}

fn new_record(new: &NewVolume<'_>) -> Result<VolumeRecord> {
    let NewVolume { id, name, size_bytes, sector_size, created_at, on_full } = *new;
    check_size(size_bytes)?;
    if !matches!(sector_size, 512 | 4096) {
        return Err(Error::new(ErrorKind::Usage, format!("A sector cannot have {sector_size} bytes"))
            .with_hint("Use 512 or 4096"));
    }
    let record = VolumeRecord::new(id, name, size_bytes);
    Ok(VolumeRecord { sector_size, created_at, on_full, ..record })
}

pub(super) fn busy(name: &str, users: u32) -> Error {
    Error::new(ErrorKind::Busy, format!("Volume \"{name}\" is in use by {users} connection(s)"))
        .with_hint("Disconnect its clients (`rok-blk exports` lists them), then try again")
}

fn check_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_SIZE_U64) || size_bytes > VOLUME_SIZE_BYTES_MAX {
        return Err(Error::new(ErrorKind::Usage, format!("A volume cannot have {size_bytes} bytes"))
            .with_hint("Use a multiple of 4 KiB, from 4 KiB to 1 PiB"));
    }
    Ok(())
}
