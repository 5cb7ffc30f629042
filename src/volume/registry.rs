//! Volumes of an open pool, by name, and who has them open.

use crate::crypto::Random;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{OnFull, VolumeRecord};
use crate::map::Lineage;
use crate::planted::{Bug, is_planted};
use crate::pool::{Catalog, Pool};
use crate::units::{BLOCK_SIZE_U64, DomainId, Epoch, KeyGeneration, TreeId, VOLUME_SIZE_BYTES_MAX};
use crate::volume::pause::Pause;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use uuid::Uuid;

/// A volume that requests can be sent to.
pub struct Volume {
    pub(super) tree: TreeId,
    pub(super) epoch: Epoch,
    pub(super) lineage: Lineage,
    pub(super) domain: DomainId,
    pub(super) generation: KeyGeneration,
    id: Uuid,
    sector_size: u32,
    size_bytes: AtomicU64,
    users: AtomicU32,
    is_pausing: AtomicBool,
    pause: Mutex<Option<Pause>>,
}

impl Volume {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// 512 or 4096.
    #[must_use]
    pub const fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// Whether its writes wait for space.
    pub(super) fn is_pausing(&self) -> bool {
        self.is_pausing.load(Ordering::Acquire)
    }

    /// One more of its writes waits for space.
    pub(super) fn pause_one(&self, now: u64) {
        let mut pause = self.pause.lock();
        if let Some(pause) = &mut *pause {
            pause.writes += 1;
        } else {
            *pause = Some(Pause { writes: 1, since: now });
            tracing::warn!(
                volume = %self.id,
                "writes of a volume wait for space: grow the pool, add a device, or free some; `rok-blk status` shows them"
            );
        }
    }

    /// A write that waited for space has ended.
    pub(super) fn resume_one(&self) {
        let mut pause = self.pause.lock();
        let writes = pause.as_ref().map_or(0, |pause| pause.writes);
        assert!(writes > 0, "what ends to wait has begun");
        *pause = pause.filter(|_| writes > 1).map(|pause| Pause { writes: writes - 1, ..pause });
        if pause.is_none() {
            tracing::info!(volume = %self.id, "no write of the volume waits for space any more");
        }
    }
}

/// A volume in use: it cannot be removed or shrunk until this is dropped.
pub struct OpenVolume(Arc<Volume>);

impl OpenVolume {
    /// The volume.
    #[must_use]
    pub const fn volume(&self) -> &Arc<Volume> {
        &self.0
    }
}

impl Drop for OpenVolume {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

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
    pool: Arc<Pool>,
    open: Mutex<BTreeMap<Uuid, Arc<Volume>>>,
}

impl Volumes {
    /// The volumes of `pool`.
    #[must_use]
    pub const fn new(pool: Arc<Pool>) -> Self {
        Self { pool, open: Mutex::new(BTreeMap::new()) }
    }

