//! What the control API can do with a pool that is open, without HTTP. Every method may block: on locks, on the
//! metadata store, and a shrink on the discard of what it cuts off.
//!
//! Changes go one after the other, so that the state before, the checks and the state afterwards belong together.

mod annotations;
mod attachments;
mod clones;
mod differences;
mod forecast;
mod nbd_attachments;
mod policies;
mod removal;
mod scrubs;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rok_nbd::uri::{Address, Uri};
use uuid::Uuid;

use super::attachments::Attachments;
use super::attention::Attention;
use super::check_resource::CheckAnswer;
use super::cleaning_resource::Cleaning;
use super::device_request::{AddDevice, GrowDevice};
use super::device_resource::{DeviceAction, DeviceChange};
use super::job_table::JobTable;
use super::key_resource::KeyChangeAnswer;
use super::on_full_resource::PausedVolume;
use super::request::{CreateVolume, KeyCredential, ResizeVolume, SetVolume};
use super::resource::{
    Action, ApiVersion, Change, Kind, PoolState, Space, SpaceLevel, Status, Volume, VolumeAnswer, VolumeList,
    seconds_since_1970, time_text,
};
use super::space_resource::ShowOptions;
use super::upkeep::Upkeep;
use super::volume_rule;
use super::warnings::warnings;
use crate::crypto::system_random;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{ExportInfo, ListenAddress, Server};
use crate::pool::directory::{DeviceList, KeyChange, KeySlots};
use crate::volume::{NewVolume, VolumeInfo};
use forecast::Advice;

/// An open pool, its lanes and its listeners.
pub struct Control {
    server: Arc<Server>,
    place: PoolPlace,
    listeners: Vec<ListenAddress>,
    checks: Mutex<()>,
    advice: Mutex<Advice>,
    upkeep: Upkeep,
    /// One change of keys at a time: each takes as much memory as a guess at a passphrase costs.
    key_slots: Mutex<KeySlots>,
    /// One change of devices at a time.
    device_list: Mutex<DeviceList>,
    /// Block devices of this host that were made of volumes.
    devices: Attachments,
}

/// Where the open pool came from.
pub(super) struct PoolPlace {
    /// Its directory.
    pub(super) path: PathBuf,
    /// How long it took to open it.
    pub(super) open_time: Duration,
    /// When the daemon started, in seconds since 1970.
    pub(super) started_at: u64,
}

impl Control {
    /// Over the server of these devices, which runs on the pool of `place` with these key slots and devices and listens on
    /// `listeners`.
    pub(super) fn new(
        devices: Attachments,
        place: PoolPlace,
        key_slots: KeySlots,
        device_list: DeviceList,
        listeners: Vec<ListenAddress>,
        upkeep: Upkeep,
    ) -> Self {
        let (key_slots, device_list) = (Mutex::new(key_slots), Mutex::new(device_list));
        let (server, checks) = (Arc::clone(&devices.server), Mutex::new(()));
        Self { server, place, listeners, checks, advice: Mutex::default(), upkeep, key_slots, device_list, devices }
    }

