//! A pool on the file system: making one, opening one, and saying what it is.
//!
//! ```text
//! POOL/            0700
//!   superblock     two copies; written last, so that a directory without it is no pool
//!   meta/          the metadata store
//!   meta-reserve   zeros; room to give to meta/ when the file system is full
//!   shred-key      what is overwritten to destroy the key of a volume; only where the suite encrypts
//!   data-0 …       files written once with zeros, or symbolic links to block devices
//! ```
//! `meta-reserve` has 64 MiB, or a sixteenth of a pool below 1 GiB. When `meta/` finds no space it is deleted, so that
//! reads, discards, deletions, flushes and the next open go on; it comes back when there is space.
//!
//! Invariant: the devices are locked before anything else of the pool is opened or changed, and as long as it is open.

mod copies;
mod creation;
mod credential;
mod device_list;
mod key_file;
mod key_slots;
mod leak_repair;
mod listed_device;
mod meta_reserve;
mod passphrase_file;
mod shred_key_file;
mod superblock_file;
#[cfg(test)]
mod tests;

pub use crate::pool::Credential;
pub use copies::Copies;
pub use creation::create;
pub use device_list::{ChangedDevice, DeviceList, PreparedDevice};
pub use key_file::generate_key_file;
pub use key_slots::{ChangedKeySlot, KeyChange, KeySlotDescription, KeySlots};
pub use leak_repair::repair;
pub use passphrase_file::{passphrase, read_passphrase, read_passphrase_file};

use crate::crypto::{MasterKey, Suite, system_random};
use crate::disk::{Device, FileDevice, free_space_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::LANES_MAX;
use crate::format::superblock::{DeviceRecord, Superblock};
use crate::meta::{RocksOptions, RocksStore, SpaceReserve};
use crate::pool::devices::{ExpectedDevice, header_mac, identify};
use crate::pool::{CheckReport, Limits, Parts, Pool, Unverified, Watermarks};
use crate::units::{BLOCK_SIZE_U64, DeviceIndex};
use listed_device::ListedDevice;
use meta_reserve::MetaReserve;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use superblock_file::SuperblockFile;
use uuid::Uuid;

const META_NAME: &str = "meta";
/// Less would make the metadata store flush a few pages at a time.
const META_CACHE_BYTES_MIN: u64 = 8 << 20;
/// The file by which a directory of RocksDB is known.
const META_MARK_NAME: &str = "CURRENT";

/// Where a pool keeps its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSource {
    /// A new file in the pool's directory, preallocated and written with zeros.
    File {
        /// Its size: a multiple of 4 KiB, at least 16 MiB.
        size_bytes: u64,
    },
    /// An existing block device, whose first MiB is zeros.
    Block {
        /// Where it is; a symbolic link of `/dev/disk/by-id` is kept as it is.
        path: PathBuf,
    },
}

/// What [`create`] makes.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The devices, 1 to 32.
    pub devices: Vec<DeviceSource>,
    /// How blocks are protected.
    pub suite: Suite,
    /// What opens the first key slot; needed with [`Suite::XtsGmac`], refused with [`Suite::Plain`].
    pub credential: Option<Credential>,
}

/// How [`open`] opens.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// What opens a key slot; needed if the pool is encrypted, refused if it is not.
    pub credential: Option<Credential>,
    /// Lanes that will run for users, 1 to 63.
    pub lane_count: u16,
    /// Memory for decoded leaves, in bytes; below that of one leaf it is one leaf.
    pub map_cache_bytes: u64,
    /// Memory of the metadata store, in bytes, at least 8 MiB.
    pub meta_cache_bytes: u64,
    /// What is done with volumes that have a key of their own.
    pub own_keys: OwnKeys,
    /// When space counts as low.
    pub watermarks: Watermarks,
}

