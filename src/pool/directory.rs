//! A pool on the file system: making one, opening one, and saying what it is.
//!
//! ```text
//! POOL/            0700
//!   superblock     two copies; written last, so that a directory without it is no pool
//!   meta/          the metadata store
//!   meta-reserve   zeros; room to give to meta/ when the file system is full
//!   data-0         a file written once with zeros, or a symbolic link to a block device
//! ```
//! `meta-reserve` has 64 MiB, or a sixteenth of a pool below 1 GiB. Nothing gives it up by itself yet: an administrator
//! can delete it when `meta/` is out of space, and the pool opens without it.
//!
//! Invariant: the devices are locked before anything else of the pool is opened or changed, and as long as it is open.

mod key_file;
mod listed_device;
mod superblock_file;

pub use key_file::generate_key_file;

use crate::crypto::slot::{self, KeySlot, SlotKind};
use crate::crypto::{MasterKey, Purpose, Suite, system_random};
use crate::disk::{Device, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::LANES_MAX;
use crate::format::device_header::{DeviceHeader, FRONT_BLOCKS, HEADER_OFFSETS};
use crate::format::superblock::{DeviceRecord, KeySlotRecord, Superblock};
use crate::meta::{RocksOptions, RocksStore};
use crate::pool::{Limits, Parts, Pool};
use crate::units::{Address, BLOCK_SIZE, BLOCK_SIZE_U64, blocks_to_bytes, to_usize};
use listed_device::ListedDevice;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use superblock_file::SuperblockFile;
use uuid::Uuid;

const META_NAME: &str = "meta";
const RESERVE_NAME: &str = "meta-reserve";
const DEVICE_NAME: &str = "data-0";
/// The file by which a directory of RocksDB is known.
const META_MARK_NAME: &str = "CURRENT";
const MIB: u64 = 1 << 20;
/// The smallest device: below it the reserves leave too little.
const DEVICE_BYTES_MIN: u64 = 16 * MIB;
const RESERVE_BYTES_MAX: u64 = 64 * MIB;
/// The part of a small pool that its reserve takes.
const RESERVE_DIVISOR: u64 = 16;
/// The slot that a new pool's key is in.
const FIRST_SLOT: u8 = 0;

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
    /// The first device.
    pub device: DeviceSource,
    /// How blocks are protected.
    pub suite: Suite,
    /// An existing key file; needed with [`Suite::XtsGmac`], refused with [`Suite::Plain`].
    pub key_file: Option<PathBuf>,
}

/// How [`open`] opens.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The key file; needed if the pool is encrypted, refused if it is not.
    pub key_file: Option<PathBuf>,
    /// Lanes that will run, 1 to 64.
    pub lane_count: u16,
    /// Decoded leaves that are kept in memory.
    pub map_cache_leaves: usize,
}

