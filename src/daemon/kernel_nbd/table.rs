//! The disks of an open pool that the kernel's NBD client has: which there are, and the steps of their lives.
//!
//! Invariants: what is in the table was made, and a thread sees to its connection; one that could not be taken away stays in
//! it. What is in the table is in its file, also while nobody serves it: then it waits. Calls that change it come one at a
//! time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::attached::NbdAttached;
use super::disk::{Holder, block_path};
use super::driver::{Driver, DriverError};
use super::failure::failure;
use crate::daemon::attachment_resource::AttachmentState;
use crate::daemon::attachment_store::{AttachmentFile, Remembered, RememberedDevices};
use crate::daemon::attachments::{Waiting, write_cache};
use crate::daemon::device_users::{self, Care};
use crate::daemon::short_memory::ShortMemory;
use crate::daemon::trash::Thing;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{DeviceVolume, Server};

/// Numbers below this are looked at for one that is free. The driver would make more; each stays until it is unloaded.
const NUMBER_SEARCH_END: u32 = 4096;

/// The disks.
pub(in crate::daemon) struct NbdAttachments {
    pub(super) server: Arc<Server>,
    pub(super) pool: PathBuf,
    pub(super) table: Mutex<Table>,
    pub(super) short_memory: Arc<ShortMemory>,
}

#[derive(Default)]
pub(super) struct Table {
    /// By number.
    pub(super) devices: BTreeMap<u32, Arc<NbdAttached>>,
    /// What is remembered and not served.
    pub(super) waiting: BTreeMap<u32, Waiting>,
    /// Nothing is attached any more.
    is_closed: bool,
}

impl NbdAttachments {
    /// None yet, of the pool in a directory.
    pub(in crate::daemon) fn new(server: Arc<Server>, pool: &Path, short_memory: Arc<ShortMemory>) -> Self {
        Self { server, pool: pool.to_owned(), table: Mutex::default(), short_memory }
    }

    /// All disks, by number.
    pub(in crate::daemon) fn list(&self) -> Vec<Arc<NbdAttached>> {
        self.table.lock().devices.values().cloned().collect()
    }

    /// What waits, by number.
    pub(in crate::daemon) fn waiting(&self) -> BTreeMap<u32, Waiting> {
        self.table.lock().waiting.clone()
    }

    /// What is remembered of all, by number.
    pub(in crate::daemon) fn remembered(&self) -> RememberedDevices {
        let table = self.table.lock();
        let waiting = table.waiting.iter().map(|(number, waiting)| (*number, waiting.remembered));
        waiting.chain(table.devices.iter().map(|(number, attached)| (*number, attached.remembered))).collect()
    }

    /// The disk that was made of this.
    pub(in crate::daemon) fn of(&self, thing: Thing) -> Option<Arc<NbdAttached>> {
        self.list().into_iter().find(|attached| attached.remembered.thing == thing)
    }

    /// Whether disks can be made.
    ///
    /// # Errors
    /// `Unsupported` without the driver.
    pub(in crate::daemon) fn check_driver(&self) -> Result<()> {
        Driver::open().map(|_| ()).map_err(failure)
    }