/// What is done with volumes that have a key of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnKeys {
    /// They are opened. If one of them cannot be, the pool is not.
    #[default]
    Opened,
    /// The file with the shred key is lost: they stay closed, and should it turn up, they are what they were. The pool is not
    /// opened where that cannot be promised.
    Closed,
    /// The file is lost for good: they stay closed, and what they held may be lost.
    GivenUp,
}

/// An open pool and the files that its lanes do I/O on.
pub struct OpenPool {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Its devices by index, locked as long as the pool, the key slots or the list lives.
    pub devices: Vec<Arc<FileDevice>>,
    /// Its key slots.
    pub key_slots: KeySlots,
    /// Its devices, to grow and add.
    pub device_list: DeviceList,
    /// What it has in two copies.
    pub copies: Copies,
}

/// What a pool is, as far as no key is needed to know it. Only [`open`] verifies that it is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolDescription {
    /// The pool's id.
    pub id: Uuid,
    /// Version of its format.
    pub format_version: u32,
    /// How blocks are protected.
    pub suite: Suite,
    /// Name and size in bytes of each device.
    pub devices: Vec<(String, u64)>,
    /// The key slots in use.
    pub key_slots: Vec<KeySlotDescription>,
}

/// Opens the pool in `directory`: locks its devices, unlocks its key, recovers.
///
/// # Errors
/// `NotFound` if there is none, `Busy` if another process has it, `Key` for a missing or wrong key, `Unsupported` for a
/// newer version, `Integrity` naming what is damaged, foreign, missing or older, `Usage` for the number of lanes or the
/// memory of the metadata store.
pub fn open(directory: &Path, options: &OpenOptions) -> Result<OpenPool> {
    check_options(options)?;
    let (file, devices) = lock(directory)?;
    let master = Arc::new(credential::unlock(directory, &file, options.credential.as_ref())?);
    check_devices(&devices, file.superblock(), &master)?;
    // One copy is enough to open.
    if let Err(error) = file.repair(&master) {
        tracing::warn!("{error}");
    }
    let records = file.superblock().devices.clone();
    let listed = devices
        .iter()
        .zip(&records)
        .map(|(device, record)| Arc::new(ListedDevice::new(Arc::clone(device), record.block_count * BLOCK_SIZE_U64)));
    let listed: Vec<Arc<ListedDevice>> = listed.collect();
    let size_bytes = devices.first().map_or(0, |device| device.size_bytes());
    let reserve = Arc::new(MetaReserve::of_pool(directory, size_bytes));
    let was_there = reserve.is_there();
    let parts = (file.superblock(), listed.as_slice(), &master);
    let mut opened = open_locked(directory, options, parts, &reserve);
    // The store goes on by itself only some time after it got space; opened anew it has it at once.
    let is_full = opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace);
    if is_full && was_there && (reserve.give_up() || !reserve.is_there()) {
        tracing::warn!("the metadata store has no space: it is opened again with its reserve");
        opened = open_locked(directory, options, parts, &reserve);
    }
    let pool = opened?;
    let exclusive = Arc::default();
    let key_slots = KeySlots::of(directory, devices.clone(), Arc::clone(&exclusive));
    let copies = Copies::new(directory, Arc::clone(&pool), Arc::clone(&exclusive));
    let device_list = DeviceList::new(directory, Arc::clone(&pool), records, listed, exclusive);
    Ok(OpenPool { pool, devices, key_slots, device_list, copies })
}

fn check_options(options: &OpenOptions) -> Result<()> {
    if options.meta_cache_bytes < META_CACHE_BYTES_MIN {
        let message = format!("{} bytes of memory are too few for the metadata store", options.meta_cache_bytes);
        return Err(Error::new(ErrorKind::Usage, message).with_hint("Give it at least 8 MiB"));
    }
    // One more is the cleaner's.
    if !(1..LANES_MAX).contains(&usize::from(options.lane_count)) {
        let message = format!("{} lanes are not possible", options.lane_count);
        return Err(Error::new(ErrorKind::Usage, message).with_hint(format!("Choose 1 to {}", LANES_MAX - 1)));
    }
    Ok(())
}

