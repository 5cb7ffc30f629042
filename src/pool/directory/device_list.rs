//! The devices of an open pool: growing one, and adding one.
//!
//! The superblock is the list. A change makes the new blocks fit for use, then writes the superblock, then lets the pool
//! use them; see "Devices" in `ARCHITECTURE.md` for what a crash behind each step leaves. Owned by who opened the pool, who
//! makes one change at a time.

use super::creation::{check_size, check_source, clear_headers, link_device, random_id};
use super::listed_device::ListedDevice;
use super::superblock_file::SuperblockFile;
use super::{DeviceSource, sync_directory_of};
use crate::disk::{Device, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::format::superblock::{DEVICES_MAX, DeviceRecord, Superblock};
use crate::pool::{NewBlocks, Pool};
use crate::units::{BLOCK_SIZE_U64, DeviceIndex};
use parking_lot::Mutex;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names that are tried for a new device: each one taken is the rest of an adding that was killed.
const NAME_TRIES: usize = 1000;

/// A device around a change. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedDevice {
    /// Its name in the pool's directory; in the plan of an adding, the name that is free now.
    pub name: String,
    /// Before; `None` if it was no device of the pool.
    pub before: Option<u64>,
    /// Afterwards. In the plan for a disk it is that of the disk.
    pub after: u64,
}

/// A device that is to be added. Dropped, it leaves nothing behind.
pub struct PreparedDevice {
    index: DeviceIndex,
    name: String,
    file: Arc<FileDevice>,
    made: MadePath,
}

impl PreparedDevice {
    /// Its position.
    #[must_use]
    pub const fn index(&self) -> DeviceIndex {
        self.index
    }

    /// What lanes do I/O on: each needs it before the device joins.
    #[must_use]
    pub const fn file(&self) -> &Arc<FileDevice> {
        &self.file
    }
}

/// The devices of an open pool.
pub struct DeviceList {
    directory: PathBuf,
    pool: Arc<Pool>,
    /// What the superblock says, as far as this process knows.
    records: Vec<DeviceRecord>,
    /// By index.
    devices: Vec<Arc<ListedDevice>>,
    /// Whoever changes the superblock of an open pool holds it.
    exclusive: Arc<Mutex<()>>,
    /// A change of the superblock failed: which list it holds is not known.
    is_uncertain: bool,
}

impl DeviceList {
    pub(super) fn new(
        directory: &Path,
        pool: Arc<Pool>,
        records: Vec<DeviceRecord>,
        devices: Vec<Arc<ListedDevice>>,
        exclusive: Arc<Mutex<()>>,
    ) -> Self {
        Self { directory: directory.to_path_buf(), pool, records, devices, exclusive, is_uncertain: false }
    }

    /// Makes a file larger, or takes the size of a disk that has become larger. `name` may be left out if the pool has one
    /// device. A disk that has not grown is a success that changes nothing. Reads and writes go on meanwhile.
    ///
    /// # Errors
    /// `NotFound` for an unknown name, `Usage` for a size that cannot be, for a file without a size and a disk with one,
    /// `NoSpace` naming what is free, `Integrity` if the disk has shrunk, `Busy` after a change that failed half-way, else
    /// the system's. Then the pool is used as before.
    pub fn grow(&mut self, name: Option<&str>, size_bytes: Option<u64>, is_dry_run: bool) -> Result<ChangedDevice> {
        self.check_usable()?;
        let index = self.find(name)?;
        let before = self.listed_size(index);
        let after = self.target_size(index, size_bytes)?;
        let changed = ChangedDevice { name: self.records[index].name.clone(), before: Some(before), after };
        if is_dry_run || after == before {
            return Ok(changed);
        }
        self.extend(index, after)?;
        let new = self.prepare_growth(index, after);
        self.list(index, self.grown(index, after))?;
        self.pool.use_blocks(&new);
        tracing::info!(device = changed.name, before, after, "a device has grown");
        Ok(changed)
    }

    /// What adding a device would do.
    ///
    /// # Errors
    /// As [`Self::prepare`], as far as it is known without making anything.
    pub fn plan_adding(&self, source: &DeviceSource) -> Result<ChangedDevice> {
        self.check_usable()?;
        self.check_count()?;
        check_source(source)?;
        let after = match source {
            DeviceSource::File { size_bytes } => *size_bytes,
            DeviceSource::Block { path } => FileDevice::open(path)?.size_bytes(),
        };
        Ok(ChangedDevice { name: self.free_name()?, before: None, after })
    }