    /// Opens a volume for requests.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn open(&self, name: &str) -> Result<OpenVolume> {
        let mut open = self.open.lock();
        let volume = self.entry(&mut open, name)?;
        volume.users.fetch_add(1, Ordering::AcqRel);
        Ok(OpenVolume(volume))
    }

    /// The volume whose head is the newest epoch of a tree, without opening it: it may be removed at any time.
    #[must_use]
    pub fn head(&self, tree: TreeId) -> Option<Arc<Volume>> {
        let mut open = self.open.lock();
        if let Some(volume) = open.values().find(|volume| volume.tree == tree) {
            return Some(Arc::clone(volume));
        }
        let find = |catalog: &mut Catalog| {
            catalog.volumes().find(|record| record.tree == tree).map(|record| record.name.clone())
        };
        let name = self.pool.with_catalog(|catalog, _| find(catalog))?;
        self.entry(&mut open, &name).ok().filter(|volume| volume.tree == tree)
    }

    fn entry(&self, open: &mut BTreeMap<Uuid, Arc<Volume>>, name: &str) -> Result<Arc<Volume>> {
        let (record, tree, lineage) = self.pool.with_catalog(|catalog, _| {
            let record = catalog.find(name)?.clone();
            let tree = *catalog.tree(record.tree).expect("each volume has a tree");
            Ok((record, tree, catalog.lineage((tree.id, tree.epoch))))
        })?;
        let is_pool_key_used = is_planted(Bug::OwnKeyLostInRecovery) && self.pool.recovery().record_count > 0;
        let domain = if is_pool_key_used { DomainId::POOL } else { tree.domain };
        let generation = self.pool.keys().newest_generation(domain).ok_or_else(|| {
            Error::new(ErrorKind::Key, format!("Volume \"{name}\" is closed: its key needs the pool's file shred-key"))
                .with_hint("Start the daemon again with the file, and without --without-own-keys")
        })?;
        let volume = open.entry(record.id).or_insert_with(|| {
            Arc::new(Volume {
                tree: tree.id,
                epoch: tree.epoch,
                lineage,
                domain,
                generation,
                id: record.id,
                sector_size: record.sector_size,
                size_bytes: AtomicU64::new(record.size_bytes),
                users: AtomicU32::new(0),
                is_pausing: AtomicBool::new(record.on_full == OnFull::Pause),
                pause: Mutex::new(None),
            })
        });
        Ok(Arc::clone(volume))
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
        let records: Vec<VolumeRecord> = self.pool.with_catalog(|catalog, _| catalog.volumes().cloned().collect());
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
        let record = self.pool.change_catalog(|catalog, at| catalog.set_size(at, name, size_bytes))?;
        if let Some(volume) = self.open.lock().get(&record.id) {
            volume.size_bytes.store(size_bytes, Ordering::Release);
        }
        Ok(self.info(&record))
    }

    /// Says what writes of a volume do that find no space. Those that wait fail at once if it is to fail.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the store's failure.
    pub fn set_on_full(&self, name: &str, on_full: OnFull) -> Result<VolumeInfo> {
        let record = {
            // Held over the change: who opens the volume meanwhile would have it as it was.
            let open = self.open.lock();
            let record = self.pool.change_catalog(|catalog, at| catalog.set_on_full(at, name, on_full))?;
            if let Some(volume) = open.get(&record.id) {
                volume.is_pausing.store(on_full == OnFull::Pause, Ordering::Release);
            }
            record
        };
        self.pool.tell_space();
        Ok(self.info(&record))
    }

    /// Removes a volume; its space comes back with the next checkpoints.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or [`ErrorKind::Busy`] while it is open.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.remove_unused(name, || self.pool.change_catalog(|catalog, at| catalog.remove(at, name)).map(|_| ()))?;
        self.pool.want_checkpoint();
        Ok(())
    }

    /// Removes a volume and destroys its key.
    ///
    /// # Errors
    /// As [`Self::remove`], and those of [`Pool::shred`].
    pub fn shred(&self, name: &str, random: Random<'_>) -> Result<()> {
        self.remove_unused(name, || self.pool.shred(name, random))
    }

    /// Nobody can open the volume while `remove` runs.
    fn remove_unused(&self, name: &str, remove: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut open = self.open.lock();
        let id = self.find_id(name)?;
        let users = open.get(&id).map_or(0, |volume| volume.users.load(Ordering::Acquire));
        if users > 0 {
            return Err(busy(name, users));
        }
        let result = remove();
        // Also behind an error the volume may be gone.
        if self.find_id(name).is_err() {
            open.remove(&id);
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

    fn find_id(&self, name: &str) -> Result<Uuid> {
        self.pool.with_catalog(|catalog, _| catalog.find(name).map(|record| record.id))
    }

    fn info(&self, record: &VolumeRecord) -> VolumeInfo {
        let tree = self.pool.with_catalog(|catalog, _| catalog.tree(record.tree).copied());
        let (connections, pause) = self.open_state(record.id);
        VolumeInfo {
            id: record.id,
            name: record.name.clone(),
            size_bytes: record.size_bytes,
            sector_size: record.sector_size,
            created_at: record.created_at,
            allocated_bytes: tree.map_or(0, |tree| tree.mapped_block_count) * BLOCK_SIZE_U64,
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
    let (name, tree) = (name.to_owned(), TreeId::new(0));
    Ok(VolumeRecord { id, name, size_bytes, sector_size, tree, created_at, on_full })
}

fn busy(name: &str, users: u32) -> Error {
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