/// Opens a pool whose devices, as the superblock lists them, are locked and whose key is there.
fn open_locked(
    directory: &Path,
    options: &OpenOptions,
    (superblock, listed, master): (&Superblock, &[Arc<ListedDevice>], &Arc<MasterKey>),
    reserve: &Arc<MetaReserve>,
) -> Result<Arc<Pool>> {
    let meta = meta_of(directory)?;
    let store = open_store(&meta, options.meta_cache_bytes, reserve)?;
    let (shred_key, is_shred_key_new) = match superblock.suite {
        Suite::XtsGmac if options.own_keys == OwnKeys::Opened => shred_key_file::open_or_create(directory)?,
        Suite::XtsGmac | Suite::Plain => (None, false),
    };
    let parts_of = |(device, record): (&Arc<ListedDevice>, &DeviceRecord)| (Arc::clone(device) as _, record.id);
    let parts = Parts {
        id: superblock.pool,
        suite: superblock.suite,
        master: Arc::clone(master),
        devices: listed.iter().zip(&superblock.devices).map(parts_of).collect(),
        store: Arc::new(store),
        reserve: Some(Arc::clone(reserve) as Arc<dyn SpaceReserve>),
        shred_key,
        lane_count: options.lane_count,
        has_cleaner: true,
        limits: Limits {
            map_cache_bytes: options.map_cache_bytes,
            watermarks: options.watermarks,
            ..Limits::default()
        },
    };
    let unverified = match options.own_keys {
        OwnKeys::Opened | OwnKeys::Closed => Unverified::Refused,
        OwnKeys::GivenUp => Unverified::Taken,
    };
    let opened = super::open_with(parts, unverified, &mut system_random);
    if opened.is_err() && is_shred_key_new {
        shred_key_file::remove_new(directory);
    }
    opened
}

/// Checks that `credential` opens the pool in `directory`. Takes no lock, changes nothing.
///
/// # Errors
/// `Key` if it does not, `NotFound` if there is no pool, `Integrity` if its superblock is damaged.
pub fn check_credential(directory: &Path, credential: &Credential) -> Result<()> {
    credential::unlock(directory, &SuperblockFile::read(directory)?, Some(credential)).map(drop)
}

/// Checks the pool in `directory`, which nobody has open, and changes nothing.
///
/// # Errors
/// As [`open`].
pub fn check(directory: &Path, credential: Option<&Credential>) -> Result<CheckReport> {
    let (file, devices) = lock(directory)?;
    let master = Arc::new(credential::unlock(directory, &file, credential)?);
    check_devices(&devices, file.superblock(), &master)?;
    let meta = meta_of(directory)?;
    let store = RocksStore::open_read_only(&meta, RocksOptions::default());
    let store = store.map_err(|error| store_error("Opening", &meta, error))?;
    let shred_key = match file.superblock().suite {
        Suite::Plain => None,
        Suite::XtsGmac => shred_key_file::open(directory)?,
    };
    let listed = devices.into_iter().zip(&file.superblock().devices).map(|(device, record)| {
        let listed = ListedDevice::new(device, record.block_count * BLOCK_SIZE_U64);
        (Arc::new(listed) as Arc<dyn Device>, record.id)
    });
    super::check(&Parts {
        id: file.superblock().pool,
        suite: file.superblock().suite,
        master,
        devices: listed.collect(),
        store: Arc::new(store),
        reserve: None,
        shred_key,
        lane_count: 1,
        has_cleaner: false,
        limits: Limits::default(),
    })
}

/// Says what the pool in `directory` is. Needs no key, takes no lock, changes nothing.
///
/// # Errors
/// `NotFound` if there is none, `Unsupported` for a newer version, `Integrity` if its superblock is damaged.
pub fn describe(directory: &Path) -> Result<PoolDescription> {
    let file = SuperblockFile::read(directory)?;
    let superblock = file.superblock();
    let devices = superblock.devices.iter().map(|device| (device.name.clone(), device.block_count * BLOCK_SIZE_U64));
    Ok(PoolDescription {
        id: superblock.pool,
        format_version: file.format_version(),
        suite: superblock.suite,
        devices: devices.collect(),
        key_slots: superblock.slots.iter().map(key_slots::describe).collect(),
    })
}