    /// Makes a device that is fit to be added: a file written with zeros, or a link to a disk whose front is empty. The
    /// pool knows nothing of it yet. Takes as long as writing the file takes.
    ///
    /// # Errors
    /// `Usage` for a size that cannot be or too many devices, `Exists` if something is on the disk, `Busy` if it is in use
    /// or after a change that failed half-way, `NoSpace` naming what is free, else the system's.
    pub fn prepare(&self, source: &DeviceSource) -> Result<PreparedDevice> {
        self.check_usable()?;
        self.check_count()?;
        check_source(source)?;
        let name = self.free_name()?;
        let path = self.directory.join(&name);
        let (made, file) = match source {
            DeviceSource::File { size_bytes } => make_file(&path, *size_bytes)?,
            DeviceSource::Block { path: target } => {
                let made = MadePath::new(&path);
                let file = link_device(&path, target)?;
                check_size(&format!("Device {}", target.display()), file.size_bytes())?;
                (made, file)
            }
        };
        sync_directory_of(&path).map_err(|source| Error::from_io("Flushing the directory of", &path, source))?;
        let index = u8::try_from(self.records.len()).expect("a pool has at most 32 devices");
        Ok(PreparedDevice { index: DeviceIndex::new(index), name, file: Arc::new(file), made })
    }

    /// Adds a device that every lane has: headers, superblock, and then its blocks are used.
    ///
    /// # Errors
    /// The device's failure, or the system's at the superblock. Then the pool is used as before; in the second case it
    /// may have the device when it is opened again.
    ///
    /// # Panics
    /// If another device was added since it was prepared.
    pub fn join(&mut self, prepared: PreparedDevice) -> Result<ChangedDevice> {
        let PreparedDevice { index, name, file, made } = prepared;
        assert_eq!(index.as_usize(), self.records.len(), "devices are added one after the other");
        self.check_usable()?;
        let after = file.size_bytes();
        let record = DeviceRecord { id: random_id(), block_count: after / BLOCK_SIZE_U64, name: name.clone() };
        let device = Arc::new(ListedDevice::new(Arc::clone(&file), after));
        let joined = self.pool.join(Arc::clone(&device) as Arc<dyn Device>, record.id);
        let new = joined.inspect_err(|_| {
            // Else nobody could take the disk again before it was cleared by hand.
            if file.is_block_device() {
                clear_headers(&file);
            }
        })?;
        // From here on the superblock may name it.
        made.keep();
        self.devices.push(device);
        let listed = self.list(index.as_usize(), record);
        // The pool has it now, listed or not: no other device can have its index.
        self.is_uncertain |= listed.is_err();
        listed?;
        self.pool.use_blocks(&new);
        tracing::info!(device = name, size_bytes = after, "a device was added");
        Ok(ChangedDevice { name, before: None, after })
    }

    /// Makes the device at `index` that large, fit for use.
    pub(super) fn extend(&self, index: usize, size_bytes: u64) -> Result<()> {
        let file = self.devices[index].file();
        // The size of a disk was looked up.
        if file.is_block_device() { Ok(()) } else { file.extend(self.listed_size(index), size_bytes) }
    }

    pub(super) fn prepare_growth(&self, index: usize, size_bytes: u64) -> NewBlocks {
        self.devices[index].grow(size_bytes);
        let device = DeviceIndex::new(u8::try_from(index).expect("a pool has at most 32 devices"));
        self.pool.prepare_growth(device, size_bytes / BLOCK_SIZE_U64)
    }

    /// The record of a device with another size.
    pub(super) fn grown(&self, index: usize, size_bytes: u64) -> DeviceRecord {
        DeviceRecord { block_count: size_bytes / BLOCK_SIZE_U64, ..self.records[index].clone() }
    }

    fn listed_size(&self, index: usize) -> u64 {
        self.records[index].block_count * BLOCK_SIZE_U64
    }

    /// Writes the superblock with this record at `index`, which may be behind the others.
    fn list(&mut self, index: usize, record: DeviceRecord) -> Result<()> {
        let exclusive = Arc::clone(&self.exclusive);
        let _exclusive = exclusive.lock();
        let mut devices = self.records.clone();
        match devices.get_mut(index) {
            Some(place) => *place = record,
            None => devices.push(record),
        }
        let file = SuperblockFile::read(&self.directory)?;
        let master = self.pool.keys().master();
        file.verify(master)?;
        if file.superblock().devices != self.records {
            let message = format!("The list of devices in {} was changed by somebody else", self.directory.display());
            return Err(
                Error::new(ErrorKind::Integrity, message).with_hint("Open the pool again; see rok-blk pool show")
            );
        }
        if let Err(error) = file.replace(&Superblock { devices: devices.clone(), ..file.superblock().clone() }, master)
        {
            self.is_uncertain = true;
            return Err(
                error.with_hint("The pool goes on as it was; whether it has changed shows when it is opened again")
            );
        }
        self.records = devices;
        Ok(())
    }