/// An open pool and the files that its lanes do I/O on.
pub struct OpenPool {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Its devices by index, locked as long as one of the two lives.
    pub devices: Vec<Arc<FileDevice>>,
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
    /// Position and kind of each key slot in use.
    pub key_slots: Vec<(u8, &'static str)>,
}

/// Makes a pool in `directory`, which must be missing (its parent not) or empty. Writes all of a file-backed device.
///
/// # Errors
/// `Exists` if something is there, `Usage` for options that make no sense, `Key` for the key file, `NoSpace` naming
/// what is free, `Busy` if the block device is in use, else the system's. What was made is then removed.
pub fn create(directory: &Path, options: &CreateOptions) -> Result<PoolDescription> {
    let id = random_id();
    let master = MasterKey::generate(&mut system_random);
    let slot = wrap_master(&master, options, id)?;
    check_source(&options.device)?;
    let mut made = make_directory(directory)?;
    let device = make_device(directory, &options.device, &mut made)?;
    let record =
        DeviceRecord { id: random_id(), block_count: device.size_bytes() / BLOCK_SIZE_U64, name: DEVICE_NAME.into() };
    let is_block_device = matches!(options.device, DeviceSource::Block { .. });
    let device = Arc::new(device);
    let superblock =
        Superblock { pool: id, generation: 1, suite: options.suite, devices: vec![record], slots: vec![slot] };
    let filled = fill(directory, superblock, master, &device, &mut made).and_then(|()| {
        let synced = sync_directory_of(directory);
        synced.map_err(|source| Error::from_io("Flushing the directory of", directory, source))
    });
    if filled.is_err() && is_block_device {
        clear_headers(&device);
    }
    filled?;
    made.keep();
    describe(directory)
}

/// Opens the pool in `directory`: locks its devices, unlocks its key, recovers.
///
/// # Errors
/// `NotFound` if there is none, `Busy` if another process has it, `Key` for a missing or wrong key, `Unsupported` for a
/// newer version, `Integrity` naming what is damaged, foreign, missing or older, `Usage` for the number of lanes.
pub fn open(directory: &Path, options: &OpenOptions) -> Result<OpenPool> {
    if !(1..=LANES_MAX).contains(&usize::from(options.lane_count)) {
        let message = format!("{} lanes are not possible", options.lane_count);
        return Err(Error::new(ErrorKind::Usage, message).with_hint(format!("Choose 1 to {LANES_MAX}")));
    }
    let mut file = SuperblockFile::read(directory)?;
    let master = unlock(directory, &file.superblock, options.key_file.as_deref())?;
    let mac = master.static_mac(Purpose::Superblock);
    file.verify(&mac)?;
    let devices = open_devices(directory, &file.superblock)?;
    let meta = directory.join(META_NAME);
    // Opening would make an empty one where it is missing.
    if !meta.join(META_MARK_NAME).exists() {
        let message = format!("{} is missing or empty", meta.display());
        return Err(Error::new(ErrorKind::Integrity, message)
            .with_hint("Restore meta/ and the devices from the same backup"));
    }
    let store = open_store(&meta)?;
    let listed = devices.iter().zip(&file.superblock.devices).map(|(device, record)| {
        let size_bytes = record.block_count * BLOCK_SIZE_U64;
        let listed: Arc<dyn Device> = Arc::new(ListedDevice::new(Arc::clone(device), size_bytes));
        (listed, record.id)
    });
    let parts = Parts {
        id: file.superblock.pool,
        suite: file.superblock.suite,
        master: Arc::new(master),
        devices: listed.collect(),
        store: Arc::new(store),
        lane_count: options.lane_count,
        limits: Limits { cached_leaves_max: options.map_cache_leaves, ..Limits::default() },
    };
    file.repair(&mac);
    let pool = super::open(parts, &mut system_random)?;
    Ok(OpenPool { pool, devices })
}

/// Says what the pool in `directory` is. Needs no key, takes no lock, changes nothing.
///
/// # Errors
/// `NotFound` if there is none, `Unsupported` for a newer version, `Integrity` if its superblock is damaged.
pub fn describe(directory: &Path) -> Result<PoolDescription> {
    let SuperblockFile { superblock, format_version, .. } = SuperblockFile::read(directory)?;
    let devices = superblock.devices.into_iter().map(|device| (device.name, device.block_count * BLOCK_SIZE_U64));
    Ok(PoolDescription {
        id: superblock.pool,
        format_version,
        suite: superblock.suite,
        devices: devices.collect(),
        key_slots: superblock.slots.iter().map(|slot| (slot.index, slot_word(slot.kind))).collect(),
    })
}

/// Removes what an unfinished [`create`] made, newest first.
#[derive(Default)]
struct Made {
    paths: Vec<PathBuf>,
}

impl Made {
    fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.paths.drain(..).rev() {
            // `meta/` is the only directory with contents, all of which RocksDB made; the pool's own is empty by now.
            let is_meta = path.file_name().is_some_and(|name| name == META_NAME);
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            let removed = match (is_directory, is_meta) {
                (true, true) => fs::remove_dir_all(&path),
                (true, false) => fs::remove_dir(&path),
                (false, _) => fs::remove_file(&path),
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a part of an unfinished pool could not be removed");
                }
                _ => {}
            }
        }
    }
}