    /// Makes a disk and remembers it.
    ///
    /// # Errors
    /// `Unsupported` without the driver, `Permission`, `Exists` for a number that is taken, `Busy` if the daemon is ending;
    /// those of remembering it. Then there is no disk.
    pub(in crate::daemon) fn attach(
        &self,
        asked_number: Option<u32>,
        remembered: Remembered,
        mut volume: DeviceVolume,
    ) -> Result<Arc<NbdAttached>> {
        if self.table.lock().is_closed {
            return Err(Error::new(ErrorKind::Busy, "The daemon is ending").with_hint("Start it again"));
        }
        self.check_driver()?;
        self.short_memory.prepare();
        let mut first = 0;
        loop {
            let number = match asked_number {
                Some(number) => self.check_number(number, &remembered)?,
                None => self.free_number(first)?,
            };
            // Before there is a disk: a daemon that is killed then leaves nothing behind that nobody knows.
            self.store(Some((number, remembered)))?;
            match NbdAttached::make(&self.server, number, remembered, volume) {
                Ok(attached) => {
                    attached.find_partitions();
                    tracing::info!(device = %attached.path().display(), "a disk was attached");
                    return Ok(self.insert(attached));
                }
                // Somebody was faster, or has a disk open that is not connected.
                Err((error, unused)) if error.kind() == ErrorKind::Exists && asked_number.is_none() => {
                    volume = unused;
                    self.store(None)?;
                    first = number + 1;
                }
                Err((error, _)) => {
                    if let Err(error) = self.store(None) {
                        tracing::warn!(%error, device = number, "a disk that was not made is remembered");
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Whether a number that is asked for can be had: no other thing waits for it.
    fn check_number(&self, number: u32, remembered: &Remembered) -> Result<u32> {
        let device = block_path(number);
        let device = device.display();
        let is_kept = self.remembered().get(&number).is_some_and(|other| other.thing != remembered.thing);
        if is_kept {
            return Err(Error::new(ErrorKind::Exists, format!("{device} is kept for what was attached there"))
                .with_hint(format!("Name another number, or give that up first: rok-blk detach {device}")));
        }
        // A disk that is left over from before is a stranger's too: its users saw errors.
        match Holder::of(number, &remembered.backend()) {
            Holder::Nobody => Ok(number),
            Holder::Ours | Holder::Other => Err(failure(DriverError::Taken(number))),
        }
    }

    fn free_number(&self, first: u32) -> Result<u32> {
        let remembered = self.remembered();
        let is_free = |number: &u32| !remembered.contains_key(number) && Holder::of(*number, "") == Holder::Nobody;
        (first..NUMBER_SEARCH_END).find(is_free).ok_or_else(|| {
            Error::new(ErrorKind::NoSpace, "All numbers of NBD devices are in use")
                .with_hint("Detach one (rok-blk devices lists ours), or name a number with --id")
        })
    }

    pub(super) fn insert(&self, attached: Arc<NbdAttached>) -> Arc<NbdAttached> {
        let mut table = self.table.lock();
        table.waiting.remove(&attached.number);
        table.devices.insert(attached.number, Arc::clone(&attached));
        attached
    }

    /// Takes a disk away and forgets it.
    ///
    /// # Errors
    /// Those of [`Self::take_away`]: then it is attached still. Those of forgetting it: then it is gone, and comes back with
    /// the next start.
    pub(in crate::daemon) fn detach(&self, attached: &NbdAttached, care: Care) -> Result<()> {
        self.take_away(attached, care)?;
        self.store(None)
    }

    /// Takes a disk away.
    ///
    /// # Errors
    /// `Busy` if it is in use, or that cannot be told, as far as there is care; `TimedOut` if a request of it is not answered, and what the driver
    /// reports. Then it is attached still.
    pub(super) fn take_away(&self, attached: &NbdAttached, care: Care) -> Result<()> {
        let state = attached.state();
        let has_disk = matches!(state, AttachmentState::Live | AttachmentState::Quiesced);
        let claim = if has_disk { device_users::claim(&attached.path(), care)? } else { None };
        attached.leave();
        if state == AttachmentState::Live {
            write_cache(&attached.path());
        }
        attached.disconnect()?;
        drop(claim);
        self.table.lock().devices.remove(&attached.number);
        tracing::info!(device = %attached.path().display(), "a disk was detached");
        Ok(())
    }

    /// Forgets what is not served. A disk that there is still is taken away: its users get errors.
    ///
    /// # Errors
    /// `Busy` if it is in use, or that cannot be told, as far as there is care; what the driver reports. Those of storing it.
    pub(in crate::daemon) fn forget(&self, number: u32, remembered: &Remembered, care: Care) -> Result<()> {
        end_unserved(number, remembered, care)?;
        self.table.lock().waiting.remove(&number);
        self.store(None)
    }

    /// Takes all disks away, whoever uses them, and attaches nothing any more. They are remembered.
    pub(in crate::daemon) fn close(&self) {
        for attached in self.close_table() {
            if let Err(error) = self.take_away(&attached, Care::None) {
                tracing::error!(%error, device = %attached.path().display(), "a disk was left behind");
            }
        }
    }

    /// Attaches nothing any more; returns all disks.
    pub(super) fn close_table(&self) -> Vec<Arc<NbdAttached>> {
        let mut table = self.table.lock();
        table.is_closed = true;
        table.devices.values().cloned().collect()
    }

    /// Stores what is in the table, and one more.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn store(&self, one_more: Option<(u32, Remembered)>) -> Result<()> {
        let mut remembered = self.remembered();
        remembered.extend(one_more);
        self.store_all(&remembered)
    }

    /// Stores what is to be remembered.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn store_all(&self, remembered: &RememberedDevices) -> Result<()> {
        AttachmentFile::NBD.write(&self.pool, remembered)
    }
}

/// Takes away a disk of ours that this daemon does not serve; nothing if there is none of ours.
///
/// # Errors
/// `Busy` if it is in use, or that cannot be told, as far as there is care; what the driver reports.
pub(super) fn end_unserved(number: u32, remembered: &Remembered, care: Care) -> Result<()> {
    if Holder::of(number, &remembered.backend()) != Holder::Ours {
        return Ok(());
    }
    let driver = Driver::open().map_err(failure)?;
    let claim = device_users::claim(&block_path(number), care)?;
    driver.disconnect(number).map_err(failure)?;
    drop(claim);
    Ok(())
}