    /// Held while something is changed: changes go one after the other.
    pub(super) fn lock_changes(&self) -> MutexGuard<'_, ()> {
        self.upkeep.changes.lock()
    }

    /// The pool's directory.
    pub(super) fn pool_path(&self) -> &Path {
        &self.place.path
    }

    pub(super) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// The jobs of the pool.
    pub(super) fn jobs(&self) -> &Arc<JobTable> {
        self.upkeep.jobs()
    }

    /// Ends requests and work in the background that only wait, for good.
    pub(super) fn end_waits(&self) {
        self.upkeep.end_waits();
    }

    /// Has the jobs stop where they are; the next opening of the pool goes on with them.
    pub(super) fn stop_jobs(&self) {
        self.upkeep.stop();
    }

    /// Where NBD clients connect.
    #[must_use]
    pub fn listeners(&self) -> &[ListenAddress] {
        &self.listeners
    }

    /// All volumes.
    #[must_use]
    pub fn volumes(&self) -> VolumeList {
        let exports = self.server.exports();
        let mut items: Vec<Volume> =
            self.server.volumes().list().into_iter().map(|info| with_export(info, &exports)).collect();
        items.sort_by(|left, right| left.name.cmp(&right.name));
        VolumeList { api: ApiVersion::V1, kind: Kind::VolumeList, items }
    }

    /// One volume, if asked for with an explanation of its space.
    ///
    /// # Errors
    /// `NotFound`; with the explanation also `TimedOut` if nobody waits any more, and what reading the metadata reports.
    pub fn volume(&self, name: &str, options: ShowOptions, attention: &Attention) -> Result<VolumeAnswer> {
        let volume = self.find(name)?;
        let space = options.space.then(|| self.volume_space(volume.uuid, attention)).transpose()?;
        Ok(VolumeAnswer { api: ApiVersion::V1, kind: Kind::Volume, volume, space })
    }

    /// Creates a volume.
    ///
    /// # Errors
    /// `Usage` for a bad name or size, `Exists` if there is one and the request does not allow for it, and what the
    /// engine reports.
    pub fn create(&self, request: &CreateVolume, is_dry_run: bool) -> Result<Change> {
        volume_rule::check_name(&request.name)?;
        volume_rule::check_size(request.size_bytes)?;
        volume_rule::check_sector_size(request.sector_size)?;
        let _one_at_a_time = self.upkeep.changes.lock();
        match self.find(&request.name) {
            Ok(present) if request.if_missing && request.own_key && !present.has_own_key => {
                let message = format!("There is a volume \"{}\", and it has no key of its own", request.name);
                return Err(Error::new(ErrorKind::Exists, message)
                    .with_hint("A volume gets its own key when it is created: choose another name and copy the data"));
            }
            Ok(present) if request.if_missing => {
                return Ok(Change::new(Action::Create, is_dry_run, Some(present.clone()), Some(present)));
            }
            Ok(_) => return Err(exists(&request.name)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let created_at = seconds_since_1970();
        let after = if is_dry_run {
            if request.own_key {
                self.server.pool().check_own_keys()?;
            }
            let planned = VolumeInfo {
                id: Uuid::nil(),
                name: request.name.clone(),
                size_bytes: request.size_bytes,
                sector_size: request.sector_size,
                created_at,
                allocated_bytes: 0,
                connections: 0,
                has_own_key: request.own_key,
                on_full: request.on_full.into(),
                pause: None,
            };
            Volume::new(planned, true)
        } else {
            let new = NewVolume {
                id: Uuid::new_v4(),
                name: &request.name,
                size_bytes: request.size_bytes,
                sector_size: request.sector_size,
                created_at,
                on_full: request.on_full.into(),
            };
            let volumes = self.server.volumes();
            let info = if request.own_key {
                volumes.create_with_own_key(&new, &mut system_random)?
            } else {
                volumes.create(&new)?
            };
            with_export(info, &self.server.exports())
        };
        Ok(Change::new(Action::Create, is_dry_run, None, Some(after)))
    }

    /// Gives the volume `from` the name `to`.
    ///
    /// # Errors
    /// `Usage` for a bad name, `NotFound`, `Exists`, and what the engine reports.
    pub fn rename(&self, from: &str, to: &str, is_dry_run: bool) -> Result<Change> {
        volume_rule::check_name(to)?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.find(from)?;
        if from != to && self.find(to).is_ok() {
            return Err(exists(to));
        }
        let after = if is_dry_run || from == to {
            Volume { reference: to.to_owned(), name: to.to_owned(), ..before.clone() }
        } else {
            let renamed = with_export(self.server.volumes().rename(from, to)?, &self.server.exports());
            self.devices.rename(before.uuid);
            renamed
        };
        Ok(Change::new(Action::Rename, is_dry_run, Some(before), Some(after)))
    }

    /// Gives a volume a new size, and its disk if it is attached.
    ///
    /// # Errors
    /// `Usage` for a bad size or for a smaller one that the request does not allow, `NotFound`; `Busy` while it is attached, if
    /// it is to be smaller or the driver cannot change the size of a disk; what the engine and the driver report.
    pub fn resize(&self, name: &str, request: &ResizeVolume, is_dry_run: bool) -> Result<Change> {
        volume_rule::check_size(request.size_bytes)?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.find(name)?;
        if request.size_bytes < before.size_bytes && !request.shrink {
            let message = format!(
                "{name} has {} bytes, and {} would cut off its end with the data there",
                before.size_bytes, request.size_bytes
            );
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Add --shrink if that is what you want"));
        }
        let disk = self.disk_to_resize(&before, request.size_bytes)?;
        let after = if is_dry_run || request.size_bytes == before.size_bytes {
            Volume { size_bytes: request.size_bytes, ..before.clone() }
        } else {
            with_export(self.server.resize(name, request.size_bytes)?, &self.server.exports())
        };
        if let Some(disk) = disk.filter(|_| !is_dry_run) {
            disk.follow_size(name)?;
        }
        Ok(Change::new(Action::Resize, is_dry_run, Some(before), Some(after)))
    }

    /// Gives properties of a volume new values.
    ///
    /// # Errors
    /// `Usage` for a request that names none, `NotFound`, and what the engine reports.
    pub fn set(&self, name: &str, request: &SetVolume, is_dry_run: bool) -> Result<Change> {
        let Some(on_full) = request.on_full else {
            return Err(Error::new(ErrorKind::Usage, "The request names no property").with_hint("There is on_full"));
        };
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.find(name)?;
        let after = if is_dry_run || before.on_full == on_full {
            Volume { on_full, ..before.clone() }
        } else {
            with_export(self.server.volumes().set_on_full(name, on_full.into())?, &self.server.exports())
        };
        Ok(Change::new(Action::Set, is_dry_run, Some(before), Some(after)))
    }

    /// Makes a device larger. Takes as long as writing its new part.
    ///
    /// # Errors
    /// What [`DeviceList::grow`] reports.
    pub fn grow_device(&self, request: &GrowDevice, is_dry_run: bool) -> Result<DeviceChange> {
        let mut list = self.device_list.lock();
        let changed = list.grow(request.device.as_deref(), request.size_bytes, is_dry_run)?;
        Ok(DeviceChange::new(DeviceAction::Grow, is_dry_run, &changed))
    }

    /// Adds a device: made, handed to every lane, listed, used. Takes as long as writing it.
    ///
    /// # Errors
    /// `Usage` if the request names no device, `Busy` if the server is ending, and what [`DeviceList`] reports.
    pub fn add_device(&self, request: &AddDevice, is_dry_run: bool) -> Result<DeviceChange> {
        let source = request.source()?;
        let mut list = self.device_list.lock();
        let changed = if is_dry_run {
            list.plan_adding(&source)?
        } else {
            let prepared = list.prepare(&source)?;
            self.server.set_device(prepared.index(), prepared.file())?;
            list.join(prepared)?
        };
        Ok(DeviceChange::new(DeviceAction::Add, is_dry_run, &changed))
    }

    /// Changes a key slot. That the pool is open is not enough: `credential` must open a slot too.
    ///
    /// # Errors
    /// `Usage` if `credential` names none, and what [`KeySlots::change`] reports.
    pub fn change_key(
        &self,
        credential: &KeyCredential,
        change: &KeyChange,
        is_dry_run: bool,
    ) -> Result<KeyChangeAnswer> {
        let credential = credential.credential()?;
        let changed = self.key_slots.lock().change(&credential, change, is_dry_run)?;
        let answer = KeyChangeAnswer::new(change, is_dry_run, &changed);
        if !is_dry_run {
            tracing::info!(slot = answer.reference, action = ?answer.action, "a key slot was changed");
        }
        Ok(answer)
    }

    /// Where the pool's space is.
    #[must_use]
    pub fn space(&self) -> Space {
        let pool = self.server.pool().status();
        let volumes = self.server.volumes().list();
        let nominal_bytes = volumes.iter().fold(0_u64, |sum, volume| sum.saturating_add(volume.size_bytes));
        let allocated_bytes = volumes.iter().fold(0_u64, |sum, volume| sum.saturating_add(volume.allocated_bytes));
        let shares = self.server.pool().space_shares();
        Space {
            api: ApiVersion::V1,
            kind: Kind::Space,
            capacity_bytes: pool.capacity_bytes,
            // As of the same checkpoint as what it is divided into below.
            used_bytes: shares.used_count * crate::units::BLOCK_SIZE_U64,
            free_bytes: pool.free_bytes,
            quarantined_bytes: pool.quarantined_bytes,
            reserve_bytes: pool.reserve_bytes,
            level: pool.space_level.into(),
            low_percent: pool.watermarks.low_percent(),
            critical_percent: pool.watermarks.critical_percent(),
            metadata_bytes: pool.metadata_bytes,
            metadata_free_bytes: crate::pool::directory::metadata_free_bytes(&self.place.path),
            trash_bytes: self.upkeep.trash.size_bytes(),
            reclaim_bytes: shares.reclaim_count * crate::units::BLOCK_SIZE_U64,
            unique_bytes: shares.head_count * crate::units::BLOCK_SIZE_U64,
            versions_bytes: shares.snapshot_count * crate::units::BLOCK_SIZE_U64,
            nominal_bytes,
            allocated_bytes,
            overcommit: ratio(nominal_bytes, pool.capacity_bytes),
        }
    }

    /// Checks the pool while it is used; one check at a time.
    ///
    /// # Errors
    /// What reading the metadata reports.
    pub fn check(&self) -> Result<CheckAnswer> {
        let _one_at_a_time = self.checks.lock();
        let pool = self.server.pool();
        Ok(CheckAnswer::new(pool.id(), pool.check()?))
    }

    /// Checks the pool while it is used, and repairs what leaked if there is nothing else; in steps, each of which is stored.
    ///
    /// # Errors
    /// What reading and storing the metadata report; then some of it is repaired.
    pub fn repair(&self, is_dry_run: bool) -> Result<CheckAnswer> {
        let _one_at_a_time = self.checks.lock();
        let pool = self.server.pool();
        if is_dry_run {
            return Ok(CheckAnswer::planned(pool.id(), pool.check()?));
        }
        let mut repair = pool.find_leaks()?;
        while pool.repair_leaks(&mut repair)? {}
        if repair.repaired_count() > 0 {
            tracing::warn!(blocks = repair.repaired_count(), "leaked space was repaired");
        }
        Ok(CheckAnswer::repaired(pool.id(), &repair, true))
    }

    /// How daemon and pool do.
    #[must_use]
    pub fn status(&self) -> Status {
        let pool = self.server.pool().status();
        let volumes = self.volumes().items;
        let paused: Vec<PausedVolume> = volumes.iter().filter_map(PausedVolume::new).collect();
        let space = self.space();
        let freeable = if space.level == SpaceLevel::Enough { Vec::new() } else { self.advice() };
        let state = PoolState {
            uuid: pool.id,
            path: self.place.path.display().to_string(),
            is_encrypted: pool.is_encrypted,
            session: pool.session,
            checkpoint: pool.checkpoint,
            changes: pool.changes,
            recovered_records: pool.recovered_records,
            lost_blocks: pool.lost_blocks,
            open_ms: u64::try_from(self.place.open_time.as_millis()).unwrap_or(u64::MAX),
            damaged_blocks: pool.damaged_blocks,
            is_meta_reserve_gone: pool.is_meta_reserve_gone,
            map_cache_bytes: pool.map_cache_bytes,
            map_cache_bytes_max: pool.map_cache_bytes_max,
            cleaning: Cleaning::new(&pool, self.server.is_cleaner_resting()),
            io: self.server.io_method().into(),
            failure: pool.failure,
            scrub: self.upkeep.scrub.state(),
        };
        Status {
            api: ApiVersion::V1,
            kind: Kind::Status,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: time_text(self.place.started_at),
            path: state.path.clone(),
            is_locked: false,
            warnings: warnings(&state, &space, &paused, &freeable),
            paused,
            freeable,
            pool: Some(state),
            space: Some(space),
            volumes: crate::units::to_u64(volumes.len()),
            connections: volumes.iter().map(|volume| u64::from(volume.connections)).sum(),
            listeners: self.listeners.iter().map(|listener| export_uri(listener, "")).collect(),
        }
    }

    pub(super) fn find(&self, name: &str) -> Result<Volume> {
        Ok(with_export(self.server.volumes().find(name)?, &self.server.exports()))
    }
}

/// The NBD URI of `export` on `listener`; without a name, of the listener.
#[must_use]
pub fn export_uri(listener: &ListenAddress, export: &str) -> String {
    let address = match listener {
        ListenAddress::Unix(path) => Address::Unix { path: path.clone() },
        ListenAddress::Tcp(address) => Address::Tcp { host: address.ip().to_string(), port: Some(address.port()) },
    };
    Uri { address, export_name: export.to_owned() }.to_string()
}

fn with_export(info: VolumeInfo, exports: &[ExportInfo]) -> Volume {
    let is_exported = exports.iter().any(|export| export.name == info.name && export.is_exported);
    Volume::new(info, is_exported)
}

fn exists(name: &str) -> Error {
    Error::new(ErrorKind::Exists, format!("There is a volume {name} already")).with_hint("Choose another name")
}

pub(super) fn refuse_if_open(volume: &Volume, what: &str, hint: &str) -> Result<()> {
    if volume.connections == 0 {
        return Ok(());
    }
    let message = format!("{} cannot be {what}: {} connections have it open", volume.name, volume.connections);
    Err(Error::new(ErrorKind::Busy, message).with_hint(hint))
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people; 53 bits are plenty")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_the_listener_and_the_export() {
        let tcp = ListenAddress::Tcp("127.0.0.1:10809".parse().expect("an address"));
        let tcp6 = ListenAddress::Tcp("[::1]:4000".parse().expect("an address"));
        let unix = ListenAddress::Unix(PathBuf::from("/run/rok-blk/nbd.sock"));

        assert_eq!(export_uri(&tcp, "vol1"), "nbd://127.0.0.1:10809/vol1");
        assert_eq!(export_uri(&tcp6, "vol1"), "nbd://[::1]:4000/vol1");
        assert_eq!(export_uri(&unix, "vol1"), "nbd+unix:///vol1?socket=/run/rok-blk/nbd.sock");
    }
}