fn make_directory(directory: &Path) -> Result<Made> {
    let mut made = Made::default();
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {
            made.paths.push(directory.to_path_buf());
            Ok(made)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            check_is_empty(directory)?;
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(directory, private)
                .map_err(|source| Error::from_io("Setting the permissions of", directory, source))?;
            Ok(made)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::from_io("Creating", directory, error).with_hint("Make its parent directory first"))
        }
        Err(error) => Err(Error::from_io("Creating", directory, error)),
    }
}

fn check_is_empty(directory: &Path) -> Result<()> {
    let exists = |what: &str| Error::new(ErrorKind::Exists, format!("{} {what}", directory.display()));
    let mut entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(exists("exists and is no directory").with_hint("Choose another path"));
        }
        Err(error) => return Err(Error::from_io("Reading", directory, error)),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    if directory.join(superblock_file::FILE_NAME).exists() {
        return Err(exists("holds a pool already").with_hint("Choose another path"));
    }
    if directory.join(DEVICE_NAME).symlink_metadata().is_ok() {
        let hint = "Remove it if nothing in it is needed: a creation that was killed leaves this behind";
        return Err(exists("holds parts of a pool without a superblock").with_hint(hint));
    }
    Err(exists("is not empty").with_hint("Choose an empty or new directory"))
}

fn check_source(source: &DeviceSource) -> Result<()> {
    match source {
        DeviceSource::File { size_bytes } => {
            let size_bytes = *size_bytes;
            if !size_bytes.is_multiple_of(BLOCK_SIZE_U64) {
                let message = format!("{size_bytes} bytes is no size for a pool");
                return Err(Error::new(ErrorKind::Usage, message).with_hint("It must be a multiple of 4 KiB"));
            }
            check_size("The pool", size_bytes)
        }
        DeviceSource::Block { path } => {
            let metadata = fs::metadata(path).map_err(|source| Error::from_io("Opening", path, source))?;
            if metadata.file_type().is_block_device() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Usage, format!("{} is no block device", path.display()))
                .with_hint("Give a size instead, and the pool is a file in its directory"))
        }
    }
}

fn check_size(what: &str, size_bytes: u64) -> Result<()> {
    if size_bytes < DEVICE_BYTES_MIN {
        let message = format!("{what} would have {size_bytes} bytes, which is too small");
        let hint = format!("The smallest pool has {} MiB", DEVICE_BYTES_MIN / MIB);
        return Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
    }
    if size_bytes / BLOCK_SIZE_U64 > Address::DEVICE_BLOCKS_MAX {
        let message = format!("{what} would have {size_bytes} bytes, which is too large");
        return Err(Error::new(ErrorKind::Usage, message).with_hint("The largest device has 4 PiB"));
    }
    Ok(())
}

fn make_device(directory: &Path, source: &DeviceSource, made: &mut Made) -> Result<FileDevice> {
    let path = directory.join(DEVICE_NAME);
    match source {
        DeviceSource::File { size_bytes } => {
            let device = FileDevice::create(&path, *size_bytes)?;
            made.paths.push(path);
            Ok(device)
        }
        DeviceSource::Block { path: target } => {
            let device = link_device(&path, target, made)?;
            check_size(&format!("Device {}", target.display()), device.size_bytes())?;
            Ok(device)
        }
    }
}