    fn check_usable(&self) -> Result<()> {
        if self.is_uncertain {
            return Err(Error::new(ErrorKind::Busy, "A change of the devices failed half-way")
                .with_hint("Restart the daemon, and see with rok-blk pool show which devices the pool has"));
        }
        self.pool.check_writable().map_err(|_| {
            Error::new(ErrorKind::Other, "The pool has failed: nothing is changed any more")
                .with_hint("`rok-blk status` says why; restart the daemon once the device is repaired")
        })
    }

    fn check_count(&self) -> Result<()> {
        if self.records.len() < DEVICES_MAX {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Usage, format!("The pool has {DEVICES_MAX} devices, which is the most"))
            .with_hint("Grow one of them with rok-blk pool grow"))
    }

    fn find(&self, name: Option<&str>) -> Result<usize> {
        let names = || self.records.iter().map(|record| record.name.as_str()).collect::<Vec<_>>().join(", ");
        match (name, self.records.len()) {
            (None, 1) => Ok(0),
            (None, _) => Err(Error::new(ErrorKind::Usage, "The pool has several devices, and none was named")
                .with_hint(format!("Name one with --device: {}", names()))),
            (Some(name), _) => self.records.iter().position(|record| record.name == name).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("The pool has no device {name}"))
                    .with_hint(format!("It has {}", names()))
            }),
        }
    }

    /// The size that a device is to have.
    fn target_size(&self, index: usize, size_bytes: Option<u64>) -> Result<u64> {
        let (device, name) = (&self.devices[index], &self.records[index].name);
        let before = self.listed_size(index);
        let usage = |message: String, hint: &str| Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
        let after = match (device.file().is_block_device(), size_bytes) {
            (true, None) => device.file().measure()?,
            (false, Some(size_bytes)) => size_bytes,
            (true, Some(_)) => {
                return usage(
                    format!("{name} is a disk, whose size is its own"),
                    "Grow the disk, then leave --size out",
                );
            }
            (false, None) => {
                return usage(format!("{name} is a file, which grows to the size that is named"), "Add --size SIZE");
            }
        };
        if !after.is_multiple_of(BLOCK_SIZE_U64) {
            return usage(format!("{after} bytes is no size for a device"), "It must be a multiple of 4 KiB");
        }
        if after < before || after == before && size_bytes.is_some() {
            let message = format!("{name} has {before} bytes already, and {after} are not more");
            return usage(message, "A device only grows; name a larger size");
        }
        check_size(name, after)?;
        Ok(after)
    }

    /// A name that nothing has: one that is there but not listed may be a device of the pool from after a superblock that
    /// was restored, and is left alone.
    fn free_name(&self) -> Result<String> {
        for number in (self.records.len()..).take(NAME_TRIES) {
            let name = format!("data-{number}");
            match fs::symlink_metadata(self.directory.join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name),
                Err(error) => return Err(Error::from_io("Looking at", &self.directory.join(&name), error)),
                Ok(_) if self.records.iter().any(|record| record.name == name) => {}
                Ok(_) => tracing::warn!(name, "it is in the pool's directory, but no device of the pool"),
            }
        }
        let message = format!("There are {NAME_TRIES} files in {} that are no devices", self.directory.display());
        Err(Error::new(ErrorKind::Exists, message)
            .with_hint("Remove those whose names rok-blk pool show does not list"))
    }
}

/// A file written with zeros, which has its name only when it is complete: what is left under the other name is nobody's.
fn make_file(path: &Path, size_bytes: u64) -> Result<(MadePath, FileDevice)> {
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Ok(()) => tracing::info!(path = %draft.display(), "the rest of an interrupted adding was removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::from_io("Removing", &draft, error)),
    }
    let made = MadePath::new(&draft);
    drop(FileDevice::create(&draft, size_bytes)?);
    fs::rename(&draft, path).map_err(|source| Error::from_io("Renaming", &draft, source))?;
    made.keep();
    let made = MadePath::new(path);
    Ok((made, FileDevice::open(path)?))
}

/// Removes a file or link unless it is kept.
struct MadePath(Option<PathBuf>);

impl MadePath {
    fn new(path: &Path) -> Self {
        Self(Some(path.to_path_buf()))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for MadePath {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a device that was not added could not be removed");
            }
            _ => {}
        }
    }
}
