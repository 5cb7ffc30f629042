//! Making a pool: directory, devices, reserve, metadata store, and at last the superblock.
//!
//! A creation that fails removes what it made and nothing else. One that is killed leaves a directory without a
//! superblock, which is no pool and is never filled again.

use super::meta_reserve::MetaReserve;
use super::superblock_file;
use super::{
    CreateOptions, DeviceSource, META_CACHE_BYTES_MIN, META_NAME, PoolDescription, credential, describe, open_store,
    shred_key_file, store_error, sync_directory_of,
};
use crate::crypto::slot;
use crate::crypto::{MasterKey, Purpose, Suite, system_random};
use crate::disk::{Device, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::format::device_header::{DeviceHeader, FRONT_BLOCKS, HEADER_OFFSETS};
use crate::format::superblock::{DEVICES_MAX, DeviceRecord, KeySlotRecord, Superblock};
use crate::pool::{self, Limits, Parts};
use crate::units::{Address, BLOCK_SIZE, BLOCK_SIZE_U64, blocks_to_bytes, to_usize};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// The smallest device: below it the reserves leave too little.
const DEVICE_BYTES_MIN: u64 = 16 * MIB;
/// The slot that a new pool's key is in.
const FIRST_SLOT: u8 = 0;
const FIRST_DEVICE_NAME: &str = "data-0";

/// Makes a pool in `directory`, which must be missing (its parent not) or empty. Writes all of a file-backed device.
///
/// # Errors
/// `Exists` if something is there, `Usage` for options that make no sense, `Key` for the key file or passphrase, `NoSpace` naming
/// what is free, `Busy` if the block device is in use, else the system's. What was made is then removed.
pub fn create(directory: &Path, options: &CreateOptions) -> Result<PoolDescription> {
    let id = random_id();
    let master = MasterKey::generate(&mut system_random);
    let slot = wrap_master(&master, options, id)?;
    if !(1..=DEVICES_MAX).contains(&options.devices.len()) {
        let message = format!("A pool cannot have {} devices", options.devices.len());
        return Err(Error::new(ErrorKind::Usage, message).with_hint(format!("Choose 1 to {DEVICES_MAX}")));
    }
    options.devices.iter().try_for_each(check_source)?;
    let mut made = make_directory(directory)?;
    let mut devices = Vec::new();
    let mut records = Vec::new();
    for (index, source) in options.devices.iter().enumerate() {
        let name = format!("data-{index}");
        let device = make_device(&directory.join(&name), source, &mut made)?;
        records.push(DeviceRecord { id: random_id(), block_count: device.size_bytes() / BLOCK_SIZE_U64, name });
        devices.push(Arc::new(device));
    }
    let superblock = Superblock { pool: id, generation: 1, suite: options.suite, devices: records, slots: vec![slot] };
    let filled = fill(directory, superblock, master, &devices, &mut made).and_then(|()| {
        let synced = sync_directory_of(directory);
        synced.map_err(|source| Error::from_io("Flushing the directory of", directory, source))
    });
    if filled.is_err() {
        devices.iter().filter(|device| device.is_block_device()).for_each(|device| clear_headers(device));
    }
    filled?;
    made.keep();
    describe(directory)
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
            fs::set_permissions(directory, Permissions::from_mode(0o700))
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
    if directory.join(FIRST_DEVICE_NAME).symlink_metadata().is_ok() {
        let hint = "Remove it if nothing in it is needed: a creation that was killed leaves this behind";
        return Err(exists("holds parts of a pool without a superblock").with_hint(hint));
    }
    Err(exists("is not empty").with_hint("Choose an empty or new directory"))
}

pub(super) fn check_source(source: &DeviceSource) -> Result<()> {
    match source {
        DeviceSource::File { size_bytes } => {
            let size_bytes = *size_bytes;
            if !size_bytes.is_multiple_of(BLOCK_SIZE_U64) {
                let message = format!("{size_bytes} bytes is no size for a device");
                return Err(Error::new(ErrorKind::Usage, message).with_hint("It must be a multiple of 4 KiB"));
            }
            check_size("The device", size_bytes)
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

pub(super) fn check_size(what: &str, size_bytes: u64) -> Result<()> {
    if size_bytes < DEVICE_BYTES_MIN {
        let message = format!("{what} would have {size_bytes} bytes, which is too small");
        let hint = format!("The smallest device has {} MiB", DEVICE_BYTES_MIN / MIB);
        return Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
    }
    // One less than addresses could name: the address behind the last block is one, too.
    if size_bytes / BLOCK_SIZE_U64 >= Address::DEVICE_BLOCKS_MAX {
        let message = format!("{what} would have {size_bytes} bytes, which is too large");
        return Err(Error::new(ErrorKind::Usage, message).with_hint("A device has less than 4 PiB"));
    }
    Ok(())
}

fn make_device(path: &Path, source: &DeviceSource, made: &mut Made) -> Result<FileDevice> {
    match source {
        DeviceSource::File { size_bytes } => {
            let device = FileDevice::create(path, *size_bytes)?;
            made.paths.push(path.to_path_buf());
            Ok(device)
        }
        DeviceSource::Block { path: target } => {
            made.paths.push(path.to_path_buf());
            let device = link_device(path, target)?;
            check_size(&format!("Device {}", target.display()), device.size_bytes())?;
            Ok(device)
        }
    }
}

/// Links to a device whose front is empty, and opens it.
pub(super) fn link_device(path: &Path, target: &Path) -> Result<FileDevice> {
    let target = std::path::absolute(target).map_err(|source| Error::from_io("Finding", target, source))?;
    symlink(&target, path).map_err(|source| Error::from_io("Linking", path, source))?;
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
pub(super) fn clear_headers(device: &FileDevice) {
    for offset in HEADER_OFFSETS {
        if let Err(error) = device.write_at(offset, &[0; BLOCK_SIZE]) {
            tracing::warn!(device = device.name(), %error, "the header of an unfinished pool could not be removed");
        }
    }
}

/// Everything but the devices' files: reserve, metadata, headers, and at last the superblock.
fn fill(
    directory: &Path,
    superblock: Superblock,
    master: MasterKey,
    devices: &[Arc<FileDevice>],
    made: &mut Made,
) -> Result<()> {
    let reserve = MetaReserve::of_pool(directory, devices[0].size_bytes());
    reserve.create()?;
    made.paths.push(reserve.path().to_path_buf());
    if superblock.suite == Suite::XtsGmac {
        made.paths.push(shred_key_file::create(directory)?);
    }
    let meta = directory.join(META_NAME);
    DirBuilder::new().mode(0o700).create(&meta).map_err(|source| Error::from_io("Creating", &meta, source))?;
    made.paths.push(meta.clone());
    let mac = master.static_mac(Purpose::Superblock);
    let store = Arc::new(open_store(&meta, META_CACHE_BYTES_MIN, &reserve)?);
    let parts_of =
        |(device, record): (&Arc<FileDevice>, &DeviceRecord)| (Arc::clone(device) as Arc<dyn Device>, record.id);
    let parts = Parts {
        id: superblock.pool,
        suite: superblock.suite,
        master: Arc::new(master),
        devices: devices.iter().zip(&superblock.devices).map(parts_of).collect(),
        store: Arc::clone(&store) as _,
        reserve: None,
        shred_key: None,
        lane_count: 1,
        has_cleaner: false,
        limits: Limits::default(),
    };
    pool::create(&parts, &mut system_random)?;
    drop(parts);
    let store = Arc::into_inner(store).expect("the parts are gone, and nothing else shares the store");
    store.close().map_err(|error| store_error("Closing", &meta, error))?;
    made.paths.push(directory.join(superblock_file::NEW_FILE_NAME));
    made.paths.push(directory.join(superblock_file::FILE_NAME));
    superblock_file::create(directory, &superblock, &mac)
}

fn wrap_master(master: &MasterKey, options: &CreateOptions, pool: Uuid) -> Result<KeySlotRecord> {
    match (options.suite, &options.credential) {
        (Suite::XtsGmac, Some(credential)) => credential.wrap(master, &pool, FIRST_SLOT),
        (Suite::XtsGmac, None) => {
            Err(Error::new(ErrorKind::Usage, "An encrypted pool needs a key file or a passphrase")
                .with_hint("Give one, or ask for no encryption"))
        }
        (Suite::Plain, None) => {
            let slot = slot::wrap_clear(master, Suite::Plain, &pool, FIRST_SLOT, &mut system_random);
            Ok(credential::slot_record(FIRST_SLOT, slot))
        }
        (Suite::Plain, Some(_)) => {
            let message = "A pool without encryption takes neither key file nor passphrase";
            Err(Error::new(ErrorKind::Usage, message).with_hint("Leave one of the two options out"))
        }
    }
}

pub(super) fn random_id() -> Uuid {
    let mut bytes = [0; 16];
    system_random(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}