/// Links to a device whose front is empty, and opens it.
fn link_device(path: &Path, target: &Path, made: &mut Made) -> Result<FileDevice> {
    let target = std::path::absolute(target).map_err(|source| Error::from_io("Finding", target, source))?;
    symlink(&target, path).map_err(|source| Error::from_io("Linking", path, source))?;
    made.paths.push(path.to_path_buf());
    let device = FileDevice::open(path)?;
    let mut front = vec![0; blocks_to_bytes(to_usize(FRONT_BLOCKS))];
    device.read_at(0, &mut front).map_err(|source| Error::from_io("Reading", &target, source))?;
    if let Some(pool) = HEADER_OFFSETS.iter().find_map(|offset| DeviceHeader::peek_pool(&front[to_usize(*offset)..])) {
        let message = format!("{} is a device of pool {pool}", target.display());
        return Err(Error::new(ErrorKind::Exists, message).with_hint(wipe_hint(&target)));
    }
    if front.iter().any(|byte| *byte != 0) {
        let message = format!("{} is not empty: something is in its first MiB", target.display());
        return Err(Error::new(ErrorKind::Exists, message).with_hint(wipe_hint(&target)));
    }
    Ok(device)
}

fn wipe_hint(target: &Path) -> String {
    let target = target.display();
    format!("If nothing on it is needed, clear it with: dd if=/dev/zero of={target} bs=1M count=1 oflag=direct")
}

/// Takes the headers off a block device again, whose pool was not completed.
fn clear_headers(device: &FileDevice) {
    for offset in HEADER_OFFSETS {
        if let Err(error) = device.write_at(offset, &[0; BLOCK_SIZE]) {
            tracing::warn!(device = device.name(), %error, "the header of an unfinished pool could not be removed");
        }
    }
}

/// Everything but the device's file: reserve, metadata, headers, and at last the superblock.
fn fill(
    directory: &Path,
    superblock: Superblock,
    master: MasterKey,
    device: &Arc<FileDevice>,
    made: &mut Made,
) -> Result<()> {
    let reserve = directory.join(RESERVE_NAME);
    let share = device.size_bytes() / RESERVE_DIVISOR;
    let reserve_bytes = (share - share % BLOCK_SIZE_U64).min(RESERVE_BYTES_MAX);
    drop(FileDevice::create(&reserve, reserve_bytes)?);
    made.paths.push(reserve);
    let meta = directory.join(META_NAME);
    DirBuilder::new().mode(0o700).create(&meta).map_err(|source| Error::from_io("Creating", &meta, source))?;
    made.paths.push(meta.clone());
    let mac = master.static_mac(Purpose::Superblock);
    let store = Arc::new(open_store(&meta)?);
    let parts = Parts {
        id: superblock.pool,
        suite: superblock.suite,
        master: Arc::new(master),
        devices: vec![(Arc::clone(device) as Arc<dyn Device>, superblock.devices[0].id)],
        store: Arc::clone(&store) as _,
        lane_count: 1,
        limits: Limits::default(),
    };
    super::create(&parts, &mut system_random)?;
    drop(parts);
    let store = Arc::into_inner(store).expect("the parts are gone, and nothing else shares the store");
    store.close().map_err(|error| store_error("Closing", &meta, error))?;
    made.paths.push(directory.join(superblock_file::NEW_FILE_NAME));
    made.paths.push(directory.join(superblock_file::FILE_NAME));
    superblock_file::create(directory, &superblock, &mac)
}

fn open_store(path: &Path) -> Result<RocksStore> {
    RocksStore::open(path, RocksOptions::default()).map_err(|error| store_error("Opening", path, error))
}

fn store_error(action: &str, path: &Path, error: crate::meta::MetaError) -> Error {
    let kind = if error.is_out_of_space { ErrorKind::NoSpace } else { ErrorKind::Integrity };
    Error::new(kind, format!("{action} {} failed: {error}", path.display())).with_source(error)
}

fn open_devices(directory: &Path, superblock: &Superblock) -> Result<Vec<Arc<FileDevice>>> {
    let open = |record: &DeviceRecord| {
        let device = FileDevice::open(&directory.join(&record.name)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let message = format!("Device {} is missing in {}", record.name, directory.display());
                Error::new(ErrorKind::Integrity, message)
                    .with_hint("Put it back under that name, or plug the disk in that the link names")
                    .with_source(error)
            }
            _ => error,
        })?;
        let (has, needs) = (device.size_bytes(), record.block_count * BLOCK_SIZE_U64);
        if has < needs {
            let message = format!("Device {} has shrunk: it has {has} bytes and the pool needs {needs}", record.name);
            return Err(Error::new(ErrorKind::Integrity, message)
                .with_hint("Restore the device to its full size; nothing was changed"));
        }
        if has > needs {
            tracing::warn!(device = record.name, has, needs, "the device is larger than the pool uses");
        }
        Ok(Arc::new(device))
    };
    superblock.devices.iter().map(open).collect()
}