/// Where the metadata store is. Opening would make an empty one where it is missing.
fn meta_of(directory: &Path) -> Result<PathBuf> {
    let meta = directory.join(META_NAME);
    if meta.join(META_MARK_NAME).exists() {
        return Ok(meta);
    }
    let message = format!("{} is missing or empty", meta.display());
    Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore meta/ and the devices from the same backup"))
}

/// What the file system that holds the metadata of the pool in `directory` has left; `None` if it does not say.
#[must_use]
pub fn metadata_free_bytes(directory: &Path) -> Option<u64> {
    let free = free_space_bytes(&directory.join(META_NAME)).ok();
    free.filter(|bytes| *bytes != u64::MAX)
}

fn open_store(path: &Path, cache_bytes: u64, reserve: &MetaReserve) -> Result<RocksStore> {
    let cache_size_bytes = usize::try_from(cache_bytes).unwrap_or(usize::MAX);
    let options = RocksOptions { cache_size_bytes, reserve_bytes: reserve.kept_bytes(), ..RocksOptions::default() };
    RocksStore::open(path, options).map_err(|error| store_error("Opening", path, error))
}

fn store_error(action: &str, path: &Path, error: crate::meta::MetaError) -> Error {
    let kind = if error.is_out_of_space { ErrorKind::NoSpace } else { ErrorKind::Integrity };
    Error::new(kind, format!("{action} {} failed: {error}", path.display())).with_source(error)
}

/// Locks the pool's devices and reads its superblock, which nobody else changes from then on. What it says is not
/// verified yet.
fn lock(directory: &Path) -> Result<(SuperblockFile, Vec<Arc<FileDevice>>)> {
    let listed = SuperblockFile::read(directory)?.superblock().devices.clone();
    let devices = listed.iter().map(|record| open_device(directory, record)).collect::<Result<_>>()?;
    // Read again: until now another process could change it. What was read then could bring a removed key slot back.
    let file = SuperblockFile::read(directory)?;
    if file.superblock().devices != listed {
        let message = format!("The devices of the pool at {} were changed at this moment", directory.display());
        return Err(Error::new(ErrorKind::Busy, message).with_hint("Try again"));
    }
    Ok((file, devices))
}

fn open_device(directory: &Path, record: &DeviceRecord) -> Result<Arc<FileDevice>> {
    let device = FileDevice::open(&directory.join(&record.name)).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let message = format!("Device {} is missing in {}", record.name, directory.display());
            Error::new(ErrorKind::Integrity, message)
                .with_hint("Put it back under that name, or plug the disk in that the link names")
                .with_source(error)
        }
        _ => error,
    })?;
    Ok(Arc::new(device))
}

/// Whether each device is the one that is listed in its place, and as large.
fn check_devices(devices: &[Arc<FileDevice>], superblock: &Superblock, master: &MasterKey) -> Result<()> {
    let mac = header_mac(master);
    for ((device, record), index) in devices.iter().zip(&superblock.devices).zip((0..).map(DeviceIndex::new)) {
        let (id, block_count) = (record.id, record.block_count);
        identify(&**device, &ExpectedDevice { pool: superblock.pool, id, index, block_count }, &mac)?;
        let (has, needs) = (device.size_bytes(), block_count * BLOCK_SIZE_U64);
        if has > needs {
            tracing::warn!(device = record.name, has, needs, "the device is larger than the pool uses; see pool grow");
        }
    }
    Ok(())
}

/// What to do about a key that is missing or wrong.
const KEY_HINT: &str =
    "Give a key file or a passphrase that the pool was given; rok-blk pool show DIR lists its key slots";

/// Makes the entry of `path` in its directory durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