fn wrap_master(master: &MasterKey, options: &CreateOptions, pool: Uuid) -> Result<KeySlotRecord> {
    let slot = match (options.suite, &options.key_file) {
        (Suite::XtsGmac, Some(path)) => {
            let key = key_file::read(path)?;
            slot::wrap_with_key_file(master, &key, &pool, FIRST_SLOT, &mut system_random)
        }
        (Suite::XtsGmac, None) => {
            return Err(Error::new(ErrorKind::Usage, "An encrypted pool needs a key file").with_hint(KEY_FILE_HINT));
        }
        (Suite::Plain, None) => slot::wrap_clear(master, Suite::Plain, &pool, FIRST_SLOT, &mut system_random),
        (Suite::Plain, Some(_)) => {
            let message = "A pool without encryption takes no key file";
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Leave one of the two options out"));
        }
    };
    let KeySlot { kind, salt, wrapped, parameters, .. } = slot;
    Ok(KeySlotRecord { index: FIRST_SLOT, kind: kind.code(), salt, wrapped, parameters })
}

const KEY_FILE_HINT: &str = "Give the key file that the pool was created with (--key-file)";

/// The master key, from the first slot that opens.
fn unlock(directory: &Path, superblock: &Superblock, key_file: Option<&Path>) -> Result<MasterKey> {
    let at = directory.display();
    let wrong = |message: String| Error::new(ErrorKind::Key, message).with_hint(KEY_FILE_HINT);
    match (superblock.suite, key_file) {
        (Suite::XtsGmac, None) => Err(wrong(format!("The pool at {at} is encrypted, and no key file was given"))),
        (Suite::XtsGmac, Some(path)) => {
            let key = key_file::read(path)?;
            slots(superblock)
                .find_map(|(index, slot)| slot::unwrap_with_key_file(&slot, &key, &superblock.pool, index).ok())
                .ok_or_else(|| wrong(format!("The key file {} does not open the pool at {at}", path.display())))
        }
        // Else a pool that somebody put in the place of an encrypted one would take what is to be secret.
        (Suite::Plain, Some(path)) => {
            let message = format!("The pool at {at} is not encrypted, so {} is not its key", path.display());
            Err(Error::new(ErrorKind::Key, message).with_hint("Leave the key file out if that is what you expect"))
        }
        (Suite::Plain, None) => slots(superblock)
            .find_map(|(index, slot)| slot::unwrap_clear(&slot, Suite::Plain, &superblock.pool, index).ok())
            .ok_or_else(|| {
                Error::new(ErrorKind::Integrity, format!("The superblock of the pool at {at} has no key that opens"))
                    .with_hint("Restore it from a backup")
            }),
    }
}

/// The slots whose kind this version knows.
fn slots(superblock: &Superblock) -> impl Iterator<Item = (u8, KeySlot)> {
    superblock.slots.iter().filter_map(|record| {
        let kind = SlotKind::from_code(record.kind)?;
        let KeySlotRecord { index, salt, wrapped, parameters, .. } = record.clone();
        Some((index, KeySlot { kind, label: String::new(), salt, parameters, wrapped }))
    })
}

const fn slot_word(kind: u8) -> &'static str {
    match kind {
        1 => "key-file",
        2 => "clear",
        3 => "passphrase",
        4 => "systemd-credential",
        _ => "unknown",
    }
}

fn random_id() -> Uuid {
    let mut bytes = [0; 16];
    system_random(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// Makes the entry of `path` in its directory durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
